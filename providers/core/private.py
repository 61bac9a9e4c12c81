"""What of this machine holds secrets: the home of a Prefect server of our own, Prefect's home, keys and logins. It never leaves it."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

VARIABLE: Final = "PREFECT_GPU_HOME"  # names another folder than the user's state folder
OLD_NAME: Final = ".prefect-gpu"  # in a checkout: where the first version kept it
_LOGINS: Final = (
    ".ssh", ".aws", ".azure", ".config/gcloud", ".docker", ".gnupg", ".kube", ".netrc", ".git-credentials", ".pgpass",
)  # fmt: skip
# Variables that name such a place elsewhere; KUBECONFIG names several.
_NAMED_BY: Final = (
    "AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE", "AWS_WEB_IDENTITY_TOKEN_FILE", "AZURE_CONFIG_DIR", "CLOUDSDK_CONFIG",
    "DOCKER_CONFIG", "GNUPGHOME", "GOOGLE_APPLICATION_CREDENTIALS", "KUBECONFIG", "NETRC", "PGPASSFILE", "PREFECT_PROFILES_PATH",
)  # fmt: skip
_LOOKED_AT: Final = 10_000  # so many things in one place, for those with a second name


class NotPrivate(Exception):
    """A folder that was to hold secrets cannot, in one sentence."""


def wished_home() -> Path:
    """Where the home of a server of our own belongs: what the variable names, else the user's state folder."""
    if named := os.environ.get(VARIABLE):
        return Path(named).expanduser().absolute()
    state = os.environ.get("XDG_STATE_HOME", "")
    if not Path(state).is_absolute():  # so the specification of the variable says
        try:
            state = str(Path.home() / ".local" / "state")
        except RuntimeError:  # no HOME, and the system's list of users does not know this one
            return _fallback()
    return Path(state) / "prefect-gpu"


def make_home() -> Path:
    """The home, made if it is not there, for this user alone. Where HOME cannot be written it lies in the temporary folder.

    Raises NotPrivate.
    """
    home = wished_home()
    try:
        make_private(home)
    except OSError as error:
        if VARIABLE in os.environ or isinstance(error, FileExistsError) or _is_full(error):
            raise NotPrivate(_cannot_be_written(home, error)) from None
    else:
        return home
    fallback = _fallback()
    try:
        make_private(fallback)
    except OSError as error:
        raise NotPrivate(_cannot_be_written(fallback, error)) from None
    return fallback


def make_private(folder: Path) -> None:
    """Make a folder of mode 0700, or see that the one that is there is this user's own. Raises OSError and NotPrivate."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        if not folder.is_dir():
            raise
    # A link may be a user's own way to another disk; in a folder that anybody can write it is anybody's.
    found = folder.lstat() if _anybody_writes(folder.parent) else folder.stat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise NotPrivate(
            f"{folder} is to hold the Prefect server's secrets, and it is not your own: name another with {VARIABLE}."
        )
    if stat.S_IMODE(found.st_mode) & 0o077:
        folder.chmod(0o700)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def never_uploaded() -> list[Path]:
    """The folders that exist here and must never be part of an upload, nor anything in them, whatever a pattern says.

    Compare with `os.path.samefile` (device and inode): a link or another spelling is the same folder.
    """
    found = [wished_home(), _fallback(), _checkout() / OLD_NAME]
    with contextlib.suppress(RuntimeError):
        if named := os.environ.get("PREFECT_HOME"):
            found.append(Path(named).expanduser())
        # Where they lie by themselves: a variable names another one, and what was there before is there still.
        found += [Path("~/.prefect").expanduser(), Path("~/.local/state/prefect-gpu").expanduser()]
    return [folder for folder in dict.fromkeys(found) if folder.is_dir()]


def own_places() -> tuple[Path, ...]:
    """What never leaves this machine: the folders above, and where the user who runs this process keeps keys and logins."""
    named = [one for name in _NAMED_BY for one in os.environ.get(name, "").split(os.pathsep) if one]
    with contextlib.suppress(RuntimeError):  # no HOME, and nobody of this user id
        return (
            *never_uploaded(),
            *(Path.home() / name for name in _LOGINS),
            *(Path(one).expanduser() for one in named),
        )
    return (*never_uploaded(), *map(Path, named))


def known_elsewhere(place: Path) -> Iterator[Path]:
    """The files of a private folder that may have another name outside of it: links to files, and files with two names."""
    waiting, left = [place], _LOOKED_AT
    while waiting:
        with contextlib.suppress(OSError), os.scandir(waiting.pop()) as entries:
            for entry in entries:
                left -= 1
                if left < 0:
                    return
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(Path(entry.path))
                elif entry.is_file() and (entry.is_symlink() or entry.stat().st_nlink > 1):
                    yield Path(entry.path)


def old_home() -> Path | None:
    """What the first version left in this checkout, if it did."""
    folder = _checkout() / OLD_NAME
    return folder if folder.is_dir() and not folder.is_symlink() else None


def _checkout() -> Path:
    return Path(__file__).resolve().parents[2]


def _fallback() -> Path:
    return Path(tempfile.gettempdir()) / f"prefect-gpu-home-{os.geteuid()}"


def _anybody_writes(folder: Path) -> bool:
    return bool(folder.stat().st_mode & stat.S_IWOTH)


def _is_full(error: OSError) -> bool:
    return error.errno in {errno.ENOSPC, errno.EDQUOT}


def _cannot_be_written(folder: Path, error: OSError) -> str:
    return f"{folder} holds the Prefect server's data and cannot be written: {error.strerror}."
