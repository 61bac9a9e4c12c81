"""FakeGcp: Compute Engine's paths, its login, faults that a test asks for, and a clock of the test's own."""

from __future__ import annotations

import itertools
import json
import re
import threading
import uuid
from collections.abc import Callable
from email.utils import formatdate
from typing import Any
from urllib.parse import parse_qs

import httpx

from tests.fakes.gcp import discovery, life, orders
from tests.fakes.gcp.life import URL, Operation, Vm, seconds
from tests.fakes.gcp.project import IMAGES, PROJECT, QUOTAS, REGIONS, ZONES, error

HOST_PROJECT = "shared-net-77"
EMPTY = {"code": "NO_RESULTS_ON_PAGE", "message": "There are no results for scope on this page."}
DOWN = {"code": "UNREACHABLE", "message": "The zone is currently unreachable.", "data": []}


class FakeGcp:
    """The vendor. `transport` is what the driver gets; the clock stands still but for `advance`."""

    def __init__(self, *, clock: Callable[[], float] | None = None, listing_lag_s: float = 0.0) -> None:
        self._clock = clock
        self._now = life.real_time()
        self.listing_lag_s = listing_lag_s
        self.lock = threading.RLock()
        self.transport = httpx.MockTransport(self.answer)
        self.vms: list[Vm] = []
        self.lost_disks: list[Vm] = []  # whose machine is gone
        self.operations: list[Operation] = []
        self.firewalls: dict[str, dict[str, Any]] = {}
        self.reservations: dict[str, dict[str, Any]] = {}  # zone/name
        self.subnets = {f"projects/{PROJECT}/regions/{one}/subnetworks/default": f"projects/{PROJECT}/global/networks/default" for one in REGIONS}  # fmt: skip
        self.subnets[f"projects/{HOST_PROJECT}/regions/us-central1/subnetworks/gpu"] = f"projects/{HOST_PROJECT}/global/networks/lab"  # fmt: skip
        self.quotas = {region: dict.fromkeys(QUOTAS, 0.0) for region in REGIONS}  # usage
        self.limits = {region: dict(QUOTAS) for region in REGIONS}
        self.gpus_everywhere = (16.0, 0.0)
        self.granted: set[str] | None = None  # None: everything
        self.pace = 1.0  # of boots and ends
        self.insert_s = 0.0  # an insert is done after so long
        self.page_size = 500
        self.unreachable: set[str] = set()  # zones
        self.keeps_next_disk = False
        self.unreadable: set[str] = set()  # kinds whose listings fail
        self.requests: list[tuple[str, str, Any]] = []  # method, path below v1, body
        self.queries: list[dict[str, str]] = []
        self.creates = 0
        self.refused: tuple[int, dict[str, Any]] | None = None  # every call, from now on
        self.broken = False  # gets are answered by 503
        self.next: dict[str, Any] = {}  # what happens to the next call of a kind: insert, get, delete, wait ...; once
        self.insert_faults: list[Any] = []  # of the next inserts, one by one
        self.refuses_inserts: list[dict[str, Any]] = []  # what the next inserts' operations end with
        self.logins = 0
        self.tokens: dict[str, float] = {}
        self.token_good_for_s = 3600
        self._pages: dict[str, list[tuple[str, Any]]] = {}
        self._addresses = itertools.count(2)
        self.on_create: Callable[[Vm], None] = lambda vm: None
        self.on_end: Callable[[Vm], None] = lambda vm: None

    # --- the test's side ------------------------------------------------------------------------------------------------

    @property
    def now(self) -> float:
        return self._clock() if self._clock is not None else self._now

    def advance(self, seconds: float) -> None:
        with self.lock:
            self._now += seconds
            self._settle()

    def vm(self, instance_id: str) -> Vm:
        zone, _, name = instance_id.partition("/")
        return next(one for one in reversed(self.vms) if (one.zone, one.name) == (zone, name))

    def alive(self) -> list[Vm]:
        with self.lock:
            self._settle()
            return [one for one in self.vms if not one.is_gone(self.now) and not one.is_refused]

    def disks(self) -> list[Vm]:
        return [*self.alive(), *self.lost_disks]

    def order_by_hand(self, name: str, zone: str = "us-central1-a") -> None:
        body = {
            "name": name, "machineType": f"zones/{zone}/machineTypes/e2-standard-4", "disks": [{"boot": True, "autoDelete": True,
            "initializeParams": {"diskSizeGb": "10"}}], "networkInterfaces": [{"accessConfigs": [{"type": "ONE_TO_ONE_NAT"}]}],
        }  # fmt: skip
        self._made(body, zone)

    def take_back(self, instance_id: str, kind: str = "compute.instances.preempted") -> None:
        """Compute Engine ends a machine by itself."""
        with self.lock:
            vm = self.vm(instance_id)
            deletes = vm.body["scheduling"].get("instanceTerminationAction") == "DELETE" and kind.endswith("preempted")
            self._operation(kind, vm.target, vm.zone, message="Instance was preempted." if deletes else "")
            if deletes:
                vm.ends_at = self.now
            else:
                vm.is_stopped = True

    # --- the API --------------------------------------------------------------------------------------------------------

    def answer(self, request: httpx.Request) -> httpx.Response:
        with self.lock:
            status, body = self._answered(request)
            if isinstance(body, bytes):
                response = httpx.Response(status, content=body)
            else:
                response = httpx.Response(status, json=body)
            if status == 429:
                response.headers["retry-after"] = "3"
            response.headers["date"] = formatdate(self.now, usegmt=True)
            return response

    def _answered(self, request: httpx.Request) -> tuple[int, Any]:
        if request.url.path == "/token":
            return self._token(request)
        body = json.loads(request.content) if request.content else None
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        if self.refused is not None:
            return self.refused
        if self.tokens.get(token, 0.0) <= self.now:
            return error(401, "authError", "Request had invalid authentication credentials.", status="UNAUTHENTICATED")
        if request.url.path.endswith(":testIamPermissions"):
            self.requests.append(("POST", "testIamPermissions", body))
            if (fault := self.next.pop("testIamPermissions", None)) is not None:
                return fault
            wanted = body["permissions"]
            return 200, {"permissions": [one for one in wanted if self.granted is None or one in self.granted]}
        path = request.url.path.removeprefix("/compute/v1/")
        params = {key: values[-1] for key, values in parse_qs(request.url.query.decode()).items()}
        method = discovery.check_request(request.method, path, params, body)
        self.requests.append((request.method, path, body))
        self.queries.append(params)
        what = self._kind(request.method, path)
        self.creates += what == "insert"
        fault = self.next.pop(what, None)
        if what == "insert" and self.insert_faults:
            fault = self.insert_faults.pop(0)
        if fault == "unreachable":
            raise httpx.ConnectError("[Errno 111] Connection refused")
        if isinstance(fault, tuple):
            return fault
        if self.broken and request.method == "GET":
            return error(503, "backendError", "Try again later.")
        status, told = self._served(request.method, path, params, body)
        if fault == "lost":
            raise httpx.ReadError("connection reset by peer")
        if isinstance(fault, bytes):
            return 200, fault
        if status == 200 and not any(vm.said for vm in self.vms):
            discovery.check_answer(method, told)
        return status, told

    @staticmethod
    def _kind(verb: str, path: str) -> str:
        parts = path.split("/")
        if verb == "POST" and parts[-1] == "instances":
            return "insert"
        if verb == "DELETE":
            return "delete"
        if verb == "GET" and parts[-2] == "instances":
            return "get"
        if verb == "POST" or parts[-1] == "regions":
            return parts[-1]
        if parts[2:3] == ["aggregated"]:
            return "list"
        return "project" if len(parts) == 2 else "other"

    def _token(self, request: httpx.Request) -> tuple[int, Any]:
        asked = {key: values[-1] for key, values in parse_qs(request.content.decode()).items()}
        if self.refused is not None and self.refused[0] in {400, 401, 403}:
            words = self.refused[1]["error"]["message"]
            return 400, {"error": "invalid_grant", "error_description": words}
        assert asked["grant_type"] == "urn:ietf:params:oauth:grant-type:jwt-bearer", asked
        assert asked["assertion"].count(".") == 2
        self.logins += 1
        token = f"ya29.{self.logins}.{uuid.uuid4().hex}"
        self.tokens[token] = self.now + self.token_good_for_s
        return 200, {"access_token": token, "token_type": "Bearer", "expires_in": self.token_good_for_s}

    def _served(self, verb: str, path: str, params: dict[str, str], body: Any) -> tuple[int, Any]:
        self._settle()
        found = re.fullmatch(r"projects/([^/]+)(?:/(.+))?", path)
        assert found is not None
        project, rest = found[1], (found[2] or "").split("/") if found[2] else []
        if rest[:2] == ["global", "images"]:
            return self._image(project, rest[2:])
        if project not in {PROJECT, HOST_PROJECT}:
            return error(404, "notFound", f"The resource 'projects/{project}' was not found")
        match verb, rest:
            case "GET", []:
                limit, usage = self.gpus_everywhere
                quotas = [{"metric": "GPUS_ALL_REGIONS", "limit": limit, "usage": usage}]
                return 200, {"kind": "compute#project", "name": PROJECT, "id": "8181", "quotas": quotas}
            case "GET", ["regions"]:
                return 200, {"kind": "compute#regionList", "items": [self._region(one) for one in REGIONS]}
            case "GET", ["regions", _, "subnetworks", _]:
                return self._subnet(path)
            case "GET", ["aggregated", kind]:
                return self._aggregated(kind, params)
            case "GET" | "DELETE", ["zones", zone, "instances", name]:
                return self._one(verb, zone, name)
            case "POST", ["zones", zone, "instances"]:
                return self._insert(zone, body, params.get("requestId", ""))
            case "POST", ["zones", zone, "instances", name, "setMetadata"]:
                return self._set_metadata(zone, name, body)
            case "DELETE", ["zones", zone, "disks", name]:
                return self._delete_disk(zone, name)
            case "GET", ["zones", zone, "reservations", name]:
                found_one = self.reservations.get(f"{zone}/{name}")
                return (200, found_one) if found_one else orders.not_found(f"zones/{zone}/reservations/{name}")
            case "GET", ["zones", zone, "operations"]:
                rows = [one.row(self.now) for one in self.operations if one.zone == zone]
                return 200, {"kind": "compute#operationList", "items": _filtered(rows, params)}
            case "POST", [*_, "operations", name, "wait"]:
                one = next(one for one in self.operations if one.name == name)
                return 200, one.row(self.now)
            case "GET", ["global", "firewalls", name]:
                rule = self.firewalls.get(name)
                return (200, rule) if rule else orders.not_found(f"global/firewalls/{name}")
            case "POST", ["global", "firewalls"]:
                return self._firewall(body)
        raise AssertionError(f"the fake has no {verb} {path}")

    # --- what is asked --------------------------------------------------------------------------------------------------

    def _region(self, name: str) -> dict[str, Any]:
        quotas = [{"metric": metric, "limit": float(limit), "usage": self.quotas[name].get(metric, 0.0)} for metric, limit in self.limits[name].items()]  # fmt: skip
        return {"kind": "compute#region", "name": name, "status": "UP", "quotas": quotas}

    def _image(self, project: str, rest: list[str]) -> tuple[int, Any]:
        for (owner, family), (name, size, arch) in IMAGES.items():
            if owner == project and rest in (["family", family], [name]):
                return 200, {
                    "kind": "compute#image",
                    "name": name,
                    "family": family,
                    "diskSizeGb": str(size),
                    "architecture": arch,
                }
        return error(404, "notFound", f"The resource 'projects/{project}/global/images/{'/'.join(rest)}' was not found")

    def _subnet(self, path: str) -> tuple[int, Any]:
        if (network := self.subnets.get(path)) is None:
            return error(404, "notFound", f"The resource '{path}' was not found")
        return 200, {
            "kind": "compute#subnetwork",
            "name": path.rpartition("/")[2],
            "network": f"https://www.googleapis.com/compute/v1/{network}",
        }

    def _aggregated(self, kind: str, params: dict[str, str]) -> tuple[int, Any]:
        if kind in self.unreadable:
            return error(500, "backendError", "Internal error. Please try again.")
        then = self.now - self.listing_lag_s
        rows: list[tuple[str, dict[str, Any]]] = []
        if kind == "instances":
            shown = [one for one in self.vms if one.at <= then and not one.is_gone(then)]
            rows = [(f"zones/{one.zone}", one.row(max(then, one.at))) for one in shown]
        elif kind == "disks":
            rows = [(f"zones/{one.zone}", orders.disk_row(one, self.now, URL, is_used=True)) for one in self.alive()]
            rows += [
                (f"zones/{one.zone}", orders.disk_row(one, self.now, URL, is_used=False)) for one in self.lost_disks
            ]
        elif kind == "subnetworks":
            rows = [
                (f"regions/{path.split('/')[3]}", self._subnet(path)[1]) for path in self.subnets if path.startswith(f"projects/{PROJECT}/")
            ]  # fmt: skip
        wanted = {id(row) for row in _filtered([row for _, row in rows], params)}
        rows = [
            (scope, row)
            for scope, row in rows
            if id(row) in wanted and scope.rpartition("/")[2] not in self.unreachable
        ]
        rows.sort(key=lambda one: (one[0], one[1]["name"]))
        size = min(self.page_size, int(params.get("maxResults", "500")))
        if "pageToken" in params:
            rows = self._pages[params["pageToken"]]
        page, rest = rows[:size], rows[size:]
        scopes = [f"regions/{one}" for one in REGIONS] if kind == "subnetworks" else [f"zones/{one}" for one in ZONES]
        items: dict[str, Any] = {}
        for scope in scopes:
            there = [row for at, row in page if at == scope]
            items[scope] = {kind: there} if there else {"warning": EMPTY}
            if scope.rpartition("/")[2] in self.unreachable:
                items[scope] = {"warning": DOWN}
        told = {"kind": f"compute#{kind[:-1]}AggregatedList", "items": items}
        if rest:
            token = uuid.uuid4().hex
            self._pages[token] = rest
            told["nextPageToken"] = token
        return 200, told

    def _one(self, verb: str, zone: str, name: str) -> tuple[int, Any]:
        there = [one for one in self.vms if (one.zone, one.name) == (zone, name) and not one.is_gone(self.now)]
        if not there:
            return orders.not_found(f"zones/{zone}/instances/{name}")
        if verb == "GET":
            return 200, there[0].row(self.now)
        if there[0].ends_at is None:
            there[0].ends_at = self.now
            there[0].is_stopped = False
        return 200, self._operation("delete", there[0].target, zone, takes_s=2 * self.pace).row(self.now)

    def _insert(self, zone: str, body: dict[str, Any], request_id: str) -> tuple[int, Any]:
        assert request_id, "an order without requestId cannot be repeated"
        for one in self.operations:
            if one.name == f"operation-{request_id}":
                return 200, one.row(self.now)
        name = body["name"]
        if any((one.zone, one.name) == (zone, name) and not one.is_gone(self.now) for one in self.vms):
            return error(
                409, "alreadyExists", f"The resource 'projects/{PROJECT}/zones/{zone}/instances/{name}' already exists"
            )
        if zone not in ZONES:
            return orders.not_found(f"zones/{zone}")
        if (refusal := orders.problem(body, zone, self.now, self.subnets, self.reservations)) is not None:
            return refusal
        made = self._operation("insert", f"zones/{zone}/instances/{name}", zone, takes_s=self.insert_s, name=request_id)
        vm = self._made(body, zone)
        if self.refuses_inserts:
            made.errors = [self.refuses_inserts.pop(0)]
            vm.is_refused, vm.ends_at = True, made.done_at - 2 * self.pace
        else:
            self.on_create(vm)
        return 200, made.row(self.now)

    def _made(self, body: dict[str, Any], zone: str) -> Vm:
        number = next(self._addresses)
        vm = Vm(body["name"], zone, body, self.now, f"127.81.{number // 250}.{number % 250 + 1}", pace=self.pace)
        vm.metadata = [dict(one) for one in body.get("metadata", {}).get("items", [])]
        self.vms.append(vm)
        return vm

    def _set_metadata(self, zone: str, name: str, body: dict[str, Any]) -> tuple[int, Any]:
        vm = self.vm(f"{zone}/{name}")
        if body.get("fingerprint") != f"f{vm.fingerprint}":
            return error(412, "conditionNotMet", "Supplied fingerprint does not match current metadata fingerprint.")
        vm.metadata, vm.fingerprint = body["items"], vm.fingerprint + 1
        return 200, self._operation("setMetadata", vm.target, zone).row(self.now)

    def _delete_disk(self, zone: str, name: str) -> tuple[int, Any]:
        for one in self.lost_disks:
            if (one.zone, one.name) == (zone, name):
                self.lost_disks.remove(one)
                return 200, self._operation("delete", f"zones/{zone}/disks/{name}", zone).row(self.now)
        if any((one.zone, one.name) == (zone, name) for one in self.alive()):
            return error(400, "resourceInUseByAnotherResource", f"The disk resource '{name}' is already being used")
        return orders.not_found(f"zones/{zone}/disks/{name}")

    def _firewall(self, body: dict[str, Any]) -> tuple[int, Any]:
        if body["name"] in self.firewalls:
            return error(409, "alreadyExists", f"The resource '{body['name']}' already exists")
        assert orders.NAME.fullmatch(body["name"])
        network = f"https://www.googleapis.com/compute/v1/{body['network']}"
        self.firewalls[body["name"]] = {**body, "network": network, "kind": "compute#firewall", "disabled": False}
        return 200, self._operation("insert", f"global/firewalls/{body['name']}", None).row(self.now)

    def _operation(
        self, kind: str, target: str, zone: str | None, *, takes_s: float = 0.0, name: str = "", message: str = ""
    ) -> Operation:
        made = Operation(
            f"operation-{name or uuid.uuid4()}",
            kind,
            target,
            zone,
            self.now,
            self.now + takes_s,
            status_message=message,
        )
        self.operations.append(made)
        return made

    def _settle(self) -> None:
        """What time alone did: leases that ended, machines that are gone now, and their disks."""
        for vm in self.vms:
            ends = vm.body.get("scheduling", {}).get("terminationTime")
            if ends is not None and vm.ends_at is None and self.now >= seconds(ends):
                if vm.body["scheduling"]["instanceTerminationAction"] == "DELETE":
                    vm.ends_at = self.now
                else:
                    vm.is_stopped = True
            if vm.is_gone(self.now) and not vm.is_over:
                vm.is_over = True
                self.on_end(vm)
                if not vm.is_refused and (self.keeps_next_disk or not vm.body["disks"][0].get("autoDelete")):
                    self.keeps_next_disk = False
                    self.lost_disks.append(vm)


def _filtered(rows: list[dict[str, Any]], params: dict[str, str]) -> list[dict[str, Any]]:
    """As `field eq "RE2"` of Google's has it: the whole value must fit."""
    text = params.get("filter")
    if text is None:
        return rows
    found = re.fullmatch(r'(\w+) eq (?:"([^"]*)"|(\S+))', text)
    assert found is not None, f"the fake does not read the filter {text}"
    pattern = re.compile(found[2] if found[2] is not None else found[3])
    return [row for row in rows if pattern.fullmatch(str(row.get(found[1], "")))]
