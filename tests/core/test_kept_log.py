"""A job's output in a file of bounded size."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from prefect_gpu.providers.core.machine import kept_log
from prefect_gpu.providers.core.machine.jobs import Machine
from prefect_gpu.providers.core.machine.kept_log import KeptLog, last
from prefect_gpu.providers.core.models import JobSpec
from tests.fakes.sshd import asyncssh_server

OUTPUT = b"".join(b"%07d\n" % number for number in range(10_000))  # 80,000 bytes


def kept(path: Path, start: int = 0, end: int = len(OUTPUT), chunk: int = 999, **options: object) -> KeptLog:
    """Write the output from where the log is, in chunks."""
    log = KeptLog(path, **options)  # type: ignore[arg-type]
    assert log.position == start
    for at in range(start, end, chunk):
        log.write(OUTPUT[at : min(end, at + chunk)])
    assert log.position == end
    return log


def test_what_fits_is_kept_as_it_is(tmp_path: Path) -> None:
    kept(tmp_path / "log", head_bytes=80_000).finish()
    assert (tmp_path / "log").read_bytes() == OUTPUT


@pytest.mark.parametrize("chunk", [7, 999, 80_000])
def test_beginning_and_end_are_kept_and_what_is_missing_is_said(tmp_path: Path, chunk: int) -> None:
    told: list[str] = []
    log = kept(tmp_path / "log", chunk=chunk, note=told.append, head_bytes=8_000, tail_bytes=16_000)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 24_000
    assert last(tmp_path / "log", 8) == b"0009999\n"
    log.finish()
    head, said, rest = (tmp_path / "log").read_bytes().partition(b"\n... ")
    assert head == OUTPUT[:8_000]
    line, _, tail = rest.partition(b"\n")
    assert line.endswith(
        b"bytes of output are missing here after the first 8,000: 8,000 bytes of a log are kept from its beginning"
    )
    tail = tail[: -len(said + line) - 1]
    assert OUTPUT.endswith(tail)
    assert 8_000 <= len(tail) <= 16_000
    assert int(line.split()[0].replace(b",", b"")) == len(OUTPUT) - 8_000 - len(tail)
    assert [path.name for path in tmp_path.iterdir()] == ["log"]
    assert told == [
        "the log file keeps the first 8,000 bytes of the job's output and the last: 8,000 bytes of a log are kept from its beginning"
    ]


@pytest.mark.parametrize("died_at", [5_000, 8_000, 8_001, 20_000, 60_000])
def test_another_process_goes_on_at_the_right_byte(tmp_path: Path, died_at: int) -> None:
    bounds = {"head_bytes": 8_000, "tail_bytes": 16_000}
    kept(tmp_path / "a" / "log", **bounds).finish()
    kept(tmp_path / "b" / "log", end=died_at, **bounds).close()
    kept(tmp_path / "b" / "log", start=died_at, **bounds).finish()
    one, other = (tmp_path / "a/log").read_bytes(), (tmp_path / "b/log").read_bytes()
    assert (one[:8_000], one[-5_000:-200]) == (other[:8_000], other[-5_000:-200])
    # Whoever attaches once more, to a job that is over, asks for what the file lacks.
    kept(tmp_path / "b" / "log", start=8_000, **bounds).finish()
    assert (tmp_path / "b/log").read_bytes()[-5_000:-200] == one[-5_000:-200]


def test_a_reserve_of_the_disk_stays_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_log, "_LOOK_EVERY", 10_000)
    monkeypatch.setattr(kept_log, "SMALL_TAIL_BYTES", 4_000)
    usage = shutil.disk_usage(tmp_path)
    free = iter([5 * 10**9, 5 * 10**9, *[999_999_999] * 20])
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(total=10**12, free=next(free)))
    told: list[str] = []
    log = kept(tmp_path / "log", note=told.append)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 30_000
    log.finish()
    assert told[0].endswith("only 1.0 GB of the worker's disk are free")
    assert b"only 1.0 GB" in last(tmp_path / "log", 200)


def test_a_job_that_writes_without_end_costs_a_bounded_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_log, "HEAD_BYTES", 1_000_000)
    monkeypatch.setattr(KeptLog.__init__, "__kwdefaults__", {"head_bytes": 1_000_000, "tail_bytes": 500_000})
    notes: list[str] = []
    with asyncssh_server() as server:
        machine = Machine(server.connect, root=str(tmp_path / "root"))
        command = "yes | head -c 20000000; echo the end"
        result = machine.run(JobSpec(id="job", command=command), tmp_path / "kept/job.log", on_link=notes.append)
        machine.close()
    assert result is not None
    assert (result.exit_code, result.log_bytes) == (0, 20_000_008)
    log = tmp_path / "kept/job.log"
    assert log.stat().st_size < 1_600_000
    assert b"y\nthe end\n\n... " in last(log, 300)
    assert notes[0].startswith("the log file keeps the first 1,000,000 bytes")
