"""What stands on the terminal: each record once, the job's output as it is, one closing line, one sentence for trouble."""

from __future__ import annotations

import errno
import io
import time
from collections.abc import Callable
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from prefect.blocks.core import Block
from prefect.client.schemas.objects import FlowRun, Log
from prefect.exceptions import PrefectHTTPStatusError
from prefect.states import Cancelled, Completed, Failed, Pending, Running, Scheduled
from pydantic import BaseModel, Field, SecretStr
from rich.console import Console

from flows import connect as connecting
from flows import console, overview
from flows import follow as following
from flows.console import job_parameters
from flows.environment import Place, what_is_left
from flows.follow import PAGE, Display, NotStarted, Records, Terminal, follow
from flows.overview import Row
from flows.record import Attempt, Record
from flows.terminal import NobodyReads, Trouble
from providers.core.errors import AuthFailed

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
        del sort
        self.questions += 1
        after = question.timestamp.after_ if question.timestamp else T0 - timedelta(days=1)
        return [one for one in self.logs if one.timestamp >= after][offset : offset + limit]


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


def test_a_run_is_shown_to_its_end() -> None:
    api = Api([Scheduled(), Running(), Completed()], [log("1 offers"), log("42\n", "job@3"), log("6 give back")])
    shown, out = display()
    run = follow(api, RUN, shown, every_s=0)
    assert run.state.is_completed()
    assert out.getvalue() == "1 offers\n  | 42\n6 give back\n"


def test_a_run_that_nobody_picks_up_is_told() -> None:
    with pytest.raises(Trouble, match="No worker picked the run up"):
        follow(Api([Scheduled()], []), RUN, display()[0], every_s=0, pick_up_s=0.1)


def test_a_process_that_starts_slowly_was_picked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "QUIET_S", 0.02)
    began = time.monotonic()
    api = Api([Pending()], [])

    def slow() -> None:
        if time.monotonic() - began > 0.15:
            api.states = [Completed()]

    assert follow(api, RUN, display()[0], every_s=0, pick_up_s=0.05, check=slow).state.is_completed()
    with pytest.raises(
        NotStarted, match=r"^A worker took the run, and started no process for it in 0 s: see its log\.$"
    ):
        follow(Api([Pending()], []), RUN, display()[0], every_s=0, start_s=0.05)


def test_a_worker_that_ended_is_noticed_while_following() -> None:
    def ended() -> None:
        raise Trouble("The worker ended")

    with pytest.raises(Trouble, match="The worker ended"):
        follow(Api([Running()], []), RUN, display()[0], every_s=0, check=ended)


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


# --- make run: the run does not outlive it ------------------------------------------------------------------------------


class Server(Api):
    """The same with what `make run` does to the run."""

    def __init__(self, states: list[Any], logs: list[Log]) -> None:
        super().__init__(states, logs)
        self.cancelled = 0
        self.read_trouble: list[BaseException] = []
        self.create_trouble: list[BaseException] = []
        self.keys: list[str] = []

    def create_flow_run_from_deployment(self, *_: Any, idempotency_key: str, **__: Any) -> FlowRun:
        self.keys.append(idempotency_key)
        if self.create_trouble:
            raise self.create_trouble.pop()
        return FlowRun(id=RUN, name="brave-otter", flow_id=uuid4())

    def read_flow_run(self, run_id: UUID) -> FlowRun:
        if self.read_trouble and len(self.states) == 1:
            raise self.read_trouble.pop()
        return super().read_flow_run(run_id)

    def set_flow_run_state(self, _: UUID, state: Any) -> None:
        assert state.is_cancelling()
        self.cancelled += 1
        self.states = [Cancelled()]


MakeRun = Callable[..., int]


@pytest.fixture
def place() -> Place:
    """A configured server."""
    return Place("http://127.0.0.1:1/api", Path(), is_own=False)


@pytest.fixture
def make_run(monkeypatch: pytest.MonkeyPatch, place: Place) -> MakeRun:
    """`make run` at a server, on this terminal, with a worker that was started here or somebody else's."""

    def run(server: Server, shown: Display, *, works_here: bool = False) -> int:
        def soon(*what: Any, **how: Any) -> FlowRun:
            return follow(*what, **{**how, "every_s": 0, "pick_up_s": 0.05})

        place.started = [SimpleNamespace(find=lambda: True)] if works_here else []  # type: ignore[list-item]
        monkeypatch.setattr(console, "client_of", lambda _: nullcontext(server))
        monkeypatch.setattr(console, "provision_deployment", lambda _: uuid4())
        monkeypatch.setattr(console, "has_online_worker", lambda _: True)
        monkeypatch.setattr(console, "Display", lambda: shown)
        monkeypatch.setattr(console, "follow", soon)
        monkeypatch.setattr(following, "QUIET_S", 0.02)
        monkeypatch.setattr(Record, "read", lambda _: Record(RUN))
        return console.run(place)

    return run


@pytest.mark.parametrize("trouble", GONE, ids=["pipe", "terminal"])
def test_make_run_whose_output_nobody_reads_any_more_cancels_and_sees_the_end(
    make_run: MakeRun, place: Place, trouble: OSError
) -> None:
    server = Server([Running()], [log("1 offers")])
    code = make_run(server, Display(Terminal(file=Unread(trouble))))
    assert (code, server.cancelled, place.run_id) == (130, 1, None)


@pytest.mark.parametrize("trouble", [KeyboardInterrupt(), httpx.ReadTimeout("no answer")])
def test_a_run_whose_making_was_cut_off_does_not_buy_later(make_run: MakeRun, trouble: BaseException) -> None:
    server = Server([Scheduled()], [])
    server.create_trouble = [trouble]
    with pytest.raises(type(trouble)):
        make_run(server, display()[0])
    assert server.cancelled == 1
    assert len(server.keys) == 2
    assert len(set(server.keys)) == 1


def test_ctrl_c_cancels_also_where_it_ended_who_reads(make_run: MakeRun, place: Place) -> None:  # make run | tee log
    server = Server([Running(), Running()], [])
    server.read_trouble = [KeyboardInterrupt()]
    code = make_run(server, Display(Terminal(file=Unread(GONE[0]))))
    assert (code, server.cancelled, place.run_id) == (130, 1, None)


def test_a_second_ctrl_c_leaves_a_run_that_is_not_known_to_be_over(make_run: MakeRun, place: Place) -> None:
    server = Server([Running(), Running()], [])
    server.read_trouble = [KeyboardInterrupt(), KeyboardInterrupt()]
    with pytest.raises(KeyboardInterrupt):
        make_run(server, display()[0])
    assert server.cancelled == 1
    assert what_is_left(place) == f" before the run {RUN} was seen to end: `make reap` gives back what it leaves."


def test_a_run_that_nobody_picks_up_does_not_buy_later(make_run: MakeRun, place: Place) -> None:
    server = Server([Scheduled()], [])
    with pytest.raises(Trouble, match=r"^No worker picked the run up in 0 s: .*\? The run was cancelled\.$"):
        make_run(server, display()[0])
    assert (server.cancelled, place.run_id) == (1, None)


def test_a_connection_lost_before_the_run_runs_cancels_it(make_run: MakeRun) -> None:
    server = Server([Scheduled()], [])
    server.read_trouble = [httpx.ConnectError("refused")]
    with pytest.raises(
        Trouble, match=r"^The Prefect server stopped answering \(ConnectError\)\. The run was cancelled\.$"
    ):
        make_run(server, display()[0])
    assert server.cancelled == 1


def test_a_connection_lost_later_leaves_the_run_to_another_machines_worker(make_run: MakeRun) -> None:
    server = Server([Running(), Running()], [])
    server.read_trouble = [httpx.ConnectError("refused")]
    with pytest.raises(Trouble, match=rf"stopped answering \(ConnectError\)\. The run goes on: http.*/flow-run/{RUN}$"):
        make_run(server, display()[0])
    assert server.cancelled == 0


@pytest.mark.parametrize("trouble", [httpx.ConnectError("refused"), RuntimeError("a bug")])
def test_no_run_outlives_a_worker_that_make_run_started(make_run: MakeRun, trouble: Exception) -> None:
    server = Server([Running(), Running()], [])
    server.read_trouble = [trouble]
    with pytest.raises((Trouble, RuntimeError), match=r"The run was cancelled\.$|^a bug$"):
        make_run(server, display()[0], works_here=True)
    assert server.cancelled == 1


# --- what was written after make ---------------------------------------------------------------------------------------


def test_without_anything_a_small_job_runs_here_for_nothing() -> None:
    assert job_parameters({}) == {"command": 'python3 -c "print(6*7)"', "providers": ["local"]}


def test_what_was_written_becomes_parameters() -> None:
    assert job_parameters(
        {
            "JOB": "python train.py",
            "GPU": "H100:8",
            "MAX_PRICE": "20",
            "PROVIDERS": "aws, local",
            "ACCOUNT": "team",
            "FILES": "train.py data",
            "OUTPUTS": "*.pt",
        }
    ) == {
        "command": "python train.py",
        "gpu": "H100:8",
        "max_price": 20.0,
        "providers": ["aws", "local"],
        "account": "team",
        "job": {"files": ["train.py", "data"], "outputs": ["*.pt"]},
    }


def test_a_job_of_ones_own_goes_wherever_it_is_cheapest() -> None:
    assert "providers" not in job_parameters({"JOB": "nvidia-smi", "GPU": "H100"})


@pytest.mark.parametrize("price", ["cheap", "nan", "inf", "-inf", "-1"])
def test_a_price_that_limits_nothing_is_refused(price: str) -> None:
    with pytest.raises(
        Trouble, match=rf"^MAX_PRICE={price} is no price: write USD per hour, for example MAX_PRICE=20\.$"
    ):
        job_parameters({"MAX_PRICE": price})


def test_an_alias_of_a_provider_becomes_the_name_that_the_server_takes() -> None:
    assert job_parameters({"PROVIDERS": "k8s local"})["providers"] == ["kubernetes", "local"]


def test_a_provider_that_there_is_none_of_is_told_with_those_there_are() -> None:
    with pytest.raises(Trouble, match="no provider 'gpc'; write one or some of local, ssh, aws, kubernetes"):
        job_parameters({"PROVIDERS": "aws,gpc"})


def test_make_plan_takes_an_alias_and_tells_what_is_no_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(console, "client_of", lambda _: nullcontext())
    monkeypatch.setattr(console, "_shown_here", nullcontext)
    monkeypatch.setattr(console, "plan", lambda **parameters: asked.append(parameters["providers"]) or Completed())
    monkeypatch.setenv("PROVIDERS", "k8s")
    assert console.plan_now(Place("http://127.0.0.1:1/api", Path(), is_own=True)) == 0
    assert asked == [["kubernetes"]]
    monkeypatch.setenv("PROVIDERS", "gpc")
    with pytest.raises(Trouble, match="no provider 'gpc'"):
        console.plan_now(Place("http://127.0.0.1:1/api", Path(), is_own=True))


def refused(status: int, content: Any) -> PrefectHTTPStatusError:
    request = httpx.Request("POST", "http://127.0.0.1:1/api/deployments/x/create_flow_run")
    response = httpx.Response(status, json=content, request=request)
    try:
        response.raise_for_status()
    except httpx.HTTPStatusError as error:
        return PrefectHTTPStatusError.from_httpx_error(error)
    raise AssertionError("no error")


def test_parameters_that_an_older_server_does_not_take_are_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "get_client", lambda **_: nullcontext())
    monkeypatch.setattr(Place, "wait_for_server", lambda _: None)
    place = Place("http://127.0.0.1:1/api", Path(), is_own=False)
    detail = "Error creating flow run: Validation failed for field 'providers[0]'."
    with (
        pytest.raises(
            Trouble, match=r"^http://127.0.0.1:1/api refuses: Error creating flow run: .* 'providers\[0\]'\.$"
        ),
        console.client_of(place),
    ):
        raise refused(409, {"detail": detail})


# --- providers --------------------------------------------------------------------------------------------------------


def test_the_overview_tells_prices_answers_troubles_and_what_to_type() -> None:
    shown, out = display(width=100)
    overview.show(
        [
            Row(provider="local", account="default", answered_in_s=0.04, cheapest={}),
            Row(provider="aws", account="team", cheapest={}, trouble="the key is no longer valid"),
            Row(provider="vultr", account="", cheapest={"H100": "$2.30"}),
        ],
        shown,
    )
    lines = out.getvalue().splitlines()
    assert lines[0].split("  ")[0] == "provider"
    assert lines[1].split() == ["local", "none", "needed", "0.0", "s", "-", "-"]
    assert lines[2].split() == ["aws", "team", "did", "not", "-", "-"]
    assert lines[3].split() == ["vultr", "none", "$2.30", "-"]
    assert "aws (team): the key is no longer valid" in lines
    assert lines[-1] == "Next: make connect PROVIDER=vultr"


# --- connect ----------------------------------------------------------------------------------------------------------


class Host(BaseModel):
    address: str = Field(title="Address")
    port: int = 22


class Credentials(Block):
    """Of a made-up cloud."""

    _block_type_name = "GPU: made up"
    _block_type_slug = "gpu-made-up"

    api_key: SecretStr = Field(title="API key")
    hosts: list[Host] = Field(title="Host")
    region: str = Field(default="eu", title="Region")
    limit: int = Field(default=3, ge=1, title="Limit")


class Saved:
    """Stands in for saving and for the provider."""

    def __init__(self, refuses: AuthFailed | None = None, missing: tuple[str, ...] = ()) -> None:
        self.refuses, self.missing = refuses, missing
        self.credentials_class = Credentials
        self.asked_with: Credentials | None = None

    def driver_class(self, block: Credentials) -> Any:
        self.asked_with = block

        def missing_rights() -> list[str]:
            if self.refuses:
                raise self.refuses
            return list(self.missing)

        return SimpleNamespace(missing_rights=missing_rights)


class Answers:
    """Answers in order; remembers which questions hid their answer."""

    def __init__(self, *answers: str) -> None:
        self.answers = list(answers)
        self.hidden: list[str] = []

    def __call__(self, question: str, *, secret: bool = False) -> str:
        if secret:
            self.hidden.append(question)
        return self.answers.pop(0)


def connected(
    monkeypatch: pytest.MonkeyPatch, library: Saved, *answers: str
) -> tuple[str, list[tuple[str, Credentials]], Answers]:
    saved: list[tuple[str, Credentials]] = []
    monkeypatch.setattr(connecting, "library", lambda _: library)
    monkeypatch.setattr(Credentials, "save", lambda self, name, **_: saved.append((name, self)))
    shown, out = display()
    ask = Answers(*answers)
    connecting.connect(SimpleNamespace(), "aws", "team", shown, ask)
    return out.getvalue(), saved, ask


def test_connect_asks_for_what_is_needed_hides_secrets_checks_and_saves(monkeypatch: pytest.MonkeyPatch) -> None:
    library = Saved(missing=("ec2:RunInstances",))
    text, saved, ask = connected(monkeypatch, library, "s3cret", "a.example", "b.example", "", "")
    ((name, block),) = saved
    assert name == "team"
    assert block is library.asked_with
    assert block.api_key.get_secret_value() == "s3cret"
    assert [host.address for host in block.hosts] == ["a.example", "b.example"]
    assert (block.region, block.limit) == ("eu", 3)
    assert ask.hidden == ["API key (or @file): "]
    assert "missing: ec2:RunInstances" in text
    assert "s3cret" not in text


def test_connect_asks_again_with_the_reason_when_an_answer_makes_no_sense(monkeypatch: pytest.MonkeyPatch) -> None:
    text, saved, _ = connected(monkeypatch, Saved(), *("k", "a", "", "y", "us", "0"), *("k", "a", "", "yes", "us", "5"))
    assert "limit: Input should be greater than or equal to 1" in text
    assert saved[0][1].limit == 5


def test_connect_saves_nothing_that_the_provider_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Trouble, match="aws refuses these credentials, and nothing was saved: wrong key"):
        connected(monkeypatch, Saved(refuses=AuthFailed("wrong key")), "k", "", "")


def test_connect_reads_a_private_key_from_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    (tmp_path / "key").write_text("-----BEGIN\nKEY-----\n")
    _, saved, _ = connected(monkeypatch, Saved(), f"@{tmp_path / 'key'}", "a", "", "")
    assert saved[0][1].api_key.get_secret_value() == "-----BEGIN\nKEY-----\n"


@pytest.mark.parametrize("name", ["", "amazon"])
def test_connect_lists_the_providers_when_the_name_is_none(name: str) -> None:
    with pytest.raises(Trouble, match=r"one of ssh, aws, kubernetes"):
        connecting.provider_named(name)
