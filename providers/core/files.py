"""Files to a machine and back, checked that they arrived whole, and never outside the job's directory on either side.

Up: small files as one `tar` stream (a process on both ends: 7 times `scp -r` at 10,000 files of 4 KB), a big file by `cat`. Down: the
machine lists names, sizes and modes; what was asked for comes as one stream of contents (`xargs cat`) that is cut at those sizes
here. So the machine decides neither where a file goes nor what it may be: no archive of its making is unpacked.

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
from collections.abc import Callable, Generator, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

from providers.core import listing
from providers.core.aside import POLL_S, Aside, Stopped, never
from providers.core.contract import Connection
from providers.core.errors import InstanceFailed, InvalidRequest, LinkLost
from providers.core.jobs import LOST_AFTER_S, Machine, ShouldStop
from providers.core.listing import Entry
from providers.core.pack import packed
from providers.core.shell import ScriptChannel, one_line, run_script, start_script

T = TypeVar("T")

_BIG_BYTES = 4 * 1024 * 1024  # from here on a file travels by itself
_CHUNK = 128 * 1024
_STEP_S = 900.0  # for the machine's own work after the last byte: unpacking, hashing

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
    bytes: int


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
    entries = machine.persist(lambda link: _list(link, place, should_stop), should_stop, lost_after_s)
    wanted, missing = listing.match(entries, patterns)
    into = _Destination(destination)
    for entry in wanted:
        if entry.kind == "d":
            into.place(entry.name).mkdir(exist_ok=True)
    files = [entry for entry in wanted if entry.kind == "f"]
    done: list[str] = []

    def fetch(link: Connection) -> None:
        _fetch(link, place, files[len(done) :], into, done, should_stop, is_checked=is_checked)

    if files:
        machine.persist(fetch, should_stop, lost_after_s)
    left_out = [entry.name for entry in wanted if entry.kind not in {"f", "d", "l"}]
    left_out += _make_links(into, [entry for entry in wanted if entry.kind == "l"])
    brought = tuple(entry.name for entry in wanted if entry.kind in {"f", "l"} and entry.name not in set(left_out))
    return Brought(brought, missing, tuple(left_out), sum(entry.size for entry in files))


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


def _list(link: Connection, place: str, should_stop: ShouldStop) -> list[Entry]:
    def read(channel: ScriptChannel) -> bytes:
        output = bytearray()
        while data := channel.recv(_CHUNK):
            output += data
        if (code := channel.exit_status(_STEP_S)) != 0:
            raise InstanceFailed(f"the machine does not list the job's files: {one_line(channel.error_text(), code)}")
        return bytes(output)

    return listing.parse(_attended(link, place + listing.LIST_PROGRAM, read, should_stop))


def _fetch(
    link: Connection,
    place: str,
    files: Sequence[Entry],
    into: _Destination,
    done: list[str],
    should_stop: ShouldStop,
    *,
    is_checked: bool,
) -> None:
    names = b"".join(os.fsencode("./" + entry.name) + b"\0" for entry in files)
    command, hashed = _digest(link) if is_checked else ("", None)
    stream = 'xargs -0 cat <"$names"'
    if is_checked:
        stream = f'mkfifo "$fifo" && {{ {command} <"$fifo" >&2 & {stream} | tee "$fifo" && wait; }}'
    # All names are taken first: contents that nobody reads yet would hold up the names that are still on their way.
    script = f"""{place}
cd "$dir/work" || exit 66
names=$dir/names.{secrets.token_hex(6)} fifo=$dir/fifo.{secrets.token_hex(6)}
cat >"$names" && {stream}
code=$?
rm -f "$names" "$fifo"
exit $code"""

    def read(channel: ScriptChannel) -> None:
        channel.sendall(names)
        channel.shutdown_write()
        rest = b""
        for entry in files:
            rest = _store(channel, entry, into, rest, hashed)
            if hashed is None:
                done.append(entry.name)
        if rest or channel.recv(1):
            raise InstanceFailed("the job's files grew while they were brought back")
        if (code := channel.exit_status(_STEP_S)) != 0:
            raise InstanceFailed(f"the machine did not hand over a file: {one_line(channel.error_text(), code)}")
        if hashed is not None:
            _compare(channel.error_text(), hashed, "the files")
            done.extend(entry.name for entry in files)

    _attended(link, script, read, should_stop)


def _store(channel: ScriptChannel, entry: Entry, into: _Destination, rest: bytes, hashed: Hash | None) -> bytes:
    """Write one file of the stream that begins with `rest`; what belongs to the next one."""
    path = into.place(entry.name)
    path.unlink(missing_ok=True)
    left = entry.size
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(path, flags, 0o666 | (entry.mode & 0o111)), "wb", buffering=0) as target:  # noqa: PTH123 - a descriptor
        while left:
            chunk = rest or channel.recv(_CHUNK)
            if not chunk:
                code = channel.exit_status(_STEP_S)
                raise InstanceFailed(
                    f"the machine did not hand over {entry.name}: {one_line(channel.error_text(), code)}"
                )
            piece, rest = chunk[:left], chunk[left:]
            target.write(piece)
            if hashed is not None:
                hashed.update(piece)
            left -= len(piece)
    return rest


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


def _attended(link: Connection, script: str, work: Callable[[ScriptChannel], T], should_stop: ShouldStop) -> T:
    """Work with a script's channel in a thread; closed when somebody wants to stop."""
    channel = start_script(link, script)
    working = Aside(lambda: work(channel))
    try:
        while not working.wait(POLL_S):
            if (reason := should_stop()) is not None:
                raise Stopped(reason)
        return working.result()
    finally:
        channel.close()
