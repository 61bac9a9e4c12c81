"""A stateful fake of Lambda's Cloud API: its paths, codes and suggestions, held to Lambda's own document where that is at hand."""

from __future__ import annotations

import json
import time
import uuid
from typing import Any

import httpx
import yaml

from tests.fakes.openapi import Document, document
from tests.fakes.rented import Rented, nvidia, rented
from tests.fakes.vendor import FakeVendor

REGIONS = {"us-west-1": "California, USA", "us-south-2": "North Texas, USA", "europe-central-1": "Germany"}
TYPES = {  # cents per hour, GPUs, what they are
    "gpu_1x_a10": (75, 1, "A10 (24 GB PCIe)"),
    "gpu_1x_h100_pcie": (249, 1, "H100 (80 GB PCIe)"),
    "gpu_8x_h100_sxm5": (2392, 8, "H100 (80 GB SXM5)"),
}
JUPYTER_TOKEN = "03b7d30d9d3e4d8fa41657bc0d478c1b"  # of each machine
WORDS = {
    "global/invalid-api-key": ("API key was invalid, expired, or deleted.", "Check your API key or create a new one."),
    "global/object-does-not-exist": ("Specified object does not exist.", "Check its name."),
    "global/quota-exceeded": ("Quota exceeded.", "Contact Support to increase your quota."),
    "global/account-inactive": ("Your account is inactive.", "Make sure you have a valid payment method."),
    "global/invalid-address": ("Your billing address is invalid.", "Make sure your billing address is valid."),
    "global/invalid-parameters": ("Invalid request data.", None),
    "global/internal-error": ("An internal server error occurred.", "Try again later."),
    "instance-operations/launch/insufficient-capacity": ("Not enough capacity to fulfill launch request.", None),
    "instance-operations/launch/file-system-in-wrong-region": ("The file system is in another region.", None),
    "provider/internal-unavailable": ("Provider unavailable", "Try again shortly"),
}


def spec() -> Document | None:
    return document("lambdalabs-1.8.3.json")


def error(status: int, code: str, words: str | None = None) -> httpx.Response:
    message, hint = WORDS.get(code, ("It is refused.", None))
    said = {"code": code, "message": words or message, "suggestion": hint}
    return httpx.Response(status, json={"error": {name: value for name, value in said.items() if value}})


class FakeLambda(FakeVendor):
    """The vendor. `every_s`: by this machine's clock, who asks sooner is refused, as Lambda does with a second."""

    def __init__(self, api_key: str, *, has_ssh: bool = False, every_s: float = 0.0, **more: Any) -> None:
        super().__init__(**more)
        self.api_key = api_key
        self.sold_out: set[tuple[str, str]] = set()
        self.quota: int | None = None  # machines of the account
        self.file_systems = {"data": "us-west-1"}
        self.images = {("lambda-stack-24-04", region) for region in REGIONS} | {("gpu-base-24-04", "us-west-1")}
        self.machines: dict[str, dict[str, Any]] = {}
        self.keys: dict[str, dict[str, Any]] = {}
        self.keeps_keys = False  # a key that was deleted stays
        self._every_s = every_s
        self._last = 0.0
        self._has_ssh = has_ssh

    # --- the test's side ------------------------------------------------------------------------------------------------

    def order_by_hand(self, name: str) -> str:
        key = self._new_key({"name": f"laptop-{len(self.keys)}", "public_key": "ssh-ed25519 AAAA somebody"})
        where = {"region_name": "us-west-1", "instance_type_name": "gpu_1x_a10"}
        return self._order({**where, "name": name, "ssh_key_names": [key["name"]]})["id"]

    def say(self, machine_id: str, **fields: Any) -> None:
        """What Lambda says of this machine from now on, whatever its age."""
        self.machines[machine_id.rpartition("/")[2]]["said"] = fields

    def body(self, name: str) -> dict[str, Any]:
        return next(one["body"] for one in self.machines.values() if one["body"].get("name") == name)

    def alive(self) -> list[str]:
        return [one["body"].get("name", "") for one in self.machines.values() if one["gone_at"] is None]

    # --- the API --------------------------------------------------------------------------------------------------------

    def kind(self, request: httpx.Request) -> str:
        what = request.url.path.rpartition("/")[2]
        named = {("POST", "launch"): "create", ("POST", "terminate"): "delete", ("POST", "ssh-keys"): "ssh-keys"}
        return "get" if request.method == "GET" else named.get((request.method, what), "other")

    def admits(self, request: httpx.Request) -> httpx.Response | None:
        if time.monotonic() < self._last + self._every_s:
            return httpx.Response(429, json={"error": {"code": "global/rate-limited", "message": "Slow down."}})
        self._last = time.monotonic()
        if request.headers.get("authorization") != f"Bearer {self.api_key}":
            return error(401, "global/invalid-api-key")
        return None

    def down(self) -> httpx.Response:
        return error(500, "global/internal-error")

    def hold_to_the_document(self, request: httpx.Request, response: httpx.Response | None) -> None:
        if (found := spec()) is not None:
            is_odd = any(one["said"] for one in self.machines.values())  # a test has it say what Lambda never says
            found.hold(request, None if is_odd else response)

    def serve(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path.removeprefix("/api/v1")
        _, kind, *rest = path.split("/")
        number = rest[0] if rest else ""
        body = json.loads(request.content) if request.content else {}
        match request.method, kind, number:
            case "GET", "instance-types", "":
                return self._data(self._types())
            case "GET", "instances", "":
                return self._list()
            case "GET", "instances", _:
                row = self._row_by_id(number)
                return self._data(row) if row else error(404, "global/object-does-not-exist")
            case "POST", "instances", _:
                self.machines[number]["said"] = {**self.machines[number]["said"], "name": body["name"]}
                return self._data(self._row_by_id(number))
            case "POST", "instance-operations", "launch":
                return self._launch(body)
            case "POST", "instance-operations", "terminate":
                return self._terminate(body["instance_ids"])
            case "GET", "ssh-keys", "":
                return self.down() if self.unreadable == "ssh-keys" else self._data(list(self.keys.values()))
            case "POST", "ssh-keys", "":
                return self._data(self._new_key(body))
            case "DELETE", "ssh-keys", _:
                if number not in self.keys:
                    return error(404, "global/object-does-not-exist")
                if not self.keeps_keys:
                    del self.keys[number]
                return self._data({})
        return error(404, "global/object-does-not-exist", f"there is no {request.method} {path}")

    @staticmethod
    def _data(found: Any) -> httpx.Response:
        return httpx.Response(200, json={"data": found})

    def _types(self) -> dict[str, Any]:
        free = {name: [one for one in REGIONS if (name, one) not in self.sold_out] for name in TYPES}
        return {
            name: {
                "instance_type": self._type(name),
                "regions_with_capacity_available": [self._region(one) for one in free[name]],
            }
            for name in TYPES
        }

    @staticmethod
    def _type(name: str) -> dict[str, Any]:
        cents, gpus, what = TYPES[name]
        specs = {"vcpus": 26 * gpus, "memory_gib": 200 * gpus, "storage_gib": 1024, "gpus": gpus}
        told = {"name": name, "description": f"{gpus}x {what}", "gpu_description": what}
        return {**told, "price_cents_per_hour": cents, "specs": specs}

    @staticmethod
    def _region(name: str) -> dict[str, Any]:
        return {"name": name, "description": REGIONS[name]}

    def _launch(self, body: dict[str, Any]) -> httpx.Response:
        where, what = body["region_name"], body["instance_type_name"]
        if what not in TYPES or where not in REGIONS or len(body["ssh_key_names"]) != 1:
            return error(400, "global/invalid-parameters")
        if body["ssh_key_names"][0] not in {one["name"] for one in self.keys.values()}:
            return error(400, "global/object-does-not-exist", "Specified SSH key does not exist.")
        family = body.get("image", {}).get("family", "lambda-stack-24-04")
        if (family, where) not in self.images:
            return error(404, "global/object-does-not-exist", "Specified image does not exist.")
        if any(self.file_systems.get(one) != where for one in body.get("file_system_names", [])):
            return error(400, "instance-operations/launch/file-system-in-wrong-region")
        if len(body.get("user_data", "")) > 1_000_000:
            return error(400, "global/invalid-parameters")
        if (what, where) in self.sold_out:
            return error(400, "instance-operations/launch/insufficient-capacity")
        if self.quota is not None and len(self.alive()) >= self.quota:
            return error(400, "global/quota-exceeded")
        return self._data({"instance_ids": [self._order(body)["id"]]})

    def _order(self, body: dict[str, Any]) -> dict[str, Any]:
        number = next(self.numbers)
        address = f"127.79.0.{number % 250 + 2}" if self._has_ssh else f"192.0.2.{number % 250}"
        machine = {
            "id": uuid.uuid4().hex,
            "body": body,
            "at": self.now,
            "gone_at": None,
            "said": {},
            "address": address,
        }
        self.machines[machine["id"]] = machine
        if self._has_ssh:
            machine["rented"] = self._boot(address, body)
        return machine

    def _boot(self, address: str, body: dict[str, Any]) -> Rented:
        """What a machine with this cloud-config becomes."""
        config = yaml.safe_load(body["user_data"])
        uploaded = next(one["public_key"] for one in self.keys.values() if one["name"] == body["ssh_key_names"][0])
        assert config["ssh_authorized_keys"] == [uploaded]
        gpus = nvidia(TYPES[body["instance_type_name"]][1])
        machine = self.running.enter_context(rented(address, uploaded, gpus=gpus))
        machine.show(config["ssh_keys"]["ed25519_private"])
        return machine

    def _row(self, machine: dict[str, Any], at: float) -> dict[str, Any]:
        age, body = at - machine["at"], machine["body"]
        status = "active" if age >= 6 else "booting"
        if machine["gone_at"] is not None and machine["gone_at"] <= at:
            status = "terminating" if at - machine["gone_at"] < 3 else "terminated"
        can = {one: {"available": status == "active"} for one in ("migrate", "rebuild", "restart", "cold_reboot")}
        row = {
            "id": machine["id"],
            "name": body.get("name", ""),
            "status": status,
            "ssh_key_names": body["ssh_key_names"],
            "file_system_names": body.get("file_system_names", []),
            "region": self._region(body["region_name"]),
            "instance_type": self._type(body["instance_type_name"]),
            "hostname": body.get("hostname", machine["address"].replace(".", "-")),
            "tags": body.get("tags", []),
            "actions": {**can, "terminate": {"available": True}},
            "jupyter_token": JUPYTER_TOKEN,
            "jupyter_url": f"https://jupyter-1.lambdaspaces.com/?token={JUPYTER_TOKEN}",
        }
        if age >= 3:
            row |= {"ip": machine["address"], "private_ip": "10.0.0.7"}
        return {name: value for name, value in (row | machine["said"]).items() if value is not None}

    def _row_by_id(self, number: str) -> dict[str, Any] | None:
        machine = self.machines.get(number)
        if machine is None or (machine["gone_at"] is not None and self.now - machine["gone_at"] > 60):
            return None
        return self._row(machine, self.now)

    def _list(self) -> httpx.Response:
        if self.unreadable == "instances":
            return self.down()
        then = self.then()
        there = [one for one in self.machines.values() if one["at"] <= then]
        rows = [self._row(one, max(then, one["at"])) for one in there]
        return self._data([row for row in rows if row["status"] != "terminated"])

    def _terminate(self, numbers: list[str]) -> httpx.Response:
        if any(self._row_by_id(one) is None for one in numbers):
            return error(404, "global/object-does-not-exist")
        if any(self.machines[one]["gone_at"] is not None for one in numbers):
            return error(400, "global/unknown", "Instance is terminating.")
        for one in numbers:
            self.machines[one]["gone_at"] = self.now
            if (machine := self.machines[one].get("rented")) is not None:
                machine.end()
        return self._data({"terminated_instances": [self._row_by_id(one) for one in numbers]})

    def _new_key(self, body: dict[str, Any]) -> dict[str, Any]:
        row = {"id": uuid.uuid4().hex, **body}
        self.keys[row["id"]] = row
        return row
