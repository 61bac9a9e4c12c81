"""A job's output where no flow run has a log for it."""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest

from prefect_gpu.providers.core.renting import job_log, plain_log


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "prefect_gpu.job"]


def test_outside_of_any_run_a_job_s_lines_go_to_python_s_logging(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "prefect_gpu.job"), job_log.posting(Path("job.log")) as log:
        log.started(is_new=True)
        log.output(0, b"one\ntw")
        log.output(6, b"o\nthr")
        log.output(11, b"ee")
        plain_log.logger().warning("said beside it")
    assert lines(caplog) == ["one", "two", "said beside it", "three"]
    assert log.cut_at is None


def test_a_job_that_writes_without_end_is_cut_and_told_so(caplog: pytest.LogCaptureFixture) -> None:
    log = plain_log.PlainLog(Path("/kept/job.log"))
    with caplog.at_level(logging.INFO, "prefect_gpu.job"):
        for _ in range(40):
            log.output(0, b"x" * 50_000 + b"\n")
            log.output(0, b"y" * 50_000)
        log.close()
    said = lines(caplog)
    assert sum(map(len, said)) < 2 * plain_log.LIMIT_BYTES
    assert said[-1] == "... cut here: the whole output is in /kept/job.log"
    assert log.cut_at is not None


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        (b"\x1b[31mred\x1b[0m\tand\nplain", "\x1b[31mred\x1b[0m\tand\nplain"),
        (b"\x1b]52;c;cm0gLXJmIC8=\x07", "\u241b]52;c;cm0gLXJmIC8=\u2407"),  # the clipboard
        (b"\x1bc\x1b[2J\x1b[31\x1b[6n", "\u241bc\u241b[2J\u241b[31\u241b[6n"),
        (b"\xc2\x9b2J \x7f \x08 \x00", "\ufffd2J \u2421 \u2408 \ufffd"),
        ("abc \u202e txt.exe \u061c".encode(), "abc \ufffd txt.exe \ufffd"),
        (b"10 %\r\x1b[2K20 %\r\nend\n", "20 %\nend"),
        (b"\x1b[?25l\x1b[Kabc\x1b\x1b[K[2J", "abc\u241b[2J"),  # what is left out puts nothing together
    ],
)
def test_what_a_job_writes_commands_no_terminal_that_shows_the_log(
    caplog: pytest.LogCaptureFixture, written: bytes, shown: str
) -> None:
    """`prefect flow-run logs` and `prefect deployment run --watch` write a record as it stands."""
    assert plain_log.readable(written) == shown
    assert len(shown) <= len(written)  # a record has a limit
    with caplog.at_level(logging.INFO, "prefect_gpu.job"):
        log = plain_log.PlainLog(Path("job.log"))
        log.output(0, written)
        log.close()
    assert "\n".join(lines(caplog)) == shown


def test_a_run_s_log_gets_it_so_too(tmp_path: Path) -> None:
    posted: list[dict[str, object]] = []
    path = tmp_path / "job.log"
    path.write_bytes(b"\x1bc\x1b[32mgreen\x1b[m\n")
    client: Any = SimpleNamespace(create_logs=posted.extend, read_logs=None)
    log = job_log.JobLog(path, uuid4(), client=lambda: contextlib.nullcontext(client))
    log.output(0, path.read_bytes())
    log.close()
    assert [record["message"] for record in posted] == ["\u241bc\x1b[32mgreen\x1b[m"]
