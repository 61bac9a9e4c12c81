"""All rows of a question to Prefect's API, however many pages there are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, cast

PAGE: Final = 200  # the most that the API gives at once


def rows(client: Any, path: str, question: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The rows of `POST <path>` with this question, a page at a time: who has enough stops asking."""
    offset = 0
    while True:
        answer = client.request("POST", path, json={**question, "limit": PAGE, "offset": offset}).json()
        page = cast("list[dict[str, Any]]", answer)
        yield from page
        if len(page) < PAGE:
            return
        offset += PAGE
