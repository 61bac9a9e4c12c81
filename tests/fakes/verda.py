"""A stateful fake of Verda's API version 1: its paths, bare ids, refusals per machine, disks that outlive machines, and a clock of the test's own.

Its answers are what the vendor's own SDK for Python reads, which the test of the driver has it do; the document of 2023 is too old to hold it to.
"""

from __future__ import annotations

import itertools
import json
import re
import uuid
from typing import Any

import httpx

from prefect_gpu.providers.core.machine.keys import derive
from tests.fakes.rented import nvidia, rented
from tests.fakes.vendor import FakeVendor

TYPES = ("1V100.6V", "1H100.80S.30V", "8H100.80S.240V", "CPU.4V.16G")
LOCATIONS = {"FIN-01": "FI", "ICE-01": "IS"}
IMAGES = (
    "ubuntu-22.04", "ubuntu-22.04-cuda-12.8-docker", "ubuntu-24.04-cuda-12.8-docker", "ubuntu-24.04-cuda-12.8-open",
    "ubuntu-24.04-cuda-12.8-open-docker", "ubuntu-24.04-cuda-13.0-open-docker", "debian-12-docker",
)  # fmt: skip
COMPANIONS = {"scripts": {"name", "script"}, "sshkeys": {"name", "key"}}
HOST_NAME = re.compile(r"(?!-)(?!.*-$)[a-zA-Z0-9-]*[a-zA-Z][a-zA-Z0-9-]*")
JUPYTER_TOKEN = "b9e6d8517db3-jupyter"  # in each machine's row
_ORDER = {  # what an order may have, and whether it must
    "instance_type": True, "image": True, "hostname": True, "description": True, "ssh_key_ids": False, "location_code": False,
    "startup_script_id": False, "os_volume": False, "volumes": False, "existing_volumes": False, "is_spot": False,
    "contract": False, "pricing": False, "coupon": False, "tags": False, "network": False, "subnet": False,
    "private_ip": False, "public_ip": False,
}  # fmt: skip


class FakeVerda(FakeVendor):
    """The vendor."""

    def __init__(self, client_id: str, secret: str, *, has_ssh: bool = False, **more: Any) -> None:
        super().__init__(**more)
        self.client_id, self.secret = client_id, secret
        self.token_good_for_s = 3600
        self.logins = 0
        self.sold_out: set[tuple[str, str, bool]] = set()  # type, location, whether spot
        self.locks_while_provisioning = False
        self.keeps_next_disk = False
        self.ids_as = "text/plain"  # how bare ids are sent; application/json: the whole object
        self.actions: list[dict[str, Any]] = []
        self.machines: dict[str, dict[str, Any]] = {}
        self.disks: dict[str, dict[str, Any]] = {}
        self.trash: dict[str, dict[str, Any]] = {}
        self.scripts: dict[str, dict[str, Any]] = {}
        self.sshkeys: dict[str, dict[str, Any]] = {}
        self._tokens: dict[str, float] = {}  # until when
        self._ssh = has_ssh

    # --- the test's side ------------------------------------------------------------------------------------------------

    def order_by_hand(self, name: str) -> str:
        key = self._add(self.sshkeys, {"name": "somebody's laptop", "key": "ssh-ed25519 AAAA"})
        body = {"instance_type": "CPU.4V.16G", "image": "ubuntu-22.04", "hostname": name, "ssh_key_ids": [key]}
        return self._order({**body, "description": "by hand", "location_code": "FIN-01"})

    def say(self, machine_id: str, **fields: Any) -> None:
        """What Verda says of this machine from now on, whatever its age."""
        self.machines[machine_id.rpartition("/")[2]]["said"] = fields

    def take_back(self, machine_id: str) -> None:
        """A spot machine ends as Verda needs it."""
        machine = self.machines[machine_id.rpartition("/")[2]]
        policy = machine["body"]["os_volume"].get("on_spot_discontinue", "keep_detached")
        gone = [] if policy == "keep_detached" else [machine["disk"]]
        self._end(machine, gone, is_permanent=policy == "delete_permanently")

    def body(self, name: str) -> dict[str, Any]:
        """What was ordered under this name."""
        return next(one["body"] for one in self.machines.values() if one["body"]["hostname"] == name)

    def left(self, name: str) -> list[str]:
        """Everything that is called so and is still there."""
        alive = [one["body"]["hostname"] for one in self.machines.values() if one["gone_at"] is None]
        things = itertools.chain(*(one.values() for one in (self.disks, self.trash, self.scripts, self.sshkeys)))
        return [one for one in [*alive, *(thing["name"] for thing in things)] if one == name]

    # --- the API --------------------------------------------------------------------------------------------------------

    def answer(self, request: httpx.Request) -> httpx.Response:
        with self.lock:
            for machine in self.machines.values():
                if machine["gone_at"] is None and not machine["booted"] and self.now - machine["at"] >= 10:
                    machine["booted"] = True
                    self._boot(machine)
        return super().answer(request)

    def kind(self, request: httpx.Request) -> str:
        path = request.url.path.removeprefix("/v1")
        named = {
            ("POST", "/instances"): "create",
            ("PUT", "/instances"): "delete",
            ("POST", "/scripts"): "scripts",
            ("POST", "/oauth2/token"): "login",
        }
        return "get" if request.method == "GET" else named.get((request.method, path), "other")

    def admits(self, request: httpx.Request) -> httpx.Response | None:
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        if self.kind(request) == "login" or self._tokens.get(token, 0.0) > self.now:
            return None
        return error(401, "unauthorized_request", "Access token is expired or invalid")

    def down(self) -> httpx.Response:
        return error(503, "service_unavailable", "Try again later")

    def serve(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path.removeprefix("/v1")
        return self._token(json.loads(request.content)) if path == "/oauth2/token" else self._served(request, path)

    def _token(self, asked: dict[str, str]) -> httpx.Response:
        if asked.get("grant_type") not in ("client_credentials", "refresh_token"):
            return error(400, "invalid_request", "unsupported grant type")
        if (asked.get("client_id"), asked.get("client_secret")) != (self.client_id, self.secret):
            return error(401, "unauthorized_request", "Invalid client id or client secret")
        self.logins += 1
        token = f"token-{self.logins}-{uuid.uuid4().hex}"
        self._tokens[token] = self.now + self.token_good_for_s
        said = {"access_token": token, "token_type": "Bearer", "expires_in": self.token_good_for_s}
        return httpx.Response(200, json={**said, "refresh_token": "refresh", "scope": "fullAccess"})

    def _served(self, request: httpx.Request, path: str) -> httpx.Response:
        kind, _, number = path.strip("/").partition("/")
        body = json.loads(request.content) if request.content else {}
        match request.method, kind:
            case "GET", "balance":
                return httpx.Response(200, json={"amount": 50.0, "currency": "usd"})
            case "GET", "images":
                rows = [{"id": str(uuid.uuid4()), "image_type": one, "name": one, "details": []} for one in IMAGES]
                return httpx.Response(200, json=rows if request.url.params.get("instance_type") in TYPES else [])
            case "GET", "instance-availability":
                return httpx.Response(200, json=self._stock(request.url.params))
            case "POST", "scripts" | "sshkeys":
                assert body.keys() == COMPANIONS[kind], body.keys()
                things = getattr(self, kind)
                return self._id(201, self._add(things, body), things)
            case "GET", "scripts" | "sshkeys" | "volumes" | "instances":
                return self._read(kind, number)
            case "DELETE", "scripts" | "sshkeys":  # no error where it is gone: dstack #3811
                getattr(self, kind).pop(number, None)
                return httpx.Response(200)
            case "DELETE", "volumes":
                return self._delete_disk(number, is_permanent=bool(body.get("is_permanent")))
            case "POST", "instances":
                return self._create(body)
            case "PUT", "instances":
                return self._act(body)
        return error(404, "not_found", f"Verda has no {request.method} {path}")

    def _read(self, kind: str, number: str) -> httpx.Response:
        if not number and self.unreadable == kind:
            return error(500, "server_error", "Something went wrong")
        then = self.then()
        if kind == "instances" and number:
            if number not in self.machines:
                return error(404, "not_found", "Invalid instance id")
            return httpx.Response(200, json=self._row(self.machines[number], self.now))
        if kind == "instances":
            there = [one for one in self.machines.values() if one["at"] <= then]
            there = [one for one in there if one["gone_at"] is None or one["gone_at"] > then]
            return httpx.Response(200, json=[self._row(one, max(then, one["at"])) for one in there])
        things = self.trash if number == "trash" else self.disks if kind == "volumes" else getattr(self, kind)
        return httpx.Response(200, json=list(things.values()))

    def _create(self, body: dict[str, Any]) -> httpx.Response:
        assert body.keys() <= _ORDER.keys(), body.keys() - _ORDER.keys()
        if missing := [name for name, must in _ORDER.items() if must and not body.get(name)]:
            return error(400, "invalid_request", f"{missing[0]} is required")
        if not HOST_NAME.fullmatch(body["hostname"]) or not body.get("ssh_key_ids"):
            return error(400, "invalid_request", "hostname or ssh_key_ids not valid")
        if not set(body["ssh_key_ids"]) <= self.sshkeys.keys():
            return error(400, "invalid_request", "ssh key not found")
        if (script := body.get("startup_script_id")) and script not in self.scripts:
            return error(400, "invalid_request", "startup script not found")
        if body["instance_type"] not in TYPES or body["image"] not in IMAGES:
            return error(400, "invalid_request", "Invalid instance type or image")
        assert len(body.get("tags", [])) <= 10
        if (body["instance_type"], body["location_code"], bool(body.get("is_spot"))) in self.sold_out:
            return error(503, "service_unavailable", "Not enough resources at the moment")
        return self._id(202, self._order(body), {one: self._row(m, self.now) for one, m in self.machines.items()})

    def _order(self, body: dict[str, Any]) -> str:
        number, disk = str(uuid.uuid4()), str(uuid.uuid4())
        count = next(self.numbers)
        address = f"127.78.0.{count}" if self._ssh else f"192.0.2.{count % 250}"
        machine = {
            "id": number,
            "body": body,
            "at": self.now,
            "gone_at": None,
            "said": {},
            "disk": disk,
            "booted": False,
        }
        self.machines[number] = {
            **machine,
            "address": address,
            "script": self.scripts.get(body.get("startup_script_id", "")),
        }
        volume = body.get("os_volume") or {"name": f"OS-{body['hostname'][:4]}", "size": 50}
        self.disks[disk] = {
            "id": disk, "status": "attached", "instance_id": number, "name": volume["name"], "size": volume["size"],
            "type": "NVMe", "is_os_volume": True, "location": body["location_code"], "target": "vda",
            "created_at": self.moment(self.now), "ssh_key_ids": body["ssh_key_ids"],
        }  # fmt: skip
        if self._ssh:
            (key,) = (self.sshkeys[one]["key"] for one in body["ssh_key_ids"])
            there = rented(
                address, key, gpus=nvidia(int(body["instance_type"][0]) if body["instance_type"][0].isdecimal() else 0)
            )
            self.machines[number]["rented"] = self.running.enter_context(there)
            self.machines[number]["rented"].show(derive(b"an image", number, "host").private.get_secret_value())
        return number

    def _boot(self, machine: dict[str, Any]) -> None:
        if (there := machine.get("rented")) and machine["script"]:
            there.runs(machine["script"]["script"])

    def _row(self, machine: dict[str, Any], at: float) -> dict[str, Any]:
        age, body = at - machine["at"], machine["body"]
        status = "running" if age >= 6 else "provisioning" if age >= 2 else "ordered"
        if machine["gone_at"] is not None and machine["gone_at"] <= at:
            status = "deleting" if at - machine["gone_at"] < 2 else "discontinued"
        has_gpu = not body["instance_type"].startswith("CPU")
        row = {
            "id": machine["id"], "ip": machine["address"] if age >= 4 else None, "status": status,
            "created_at": self.moment(machine["at"]), "hostname": body["hostname"], "description": body["description"],
            "location": body["location_code"], "price_per_hour": "2.5", "is_spot": bool(body.get("is_spot")),
            "instance_type": body["instance_type"], "image": body["image"], "ssh_key_ids": body["ssh_key_ids"],
            "startup_script_id": body.get("startup_script_id"), "os_volume_id": machine["disk"] if age >= 2 else None,
            "cpu": {"description": "30 CPU", "number_of_cores": 30}, "jupyter_token": JUPYTER_TOKEN,
            "gpu": {"description": "1x H100" if has_gpu else "", "number_of_gpus": int(has_gpu)},
            "gpu_memory": {"description": "80GB GPU RAM", "size_in_gigabytes": 80},
            "memory": {"description": "120GB RAM", "size_in_gigabytes": 120}, "storage": {"description": "NVMe"},
            "contract": body.get("contract", "PAY_AS_YOU_GO"), "pricing": "FIXED_PRICE",
        }  # fmt: skip
        return row | machine["said"]

    def _act(self, body: dict[str, Any]) -> httpx.Response:
        self.actions.append(body)
        numbers = [body["id"]] if isinstance(body["id"], str) else body["id"]
        assert body["action"] == "delete", body
        if len(numbers) == 1 and numbers[0] not in self.machines:
            return error(404, "not_found", "Invalid instance id")
        results = [self._delete(number, body) for number in numbers]
        failed = any("error" in one for one in results)
        return httpx.Response(207 if failed else 202, json=results)

    def _delete(self, number: str, body: dict[str, Any]) -> dict[str, Any]:
        entry: dict[str, Any] = {"action": "delete", "instanceId": number, "status": "error", "statusCode": 400}
        machine = self.machines.get(number)
        if machine is None:
            return entry | {"error": "Invalid instance id"}
        if machine["gone_at"] is not None:
            return entry | {"error": "Can't discontinue a discontinued instance"}
        if self.locks_while_provisioning and self._row(machine, self.now)["status"] in ("ordered", "provisioning"):
            return entry | {"error": "Can't discontinue a provisioning instance"}
        self._end(machine, body.get("volume_ids"), is_permanent=bool(body.get("delete_permanently")))
        return {"action": "delete", "instanceId": number, "status": "success"}

    def _end(self, machine: dict[str, Any], volume_ids: list[str] | None, *, is_permanent: bool) -> None:
        machine["gone_at"] = self.now
        if (there := machine.get("rented")) is not None:
            there.end()
        disk = self.disks.get(machine["disk"])
        if disk is None:
            return
        disk |= {"status": "detached", "instance_id": None, "target": None}
        if self.keeps_next_disk:
            self.keeps_next_disk = False
        elif volume_ids is None:  # `delete_permanently` counts only together with `volume_ids`
            self._delete_disk(disk["id"], is_permanent=False)
        elif disk["id"] in volume_ids:
            self._delete_disk(disk["id"], is_permanent=is_permanent)

    def _delete_disk(self, number: str, *, is_permanent: bool) -> httpx.Response:
        disk = self.disks.pop(number, None)
        if disk is None:
            return error(404, "not_found", "Volume not found")
        if not is_permanent:
            self.trash[number] = disk | {"status": "deleted"}
        return httpx.Response(202)

    def _stock(self, params: httpx.QueryParams) -> list[dict[str, Any]]:
        is_spot = params.get("isSpot") == "true"
        only = params.get("location_code")
        return [
            {"location_code": place, "availabilities": [t for t in TYPES if (t, place, is_spot) not in self.sold_out]}
            for place in LOCATIONS
            if only in (None, "", place)
        ]

    def _add(self, things: dict[str, dict[str, Any]], body: dict[str, Any]) -> str:
        number = str(uuid.uuid4())
        things[number] = {"id": number, **body}
        return number

    def _id(self, status: int, number: str, objects: dict[str, dict[str, Any]]) -> httpx.Response:
        if self.ids_as == "application/json":
            return httpx.Response(status, json=objects[number])
        return httpx.Response(status, content=number, headers={"content-type": f"{self.ids_as}; charset=utf-8"})


def error(status: int, code: str, message: str) -> httpx.Response:
    return httpx.Response(status, json={"code": code, "message": message})
