"""The clouds' own process: `python -m tests.chaos.cloud_server FOLDER` prints its port and serves until it is ended."""

from __future__ import annotations

import json
import os
import socket
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from prefect_gpu.providers.local import order
from tests.chaos import clouds
from tests.chaos.remote import CALLS, NEVER_SENT
from tests.chaos.schedule import PROVIDERS
from tests.fakes.reference import AnswerLost, NeverSent, ReferenceCloud, VendorError


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


def main(folder: Path) -> None:
    there = {provider: clouds.opened(folder, provider) for provider in PROVIDERS}

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            provider, call, *arguments = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            assert call in CALLS
            try:
                self._answer(200, getattr(there[provider], call)(*arguments))
            except AnswerLost:
                self.close_connection = True  # not a byte of an answer
            except NeverSent as refused:
                self._answer(NEVER_SENT, {"text": str(refused)})
            except VendorError as refused:
                said = {"code": refused.code, "text": refused.text, "retry_after_s": refused.retry_after_s}
                self._answer(refused.status, said)

        def _answer(self, status: int, said: Any) -> None:
            body = json.dumps(said).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    host = os.environ["CHAOS_HOST"]
    _machines_at(host)
    server = _Server((host, 0), Handler)
    print(server.server_port, flush=True)
    server.serve_forever()


def _machines_at(host: str) -> None:
    """What these clouds rent is reached by this address."""

    def listener() -> socket.socket:
        found = socket.create_server((host, 0), backlog=128)
        found.set_inheritable(False)
        return found

    def address(cloud: ReferenceCloud, row: Any) -> dict[str, Any] | None:
        at = of_this_machine(cloud, row)
        return at and {**at, "host": host}

    of_this_machine = ReferenceCloud._address
    order._listener = listener
    ReferenceCloud._address = address  # type: ignore[method-assign]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
