"""Files from a machine, checked that they arrived whole, and never outside the folder they are brought to.

The machine lists names, sizes and modes (`listing`); what was asked for comes as one stream of contents (`xargs cat`) with marks between
them. So the machine decides neither where a file goes nor what it may be: no archive of its making is unpacked. A file gets its name
here when all of it has come; one that has another size by then than in the list is asked for again, and does not come if it never holds
still. Patterns of outputs begin in the job's directory: see `patterns`. Links come as links if they stay inside; holes stay holes.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from prefect_gpu.providers.core.aside import never
from prefect_gpu.providers.core.contract import Connection
from prefect_gpu.providers.core.errors import InstanceFailed
from prefect_gpu.providers.core.machine import listing
from prefect_gpu.providers.core.machine.destination import Destination, reserve
from prefect_gpu.providers.core.machine.digest import Digest
from prefect_gpu.providers.core.machine.jobs import Machine
from prefect_gpu.providers.core.machine.listing import Entry, Found, printable
from prefect_gpu.providers.core.machine.marked import CutShort, Marked, new_mark
from prefect_gpu.providers.core.machine.reach import LOST_AFTER_S, ShouldStop
from prefect_gpu.providers.core.machine.shell import ScriptChannel, one_line
from prefect_gpu.providers.core.machine.transfer import (
    CHUNK,
    STEP_S,
    Meter,
    OnProgress,
    attended,
    program,
)

_ROUNDS = 3  # of asking for files that changed while they came
_ROOM_EVERY = 64 * 1024 * 1024  # so often free disk is looked at
_MARK_FILE = b"/proc/self/fd/3\0"
_UNREADABLE = "may not be read by the user that we log in as"
_CHANGED = "changed while it was brought back"
_HOLE = 4096
_NOTHING = bytes(2 * CHUNK)


class Brought(NamedTuple):
    """What a download brought."""

    paths: tuple[str, ...]  # in the destination
    missing: tuple[str, ...]  # patterns that nothing matched
    left_out: tuple[str, ...]  # links that leave the job's directory, and what is neither file, folder nor link
    lost: dict[str, str]  # what should have come and could not be read, and why
    unlisted: str  # the machine's words, where it could not look at all that is there
    beyond: int  # so many more files match than are brought one by one
    bytes: int

    def remarks(self) -> list[str]:
        """What did not come though the patterns speak of it, and need not have, one sentence each."""
        said = [f"the job left nothing that {pattern} matches" for pattern in self.missing]
        if self.left_out:
            said.append(
                f"not brought back, because only files and links inside the job's directory are: {_some(self.left_out)}"
            )
        if self.unlisted:
            said.append(f"not all that the job left can be looked at: {self.unlisted}")
        return said

    def losses(self) -> list[str]:
        """What was asked for, is there, and did not come, one sentence each: it goes with the machine."""
        said = [
            f"not brought back: {_some(sorted(name for name, reason in self.lost.items() if reason == why))}, which {why}"
            for why in sorted(set(self.lost.values()))
        ]
        if self.beyond:
            said.append(
                f"not brought back: {self.beyond:,} files beyond the first {len(self.paths):,}: let the job pack so many into one, with tar for example"
            )
        return said


def download(
    machine: Machine,
    job_id: str,
    patterns: Sequence[str],
    destination: Path,
    should_stop: ShouldStop = never,
    *,
    is_checked: bool = False,
    lost_after_s: float = LOST_AFTER_S,
    on_progress: OnProgress | None = None,
) -> Brought:
    """Bring what matches the patterns from the job's directory to `destination`, under the same names.

    A pattern that nothing matches is no error: see `Brought.missing`. Goes on with the file it was at when the link was lost.
    Raises InvalidRequest for a pattern that leaves the job's directory, LinkLost, Stopped, and OSError of this machine, which keeps a
    reserve of its disk free.
    """
    for pattern in patterns:
        listing.refuse_outside(pattern)
    place = machine.job_directory(job_id)
    into = Destination(destination)
    done: dict[str, bool] = {}  # whether it came whole

    def look() -> tuple[Found, str]:
        return machine.persist(lambda link: _list(link, place, patterns, should_stop), should_stop, lost_after_s)

    found, unlisted = look()
    for entry in found.entries:
        if entry.kind == "d":
            into.make_folder(entry.name, entry.mode)
    files = [entry for entry in found.entries if entry.kind == "f"]
    meter = Meter(sum(entry.size for entry in files), on_progress)
    for round_left in reversed(range(_ROUNDS)):
        if files:
            with tempfile.TemporaryDirectory(
                dir=into.root, prefix=".prefect-gpu-", ignore_cleanup_errors=True
            ) as drafts:
                transfer = _Transfer(place, files, into, Path(drafts), meter, should_stop, is_checked=is_checked)
                machine.persist(transfer.go_on, should_stop, lost_after_s)
            done |= transfer.done
        changed = {name for name, is_whole in done.items() if not is_whole}
        if not changed or not round_left:
            break
        again, _ = look()
        files = [entry for entry in again.entries if entry.kind == "f" and entry.name in changed]
    lost = {entry.name: _UNREADABLE for entry in found.entries if entry.kind in {"u", "U"}}
    lost |= dict.fromkeys(found.hidden, _UNREADABLE)
    lost |= {name: _CHANGED for name, is_whole in done.items() if not is_whole}
    left_out = [entry.name for entry in found.entries if entry.kind not in {"f", "d", "l", "u", "U"}]
    left_out += into.make_links([entry for entry in found.entries if entry.kind == "l"])
    gone = {*left_out, *lost}
    kept = tuple(entry.name for entry in found.entries if entry.kind in {"f", "l"} and entry.name not in gone)
    size = sum(entry.size for entry in found.entries if entry.kind == "f" and entry.name not in gone)
    return Brought(kept, found.missing, tuple(left_out), lost, unlisted, found.beyond, size)


def _list(link: Connection, place: str, patterns: Sequence[str], should_stop: ShouldStop) -> tuple[Found, str]:
    """What is there of what the patterns mean, and what the machine says about what it could not look at."""

    def read(channel: ScriptChannel) -> tuple[Found, str]:
        reader = listing.Reader(patterns)
        while data := channel.recv(CHUNK):
            reader.feed(data)
        if (code := channel.exit_status(STEP_S)) > 1:
            raise InstanceFailed(f"the machine does not list the job's files: {one_line(channel.error_text(), code)}")
        return reader.found(), one_line(channel.error_text(), code) if code else ""

    return attended(link, program(place, "list"), read, should_stop)


class _Transfer:
    """Files that come in one stream; what is done when a link is lost does not come again."""

    def __init__(
        self,
        place: str,
        files: Sequence[Entry],
        into: Destination,
        drafts: Path,
        meter: Meter,
        should_stop: ShouldStop,
        *,
        is_checked: bool,
    ) -> None:
        self._place = place
        self._files = files
        self._into = into
        self._drafts = drafts
        self._meter = meter
        self._should_stop = should_stop
        self._is_checked = is_checked
        self._since_look = 0
        self.done: dict[str, bool] = {}

    def go_on(self, link: Connection) -> None:
        """Over one connection, from the first file that is not done. Raises LinkLost, InstanceFailed, OSError."""
        digest = Digest(link) if self._is_checked else None
        mark = new_mark()
        command = digest.command if digest else ""
        script = program(self._place, "hand_over", mark=mark.decode(), digest=command)
        attended(link, script, lambda channel: self._read(channel, mark, digest), self._should_stop)

    def _read(self, channel: ScriptChannel, mark: bytes, digest: Digest | None) -> None:
        files = self._files[len(self.done) :]
        for some in range(0, len(files), 1000):
            names = [_MARK_FILE + os.fsencode("./" + entry.name) + b"\0" for entry in files[some : some + 1000]]
            channel.sendall(b"".join(names))
        channel.sendall(_MARK_FILE)
        channel.shutdown_write()
        came: list[tuple[Entry, Path | None]] = []
        contents = Marked(channel.recv, mark, digest.update if digest is not None else len)
        try:
            for _ in contents.until_mark():
                pass
            for entry in files:
                draft = self._drafts / str(len(came))
                came.append((entry, draft if self._store(contents, entry, draft) else None))
                if digest is None:
                    self._keep(came)
            if not contents.is_over():
                raise InstanceFailed("the machine handed over more than it was asked for")
        except CutShort:
            code = channel.exit_status(STEP_S)
            told = one_line(channel.error_text(), code)
            raise InstanceFailed(f"the machine did not hand over a file: {told}") from None
        channel.exit_status(STEP_S)  # whatever it is: a file that cat could not read has another size
        if digest is not None:
            digest.compare(channel.error_text(), "the files")
            self._keep(came)

    def _keep(self, came: list[tuple[Entry, Path | None]]) -> None:
        for entry, draft in came:
            if draft is not None:
                self._into.take(draft, entry.name)
            self.done[entry.name] = draft is not None
        came.clear()

    def _store(self, contents: Marked, entry: Entry, draft: Path) -> bool:
        """Write what comes next to a new file; whether it is as long as it was listed."""
        draft.unlink(missing_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        size = 0
        # As `cp`: the file's own rights, as far as the umask allows, and no setuid. Its owner may read it, or nobody could store it.
        with open(os.open(draft, flags, entry.mode & 0o777 | 0o400), "wb") as target:  # noqa: PTH123 - a descriptor
            for piece in contents.until_mark():
                size += len(piece)
                if size > entry.size:
                    continue
                self._meter.add(len(piece))
                if len(piece) >= _HOLE and _NOTHING.startswith(piece):
                    target.seek(len(piece), os.SEEK_CUR)  # a hole costs no disk
                    continue
                self._look_for_room(len(piece))
                target.write(piece)
            if size == entry.size:
                target.truncate(size)
        return size == entry.size

    def _look_for_room(self, count: int) -> None:
        self._since_look += count
        if self._since_look >= _ROOM_EVERY:
            self._since_look = 0
            usage = shutil.disk_usage(self._into.root)
            if usage.free < reserve(usage.total):
                raise OSError(errno.ENOSPC, f"only {usage.free / 1e9:.1f} GB of its disk are free")


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(printable(name) for name in names[:5])
    return f"{shown} and {len(names) - 5:,} more" if len(names) > 5 else shown
