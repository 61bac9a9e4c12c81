"""What a job leaves, its whole log and its files: kept in the flow's result storage, fetched from there."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from prefect.blocks.abstract import ObjectStorageBlock
from prefect.filesystems import LocalFileSystem, WritableDeploymentStorage
from prefect.results import get_default_result_storage, get_result_store

from prefect_gpu.providers.core.machine import listing
from prefect_gpu.providers.core.renting.keeping import Store
from prefect_gpu.providers.core.renting.running import LOG

RESULT: Final = "result.json"  # the job's result, beside its log


class NotStored(Exception):
    """Result storage did not take the log and the files; they stay on the worker, where the message says.

    No ProviderError: the next offer would not mend it, and the job is over.
    """


def place(run_id: UUID, attempt: int, tries: int = 1) -> str:
    """Where the log and files of a job are, below the root of the result storage; a further try has a place of its own beside it."""
    return f"prefect-gpu/{run_id}/{attempt}" + (f".{tries}" if tries > 1 else "")


@contextmanager
def kept(run_id: UUID, attempt: int, tries: int = 1) -> Generator[Path]:
    """A folder whose content is in result storage when the block ends without an error.

    With storage on this machine it is the very folder there, so nothing is copied. Raises NotStored, and leaves the folder
    where it is, when a remote storage does not take it.
    """
    storage = get_result_store().result_storage or _default_storage()
    where = place(run_id, attempt, tries)
    if isinstance(storage, LocalFileSystem):
        folder = Path(storage.basepath or ".").expanduser().resolve() / where
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
        return
    folder = Path(tempfile.mkdtemp(prefix="prefect-gpu-"))
    try:
        yield folder
    except Exception:
        if any(folder.iterdir()):  # half a log is worth keeping, and worth no second error
            with suppress(Exception):
                _put(storage, folder, where)
        shutil.rmtree(folder, ignore_errors=True)
        raise
    except BaseException:  # a cancel or the worker's end: the machine is given back before anything that takes long
        shutil.rmtree(folder, ignore_errors=True)
        raise
    try:
        _put(storage, folder, where)
    except Exception as trouble:
        raise NotStored(
            f"result storage did not take the job's log and files ({type(trouble).__name__}): they are in {folder}"
        ) from trouble
    shutil.rmtree(folder, ignore_errors=True)


def checkpoints(run_id: UUID) -> Store:
    """Where the files are that the jobs of a run asked to keep: in the result storage, and so in reach of any worker."""
    storage = get_result_store().result_storage or _default_storage()
    where = f"prefect-gpu/{run_id}/checkpoint"
    if isinstance(storage, LocalFileSystem):
        return Store(Path(storage.basepath or ".").expanduser().resolve() / where)
    folder = Path(tempfile.gettempdir()) / f"prefect-gpu-{os.getuid()}-{run_id}"
    folder.mkdir(mode=0o700, exist_ok=True)
    store = Store(folder / "checkpoint", lambda: _put(storage, folder / "checkpoint" / "whole", f"{where}/whole"))
    if store.newest() is None:
        with suppress(Exception):  # there is none yet, or none that can be had: the job begins at its beginning
            _get(storage, f"{where}/whole", store.whole)
    return store


def fetch(run_id: UUID, destination: Path) -> list[Path]:
    """Copy all that a run left in the default result storage to a folder; the files, or none if the run left nothing."""
    storage = _default_storage()
    where = f"prefect-gpu/{run_id}"
    if isinstance(storage, LocalFileSystem):
        source = Path(storage.basepath or ".").expanduser().resolve() / where
        if not source.is_dir():
            return []
        _copy(source, destination)
    else:
        _get(storage, where, destination)
    return sorted(path for path in destination.rglob("*") if path.is_symlink() or path.is_file())


@contextmanager
def log_file(run_id: UUID, attempt: int, tries: int = 1) -> Generator[Path | None]:
    """The log that a try left in the result storage, to be read; None where there is none, or none that can be had."""
    storage = get_result_store().result_storage or _default_storage()
    where = place(run_id, attempt, tries)
    if isinstance(storage, LocalFileSystem):
        path = Path(storage.basepath or ".").expanduser().resolve() / where / LOG
        yield path if path.is_file() else None
        return
    with tempfile.TemporaryDirectory(prefix="prefect-gpu-") as folder:
        path = Path(folder) / LOG
        with suppress(Exception):
            remote: Any = storage
            if isinstance(storage, ObjectStorageBlock):
                remote.download_object_to_path(f"{where}/{LOG}", str(path), _sync=True)
            else:
                path.write_bytes(remote.read_path(f"{where}/{LOG}", _sync=True))
        yield path if path.is_file() else None


def size(run_id: UUID) -> int | None:
    """Bytes of all that `fetch` would bring, where its storage tells at once; else None."""
    storage = _default_storage()
    if not isinstance(storage, LocalFileSystem):
        return None
    source = Path(storage.basepath or ".").expanduser().resolve() / f"prefect-gpu/{run_id}"
    return sum(path.lstat().st_size for path in source.rglob("*") if path.is_symlink() or path.is_file())


def _copy(source: Path, destination: Path) -> None:
    """Links stay links (followed, `a -> .` and `b -> .` have no end), rights stay; what is there is replaced, never written through."""
    destination.mkdir(parents=True, exist_ok=True)
    waiting = [source]
    while waiting:
        folder = waiting.pop()
        for entry in sorted(folder.iterdir()):
            target = destination / entry.relative_to(source)
            is_folder = entry.is_dir() and not entry.is_symlink()
            if target.is_symlink() or (target.exists() and not is_folder):
                target.unlink()
            if is_folder:
                target.mkdir(exist_ok=True)
                shutil.copymode(entry, target)
                waiting.append(entry)
            else:
                shutil.copy2(entry, target, follow_symlinks=False)


def _default_storage() -> Any:
    default: Any = get_default_result_storage  # dispatches on being called from async code; typed for that alone
    return default(_sync=True)


def _get(storage: Any, where: str, destination: Path) -> None:
    destination.mkdir(parents=True, exist_ok=True)
    if isinstance(storage, ObjectStorageBlock):
        # Not `get_directory`: a bucket's own folder (`bucket_folder` and its like) stands in front of what was put, and that leaves it out.
        bucket: Any = storage
        bucket.download_folder_to_path(where, str(destination), _sync=True)
    elif isinstance(storage, WritableDeploymentStorage):
        remote: Any = storage
        remote.get_directory(from_path=where, local_path=str(destination), _sync=True)
    else:
        raise NotStored(f"the result storage {type(storage).__name__} cannot list what it holds: copy {where} from it")


def _put(storage: Any, folder: Path, where: str) -> None:
    """Put all files below a folder into the storage. It has no links, and its names are text."""
    _make_plain(folder)
    if isinstance(storage, ObjectStorageBlock):  # its `put_directory` reads each file into memory
        bucket: Any = storage
        for path in _files(folder):
            bucket.upload_from_path(str(path), f"{where}/{path.relative_to(folder)}", _sync=True)
    elif hasattr(storage, "put_directory"):
        storage.put_directory(local_path=str(folder), to_path=where, _sync=True)
    else:
        for path in _files(folder):
            storage.write_path(f"{where}/{path.relative_to(folder)}", content=path.read_bytes(), _sync=True)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _make_plain(folder: Path) -> None:
    r"""Links to files become the files they mean, other links go; a name that is not UTF-8 is written with `\x..`."""
    for path in sorted(folder.rglob("*"), reverse=True):  # what is in a folder before the folder
        if path.is_symlink():
            target = path.resolve()
            path.unlink()
            if target.is_file() and target.is_relative_to(folder.resolve()):
                os.link(target, path)
        if (name := listing.printable(path.name)) != path.name and os.path.lexists(path):
            path.rename(path.with_name(name))
