"""A job's output in Prefect's log: whole lines, bounded, and no burden when the API is down."""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from prefect.client.base import PrefectHttpxSyncClient
from prefect.client.schemas.sorting import LogSort
from prefect.settings import get_current_settings

from prefect_gpu.providers.core.renting import job_log
from prefect_gpu.providers.core.renting.job_log import JobLog, shown_until
from prefect_gpu.providers.core.renting.shown import no_repeats
from tests.stack import wait_until

RUN = UUID(int=7)


class Api:
    """Stands in for Prefect's client, keeps what was posted, and can be down."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []
        self.requests: list[int] = []
        self.is_down = False
        self.takes: list[int] = []
        self.stores_late: list[tuple[float, float]] = []
        self.arrived = threading.Event()

    def create_logs(self, logs: list[dict[str, Any]]) -> None:
        if self.is_down:
            raise ConnectionError("the API is down")
        if self.stores_late:  # the sender gives up after the one time, and the records come the other later
            gives_up_s, later_s = self.stores_late.pop(0)
            time.sleep(gives_up_s)
            threading.Timer(later_s, self.records.extend, [logs]).start()
            raise httpx.ReadTimeout("the server is busy")
        if self.takes:  # so many of the next ones, and its answer is lost
            self.records += logs[: self.takes.pop(0)]
            raise httpx.ReadError("the server was killed")
        self.records += logs
        self.requests.append(len(logs))
        self.arrived.set()

    def read_logs(self, log_filter: Any, limit: int, offset: int, sort: LogSort) -> list[Any]:
        assert sort is LogSort.TIMESTAMP_DESC
        since = log_filter.timestamp.after_.isoformat() if log_filter.timestamp is not None else ""
        mine = [record for record in self.records if record["timestamp"] >= since]
        newest_first = sorted(mine, key=lambda record: record["timestamp"], reverse=True)
        return [SimpleNamespace(**record) for record in newest_first[offset : offset + limit]]

    @property
    def messages(self) -> list[str]:
        return [record["message"] for record in self.records]

    @contextlib.contextmanager
    def client(self) -> Iterator[Api]:
        yield self


@pytest.fixture
def api() -> Api:
    return Api()


@pytest.fixture
def show(api: Api, tmp_path: Path) -> Iterator[Callable[..., JobLog]]:
    opened: list[JobLog] = []

    def start(**options: Any) -> JobLog:
        opened.append(JobLog(tmp_path / "log", RUN, client=api.client, **options))
        return opened[-1]

    yield start
    for log in opened:
        log.close(0)


def write(log: JobLog, path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        offset = file.tell()
        file.write(data)
    log.output(offset, data)


def test_a_line_is_posted_at_once_with_the_offset_in_its_logger(
    api: Api, show: Callable[..., JobLog], tmp_path: Path
) -> None:
    log = show()
    began = time.monotonic()
    write(log, tmp_path / "log", b"hello\n")
    assert api.arrived.wait(2)
    assert time.monotonic() - began < 0.2
    assert log.close() == 0
    (record,) = api.records
    assert (record["name"], record["message"], record["level"]) == ("job@6", "hello", 20)
    assert (record["flow_run_id"], record["task_run_id"]) == (str(RUN), None)


def test_records_are_whole_lines_of_at_most_16_kb_in_order(
    api: Api, show: Callable[..., JobLog], tmp_path: Path
) -> None:
    log = show()
    lines = "".join(f"{n} {'x' * (n % 300)}\n" for n in range(20_000))
    for at in range(0, len(lines), 70_001):
        write(log, tmp_path / "log", lines[at : at + 70_001].encode())
    assert log.close() == 0
    assert "\n".join(api.messages) == lines.removesuffix("\n")
    assert max(map(len, api.messages)) <= 16_000
    assert max(api.requests) <= 50
    stamps = [record["timestamp"] for record in api.records]
    assert stamps == sorted(set(stamps))
    assert api.records[-1]["name"] == f"job@{len(lines)}"


def test_a_line_longer_than_a_record_is_cut_between_characters(
    api: Api, show: Callable[..., JobLog], tmp_path: Path
) -> None:
    log = show()
    text = "aü€𝄞" * 10_000
    write(log, tmp_path / "log", text.encode())
    assert log.close() == 0
    assert "".join(api.messages) == text


def test_bytes_that_are_no_text_are_replaced(api: Api, show: Callable[..., JobLog], tmp_path: Path) -> None:
    log = show()
    write(log, tmp_path / "log", b"a\0b\xffc\xe2\x82\n\xe2\n")
    assert log.close() == 0
    assert "\n".join(api.messages) == "a\ufffdb\ufffdc\ufffd\n\ufffd"


def test_a_progress_bar_is_shown_as_on_a_terminal(api: Api, show: Callable[..., JobLog], tmp_path: Path) -> None:
    log = show()
    write(log, tmp_path / "log", b"dos\r\n 1%\r 50%\r100%\n")
    assert log.close() == 0
    assert "\n".join(api.messages) == "dos\n100%"


def test_a_line_that_does_not_end_is_shown_after_a_second(
    api: Api, show: Callable[..., JobLog], tmp_path: Path
) -> None:
    log = show()
    write(log, tmp_path / "log", b"password: ")
    assert not api.arrived.wait(0.5)
    assert api.arrived.wait(2)
    assert api.messages == ["password: "]
    write(log, tmp_path / "log", b"ok\n")
    log.close()
    assert api.messages == ["password: ", "ok"]


def test_past_the_cap_it_says_so_once_and_shows_the_end(api: Api, show: Callable[..., JobLog], tmp_path: Path) -> None:
    log = show(cap_bytes=100_000)
    lines = "".join(f"line {n}\n" for n in range(100_000))
    write(log, tmp_path / "log", lines.encode())
    assert log.close() == 0
    shown = [message for message in api.messages if not message.startswith("...")]
    assert len("\n".join(shown)) <= 100_000
    assert lines.startswith("\n".join(shown))
    said = [message for message in api.messages if message.startswith("...")]
    assert said[0] == "... cut here after 100,000 bytes: the whole output is in the log file"
    assert len(said) == 2
    assert said[1].startswith(f"... the end of {len(lines):,} bytes of output:\nline ")
    assert said[1].endswith("line 99999")
    assert log.cut_at == 100_000


def test_a_busy_job_s_log_says_at_once_that_it_was_cut(
    api: Api, show: Callable[..., JobLog], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cap is almost always inside a line, whose end never comes, and the job is never silent."""
    monkeypatch.setattr(job_log, "_LONGEST_PAUSE_S", 0.05)
    log = show(cap_bytes=1_000)
    began = time.monotonic()
    while (is_silent := not any("cut here" in text for text in api.messages)) and time.monotonic() - began < 3:
        write(log, tmp_path / "log", b"x" * 32 + b"\n")
        time.sleep(0.005)
    assert not is_silent
    log.close()
    lines = [text for text in api.messages if not text.startswith("...")]
    assert "\n".join(lines) == (tmp_path / "log").read_text()[:1_000]


def test_past_the_cap_one_record_a_minute_says_how_much_there_is(
    api: Api, show: Callable[..., JobLog], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_log, "_PROGRESS_S", 0.5)
    monkeypatch.setattr(job_log, "_LONGEST_PAUSE_S", 0.05)
    log = show(cap_bytes=10)
    write(log, tmp_path / "log", b"123456789\n" + b"x" * 20)
    time.sleep(1.4)
    log.close()
    assert api.messages[1:-1].count("... 30 bytes of output in the log file so far") == 2


def test_an_api_that_is_down_holds_up_nothing_and_gets_all_when_it_is_back(
    api: Api, show: Callable[..., JobLog], tmp_path: Path
) -> None:
    api.is_down = True
    log = show()
    began = time.monotonic()
    for number in range(1000):
        write(log, tmp_path / "log", f"{number}\n".encode() * 100)
    assert time.monotonic() - began < 1
    time.sleep(0.3)
    api.is_down = False
    assert log.close() == 0
    assert "\n".join(api.messages).split("\n") == [str(number) for number in range(1000) for _ in range(100)]


def test_an_api_that_stays_down_ends_in_one_sentence_within_the_time_given(
    api: Api, show: Callable[..., JobLog], tmp_path: Path
) -> None:
    api.is_down = True
    notes: list[str] = []
    log = show(note=notes.append)
    write(log, tmp_path / "log", b"never seen\n")
    began = time.monotonic()
    assert log.close(0.3) == 11
    assert time.monotonic() - began < 1
    assert log.unshown == 11
    assert notes == ["Prefect took no more log records: the last 11 bytes of output are in the log file"]


def test_a_resumed_run_goes_on_where_the_log_ends(api: Api, show: Callable[..., JobLog], tmp_path: Path) -> None:
    first = show()
    write(first, tmp_path / "log", b"one\ntwo\n")
    first.close()
    api.create_logs([{"name": "prefect.flow_runs", "message": "resumed", "timestamp": "9999"}])
    assert shown_until(RUN, api.client) == 8
    again = show(start=8)
    again.output(0, b"one\ntwo\n")  # the log file comes from the machine again, from its beginning
    write(again, tmp_path / "log", b"three\n")
    again.close()
    assert [message for message in api.messages if message != "resumed"] == ["one\ntwo", "three"]
    assert shown_until(uuid4(), Api().client) == 0


def test_a_new_job_of_a_run_that_is_executed_again_is_shown_from_its_first_line(
    api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What an earlier execution showed was another job's output."""
    runtime = SimpleNamespace(get_id=lambda: str(RUN), get_run_count=lambda: 2)
    monkeypatch.setattr(job_log, "flow_run", runtime)
    monkeypatch.setattr(job_log, "task_run", SimpleNamespace(get_id=lambda: None))
    monkeypatch.setattr(job_log, "logger", lambda: logging.getLogger("tests"))
    monkeypatch.setattr(job_log, "JobLog", functools.partial(JobLog, client=api.client))
    monkeypatch.setattr(job_log, "shown_until", functools.partial(shown_until, client=api.client))
    api.create_logs([{"name": "job@8", "message": "one\ntwo", "timestamp": "2020"}])
    with job_log.posting(tmp_path / "log") as log:
        write(log, tmp_path / "log", b"three\n")
    assert api.messages == ["one\ntwo", "three"]


@pytest.mark.parametrize(("is_new", "shown"), [(True, ["three\nfour"]), (False, ["four"])])
def test_only_a_job_that_was_attached_to_goes_on_where_the_log_ends(
    api: Api, show: Callable[..., JobLog], tmp_path: Path, is_new: bool, shown: list[str]
) -> None:
    api.create_logs([{"name": "job@6", "message": "three", "timestamp": "2020"}])
    log = show()
    log.started(is_new)
    write(log, tmp_path / "log", b"three\nfour\n")
    log.close()
    assert api.messages[1:] == shown


def test_the_output_of_a_run_s_next_machine_is_told_apart_from_the_last_one_s(
    api: Api, show: Callable[..., JobLog], tmp_path: Path
) -> None:
    """A process that died before it showed any of it would else be followed by one that goes on where the other job's log ended."""
    api.create_logs([{"name": "job@5000", "message": "of the machine before", "timestamp": "2020"}])
    log = show(attempt=1)
    log.started(is_new=False)
    write(log, tmp_path / "log", b"three\n")
    assert log.close() == 0
    assert [(record["name"], record["message"]) for record in api.records[1:]] == [("job@6+1", "three")]
    assert shown_until(RUN, api.client) == 5000
    assert shown_until(RUN, api.client, attempt=1) == 6
    assert shown_until(RUN, api.client, attempt=1, tries=2) == 0


@pytest.mark.parametrize("in_time", [True, False])
def test_past_the_cap_an_attached_log_says_nothing_twice(
    api: Api, show: Callable[..., JobLog], tmp_path: Path, in_time: bool
) -> None:
    """Whether the process before it came to say how the output ends, or not."""
    lines = "".join(f"line {n}\n" for n in range(10_000))
    first = show(cap_bytes=1_000)
    write(first, tmp_path / "log", lines.encode())
    wait_until(lambda: any("cut here" in text for text in api.messages), 5, "the cut")
    if in_time:
        first.close()
    else:
        first._still_owns = lambda: False
        first.close()
    again = show(cap_bytes=1_000)
    again.started(is_new=False)
    again.output(len(lines), b"")
    assert again.close() == 0
    assert [text.partition(":")[0] for text in api.messages if text.startswith("...")] == [
        "... cut here after 1,000 bytes",
        f"... the end of {len(lines):,} bytes of output",
    ]
    assert "\n".join(text for text in api.messages if not text.startswith("...")) == lines[:1_000]


def test_what_another_process_shows_is_not_missing(api: Api, show: Callable[..., JobLog], tmp_path: Path) -> None:
    notes: list[str] = []
    log = show(note=notes.append, still_owns=lambda: False)
    write(log, tmp_path / "log", b"its successor's\n")
    assert log.close() == 0
    assert (api.messages, notes) == ([], [])


@pytest.mark.parametrize("takes", [[0], [1], [2], [50], [50, 0, 1, 50]])
def test_what_was_taken_though_its_answer_was_lost_is_not_sent_again(
    api: Api, show: Callable[..., JobLog], tmp_path: Path, takes: list[int]
) -> None:
    """Prefect's server was killed between the two."""
    api.create_logs([{"name": "job@500000", "message": "of an earlier job of this run", "timestamp": "2020"}])
    api.takes = takes
    log = show()
    lines = "".join(f"{n} {'x' * 90}\n" for n in range(2_000))
    for at in range(0, len(lines), 70_001):
        write(log, tmp_path / "log", lines[at : at + 70_001].encode())
        time.sleep(0.1)
    assert log.close() == 0
    assert "\n".join(api.messages[1:]) == lines.removesuffix("\n")
    assert api.takes == []


@pytest.mark.parametrize(("gives_up_s", "later_s"), [(0.0, 0.6), (1.5, 1.3)])
def test_what_a_busy_server_stores_after_the_sender_gave_up_is_not_sent_again(
    api: Api, show: Callable[..., JobLog], tmp_path: Path, gives_up_s: float, later_s: float
) -> None:
    api.stores_late = [(gives_up_s, later_s)]
    log = show()
    write(log, tmp_path / "log", b"one\ntwo\n")
    assert log.close(10) == 0
    assert api.messages == ["one\ntwo"]


def test_what_a_dead_process_sent_last_is_waited_for(api: Api, show: Callable[..., JobLog], tmp_path: Path) -> None:
    late = {"name": "job@8", "message": "one\ntwo", "timestamp": "2020"}
    log = show()
    log.started(is_new=False)
    threading.Timer(0.6, api.records.append, [late]).start()
    write(log, tmp_path / "log", b"one\ntwo\nthree\n")
    assert log.close(10) == 0
    assert api.messages == ["one\ntwo", "three"]


def test_what_is_not_known_when_the_log_is_closed_is_said_to_be_missing(
    api: Api, show: Callable[..., JobLog], tmp_path: Path
) -> None:
    api.stores_late = [(0.0, 0.3)]
    notes: list[str] = []
    log = show(note=notes.append)
    write(log, tmp_path / "log", b"one\ntwo\n")
    began = time.monotonic()
    assert log.close(0.5) == 8
    assert time.monotonic() - began < 1.5
    assert "the last 8 bytes" in notes[0]
    assert api.messages == ["one\ntwo"]


def test_a_process_that_was_stopped_right_before_it_posts_asks_whose_the_run_is(
    api: Api, show: Callable[..., JobLog], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_mine = [True]
    original = JobLog._post

    def post(self: JobLog, *arguments: Any, **named: Any) -> bool:
        is_mine[0] = self._grown_to <= 4  # for so long it was stopped here that another process shows the rest
        return original(self, *arguments, **named)

    monkeypatch.setattr(JobLog, "_post", post)
    log = show(still_owns=lambda: is_mine[0])
    write(log, tmp_path / "log", b"one\n")
    assert api.arrived.wait(2)
    write(log, tmp_path / "log", b"two\n")
    assert log.close() == 0
    assert api.messages == ["one"]


def test_prefects_client_sends_a_request_once_where_it_is_told_so() -> None:
    sent: list[str] = []

    def lost(request: httpx.Request) -> httpx.Response:
        sent.append(request.url.path)
        raise httpx.ReadError("the server was killed")

    with PrefectHttpxSyncClient(transport=httpx.MockTransport(lost), base_url="http://prefect") as client:
        with no_repeats(), pytest.raises(httpx.ReadError):
            client.post("/logs/", json=[])
        assert sent == ["/logs/"]
        assert get_current_settings().client.max_retries > 0


def test_a_chatty_job_costs_few_requests(api: Api, show: Callable[..., JobLog], tmp_path: Path) -> None:
    log = show()
    ends = time.monotonic() + 3
    while time.monotonic() < ends:
        write(log, tmp_path / "log", b"tick\n")
        time.sleep(0.005)
    log.close()
    assert len(api.requests) < 12
