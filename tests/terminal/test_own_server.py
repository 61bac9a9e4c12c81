"""The whole way with a real server and worker of one's own: what a user sees, and that nobody else sees or does anything."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect as websocket

from prefect_gpu.flows.terminal.daemon import Daemon
from tests.stack import ROOT

pytestmark = pytest.mark.server
CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to type commands in, and beside it a home of its own."""
    return tmp_path_factory.mktemp("project")


def variables(project: Path, **more: str) -> dict[str, str]:
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("PREFECT_", "MAKE"))}
    return {**inherited, "PREFECT_GPU_HOME": str(project / "home"), "HOME": str(project), **more}


def words(project: Path, word: str, **more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "prefect_gpu.flows.terminal.made", word],
        cwd=project,
        env=variables(project, **more),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def nothing_runs(project: Path) -> bool:
    home = project / "home"
    return Daemon("server", home).find() is None and Daemon("worker", home).find() is None


def shape(output: str) -> list[str]:
    """Its lines without what differs from run to run: numbers, names, times, the width of columns; and as make says them."""
    told = re.sub(r"pg-[a-z0-9-]{37}", "NAME", output).replace("prefect-gpu providers", "make providers")
    told = re.sub(r"until [^\n]*?( {2,}|$)", r"until TIME\1", told, flags=re.MULTILINE)
    return [
        " ".join(re.sub(r"[0-9][0-9.,]*( s| min)?", "N", line).split()) for line in told.splitlines() if line.strip()
    ]


@pytest.mark.timeout(400)
def test_run_shows_the_six_steps_and_leaves_nothing_running(project: Path) -> None:
    shown, told = words(project, "run").communicate(timeout=300)
    starts = [line[:2] for line in shown.splitlines() if line[:1].isdigit()]
    assert starts == ["1 ", "2 ", "3 ", "4 ", "5 ", "6 "], shown + told
    assert "  | 42\n" in shown
    assert "instances left behind: 0" in shown
    assert "Next: " in shown
    readme = (ROOT / "README.md").read_text().partition("$ make run\n")[2].partition("```")[0]
    assert [line for line in shape(readme) if line not in shape(shown)] == [], "README shows something else"
    assert "\x1b" not in shown + told
    assert not [line for line in told.splitlines() if not line.endswith(" ...")], told
    assert nothing_runs(project)


@pytest.mark.timeout(400)
def test_ctrl_c_cancels_the_job_and_waits_until_its_machine_is_given_back(project: Path) -> None:
    run = words(project, "run", JOB="echo here; sleep 300", PROVIDERS="local")
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


@dataclass
class Up:
    """What `make up` keeps, and what it printed."""

    project: Path
    printed: str
    ui: str
    password: str

    def read(self, path: str, body: Any = None, **headers: str) -> tuple[int, str]:
        """Status and text of the answer to somebody who has only these headers."""
        data = None if body is None else json.dumps(body).encode()
        try:
            with urlopen(
                Request(self.ui + path, data, {"Content-Type": "application/json", **headers}), timeout=20
            ) as answer:
                return answer.status, answer.read().decode(errors="replace")
        except HTTPError as error:
            return error.code, error.read().decode(errors="replace")


@pytest.fixture(scope="module")
def up(project: Path) -> Iterator[Up]:
    process = words(project, "up")
    printed, told = process.communicate(timeout=300)
    try:
        assert process.returncode == 0, printed + told
        (ui,) = re.findall(r"Prefect UI +(http://127\.0\.0\.1:\d+)\n", printed)
        yield Up(project, printed, ui, (project / "home" / "password").read_text().strip())
    finally:
        down = words(project, "down", FORCE="1")
        shown, told = down.communicate(timeout=100)
    assert down.returncode == 0, shown + told
    assert nothing_runs(project)
    assert not (project / "home" / "password").exists()


@pytest.mark.timeout(600)
def test_up_keeps_server_and_worker_for_many_runs_until_down(up: Up) -> None:
    both = [words(up.project, "run", JOB=f"echo {word}", PROVIDERS="local") for word in ("one", "two")]
    for run, word in zip(both, ("one", "two"), strict=True):
        shown, told = run.communicate(timeout=300)
        assert run.returncode == 0, shown + told
        assert f"  | {word}\n" in shown
    assert not nothing_runs(up.project)


@pytest.mark.timeout(300)
def test_the_server_does_by_itself_what_its_automations_say(up: Up) -> None:
    token = base64.b64encode(up.password.encode()).decode()
    failing = words(up.project, "run", JOB="exit 3", PROVIDERS="local")
    failing.communicate(timeout=300)
    assert failing.returncode != 0
    question, said = {"flows": {"name": {"any_": ["reap"]}}}, ""
    for _ in range(60):
        _, said = up.read("/api/flow_runs/filter", question, Authorization=f"Basic {token}")
        if any(run["created_by"] and run["created_by"]["type"] == "AUTOMATION" for run in json.loads(said)):
            break
        time.sleep(0.5)
    else:
        raise AssertionError(f"no reap came after a run that failed: {said}")


@pytest.mark.timeout(300)
def test_what_make_up_printed_is_all_that_prefects_own_cli_needs_to_watch_a_run(up: Up) -> None:
    exports = [line.strip() for line in up.printed.splitlines() if line.strip().startswith("export ")]

    def watched(command: str) -> subprocess.Popen[str]:
        line = f"prefect deployment run provision/default -p command='{command}' -p providers='[\"local\"]' --watch"
        return subprocess.Popen(
            ["sh", "-c", "\n".join([*exports, f"exec {Path(sys.executable).parent}/{line}"])],
            env=variables(up.project),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    good, failed = watched("echo wat''ched"), watched("exit 3")
    shown, told = good.communicate(timeout=200)
    assert good.returncode == 0, shown + told
    for part in ("watched", "1 offers", "5 run", "6 give back"):
        assert part in shown, shown
    shown, told = failed.communicate(timeout=200)
    assert failed.returncode == 1, shown + told


def test_up_and_its_worker_s_log_say_when_the_last_reap_completed(up: Up) -> None:
    assert re.search(r"Reap +every five minutes; (no reap has completed on|the last reap completed)", up.printed)
    first = (up.project / "home" / "worker.log").read_text().splitlines()[0]
    assert first == "no reap has completed on this server yet"


# --- nobody else ------------------------------------------------------------------------------------------------------

SECRETS = [
    ("/api/block_documents/filter", {"include_secrets": True}),
    ("/api/deployments/filter", {}),
    ("/api/flow_runs/filter", {}),
    ("/api/logs/filter", {}),
    ("/api/variables/filter", {}),
    ("/api/admin/settings", None),
    ("/api/csrf-token?client=me", None),
    ("/api/health/../block_documents/filter", {}),
    ("/api//block_documents/filter", {}),
    ("/api/graphql", {}),
]


@pytest.mark.parametrize(("path", "body"), SECRETS)
def test_who_has_no_password_reads_nothing(up: Up, path: str, body: Any) -> None:
    assert up.read(path, body)[0] in (401, 404, 405)
    wrong = base64.b64encode(b"gpu:wrong").decode()
    assert up.read(path, body, Authorization=f"Basic {wrong}")[0] in (401, 404, 405)


def test_who_has_no_password_sees_that_a_server_is_there_and_no_more(up: Up) -> None:
    assert up.read("/api/health") == (200, "true")
    settings = json.loads(up.read("/ui-settings")[1])
    assert settings["auth"] == "BASIC"
    assert up.password not in json.dumps(settings)
    right = base64.b64encode(up.password.encode()).decode()
    assert up.read("/api/flow_runs/filter", {}, Authorization=f"Basic {right}")[0] == 200, "else nothing was shown"


@pytest.mark.parametrize("path", ["events/in", "events/out", "logs/out", "task_runs/subscriptions/scheduled"])
@pytest.mark.parametrize("subprotocol", ["prefect", ""])
def test_who_has_no_password_hears_and_says_nothing_over_a_websocket(up: Up, path: str, subprotocol: str) -> None:
    url = f"{up.ui.replace('http', 'ws')}/api/{path}"
    with pytest.raises((ConnectionClosed, InvalidStatus)):
        hear(url, subprotocol)


def hear(url: str, subprotocol: str) -> None:
    with websocket(url, subprotocols=[subprotocol] if subprotocol else None) as socket:  # type: ignore[list-item]
        socket.send(json.dumps({"type": "auth", "token": "gpu:wrong"}))
        for _ in range(3):
            socket.recv(timeout=10)
            socket.send(json.dumps({"type": "filter", "filter": {}}))


@pytest.mark.parametrize("host", ["evil.example", "evil.example:{port}", "127.0.0.1.evil.example", "[::1]", ""])
def test_a_name_that_is_not_this_machines_is_not_answered(up: Up, host: str) -> None:
    for path in ("/", "/api/health", "/ui-settings"):
        assert up.read(path, Host=host.format(port=up.ui.rpartition(":")[2]))[0] == 400


AS_ANOTHER_USER = """
import os, sys, urllib.error, urllib.request
home, api = sys.argv[1:]
opened = []
for root in (home, home + "/storage", home + "/prefect.db", home + "/password", home + "/server.log", home + "/worker.log"):
    try:
        os.listdir(root) if os.path.isdir(root) else open(root).read()
        opened.append(root)
    except OSError:
        pass
for pid in filter(str.isdigit, set(os.listdir("/proc")) - {str(os.getpid())}):
    try:
        with open(f"/proc/{pid}/environ") as file:
            if "AUTH_STRING" in file.read():
                opened.append(pid)
    except OSError:
        pass
    try:
        with open(f"/proc/{pid}/cmdline") as file:
            if "gpu:" in file.read():
                opened.append(pid)
    except OSError:
        pass
for path in ("/block_documents/filter", "/deployments/filter", "/work_pools/filter"):
    try:
        request = urllib.request.Request(api + path, b"{}", {"Content-Type": "application/json"})
        opened.append(urllib.request.urlopen(request).read())
    except urllib.error.HTTPError as error:
        assert error.code == 401
print(opened)
"""


@pytest.mark.root
@pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("setpriv"), reason="becoming another user needs root and setpriv"
)
def test_another_user_of_the_machine_reads_and_runs_nothing(up: Up) -> None:
    another = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    command = [*another, "/usr/bin/python3", "-c", AS_ANOTHER_USER, str(up.project / "home"), f"{up.ui}/api"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd="/", check=False)
    assert ran.stdout == "[]\n", ran.stdout + ran.stderr


def test_everything_that_the_server_keeps_is_for_its_user_alone(up: Up) -> None:
    found = [path for path in (up.project / "home").rglob("*") if not path.is_symlink()]
    assert found
    assert [path for path in found if path.stat().st_mode & 0o077] == []


# --- in a browser ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if not Path(CHROMIUM).exists():
        pytest.skip("no Chromium")
    from playwright.sync_api import sync_playwright

    options = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(
            executable_path=CHROMIUM, args=[*options, "--host-resolver-rules=MAP evil.example 127.0.0.1"]
        )
        yield launched
        launched.close()


@pytest.mark.browser
def test_the_ui_lets_in_who_has_what_make_up_printed(up: Up, browser: Any) -> None:
    page = browser.new_page()
    page.set_default_timeout(120_000)  # a busy machine takes its time to draw a page
    page.goto(up.ui)
    page.locator("input[type=password]").fill("gpu:wrong")
    page.keyboard.press("Enter")
    page.wait_for_timeout(1000)
    assert "/login" in page.url
    page.locator("input[type=password]").fill(up.password)
    page.keyboard.press("Enter")
    page.wait_for_url("**/dashboard**", timeout=120_000)
    page.goto(f"{up.ui}/v2/deployments")
    page.get_by_text("provision", exact=False).first.wait_for(timeout=120_000)
    page.close()


ATTACK = """async (ui) => {
  const got = [];
  const api = ui + "/api";
  const ask = async (name, path, options) => {
    try { const answer = await fetch(api + path, options); got.push([name, answer.status, await answer.text()]); }
    catch (error) { got.push([name, "refused"]); }
  };
  const post = {method: "POST", body: "{}", headers: {"Content-Type": "application/json"}};
  await ask("read", "/block_documents/filter", post);
  await ask("simple", "/deployments/filter", {method: "POST", body: "{}"});
  await ask("unseen", "/flow_runs/filter", {method: "POST", body: "{}", mode: "no-cors"});
  await ask("health", "/health", {});
  await ask("cookies", "/block_documents/filter", {...post, credentials: "include"});
  const heard = await new Promise((done) => {
    const socket = new WebSocket(api.replace("http", "ws") + "/events/out", "prefect");
    socket.onopen = () => socket.send(JSON.stringify({type: "auth", token: null}));
    socket.onmessage = () => done("heard");
    socket.onclose = () => done("closed");
    socket.onerror = () => done("closed");
  });
  got.push(["socket", heard]);
  const frame = document.createElement("iframe");
  frame.src = ui;
  document.body.append(frame);
  await new Promise((done) => { frame.onload = done; setTimeout(done, 3000); });
  return got;
}"""


@pytest.mark.browser
def test_a_page_of_another_origin_reads_and_runs_nothing(up: Up, browser: Any) -> None:
    class Evil(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(b"<body>win a GPU</body>")

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Evil) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        page = browser.new_page()
        said: list[str] = []
        page.on("console", lambda message: said.append(message.text))
        page.goto(f"http://evil.example:{http.server_port}/")
        got = {name: rest for name, *rest in page.evaluate(ATTACK, up.ui)}
        frames = [frame.url for frame in page.frames]
        page.close()
        http.shutdown()
    assert got["unseen"] == [0, ""], "what the browser hides from the page; the server refused it, too"
    assert {name for name, rest in got.items() if rest == ["refused"]} == {"read", "simple", "health", "cookies"}
    assert got["socket"] == ["closed"]
    assert up.ui not in frames[1:], frames
    assert any("frame-ancestors" in line for line in said), said


@pytest.mark.browser
def test_a_page_that_points_its_name_at_this_machine_is_not_answered(up: Up, browser: Any) -> None:
    page = browser.new_page()
    answer = page.goto(up.ui.replace("127.0.0.1", "evil.example"))
    assert answer.status == 400
    assert page.evaluate("fetch('/api/health').then((answer) => answer.status)") == 400
    page.close()
