"""The process that keeps one loopback machine: it starts its SSH server, ends it with everything it started, and cleans up.

Run as a script by `prefect_gpu.providers.local.order` with the order on stdin; imports the standard library only, so that it is up in
milliseconds. It detaches from its creator, becomes the reaper of every process below it (PR_SET_CHILD_SUBREAPER: what double-forks
into a session of its own comes back to it), and is done when the kernel says that it has no child left. What ends the machine:
the lease's deadline, SIGTERM, a file `ending` in its directory, or the death of its SSH server. The lease is counted by the time
since this host was started, sleep included: the calendar may be set while a machine lives.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any, Final, NamedTuple

MARK: Final = "PREFECT_GPU_MACHINE"  # in the environment of every process of a machine: its directory
LOOK_EVERY_S: Final = 2.0  # `ending` may appear without a signal
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_CHILD_SUBREAPER: Final = 36
_SIGNALS: Final = {signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT}


class Record(NamedTuple):
    """Which process keeps a machine; of all processes ever, no other has the same pid, start and boot."""

    pid: int
    started: int
    boot: str
    memory: int  # how often this host had run out of memory when it began


def main() -> None:
    """Read the order, detach, keep the machine until it ends."""
    order = json.load(sys.stdin.buffer)
    told, tell = os.pipe()
    if os.fork():
        os.close(tell)
        os.read(told, 1)  # the creator waits for this process: then the machine is on record
        os._exit(0)
    os.close(told)
    directory = Path(order["directory"])
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    put_on_record(directory)
    os.close(tell)
    with contextlib.suppress(OSError):
        os.close(0)
        os.open(os.devnull, os.O_RDONLY)  # takes the free descriptor 0
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    server = os.fork()
    if not server:
        _serve(order, keeper=os.getppid())
    os.close(order["socket"])
    reason = _wait(server, directory, order["ends"])
    end_descendants()
    if reason is not None:
        write_whole(directory / "failed", reason)
        return
    remove(directory)


def put_on_record(directory: Path) -> None:
    """Say which process keeps this machine, so that no other process is ever taken for it."""
    me = os.getpid()
    record = Record(me, started(me) or 0, boot_id(), out_of_memory())
    write_whole(directory / "keeper", json.dumps(record._asdict()))


def steady() -> float:
    """Seconds since this host was started: a clock that nobody sets."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def write_whole(path: Path, text: str) -> None:
    """Whoever reads the file sees all of the text or the file that was there before."""
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)  # made here, so it is no link to elsewhere
    with open(descriptor, "w", encoding="utf-8") as file:  # noqa: PTH123  # by its descriptor
        file.write(text)
    draft.rename(path)


def remove(directory: Path) -> None:
    """Take the machine's name away at once, then its files, also those that a job made unreadable. Already gone is success."""
    if not directory.exists():
        return
    gone = directory.with_name(f".gone-{directory.name.removeprefix('.gone-')}")
    if directory != gone:
        try:
            directory.rename(gone)
        except FileNotFoundError:
            return
        except OSError:  # a `.gone` of this name is there already
            gone = directory
    shutil.rmtree(gone, ignore_errors=True)
    _open_up(gone)
    for folder, below, _ in os.walk(gone):  # from the top: each is opened before it is looked into
        for name in below:
            _open_up(Path(folder, name))
    shutil.rmtree(gone, ignore_errors=True)


def _open_up(folder: Path) -> None:
    with contextlib.suppress(OSError):
        if not folder.is_symlink():
            folder.chmod(0o700)


def _wait(server: int, directory: Path, ends: float) -> str | None:
    """Until the machine is to end, at `ends` by `steady` at the latest. Why it failed, or None if it ended as it should."""
    while True:
        while (ended := _reap()) is not None:
            if ended[0] == server:
                return f"its SSH server ended by itself ({_how(ended[1])}): {last_words(directory)}"
        if (directory / "ending").exists() or steady() >= ends:
            return None
        got = signal.sigtimedwait(_SIGNALS, max(0.0, min(LOOK_EVERY_S, ends - steady())))
        if got is not None and got.si_signo != signal.SIGCHLD:
            return None


def _reap() -> tuple[int, int] | None:
    """One dead child and its status; None if none is dead."""
    try:
        pid, status = os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return None
    return (pid, status) if pid else None


def end_descendants() -> None:
    """Kill every process below this one until the kernel says that there is none: it never gives up before."""
    pause_s = 0.001
    while True:
        with contextlib.suppress(ChildProcessError):
            for pid in descendants(os.getpid()):
                _kill(pid)
            while True:
                if os.waitpid(-1, os.WNOHANG) == (0, 0):
                    break
            signal.sigtimedwait(_SIGNALS, pause_s)
            pause_s = min(pause_s * 2, 1.0)
            continue
        return


def started(pid: int) -> int | None:
    """When a process started, in clock ticks since boot: with the pid, its identity. None if there is none, or a zombie."""
    fields = _stat(pid)
    return None if fields is None or fields[0] in "ZX" else int(fields[19])


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def out_of_memory() -> int:
    """How often this host's kernel ended a process for want of memory since it was started; 0 where it does not say."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/vmstat").read_text(encoding="ascii").splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0


def is_alive(record: Record, directory: Path) -> bool:
    """Whether the process of this record still lives, and keeps this machine: it is ours and bears its mark."""
    return record.boot == boot_id() and started(record.pid) == record.started and _bears_mark(record.pid, directory)


def _bears_mark(pid: int, directory: Path) -> bool:
    """Whether a process is this user's and was started for this machine. Another user's may say what it likes."""
    folder = Path(f"/proc/{pid}")
    with contextlib.suppress(OSError):
        is_ours = folder.stat().st_uid == os.getuid()
        return is_ours and os.fsencode(f"{MARK}={directory}") in (folder / "environ").read_bytes().split(b"\0")
    return False


def descendants(root: int) -> list[int]:
    """All processes below one, children before grandchildren."""
    children: dict[int, list[int]] = {}
    for pid in _pids():
        if (fields := _stat(pid)) is not None and fields[0] not in "ZX":
            children.setdefault(int(fields[1]), []).append(pid)
    found: list[int] = []
    ahead = [root]
    while ahead:
        below = children.get(ahead.pop(), [])
        found += below
        ahead += below
    return found


def marked(directory: Path) -> list[int]:
    """The processes of a machine whose keeper is gone: by its mark in their environment, their session, their parents."""
    own = os.getpid()
    found = {pid for pid in _pids() if _bears_mark(pid, directory)}
    sessions = {int(fields[3]) for pid in found if (fields := _stat(pid)) is not None}
    # A job may itself ask for this (it runs a flow of its own): its own session is not swept with the others then.
    sessions.discard(os.getsid(0))
    for pid in _pids():
        if (fields := _stat(pid)) is not None and int(fields[3]) in sessions:
            found.add(pid)
    for pid in list(found):
        found.update(descendants(pid))
    return [pid for pid in found if pid != own and (fields := _stat(pid)) is not None and fields[0] not in "ZX"]


def end_marked(directory: Path, *, within_s: float) -> bool:
    """Kill what `marked` finds until it finds nothing. False: something is still there."""
    until = time.monotonic() + within_s
    while pids := marked(directory):
        for pid in pids:
            _kill(pid)
        if time.monotonic() > until:
            return False
        time.sleep(0.005)
    return True


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]  # noqa: PTH208  # Path.iterdir is 4 times slower


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat after the command's name, which may itself hold blanks and brackets."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123  # called for every process of the machine
            return file.read().rpartition(b") ")[2].decode("ascii").split()
    except OSError:
        return None


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGKILL)


def _serve(order: dict[str, Any], keeper: int) -> None:
    """In the child: become the SSH server. If the keeper is killed, the server ends what is left."""
    status = 1
    try:
        _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        if os.getppid() == keeper:
            os.close(order["lock"])
            order["keeper"] = keeper
            sys.path[:] = order["sys_path"]
            _load_server().serve(order, lambda: end_marked(Path(order["directory"]), within_s=10))
        status = 0
    except BaseException:  # noqa: BLE001  # a forked child must never go on as its parent
        import traceback  # costs milliseconds that only a failure pays

        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def _load_server() -> Any:
    """server.py by its path: `providers` would bring the whole registry along."""
    spec = importlib.util.spec_from_file_location("loopback_server", Path(__file__).with_name("ssh_server.py"))
    if spec is None or spec.loader is None:
        raise ImportError("server.py is not beside keeper.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


def _how(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    return f"exit {code}" if code >= 0 else f"signal {-code}"


def last_words(directory: Path) -> str:
    with contextlib.suppress(OSError):
        descriptor = os.open(directory / "log", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:  # noqa: PTH123  # by its descriptor
            file.seek(max(0, os.fstat(descriptor).st_size - 4096))
            if lines := file.read(4096).decode(errors="replace").strip().splitlines():
                return "".join(sign for sign in lines[-1] if sign.isprintable())[:300]
    return "it left no word"


if __name__ == "__main__":
    main()
