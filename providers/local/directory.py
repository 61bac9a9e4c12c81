"""What stands in a machine's directory, and how much of it is believed.

    <root>/<name>/   machine.json  who made it, where it listens, until when
                     lock          held by the creator, then by the keeper
                     keeper        the keeper's pid, start and boot: which no other process can have
                     ending        somebody wants it ended
                     failed        why it ended though nobody wanted it to
                     log, home/    of the server; of the jobs
    <root>/.new-*    being made;   <root>/.gone-*  ended, its files not yet all removed

A root may stand in /tmp, where anybody can be first: only a directory of our own counts, only what is ours in it is read, no link is
followed, and a process is a machine's keeper only if it is ours and bears the machine's mark.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import pwd
import socket
import stat
import time
from datetime import datetime
from hashlib import sha256
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from pydantic import Field, ValidationError

from prefect_gpu.providers.core.models import Model
from prefect_gpu.providers.local import keeper

if TYPE_CHECKING:
    from collections.abc import Generator

NEW: Final = ".new-"
GONE: Final = ".gone-"
_MOST_BYTES: Final = 64 * 1024  # of a file that is read here
_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # a pipe in a file's place holds up nobody


class Written(Model):
    """machine.json."""

    name: str = Field(max_length=200)
    host: str = Field(max_length=500)
    processes: str = Field(max_length=100)  # the PID namespace: which processes its creator saw
    order: str = Field(max_length=100)  # digest of what was ordered
    port: int = Field(ge=1, le=65535)
    user: str = Field(max_length=200)
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


def process_namespace() -> str:
    return os.readlink("/proc/self/ns/pid")  # noqa: PTH115  # no path: "pid:[4026531836]"


# --- whose it is ------------------------------------------------------------------------------------------------------


def is_ours(path: Path) -> bool:
    """Whether it is a directory of this user and no link to one. What is not there is not ours."""
    try:
        found = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()


def is_trusted(root: Path) -> bool:
    """Whether what stands in it was put there by this user. OSError where it is ours and others may write to it.

    What somebody else made holds nothing of ours: they could not have given it to us, nor we put anything into it.
    """
    if not is_ours(root):
        return False
    if root.lstat().st_mode & 0o022:
        raise PermissionError(errno.EPERM, "others may write there, so it is not believed: run chmod 700 on it")
    return True


def make_private(root: Path) -> None:
    """A directory that is ours and nobody else can look into or put things into."""
    root.mkdir(parents=True, mode=0o700, exist_ok=True)
    if not is_ours(root):
        raise PermissionError(errno.EPERM, "belongs to somebody else")
    mode = root.lstat().st_mode
    if mode & 0o022 and any(root.iterdir()):
        is_trusted(root)  # raises: who knows who put that there
    if mode & 0o077:
        root.chmod(0o700)
    if not os.access(root, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, "cannot be written")


def entries(root: Path) -> list[str]:
    """The names of the directories in it that are ours; nothing where the root itself is not."""
    if not is_trusted(root):
        return []
    return [name for name in os.listdir(root) if is_ours(root / name)]  # noqa: PTH208  # names only


def is_name(name: str) -> bool:
    """Whether it names an entry of a directory, and not a way out of it."""
    return name not in {"", ".", ".."} and "/" not in name and "\0" not in name


# --- its files --------------------------------------------------------------------------------------------------------


def read_file(path: Path) -> bytes | None:
    """A file of ours, whole; None where there is none, or something else in its place, or far more than we ever write."""
    try:
        descriptor = os.open(path, _READ)
    except OSError:
        return None
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.getuid() or found.st_size > _MOST_BYTES:
            return None
        return os.read(descriptor, _MOST_BYTES)
    except OSError:
        return None
    finally:
        os.close(descriptor)


def text_of(path: Path) -> str | None:
    """A file of ours as words for people, in one line of at most 500 characters."""
    data = read_file(path)
    if data is None:
        return None
    words = " ".join(data.decode(errors="replace").split())
    return "".join(sign for sign in words if sign.isprintable())[:500]


def written(directory: Path) -> Written | None:
    """Its machine.json; None where it is missing, damaged or another machine's."""
    data = read_file(directory / "machine.json") if is_ours(directory) else None
    if data is None:
        return None
    with contextlib.suppress(ValidationError, RecursionError):
        found = Written.model_validate_json(data)
        if found.name == directory.name and found.deadline.tzinfo is not None and found.created_at.tzinfo is not None:
            return found
    return None


def is_damaged(directory: Path) -> bool:
    """A machine's directory without its machine.json: what a power cut may leave."""
    return is_ours(directory) and written(directory) is None and is_ours(directory / "home")


def record(directory: Path) -> keeper.Record | None:
    """Which process keeps it, as that process wrote down; None where it did not, or nothing that can be believed stands there."""
    data = read_file(directory / "keeper") if is_ours(directory) else None
    try:
        found: Any = json.loads(data) if data else None
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict):
        return None
    told = cast("dict[str, Any]", found)
    numbers = [told.get(key, 0) for key in ("pid", "started", "memory")]
    boot = told.get("boot")
    if not isinstance(boot, str) or any(type(number) is not int or not 0 <= number < 2**63 for number in numbers):
        return None
    pid, started, memory = numbers
    return keeper.Record(pid=pid, started=started, boot=boot, memory=memory) if 1 < pid < 2**31 else None


def mark_ending(directory: Path) -> bool:
    """Write down that somebody wants it ended; False where there is nothing of ours."""
    if not is_ours(directory):
        return False
    try:
        os.close(os.open(directory / "ending", os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600))
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENXIO, errno.EISDIR):
            raise
    return True


# --- its lock ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def take_lock(directory: Path) -> Generator[FileIO]:
    """Hold this machine's lock; BlockingIOError if somebody does, FileNotFoundError if the machine is gone by then."""
    path = directory / "lock"
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with open(os.open(path, flags, 0o600), "r+b", buffering=0) as lock:  # noqa: PTH123  # by its descriptor
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


def is_locked(directory: Path) -> bool:
    try:
        descriptor = os.open(directory / "lock", _READ)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
