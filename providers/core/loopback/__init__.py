"""Machines on this machine: each a directory, a process tree of its own and a real SSH server on 127.0.0.1.

What `providers/local.py` rents out, and what tests put behind instances of a fake cloud. A machine is found by its directory's
name from any process of the same user; it lives without its creator and ends at its deadline without anybody. `keeper.py` and
`server.py` are its two processes. Over 300 lines because who may touch a directory when is one protocol, told in one place.

    <root>/<name>/   machine.json  who made it, where it listens, until when
                     lock          held by the creator, then by the keeper
                     keeper        the keeper's pid, start and boot: which no other process can have
                     ending        somebody wants it ended
                     failed        why it ended though nobody wanted it to
                     log, home/    of the server; of the jobs
    <root>/.new-*    being made;   <root>/.gone-*  ended, its files not yet all removed
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from providers.core.loopback import keeper
from providers.core.models import InstanceState, LaunchSpec, Model, utc_now

if TYPE_CHECKING:
    from collections.abc import Mapping

_GIVE_UP_S: Final = 10.0  # for a process of ours to start
_FORGOTTEN_AFTER_S: Final = (
    24 * 3600
)  # a lease so long over that no clock and no sleeping host can still keep its machine
_END_WITHIN_S: Final = 2.0  # terminate answers after this at the latest, done or not
_NEW, _GONE = ".new-", ".gone-"


class Machine(NamedTuple):
    """A machine as it is now."""

    name: str
    host: str  # whose processes and files these are: machine_id() of its creator
    state: InstanceState
    port: int
    user: str
    created_at: datetime
    reason: str
    is_visible: bool  # False: made on another host or in another container, so its processes cannot be seen from here


class Exists(Exception):
    """There is a machine of this name, made from another order."""


class _Written(Model):
    """machine.json."""

    name: str
    host: str
    processes: str  # the PID namespace: which processes its creator saw
    order: str  # digest of what was ordered
    port: int
    user: str
    created_at: datetime
    deadline: datetime


def machine_id() -> str:
    """This host and this user, the same in every process and after a restart; no secret can be told from it."""
    number = ""
    for path in ("/etc/machine-id", "/var/lib/dbus/machine-id"):
        with contextlib.suppress(OSError):
            number = number or Path(path).read_text(encoding="ascii").strip()
    host = socket.gethostname()
    return f"{host}-{sha256(f'prefect-gpu {number} {host}'.encode()).hexdigest()[:12]}-{os.getuid()}"


def user_name() -> str:
    """The user's name by the system's own list, or a made-up one where the list does not have the user (containers)."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return f"user{os.getuid()}"


def start(root: Path, spec: LaunchSpec, environment: Mapping[str, str] | None = None) -> Machine:
    """Make a machine, or find the one that the same order made before. OSError if this host cannot; Exists if it is another's.

    Its jobs see `environment` beside PATH, HOME, USER, LOGNAME, SHELL and LANG. It accepts connections when this returns; its SSH server answers them as soon as it is up.
    """
    if spec.host_key is None:
        raise ValueError("a loopback machine needs its host key")
    directory = root / spec.name
    draft = root / f"{_NEW}{spec.name}-{secrets.token_hex(4)}"
    (draft / "home").mkdir(parents=True, mode=0o700)
    draft.chmod(0o700)
    try:
        with _take_lock(draft) as lock, _listener() as listener:
            _write(draft, spec, listener)
            try:
                draft.rename(directory)
            except OSError as error:
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                    raise
            else:
                try:
                    _run_keeper(directory, spec, environment or {}, lock.fileno(), listener.fileno())
                except OSError:
                    keeper.remove(directory)  # nothing was started: the error is the whole answer
                    raise
                return _read_again(root, spec.name)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return _start_again(root, spec, environment or {})


def _start_again(root: Path, spec: LaunchSpec, environment: Mapping[str, str]) -> Machine:
    """The same order as before: what it made, and where its creator died halfway, the other half."""
    directory = root / spec.name
    written = _written(directory)
    if written is None:
        return _read_again(root, spec.name)
    if written.order != _digest(spec):
        raise Exists(f"there is another machine named {spec.name}: order under a name of its own")
    is_ours = written.host == machine_id()
    if is_ours and not (directory / "keeper").exists() and not (directory / "ending").exists():
        with (
            contextlib.suppress(BlockingIOError, FileNotFoundError),
            _take_lock(directory) as lock,
            _listener() as listener,
        ):
            if not (directory / "keeper").exists():
                _write(directory, spec, listener)
                _run_keeper(directory, spec, environment, lock.fileno(), listener.fileno())
    return _read_again(root, spec.name)


def read(root: Path, name: str) -> Machine | None:
    """The machine of this name, or None."""
    directory = root / name
    written = _written(directory) if _is_name(name) and not name.startswith(".") else None
    if written is None:
        return None
    state, reason = _state(directory)
    return Machine(
        name=name,
        host=written.host,
        state=state,
        port=written.port,
        user=written.user,
        created_at=written.created_at,
        reason=reason,
        is_visible=_is_visible(written, directory),
    )


def names(root: Path, prefix: str) -> list[str]:
    """Of all machines, in any state."""
    return sorted(name for name in _entries(root) if name.startswith(prefix) and not name.startswith("."))


def leftovers(root: Path, prefix: str) -> list[tuple[str, str]]:
    """Machines that ended and whose files are not all removed, or that were damaged; each with its directory's name for `end`.

    Drafts whose creator died before they were anything are removed by the way.
    """
    found: list[tuple[str, str]] = []
    for entry in _entries(root):
        if entry.startswith(_NEW + prefix):
            _remove_dead_draft(root / entry)
        elif entry.startswith(_GONE + prefix):
            found.append((entry.removeprefix(_GONE), entry))
        elif entry.startswith(prefix) and not entry.startswith(".") and _is_damaged(root / entry):
            found.append((entry, entry))
    return found


def end(root: Path, name: str) -> None:
    """End a machine with everything it started and remove its files; or remove a leftover. Returns when done, or after 2 s."""
    directory = root / name
    if not _is_name(name):
        return
    if name.startswith(_GONE):
        keeper.remove(directory)
        return
    try:
        (directory / "ending").touch()
    except (FileNotFoundError, NotADirectoryError):
        return
    written = _written(directory)
    if written is not None and not _is_visible(written, directory):
        return  # its keeper looks for `ending` every few seconds, wherever it is
    gone = directory.with_name(_GONE + name)
    until = time.monotonic() + _END_WITHIN_S
    is_told = False
    while (directory.exists() or gone.exists()) and time.monotonic() < until:
        record = _record(directory) or _record(gone)
        if record is not None and keeper.is_alive(record):
            if not is_told:
                _tell(record)
                is_told = True
        elif record is not None or not _is_locked(directory):
            # Nobody keeps it: it was cut off halfway, its keeper was killed, or this host was restarted.
            if keeper.end_marked(directory, within_s=_END_WITHIN_S):
                keeper.remove(gone)
                keeper.remove(directory)
            return
        time.sleep(0.005)


# --- files -----------------------------------------------------------------------------------------------------------


def _entries(root: Path) -> list[str]:
    try:
        return os.listdir(root)  # noqa: PTH208  # names only
    except (FileNotFoundError, NotADirectoryError):
        return []


def _is_damaged(directory: Path) -> bool:
    """A machine's directory without its machine.json: what a power cut may leave."""
    return _written(directory) is None and (directory / "home").is_dir()


def _is_name(name: str) -> bool:
    """Whether it names an entry of a directory, and not a way out of it."""
    return name not in {"", ".", ".."} and "/" not in name and "\0" not in name


def _written(directory: Path) -> _Written | None:
    try:
        return _Written.model_validate_json((directory / "machine.json").read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None


def _write(directory: Path, spec: LaunchSpec, listener: socket.socket) -> None:
    port = int(listener.getsockname()[1])
    written = _Written(
        name=spec.name,
        host=machine_id(),
        processes=_process_namespace(),
        order=_digest(spec),
        port=port,
        user=user_name(),
        created_at=utc_now(),
        deadline=spec.deadline,
    )
    keeper.write_whole(directory / "machine.json", written.model_dump_json())


def _digest(spec: LaunchSpec) -> str:
    host_key = spec.host_key.public if spec.host_key else ""
    return sha256(
        f"{spec.name}\n{spec.deadline.timestamp()}\n{spec.client_public_key}\n{host_key}".encode()
    ).hexdigest()


def _record(directory: Path) -> dict[str, Any] | None:
    try:
        return json.loads((directory / "keeper").read_bytes())
    except (FileNotFoundError, ValueError):
        return None


def _state(directory: Path) -> tuple[InstanceState, str]:
    """What a machine is doing, by what its directory and /proc say."""
    with contextlib.suppress(FileNotFoundError):
        return InstanceState.FAILED, (directory / "failed").read_text(encoding="utf-8")
    record = _record(directory)
    if record is not None:
        if not keeper.is_alive(record):
            words = keeper.last_words(directory)
            return InstanceState.FAILED, f"its keeper was killed, or this machine was restarted ({words})"
    elif not _is_locked(directory):
        return InstanceState.FAILED, "whoever created it was killed on the way"
    if (directory / "ending").exists():
        return InstanceState.TERMINATING, ""
    return (InstanceState.PROVISIONING if record is None else InstanceState.RUNNING), ""


def _is_visible(written: _Written, directory: Path) -> bool:
    """Whether what /proc says here is about this machine's processes."""
    if (utc_now() - written.deadline).total_seconds() > _FORGOTTEN_AFTER_S:
        return True
    if written.host != machine_id():
        return False
    # Another container with the same files: its keeper's lock is seen, its processes are not.
    return written.processes == _process_namespace() or not _is_locked(directory)


def _process_namespace() -> str:
    return os.readlink("/proc/self/ns/pid")  # noqa: PTH115  # no path: "pid:[4026531836]"


def _remove_dead_draft(draft: Path) -> None:
    with contextlib.suppress(OSError):
        if time.time() - draft.stat().st_mtime > 60 and not _is_locked(draft):  # younger: not locked yet
            keeper.remove(draft)


# --- locks and processes ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _take_lock(directory: Path) -> Any:
    """Hold this machine's lock; BlockingIOError if somebody does, FileNotFoundError if the machine is gone by then."""
    path = directory / "lock"
    with path.open("ab") as lock:
        until = time.monotonic() + 0.5
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:  # a look at the lock takes it for an instant
                    raise
                time.sleep(0.01)
        if not os.path.samestat(os.fstat(lock.fileno()), path.stat()):
            raise FileNotFoundError(path)
        yield lock


def _is_locked(directory: Path) -> bool:
    try:
        with (directory / "lock").open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False


def _listener() -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.bind(("127.0.0.1", 0))
        listener.listen(128)  # from here on clients wait in the kernel's queue for the server to be up
    except BaseException:
        listener.close()
        raise
    return listener


def _run_keeper(directory: Path, spec: LaunchSpec, environment: Mapping[str, str], lock: int, listener: int) -> None:
    """Start the keeper and wait until it has detached and is on record: a fraction of a second."""
    if not sys.executable:
        raise OSError(errno.ENOENT, "Python does not know its own executable, so it cannot start a process of its own")
    home = directory / "home"
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), str(Path(sys.executable).parent)])
    order = {
        "directory": str(directory),
        "home": str(home),
        "deadline": spec.deadline.timestamp(),
        "client_key": spec.client_public_key,
        "host_key": spec.host_key.private.get_secret_value() if spec.host_key else "",
        "user": user_name(),
        "lock": lock,
        "socket": listener,
        "sys_path": [entry for entry in sys.path if entry],
        "environment": {
            "PATH": path,
            "HOME": str(home),
            "USER": user_name(),
            "LOGNAME": user_name(),
            "SHELL": "/bin/sh",
            "LANG": "C.UTF-8",
            **environment,
        },
        "mark": {keeper.MARK: str(directory)},
    }
    with (directory / "log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", keeper.__file__],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            cwd="/",
            env={keeper.MARK: str(directory), "LANG": "C.UTF-8"},
            pass_fds=(lock, listener),
            start_new_session=True,
        )
    try:
        process.communicate(json.dumps(order).encode(), timeout=_GIVE_UP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()


def _tell(record: dict[str, Any]) -> None:
    """Tell a keeper to end, and wake it if somebody stopped it."""
    pid = record["pid"]
    with contextlib.suppress(ProcessLookupError):
        try:
            handle = os.pidfd_open(pid)
        except (
            AttributeError,
            OSError,
        ):  # before Linux 5.3: the pid may be another's by now, which takes a wrap-around
            os.kill(pid, signal.SIGTERM)
            os.kill(pid, signal.SIGCONT)
            return
        try:
            if keeper.is_alive(record):  # asked again: now the handle keeps the number from being given to another
                signal.pidfd_send_signal(handle, signal.SIGTERM)
                signal.pidfd_send_signal(handle, signal.SIGCONT)
        finally:
            os.close(handle)


def _read_again(root: Path, name: str) -> Machine:
    machine = read(root, name)
    if machine is None:  # it was made, and ended by somebody since
        return Machine(
            name, machine_id(), InstanceState.TERMINATED, 0, user_name(), datetime.now(UTC), "", is_visible=True
        )
    return machine
