"""Files to a machine, checked that they arrived whole.

Small files go as one `tar` stream (a process on both ends: 7 times `scp -r` at 10,000 files of 4 KB), a big file by `cat`. What
an upload of a folder takes along is `selection`'s to say. Links travel as links. A file that changes meanwhile goes as tar, rsync and
git would take it: with what stood in it when its turn came; one that is gone by then is left out.
"""

from __future__ import annotations

import contextlib
import stat
from collections.abc import Callable, Generator, Iterable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from prefect_gpu.providers.core.aside import never
from prefect_gpu.providers.core.contract import Connection
from prefect_gpu.providers.core.errors import InstanceFailed, InvalidRequest, LinkLost
from prefect_gpu.providers.core.machine import selection
from prefect_gpu.providers.core.machine.digest import Digest
from prefect_gpu.providers.core.machine.jobs import Machine
from prefect_gpu.providers.core.machine.pack import packed
from prefect_gpu.providers.core.machine.reach import LOST_AFTER_S, ShouldStop
from prefect_gpu.providers.core.machine.selection import LeftOut
from prefect_gpu.providers.core.machine.shell import ScriptChannel, one_line
from prefect_gpu.providers.core.machine.transfer import (
    CHUNK,
    STEP_S,
    Meter,
    OnProgress,
    attended,
    program,
    size_text,
)

BIG_BYTES: Final = 4 * 1024 * 1024  # from here on a file travels by itself
_TRIES = 3  # of a file that becomes shorter while it is read
_ANSWER_BYTES = 64 * 1024


class Sent(NamedTuple):
    """What an upload took along, and what it did not."""

    files: int
    bytes: int
    left_out: tuple[LeftOut, ...] = ()

    def __str__(self) -> str:
        """`12 files, 3.4 MB; left out: .venv (340 MB), .git (12 MB)`."""
        count = "1 file" if self.files == 1 else f"{self.files:,} files"
        said = f"{count}, {size_text(self.bytes)}"
        return f"{said}; left out: {selection.remark(self.left_out)}" if self.left_out else said


class _Shrunk(Exception):
    """A file had fewer bytes than its size said when it was opened."""


def upload(
    machine: Machine,
    job_id: str,
    paths: Iterable[str],
    base: Path,
    should_stop: ShouldStop = never,
    *,
    secret: Iterable[Path] = (),
    is_checked: bool = False,
    lost_after_s: float = LOST_AFTER_S,
    on_progress: OnProgress | None = None,
) -> Sent:
    """Send files and folders in `base` to the job's directory, under the same names; what is there is replaced.

    Nothing of `private.own_places` and of the `secret` ones beside them is ever sent, whatever the paths say. Sizes are always checked; `is_checked` compares digests as
    well. Repeated when the link is lost. Raises InvalidRequest (see `selection.chosen`), InstanceFailed (disk full, say), LinkLost, Stopped.
    """
    chosen = selection.chosen(paths, base, secret)
    sent = send(
        machine,
        job_id,
        chosen.names,
        base,
        should_stop,
        is_checked=is_checked,
        lost_after_s=lost_after_s,
        on_progress=on_progress,
    )
    return sent._replace(left_out=chosen.left_out)


def send(
    machine: Machine,
    job_id: str,
    names: Sequence[str],
    base: Path,
    should_stop: ShouldStop = never,
    *,
    is_checked: bool = False,
    lost_after_s: float = LOST_AFTER_S,
    on_progress: OnProgress | None = None,
) -> Sent:
    """`upload` of exactly these files, links and empty folders."""
    small: list[str] = []
    big: list[str] = []
    total = 0
    for name in names:
        try:
            status = (base / name).lstat()
        except FileNotFoundError:  # since they were chosen
            continue
        size = status.st_size if stat.S_ISREG(status.st_mode) else 0
        total += size
        (big if size >= BIG_BYTES else small).append(name)
    place = machine.job_directory(job_id)
    meter = Meter(total, on_progress)

    def persist(step: Callable[[Connection], None]) -> None:
        machine.persist(step, should_stop, lost_after_s)

    if small:
        persist(lambda link: _send_tree(link, place, small, base, meter, should_stop, is_checked=is_checked))
    for name in big:
        for tries_left in reversed(range(_TRIES)):
            try:
                persist(
                    lambda link, name=name: _send_file(
                        link, place, base / name, name, meter, should_stop, is_checked=is_checked
                    )
                )
                break
            except FileNotFoundError:
                break
            except _Shrunk:
                if not tries_left:
                    raise InvalidRequest(
                        f"{base / name} becomes shorter each time it is sent: {_TRIES} times"
                    ) from None
    return Sent(len(small) + len(big), total)


def _send_tree(
    link: Connection,
    place: str,
    names: Sequence[str],
    base: Path,
    meter: Meter,
    should_stop: ShouldStop,
    *,
    is_checked: bool,
) -> None:
    digest = Digest(link) if is_checked else None
    script = program(place, "take_tree", digest=digest.command if digest else "")
    answer = _pour(link, script, lambda: packed(names, base), meter, should_stop, digest)
    if digest is not None:
        digest.compare(answer, "the files")


def _send_file(
    link: Connection, place: str, path: Path, name: str, meter: Meter, should_stop: ShouldStop, *, is_checked: bool
) -> None:
    status = path.stat()  # only now: a file that grew since it was chosen goes as it is
    digest = Digest(link) if is_checked else None
    script = program(
        place,
        "take_file",
        digest=digest.command if digest else "",
        name=name,
        size=str(status.st_size),
        mode=f"{status.st_mode & 0o777:o}",
    )
    answer = _pour(link, script, lambda: _contents(path, status.st_size), meter, should_stop, digest)
    if digest is not None:
        digest.compare(answer, name)


def _pour(
    link: Connection,
    script: str,
    chunks: Callable[[], Generator[bytes]],
    meter: Meter,
    should_stop: ShouldStop,
    digest: Digest | None,
) -> str:
    """Feed a script; what it printed."""
    poured = 0

    def pour(channel: ScriptChannel) -> str:
        nonlocal poured
        refused: LinkLost | None = None
        with contextlib.closing(chunks()) as source:
            try:
                for chunk in source:
                    channel.sendall(chunk)
                    poured += len(chunk)
                    meter.add(len(chunk))
                    if digest is not None:
                        digest.update(chunk)
            except LinkLost as error:  # or the script ended early, and its exit status tells why
                refused = error
        channel.shutdown_write()
        output = b""
        while data := channel.recv(CHUNK):
            output = (output + data)[-_ANSWER_BYTES:]
        code = channel.exit_status(STEP_S)
        if code != 0:
            raise InstanceFailed(f"the machine did not take the files: {one_line(channel.error_text(), code)}")
        if refused is not None:
            raise refused
        return output.decode(errors="replace")

    try:
        return attended(link, script, pour, should_stop)
    except BaseException:
        meter.take_back(poured)
        raise


def _contents(path: Path, size: int) -> Generator[bytes]:
    left = size
    with path.open("rb", buffering=0) as source:
        while left and (chunk := source.read(min(CHUNK, left))):
            left -= len(chunk)
            yield chunk
    if left:
        raise _Shrunk
