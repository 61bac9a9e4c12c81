"""The cloud's own process: it ends when its stdin does."""

from __future__ import annotations

import json
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from tests.fakes.aws.server import Cloud


def _ssh_port() -> int:
    """22 where this process may, as on EC2; else one that is free on all loopback addresses."""
    import socket

    for wanted in (22, 0):
        with socket.socket() as probe:
            try:
                probe.bind(("127.80.255.1", wanted))
                return int(probe.getsockname()[1])
            except OSError:
                continue
    raise RuntimeError("no port is free")


def main(folder: Path) -> None:
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_request(self, *_: Any) -> None:
            pass

    ssh_port = _ssh_port()
    cloud = Cloud(folder, ssh_port)
    server = make_server("127.0.0.1", 0, cloud, threaded=True, request_handler=Quiet)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(json.dumps([server.server_port, ssh_port]), flush=True)
    sys.stdin.buffer.read()
    with cloud.lock:
        for machine in cloud.machines.values():
            machine.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
