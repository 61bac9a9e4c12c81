"""As much of Prefect's API as ending jobs asks, over HTTP, with runs that a test puts there."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from uuid import NAMESPACE_OID, UUID, uuid5

from prefect.client.schemas.objects import FlowRun, State, StateType


def nothing() -> None:
    pass


class FakePrefect:
    """The server; `running` may be changed while it serves."""

    def __init__(self) -> None:
        self.url = ""
        self.running: list[FlowRun] = []
        self.statuses: list[int] = []  # the next answers' instead of 200
        self.status = 200
        self.password = ""  # the header that it wants
        self.home = "/another/home"
        self.at_cancel: Callable[[], None] = nothing
        self.asked: list[str] = []

    @property
    def names(self) -> list[str]:
        return [run.name.removeprefix("brave-otter-") for run in self.running]


def run_id(name: str) -> UUID:
    return uuid5(NAMESPACE_OID, name)


def run_at_work(name: str, worker: str = "somebody's", state: str = "RUNNING", age_s: float = 0) -> FlowRun:
    since = datetime.now(UTC) - timedelta(seconds=age_s)
    return FlowRun(
        id=run_id(name),
        flow_id=run_id("provision"),
        name=f"brave-otter-{name}",
        labels={"prefect.worker.name": worker},
        state=State(type=StateType[state], timestamp=since),
        state_type=StateType[state],
    )


@contextmanager
def served() -> Iterator[FakePrefect]:
    fake = FakePrefect()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            fake.asked.append(path)
            if path.endswith("/csrf-token"):
                self._answer({"exception_message": "CSRF protection is disabled."}, 422)
            elif path.endswith("/health"):
                self._answer("true", is_open=True)
            elif path.endswith("/admin/settings"):
                self._answer({"home": fake.home})
            else:
                named = [run for run in fake.running if path.endswith(f"/flow_runs/{run.id}")]
                self._answer(named[0].model_dump(mode="json") if named else {"detail": "none"}, 200 if named else 404)

        def do_POST(self) -> None:
            path = self.path
            fake.asked.append(path)
            question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if path.endswith("/set_state"):
                if self._is_known():
                    fake.at_cancel()
                    fake.running = [run for run in fake.running if f"/{run.id}/" not in path]
                self._answer(
                    {"state": question["state"], "status": "ACCEPT", "details": {"type": "accept_details"}}, 201
                )
                return
            wanted = question["flow_runs"]["state"]["type"]["any_"]
            found = [run for run in fake.running if run.state_type and run.state_type.value in wanted]
            page = sorted(found, key=lambda run: run.id, reverse=True)[question["offset"] :][: question["limit"]]
            self._answer([run.model_dump(mode="json") for run in page])

        def _is_known(self) -> bool:
            return not fake.password or self.headers.get("Authorization") == fake.password

        def _answer(self, content: Any, status: int = 200, *, is_open: bool = False) -> None:
            if not is_open and not self._is_known():
                status, content = 401, {"exception_message": "Unauthorized"}
            elif fake.statuses:
                status = fake.statuses.pop(0)
            elif fake.status != 200:
                status = fake.status
            text = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(text)
            self.close_connection = True

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        fake.url = f"http://127.0.0.1:{http.server_port}/api"
        yield fake
        http.shutdown()
