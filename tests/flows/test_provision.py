"""`provision` on a cloud with faults at every step: the story is told, nothing is bought twice, nothing is left."""

from __future__ import annotations

import json
import logging
import math
import time
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar
from uuid import uuid4

import pytest
from prefect.client.orchestration import get_client
from prefect.flow_engine import run_flow
from prefect.settings import PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW, temporary_settings
from prefect.states import Running, Scheduled, Suspended
from pydantic import BaseModel, SecretStr

from prefect_gpu import providers as registry
from prefect_gpu.blocks.realm import GpuRealm
from prefect_gpu.flows.provision import provision
from prefect_gpu.flows.run import cards, run_log, steps
from prefect_gpu.flows.run.attempt import new_attempt
from prefect_gpu.flows.run.beginning import ran_before
from prefect_gpu.flows.run.failure import RunFailed
from prefect_gpu.flows.run.record import Record
from prefect_gpu.flows.run.request import Refused, checked_options, checked_providers
from prefect_gpu.providers import ProviderName
from prefect_gpu.providers.core.contract import Billing
from prefect_gpu.providers.core.errors import AuthFailed, InstanceFailed
from prefect_gpu.providers.core.gpu.request import parse_gpu
from prefect_gpu.providers.core.lease import Lease
from prefect_gpu.providers.core.machine.download import Brought
from prefect_gpu.providers.core.models import Offer, utc_now
from prefect_gpu.providers.core.requests import Job, Requirements, Spot
from tests.flows.rented import Named, Rented
from tests.stack import wait_until

pytestmark = [pytest.mark.usefixtures("prefect_api"), pytest.mark.timeout(180)]


def test_the_cheapest_that_fits_is_rented_used_and_given_back(rented: Rented) -> None:
    message = rented.run()
    assert message.startswith("exit 0 in ")
    assert rented.state.is_completed()
    assert [order.zone for order in rented["alpha"].orders()] == ["north-1"]
    assert rented["beta"].orders() == []
    assert [one.outcome for one in rented.record.attempts] == ["gone"]
    rented.assert_nothing_is_left()


def test_a_run_that_goes_on_after_suspend_gives_back_what_it_had_and_keeps_its_record(rented: Rented) -> None:
    """Prefect may count a resume as no second run."""
    library = rented.libraries["beta"]
    with get_client(sync_client=True) as client:
        flow_run = client.create_flow_run(provision, parameters={"command": "echo again"})
        assert not ran_before(flow_run)
        for state in (Running(), Suspended(timeout_seconds=300)):
            client.set_flow_run_state(flow_run.id, state, force=True)
        suspended = client.read_flow_run(flow_run.id)
        assert suspended.run_count == 1
        assert ran_before(suspended)
        client.set_flow_run_state(flow_run.id, Scheduled(), force=True)
    offer = library.driver().fetch_offers(Requirements())[0]
    deadline = utc_now() + timedelta(hours=1)
    lease = Lease(realm=GpuRealm.current().realm, run_id=flow_run.id, deadline=deadline, run_count=1, attempt=0)
    instance = library.driver().create_instance(offer, library.spec(lease))
    line = new_attempt(0, lease.name, offer, "default", library.driver().account_id())
    Record(flow_run.id, [line.model_copy(update={"outcome": "current", "instance_id": instance.id})]).write()
    rented.state = run_flow(provision, flow_run=suspended, parameters=flow_run.parameters, return_type="state")
    assert rented.state.is_completed(), rented.state.message
    assert [(one.attempt, one.outcome) for one in rented.record.attempts] == [(0, "gone"), (1, "gone")]
    assert rented.record.attempts[0].cost
    rented.assert_nothing_is_left()


def test_an_exit_code_other_than_0_is_a_failed_run_with_its_result(rented: Rented) -> None:
    assert rented.run("exit 3").startswith("exit 3 in ")
    assert rented.state.is_failed()
    assert rented.result.exit_code == 3
    rented.assert_nothing_is_left()


def test_what_went_wrong_is_an_exception_with_one_sentence_and_nothing_of_prefects_traceback(
    rented: Rented, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = rented.run("exit 3")
    with pytest.raises(RunFailed) as raised:
        rented.state.result()
    assert str(raised.value) == message
    assert raised.value.result is not None
    assert raised.value.result.exit_code == 3
    failure = rented.state.result(raise_on_failure=False)
    assert isinstance(failure, RunFailed)
    with pytest.raises(RunFailed, match="exit 3 in"):
        provision("exit 3")  # as a user's own flow calls it
    with pytest.raises(RunFailed, match="the command is empty"):
        provision(" ")
    from prefect_gpu.flows.run import outputs

    outputs.fetch(rented.run_id, tmp_path / "fetched")
    assert json.loads((tmp_path / "fetched" / "0" / "result.json").read_text())["exit_code"] == 3


def test_the_exception_is_read_back_from_result_storage_by_another_process() -> None:
    from prefect.serializers import JSONSerializer

    stored = JSONSerializer().dumps(RunFailed("exit 3 in 2.0 s, $0.00"))
    read = JSONSerializer().loads(stored)
    assert isinstance(read, RunFailed)
    assert (str(read), read.result) == ("exit 3 in 2.0 s, $0.00", None)


@pytest.mark.parametrize("name", ["prefect.flow_runs", "prefect.engine"])
def test_a_run_s_log_does_not_end_with_prefect_s_traceback(name: str) -> None:
    for failure, is_shown in ((RunFailed("exit 3"), False), (ZeroDivisionError("a bug of ours"), True)):
        said, why = "Engine execution exited with unexpected exception", (type(failure), failure, None)
        record = logging.LogRecord(name, logging.ERROR, "engine.py", 1, said, (), why)
        assert bool(logging.getLogger(name).filter(record)) is is_shown


def test_nothing_lands_on_the_worker_itself_because_other_providers_are_there() -> None:
    local, aws = ProviderName.LOCAL, ProviderName.AWS
    assert checked_providers([], [local, aws], "default") == [aws]
    assert checked_providers([local], [local, aws], "default") == [local]
    assert checked_providers([], [local], "default") == [local]  # the only one, on a server of one's own


def test_on_a_server_of_others_nothing_lands_on_the_worker_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prefect_gpu.flows.run.request.is_own_server", lambda: False)
    with pytest.raises(Refused, match="only where that is asked for"):
        checked_providers([], [ProviderName.LOCAL], "default")
    assert checked_providers([ProviderName.LOCAL], [ProviderName.LOCAL], "default") == [ProviderName.LOCAL]


def test_what_an_operator_turned_off_is_not_rented_from() -> None:
    local, aws = ProviderName.LOCAL, ProviderName.AWS
    assert checked_providers([], [local, aws], "default", ["local"]) == [aws]
    with pytest.raises(Refused, match="local is turned off on this Prefect server"):
        checked_providers([local], [local, aws], "default", ["local"])
    with pytest.raises(Refused, match="only where that is asked for"):
        checked_providers([], [local, aws], "default", ["aws", "local"])


def test_a_copy_of_the_server_s_database_buys_nothing(rented: Rented, monkeypatch: pytest.MonkeyPatch) -> None:
    realm = GpuRealm.current()
    copied = realm.model_copy(update={"servers": ["prefect.production.example:4200"]})
    monkeypatch.setattr(GpuRealm, "current", lambda: copied)
    message = rented.run()
    assert "belongs to the Prefect server prefect.production.example:4200" in message
    assert rented["alpha"].calls("create") == []


class Paint(BaseModel, extra="forbid"):
    """What only this provider has."""

    color: str = ""


def test_options_are_the_provider_s_own_and_an_unknown_provider_is_refused(
    rented: Rented, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    driver = rented.libraries["alpha"].driver()
    original = driver.create_instance
    for library in rented.libraries.values():
        monkeypatch.setattr(library.driver_class, "options_model", Paint)
    monkeypatch.setattr(driver, "create_instance", lambda offer, spec: seen.append(spec) or original(offer, spec))
    monkeypatch.setattr("prefect_gpu.flows.run.request.checked_options", lambda options: options)
    rented.run(options={"alpha": {"color": "red"}, "beta": {"color": "blue"}})
    (spec,) = seen
    assert spec.options == {"color": "red"}
    (line,) = rented.record.attempts
    assert spec.lasts_s == math.ceil((spec.deadline - line.ordered_at).total_seconds()), "as its record tells it"
    assert "wheels" in rented.run(options={"alpha": {"wheels": "4"}})
    assert rented.record.attempts == []
    assert len(seen) == 1, "refused before anything was ordered"
    monkeypatch.undo()
    with pytest.raises(Refused, match="'azur' in options is not a provider"):
        checked_options({"azur": {}})
    assert checked_options({"k8s": {"a": 1}}) == {"kubernetes": {"a": 1}}


def until_in_log(rented: Rented, part: str) -> None:
    question = {"logs": {"flow_run_id": {"any_": [str(rented.run_id)]}}}
    with get_client(sync_client=True) as client:
        wait_until(lambda: part in client.request("POST", "/logs/filter", json=question).text, 20, part)


def test_the_task_that_runs_a_job_is_one_outside_of_a_flow_too(
    rented: Rented, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tasks = rented.libraries["alpha"]
    (tmp_path / "input").write_text("given\n")
    deadline = utc_now() + timedelta(hours=1)
    lease = Lease(realm=GpuRealm.current().realm, run_id=uuid4(), deadline=deadline, run_count=0, attempt=0)
    job = Job(files=("input",), outputs=("made",))
    # Of each task's end Prefect says itself that no flow run keeps it.
    with temporary_settings({PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW: "ignore"}), caplog.at_level("INFO"):
        (offer, *_) = tasks.fetch_offers(Requirements())
        made = tasks.wait_until_ready(tasks.create_instance(offer, lease, job=job), offer)
        result = tasks.run_job(made, offer, "cat input | tee made; exit 3", job, tmp_path / "kept")
        assert tasks.terminate_instance(made.name).is_gone
    assert (result.outcome, result.exit_code, result.outputs) == ("exited", 3, ("made",))
    assert [one.getMessage() for one in caplog.records if one.name == "prefect_gpu.job"][:2] == [
        "files up: 1 file, 6 bytes",
        "given",
    ]
    assert (tmp_path / "kept" / "job.log").read_text() == "given\n"
    rented.assert_nothing_is_left()


def test_that_nobody_reaps_is_said_by_each_run_that_rents(rented: Rented, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prefect_gpu.flows.report.last_reap.completed_at", lambda: utc_now() - timedelta(hours=3))
    rented.run()
    until_in_log(rented, "the last reap completed 3 h 00 min ago")


def test_what_the_log_lost_while_the_api_was_away_is_written_again_once(rented: Rented) -> None:
    rented.run()
    now = utc_now()
    told = [(now - timedelta(minutes=9), "before the outage"), (now, "lost"), (now, "lost too")]
    for _ in range(2):
        run_log.tell_again(rented.run_id, told, now - timedelta(seconds=5))
    with get_client(sync_client=True) as client:
        question = {"logs": {"flow_run_id": {"any_": [str(rented.run_id)]}}}
        rows = client.request("POST", "/logs/filter", json=question).json()
    assert sorted(row["message"] for row in rows if row["message"] in {"lost", "lost too", "before the outage"}) == [
        "lost",
        "lost too",
    ]


def test_a_run_whose_job_ends_while_the_api_is_away_waits_for_it(
    rented: Rented, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect_gpu.flows.run.ownership import Ownership, Standing

    original, away = Ownership.ask, []

    def ask(self: Ownership, within_s: float, *, fresh_s: float = 0.0) -> Standing:
        if within_s == 10 and self.run_id and rented["alpha"].calls("terminate") and len(away) < 5:
            away.append(1)
            return Standing.UNKNOWN
        return original(self, within_s, fresh_s=fresh_s)

    monkeypatch.setattr(Ownership, "ask", ask)
    assert rented.run().startswith("exit 0")
    assert len(away) == 5
    rented.assert_nothing_is_left()


def test_the_whole_log_and_the_files_are_in_result_storage_before_the_machine_is_gone(
    rented: Rented, tmp_path: Path
) -> None:
    (tmp_path / "data" / ".venv").mkdir(parents=True)
    (tmp_path / "data" / "input.txt").write_text("42\n")
    (tmp_path / "data" / ".venv" / "big").write_bytes(b"x" * 5000)
    job = Job(files=("data",), outputs=("out/", "*.log"), env={"PLACE": "out"})
    rented.run("mkdir -p $PLACE && cp data/input.txt $PLACE/copy.txt && echo its own >job.log && echo made", job=job)
    from prefect_gpu.flows.run import outputs

    until_in_log(rented, "files up: 1 file, 3 bytes; left out: data/.venv (5.0 KB)")
    fetched = tmp_path / "fetched"
    outputs.fetch(rented.run_id, fetched)
    assert (fetched / "0" / "job.log").read_text() == "made\n"
    assert (fetched / "0" / "outputs" / "out" / "copy.txt").read_text() == "42\n"
    assert (fetched / "0" / "outputs" / "job.log").read_text() == "its own\n"
    assert rented.result.outputs == ("job.log", "out/copy.txt")


@pytest.mark.parametrize(
    ("fault", "story"),
    [
        ("sold out", "alpha sold out"),
        ("no funds", "alpha balance too low"),
        ("bad credentials", "alpha credentials refused"),
        ("code nobody mapped", "alpha request refused"),
    ],
)
def test_a_refused_order_is_followed_by_the_next_offer_and_told(rented: Rented, fault: Any, story: str) -> None:
    rented["alpha"].fault("create", fault, times=None)
    message = rented.run()
    assert message.startswith("exit 0 in ")
    assert story in message
    assert len(rented["beta"].orders()) == 1
    rented.assert_nothing_is_left()


def test_sold_out_in_one_zone_is_tried_in_the_next_under_another_name(rented: Rented) -> None:
    rented["alpha"].fault("create", "sold out")
    rented.run()
    names = [name for _, name in rented["alpha"].calls("create")]
    assert len(set(names)) == 2
    assert [order.zone for order in rented["alpha"].orders()] == ["north-2"]
    assert [one.scope for one in rented.record.attempts] == ["north-1", "north-2"]


def test_a_quota_rules_out_the_region_and_the_family_but_not_the_other_region(rented: Rented) -> None:
    rented["alpha"].fault("create", "over quota", times=None, region="north")
    message = rented.run(gpu="H100")
    assert "alpha over quota" in message
    assert len(rented["alpha"].calls("create")) == 2
    assert [order.zone for order in rented["alpha"].orders()] == ["south-1"]
    assert "passed over: over quota" in rented.artifact(cards.TRIED.key)


def test_a_lost_answer_is_settled_and_nothing_is_bought_twice(rented: Rented) -> None:
    rented["alpha"].fault("create", "lost", times=2)
    assert rented.run().startswith("exit 0 in ")
    assert len(rented["alpha"].orders()) == 1
    rented.assert_nothing_is_left()


@pytest.mark.parametrize("fate", ["fails at boot", "never runs"])
def test_what_never_runs_is_given_back_and_the_next_offer_is_tried(rented: Rented, fate: Any) -> None:
    library = rented.libraries["alpha"]
    library.capabilities = library.capabilities.model_copy(update={"boot_deadline_s": 2})
    rented["alpha"].fault("create", fate)
    message = rented.run()
    assert "2 offers tried (alpha boot failed)" in message
    assert len(rented["alpha"].orders()) == 2
    rented.assert_nothing_is_left()


def test_a_provider_that_does_not_answer_is_named_and_holds_up_nobody(rented: Rented) -> None:
    rented["alpha"].fault("offers", "server error", times=None)
    rented.run()
    assert len(rented["beta"].orders()) == 1
    assert "did not answer: the reference cloud refused catalog" in rented.artifact(cards.TRIED.key)


def test_a_driver_that_breaks_over_a_reply_is_that_provider_s_trouble_alone(
    rented: Rented, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(_: Requirements) -> Any:
        raise KeyError("gpu_description")

    monkeypatch.setattr(rented.libraries["alpha"].driver(), "fetch_offers", breaks)
    assert rented.run().startswith("exit 0 in ")
    assert len(rented["beta"].orders()) == 1
    assert "did not answer: its driver broke: KeyError" in rented.artifact(cards.TRIED.key)


def test_the_words_of_who_refused_stand_in_the_final_message(rented: Rented, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> str:
        raise AuthFailed("the token is over: make a new one")

    for library in rented.libraries.values():
        monkeypatch.setattr(library.driver(), "account_id", refuse)
    message = rented.run(requirements=Requirements(cpu=100))
    assert message == (
        "No machine: 2 offers tried (alpha credentials refused, beta credentials refused)."
        " alpha: the token is over: make a new one. beta: the token is over: make a new one."
    )


def test_orders_that_were_never_answered_are_said_in_the_final_message(
    rented: Rented, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, library in rented.libraries.items():
        library.capabilities = library.capabilities.model_copy(update={"create_repeatable": None})
        monkeypatch.setattr(library.driver(), "capabilities", library.capabilities)
        rented[name].fault("create", "server error", times=None)
    message = rented.run(requirements=Requirements(cpu=100))
    assert "6 orders NOT confirmed gone yet, or never answered: reap will keep trying until the lease ends." in message
    assert "()" not in message


def test_the_way_onto_a_machine_needs_no_answer_of_prefect_s_once_the_order_is_made(
    rented: Rented, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect_gpu.blocks.realm import GpuRealm

    library = rented.libraries["alpha"]
    library.connections.master_secret()

    def down(_: type[GpuRealm]) -> GpuRealm:
        raise ConnectionError

    monkeypatch.setattr(GpuRealm, "current", classmethod(down))
    assert len(library.connections.master_secret()) == 32


def test_given_order_tries_providers_as_they_are_listed_and_shows_them_so(
    rented: Rented, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "enabled", lambda *_: [Named("beta"), Named("alpha")])
    rented.run(order="given")
    assert len(rented["beta"].orders()) == 1
    assert rented["alpha"].orders() == []
    rows = [line.split(" | ")[:2] for line in rented.artifact(cards.TRIED.key).splitlines() if line[2:3].isdigit()]
    providers = ["beta"] * (len(rows) // 2) + ["alpha"] * (len(rows) // 2)
    assert rows == [[f"| {number}", provider] for number, provider in enumerate(providers, start=1)]


def test_alternatives_are_taken_in_their_order_whatever_they_cost(rented: Rented) -> None:
    rented.run(gpu="H100|A100")  # no machine here has either, so all are tried
    types = [order.type for cloud in ("alpha", "beta") for order in rented[cloud].orders()]
    tried = [one.machine for one in rented.record.attempts]
    assert tried == ["gpu.h100"] * 6 + ["gpu.a100"] * 6
    assert sorted(types) == sorted(tried)


def test_what_is_too_dear_is_not_bought_and_the_nearest_price_is_told(rented: Rented) -> None:
    message = rented.run(gpu="H100:8", max_price=10)
    assert message.startswith("No H100:8 under $10/h. Cheapest $20 alpha ")
    assert rented.state.is_failed()
    assert rented["alpha"].orders() == []


def test_the_price_that_counts_is_that_of_the_stay(rented: Rented) -> None:
    library = rented.libraries["alpha"]
    library.capabilities = library.capabilities.model_copy(update={"billing": Billing(minimum_s=3 * 3600, step_s=3600)})
    rented.run()
    assert len(rented["beta"].orders()) == 1


def test_spot_is_only_taken_when_asked_for(rented: Rented) -> None:
    rented.run(requirements=Requirements(spot=Spot.EITHER))
    assert [order.spot for order in rented["alpha"].orders()] == [True]


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        ({"command": "  "}, "the command is empty"),
        ({"command": []}, "the command is empty"),
        ({"command": "x" * 200_000}, "the command is longer than 128 KB"),
        ({"job": Job(env={"A": "y" * 200_000})}, "the environment variable A is longer than 128 KB"),
        ({"gpu": "H1OO:8"}, "did you mean H100"),
        ({"max_price": -1.0}, "max_price is -1"),
        ({"max_cost": 0.0}, "max_cost is 0: write USD for the whole run, more than 0, or leave it empty for no limit"),
        ({"max_wait": "soon"}, "max_wait is 'soon': write how long, for example 30m, 2h or 1d, or leave it empty"),
        ({"retries": -1}, "retries is -1: write how often the job may be tried again, from 0 to 100"),
        ({"retries": 1, "retry_exit_codes": [0]}, "0 in retry_exit_codes is not the exit code of a job that failed"),
        ({"job": Job(files=("nowhere.txt",))}, "there is no 'nowhere.txt'"),
        ({"job": Job(outputs=("../../etc/passwd",))}, "leaves the job's directory"),
        ({"job": Job(outputs=("/etc/passwd",))}, "leaves the job's directory"),
        ({"job": Job(timeout_s=10**15)}, "timeout_s is 1000000000000000: write at most"),
        ({"job": Job(working_directory="..")}, "leaves the job's directory"),
        ({"job": Job(env={"1X": "y"})}, "not a valid name of an environment variable"),
        ({"job": Job(secrets={"TOKEN": "not-saved"})}, "no Secret block is saved as 'not-saved'"),
        ({"requirements": Requirements(countries=("Germany",))}, "not a country code"),
        ({"requirements": Requirements(max_price=5.0)}, "write it as the parameter max_price itself"),
        ({"requirements": Requirements(gpu=parse_gpu("H100"))}, "write it as the parameter gpu itself"),
        ({"account": {"AWS": "research"}}, "'AWS' in account is not a provider: write one of local"),
        ({"account": {"aws": "research"}}, "no credentials of aws are saved as 'research'"),
    ],
)
def test_nonsense_is_refused_in_one_sentence_before_anything_is_bought(
    rented: Rented, parameters: dict[str, Any], sentence: str
) -> None:
    command = parameters.pop("command", "true")
    message = rented.run(command, **parameters)
    assert sentence in message
    assert "\n" not in message
    assert rented.state.is_failed()
    assert rented["alpha"].calls("create") == rented["beta"].calls("create") == []


def test_an_account_that_nobody_saved_does_not_quietly_become_this_machine() -> None:
    with pytest.raises(Refused, match="no credentials are saved as 'prod'"):
        checked_providers([], [ProviderName.LOCAL], "prod")
    assert checked_providers([ProviderName.LOCAL], [ProviderName.LOCAL], "prod") == [ProviderName.LOCAL]


def test_a_give_back_that_shows_no_effect_is_said_and_stays_on_the_record(
    rented: Rented, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prefect_gpu.providers.core.renting.library.GIVE_BACK_S", 1.0)
    rented["alpha"].fault("create", "never ends")
    assert "NOT confirmed gone yet" in rented.run()
    assert [one.outcome for one in rented.record.attempts] == ["owed"]
    rented["alpha"].mend()


def test_a_job_whose_log_result_storage_refuses_is_not_run_again_and_says_where_the_log_is(
    rented: Rented, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from prefect.filesystems import RemoteFileSystem

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    full = RemoteFileSystem(basepath=f"memory://{tmp_path.name}")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("prefect_gpu.flows.run.outputs._put", refuse)
    monkeypatch.setattr(
        "prefect_gpu.flows.run.outputs.get_result_store", lambda: type("Store", (), {"result_storage": full})
    )
    message = rented.run("echo kept")
    assert "result storage did not take the job's log and files (OSError): they are in " in message
    assert message.startswith("exit 0 in ")
    assert rented.state.is_failed()
    assert (Path(message.partition("they are in ")[2].partition(")")[0]) / "job.log").read_text() == "kept\n"
    assert len(rented["alpha"].orders()) == 1
    assert rented["beta"].orders() == []
    rented.assert_nothing_is_left()


def test_a_job_whose_files_cannot_be_brought_back_is_not_run_again(
    rented: Rented, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise InstanceFailed("the machine does not list the job's files")

    monkeypatch.setattr("prefect_gpu.providers.core.machine.download.download", fails)
    message = rented.run(job=Job(outputs=("out/",)))
    assert "its files were not brought back: the machine does not list" in message
    assert rented.state.is_failed()
    assert rented.result.exit_code == 0
    assert len(rented["alpha"].orders()) + len(rented["beta"].orders()) == 1


def test_what_could_not_be_brought_back_is_said_in_the_run_s_log(
    rented: Rented, monkeypatch: pytest.MonkeyPatch
) -> None:
    brought = Brought(("a",), ("*.pt",), ("pipe",), {}, "find: x: gone", 0, 1)
    said: list[str] = []
    monkeypatch.setattr("prefect_gpu.providers.core.machine.download.download", lambda *_, **__: brought)
    monkeypatch.setattr(
        "prefect_gpu.providers.core.renting.plain_log.logger", lambda: SimpleNamespace(warning=said.append, info=print)
    )
    assert rented.run(job=Job(outputs=(".",))).startswith("exit 0 in ")
    assert said == brought.remarks()
    assert len(said) == 3
    assert rented.result.outputs == ("a",)
    assert rented.state.is_completed()


def test_a_run_whose_files_were_lost_has_failed_and_says_which(rented: Rented, monkeypatch: pytest.MonkeyPatch) -> None:
    """They go with the machine: nobody may take the run for one that ended well."""
    brought = Brought(("caf\udce9",), (), (), {"model.pt": "may not be read"}, "", 0, 1)
    monkeypatch.setattr("prefect_gpu.providers.core.machine.download.download", lambda *_, **__: brought)
    message = rented.run(job=Job(outputs=(".",)))
    assert "not brought back: model.pt, which may not be read" in message
    assert rented.state.is_failed()
    assert rented.result.outputs == (r"caf\xe9",)


def test_a_page_that_cannot_be_written_turns_no_good_end_into_a_failure(
    rented: Rented, monkeypatch: pytest.MonkeyPatch
) -> None:
    def down(*_: Any, **__: Any) -> Any:
        raise ConnectionError

    monkeypatch.setattr(cards, "publish", down)
    assert rented.run().startswith("exit 0 in ")
    assert rented.state.is_completed()


def test_a_full_disk_under_the_log_is_said_and_nothing_is_left(rented: Rented, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("prefect_gpu.providers.core.machine.jobs.Machine.run", full)
    message = rented.run()
    assert message.startswith("lost in ")
    assert "the worker cannot keep the job's log in " in message
    assert "No space left on device" in message
    assert len(rented["alpha"].orders()) + len(rented["beta"].orders()) == 1
    rented.assert_nothing_is_left()


@pytest.mark.parametrize("step", ["create_instance", "wait_ready", "run_job", "give_back"])
def test_a_bug_at_any_step_leaves_nothing(rented: Rented, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    original = getattr(steps, step)

    def breaks(*arguments: Any) -> Any:
        original(*arguments)
        raise ZeroDivisionError("a bug of ours")

    monkeypatch.setattr(steps, step, breaks)
    rented.run()
    assert rented.state.is_failed()
    rented.assert_nothing_is_left()


def test_a_job_whose_machine_is_taken_back_is_lost_with_the_providers_reason_and_not_run_again(
    rented: Rented, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prefect_gpu.providers.core.renting.running.ASK_EVERY_S", 0.2)
    rented["alpha"].fault("create", "interrupted", seconds=4)
    message = rented.run("echo started; sleep 60")
    assert message.startswith("lost in ")
    assert "(capacity was needed elsewhere)" in message
    assert len(rented["alpha"].orders()) + len(rented["beta"].orders()) == 1
    rented.assert_nothing_is_left()


def test_no_secret_is_in_the_log_the_artifacts_or_the_result(rented: Rented) -> None:
    from prefect.blocks.system import Secret

    Secret(value=SecretStr("hunter2-hunter2")).save("provision-test", overwrite=True)
    message = rented.run('test "${#TOKEN}" = 15', job=Job(secrets={"TOKEN": "provision-test"}))
    assert message.startswith("exit 0")
    with get_client(sync_client=True) as client:
        run = client.read_flow_run(rented.run_id).model_dump_json()
        question = {"logs": {"flow_run_id": {"any_": [str(rented.run_id)]}}}
        logs = client.request("POST", "/logs/filter", json=question).text
    stored = "".join(rented.artifact(card.key) for card in (cards.TRIED, cards.COST, cards.FILES))
    assert "hunter2" not in run + logs + stored + json.dumps(rented.result.model_dump(mode="json"))


def test_the_api_being_down_holds_up_no_give_back(rented: Rented, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the job has ended the machine costs for nothing: the answer of Prefect's API is not waited for."""
    from prefect_gpu.flows.run.ownership import Ownership, Standing

    original, asked = Ownership.ask, []

    def ask(self: Ownership, within_s: float, *, fresh_s: float = 0.0) -> Standing:
        asked.append(within_s)
        is_ordered = rented["alpha"].orders()
        return Standing.UNKNOWN if is_ordered else original(self, within_s, fresh_s=fresh_s)

    monkeypatch.setattr(Ownership, "ask", ask)
    monkeypatch.setattr("prefect_gpu.flows.run.execution.API_PATIENCE_S", 60.0)
    monkeypatch.setattr("prefect_gpu.flows.run.execution.RESULT_PATIENCE_S", 1.0)  # nothing costs any more then
    before = time.monotonic()
    assert rented.run().startswith("exit 0 in ")
    assert time.monotonic() - before < 30
    assert len(asked) >= 2
    rented.assert_nothing_is_left()


def test_a_driver_that_breaks_while_giving_back_leaves_the_name_owed_and_said(
    rented: Rented, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(_: str) -> None:
        raise KeyError("no such field")

    rented["alpha"].fault("create", "fails at boot")
    monkeypatch.setattr(rented.libraries["alpha"].driver(), "terminate_instance", breaks)
    message = rented.run()
    assert message.startswith("exit 0 in ")
    assert "NOT confirmed gone yet, reap will keep trying" in message
    assert [(one.outcome, one.why) for one in rented.record.attempts] == [("owed", "KeyError in the driver")] * 2


def test_what_an_order_that_failed_at_once_may_have_left_is_given_back(
    rented: Rented, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = rented.libraries["alpha"].driver()
    original = driver.create_instance

    def create(offer: Offer, spec: Any) -> Any:
        original(offer, spec)
        raise InstanceFailed("the image cannot be pulled")

    monkeypatch.setattr(driver, "create_instance", create)
    assert "alpha boot failed 3 times" in rented.run()
    assert [one.outcome for one in rented.record.attempts] == ["boot failed"] * 3 + ["gone"]
    rented.assert_nothing_is_left()


def test_the_cost_counts_from_the_order_to_the_seen_absence_failed_attempts_included(rented: Rented) -> None:
    for library in rented.libraries.values():
        library.capabilities = library.capabilities.model_copy(update={"billing": Billing(step_s=3600, minimum_s=3600)})
    rented["alpha"].fault("create", "fails at boot")
    message = rented.run()
    assert "$0.10" in message  # two attempts, an hour each
    assert [one.cost for one in rented.record.attempts] == [0.05, 0.05]


def test_each_attempt_is_on_the_record_before_its_order_is_sent(
    rented: Rented, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []
    driver = rented.libraries["alpha"].driver()
    original = driver.create_instance

    def create(offer: Offer, spec: Any) -> Any:
        from prefect_gpu.providers.core.lease import Lease

        lease = Lease.parse(spec.name)
        assert lease is not None
        seen.append([one.name for one in Record.read(lease.run_id).attempts if one.outcome == "ordered"])
        assert seen[-1] == [spec.name]
        return original(offer, spec)

    monkeypatch.setattr(driver, "create_instance", create)
    rented.run()
    assert len(seen) == 1


def test_why_an_order_was_refused_is_on_the_record_before_the_next_is_sent(
    rented: Rented, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []
    driver = rented.libraries["alpha"].driver()
    original = driver.create_instance

    def create(offer: Offer, spec: Any) -> Any:
        from prefect_gpu.providers.core.lease import Lease

        lease = Lease.parse(spec.name)
        assert lease is not None
        seen.append([one.outcome for one in Record.read(lease.run_id).attempts])
        return original(offer, spec)

    monkeypatch.setattr(driver, "create_instance", create)
    rented["alpha"].fault("create", "sold out", times=2)
    rented.run()
    assert seen == [["ordered"], ["sold out", "ordered"], ["sold out", "sold out", "ordered"]]


def test_when_every_order_was_refused_all_of_them_are_on_the_record(rented: Rented) -> None:
    for cloud in rented.clouds.values():
        cloud.fault("create", "sold out", times=None)
    message = rented.run(gpu="H100:8")
    assert message == "No H100:8: 6 offers tried (alpha sold out 3 times, beta sold out 3 times)."
    assert [one.outcome for one in rented.record.attempts] == ["sold out"] * 6
    assert rented.artifact(cards.TRIED.key).count("sold out: ") == 6


def test_a_refused_order_is_on_the_record_though_a_bug_ends_the_run(
    rented: Rented, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(*arguments: Any) -> None:
        raise ZeroDivisionError("a bug of ours")

    rented["alpha"].fault("create", "sold out")
    monkeypatch.setattr(steps, "pass_over", breaks)
    rented.run()
    assert [one.outcome for one in rented.record.attempts] == ["sold out"]


class TestTheFormOfProvision:
    fields: ClassVar[list[str]] = ["command", "gpu", "max_price", "providers"]

    def test_the_four_that_matter_come_first_and_every_field_says_what_it_is(self) -> None:
        schema = provision.parameters.model_dump()
        properties = schema["properties"]
        first = sorted(properties, key=lambda name: properties[name]["position"])[:4]
        assert first == self.fields
        assert all(field.get("title") for field in properties.values())
        assert schema["required"] == ["command"]

    def test_a_run_is_resumed_unless_that_is_not_wanted(self) -> None:
        assert provision.parameters.properties["resume"]["default"] is True
