"""A stream of contents with a mark before each and after the last: a file whose size changed on the way cannot shift the files after it."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator

_CHUNK = 128 * 1024


class CutShort(Exception):
    """The stream ended before its last mark."""


def new_mark() -> bytes:
    """What no file contains, since nobody knew it when the file was written; shell-safe."""
    return secrets.token_urlsafe(24).encode()


class Marked:
    """A stream as it comes in; `on_data` is told every byte of it."""

    def __init__(self, recv: Callable[[int], bytes], mark: bytes, on_data: Callable[[bytes], object]) -> None:
        self._recv = recv
        self._mark = mark
        self._on_data = on_data
        self._data = b""
        self._at = 0  # what lies before is taken

    def until_mark(self) -> Iterator[bytes]:
        """What comes before the next mark, in pieces. Raises CutShort."""
        while (end := self._data.find(self._mark, self._at)) < 0:
            safe = max(self._at, len(self._data) - len(self._mark) + 1)  # a mark may come in two pieces
            if safe > self._at:
                yield self._data[self._at : safe]
            chunk = self._recv(_CHUNK)
            if not chunk:
                raise CutShort
            self._on_data(chunk)
            self._data, self._at = self._data[safe:] + chunk, 0
        if end > self._at:
            yield self._data[self._at : end]
        self._at = end + len(self._mark)

    def is_over(self) -> bool:
        """Whether nothing comes any more."""
        return self._at == len(self._data) and not self._recv(1)
