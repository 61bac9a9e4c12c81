"""moto in this process, the settings and faults of a test, and the books of what was asked."""

from __future__ import annotations

import copy
import io
import itertools
import threading
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from xml.sax.saxutils import escape

from tests.fakes.aws.account import ACCOUNT, REGIONS
from tests.fakes.aws.machine import Machine

PAGED = {
    "DescribeInstances": "reservationSet",
    "DescribeVolumes": "volumeSet",
    "DescribeNetworkInterfaces": "networkInterfaceSet",
    "DescribeImages": "imagesSet",
    "DescribeSubnets": "subnetSet",
    "DescribeSecurityGroups": "securityGroupInfo",
    "DescribeInstanceTypeOfferings": "instanceTypeOfferingSet",
}
DEFAULTS = {
    "page_size": 1000,
    "hide_new": 0.0,
    "boot_s": 0.0,
    "shutdown_s": 0.1,
    "regions": list(REGIONS),
    "quotas": {},
    "reservations": {},
    "keep_volumes": False,  # the next terminate leaves the root volume behind
}
Reply = tuple[int, str, bytes]


class Backend:
    """moto, what tests set, and what was asked."""

    def __init__(self, folder: Path, ssh_port: int) -> None:
        from moto.server import DomainDispatcherApplication, create_backend_app

        self.moto = DomainDispatcherApplication(create_backend_app)
        self.folder, self.ssh_port = folder, ssh_port
        self.lock = threading.RLock()  # moto is not made for threads
        self.addresses = itertools.count(2)
        self.machines: dict[str, Machine] = {}
        self._clear()

    def _clear(self) -> None:
        self.settings: dict[str, Any] = copy.deepcopy(DEFAULTS)
        self.faults: list[dict[str, Any]] = []
        self.history: list[dict[str, Any]] = []
        self.orders: dict[tuple[str, str, str], tuple[str, Reply]] = {}
        self.tokens: dict[str, str] = {}  # instance -> token
        self.visible_at: dict[str, float] = {}

    def _seen(self, action: str, region: str, sent: dict[str, str]) -> dict[str, Any] | None:
        with self.lock:
            self.history.append({"action": action, "region": region, "sent": sent})
            for fault in self.faults:
                if fault["action"] not in {"*", action} or fault["region"] not in {None, region}:
                    continue
                if fault["zone"] not in {None, sent.get("Placement.AvailabilityZone")}:
                    continue
                if fault["times"] is not None:
                    fault["times"] -= 1
                    if fault["times"] == 0:
                        self.faults.remove(fault)
                return dict(fault)
        return None

    def _plain(self, environ: dict[str, Any], region: str, action: str, sent: dict[str, str]) -> Reply:
        data = urlencode(sent).encode()
        captured: list[Any] = []
        inner = {
            **{key: value for key, value in environ.items() if not key.startswith("werkzeug.")},
            "wsgi.input": io.BytesIO(data),
            "CONTENT_LENGTH": str(len(data)),
        }
        parts = self.moto(inner, lambda status, headers, _exc=None: captured.append((status, headers)))
        reply = b"".join(parts)
        status, headers = captured[0]
        return int(status.split()[0]), dict(headers).get("Content-Type", "text/xml"), reply

    def _backend(self, region: str) -> Any:
        from moto.ec2.models import ec2_backends

        return ec2_backends[ACCOUNT][region]


def name_of(resource: Any) -> str | None:
    return {tag["key"]: tag["value"] for tag in resource.get_tags()}.get("Name")


def error(code: str, message: str, status: int) -> Reply:
    text = f"<Response><Errors><Error><Code>{escape(code)}</Code><Message>{escape(message)}</Message></Error></Errors><RequestID>1</RequestID></Response>"
    return status, "text/xml", text.encode()
