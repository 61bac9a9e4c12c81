"""Which server a command works with; who comes first starts what is missing, who leaves last stops it, and no job is left behind."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from prefect.events.worker import EventsWorker
from prefect.exceptions import PrefectHTTPStatusError

from prefect_gpu.flows.terminal import api as apis
from prefect_gpu.flows.terminal import at_work, place, server
from prefect_gpu.flows.terminal.daemon import Daemon
from prefect_gpu.flows.terminal.messages import Trouble
from prefect_gpu.flows.terminal.place import Place, what_is_left, worker_name
from tests.fakes.prefect_api import FakePrefect, run_at_work, run_id
from tests.terminal.conftest import SLEEP


def start(daemon: Daemon, arguments: list[str] = SLEEP, **changes: Any) -> subprocess.Popen[bytes]:
    given: dict[str, Any] = {"kept": False, "url": "http://127.0.0.1:1/api", **changes}
    return daemon.start(arguments, dict(os.environ), **given)


# --- which server ------------------------------------------------------------------------------------------------------


def test_a_configured_server_is_used_and_none_is_started(clean: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "https://prefect.example/api/")
    with server.reached(kept=False) as found:
        assert found.api_url == "https://prefect.example/api"
        assert not found.is_own
        assert found.started == []


PROFILE = """
active = "team"
[profiles.team]
PREFECT_API_URL = "https://prefect.example/api"
"""


def test_a_server_that_only_the_prefect_profile_names_is_used(clean: Path, tmp_path: Path) -> None:
    (tmp_path / "profiles.toml").write_text(PROFILE)
    apis.use()
    with server.reached(kept=False) as found:
        assert (found.api_url, found.is_own) == ("https://prefect.example/api", False)
        assert found.named_by == "PREFECT_API_URL of the Prefect profile 'team'"


def test_an_empty_address_asks_for_a_server_of_ones_own_whatever_the_profile_says(
    clean: Path, tmp_path: Path, sleeping_workers: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "profiles.toml").write_text(PROFILE)
    monkeypatch.setenv("PREFECT_API_URL", "")
    with server.reached(kept=False) as found:
        assert found.is_own


def test_a_profile_that_names_no_server_leaves_it_at_ones_own(
    clean: Path, tmp_path: Path, sleeping_workers: None
) -> None:
    (tmp_path / "profiles.toml").write_text('active = "mine"\n[profiles.mine]\nPREFECT_API_KEY = "pnu_1"\n')
    with server.reached(kept=False) as found:
        assert found.is_own
        from prefect.settings import PREFECT_API_KEY, PREFECT_API_URL, PREFECT_HOME

        assert PREFECT_API_URL.value() == found.api_url
        assert PREFECT_HOME.value() == clean
        assert PREFECT_API_KEY.value() is None


@pytest.mark.parametrize(
    ("url", "meant"),
    [
        ("127.0.0.1:4200/api", "http://127.0.0.1:4200/api"),
        ("localhost:4200", "http://localhost:4200/api"),
        ("prefect.example.com/api", "https://prefect.example.com/api"),
    ],
)
def test_an_address_without_a_scheme_is_refused_at_once_with_the_one_that_was_meant(
    clean: Path, monkeypatch: pytest.MonkeyPatch, url: str, meant: str
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", url)
    with pytest.raises(Trouble, match=rf"is {url}, which is not the address of a server: did you mean {meant}\?$"):
        server.configured()


def test_the_address_of_the_ui_is_told_from_the_apis_at_once(
    clean: Path, api: FakePrefect, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.status = 404
    ui = api.url.removesuffix("/api")
    monkeypatch.setattr(place, "PATIENCE_S", 60.0)
    with pytest.raises(Trouble, match=rf"answers 404, which is not Prefect's API\. Did you mean {ui}/api\?$"):
        Place(ui, clean, is_own=False).wait_for_server()


def test_a_configured_server_that_does_not_answer_is_told_with_what_names_it(
    clean: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(place, "PATIENCE_S", 0.0)
    gone = Place(
        "http://127.0.0.1:9/api", clean, is_own=False, named_by="PREFECT_API_URL of the Prefect profile 'team'"
    )
    with pytest.raises(
        Trouble, match=r"does not answer \(.*\)\. Is PREFECT_API_URL of the Prefect profile 'team' right"
    ):
        gone.wait_for_server()


def test_what_make_up_keeps_is_used_and_left_also_by_who_exported_its_address(
    clean: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon = Daemon("server", clean)
    start(daemon, kept=True, url="http://127.0.0.1:4242/api")
    try:
        with server.reached(kept=False) as found:
            assert found.api_url == os.environ["PREFECT_API_URL"] == "http://127.0.0.1:4242/api"
            assert found.is_own
        with server.reached(kept=False) as found:  # PREFECT_API_URL is set by now
            assert found.is_own
            assert os.environ["PREFECT_API_AUTH_STRING"] == found.password
        assert daemon.find() is not None
    finally:
        daemon.stop()


def test_an_address_that_make_up_printed_and_make_down_took_away_means_a_server_of_ones_own(
    clean: Path, sleeping_workers: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:4242/api")
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "gpu:old")
    with server.reached(kept=False) as found:
        assert found.is_own
        assert found.password != "gpu:old"


def test_what_a_killed_make_left_is_ended_first(clean: Path, sleeping_workers: None) -> None:
    left = start(Daemon("server", clean))
    with server.reached(kept=False):
        assert left.wait(5) is not None


# --- shared ------------------------------------------------------------------------------------------------------------


def test_two_commands_share_a_server_and_the_last_one_stops_it(clean: Path, sleeping_workers: None) -> None:
    daemon = Daemon("server", clean)
    with server.reached(kept=False) as first:
        start(daemon, url=first.api_url)
        with server.reached(kept=False) as second:
            assert second.api_url == first.api_url
            second.start_worker()
        assert daemon.find() is not None
        assert first.worker.find() is not None, "also what the one that left has started is left to the other"
    assert daemon.find() is None
    assert first.worker.find() is None


def test_make_up_keeps_what_a_make_run_has_started(clean: Path, sleeping_workers: None) -> None:
    daemon = Daemon("server", clean)
    with server.reached(kept=False) as first:
        start(daemon, url=first.api_url)
        with server.reached(kept=True) as up:
            up.start_worker()
            up.keep()
    try:
        assert daemon.find() is not None
        assert up.worker.find() is not None
    finally:
        up.worker.stop()
        daemon.stop()


@pytest.fixture
def team(clean: Path, sleeping_workers: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Daemon]:
    """The worker that `PREFECT_API_URL=... make up` keeps, seen from another shell that names no server."""
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    with server.reached(kept=True) as found:
        found.start_worker()
        found.keep()
    monkeypatch.delenv("PREFECT_API_URL")
    yield found.worker
    found.worker.stop()


def test_the_worker_kept_for_a_configured_server_is_not_another_makes_to_end(clean: Path, team: Daemon) -> None:
    before = team.find()
    assert before is not None
    with server.reached(kept=False) as found:
        found.start_worker()
        assert found.worker.find() not in (None, before), "the server of our own has a worker of its own beside it"
    assert team.find() == before
    assert found.worker.find() is None


def test_the_worker_kept_for_our_own_server_does_not_count_for_a_configured_one(
    clean: Path, sleeping_workers: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = Daemon("worker", clean)
    start(own, kept=True, url="http://127.0.0.1:4242/api")
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    try:
        with server.reached(kept=False) as found:
            found.start_worker()
            running = found.worker.find()
            assert running is not None
            assert running.url == "http://127.0.0.1:9/api"
        assert own.find() is not None
    finally:
        own.stop()


def test_the_worker_kept_for_one_configured_server_is_not_taken_for_anothers(
    clean: Path, team: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:10/api")
    with (
        pytest.raises(
            Trouble, match=r"^Your worker here serves http://127.0.0.1:9/api: `prefect-gpu down` it first\.$"
        ),
        server.reached(kept=False) as found,
    ):
        found.start_worker()
    assert team.find() is not None


def test_what_was_started_is_stopped_also_after_an_error(clean: Path, sleeping_workers: None) -> None:
    def interrupted() -> None:
        with server.reached(kept=True) as found:
            start(Daemon("server", clean), url=found.api_url)
            found.start_worker()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert Daemon("server", clean).find() is None
    assert Daemon("worker", clean).find() is None


def test_the_password_lives_as_long_as_the_server(clean: Path, sleeping_workers: None) -> None:
    with server.reached(kept=False) as found:
        start(Daemon("server", clean), url=found.api_url)
        first = found.password
        assert (clean / "password").stat().st_mode & 0o777 == 0o600
        with server.reached(kept=False) as second:
            assert second.password == first
    with server.reached(kept=False) as later:
        start(Daemon("server", clean), url=later.api_url)
        assert later.password != first


# --- is it ours ------------------------------------------------------------------------------------------------------


def test_a_server_of_another_home_that_took_the_port_is_not_taken_for_ours(api: FakePrefect) -> None:
    api.home = "/mine"
    assert apis.unusable(api.url, "gpu:1", "/mine") is None
    assert apis.unusable(api.url, "gpu:1", "/other") == "is another one's"
    api.password = "Basic bWU6c2VjcmV0"
    assert apis.unusable(api.url, "gpu:1", "/mine") == "is another one's"
    assert apis.unusable(api.url, "gpu:1") is None, "that a password is wrong is said where something is done with it"


def test_another_users_server_that_took_the_port_first_is_told_no_password(
    clean: Path, api: FakePrefect, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = Place(api.url, clean, is_own=True, password="gpu:secret")
    daemon = Daemon("server", clean)
    ends = "import time; time.sleep(0.5); raise SystemExit('address already in use')"
    found.server = start(daemon, ["-c", ends])
    found.needed.append(daemon)
    somebody = os.geteuid() + 1
    monkeypatch.setattr(place, "listener", lambda _port: somebody)
    with pytest.raises(Trouble, match="The server ended: address already in use"):
        found.wait_for_server()
    found.server.wait(5)
    assert api.asked == []


def test_who_listens_is_known_by_its_user() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        port = holder.getsockname()[1]
        assert place.listener(port) is None
        holder.listen()
        assert place.listener(port) == os.geteuid()


def test_an_address_that_is_not_prefects_is_told(api: FakePrefect) -> None:
    assert apis.unusable(api.url) is None
    api.status = 404
    assert apis.unusable(api.url) == "answers 404, which is not Prefect's API"
    assert "does not answer" in (apis.unusable("http://127.0.0.1:9/api") or "")


def test_a_wished_port_that_is_taken_is_replaced() -> None:
    free = server.free_port(0)
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        taken = holder.getsockname()[1]
        assert server.free_port(taken) != taken
    assert server.free_port(free) == free


# --- no job is left behind ---------------------------------------------------------------------------------------------


def test_more_runs_than_the_server_gives_at_once_are_all_found(api: FakePrefect) -> None:
    api.running = [run_at_work(str(number)) for number in range(450)]
    with apis.asked(api.url) as client:
        assert {run.id for run in at_work.runs(client)} == {run.id for run in api.running}


def test_a_server_that_is_busy_for_a_moment_is_asked_again(api: FakePrefect) -> None:
    api.running = [run_at_work("1")]
    api.statuses = [503]
    with apis.asked(api.url) as client:
        assert [run.id for run in at_work.runs(client)] == [run_id("1")]


@pytest.fixture
def at_end(clean: Path, sleeping_workers: None, api: FakePrefect) -> Iterator[Place]:
    """A place with a server of our own and a worker, both started here, as `make run` has them."""
    found = Place(api.url, clean, is_own=True)
    found.start_worker()
    yield found
    found.worker.stop()


def test_no_worker_and_no_server_is_stopped_under_a_job(at_end: Place, api: FakePrefect) -> None:
    before = run_at_work("1", age_s=60)  # of a make that was killed: nobody would hear of it, and it is not waited for
    api.running = [before, run_at_work("2", age_s=-1), run_at_work("3", age_s=-1, state="CANCELLING")]
    alive_at_cancel: list[bool] = []
    api.at_cancel = lambda: alive_at_cancel.append(at_end.worker.find() is not None)
    at_end.leave()
    assert api.running == [before]
    assert alive_at_cancel == [True, True]
    assert at_end.worker.find() is None
    assert what_is_left(at_end) == ": nothing was left running."


def test_a_run_that_was_not_picked_up_yet_is_cancelled_before_the_worker_is_stopped(
    at_end: Place, api: FakePrefect
) -> None:
    api.running = [run_at_work("7", state="SCHEDULED"), run_at_work("8", state="SCHEDULED")]
    at_end.run_id = run_id("7")
    at_end.leave()
    assert api.names == ["8"], "another's, for later"
    assert at_end.run_id is None


def test_a_job_that_does_not_end_is_told_and_the_worker_is_stopped_all_the_same(
    at_end: Place, api: FakePrefect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(place, "GIVE_BACK_S", 0.0)
    api.running = [run_at_work("1", age_s=-1)]
    at_end.run_id = run_id("1")
    with pytest.raises(Trouble, match=r"not seen to end within 0 s: brave-otter-1\. `prefect-gpu reap`"):
        at_end.leave()
    assert at_end.worker.find() is None
    assert what_is_left(at_end).startswith(f" before the run {run_id('1')} was seen to end")


def test_a_server_that_is_gone_holds_up_no_end(clean: Path, sleeping_workers: None) -> None:
    gone = Place("http://127.0.0.1:9/api", clean, is_own=True)
    gone.start_worker()
    gone.run_id = run_id("1")
    gone.leave()
    assert gone.worker.find() is None
    assert gone.run_id == run_id("1"), "what became of it is not known"


def test_what_a_command_told_prefect_arrives_while_the_server_is_there(
    clean: Path, sleeping_workers: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    was_there = list[bool]()
    monkeypatch.setattr(
        EventsWorker, "drain_all", lambda **_: was_there.append(Daemon("server", clean).find() is not None)
    )
    start(Daemon("server", clean))
    Place("http://127.0.0.1:9/api", clean, is_own=True).leave()
    assert was_there == [True]
    assert Daemon("server", clean).find() is None
    logging.getLogger("EventsWorker").warning(
        "Still processing items: 1 items remaining..."
    )  # as Prefect does meanwhile
    assert caplog.text == ""


def test_a_worker_that_others_share_is_known_by_its_home(tmp_path: Path) -> None:
    assert worker_name(tmp_path, is_own=False) != worker_name(tmp_path / "other", is_own=False)
    assert worker_name(tmp_path, is_own=True) == worker_name(tmp_path / "other", is_own=True)


# --- what a server says against us --------------------------------------------------------------------------------------


def refused(status: int, content: Any) -> PrefectHTTPStatusError:
    request = httpx.Request("POST", "http://127.0.0.1:1/api/deployments/x/create_flow_run")
    response = httpx.Response(status, json=content, request=request)
    try:
        response.raise_for_status()
    except httpx.HTTPStatusError as error:
        return PrefectHTTPStatusError.from_httpx_error(error)
    raise AssertionError("no error")


def test_parameters_that_an_older_server_does_not_take_are_one_sentence() -> None:
    detail = "Error creating flow run: Validation failed for field 'providers[0]'."
    with (
        pytest.raises(
            Trouble, match=r"^http://127.0.0.1:1/api refuses: Error creating flow run: .* 'providers\[0\]'\.$"
        ),
        apis.asked("http://127.0.0.1:1/api"),
    ):
        raise refused(409, {"detail": detail})
