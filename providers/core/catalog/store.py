"""The snapshots this machine has: published so that a reader sees the old one or the new one, whatever dies when.

Editions are in the order in which they were published, by our own clock, and never by what a price list says of its own time:
a source whose date is old, the same as before or in the future is published like any other.

<folder>/<provider>/latest.json          which edition counts: written beside and renamed, when the edition is whole
<folder>/<provider>/<version>.sqlite     an edition; never changed, the newest three stay for readers that are slow
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import secrets
import threading
import time
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from prefect_gpu.providers.core.catalog.kinds import About, Levels, Price
from prefect_gpu.providers.core.catalog.snapshot import Snapshot
from prefect_gpu.providers.core.catalog.writing import write
from prefect_gpu.providers.core.models import utc_now

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable

_KEPT: Final = 3
_ABANDONED_S: Final = 3600.0  # what a publisher that died left behind is removed after this
LARGEST_BYTES: Final = 500 * 10**6  # of an edition; gcp's, the largest, has 30 MB

# Both become parts of paths, and come from a bucket, a form or a file that others may write.
_PROVIDER: Final = re.compile(r"[a-z][a-z0-9]{0,29}")
_VERSION: Final = re.compile(r"(\d{8}T\d{12})Z-[0-9a-f]{6}")
_MOMENT: Final = "%Y%m%dT%H%M%S%f"

_opened: dict[Path, tuple[tuple[int, int], Snapshot]] = {}
_lock = threading.Lock()


class Edition(NamedTuple):
    """What `latest.json` says."""

    version: str  # sorts by when it was published
    file: str
    bytes: int
    sha256: str


def folder() -> Path:
    """Where snapshots are on this machine: under PREFECT_HOME, which every worker has."""
    home = os.environ.get("PREFECT_HOME")
    return (Path(home).expanduser() if home else Path.home() / ".prefect") / "prefect-gpu" / "prices"


def folder_of(provider: str) -> Path:
    """Where a provider's snapshots are. ValueError for what is not a provider's name."""
    if not _PROVIDER.fullmatch(provider):
        raise ValueError(f"{provider[:40]!r} is not the name of a provider: write one like aws or lambdalabs")
    return folder() / provider


def publish(
    provider: str, prices: Iterable[Price], *, collected_at: datetime, source: str, levels: Levels | None = None
) -> About:
    """Make these the prices of a provider, at once for every reader. A collection from the future counts as one of now."""
    place = folder_of(provider)
    place.mkdir(parents=True, exist_ok=True)
    unfinished = place / f".{secrets.token_hex(8)}.unfinished"
    try:
        when = min(collected_at, utc_now())
        about = write(unfinished, provider, prices, collected_at=when, source=source, levels=levels)
        install_next(place, unfinished)
    finally:
        unfinished.unlink(missing_ok=True)
    return about


def install_next(place: Path, unfinished: Path) -> None:
    """Make a whole file the edition that counts in the folder `place`: it comes after all that were there."""
    with _one_at_a_time(place):
        _install(place, unfinished, _next_version(place))


def install(place: Path, unfinished: Path, version: str) -> bool:
    """Make another machine's edition the one that counts here, unless a newer one is there already; whether it does."""
    with _one_at_a_time(place):
        current = latest(place)
        if current is not None and current.version >= version:
            return False
        _install(place, unfinished, version)
        return True


def _install(place: Path, unfinished: Path, version: str) -> None:
    edition = Edition(version, f"{version}.sqlite", unfinished.stat().st_size, _sha256(unfinished))
    _sync(unfinished)
    unfinished.rename(place / edition.file)
    pointer = place / f".{version}.pointer.unfinished"
    pointer.write_text(json.dumps(edition._asdict(), indent=1) + "\n")
    _sync(pointer)
    pointer.replace(place / "latest.json")
    _sync(place)
    _prune(place)


def _next_version(place: Path) -> str:
    """Now, by this machine's clock, or just after the edition that counts where that is later: another clock may have been ahead."""
    now, current = utc_now(), latest(place)
    if current is not None:
        now = max(now, _moment(current.version) + timedelta(microseconds=1))
    return f"{now.strftime(_MOMENT)}Z-{secrets.token_hex(3)}"


def _moment(version: str) -> datetime:
    match = _VERSION.fullmatch(version)
    return datetime.strptime(match[1], _MOMENT).replace(tzinfo=UTC) if match else datetime.min.replace(tzinfo=UTC)


@contextmanager
def _one_at_a_time(place: Path) -> Generator[None]:
    """Of several processes that publish here; the kernel frees the lock of one that dies."""
    with (place / ".lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def latest(place: Path) -> Edition | None:
    """The edition that counts in a provider's folder, or None if there is none."""
    try:
        return edition_of((place / "latest.json").read_text(errors="replace"))
    except FileNotFoundError:
        return None


def edition_of(text: str) -> Edition | None:
    """What a `latest.json` says, or None if it says nothing that is of use."""
    try:
        told = json.loads(text)
        edition = Edition(str(told["version"]), str(told["file"]), int(told["bytes"]), str(told["sha256"]))
        _moment(edition.version)
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None
    is_one = (
        _VERSION.fullmatch(edition.version)
        and edition.file == f"{edition.version}.sqlite"
        and 0 < edition.bytes <= LARGEST_BYTES
    )
    return edition if is_one else None


def opened(provider: str) -> Snapshot | None:
    """The newest snapshot of a provider, open, or None if there is none that can be read; a newer one is noticed."""
    try:
        place = folder_of(provider)
    except ValueError:
        return None  # nothing was ever published under such a name
    try:
        status = (place / "latest.json").stat()
    except OSError:
        return None
    stamp = (status.st_mtime_ns, status.st_ino)
    with _lock:
        known = _opened.get(place)
        if known is None or known[0] != stamp:
            snapshot = _open_newest(place)
            if snapshot is None:
                return None
            _opened[place] = known = (stamp, snapshot)
    return known[1]


def providers() -> list[str]:
    """All that have a snapshot here, by name."""
    names = (pointer.parent.name for pointer in folder().glob("*/latest.json"))
    return sorted(name for name in names if _PROVIDER.fullmatch(name))


def gpu_names() -> list[str]:
    """The names of all GPUs in all snapshots."""
    snapshots = (opened(provider) for provider in providers())
    return sorted({name for snapshot in snapshots if snapshot for name in snapshot.about.gpu_names})


def has_instance_type(name: str) -> bool:
    """Whether any provider's price list has an instance type of this name, whatever its case."""
    snapshots = (opened(provider) for provider in providers())
    return any(snapshot.has_instance_type(name) for snapshot in snapshots if snapshot)


def _open_newest(place: Path) -> Snapshot | None:
    """The edition that counts; where something has damaged it, the one before it."""
    edition = latest(place)
    older = sorted((path.name for path in place.glob("*.sqlite")), reverse=True)
    names = [edition.file, *older] if edition else older
    for name in names:
        path = place / name
        try:
            if edition and name == edition.file and path.stat().st_size != edition.bytes:
                continue
            return Snapshot(path)
        except (ValueError, OSError):
            continue
    return None


def _prune(place: Path) -> None:
    current = latest(place)
    editions = sorted(place.glob("*.sqlite"), reverse=True)
    for path in editions[_KEPT:]:
        if current is None or path.name != current.file:
            path.unlink(missing_ok=True)
    for path in place.glob(".*.unfinished"):
        try:
            if time.time() - path.stat().st_mtime > _ABANDONED_S:
                path.unlink()
        except FileNotFoundError:
            continue


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def age_s(snapshot: Snapshot) -> float:
    """Seconds since its prices were collected."""
    return (utc_now() - snapshot.about.collected_at).total_seconds()
