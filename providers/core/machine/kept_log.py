"""A job's output in a file of bounded size: its beginning and its end, and a line that says how much is missing between them.

`yes` wrote 3.5 GB in 25 s, and a worker without free disk loses every job it follows. Past `HEAD_BYTES`, or once only a reserve of the
disk is free, output goes to two pieces beside the file that take turns, `<name>.tail-<offset>`; `finish` puts them behind the beginning.
The pieces' names say where in the output they begin, so another process goes on at the right byte; of a finished file that was cut it
keeps the beginning and asks for the rest again.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import IO, Final

from prefect_gpu.providers.core.machine.destination import reserve

HEAD_BYTES: Final = 256 * 1024 * 1024
TAIL_BYTES: Final = 64 * 1024 * 1024
SMALL_TAIL_BYTES: Final = 1024 * 1024  # where the disk is nearly full
_LOOK_EVERY = 16 * 1024 * 1024
_LAST_LINE = re.compile(rb"\n\.\.\. [0-9,]+ bytes of output are missing here after the first ([0-9,]+)[^\n]*\n\Z")
_LINE_BYTES = 300


class KeptLog:
    """Open for writing; `position` is how far in the job's output it has come."""

    def __init__(
        self,
        path: Path,
        note: Callable[[str], object] | None = None,
        *,
        head_bytes: int = HEAD_BYTES,
        tail_bytes: int = TAIL_BYTES,
    ) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._note = note
        self._head_bytes = head_bytes
        self._tail_bytes = tail_bytes
        self._since_look = _LOOK_EVERY  # looked at before the first byte
        self._why = f"{head_bytes:,} bytes of a log are kept from its beginning"
        pieces = _pieces(path)
        if not pieces and path.exists() and (cut := _LAST_LINE.search(last(path, _LINE_BYTES))) is not None:
            with path.open("rb+") as finished:
                finished.truncate(min(path.stat().st_size, int(cut[1].replace(b",", b""))))
        self._is_cut = bool(pieces)
        self._file: IO[bytes] = (pieces[-1] if pieces else path).open("ab")
        self._start = _offset(pieces[-1]) if pieces else 0
        self.position = self._start + self._file.tell()

    def write(self, data: bytes) -> None:
        """Raises OSError where the disk takes no more all the same."""
        self._look_for_room(len(data))
        if not self._is_cut and self.position + len(data) > self._head_bytes:
            room = max(0, self._head_bytes - self.position)
            self._put(data[:room])
            data = data[room:]
            self._is_cut = True
            self._next_piece()
            if self._note is not None:
                self._note(
                    f"the log file keeps the first {self.position:,} bytes of the job's output and the last: {self._why}"
                )
        half = max(1, self._tail_bytes // 2)
        while self._is_cut and self.position + len(data) - self._start > half:
            room = max(0, half - (self.position - self._start))
            self._put(data[:room])
            data = data[room:]
            self._next_piece()
        self._put(data)

    def finish(self) -> None:
        """The job is over: beginning and end in one file."""
        self._file.close()
        pieces = _pieces(self._path)
        if not pieces:
            return
        head = self._path.stat().st_size
        missing = (
            f"{_offset(pieces[0]) - head:,} bytes of output are missing here after the first {head:,}: {self._why}"
        )
        with self._path.open("ab") as whole:
            if _offset(pieces[0]) > head:
                whole.write(f"\n... {missing}\n".encode())
            for piece in pieces:
                with piece.open("rb") as source:
                    shutil.copyfileobj(source, whole)
            if _offset(pieces[0]) > head:  # also where people look first, and where `KeptLog` does
                whole.write(f"\n... {missing}\n".encode())
        for piece in pieces:
            piece.unlink()

    def close(self) -> None:
        """Others go on with it."""
        self._file.close()

    def _put(self, data: bytes) -> None:
        self._file.write(data)
        self._file.flush()
        self.position += len(data)

    def _next_piece(self) -> None:
        self._file.close()
        for old in _pieces(self._path)[:-1]:
            old.unlink()
        self._start = self.position
        self._file = _piece(self._path, self.position).open("wb")

    def _look_for_room(self, count: int) -> None:
        self._since_look += count
        if self._since_look < _LOOK_EVERY:
            return
        self._since_look = 0
        usage = shutil.disk_usage(self._path.parent)
        if usage.free < reserve(usage.total):
            self._tail_bytes = min(self._tail_bytes, SMALL_TAIL_BYTES)
            if not self._is_cut:
                self._head_bytes = min(self._head_bytes, self.position)
                self._why = f"only {usage.free / 1e9:.1f} GB of the worker's disk are free"


def make_own(path: Path) -> None:
    """Files of this process's own in the place of what an earlier one left: one that only slept may write to its own when it wakes up."""
    for old in [path, *_pieces(path)] if path.parent.is_dir() else []:
        if old.exists():
            copy = old.with_name(f"{old.name}.copy")
            shutil.copyfile(old, copy)
            copy.replace(old)


def last(path: Path, count: int) -> bytes:
    """The last bytes of a log, finished or not."""
    data = b""
    for piece in reversed([path, *_pieces(path)]):
        with piece.open("rb") as source:
            size = piece.stat().st_size
            source.seek(max(0, size - (count - len(data))))
            data = source.read(count - len(data)) + data
        if len(data) >= count:
            break
    return data


def _piece(path: Path, offset: int) -> Path:
    return path.with_name(f"{path.name}.tail-{offset}")


def _pieces(path: Path) -> list[Path]:
    """By offset; only what is named as ours."""
    prefix = f"{path.name}.tail-"
    found = [
        one for one in path.parent.iterdir() if one.name.startswith(prefix) and one.name[len(prefix) :].isdecimal()
    ]
    return sorted(found, key=_offset)


def _offset(piece: Path) -> int:
    return int(piece.name.rpartition("-")[2])
