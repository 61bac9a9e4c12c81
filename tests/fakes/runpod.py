"""A stateful fake of RunPod's API version 2: pods that boot, their logs as events, what they hold; held to RunPod's own document where that is at hand.

Its machines are processes with an SSH server that makes its key, or containers of the Docker Engine that run what the order says.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import subprocess
from datetime import datetime
from typing import Any, Final

import httpx

from prefect_gpu.providers.core.machine.keys import derive
from prefect_gpu.providers.core.toolkit.container_boot import PORT
from tests.fakes.openapi import Document, document
from tests.fakes.rented import nvidia, rented
from tests.fakes.vendor import FakeVendor

H100: Final = "NVIDIA H100 80GB HBM3"
RTX4090: Final = "NVIDIA GeForce RTX 4090"
TELLS_KEY_S: Final = 8  # after its order


def gpu(gpu_id: str, name: str, memory: int, secure: float, community: float, most: int = 8) -> dict[str, Any]:
    return {
        "id": gpu_id, "name": name, "pool": None, "memory": memory, "manufacturer": gpu_id.split(maxsplit=1)[0].upper(),
        "secure": secure > 0, "community": community > 0, "price": {"secure": secure, "community": community},
        "maxCount": {"secure": most if secure else 0, "community": most // 2 if community else 0},
    }  # fmt: skip


def catalog() -> dict[str, dict[str, Any]]:
    """GPU types by id. `stock` is how many a data center has; of the community cloud under an empty name."""
    rows = {
        H100: ({"US-KS-2": 8, "EUR-IS-1": 2}, gpu(H100, "H100 SXM", 80, 2.69, 0)),
        "NVIDIA H100 PCIe": ({"US-KS-2": 1, "": 2}, gpu("NVIDIA H100 PCIe", "H100 PCIe", 80, 2.39, 1.99)),
        RTX4090: ({"US-KS-2": 1, "": 3}, gpu(RTX4090, "RTX 4090", 24, 0.69, 0.34)),
        "AMD Instinct MI300X OAM": ({"EU-SE-1": 8}, gpu("AMD Instinct MI300X OAM", "MI300X", 192, 1.99, 0)),
    }
    return {gpu_id: {**row, "stock": stock} for gpu_id, (stock, row) in rows.items()}


def spec() -> Document | None:
    """RunPod's OpenAPI document, or None where it is not at hand."""
    return document("runpod-rest-v2.json")


def error(status: int, detail: str, *violations: str, **headers: str) -> httpx.Response:
    said = {"title": httpx.codes.get_reason_phrase(status), "status": status, "detail": detail}
    body = json.dumps({**said, **({"errors": list(violations)} if violations else {})})
    return httpx.Response(status, content=body, headers={"content-type": "application/problem+json", **headers})


class Machine:
    """What runs behind one pod; of the fake's own it is nothing at all."""

    place: tuple[str, int] | None = ("192.0.2.7", 30022)
    lines: tuple[str, ...] = ()
    has_ended = False

    def end(self) -> None:
        """It is gone."""


class Process(Machine):
    """An SSH server of this machine's own: it makes its key and tells it, as the script in the order would."""

    def __init__(self, fake: FakeRunpod, body: dict[str, Any], number: int) -> None:
        host = derive(secrets.token_bytes(8), body["name"], "host")
        self.place = (f"127.81.0.{number % 250 + 2}", 10000 + number)
        lines = nvidia(body["gpu"]["count"])
        self._there = fake.running.enter_context(
            rented(self.place[0], body["env"]["PREFECT_GPU_KEY"], port=self.place[1], gpus=lines)
        )
        self._there.show(host.private.get_secret_value())
        self.lines = ("boots", f"prefect-gpu host key {body['env']['PREFECT_GPU_NONCE']} {host.public}")

    def end(self) -> None:
        self._there.end()


class Container(Machine):
    """A container that runs what the order says, its entrypoint in place of the image's; a kill is an interruption."""

    def __init__(self, fake: FakeRunpod, body: dict[str, Any], number: int) -> None:
        self.name = f"runpod-{number}-{secrets.token_hex(4)}"
        fake.running.callback(self.end)
        args = json.loads(body["args"])
        given = [part for name, value in body["env"].items() for part in ("-e", f"{name}={value}")]
        (first, *others), smi = args["entrypoint"], "/usr/local/bin/nvidia-smi"
        stand_in = "#!/bin/sh\ncase $* in *--query-gpu*) ;; *) exit 0 ;; esac"
        stand_in += "".join(f"\necho '{line}'" for line in nvidia(body["gpu"]["count"]))
        run = ("run", "-d", "--name", self.name, "-p", f"127.0.0.1::{PORT}", *given, "--entrypoint", first)
        fake.folder.mkdir(exist_ok=True)
        (fake.folder / "nvidia-smi").write_text(stand_in + "\n")
        (fake.folder / "nvidia-smi").chmod(0o755)
        self.docker(*run, "-v", f"{fake.folder}/nvidia-smi:{smi}:ro", body["image"], *others, *args["cmd"])
        self.place = ("127.0.0.1", int(self.docker("port", self.name, f"{PORT}/tcp").rpartition(":")[2]))

    @staticmethod
    def docker(*arguments: str) -> str:
        done = subprocess.run(["docker", *arguments], capture_output=True, text=True, check=True)
        return (done.stdout + done.stderr).strip()

    @property
    def lines(self) -> tuple[str, ...]:  # type: ignore[override]
        with contextlib.suppress(subprocess.CalledProcessError):
            return tuple(self.docker("logs", self.name).splitlines())
        return ()

    @property
    def has_ended(self) -> bool:  # type: ignore[override]
        with contextlib.suppress(subprocess.CalledProcessError):
            return self.docker("inspect", "-f", "{{.State.Status}}", self.name) != "running"
        return True

    def kill(self) -> None:
        self.docker("kill", self.name)

    def end(self) -> None:
        with contextlib.suppress(subprocess.CalledProcessError):
            self.docker("rm", "-f", self.name)


class FakeRunpod(FakeVendor):
    """The vendor. `machines` is what its pods are."""

    def __init__(
        self,
        key: str,
        *,
        machines: Any = None,
        propagates_s: float = 0.0,
        shows_deleted_s: float = 0.0,
        folder: Any = None,
        **more: Any,
    ) -> None:
        super().__init__(**more)
        self.key, self.folder = key, folder
        self._shows_deleted_s = shows_deleted_s  # so long a pod that is gone is TERMINATED by its id
        self.propagates_s = propagates_s  # so long after its order nobody knows a pod by its id
        self.catalog = catalog()
        self.balance = 50.0
        self.pods: dict[str, dict[str, Any]] = {}
        self.held: dict[str, dict[str, dict[str, Any]]] = {"registries": {}, "network-volumes": {}}
        self.passwords: list[str] = []
        self.page_size: int | None = None
        self.host_says = "pulled the image"
        self.holds_s = 2.0  # so long after its end a pod holds its credentials and its volume
        self.leaves = False  # a volume of the next pod that is terminated
        self._machines = machines

    # --- the test's side ------------------------------------------------------------------------------------------------

    def order_by_hand(self, name: str, **more: Any) -> str:
        body = {"name": name, "image": "somebody/else", "cloud": "SECURE", "gpu": {"id": H100, "count": 1}}
        body["env"] = {"JUPYTER_PASSWORD": "theirs"}
        return self._order({**body, **more}, Machine())["id"]

    def say(self, pod_id: str, **fields: Any) -> None:
        """What RunPod says of this pod from now on, whatever its age."""
        self.pods[pod_id.rpartition("/")[2]]["said"] |= fields

    def pod(self, name: str) -> dict[str, Any]:
        return next(one for one in self.pods.values() if one["body"]["name"] == name)

    def take_away(self, name: str) -> None:
        """The pod is gone, and nobody asked for that."""
        with self.lock:
            pod = self.pod(name)
            pod["gone_at"] = self.now
            pod["machine"].end()

    def alive(self) -> list[str]:
        return [one["body"]["name"] for one in self.pods.values() if one["gone_at"] is None]

    def left(self) -> list[str]:
        return [*self.alive(), *(thing["name"] for things in self.held.values() for thing in things.values())]

    # --- the API --------------------------------------------------------------------------------------------------------

    def hold_to_the_document(self, request: httpx.Request, response: httpx.Response | None) -> None:
        assert "/ssh-keys" not in request.url.path, "whoever writes these replaces all keys of the account"
        if (found := spec()) is None:
            return
        asked = httpx.QueryParams({key: value for key, value in request.url.params.items() if key != "cursor"})
        plain = httpx.Request(request.method, request.url.copy_with(params=asked), content=request.content)
        was_told = any(pod["said"] for pod in self.pods.values())  # what to say, by a test
        found.hold(plain, None if was_told else response)

    def kind(self, request: httpx.Request) -> str:
        if request.method == "POST" and not request.url.path.endswith("/pods"):
            return "add"
        if request.url.path.endswith("/logs"):
            return "log"
        return {"GET": "get", "POST": "create", "DELETE": "delete"}.get(request.method, "other")

    def admits(self, request: httpx.Request) -> httpx.Response | None:
        if request.headers.get("authorization") == f"Bearer {self.key}":
            return None
        return error(401, "invalid API key")

    def down(self) -> httpx.Response:
        return error(503, "service temporarily unavailable")

    def serve(self, request: httpx.Request) -> httpx.Response:
        match request.method, *request.url.path.removeprefix("/v2/").split("/"):
            case "GET", "catalog", "gpus":
                return self._gpus(request.url.params)
            case "GET", "catalog", "datacenters":
                return self._data_centers(request.url.params)
            case "GET", "pods":
                return self._list("pods", self._listed(request.url.params), request)
            case "POST", "pods":
                return self._create(json.loads(request.content))
            case "GET", "pods", number:
                return httpx.Response(200, json=self._row(pod)) if (pod := self._known(number)) else self._unknown()
            case "GET", "pods", number, "logs":
                return self._log(pod, request.url.params) if (pod := self._known(number)) else self._unknown()
            case "DELETE", "pods", number:
                if (pod := self._known(number)) is None:
                    return self._unknown()
                if "cluster" in pod["said"]:
                    return error(409, "pod belongs to a cluster")
                if pod["gone_at"] is not None:
                    return self._unknown()
                pod["gone_at"] = self.now
                pod["machine"].end()
                if self.leaves:
                    self.leaves = False
                    self._add("network-volumes", {"name": pod["body"]["name"], "size": 10, "dataCenter": "US-KS-2"})
                return httpx.Response(204)
            case "GET", ("registries" | "network-volumes") as kind:
                key = {"registries": "registries", "network-volumes": "networkVolumes"}[kind]
                return self._list(key, list(self.held[kind].values()), request)
            case "POST", ("registries" | "network-volumes") as kind:
                return self._add(kind, json.loads(request.content))
            case "DELETE", ("registries" | "network-volumes") as kind, number:
                return self._remove(kind, number)
        return error(404, f"there is no {request.method} {request.url.path}")

    @staticmethod
    def _unknown() -> httpx.Response:
        return error(404, "pod not found")

    def _known(self, number: str) -> dict[str, Any] | None:
        pod = self.pods.get(number)
        if pod is None or self.now - pod["at"] < self.propagates_s:
            return None
        return pod if pod["gone_at"] is None or self.now - pod["gone_at"] < self._shows_deleted_s else None

    def _gpus(self, asked: httpx.QueryParams) -> httpx.Response:
        if asked.get("include") != "AVAILABILITY" or not asked.get("product"):
            return error(400, "include=AVAILABILITY requires product")
        cloud, count = asked.get("cloud", "SECURE"), int(asked.get("count", 1))
        rows = []
        for kind in self.catalog.values():
            row = {key: value for key, value in kind.items() if key != "stock"}
            free = {place: n for place, n in kind["stock"].items() if bool(place) == (cloud == "SECURE")}
            has = [
                {"id": dc, "name": dc, "availability": "LOW" if n >= count else "NONE"} for dc, n in free.items() if dc
            ]
            row["availability"] = "HIGH" if any(n >= count for n in free.values()) else "NONE"
            rows.append(row | ({"dataCenters": has} if has and row["availability"] != "NONE" else {}))
        return httpx.Response(200, json={"gpus": rows})

    def _data_centers(self, asked: httpx.QueryParams) -> httpx.Response:
        region = {"US": "NORTH_AMERICA", "EU": "EUROPE"}
        names = sorted({place for kind in self.catalog.values() for place in kind["stock"] if place})
        wanted = (asked.get("regions") or ",".join(region.values())).split(",")
        common = {"globalNetwork": True, "networkVolumeTypes": ["STANDARD"], "compliance": []}
        rows: list[dict[str, Any]] = [
            {"id": name, "name": name, "region": region[name[:2]], **common}
            for name in names
            if region[name[:2]] in wanted
        ]
        for row in rows if asked.get("include") == "GPU_AVAILABILITY" else ():
            has = [(kind, kind["stock"][row["id"]]) for kind in self.catalog.values() if row["id"] in kind["stock"]]
            row["gpuAvailability"] = [
                {"id": kind["id"], "name": kind["name"], "availability": "LOW" if n else "NONE"} for kind, n in has
            ]
        return httpx.Response(200, json={"dataCenters": rows})

    def _create(self, body: dict[str, Any]) -> httpx.Response:
        body = {"cloud": "SECURE", "env": {}, **body}
        kind = self.catalog.get(body["gpu"]["id"])
        if kind is None:
            return error(404, "GPU type not found")
        place = body.get("dataCenterIds", [""])[0]
        if body.get("registry") and body["registry"] not in self.held["registries"]:
            return error(404, "registry not found")
        if self.balance < 1:
            return error(402, "Your account has an insufficient balance for this pod")
        if kind["stock"].get(place, 0) < body["gpu"]["count"]:
            return error(400, "There are no longer any instances available with the requested specifications.")
        machine = self._machines(self, body, next(self.numbers)) if self._machines else Machine()
        if self._machines is None:
            nonce = body["env"].get("PREFECT_GPU_NONCE", "")
            machine.lines = ("boots", f"prefect-gpu host key {nonce} ssh-ed25519 {'A' * 68}")
        return httpx.Response(201, json=self._row(self._order(body, machine)))

    def _order(self, body: dict[str, Any], machine: Machine) -> dict[str, Any]:
        number = f"pod{next(self.numbers):07d}"
        pod = {"id": number, "body": body, "at": self.now, "gone_at": None, "said": {}, "machine": machine}
        self.pods[number] = pod
        return pod

    def _row(self, pod: dict[str, Any], at: float | None = None) -> dict[str, Any]:
        age, body, machine = (at or self.now) - pod["at"], pod["body"], pod["machine"]
        is_gone = pod["gone_at"] is not None and pod["gone_at"] <= (at or self.now)
        status = (
            "TERMINATED"
            if is_gone
            else "PROVISIONING"
            if age < 3
            else "STARTING"
            if age < 6
            else "EXITED"
            if machine.has_ended
            else "RUNNING"
        )
        price = self.catalog[body["gpu"]["id"]]["price"][body["cloud"].lower()] * body["gpu"]["count"]
        host, port = machine.place
        row = {
            "id": pod["id"], "name": body["name"], "image": body["image"], "args": body.get("args", ""),
            "disk": body.get("disk", 20), "ports": body.get("ports", []), "env": body.get("env", {}),
            "registry": body.get("registry"), "status": status, "actions": ["terminate"],
            "mounts": body.get("mounts", {}), "gpu": body["gpu"] | {}, "cloud": body["cloud"],
            "dataCenterId": body.get("dataCenterIds", [None])[0], "cudaVersion": None, "template": None,
            "ssh": {"proxy": None, "direct": None}, "cost": price if status != "EXITED" else 0.0, "locked": False,
            "globalNetworking": {"enabled": False}, "runtime": None, "createdAt": self.moment(pod["at"]), "startedAt": None,
        }  # fmt: skip
        row["gpu"].pop("minCudaVersion", None)
        if status == "RUNNING":
            ways = [{"private": 8888, "public": None, "type": "http", "ip": None}]
            ways += [{"private": PORT, "public": port, "type": "tcp", "ip": host}] if body.get("ports") else []
            row["runtime"] = {"uptime": int(age - 6), "ports": ways}
        return row | pod["said"]

    def _listed(self, asked: httpx.QueryParams) -> list[dict[str, Any]]:
        then = self.then()
        there = [one for one in self.pods.values() if one["at"] <= then]
        there = [one for one in there if one["gone_at"] is None or one["gone_at"] > then]
        has_all = asked.get("includeClusterPods") == "true"
        return [self._row(one, max(then, one["at"])) for one in there if has_all or "cluster" not in one["said"]]

    def _list(self, key: str, rows: list[dict[str, Any]], request: httpx.Request) -> httpx.Response:
        if self.unreadable == request.url.path.rpartition("/")[2]:
            return self.down()
        if self.page_size is None:
            return httpx.Response(200, json={key: rows})
        at = int(request.url.params.get("cursor") or 0)
        more = {"nextCursor": str(at + self.page_size)} if at + self.page_size < len(rows) else {}
        return httpx.Response(
            200, json={key: rows[at : at + self.page_size], **more}, headers={"content-type": "text/x"}
        )

    def _log(self, pod: dict[str, Any], asked: httpx.QueryParams) -> httpx.Response:
        lines = pod["machine"].lines if self.now - pod["at"] >= TELLS_KEY_S else ()
        moment = self.moment(pod["at"])
        if since := asked.get("since"):
            lines = lines if datetime.fromisoformat(since) <= datetime.fromisoformat(moment) else ()
        elif tail := int(asked.get("tail", 100)):
            lines = lines[-tail:]
        events = [("system", self.host_says), *(("container", line) for line in lines)]
        told = [
            json.dumps({"ts": moment, "source": source, "line": line})
            for source, line in events
            if source == asked.get("source", source)
        ]
        text = "".join(f"id: {moment}/{n:012d}\ndata: {data}\n\n" for n, data in enumerate(told))
        return httpx.Response(200, text=text, headers={"content-type": "text/event-stream"})

    def _add(self, kind: str, body: dict[str, Any]) -> httpx.Response:
        number = f"{kind[:3]}{next(self.numbers):05d}"
        self.passwords.append(body.pop("password", ""))
        row = {"id": number, **{key: value for key, value in body.items() if key != "username"}}
        self.held[kind][number] = row | ({"type": "STANDARD"} if kind == "network-volumes" else {})
        return httpx.Response(201, json=self.held[kind][number])

    def _remove(self, kind: str, number: str) -> httpx.Response:
        if number not in self.held[kind]:
            return error(404, f"{kind} not found")
        ended = {one["id"]: self.now - one["gone_at"] for one in self.pods.values() if one["gone_at"] is not None}
        recent = [
            one for one in self.pods.values() if ended.get(one["id"], 0.0) < self.holds_s or one["id"] not in ended
        ]
        if any(number in json.dumps([one["body"].get("registry"), one["body"].get("mounts")]) for one in recent):
            return error(400, f"{number} is in use by a pod and cannot be deleted")
        del self.held[kind][number]
        return httpx.Response(204)
