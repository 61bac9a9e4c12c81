"""The fake's own process: Compute Engine by HTTP, machines that answer SSH, and the orders of a test. It ends when its stdin does."""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx

from tests.fakes.gcp.fake import FakeGcp
from tests.fakes.gcp.life import Vm
from tests.fakes.gcp.machine import GceMachine, user_data_of
from tests.fakes.gcp.orders import pool_exhausted


class Cloud:
    """One fake with machines."""

    def __init__(self, folder: Path, ssh_port: int) -> None:
        self.folder, self.ssh_port = folder, ssh_port
        self.machines: dict[str, GceMachine] = {}
        self.reset()

    def reset(self) -> None:
        self.stop()
        self.fake = FakeGcp(clock=time.time)
        self.fake.pace = 0.2
        self.fake.on_create, self.fake.on_end = self._boot, self._end

    def stop(self) -> None:
        for machine in self.machines.values():
            machine.stop()
        self.machines.clear()

    def _boot(self, vm: Vm) -> None:
        user_data = user_data_of(vm.metadata)
        assert user_data is not None
        folder = self.folder / f"{vm.zone}-{vm.name}"
        self.machines[vm.target] = machine = GceMachine(folder, vm.address, self.ssh_port, user_data, lambda: None)
        machine.start()

    def _end(self, vm: Vm) -> None:
        if (machine := self.machines.pop(vm.target, None)) is not None:
            machine.stop()

    def told(self, order: dict[str, Any]) -> Any:
        fake = self.fake
        match order["op"]:
            case "reset":
                self.reset()
            case "alive":
                return [vm.target for vm in fake.alive()] + [f"disk {vm.name}" for vm in fake.lost_disks]
            case "sell_out":
                fake.refuses_inserts = [pool_exhausted(order["zone"], "e2-standard-4") for _ in range(order["times"])]
            case "lose":  # the answer to the order after the next
                fake.insert_faults = [None, "lost"]
            case "take_back":
                (vm,) = fake.alive()
                fake.take_back(f"{vm.zone}/{vm.name}")
            case "orders":
                return [body for verb, path, body in fake.requests if verb == "POST" and path.endswith("/instances")]
            case "metadata":
                return [[one["key"] for one in vm.metadata] for vm in fake.vms]
        return None


def main(folder: Path) -> None:
    cloud = Cloud(folder, _ssh_port())

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.path == "/_cloud":
                self._send(200, json.dumps(cloud.told(json.loads(content))).encode(), {})
                return
            request = httpx.Request(
                self.command, f"http://here{self.path}", headers=dict(self.headers), content=content
            )
            try:
                response = cloud.fake.answer(request)
            except httpx.TransportError:
                self.close_connection = True  # the answer is lost
                return
            self._send(response.status_code, response.content, {"date": response.headers["date"]})

        do_GET = do_POST = do_DELETE = _answer  # noqa: N815 - http.server's names

        def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
            self.send_response_only(status)
            for name, value in {
                **headers,
                "content-type": "application/json",
                "content-length": str(len(content)),
            }.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(json.dumps([server.server_port, cloud.ssh_port]), flush=True)

    def settle() -> None:
        while True:
            time.sleep(0.2)
            with cloud.fake.lock:
                cloud.fake.alive()  # machines end by the clock, whether anybody looks or not

    threading.Thread(target=settle, daemon=True).start()
    sys.stdin.buffer.read()
    cloud.stop()


def _ssh_port() -> int:
    """22 where this process may, as on Compute Engine; else one that is free."""
    for wanted in (22, 0):
        with socket.socket() as probe:
            try:
                probe.bind(("127.81.255.1", wanted))
                return int(probe.getsockname()[1])
            except OSError:
                continue
    raise RuntimeError("no port is free")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
