"""The machines that there are, by what their directories and /proc say; one that was made elsewhere is unread, never absent."""

from __future__ import annotations

import contextlib
import time
from datetime import datetime
from pathlib import Path
from typing import Final, NamedTuple

from prefect_gpu.providers.core.models import InstanceState, utc_now
from prefect_gpu.providers.local import directory as directories
from prefect_gpu.providers.local import keeper
from prefect_gpu.providers.local.directory import GONE, NEW, Written

_FORGOTTEN_AFTER_S: Final = 24 * 3600  # a lease so long over that no sleeping host can still keep its machine


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


def read(root: Path, name: str) -> Machine | None:
    """The machine of this name, or None."""
    if not directories.is_name(name) or name.startswith(".") or not directories.is_trusted(root):
        return None
    directory = root / name
    written = directories.written(directory)
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
        is_visible=is_visible(written, directory),
    )


def names(root: Path, prefix: str) -> list[str]:
    """Of all machines, in any state."""
    return sorted(name for name in directories.entries(root) if name.startswith(prefix) and not name.startswith("."))


def leftovers(root: Path, prefix: str) -> list[tuple[str, str]]:
    """Machines that ended and whose files are not all removed, or that were damaged; each with its directory's name for `end`.

    Drafts whose creator died before they were anything are removed by the way.
    """
    found: list[tuple[str, str]] = []
    for entry in directories.entries(root):
        if entry.startswith(NEW + prefix):
            _remove_dead_draft(root / entry)
        elif entry.startswith(GONE + prefix):
            found.append((entry.removeprefix(GONE), entry))
        elif entry.startswith(prefix) and not entry.startswith(".") and directories.is_damaged(root / entry):
            found.append((entry, entry))
    return found


def is_visible(written: Written, directory: Path) -> bool:
    """Whether what /proc says here is about this machine's processes."""
    is_held = directories.is_locked(directory)
    if (utc_now() - written.deadline).total_seconds() > _FORGOTTEN_AFTER_S and not is_held:
        return True
    if written.host != directories.machine_id():
        return False
    # Another container with the same files: its keeper's lock is seen, its processes are not.
    return written.processes == directories.process_namespace() or not is_held


def _state(directory: Path) -> tuple[InstanceState, str]:
    """What a machine is doing."""
    failed = directories.text_of(directory / "failed")
    if failed is not None:
        return InstanceState.FAILED, failed
    record = directories.record(directory)
    if record is not None:
        if not keeper.is_alive(record, directory):
            return InstanceState.FAILED, _why_gone(record, directory)
    elif not directories.is_locked(directory):
        return InstanceState.FAILED, "whoever created it was killed on the way"
    if (directory / "ending").exists():
        return InstanceState.TERMINATING, ""
    return (InstanceState.PROVISIONING if record is None else InstanceState.RUNNING), ""


def _why_gone(record: keeper.Record, directory: Path) -> str:
    """Why a machine has no keeper any more, as far as can be told."""
    if record.boot != keeper.boot_id():
        return "this host was restarted while it ran"
    if keeper.out_of_memory() > record.memory:
        return "its keeper is gone, and this host ran out of memory meanwhile: its kernel may have ended it"
    return f"its keeper was killed ({keeper.last_words(directory)})"


def _remove_dead_draft(draft: Path) -> None:
    with contextlib.suppress(OSError):
        if time.time() - draft.stat().st_mtime > 60 and not directories.is_locked(draft):  # younger: not locked yet
            keeper.remove(draft)
