"""How a machine is given back: its keeper is told, and where nobody keeps it any more it is ended from here."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path
from typing import Final

from prefect_gpu.providers.local import directory as directories
from prefect_gpu.providers.local import keeper, listing
from prefect_gpu.providers.local.directory import GONE

_END_WITHIN_S: Final = 2.0  # terminate answers after this at the latest, done or not


def end(root: Path, name: str) -> None:
    """End a machine with everything it started and remove its files; or remove a leftover. Returns when done, or after 2 s.

    What is no machine, or not ours, is left alone; a process gets a signal only when it is ours and bears the machine's mark.
    """
    directory = root / name
    if not directories.is_name(name) or not directories.is_trusted(root):
        return
    if name.startswith(GONE):
        if directories.is_ours(directory):
            keeper.remove(directory)
        return
    written = directories.written(directory)
    if written is None and not directories.is_damaged(directory):
        return
    if not directories.mark_ending(directory):
        return
    if written is not None and not listing.is_visible(written, directory):
        return  # its keeper looks for `ending` every few seconds, wherever it is
    gone = directory.with_name(GONE + name)
    until = time.monotonic() + _END_WITHIN_S
    is_told = False
    while (directory.exists() or gone.exists()) and time.monotonic() < until:
        record = directories.record(directory) or directories.record(gone)
        if record is not None and keeper.is_alive(record, directory):
            if not is_told:
                _tell(record, directory)
                is_told = True
        elif record is not None or not directories.is_locked(directory):
            # Nobody keeps it: it was cut off halfway, its keeper was killed, or this host was restarted.
            if keeper.end_marked(directory, within_s=_END_WITHIN_S):
                keeper.remove(gone)
                keeper.remove(directory)
            return
        time.sleep(0.005)


def _tell(record: keeper.Record, directory: Path) -> None:
    """Tell a keeper to end, and wake it if somebody stopped it."""
    with contextlib.suppress(ProcessLookupError):
        try:
            handle = os.pidfd_open(record.pid)
        except (AttributeError, OSError):
            # Before Linux 5.3: the pid may be another's by now, which takes a wrap-around in this very moment.
            os.kill(record.pid, signal.SIGTERM)
            os.kill(record.pid, signal.SIGCONT)
            return
        try:
            if keeper.is_alive(
                record, directory
            ):  # asked again: now the handle keeps the number from being given to another
                signal.pidfd_send_signal(handle, signal.SIGTERM)
                signal.pidfd_send_signal(handle, signal.SIGCONT)
        finally:
            os.close(handle)
