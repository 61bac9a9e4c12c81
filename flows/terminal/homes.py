"""Where the Prefect server of our own keeps its data: found or made for this user alone, and taken over from an earlier version."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import shutil
from typing import TYPE_CHECKING, Final

from prefect_gpu.flows.terminal.daemon import write_whole
from prefect_gpu.flows.terminal.messages import Trouble, tell
from prefect_gpu.providers.core import private
from prefect_gpu.providers.core.typed import typed

if TYPE_CHECKING:
    from pathlib import Path

OURS: Final = "gpu:"  # how each password of a server of our own begins


def found() -> Path:
    """The home, private and ready; a sentence if it cannot be."""
    try:
        home = private.make_home()
    except private.NotPrivate as trouble:
        raise Trouble(str(trouble)) from None
    if (old := _old()) is not None:
        _take_over(old, home)
    return home


def to_stop() -> Path:
    """The home in which something may be running: an earlier version's in the checkout, or today's."""
    if (old := _old()) is not None and _is_in_use(old):
        return old
    try:
        return private.make_home()
    except private.NotPrivate as trouble:
        raise Trouble(str(trouble)) from None


def password_file(home: Path) -> Path:
    """Of mode 0600, for who has no terminal and for the lines that `make up` prints."""
    return home / "password"


def password(home: Path) -> str:
    """What a server of our own wants to hear: made with the server, kept while there may be flows that know it."""
    path = password_file(home)
    with contextlib.suppress(FileNotFoundError), os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "r") as file:
        if found := file.read().strip():
            return found
    made = f"{OURS}{secrets.token_urlsafe(32)}"
    write_whole(path, made + "\n")
    return made


def forget_password(home: Path) -> None:
    """The next server gets another one: whoever listens on the port meanwhile hears one that opens nothing."""
    (password_file(home)).unlink(missing_ok=True)


def _old() -> Path | None:
    """What an earlier version left in the checkout. Who names another home has nothing to do with it."""
    return None if private.VARIABLE in os.environ else private.old_home()


def _take_over(old: Path, home: Path) -> None:
    if _is_in_use(old):
        raise Trouble(
            f"An earlier version of prefect-gpu is at work in {old}: `{typed('down')}` stops it, then type this again."
        )
    target = _free(home / "earlier") if any(home.iterdir()) else home
    try:
        _make_private(old)
        _move(old, target)
    except FileNotFoundError:
        return  # another one did it at the same time
    except OSError as error:
        raise Trouble(f"{old} holds secrets and is to move to {target}: {error.strerror}. Move it by hand.") from None
    tell(f"{old} was moved to {target}: what holds secrets lies outside the checkout now.")


def _move(source: Path, target: Path) -> None:
    """At once, also onto an empty folder; to another disk as a copy that gets its name when it is whole."""
    try:
        source.rename(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        draft = target.with_name(f"{target.name}.{os.getpid()}")
        shutil.copytree(source, draft, symlinks=True)
        draft.rename(target)
        shutil.rmtree(source)


def _free(wished: Path) -> Path:
    target, number = wished, 1
    while target.exists():
        number += 1
        target = wished.with_name(f"{wished.name}-{number}")
    return target


def _make_private(folder: Path) -> None:
    """As the umask of today would have made them."""
    folder.chmod(0o700)
    for path in folder.rglob("*"):
        if not path.is_symlink():
            path.chmod(path.stat().st_mode & 0o700)


def _is_in_use(old: Path) -> bool:
    """Whether a server, a worker or a make of the earlier version holds one of its locks."""
    for name in ("server.lock", "worker.lock", "owner.lock", "configured/worker.lock"):
        try:
            with (old / name).open("rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            continue
    return False
