"""Files to a machine and back, checked that they arrived whole, and never outside the job's directory on either side.

Up: small files as one `tar` stream (a process on both ends: 7 times `scp -r` at 10,000 files of 4 KB), a big file by `cat`. Down: the
machine lists names, sizes and modes; what was asked for comes as one stream of contents (`xargs cat`) with marks between them. So the
machine decides neither where a file goes nor what it may be: no archive of its making is unpacked. A file gets its name here when
all of it has come; one that has another size by then than in the list does not come.

Patterns of outputs are shell-like and begin in the job's directory: `*.pt` is there, `**/*.pt` anywhere below, a folder is all in it.
`.prefectignore` (Prefect's own, gitignore's syntax) in the working directory keeps things out of uploaded folders; what is named
itself is sent. Links travel as links; one that leaves the directory is not followed, and not brought back.

Longer than 300 lines: up and down share how a script is fed, stopped and compared, and what is checked on one side is checked on the other.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shlex
import stat
import tempfile
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

from providers.core import listing
from providers.core.aside import POLL_S, Aside, Stopped, never
from providers.core.contract import Channel, Connection
from providers.core.errors import InstanceFailed, InvalidRequest, LinkLost
from providers.core.jobs import LOST_AFTER_S, Machine, ShouldStop
from providers.core.listing import Entry
from providers.core.marked import CutShort, Marked, new_mark
from providers.core.pack import packed
from providers.core.shell import ScriptChannel, one_line, run_script, start_script

T = TypeVar("T")

_BIG_BYTES = 4 * 1024 * 1024  # from here on a file travels by itself
_CHUNK = 128 * 1024
# So long nothing may move: the machine's own work after the last byte (unpacking, hashing) takes longest.
_STEP_S = 900.0

_MARK = b"/proc/self/fd/3\0"  # the mark as a file that cat reads again and again
_UNREADABLE = "may not be read by the user that we log in as"

# By speed: openssl takes a third of the time of coreutils' sha256sum.
_DIGESTS = {"openssl": "openssl dgst -r -sha256", "b2sum": "b2sum", "sha256sum": "sha256sum"}


class Sent(NamedTuple):
    """What an upload took along."""

    files: int
    bytes: int


class Brought(NamedTuple):
    """What a download brought."""

    paths: tuple[str, ...]  # in the destination
    missing: tuple[str, ...]  # patterns that nothing matched
    left_out: tuple[str, ...]  # links that leave the job's directory, and what is neither file, folder nor link
    lost: dict[str, str]  # what should have come and could not be read, and why
    unlisted: str  # the machine's words, where it could not look at all that is there
    bytes: int

    def remarks(self) -> list[str]:
        """What did not come and perhaps should have, one sentence each."""
        said = [f"the job left nothing that {pattern} matches" for pattern in self.missing]
        if self.left_out:
            said.append(
                f"not brought back, because only files and links inside the job's directory are: {_some(self.left_out)}"
            )
        if self.unlisted:
            said.append(f"not all that the job left can be looked at: {self.unlisted}")
        for why in sorted(set(self.lost.values())):
            names = [name for name, reason in self.lost.items() if reason == why]
            said.append(f"not brought back: {_some(names)}, which {why}")
        return said


class Hash(Protocol):
    """What hashlib makes."""

    def update(self, data: bytes, /) -> None: ...

    def hexdigest(self) -> str: ...


def upload(
    machine: Machine,
    job_id: str,
    paths: Iterable[str],
    base: Path,
    should_stop: ShouldStop = never,
    *,
    is_checked: bool = False,
    lost_after_s: float = LOST_AFTER_S,
) -> Sent:
    """Send files and folders in `base` to the job's directory, under the same names; what is there is replaced.

    Sizes are always checked; `is_checked` compares digests as well. Repeated when the link is lost. Raises InvalidRequest (see
    `listing.chosen`), InstanceFailed (disk full, say), LinkLost, Stopped.
    """
    names = listing.chosen(paths, base)
    return send(machine, job_id, names, base, should_stop, is_checked=is_checked, lost_after_s=lost_after_s)


def send(
    machine: Machine,
    job_id: str,
    names: Sequence[str],
    base: Path,
    should_stop: ShouldStop = never,
    *,
    is_checked: bool = False,
    lost_after_s: float = LOST_AFTER_S,
) -> Sent:
    """`upload` of exactly these files, links and empty folders."""
    small: list[str] = []
    big: list[tuple[str, int]] = []
    total = 0
    for name in names:
        status = (base / name).lstat()
        size = status.st_size if stat.S_ISREG(status.st_mode) else 0
        total += size
        if size >= _BIG_BYTES:
            big.append((name, size))
        else:
            small.append(name)
    place = machine.job_directory(job_id)
    if small:
        machine.persist(
            lambda link: _send_tree(link, place, small, base, should_stop, is_checked=is_checked),
            should_stop,
            lost_after_s,
        )
    for name, size in big:
        machine.persist(
            lambda link, name=name, size=size: _send_file(
                link, place, base / name, name, size, should_stop, is_checked=is_checked
            ),
            should_stop,
            lost_after_s,
        )
    return Sent(len(names), total)


def download(
    machine: Machine,
    job_id: str,
    patterns: Sequence[str],
    destination: Path,
    should_stop: ShouldStop = never,
    *,
    is_checked: bool = False,
    lost_after_s: float = LOST_AFTER_S,
) -> Brought:
    """Bring what matches the patterns from the job's directory to `destination`, under the same names.

    A pattern that nothing matches is no error: see `Brought.missing`. Goes on with the file it was at when the link was lost.
    Raises InvalidRequest for a pattern that leaves the job's directory, LinkLost, Stopped, and OSError of this machine.
    """
    for pattern in patterns:
        listing.refuse_outside(pattern)
    place = machine.job_directory(job_id)
    entries, unlisted = machine.persist(lambda link: _list(link, place, should_stop), should_stop, lost_after_s)
    wanted, missing = listing.match(entries, patterns)
    into = _Destination(destination)
    for entry in wanted:
        if entry.kind == "d":
            into.place(entry.name).mkdir(exist_ok=True)
    files = [entry for entry in wanted if entry.kind == "f"]
    done: dict[str, bool] = {}  # whether it came whole
    if files:
        with tempfile.TemporaryDirectory(dir=into.root, prefix=".prefect-gpu-", ignore_cleanup_errors=True) as drafts:
            machine.persist(
                lambda link: _fetch(
                    link, place, files[len(done) :], into, Path(drafts), done, should_stop, is_checked=is_checked
                ),
                should_stop,
                lost_after_s,
            )
    lost = {entry.name: _UNREADABLE for entry in wanted if entry.kind in {"u", "U"}}
    lost |= dict.fromkeys(listing.hidden(entries, patterns), _UNREADABLE)
    lost |= {name: "changed while it was brought back" for name, is_whole in done.items() if not is_whole}
    left_out = [entry.name for entry in wanted if entry.kind not in {"f", "d", "l", "u", "U"}]
    left_out += _make_links(into, [entry for entry in wanted if entry.kind == "l"])
    kept = [entry for entry in wanted if entry.kind in {"f", "l"} and entry.name not in {*left_out, *lost}]
    size = sum(entry.size for entry in kept if entry.kind == "f")
    return Brought(tuple(entry.name for entry in kept), missing, tuple(left_out), lost, unlisted, size)


# --- up ---------------------------------------------------------------------------------------------------------------


def _send_tree(
    link: Connection, place: str, names: Sequence[str], base: Path, should_stop: ShouldStop, *, is_checked: bool
) -> None:
    unpack, hashed = "tar -xof -", None
    if is_checked:
        command, hashed = _digest(link)
        unpack = f'mkfifo "$fifo" && {{ {command} <"$fifo" & tee "$fifo" | tar -xof - && wait; }}'
    script = f"""{place}
command -v tar >/dev/null || {{ echo "it has no tar" >&2; exit 127; }}
fifo=$dir/fifo.{secrets.token_hex(6)}
mkdir -p "$dir/work" && chmod 700 "$dir" && cd "$dir/work" && {unpack}
code=$?
rm -f "$fifo"
exit $code"""
    answer = _pour(link, script, lambda: packed(names, base), should_stop, hashed)
    if hashed is not None:
        _compare(answer, hashed, "the files")


def _send_file(
    link: Connection, place: str, path: Path, name: str, size: int, should_stop: ShouldStop, *, is_checked: bool
) -> None:
    command, hashed = _digest(link) if is_checked else (":", None)
    # The part has a name of its own each time: after a lost link an old `cat` may still be writing.
    script = f"""{place}
target=$dir/work/{shlex.quote(name)} part=$dir/part.{secrets.token_hex(6)}
mkdir -p "$(dirname "$target")" && chmod 700 "$dir" || exit 73
cat >"$part" || {{ rm -f "$part"; exit 74; }}
[ "$(wc -c <"$part")" -eq {size} ] || {{ echo "not all of it arrived" >&2; rm -f "$part"; exit 74; }}
{command} <"$part" || exit 74
chmod {path.stat().st_mode & 0o777:o} "$part" && mv -f "$part" "$target\""""
    answer = _pour(link, script, lambda: _contents(path, size), should_stop, hashed)
    if hashed is not None:
        _compare(answer, hashed, name)


def _pour(
    link: Connection,
    script: str,
    chunks: Callable[[], Generator[bytes]],
    should_stop: ShouldStop,
    hashed: Hash | None,
) -> str:
    """Feed a script; what it printed."""

    def pour(channel: ScriptChannel) -> str:
        refused: LinkLost | None = None
        with contextlib.closing(chunks()) as source:
            try:
                for chunk in source:
                    channel.sendall(chunk)
                    if hashed is not None:
                        hashed.update(chunk)
            except LinkLost as error:  # or the script ended early, and its exit status tells why
                refused = error
        channel.shutdown_write()
        output = b""
        while data := channel.recv(_CHUNK):
            output += data
        code = channel.exit_status(_STEP_S)
        if code != 0:
            raise InstanceFailed(f"the machine did not take the files: {one_line(channel.error_text(), code)}")
        if refused is not None:
            raise refused
        return output.decode(errors="replace")

    return _attended(link, script, pour, should_stop)


def _contents(path: Path, size: int) -> Generator[bytes]:
    left = size
    with path.open("rb", buffering=0) as source:
        while left and (chunk := source.read(min(_CHUNK, left))):
            left -= len(chunk)
            yield chunk
    if left:
        raise InvalidRequest(f"{path} became shorter while it was sent")


def _digest(link: Connection) -> tuple[str, Hash]:
    names = " ".join(_DIGESTS)
    found = run_script(link, f"for tool in {names}; do command -v $tool >/dev/null && echo $tool && break; done; :")
    tool = found.stdout.decode(errors="replace").strip()
    if tool not in _DIGESTS:
        raise InstanceFailed("the machine has neither openssl nor b2sum nor sha256sum: send without digests")
    return _DIGESTS[tool], hashlib.blake2b() if tool == "b2sum" else hashlib.sha256()


def _compare(answer: str, hashed: Hash, what: str) -> None:
    if answer.split()[:1] != [hashed.hexdigest()]:
        raise LinkLost(f"{what} arrived with another digest")  # sent again


# --- down -------------------------------------------------------------------------------------------------------------


def _list(link: Connection, place: str, should_stop: ShouldStop) -> tuple[list[Entry], str]:
    """What is there, and what the machine says about the rest."""

    def read(channel: ScriptChannel) -> tuple[bytes, str]:
        output = bytearray()
        while data := channel.recv(_CHUNK):
            output += data
        if (code := channel.exit_status(_STEP_S)) > 1:
            raise InstanceFailed(f"the machine does not list the job's files: {one_line(channel.error_text(), code)}")
        return bytes(output), one_line(channel.error_text(), code) if code else ""

    listed, unlisted = _attended(link, place + listing.LIST_PROGRAM, read, should_stop)
    return listing.parse(listed), unlisted


def _fetch(
    link: Connection,
    place: str,
    files: Sequence[Entry],
    into: _Destination,
    drafts: Path,
    done: dict[str, bool],
    should_stop: ShouldStop,
    *,
    is_checked: bool,
) -> None:
    mark = new_mark()
    names = b"".join(_MARK + os.fsencode("./" + entry.name) + b"\0" for entry in files) + _MARK
    command, hashed = _digest(link) if is_checked else ("", None)
    stream = 'xargs -0 cat <"$names"'
    if is_checked:
        stream = f'mkfifo "$fifo" && {{ {command} <"$fifo" >&2 & {stream} 2>/dev/null | tee "$fifo" && wait; }}'
    # All names are taken first: contents that nobody reads yet would hold up the names that are still on their way.
    script = f"""{place}
cd "$dir/work" || exit 66
id={secrets.token_hex(6)}
names=$dir/names.$id mark=$dir/mark.$id fifo=$dir/fifo.$id
printf %s {shlex.quote(mark.decode())} >"$mark" && cat >"$names" && {{ {stream}; }} 3<"$mark"
code=$?
rm -f "$names" "$mark" "$fifo"
exit $code"""

    came: list[tuple[Entry, Path | None]] = []

    def keep() -> None:
        for entry, draft in came:
            if draft is not None:
                draft.replace(into.place(entry.name))
            done[entry.name] = draft is not None
        came.clear()

    def read(channel: ScriptChannel) -> None:
        channel.sendall(names)
        channel.shutdown_write()
        contents = Marked(channel.recv, mark, hashed.update if hashed is not None else len)
        try:
            for _ in contents.until_mark():
                pass
            for entry in files:
                draft = drafts / str(len(came))
                came.append((entry, draft if _store(contents, entry, draft) else None))
                if hashed is None:
                    keep()
            if not contents.is_over():
                raise InstanceFailed("the machine handed over more than it was asked for")
        except CutShort:
            code = channel.exit_status(_STEP_S)
            told = one_line(channel.error_text(), code)
            raise InstanceFailed(f"the machine did not hand over a file: {told}") from None
        channel.exit_status(_STEP_S)  # whatever it is: a file that cat could not read has another size
        if hashed is not None:
            _compare(channel.error_text(), hashed, "the files")
            keep()

    _attended(link, script, read, should_stop)


def _store(contents: Marked, entry: Entry, draft: Path) -> bool:
    """Write what comes next to a new file; whether it is as long as it was listed."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    size = 0
    with open(os.open(draft, flags, 0o666 | (entry.mode & 0o111)), "wb") as target:  # noqa: PTH123 - a descriptor
        for piece in contents.until_mark():
            size += len(piece)
            if size <= entry.size:
                target.write(piece)
    return size == entry.size


class _Destination:
    """A folder that nothing is written outside of, whatever links stand in it."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.root = folder.resolve()
        self._safe = {self.root}  # parents that were looked at: ten thousand files share few

    def place(self, name: str) -> Path:
        """Where a checked name goes; its parent is there then."""
        path = self.root / name
        parent = path.parent
        if parent not in self._safe:
            if not parent.resolve().is_relative_to(self.root):
                raise InvalidRequest(f"{name!r} would be written outside {self.root}, over a link that stands there")
            parent.mkdir(parents=True, exist_ok=True)
            self._safe.add(parent)
        return path


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:5])
    return f"{shown} and {len(names) - 5:,} more" if len(names) > 5 else shown


def _make_links(into: _Destination, links: Sequence[Entry]) -> list[str]:
    """Make the links that stay inside; the names of the others."""
    made: list[Entry] = []
    left_out: list[str] = []
    for entry in links:
        path = into.place(entry.name)
        if entry.target.startswith("/") or path.is_dir():
            left_out.append(entry.name)
            continue
        path.unlink(missing_ok=True)
        path.symlink_to(entry.target)
        made.append(entry)
    # Only now: where a link leads may depend on the others.
    for entry in made:
        path = into.root / entry.name
        try:
            stays = path.resolve().is_relative_to(into.root)
        except (OSError, RuntimeError):  # a loop
            stays = False
        if not stays:
            path.unlink()
            left_out.append(entry.name)
    return left_out


class _Clocked:
    """A connection, for one channel, that knows when a byte last moved over it."""

    def __init__(self, link: Connection) -> None:
        self._link = link
        self.moved_at = time.monotonic()

    def open(self, command: str) -> Channel:
        return _ClockedChannel(self._link.open(command), self)

    def is_alive(self) -> bool:
        return self._link.is_alive()

    def close(self) -> None:
        self._link.close()


class _ClockedChannel:
    def __init__(self, channel: Channel, clock: _Clocked) -> None:
        self._channel = channel
        self._clock = clock

    def sendall(self, data: bytes) -> None:
        self._channel.sendall(data)
        self._clock.moved_at = time.monotonic()

    def shutdown_write(self) -> None:
        self._channel.shutdown_write()

    def recv(self, size: int) -> bytes:
        data = self._channel.recv(size)
        self._clock.moved_at = time.monotonic()
        return data

    def exit_status(self, timeout_s: float) -> int:
        return self._channel.exit_status(timeout_s)

    def error_text(self) -> str:
        return self._channel.error_text()

    def close(self) -> None:
        self._channel.close()


def _attended(link: Connection, script: str, work: Callable[[ScriptChannel], T], should_stop: ShouldStop) -> T:
    """Work with a script's channel in a thread; closed when somebody wants to stop, or the machine hangs.

    Hanging is no lost link (its sshd answers), and another connection would hang as long: InstanceFailed.
    """
    clocked = _Clocked(link)
    channel = start_script(clocked, script)
    working = Aside(lambda: work(channel))
    try:
        while not working.wait(POLL_S):
            if (reason := should_stop()) is not None:
                raise Stopped(reason)
            if time.monotonic() - clocked.moved_at > _STEP_S:
                raise InstanceFailed(f"the machine hangs: no byte of the files moved for {_STEP_S / 60:.0f} min")
        return working.result()
    finally:
        channel.close()
        working.wait(1.0)  # so that nothing is written after this
