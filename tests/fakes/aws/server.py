"""The cloud as a server: AWS's API, and the orders of a test."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import parse_qsl

from tests.fakes.aws.account import ACCOUNT, REGIONS
from tests.fakes.aws.backend import DEFAULTS, PAGED, Reply, error, name_of
from tests.fakes.aws.listings import Listings


class Cloud(Listings):
    """The server: AWS's API, and the test's orders at a path of their own."""

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        if environ["PATH_INFO"] == "/_cloud":
            status, kind, data = 200, "application/json", json.dumps(self.order(json.loads(body))).encode()
        else:
            scope = re.search(r"Credential=[^/]+/\d+/([^/]+)/([^/]+)/", environ.get("HTTP_AUTHORIZATION", ""))
            region, service = scope.groups() if scope else ("us-east-1", "ec2")
            answer = self.serve(environ, region, service, body)
            if answer is None:
                environ["werkzeug.socket"].shutdown(2)
                raise ConnectionAbortedError("the answer is lost")
            status, kind, data = answer
        start_response(f"{status} x", [("Content-Type", kind), ("Content-Length", str(len(data)))])
        return [data]

    def serve(self, environ: dict[str, Any], region: str, service: str, body: bytes) -> Reply | None:
        if service == "servicequotas":
            return self._quota(region, environ.get("HTTP_X_AMZ_TARGET", "").rpartition(".")[2], json.loads(body))
        sent = dict(parse_qsl(body.decode(), keep_blank_values=True))
        action = sent.get("Action", "")
        fault = self._seen(action, region, sent)
        if fault and fault["how"] == "refused":
            return error(fault["code"], fault["message"], fault["status"])
        if fault and fault["how"] == "dropped":
            return None
        handler = {
            "RunInstances": self._run,
            "TerminateInstances": self._terminate,
            "DescribeCapacityReservations": self._reservations,
        }.get(action, self._describe if action in PAGED or action == "DescribeRegions" else self._plain)
        with self.lock:
            reply = handler(environ, region, action, sent)
        if fault and fault["how"] == "unreadable":
            return 200, "text/xml", b"<html>gateway"
        if fault and fault["how"] == "empty":
            return 200, "text/xml", b"<RunInstancesResponse><reservationId>r-1</reservationId></RunInstancesResponse>"
        return None if fault and fault["how"] == "lost" else reply

    def order(self, order: dict[str, Any]) -> Any:
        op = order["op"]
        if op == "processes":
            machine = self.machines.get(order["id"])
            return machine.processes() if machine else []
        with self.lock:
            if op == "reset":
                return self._reset()
            if op == "fail":
                self.faults.append(order["fault"])
            elif op == "set":
                assert order["settings"].keys() <= DEFAULTS.keys()
                self.settings.update(order["settings"])
            elif op == "calls":
                return self.history
            elif op == "alive":
                return [
                    {"id": f"{region}/{one.id}", "state": one.state, "name": name_of(one)}
                    for region in REGIONS
                    for one in self._backend(region).all_instances()
                    if one.state != "terminated"
                ]  # fmt: skip
            elif op == "mend":
                self.faults.clear()
            elif op == "status":
                self._find(order["id"])[1]._state.name = order["status"]
            elif op == "lease":
                machine = self.machines[order["id"]]
                if machine.lease_end() is not None:
                    machine.on_lease_end()
            elif op == "end":
                self._end(*self._find(order["id"]), order["code"], order["message"])
        return None

    def _reset(self) -> None:
        from moto.ec2.models import ec2_backends

        for machine in self.machines.values():
            machine.stop()
        self.machines.clear()
        for region in REGIONS:
            ec2_backends[ACCOUNT][region].reset()
        self._clear()

    def _find(self, instance_id: str) -> tuple[str, Any]:
        for region in REGIONS:
            for one in self._backend(region).all_instances():
                if one.id == instance_id:
                    return region, one
        raise LookupError(instance_id)
