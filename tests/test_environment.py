"""Server and worker are found, started and stopped as they should be, and nothing of them stays."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

import flows
from flows import __main__ as subcommands
from flows import at_work, environment
from flows.environment import Background, Daemon, Place
from flows.terminal import Trouble

ROOT = Path(__file__).parents[1]
SLEEP = ["-c", "import time; time.sleep(60)"]


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    daemon = Daemon("sleeper", tmp_path)
    yield daemon
    daemon.stop(grace_s=1)


def start(daemon: Daemon, arguments: list[str] = SLEEP, **changes: Any) -> subprocess.Popen[bytes]:
    given: dict[str, Any] = {"kept": False, "url": "http://127.0.0.1:1/api", **changes}
    return daemon.start(arguments, dict(os.environ), **given)


def test_a_running_process_is_found_with_what_was_noted_of_it(daemon: Daemon) -> None:
    process = start(daemon, kept=True)
    assert daemon.find() == Background(process.pid, kept=True, url="http://127.0.0.1:1/api")


def test_what_is_stopped_is_gone(daemon: Daemon) -> None:
    process = start(daemon)
    daemon.stop()
    assert daemon.find() is None
    with pytest.raises(ProcessLookupError):
        os.kill(process.pid, 0)


def test_what_does_not_hear_sigterm_is_killed(daemon: Daemon) -> None:
    deaf = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)"
    )
    process = start(daemon, ["-c", deaf])
    while "deaf" not in daemon.log.read_text():
        time.sleep(0.05)
    daemon.stop(grace_s=0.3)
    assert process.wait(5) in (0, -signal.SIGKILL)
    assert daemon.find() is None


def test_a_record_whose_process_is_dead_is_not_believed(daemon: Daemon) -> None:
    process = start(daemon)
    process.kill()
    process.wait(5)
    assert daemon.record.exists()
    assert daemon.find() is None


def test_a_foreign_process_of_the_same_id_is_not_ours_to_end(daemon: Daemon) -> None:
    daemon.record.write_text(json.dumps(Background(os.getpid(), kept=False, url="http://127.0.0.1:1/api")._asdict()))
    daemon.lock.touch()
    daemon.stop()  # would end this very test


def test_a_second_one_is_refused_while_the_first_runs(daemon: Daemon) -> None:
    start(daemon)
    with pytest.raises(Trouble, match="wait a moment"):
        start(daemon)


def test_a_wished_port_that_is_taken_is_replaced(free_tcp_port: int) -> None:
    import socket

    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        taken = holder.getsockname()[1]
        assert environment.free_port(taken) != taken
    assert environment.free_port(free_tcp_port) == free_tcp_port


@pytest.fixture
def free_tcp_port() -> int:
    return environment.free_port(0)


# --- which server -----------------------------------------------------------------------------------------------------


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A project folder without anything, in an environment without Prefect's variables; its .prefect-gpu."""
    for variable in ("PREFECT_API_URL", "PREFECT_HOME", "PREFECT_API_KEY", "PREFECT_API_AUTH_STRING", "FORCE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    return tmp_path / ".prefect-gpu"


def test_a_configured_server_is_used_and_none_is_started(clean: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "https://prefect.example/api/")
    with environment.reached(kept=False, home=clean) as place:
        assert place.api_url == "https://prefect.example/api"
        assert not place.is_own
        assert place.started == []


def test_what_make_up_keeps_is_used_and_left(clean: Path) -> None:
    clean.mkdir()
    server = Daemon("server", clean)
    start(server, kept=True, url="http://127.0.0.1:4242/api")
    try:
        with environment.reached(kept=False, home=clean) as place:
            assert place.api_url == os.environ["PREFECT_API_URL"] == "http://127.0.0.1:4242/api"
            assert place.is_own
        assert server.find() is not None
    finally:
        server.stop()


def test_what_a_killed_make_left_is_ended_first(clean: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "_start_server", lambda _place: None)
    clean.mkdir()
    left = start(Daemon("server", clean))
    with environment.reached(kept=False, home=clean):
        assert left.wait(5) is not None


@pytest.fixture
def sleeping_workers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Workers that only sleep, and servers that are none: which of them are found, started and stopped is the question."""
    begin = Daemon.start
    begun: list[subprocess.Popen[bytes]] = []

    def sleep(daemon: Daemon, _: list[str], environment: dict[str, str], **noted: Any) -> subprocess.Popen[bytes]:
        begun.append(begin(daemon, SLEEP, environment, **noted))
        return begun[-1]

    monkeypatch.setattr(Daemon, "start", sleep)
    monkeypatch.setattr(environment, "_start_server", lambda _place: None)
    yield
    for process in begun:
        process.wait(5)  # each was stopped by then


@pytest.fixture
def team(clean: Path, sleeping_workers: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Daemon]:
    """The worker that `PREFECT_API_URL=... make up` keeps, seen from another shell that names no server."""
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    with environment.reached(kept=True, home=clean) as place:
        place.start_worker()
    monkeypatch.delenv("PREFECT_API_URL")
    yield place.worker
    place.worker.stop()


def test_the_worker_kept_for_a_configured_server_is_not_another_makes_to_end(clean: Path, team: Daemon) -> None:
    before = team.find()
    assert before is not None
    with environment.reached(kept=False, home=clean) as place:
        place.start_worker()
        assert place.worker.find() not in (None, before), "the server of our own has a worker of its own beside it"
    assert team.find() == before
    assert place.worker.find() is None


def test_the_worker_kept_for_our_own_server_does_not_count_for_a_configured_one(
    clean: Path, sleeping_workers: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    clean.mkdir()
    own = Daemon("worker", clean)
    start(own, kept=True, url="http://127.0.0.1:4242/api")
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    try:
        with environment.reached(kept=False, home=clean) as place:
            place.start_worker()
            found = place.worker.find()
            assert found is not None
            assert found.url == "http://127.0.0.1:9/api"
        assert own.find() is not None
    finally:
        own.stop()


def test_the_worker_kept_for_one_configured_server_is_not_taken_for_anothers(
    clean: Path, team: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:10/api")
    with (
        pytest.raises(
            Trouble, match=r"^The worker of this project serves http://127.0.0.1:9/api: `make down` it first\.$"
        ),
        environment.reached(kept=False, home=clean) as place,
    ):
        place.start_worker()
    assert team.find() is not None


def test_two_makes_do_not_share_one_database(clean: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "_start_server", lambda _place: None)
    clean.mkdir()
    with (clean / "owner.lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(Trouble, match="Another make is at work"), environment.reached(kept=False, home=clean):
            pass


def test_what_was_started_is_stopped_also_after_an_error(clean: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def start_sleeper(place: environment.Place) -> None:
        place.started.append(Daemon("server", place.home))
        start(place.started[-1])

    monkeypatch.setattr(environment, "_start_server", start_sleeper)
    with pytest.raises(KeyboardInterrupt), environment.reached(kept=True, home=clean):
        raise KeyboardInterrupt
    assert Daemon("server", clean).find() is None


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Trouble, match="cannot be written"):
        environment.make_home(tmp_path / "file" / ".prefect-gpu")


class Api(BaseHTTPRequestHandler):
    """As much of Prefect's API as ending jobs asks."""

    running: ClassVar[list[dict[str, Any]]] = []
    status: ClassVar[int] = 200
    password: ClassVar[str] = ""  # the header that it wants
    at_cancel: ClassVar[Callable[[], None]] = staticmethod(lambda: None)

    def do_GET(self) -> None:
        if self.path.endswith("/health"):
            self._answer({})
            return
        if self.path.endswith("/admin/settings"):
            self._answer({"home": "/another/project/.prefect-gpu"})
            return
        named = [run for run in Api.running if self.path.endswith(f"/flow_runs/{run['id']}")]
        self._answer(named[0] if named else {"id": "?", "state_type": "CANCELLED"})

    def do_POST(self) -> None:
        question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path.endswith("set_state") and self._is_known():
            Api.at_cancel()
            Api.running = [run for run in Api.running if f"/{run['id']}/" not in self.path]
        wanted = question.get("flow_runs", {}).get("state", {}).get("type", {}).get("any_", [])
        self._answer([run for run in Api.running if run["state_type"] in wanted])

    def _is_known(self) -> bool:
        return not self.password or self.headers.get("Authorization") == self.password

    def _answer(self, content: Any) -> None:
        self.send_response(self.status if self._is_known() else 401)
        self.end_headers()
        self.wfile.write(json.dumps(content).encode())

    def log_message(self, *_: Any) -> None:
        pass


def run_at_work(name: str, worker: str = "somebody's", state: str = "RUNNING", age_s: float = 0) -> dict[str, Any]:
    since = datetime.now(UTC) - timedelta(seconds=age_s)
    return {
        "id": name,
        "name": f"brave-otter-{name}",
        "labels": {"prefect.worker.name": worker},
        "state_type": state,
        "state": {"type": state, "timestamp": since.isoformat()},
    }


@pytest.fixture
def api() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Api) as http:
        threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}/api"
        http.shutdown()
    Api.running, Api.status, Api.password = [], 200, ""
    Api.at_cancel = staticmethod(lambda: None)


def test_another_projects_server_that_took_the_port_first_is_not_taken_for_ours(clean: Path, api: str) -> None:
    clean.mkdir()
    place = environment.Place(api, clean, is_own=True)
    ends = "import time; time.sleep(0.5); raise SystemExit('address already in use')"
    place.server = start(Daemon("server", clean), ["-c", ends])
    with pytest.raises(Trouble, match="did not start: address already in use"):
        place.wait_for_server()


def test_a_server_that_wants_a_password_is_not_taken_for_another_projects(api: str) -> None:
    assert not at_work.is_of(api, "/mine")
    Api.password = "Basic bWU6c2VjcmV0"
    assert at_work.is_of(api, "/mine")


def test_down_is_refused_while_jobs_run_and_forced_it_cancels_them(
    clean: Path, api: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clean.mkdir()
    server = Daemon("server", clean)
    process = start(server, kept=True, url=api)
    Api.running = [run_at_work("1")]
    with pytest.raises(Trouble, match=r"1 job is at work \(brave-otter-1\).*FORCE=1"):
        environment.down(clean)
    assert server.find() is not None
    monkeypatch.setenv("FORCE", "1")
    assert environment.down(clean) == 0
    assert Api.running == []
    assert server.find() is None
    assert process.wait(5) == -signal.SIGTERM
    assert "stopped" in capsys.readouterr().out


@pytest.fixture
def shared(clean: Path, sleeping_workers: None, api: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Daemon]:
    """The worker that `make up` keeps for a server that others use too, with a job of its own and one of theirs."""
    monkeypatch.setenv("PREFECT_API_URL", api)
    with environment.reached(kept=True, home=clean) as place:
        place.start_worker()
    Api.running = [run_at_work("mine", environment.worker_name(clean, kept=True, is_own=False)), run_at_work("theirs")]
    yield place.worker
    place.worker.stop()


def test_down_counts_and_cancels_only_the_jobs_of_this_projects_worker(
    clean: Path, shared: Daemon, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(Trouble, match=r"1 job is at work \(brave-otter-mine\).*FORCE=1"):
        environment.down(clean)
    alive_at_cancel: list[bool] = []
    Api.at_cancel = staticmethod(lambda: alive_at_cancel.append(shared.find() is not None))
    monkeypatch.setenv("FORCE", "1")
    assert environment.down(clean) == 0
    assert [run["id"] for run in Api.running] == ["theirs"]
    assert alive_at_cancel == [True], "the worker that is to give the machine back is stopped afterwards"
    assert shared.find() is None
    assert capsys.readouterr().out.startswith("The worker for http://127.0.0.1:")


@pytest.mark.parametrize(
    ("variable", "value", "header"),
    [("PREFECT_API_KEY", "pnu_1", "Bearer pnu_1"), ("PREFECT_API_AUTH_STRING", "admin:pass", "Basic YWRtaW46cGFzcw==")],
)
def test_down_gives_a_servers_password_or_says_that_it_is_wrong(
    clean: Path, shared: Daemon, variable: str, value: str, header: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Api, "password", header)
    with pytest.raises(Trouble, match=r"refuses \(401\): are PREFECT_API_KEY.*nothing was stopped.*FORCE=1"):
        environment.down(clean)
    assert shared.find() is not None
    monkeypatch.setenv(variable, value)
    with pytest.raises(Trouble, match=r"1 job is at work \(brave-otter-mine\)"):
        environment.down(clean)
    monkeypatch.setenv("FORCE", "1")
    assert environment.down(clean) == 0
    assert [run["id"] for run in Api.running] == ["theirs"]


def test_down_forced_stops_a_worker_whose_server_says_nothing(
    clean: Path, shared: Daemon, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Api, "password", "unknown here")
    monkeypatch.setenv("FORCE", "1")
    assert environment.down(clean) == 0
    assert shared.find() is None
    assert "Whether a job was at work is not known: `make reap`" in capsys.readouterr().err


def test_a_server_that_is_busy_for_a_moment_is_asked_again(api: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Api.running = [run_at_work("1")]
    monkeypatch.setattr(Api, "status", 503)
    naps: list[float] = []

    def free_after_a_nap(seconds: float) -> None:
        naps.append(seconds)
        Api.status = 200

    monkeypatch.setattr(at_work.time, "sleep", free_after_a_nap)
    assert [run["id"] for run in at_work.runs(api)] == ["1"]
    assert len(naps) == 1


@pytest.fixture
def at_end(clean: Path, sleeping_workers: None, api: str) -> Iterator[Place]:
    """A place with a server of our own and a worker, both started here, as `make run` has them."""
    clean.mkdir()
    place = Place(api, clean, is_own=True)
    place.start_worker()
    yield place
    place.worker.stop()


def test_no_worker_and_no_server_is_stopped_under_a_job(at_end: Place) -> None:
    before = run_at_work("1", age_s=60)  # of a make that was killed: nobody would hear of it, and it is not waited for
    Api.running = [before, run_at_work("2", age_s=-1), run_at_work("3", age_s=-1, state="CANCELLING")]
    alive_at_cancel: list[bool] = []
    Api.at_cancel = staticmethod(lambda: alive_at_cancel.append(at_end.worker.find() is not None))
    at_end.stop()
    assert Api.running == [before]
    assert alive_at_cancel == [True, True]
    assert at_end.worker.find() is None
    assert environment.what_is_left(at_end) == ": nothing was left running."


def test_a_run_that_was_not_picked_up_yet_is_cancelled_before_the_worker_is_stopped(at_end: Place) -> None:
    Api.running = [run_at_work("7", state="SCHEDULED"), run_at_work("8", state="SCHEDULED")]
    at_end.run_id = "7"
    at_end.stop()
    assert [run["id"] for run in Api.running] == ["8"], "another's, for later"
    assert at_end.run_id is None


def test_a_job_that_does_not_end_is_told_and_the_worker_is_stopped_all_the_same(
    at_end: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "GIVE_BACK_S", 0.0)
    Api.running = [run_at_work("1", age_s=-1)]
    at_end.run_id = "1"
    with pytest.raises(Trouble, match=r"not seen to end within 0 s: brave-otter-1\. `make reap`"):
        at_end.stop()
    assert at_end.worker.find() is None
    assert environment.what_is_left(at_end).startswith(" before the run 1 was seen to end")


def test_a_server_that_is_gone_holds_up_no_end(clean: Path, sleeping_workers: None) -> None:
    clean.mkdir()
    place = Place("http://127.0.0.1:9/api", clean, is_own=True)
    place.start_worker()
    place.run_id = "1"
    place.stop()
    assert place.worker.find() is None
    assert place.run_id == "1", "what became of it is not known"


@pytest.mark.parametrize(
    ("run_id", "says"),
    [(None, "Interrupted: nothing was left running."), ("1", "Interrupted before the run 1 was seen")],
)
def test_interrupted_says_that_nothing_is_left_only_where_that_is_known(
    run_id: str | None, says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    @contextlib.contextmanager
    def reached(**_: Any) -> Iterator[Place]:
        yield Place("http://127.0.0.1:9/api", tmp_path, is_own=True, run_id=run_id)

    def interrupted(_: Place) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(environment, "reached", reached)
    monkeypatch.setattr(flows, "console", SimpleNamespace(SUBCOMMANDS={"run": interrupted}), raising=False)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    assert subcommands.main("run") == 130
    assert capsys.readouterr().err.startswith(says)


def test_a_closed_terminal_interrupts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel and the shell both tell it, and the second time would cut off the giving back."""
    ignored: list[Any] = []
    monkeypatch.setattr(signal, "signal", lambda number, handler: ignored.append((number, handler)))
    for number in (signal.SIGINT, signal.SIGHUP):
        with pytest.raises(KeyboardInterrupt):
            subcommands._interrupt(number, None)
    assert ignored == [(signal.SIGHUP, signal.SIG_IGN)]


def test_down_without_anything_up_says_so(clean: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert environment.down(clean) == 0
    assert capsys.readouterr().out == "Nothing is up.\n"


def test_an_address_that_is_not_prefects_is_told(api: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert at_work.unreachable(api) is None
    monkeypatch.setattr(Api, "status", 404)
    assert at_work.unreachable(api) == "answers 404, which is not Prefect's API"
    assert at_work.unreachable("http://127.0.0.1:9/api") == "does not answer"


# --- the whole way, with a real server and worker ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of this project, so that a developer's own .prefect-gpu is left alone."""
    copy = tmp_path_factory.mktemp("project")
    for name in ("flows", "providers", "blocks"):
        for path in (ROOT / name).rglob("*.py"):
            target = copy / path.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    (copy / "prefect.yaml").write_bytes((ROOT / "prefect.yaml").read_bytes())
    return copy


def words(project: Path, word: str, **variables: str) -> subprocess.Popen[str]:
    environment_of_it = {key: value for key, value in os.environ.items() if not key.startswith("PREFECT_")}
    environment_of_it |= {"XDG_STATE_HOME": str(project / "state"), **variables}
    return subprocess.Popen(
        [sys.executable, "-m", "flows", word],
        cwd=project,
        env=environment_of_it,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def nothing_runs(project: Path) -> bool:
    home = project / ".prefect-gpu"
    return Daemon("server", home).find() is None and Daemon("worker", home).find() is None


@pytest.mark.server
@pytest.mark.timeout(400)
def test_run_shows_the_six_steps_and_leaves_nothing_running(project: Path) -> None:
    shown, told = words(project, "run").communicate(timeout=300)
    starts = [line[:2] for line in shown.splitlines() if line[:1].isdigit()]
    assert starts == ["1 ", "2 ", "3 ", "4 ", "5 ", "6 "], shown + told
    assert "  | 42\n" in shown
    assert "instances left behind: 0" in shown
    assert "Next: " in shown
    assert "\x1b" not in shown + told
    assert not [line for line in told.splitlines() if not line.endswith(" ...")], told
    assert nothing_runs(project)


@pytest.mark.server
@pytest.mark.timeout(400)
def test_ctrl_c_cancels_the_job_and_waits_until_its_machine_is_given_back(project: Path) -> None:
    run = words(project, "run", JOB="echo here; sleep 300")
    assert run.stdout is not None
    for line in run.stdout:
        if "here" in line:
            break
    run.send_signal(signal.SIGINT)
    shown, told = run.communicate(timeout=150)
    assert run.returncode == 130, shown + told
    assert "Cancelling: " in shown
    assert "instances left behind: 0" in shown
    assert "Traceback" not in shown + told
    assert nothing_runs(project)


@pytest.mark.server
@pytest.mark.timeout(600)
def test_up_keeps_server_and_worker_for_many_runs_until_down(project: Path) -> None:
    up = words(project, "up")
    shown, told = up.communicate(timeout=300)
    try:
        assert up.returncode == 0, shown + told
        assert "Prefect UI   http://127.0.0.1:" in shown
        both = [words(project, "run", JOB=f"echo {word}") for word in ("one", "two")]
        for run, word in zip(both, ("one", "two"), strict=True):
            shown, told = run.communicate(timeout=300)
            assert run.returncode == 0, shown + told
            assert f"  | {word}\n" in shown
        assert not nothing_runs(project)
    finally:
        down = words(project, "down")
        shown, told = down.communicate(timeout=100)
    assert down.returncode == 0, shown + told
    assert nothing_runs(project)
