"""A tar stream of chosen files: by the `tar` program, or by Python where there is none."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path

from providers.core.errors import InvalidRequest

_CHUNK = 128 * 1024


def packed(names: Sequence[str], base: Path) -> Generator[bytes]:
    """The stream; links as links, folders without what is in them. Raises InvalidRequest when a file cannot be read."""
    program = shutil.which("tar")
    return _by_program(program, names, base) if program else _by_python(names, base)


def _by_program(program: str, names: Sequence[str], base: Path) -> Generator[bytes]:
    with tempfile.TemporaryFile() as listed, tempfile.TemporaryFile() as problems:
        # "./": a name may begin with a dash.
        listed.write(b"".join(b"./" + os.fsencode(name) + b"\0" for name in names))
        listed.seek(0)
        command = [program, "-c", "-f", "-", "--format=gnu", "--null", "--no-recursion", "-C", str(base), "-T", "-"]
        with subprocess.Popen(command, stdin=listed, stdout=subprocess.PIPE, stderr=problems, bufsize=0) as process:
            assert process.stdout is not None  # noqa: S101 - asked for
            try:
                # Unbuffered: what the pipe has, not more.
                while chunk := process.stdout.read(_CHUNK):
                    yield chunk
            except GeneratorExit:
                process.kill()
                raise
        if process.returncode != 0:
            problems.seek(0)
            text = problems.read(1000).decode(errors="replace").strip()
            raise InvalidRequest(f"the files cannot be read: {text or f'tar ended with {process.returncode}'}")


def _by_python(names: Sequence[str], base: Path) -> Generator[bytes]:
    buffer = _Buffer()
    try:
        with tarfile.open(fileobj=buffer, mode="w|", bufsize=_CHUNK, format=tarfile.GNU_FORMAT) as archive:
            for name in names:
                archive.add(base / name, arcname=name, recursive=False)
                yield from buffer.taken()
    except OSError as error:
        raise InvalidRequest(f"the files cannot be read: {error}") from error
    yield from buffer.taken()


class _Buffer(io.RawIOBase):
    """Collects what tarfile writes until somebody takes it."""

    def __init__(self) -> None:
        super().__init__()
        self._chunks: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: object, /) -> int:
        chunk = bytes(memoryview(data))  # type: ignore[arg-type]  # whatever buffer tarfile has
        self._chunks.append(chunk)
        return len(chunk)

    def taken(self) -> Iterator[bytes]:
        chunks, self._chunks = self._chunks, []
        return iter(chunks)
