"""A stateful fake of Vultr's API version 2: its paths, answers, pages by cursor and clock, held to Vultr's own document where that is at hand."""

from __future__ import annotations

import base64
import contextlib
import functools
import itertools
import json
import re
import subprocess
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import httpx
import yaml

from tests.fakes.sshd import SSHD

SPEC = Path(__file__).parents[3] / "shared" / "specs" / "vultr-v2.yaml"
PLANS = ("vcg-a100-1c-6g-4vram", "vcg-l40s-16c-180g-48vram", "vc2-1c-1gb", "vbm-256c-2048gb-8-h100-gpu")
REGIONS = {"ewr": "US", "ams": "NL"}
LISTS = {  # a list, one of it when it is read, one of it when it is ordered: as Vultr's document has it
    "instances": ("instances", "instance", "instance"),
    "bare-metals": ("bare_metals", "bare_metal", "baremetal"),
}
PASSWORD = "v5{aE.default-password"  # of each machine, in the answer to its order
_MACHINE = re.compile(r"/v2/(instances|bare-metals)(?:/([^/]+))?")
_AVAILABLE = re.compile(r"/v2/regions/([a-z]+)/availability")


class FakeVultr:
    """The vendor. `transport` is what the driver gets; the clock stands still but for `advance`."""

    def __init__(self, api_key: str, *, listing_lag_s: float = 0.0, has_ssh: bool = False) -> None:
        self.api_key = api_key
        self.transport = httpx.MockTransport(self._answer)
        self.listing_lag_s = listing_lag_s
        self.page_size = 500
        self.locks_while_pending = False
        self.sold_out: set[tuple[str, str]] = set()
        self.acls = ["provisioning", "subscriptions", "subscriptions_view", "billing"]
        self.creates = 0
        self.requests: list[tuple[str, str]] = []
        self.refused: httpx.Response | None = None  # every call, from now on
        self.unreadable: str | None = None  # this list
        self.next: dict[str, Any] = {}  # what happens to the next call of a kind: create, any, delete; once
        self.broken: set[str] = set()  # kinds of calls that are answered by 503
        self._machines: dict[str, dict[str, Any]] = {}
        self._now = time.time()
        self._ssh = has_ssh
        self._sshds = contextlib.ExitStack()
        self._addresses = itertools.count(2)
        self._lock = threading.RLock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._sshds.close()

    # --- the test's side ------------------------------------------------------------------------------------------------

    def advance(self, seconds: float) -> None:
        with self._lock:
            self._now += seconds

    def order_by_hand(self, label: str) -> str:
        return self._order("instances", {"plan": "vc2-1c-1gb", "region": "ewr", "label": label})["id"]

    def set(self, machine_id: str, **fields: Any) -> None:
        """What Vultr says of this machine from now on, whatever its age."""
        self._machines[machine_id]["said"] = fields

    def body(self, label: str) -> dict[str, Any]:
        """What was ordered under this label."""
        return next(one["body"] for one in self._machines.values() if one["body"].get("label") == label)

    def alive(self) -> list[str]:
        return [one["body"].get("label", "") for one in self._machines.values() if one["gone_at"] is None]

    # --- the API --------------------------------------------------------------------------------------------------------

    def _answer(self, request: httpx.Request) -> httpx.Response:
        with self._lock:
            path = request.url.path
            self.requests.append((request.method, path))
            response = self._routed(request, path)
            _hold_to_the_document(request, response)
            return response

    def _routed(self, request: httpx.Request, path: str) -> httpx.Response:
        what = {"POST": "create", "DELETE": "delete"}.get(request.method, "get")
        if what == "create":
            self.creates += 1
        fault = self.next.pop(what, None) or self.next.pop("any", None)
        if fault == "unreachable":
            raise httpx.ConnectError("[Errno 111] Connection refused")
        if self.refused is not None:
            return self.refused
        if request.headers.get("authorization") != f"Bearer {self.api_key}":
            return _error(401, "Invalid API token.")
        if isinstance(fault, httpx.Response):
            return fault
        if what in self.broken:
            return _error(503, "Server error, try again later")
        response = self._served(request, path)
        if fault == "lost":
            raise httpx.ReadError("connection reset by peer")
        return httpx.Response(202, content=fault) if isinstance(fault, bytes) else response

    def _served(self, request: httpx.Request, path: str) -> httpx.Response:
        if path == "/v2/account":
            account = {"name": "A Team", "email": "team@example.com", "acls": self.acls, "balance": -100.5}
            return httpx.Response(200, json={"account": account})
        if (match := _AVAILABLE.fullmatch(path)) and match[1] in REGIONS:
            plans = [plan for plan in PLANS if (plan, match[1]) not in self.sold_out]
            return httpx.Response(200, json={"available_plans": plans})
        if (match := _MACHINE.fullmatch(path)) is None:
            return _error(404, "Invalid resource.")
        kind, machine_id = match.groups()
        if machine_id is None:
            return (
                self._create(kind, json.loads(request.content))
                if request.method == "POST"
                else self._list(kind, request)
            )
        machine = self._machines.get(machine_id)
        if machine is None or machine["kind"] != kind or machine["gone_at"] is not None:
            return _error(404, "Invalid instance-id.")
        if request.method == "DELETE":
            if self.locks_while_pending and self._row(machine, self._now)["status"] == "pending":
                words = "Unable to destroy server: This subscription is not currently active, you cannot destroy it."
                return _error(500, words)
            machine["gone_at"] = self._now
            return httpx.Response(204)
        return httpx.Response(200, json={LISTS[kind][1]: self._row(machine, self._now)})

    def _create(self, kind: str, body: dict[str, Any]) -> httpx.Response:
        if (body["plan"], body["region"]) in self.sold_out:
            return _error(400, "Plan is not available in the selected region.")
        if body["plan"] not in PLANS or body["plan"].startswith("vbm") != (kind == "bare-metals"):
            return _error(400, "Invalid plan chosen.")
        machine = self._order(kind, body)
        row = self._row(machine, self._now) | {"default_password": PASSWORD}
        return httpx.Response(202, json={LISTS[kind][2]: row})

    def _order(self, kind: str, body: dict[str, Any]) -> dict[str, Any]:
        number = next(self._addresses)
        address = f"127.77.0.{number}" if self._ssh else f"192.0.2.{number % 250}"
        machine = {"id": str(uuid.uuid4()), "kind": kind, "body": body, "at": self._now, "gone_at": None, "said": {}}
        machine["address"] = address
        self._machines[machine["id"]] = machine
        if self._ssh:
            self._sshds.enter_context(_sshd(address, base64.b64decode(body["user_data"]).decode()))
        return machine

    def _row(self, machine: dict[str, Any], at: float) -> dict[str, Any]:
        age, body, is_metal = at - machine["at"], machine["body"], machine["kind"] == "bare-metals"
        is_active = age >= (20 if is_metal else 3)
        common = {
            "id": machine["id"],
            "main_ip": machine["address"] if is_active else "0.0.0.0",
            "status": "active" if is_active else "pending",
            "region": body["region"],
            "plan": body["plan"],
            "label": body.get("label", ""),
            "tags": body.get("tags", []),
            "date_created": datetime.fromtimestamp(machine["at"], UTC).isoformat(timespec="seconds"),
            "os_id": body.get("os_id", 0),
            "image_id": body.get("image_id", ""),
        }
        if not is_metal:
            health = "ok" if age >= 6 else "installingbooting" if is_active else "none"
            common |= {"power_status": "running", "server_status": health, "hostname": body.get("hostname", "")}
        return common | machine["said"]

    def _list(self, kind: str, request: httpx.Request) -> httpx.Response:
        if self.unreadable == kind:
            return _error(500, "Server error, try again later")
        then = self._now - self.listing_lag_s
        rows = [
            self._row(one, max(then, one["at"]))
            for one in self._machines.values()
            if one["kind"] == kind and one["at"] <= then and (one["gone_at"] is None or one["gone_at"] > then)
        ]
        start = int(request.url.params.get("cursor") or 0)
        end = start + min(self.page_size, int(request.url.params.get("per_page", 100)))
        links = {"next": str(end) if end < len(rows) else "", "prev": ""}
        return httpx.Response(200, json={LISTS[kind][0]: rows[start:end], "meta": {"total": len(rows), "links": links}})


def _error(status: int, words: str) -> httpx.Response:
    return httpx.Response(status, json={"error": words, "status": status})


# --- Vultr's own document -----------------------------------------------------------------------------------------------


@functools.cache
def document() -> dict[str, Any] | None:
    """Vultr's OpenAPI document, or None where it is not at hand."""
    if not SPEC.exists():
        return None
    return yaml.load(SPEC.read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def _hold_to_the_document(request: httpx.Request, response: httpx.Response) -> None:
    """Fails the test where a request or an answer has a field, a type or a path that Vultr does not document."""
    found = document()
    if found is None:
        return
    path = request.url.path.removeprefix("/v2")
    template = next((one for one in found["paths"] if re.fullmatch(re.sub(r"\{[^}]*\}", "[^/]+", one), path)), None)
    assert template is not None, f"Vultr has no {path}"
    call = found["paths"][template][request.method.lower()]
    known = {one["name"] for one in call.get("parameters", []) if one["in"] == "query"}
    assert set(request.url.params) <= known, f"{request.method} {path} takes {known}"
    if request.content:
        _conforms(json.loads(request.content), call["requestBody"]["content"]["application/json"]["schema"], found)
    said = call["responses"].get(str(response.status_code), {})
    if response.is_success and "content" in said and response.headers.get("content-type") == "application/json":
        _conforms(response.json(), said["content"]["application/json"]["schema"], found)


def _conforms(value: Any, schema: dict[str, Any], found: dict[str, Any], where: str = "") -> None:
    while "$ref" in schema:
        schema = found["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    types = {"string": str, "integer": int, "boolean": bool, "array": list, "object": dict, "number": (int, float)}
    if expected := types.get(schema.get("type", "")):
        assert isinstance(value, expected), f"{where} is {value!r}, and should be a {schema['type']}"
    if isinstance(value, dict) and "properties" in schema:
        unknown = value.keys() - schema["properties"].keys()
        assert not unknown, f"{where} has {unknown}"
        assert set(schema.get("required", [])) <= value.keys(), f"{where} lacks a field"
        for name, inner in value.items():
            _conforms(inner, schema["properties"][name], found, f"{where}.{name}")
    if isinstance(value, list):
        for inner in value:
            _conforms(inner, schema["items"], found, f"{where}[]")


# --- machines that answer SSH -------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _sshd(address: str, user_data: str) -> Iterator[None]:
    """What a machine with this cloud-config becomes: OpenSSH on port 22 of a loopback address, with its host key and its key of root's."""
    config = yaml.safe_load(user_data)
    with tempfile.TemporaryDirectory(prefix="vultr-") as name:
        folder = Path(name)
        (folder / "host").touch(mode=0o600)
        (folder / "host").write_text(config["ssh_keys"]["ed25519_private"])
        (folder / "authorized").write_text("\n".join(config["ssh_authorized_keys"]) + "\n")
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        settings = {
            "ListenAddress": f"{address}:22",
            "HostKey": folder / "host",
            "AuthorizedKeysFile": folder / "authorized",
            "StrictModes": "no",
            "PasswordAuthentication": "no",
            "PermitRootLogin": "no" if config.get("disable_root", True) else "prohibit-password",
            "UsePAM": "no",
            "PidFile": "none",
        }
        (folder / "config").write_text("".join(f"{key} {value}\n" for key, value in settings.items()))
        process = subprocess.Popen(
            [SSHD, "-D", "-e", "-f", folder / "config"], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            yield
        finally:
            process.terminate()
            process.wait(10)
