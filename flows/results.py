"""What a job leaves, its whole log and its files: kept in the flow's result storage, fetched from there."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect.filesystems import LocalFileSystem, WritableDeploymentStorage
from prefect.results import get_default_result_storage, get_result_store


class NotStored(Exception):
    """Result storage did not take the log and the files; they stay on the worker, where the message says.

    No ProviderError: the next offer would not mend it, and the job is over.
    """


def place(run_id: UUID, attempt: int) -> str:
    """Where one try's log and files are, below the root of the result storage."""
    return f"prefect-gpu/{run_id}/{attempt}"


@contextmanager
def kept(run_id: UUID, attempt: int) -> Generator[Path]:
    """A folder whose content is in result storage when the block ends without an error.

    With storage on this machine it is the very folder there, so nothing is copied. Raises NotStored, and leaves the folder
    where it is, when a remote storage does not take it.
    """
    storage = get_result_store().result_storage or _default_storage()
    where = place(run_id, attempt)
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


def fetch(run_id: UUID, destination: Path) -> list[Path]:
    """Copy all that a run left in the default result storage to a folder; the files, or none if the run left nothing."""
    storage = _default_storage()
    where = f"prefect-gpu/{run_id}"
    if isinstance(storage, LocalFileSystem):
        source = Path(storage.basepath or ".").expanduser().resolve() / where
        if not source.is_dir():
            return []
        shutil.copytree(source, destination, dirs_exist_ok=True)
    elif isinstance(storage, WritableDeploymentStorage):
        destination.mkdir(parents=True, exist_ok=True)
        remote: Any = storage
        remote.get_directory(from_path=where, local_path=str(destination), _sync=True)
    else:
        raise NotStored(f"the result storage {type(storage).__name__} cannot list what it holds: copy {where} from it")
    return sorted(path for path in destination.rglob("*") if path.is_file())


def _default_storage() -> Any:
    default: Any = get_default_result_storage  # dispatches on being called from async code; typed for that alone
    return default(_sync=True)


def _put(storage: Any, folder: Path, where: str) -> None:
    if hasattr(storage, "put_directory"):
        storage.put_directory(local_path=str(folder), to_path=where, _sync=True)
        return
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            storage.write_path(f"{where}/{path.relative_to(folder)}", content=path.read_bytes(), _sync=True)
