"""A tar stream of chosen files: by the `tar` program, or by Python where there is none."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Generator, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import IO

from prefect_gpu.providers.core.errors import InvalidRequest

_CHUNK = 128 * 1024
_TOLD_BYTES = 64 * 1024
# A file that changed or went while it was read goes as it was, or not: tar says so with 1 or 2, and the stream is whole.
_HARMLESS = re.compile(
    r"file changed as we read it|File shrank by|File removed before we read it|Cannot stat: No such file|previous errors"
)


def packed(names: Sequence[str], base: Path) -> Generator[bytes]:
    """The stream; links as links, folders without what is in them. Raises InvalidRequest when a file cannot be read."""
    program = shutil.which("tar")
    return _by_program(program, names, base) if program and _is_gnu(program) else _by_python(names, base)


@cache
def _is_gnu(program: str) -> bool:
    """Busybox has a tar that takes no list of names."""
    said = subprocess.run([program, "--version"], capture_output=True, check=False).stdout
    return b"GNU tar" in said or b"bsdtar" in said


def _by_program(program: str, names: Sequence[str], base: Path) -> Generator[bytes]:
    with tempfile.TemporaryFile() as listed, tempfile.TemporaryFile() as problems:
        # "./": a name may begin with a dash.
        listed.write(b"".join(b"./" + os.fsencode(name) + b"\0" for name in names))
        listed.seek(0)
        command = [program, "-c", "-f", "-", "--format=gnu", "--null", "--no-recursion", "-C", str(base), "-T", "-"]
        with subprocess.Popen(
            command, stdin=listed, stdout=subprocess.PIPE, stderr=problems, bufsize=0, env={**os.environ, "LC_ALL": "C"}
        ) as process:
            assert process.stdout is not None  # noqa: S101 - asked for
            try:
                # Unbuffered: what the pipe has, not more.
                while chunk := process.stdout.read(_CHUNK):
                    yield chunk
            except GeneratorExit:
                process.kill()
                raise
        problems.seek(0)
        told = problems.read(_TOLD_BYTES).decode(errors="replace").splitlines()
        real = [line for line in told if not _HARMLESS.search(line)]
        if process.returncode not in {0, 1} and (real or not told):
            raise InvalidRequest(
                f"the files cannot be read: {'; '.join(real)[:1000] or f'tar ended with {process.returncode}'}"
            )


def _by_python(names: Sequence[str], base: Path) -> Generator[bytes]:
    buffer = _Buffer()
    try:
        with tarfile.open(fileobj=buffer, mode="w|", bufsize=_CHUNK, format=tarfile.GNU_FORMAT) as archive:
            for name in names:
                with contextlib.suppress(FileNotFoundError):  # gone since it was chosen
                    info = archive.gettarinfo(base / name, arcname=name)
                    if info.isreg():
                        with (base / name).open("rb") as source:
                            archive.addfile(info, _Whole(source))
                    else:
                        archive.addfile(info)
                yield from buffer.taken()
    except OSError as error:
        raise InvalidRequest(f"the files cannot be read: {error}") from error
    yield from buffer.taken()


class _Whole:
    """A file that has as many bytes as its size said: one that became shorter ends in zeros, as in tar."""

    def __init__(self, source: IO[bytes]) -> None:
        self._source = source

    def read(self, size: int = 0, /) -> bytes:
        return self._source.read(size).ljust(size, b"\0")


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
