"""Snapshots by way of the Prefect storage block in use, so that every worker has the prices that one of them collected.

The block is Prefect's default for results (setting `results.default_storage_block`, PREFECT_DEFAULT_RESULT_STORAGE_BLOCK). Without
one, storage is this machine's folder (catalog/store.py) and there is nothing to send or fetch. In the block an edition goes first and
`latest.json` last, and an edition counts only with the size and SHA-256 that `latest.json` says: half a file is never a snapshot.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

from prefect_gpu.providers.core.catalog import store
from prefect_gpu.providers.core.errors import Transient

if TYPE_CHECKING:
    from pathlib import Path

PREFIX: Final = "prefect-gpu/prices"
LOOKED_FOR_EVERY_S: Final = 60.0
_LONGEST_POINTER: Final = 10_000

_log = logging.getLogger(__name__)
_lock = threading.Lock()
_looked: dict[tuple[str, str], float] = {}


class Storage(Protocol):
    """What a Prefect file-system block can do, called without an event loop."""

    def read_path(self, path: str) -> bytes: ...

    def write_path(self, path: str, content: bytes) -> Any: ...


def storage() -> Storage | None:
    """The block in use, or None where prices stay on this machine. Transient if it is set and cannot be loaded."""
    from prefect.blocks.core import Block
    from prefect.settings import get_current_settings

    slug = get_current_settings().results.default_storage_block
    if not slug:
        return None
    try:
        return cast("Storage", Block.load(slug, _sync=True))  # pyright: ignore[reportCallIssue] - async dispatch
    except Exception as failure:  # whatever the block's library raises
        raise Transient(f"the storage block {slug} cannot be loaded: {type(failure).__name__}") from failure


def send(provider: str, to: Storage) -> None:
    """Put a provider's newest snapshot, and its history, where other workers fetch them."""
    for place, path in _places(provider):
        edition = store.latest(place)
        if edition is None:
            continue
        try:
            to.write_path(f"{path}/{edition.file}", (place / edition.file).read_bytes())
            to.write_path(f"{path}/latest.json", (place / "latest.json").read_bytes())
        except Exception as failure:  # whatever the block's library raises
            raise Transient(f"the prices of {provider} could not be stored: {type(failure).__name__}") from failure


def fetch(provider: str, source: Storage) -> bool:
    """Install what the block has, if it is newer than what is here and whole; whether it was."""
    fetched = [_fetch(place, path, source) for place, path in _places(provider)]
    return fetched[0]


def fetch_newer(provider: str) -> None:
    """What every asking for offers may call: looks into the block at most once a minute, and never fails for it."""
    key = (str(store.folder()), provider)
    with _lock:
        if time.monotonic() - _looked.get(key, -LOOKED_FOR_EVERY_S) < LOOKED_FOR_EVERY_S:
            return
        _looked[key] = time.monotonic()
    try:
        source = storage()
        if source is not None:
            fetch(provider, source)
    except Transient as failure:
        _log.warning("%s: the prices on this machine are used", failure.message)


def _places(provider: str) -> list[tuple[Path, str]]:
    here = store.folder_of(provider)
    return [(here, f"{PREFIX}/{provider}"), (here / "history", f"{PREFIX}/{provider}/history")]


def _fetch(place: Path, path: str, source: Storage) -> bool:
    try:
        edition = store.edition_of(source.read_path(f"{path}/latest.json")[:_LONGEST_POINTER].decode(errors="replace"))
        here = store.latest(place)
        if edition is None or (here is not None and here.version >= edition.version):
            return False
        content = source.read_path(f"{path}/{edition.file}")
    except Exception as failure:  # noqa: BLE001 - whatever the block's library raises, and absence has no common name
        _log.debug("nothing to fetch at %s: %s", path, type(failure).__name__)
        return False
    if len(content) != edition.bytes or hashlib.sha256(content).hexdigest() != edition.sha256:
        return False  # its writer has not finished, or died
    place.mkdir(parents=True, exist_ok=True)
    unfinished = place / f".{edition.version}.{threading.get_ident()}.unfinished"
    try:
        unfinished.write_bytes(content)
        return store.install(place, unfinished, edition.version)
    finally:
        unfinished.unlink(missing_ok=True)
