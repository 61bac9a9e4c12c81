"""A job's output where no flow run has a log for it: line by line to the logger `prefect_gpu.job`, up to a limit."""

from __future__ import annotations

import contextlib
import logging
import re
from pathlib import Path
from typing import Any, Final

from prefect.exceptions import MissingContextError
from prefect.logging import get_run_logger
from prefect.logging.handlers import APILogHandler
from prefect.runtime import flow_run

LIMIT_BYTES: Final = 1_000_000
RECORD_BYTES: Final = 16_000  # a character is at most one byte longer when decoded, and Prefect Cloud's limit is 25,000
# Colours, and nothing else that a terminal obeys: whoever shows a log (Prefect's own commands do) writes it as it stands.
_COMMANDS: Final = re.compile(
    r"(\x1b\[[0-9;:]{0,60}m)|\x1b\[(?:[0-2]?K|\?25[hl])|[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]"
)
_log = logging.getLogger("prefect_gpu.job")


def logger() -> logging.Logger | logging.LoggerAdapter[Any]:
    """The logger of the run around this call, or a plain one where there is none."""
    with contextlib.suppress(MissingContextError):
        # A task that is called outside of a flow has a logger, and no log: Prefect warns at each line that it cannot keep.
        if flow_run.get_id() is not None:
            return get_run_logger()
    return _log


def flush() -> None:
    """Send what the flow has logged so far, so that what is posted directly does not overtake it."""
    for handler in logging.getLogger("prefect.flow_runs").handlers:
        if isinstance(handler, APILogHandler):
            handler.flush()


def told_in_the_log(what: str, seconds: float) -> None:
    """What is waited for, and for how long so far."""
    logger().info("%s, %.0f s so far", what, seconds)


def readable(data: bytes) -> str:
    """A job's output as it can stand in a log: colours stay, whatever else would command a terminal is one sign that shows it.

    Of a line that overwrites itself what would stay on a terminal; no longer than it came, and without the NUL that PostgreSQL stores in no text.
    """
    text = data.decode(errors="replace").removesuffix("\n")
    if "\r" in text:
        text = "\n".join(line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n"))
    return _COMMANDS.sub(_shown, text)


def piece_of(data: bytes, *, takes_partial: bool) -> bytes:
    """As much of `data`, which is at most RECORD_BYTES, as makes a record: whole lines, or a piece of a line that is longer than a record or overdue."""
    end = data.rfind(b"\n") + 1
    if end:
        return data[:end]
    if len(data) < RECORD_BYTES and not takes_partial:
        return b""
    for back in range(1, min(4, len(data)) + 1):  # do not cut a character in two
        lead = data[-back]
        if lead >= 0xC0:
            width = 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4
            return data[:-back] or data if back < width else data
        if lead < 0x80:
            break
    return data


def _shown(match: re.Match[str]) -> str:
    if len(match[0]) > 1:  # to erase a line or to hide the cursor, as progress bars do, means nothing in a log
        return match[1] or ""
    code = ord(match[0])
    return chr(0x2400 + code) if 0 < code < 0x20 else "\u2421" if code == 0x7F else "\ufffd"


class PlainLog:
    """What `JobLog` is to a flow run."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rest = b""
        self._shown = 0
        self.cut_at: int | None = None
        self.unshown = 0

    def started(self, is_new: bool) -> None:
        """Before any output; a job that was attached to is shown from its beginning."""

    def output(self, _offset: int, data: bytes) -> None:
        """The log file has grown."""
        if self.cut_at is not None:
            return
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > RECORD_BYTES:
            lines.append(self._rest)
            self._rest = b""
        for line in lines:
            if self._shown >= LIMIT_BYTES:
                self.cut_at = self._shown
                _log.warning("... cut here: the whole output is in %s", self._path)
                return
            self._shown += len(line) + 1
            _log.info("%s", readable(line[:RECORD_BYTES]))

    def close(self) -> None:
        """Show the last line, which has no end."""
        if self._rest and self.cut_at is None:
            _log.info("%s", readable(self._rest))
