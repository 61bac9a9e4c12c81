"""A machine's life in the fake: what it shows at which age, how it ends, and the operations that tell of it."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from tests.fakes.gcp.project import PROJECT, TYPES

URL = f"https://www.googleapis.com/compute/v1/projects/{PROJECT}"
_NUMBERS = itertools.count(4_611_686_018_427_387_905)


def stamp(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")


def seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


@dataclass
class Operation:
    """One that was accepted; done from `done_at` on."""

    name: str
    kind: str
    target: str  # path below the project
    zone: str | None
    at: float
    done_at: float
    errors: list[dict[str, Any]] = field(default_factory=list)
    status_message: str = ""

    def row(self, now: float) -> dict[str, Any]:
        is_done = now >= self.done_at
        scope = f"{URL}/zones/{self.zone}" if self.zone else f"{URL}/global"
        row: dict[str, Any] = {
            "kind": "compute#operation", "id": str(next(_NUMBERS)), "name": self.name, "operationType": self.kind,
            "targetLink": f"{URL}/{self.target}", "targetId": "12345", "status": "DONE" if is_done else "RUNNING",
            "progress": 100 if is_done else 0, "insertTime": stamp(self.at), "user": "system@google.com",
            "selfLink": f"{scope}/operations/{self.name}", **({"zone": scope} if self.zone else {}),
        }  # fmt: skip
        if self.status_message:
            row["statusMessage"] = self.status_message
        if is_done and self.errors:
            row |= {
                "error": {"errors": self.errors},
                "httpErrorStatusCode": 503,
                "httpErrorMessage": "SERVICE UNAVAILABLE",
            }
        return row


@dataclass
class Vm:
    """One machine, from its order to its end."""

    name: str
    zone: str
    body: dict[str, Any]
    at: float
    address: str
    number: int = field(default_factory=lambda: next(_NUMBERS))
    ends_at: float | None = None  # from then on STOPPING, 2 s later gone
    is_stopped: bool = False
    said: dict[str, Any] = field(default_factory=dict)  # whatever its age
    is_over: bool = False
    is_refused: bool = False  # accepted, and never made
    metadata: list[dict[str, str]] = field(default_factory=list)
    fingerprint: int = 1
    pace: float = 1.0  # of its boot and its end

    @property
    def target(self) -> str:
        return f"zones/{self.zone}/instances/{self.name}"

    def is_gone(self, now: float) -> bool:
        return self.ends_at is not None and now >= self.ends_at + 2 * self.pace

    def status(self, now: float) -> str:
        if self.is_stopped:
            return "TERMINATED"
        if self.ends_at is not None and now >= self.ends_at:
            return "STOPPING"
        age = (now - self.at) / self.pace
        return "PROVISIONING" if age < 2 or self.is_refused else "STAGING" if age < 4 else "RUNNING"

    def row(self, now: float) -> dict[str, Any]:
        interfaces = [dict(one) for one in self.body["networkInterfaces"]]
        for one in interfaces:
            one |= {"name": "nic0", "networkIP": self.address, "stackType": "IPV4_ONLY"}
            one["accessConfigs"] = [
                dict(access) | ({"natIP": self.address} if now - self.at >= 2 * self.pace else {})
                for access in one.get("accessConfigs", [])
            ]
            if not one["accessConfigs"]:
                del one["accessConfigs"]
        disk = {"boot": True, "autoDelete": self.body["disks"][0].get("autoDelete", False), "deviceName": "persistent-disk-0",
                "source": f"{URL}/zones/{self.zone}/disks/{self.name}", "index": 0, "type": "PERSISTENT", "mode": "READ_WRITE"}  # fmt: skip
        row = {
            "kind": "compute#instance", "id": str(self.number), "name": self.name, "status": self.status(now),
            "creationTimestamp": stamp(self.at), "zone": f"{URL}/zones/{self.zone}",
            "machineType": f"{URL}/{self.body['machineType']}", "labels": self.body.get("labels", {}),
            "metadata": {"fingerprint": f"f{self.fingerprint}", "items": self.metadata},
            "scheduling": self.body.get("scheduling", {}), "networkInterfaces": interfaces, "disks": [disk],
            "tags": self.body.get("tags", {}), "selfLink": f"{URL}/{self.target}", "cpuPlatform": "Intel Broadwell",
        }  # fmt: skip
        return row | self.said


def machine_type(name: str) -> tuple[int, int, int, str] | None:
    return TYPES.get(name)


def real_time() -> float:
    return time.time()
