"""Server-sent events: the data of those that came whole. https://html.spec.whatwg.org/multipage/server-sent-events.html"""

from __future__ import annotations

import re

from prefect_gpu.providers.core.toolkit.answers import Json, parse


def data_in(content: bytes) -> list[Json]:
    """The JSON data of each event, in order; an event whose data is not JSON is left out, and so is what its end cut off."""
    found: list[Json] = []
    pieces: list[bytes] = []
    for line in [*re.split(rb"\r\n|\n|\r", content)[:-1], b""]:
        name, _, value = line.partition(b":")
        if name == b"data":
            pieces.append(value.removeprefix(b" "))
        elif pieces and name in (b"", b"id", b"event"):  # a vendor may leave out the empty line between two events
            is_json, data = parse(b"\n".join(pieces))
            found += [data] if is_json and data is not None else []
            pieces = []
    return found
