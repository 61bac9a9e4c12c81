"""What stands on the terminal: each record once, the job's output with its colours, one closing line."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect.client.schemas.objects import FlowRun, Log
from prefect.client.schemas.sorting import LogSort
from prefect.states import Completed, Failed, Pending, Running, Scheduled
from rich.console import Console

from prefect_gpu.flows.run.attempt import Attempt
from prefect_gpu.flows.run.record import Record
from prefect_gpu.flows.terminal import follow as following
from prefect_gpu.flows.terminal.follow import Display, NotStarted, Terminal, follow
from prefect_gpu.flows.terminal.messages import NobodyReads, Trouble
from prefect_gpu.flows.terminal.records import PAGE, Records

RUN = uuid4()
T0 = datetime(2026, 1, 1, tzinfo=UTC)


def log(message: str, name: str = "prefect.flow_runs.steps", second: float = 0) -> Log:
    return Log(
        id=uuid4(), name=name, level=20, message=message, timestamp=T0 + timedelta(seconds=second), flow_run_id=RUN
    )


def display(width: int = 80) -> tuple[Display, io.StringIO]:
    out = io.StringIO()
    return Display(Console(file=out, width=width, highlight=False, soft_wrap=True, markup=False, emoji=False)), out


class Api:
    """A server with one run, whose state goes on by one with each look at it."""

    def __init__(self, states: list[Any], logs: list[Log]) -> None:
        self.states, self.logs = states, logs
        self.questions = 0

    def read_flow_run(self, run_id: UUID) -> FlowRun:
        state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        return FlowRun(id=run_id, flow_id=uuid4(), state=state, total_run_time=timedelta(seconds=2.94))

    def read_logs(self, question: Any, limit: int, offset: int, sort: Any) -> list[Log]:
        self.questions += 1
        after = question.timestamp.after_ if question.timestamp else T0 - timedelta(days=1)
        found = [one for one in self.logs if one.timestamp >= after]
        return (found[::-1] if sort is LogSort.TIMESTAMP_DESC else found)[offset : offset + limit]


# --- following --------------------------------------------------------------------------------------------------------


def test_each_record_comes_once_also_over_several_pages() -> None:
    api = Api([Running()], [log(str(number), second=number / 100) for number in range(PAGE * 2 + 5)])
    records = Records(api, RUN)
    assert [one.message for one in records.new()] == [str(number) for number in range(PAGE * 2 + 5)]
    api.logs.append(log("late", second=PAGE / 50))
    assert [one.message for one in records.new()] == ["late"]
    assert list(records.new()) == []


def test_a_record_that_arrives_late_is_not_lost() -> None:
    api = Api([Running()], [log("second", second=1)])
    records = Records(api, RUN)
    assert [one.message for one in records.new()] == ["second"]
    api.logs.insert(0, log("first", second=0.5))
    assert [one.message for one in records.new()] == ["first"]


def test_the_last_lines_come_first_and_what_arrives_later_after_them() -> None:
    api = Api([Running()], [log(f"{number}a\n{number}b\n", "job@3", second=number) for number in range(PAGE + 5)])
    api.logs.append(log("Prefect's own talk", "prefect.flow_runs", second=PAGE + 5))
    records = Records(api, RUN)
    assert [one.message for one in records.last(3)] == [f"{PAGE + 3}b", f"{PAGE + 4}a\n{PAGE + 4}b\n"]
    api.logs.append(log("late", "job@9", second=PAGE + 5.5))
    assert [one.message for one in records.new()] == ["late"]


def test_of_fewer_lines_than_asked_for_all_come() -> None:
    api = Api([Running()], [log("one"), log("two", second=1)])
    assert [one.message for one in Records(api, RUN).last(500)] == ["one", "two"]
    assert list(Records(api, RUN).last(0)) == []


def test_a_run_is_shown_to_its_end() -> None:
    api = Api([Scheduled(), Running(), Completed()], [log("1 offers"), log("42\n", "job@3"), log("6 give back")])
    shown, out = display()
    run = follow(Records(api, RUN), shown, every_s=0)
    assert run.state.is_completed()
    assert out.getvalue() == "1 offers\n  | 42\n6 give back\n"


def test_a_run_that_nobody_picks_up_is_told() -> None:
    with pytest.raises(Trouble, match="No worker picked the run up"):
        follow(Records(Api([Scheduled()], []), RUN), display()[0], every_s=0, pick_up_s=0.1)


def test_a_process_that_starts_slowly_was_picked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "QUIET_S", 0.02)
    began = time.monotonic()
    api = Api([Pending()], [])

    def slow() -> None:
        if time.monotonic() - began > 0.15:
            api.states = [Completed()]

    assert follow(Records(api, RUN), display()[0], every_s=0, pick_up_s=0.05, check=slow).state.is_completed()
    with pytest.raises(
        NotStarted, match=r"^A worker took the run, and started no process for it in 0 s: see its log\.$"
    ):
        follow(Records(Api([Pending()], []), RUN), display()[0], every_s=0, start_s=0.05)


def test_a_worker_that_ended_is_noticed_while_following() -> None:
    def ended() -> None:
        raise Trouble("The worker ended")

    with pytest.raises(Trouble, match="The worker ended"):
        follow(Records(Api([Running()], []), RUN), display()[0], every_s=0, check=ended)


def test_what_prefect_says_about_the_run_is_not_shown() -> None:
    shown, out = display()
    shown.record(log("Beginning flow run 'x'", "prefect.flow_runs"))
    shown.record(log("Finished in state Completed()", "prefect.task_runs"))
    assert out.getvalue() == ""


def test_the_jobs_output_is_shown_as_it_is_at_any_width() -> None:
    shown, out = display(width=20)
    line = "\x1b[31mred\x1b[0m " + "x" * 100 + " [bold] :smile:"
    shown.record(log(f"{line}\n\nlast", "job@200"))
    assert out.getvalue() == f"  | {line}\n  | \n  | last\n"


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("\x1b[1;38;5;9mred", "\x1b[1;38;5;9mred\x1b[0m"),  # a colour ends with its line
        ("\x1b[31mred\x1b[m", "\x1b[31mred\x1b[m"),
        ("a\tb", "a\tb"),
        ("\x1b]52;c;cm0gLXJmIC8=\x07", "^[]52;c;cm0gLXJmIC8=^G"),  # the clipboard
        ("\x1b[2J\x1b[H", "^[[2J^[[H"),
        ("a\u061cb", "a\\u061cb"),  # it turns the direction of what follows
        ("\x1b[6n", "^[[6n"),  # a question that the terminal would answer as if it were typed
        ("\x9b2J", "\\u009b2J"),  # the same in one byte
        ("\x1bP$q\x1b\\", "^[P$q^[\\"),
        ("\x00\x08\x7f", "^@^H^?"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        (" 10%\r 50%\r100%\r", "100%"),  # a progress line, as one would see it
        ("safe\rrm -rf", "rm -rf"),
        ("\x1b[31\x1b[2Jm", "^[[31^[[2Jm"),
        ("\x1b[" + "1;" * 100 + "m", "^[[" + "1;" * 100 + "m"),
    ],
)
def test_a_job_colours_its_output_and_moves_nothing_else_on_the_terminal(said: str, shown: str) -> None:
    display_, out = display()
    display_.record(log(said, "job@3"))
    assert out.getvalue() == f"  | {shown}\n"


def test_what_a_vendor_says_in_a_step_is_text() -> None:
    shown, out = display()
    shown.record(log("1 offers     aws: \x1b[31mno\x1b]0;title\x07"))
    assert out.getvalue() == "1 offers     aws: no^[]0;title^G\n"


def test_a_terminal_that_knows_no_utf_8_shows_what_it_knows() -> None:
    program = (
        "import signal, sys; from prefect_gpu.flows.terminal import __main__ as main, stopping;"
        "from prefect_gpu.flows.terminal.follow import Display;"
        "stopping.down = lambda **_: Display()._output('\u2588\u2588 50%') or 0; sys.exit(main.main(['down']))"
    )
    for encoding in ("ascii", "latin-1"):
        ran = subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"},
            capture_output=True,
            check=False,
        )
        assert ran.returncode == 0, ran.stderr
        assert ran.stdout == b"  | \\u2588\\u2588 50%\n"


def test_a_step_stays_one_line_on_a_narrow_terminal() -> None:
    shown, out = display(width=30)
    text = "3 create     pg-abcdefghijklmnopqrstuvwxyz0123456789abc, lease until 10:17    0.2 s"
    shown.record(log(text))
    assert out.getvalue() == text + "\n"


def attempt(**changes: Any) -> Attempt:
    given = {
        "attempt": 0,
        "name": "pg-x",
        "provider": "local",
        "account": "default",
        "account_id": "me",
        "scope": "here",
        "machine": "this computer",
        "gpu": "none",
        "spot": False,
        "price": 0.0,
        "ordered_at": T0,
    }
    return Attempt.model_validate({**given, **changes})


def closing(state: Any, *attempts: Attempt) -> str:
    shown, out = display()
    run = FlowRun(id=RUN, flow_id=uuid4(), state=state, total_run_time=timedelta(seconds=2.94))
    shown.closing(run, Record(RUN, list(attempts)))
    return out.getvalue()


def test_the_closing_line_tells_time_cost_and_what_is_left() -> None:
    gone = attempt(outcome="gone", gone_at=T0, cost=13.61)
    assert closing(Completed(), gone) == "\nCompleted  2.9 s   cost $13.61   instances left behind: 0\n"


def test_the_closing_line_counts_what_may_still_cost() -> None:
    assert "instances left behind: 1" in closing(Failed(message="x"), attempt(outcome="owed"))


def test_what_went_wrong_stands_above_the_closing_line() -> None:
    text = closing(Failed(message="No H100:8 under $20/h. Cheapest $23.12 lambdalabs.\nTraceback: ..."))
    assert text.splitlines()[1] == "No H100:8 under $20/h. Cheapest $23.12 lambdalabs."
    assert text.splitlines()[2].startswith("Failed  2.9 s")
    assert "Traceback" not in text


class Unread(io.StringIO):
    """What a closed pipe or a closed terminal is to who writes; counts how often it was tried."""

    def __init__(self, trouble: OSError) -> None:
        super().__init__()
        self.trouble, self.tries = trouble, 0

    def write(self, _: str) -> int:
        self.tries += 1
        raise self.trouble


GONE = [BrokenPipeError(errno.EPIPE, "Broken pipe"), OSError(errno.EIO, "Input/output error")]


@pytest.mark.parametrize("trouble", GONE, ids=["pipe", "terminal"])
@pytest.mark.parametrize("name", ["prefect.flow_runs.steps", "job@3"])
def test_that_nobody_reads_is_told_once_and_then_nothing_is_written(trouble: OSError, name: str) -> None:
    out = Unread(trouble)
    shown = Display(Terminal(file=out))
    with pytest.raises(NobodyReads):
        shown.record(log("42", name))
    tries = out.tries
    shown.record(log("42", name))
    shown.line("more")
    assert out.tries == tries
