"""The notice that a provider gives a machine before it takes it back (spot, maintenance), watched on the machine and told by its check.

Only the machine can ask for it, and it is there for 30 s to 2 min, so a program that runs from boot on keeps it in a file.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from prefect_gpu.providers.core.contract import NOTICE_FILE, Connection

FILE: Final = NOTICE_FILE
_BYTES: Final = 4096  # of a notice; what is longer is cut
_SHOWN: Final = 300


@dataclass(frozen=True)
class Notice:
    """Where a provider gives notice, as data: `AWS_SPOT` in providers/aws/order.py is one."""

    url: str
    header: str = ""  # `Metadata-Flavor: Google`
    says: str = ""  # what an answer holds that is a notice, as grep reads it; empty: any answer that is not empty
    grant_url: str = ""  # asked by PUT with the header `grant_ask`; its answer is sent as the header `grant_header`
    grant_ask: str = ""
    grant_header: str = ""
    every_s: float = 5.0


def script(notice: Notice) -> str:
    """A program for `cloud_init.user_data(services=...)`: it writes the notice to FILE as soon as there is one. It needs curl."""
    given = {
        "file": FILE,
        "url": notice.url,
        "header": notice.header,
        "says": notice.says,
        "grant_url": notice.grant_url,
        "grant_ask": notice.grant_ask,
        "grant_header": notice.grant_header,
        "every": f"{notice.every_s:g}",
    }
    head, _, program = _program().partition("\n")
    return "\n".join([head, *(f"{name}={shlex.quote(value)}" for name, value in given.items()), program])


def heard(connection: Connection) -> str | None:
    """What stands in the machine's file, as one printable line; None where there is no notice."""
    channel = connection.open(f"head -c {_BYTES} {FILE} 2>/dev/null")
    try:
        channel.shutdown_write()
        said = channel.recv(_BYTES).decode("utf-8", "replace")
    finally:
        channel.close()
    return " ".join("".join(one if one.isprintable() else " " for one in said).split())[:_SHOWN] or None


@cache
def _program() -> str:
    return (Path(__file__).parent / "sh" / "notice.sh").read_text()
