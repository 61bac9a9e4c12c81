"""The snapshots this machine has: published so that a reader sees the old one or the new one, whatever dies when.

<folder>/<provider>/latest.json          which edition counts: written beside and renamed, when the edition is whole
<folder>/<provider>/<version>.sqlite     an edition; never changed, the newest three stay for readers that are slow
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import threading
import time
from datetime import UTC
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from providers.core.models import utc_now
from providers.core.snapshot import About, Price, Snapshot, write

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

_KEPT: Final = 3
_ABANDONED_S: Final = 3600.0  # what a publisher that died left behind is removed after this

_opened: dict[Path, tuple[tuple[int, int], Snapshot]] = {}
_lock = threading.Lock()


class Edition(NamedTuple):
    """What `latest.json` says."""

    version: str  # sorts by time
    file: str
    bytes: int
    sha256: str


def folder() -> Path:
    """Where snapshots are on this machine: under PREFECT_HOME, which every worker has."""
    home = os.environ.get("PREFECT_HOME")
    return (Path(home).expanduser() if home else Path.home() / ".prefect") / "prefect-gpu" / "prices"


def publish(provider: str, prices: Iterable[Price], *, collected_at: datetime, source: str) -> About:
    """Make these the prices of a provider, at once for every reader; an older collection does not replace a newer one."""
    place = folder() / provider
    place.mkdir(parents=True, exist_ok=True)
    version = f"{collected_at.astimezone(UTC):%Y%m%dT%H%M%S%fZ}-{secrets.token_hex(3)}"
    unfinished = place / f".{version}.unfinished"
    try:
        about = write(unfinished, provider, prices, collected_at=collected_at, source=source)
        install(place, unfinished, version)
    finally:
        unfinished.unlink(missing_ok=True)
    return about


def install(place: Path, unfinished: Path, version: str) -> None:
    """Make a whole file the edition that counts in the folder `place`, unless a newer one is there already."""
    edition = Edition(version, f"{version}.sqlite", unfinished.stat().st_size, _sha256(unfinished))
    _sync(unfinished)
    unfinished.rename(place / edition.file)
    current = latest(place)
    if current is None or current.version < version:
        pointer = place / f".{version}.pointer.unfinished"
        pointer.write_text(json.dumps(edition._asdict(), indent=1) + "\n")
        _sync(pointer)
        pointer.replace(place / "latest.json")
        _sync(place)
    _prune(place)


def latest(place: Path) -> Edition | None:
    """The edition that counts in a provider's folder, or None if there is none."""
    try:
        return edition_of((place / "latest.json").read_text())
    except FileNotFoundError:
        return None


def edition_of(text: str) -> Edition | None:
    """What a `latest.json` says, or None if it says nothing that is of use."""
    try:
        told = json.loads(text)
        edition = Edition(str(told["version"]), str(told["file"]), int(told["bytes"]), str(told["sha256"]))
    except (ValueError, KeyError, TypeError):
        return None
    return edition if Path(edition.file).name == edition.file else None


def opened(provider: str) -> Snapshot | None:
    """The newest snapshot of a provider, open, or None if there is none that can be read; a newer one is noticed."""
    place = folder() / provider
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
    return sorted(pointer.parent.name for pointer in folder().glob("*/latest.json"))


def gpu_names() -> list[str]:
    """The names of all GPUs in all snapshots."""
    snapshots = (opened(provider) for provider in providers())
    return sorted({name for snapshot in snapshots if snapshot for name in snapshot.about.gpu_names})


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
