"""A stateful fake of TensorDock's API version 2: hosts and what they have left, errors inside a 200, and the three ways in which it writes a list.

Where the stored document of a third party and TensorDock's own page differ, this is as the page has it.
"""

from __future__ import annotations

import json
import uuid
from typing import Any, Literal

import httpx

from prefect_gpu.providers.core.machine.keys import derive
from tests.fakes.rented import Rented, nvidia, rented
from tests.fakes.vendor import FakeVendor

IMAGES = ("ubuntu2204", "ubuntu2404", "ubuntu2404_ml_everything", "ubuntu2404_ml_pytorch", "windows10")
PLACES = {
    "austin": {"uuid": "loc-1", "city": "Austin", "stateprovince": "Texas", "country": "United States", "tier": 3},
    "oslo": {"uuid": "loc-2", "city": "Oslo", "stateprovince": "", "country": "Norway", "tier": 2},
}
SETTLES_S = 3  # so long a deletion takes


def host(number: str, place: str, gpus: dict[str, tuple[int, float]], **has: Any) -> dict[str, Any]:
    """A host node; its GPUs by name, how many are free and what each costs."""
    left = {"vcpu_count": 64, "ram_gb": 256, "storage_gb": 2000, "available_ports": [20001, 20002, 20003]}
    return {
        "id": number,
        "location_id": PLACES[place]["uuid"],
        "engine": "narwhal",
        "uptime_percentage": 99.5,
        "available_resources": {
            "gpus": [{"v0Name": name, "availableCount": n, "price_per_hr": price} for name, (n, price) in gpus.items()],
            "has_public_ip_available": False,
            **left,
            **has,
        },
        "pricing": {"per_vcpu_hr": 0.003, "per_gb_ram_hr": 0.002, "per_gb_storage_hr": 0.00005},
        "location": PLACES[place],
    }


def hosts() -> list[dict[str, Any]]:
    return [
        host("host-1", "austin", {"h100-sxm5-80gb": (2, 2.2), "geforcertx4090-pcie-24gb": (1, 0.4)}),
        host("host-2", "oslo", {"h100-sxm5-80gb": (1, 2.0)}, has_public_ip_available=True),
    ]


def error(status: int, words: str) -> httpx.Response:
    said = {"status": str(status), "title": "Error", "detail": words}
    return httpx.Response(status, json={"errors": [said]})


class FakeTensordock(FakeVendor):
    """The vendor."""

    def __init__(self, token: str, *, has_ssh: bool = False, shows_deleted_s: float = 0.0, **more: Any) -> None:
        super().__init__(**more)
        self._shows_deleted_s = shows_deleted_s  # so long a machine that is gone is known by its id
        self.token = token
        self.hosts = hosts()
        self.lists_as: Literal["instances", "attributes", "flat"] = "instances"
        self.balance = 50.0
        self.machines: dict[str, dict[str, Any]] = {}
        self._has_ssh = has_ssh

    # --- the test's side ------------------------------------------------------------------------------------------------

    def order_by_hand(self, name: str) -> str:
        resources = {"vcpu_count": 2, "ram_gb": 8, "storage_gb": 100, "gpus": {}}
        return self._order({"name": name, "image": "ubuntu2404", "hostnode_id": "host-1", "resources": resources})["id"]

    def say(self, machine_id: str, **fields: Any) -> None:
        """What TensorDock says of this machine from now on, whatever its age."""
        self.machines[machine_id.rpartition("/")[2]]["said"] = fields

    def take_back(self, machine_id: str) -> None:
        """The host needs its GPU."""
        self.say(machine_id, status="StoppedDisassociated")

    def body(self, name: str) -> dict[str, Any]:
        return next(one["body"] for one in self.machines.values() if one["body"]["name"] == name)

    def alive(self) -> list[str]:
        return [one["body"]["name"] for one in self.machines.values() if one["gone_at"] is None]

    # --- the API --------------------------------------------------------------------------------------------------------

    def kind(self, request: httpx.Request) -> str:
        return {"GET": "get", "POST": "create", "DELETE": "delete"}.get(request.method, "other")

    def admits(self, request: httpx.Request) -> httpx.Response | None:
        if request.headers.get("authorization") == f"Bearer {self.token}":
            return None
        return error(401, "Invalid API token")

    def down(self) -> httpx.Response:
        return error(503, "Service temporarily down")

    def answer(self, request: httpx.Request) -> httpx.Response:
        with self.lock:
            for machine in self.machines.values():
                if self._has_ssh and not machine["booted"] and self.now - machine["at"] >= 8:
                    machine["booted"] = True
                    boot(machine["rented"], machine["body"]["cloud_init"])
        return super().answer(request)

    def serve(self, request: httpx.Request) -> httpx.Response:
        match request.method, *request.url.path.removeprefix("/api/v2/").split("/"):
            case "GET", "hostnodes":
                return httpx.Response(200, json={"data": {"hostnodes": self.hosts}})
            case "GET", "instances":
                return self._list()
            case "POST", "instances":
                return self._create(json.loads(request.content))
            case "GET", "instances", number:
                machine = self._standing(number)
                return httpx.Response(200, json=self._row(machine, self.now)) if machine else self._unknown()
            case "DELETE", "instances", number:
                machine = self._standing(number)
                if machine is None:
                    return self._unknown()
                machine["gone_at"] = machine["gone_at"] or self.now
                if (there := machine.get("rented")) is not None:
                    there.end()
                said = {"type": "success", "attributes": {"message": "Instance deleted successfully"}}
                return httpx.Response(200, json={"data": said})
        return error(404, f"there is no {request.method} {request.url.path}")

    @staticmethod
    def _unknown() -> httpx.Response:
        return error(404, "Instance not found")

    def _standing(self, number: str) -> dict[str, Any] | None:
        machine = self.machines.get(number)
        is_gone = machine is None or (
            machine["gone_at"] is not None and self.now - machine["gone_at"] > SETTLES_S + self._shows_deleted_s
        )
        return None if is_gone else machine

    def _create(self, body: dict[str, Any]) -> httpx.Response:
        assert body.keys() == {"data"}
        assert body["data"].keys() == {"type", "attributes"}
        asked = body["data"]["attributes"]
        known = {"name", "type", "image", "resources", "hostnode_id", "location_id", "useDedicatedIp", "port_forwards"}
        assert asked.keys() <= known | {"ssh_key", "ssh_key_id", "cloud_init"}, asked.keys()
        assert ("hostnode_id" in asked) != ("location_id" in asked)
        assert ("ssh_key" in asked) != ("ssh_key_id" in asked)
        assert asked["cloud_init"].keys() <= {"runcmd", "packages", "package_update", "package_upgrade", "write_files"}
        found = next((one for one in self.hosts if one["id"] == asked["hostnode_id"]), None)
        if found is None:
            return error(404, "Hostnode not found")
        wanted, left = asked["resources"], found["available_resources"]
        if asked["image"] not in IMAGES or wanted["storage_gb"] < 100 or wanted["vcpu_count"] % 2:
            return error(400, "Invalid image or resources")
        free = {one["v0Name"]: one for one in left["gpus"]}
        if any(free.get(name, {}).get("availableCount", 0) < n["count"] for name, n in wanted["gpus"].items()):
            return httpx.Response(200, json={"error": "The requested GPUs are not available on this hostnode"})
        if any(wanted[what] > left[what] for what in ("vcpu_count", "ram_gb", "storage_gb")):
            return httpx.Response(200, json={"error": "Insufficient resources on this hostnode", "status": 400})
        if self.balance < 1:
            return httpx.Response(200, json={"status": 400, "message": "You need at least $1.00 to deploy"})
        for forward in asked.get("port_forwards", []):
            if forward["external_port"] not in left["available_ports"]:
                return error(409, f"Port {forward['external_port']} is already in use")
        if asked.get("useDedicatedIp") and not left["has_public_ip_available"]:
            return error(400, "No available IP addresses on this hostnode")
        machine = self._order(asked)
        said = {"type": "virtualmachine", "id": machine["id"], "name": asked["name"], "status": "running"}
        return httpx.Response(201, json={"data": said})

    def _order(self, asked: dict[str, Any]) -> dict[str, Any]:
        number = next(self.numbers)
        machine = {"id": str(uuid.uuid4()), "body": asked, "at": self.now, "gone_at": None, "said": {}, "booted": False}
        machine["address"] = f"127.80.0.{number % 250 + 2}" if self._has_ssh else f"192.0.2.{number % 250}"
        self.machines[machine["id"]] = machine
        if self._has_ssh:
            count = sum(one["count"] for one in asked["resources"]["gpus"].values())
            port = asked["port_forwards"][0]["external_port"]
            there = rented(machine["address"], asked["ssh_key"], port=port, gpus=nvidia(count))
            machine["rented"] = self.running.enter_context(there)
            machine["rented"].show(derive(b"an image", asked["name"], "host").private.get_secret_value())
        return machine

    def _row(self, machine: dict[str, Any], at: float) -> dict[str, Any]:
        age, asked = at - machine["at"], machine["body"]
        status = "running" if age >= 4 else "starting"
        if machine["gone_at"] is not None and machine["gone_at"] <= at:
            status = "deleting" if at - machine["gone_at"] <= SETTLES_S else "deleted"
        row = {
            "type": "virtualmachine",
            "id": machine["id"],
            "name": asked["name"],
            "status": status,
            "ipAddress": machine["address"] if age >= 2 else "",
            "portForwards": asked.get("port_forwards", []),
            "rateHourly": 2.5,
            "resources": asked["resources"],
        }
        return row | machine["said"]

    def _list(self) -> httpx.Response:
        if self.unreadable == "instances":
            return self.down()
        then = self.then()
        there = [one for one in self.machines.values() if one["at"] <= then]
        there = [one for one in there if one["gone_at"] is None or one["gone_at"] + SETTLES_S > then]
        rows = [self._row(one, max(then, one["at"])) for one in there]
        inner = ("type", "id")
        nested = [
            {**{k: row[k] for k in inner}, "attributes": {k: v for k, v in row.items() if k not in inner}}
            for row in rows
        ]
        shapes: dict[str, Any] = {
            "flat": rows,
            "instances": {"instances": nested},
            "attributes": {"type": "list", "id": "instances", "attributes": {"instances": nested}},
        }
        return httpx.Response(200, json={"data": shapes[self.lists_as]})


def boot(machine: Rented, cloud_init: dict[str, Any]) -> None:
    """What cloud-init does on that machine: files first, then all host keys go and others come, then the commands."""
    for one in cloud_init["write_files"]:
        machine.written(one["path"], one["content"], int(one["permissions"], 8))
    machine.runs(*cloud_init["runcmd"])
