"""A stateful fake of Vast.ai's API: asks that are searched with its filters, contracts that are stopped and start again by themselves, logs, charges.

Held to the vendor's OpenAPI document where that is at hand. Containers are real where a test wants that: one of Docker that runs what was
ordered, or a process with an SSH server; so an interruption is a kill.
"""

from __future__ import annotations

import hashlib
import json
import operator
import secrets
import shutil
import subprocess
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qs

import httpx

from prefect_gpu.providers.core.machine.keys import derive
from prefect_gpu.providers.core.toolkit.container_boot import PORT
from tests.fakes.openapi import document
from tests.fakes.rented import Rented, nvidia, rented
from tests.fakes.vendor import FakeVendor

CAP = 64  # offers of one answer where no limit is asked for
PAGE = 25
OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "eq": operator.eq, "neq": operator.ne, "gt": operator.gt, "gte": operator.ge, "lt": operator.lt, "lte": operator.le,
    "in": lambda one, many: one in many, "notin": lambda one, many: one not in many,
}  # fmt: skip
QUERY = {"limit", "order", "type", "allocated_storage"}  # of a search: what is no filter


def ask(number: int, gpu: str = "H100 SXM", count: int = 1, **has: Any) -> dict[str, Any]:
    """One ask as it is found, on demand and by bid."""
    return {
        "id": number,
        "ask_contract_id": number,
        "machine_id": 9000 + number,
        "host_id": 70 + number,
        "hosting_type": 0,
        "verification": "verified",
        "gpu_name": gpu,
        "num_gpus": count,
        "gpu_ram": 81559,
        "gpu_arch": "nvidia",
        "compute_cap": 900,
        "cuda_max_good": 12.8,
        "cpu_arch": "amd64",
        "cpu_cores": 64,
        "cpu_cores_effective": 16.0,
        "cpu_ram": 512_000,
        "disk_space": 900.0,
        "direct_port_count": 100,
        "reliability": 0.99,
        "reliability2": 0.99,
        "inet_down": 900.0,
        "inet_up": 800.0,
        "inet_down_cost": 0.002,
        "inet_up_cost": 0.004,
        "duration": 30 * 86400.0,
        "geolocation": "Sweden, SE",
        "dph_base": 2.0 * count,
        "min_bid": 0.8 * count,
        "storage_cost": 0.15,
        "rentable": True,
        "rented": False,
        "external": False,
        "score": 200.0 - number,
        **has,
    }


def asks() -> list[dict[str, Any]]:
    return [
        ask(101),
        ask(102, dph_base=1.5, geolocation="California, US", hosting_type=1),
        ask(103, dph_base=1.0, verification="unverified"),
        ask(104, dph_base=1.1, reliability=0.8, reliability2=0.8),
        ask(105, count=8, min_bid=6.0),
        ask(106, gpu="RTX 4090", gpu_ram=24564, compute_cap=890, dph_base=0.3, min_bid=0.15),
    ]


def as_is(value: Any, seen: Any) -> Any:
    """A filter's value: Vast.ai's own client sends numbers as text."""
    is_number = isinstance(seen, int | float) and not isinstance(seen, bool)
    return float(value) if is_number and isinstance(value, str) else value


def error(status: int, code: str, words: str = "", **more: Any) -> httpx.Response:
    return httpx.Response(status, json={"success": False, "error": code, "msg": words or code, **more})


class FakeVastai(FakeVendor):
    """The vendor."""

    def __init__(
        self,
        key: str,
        *,
        machines: Literal["none", "process", "docker"] = "none",
        resumes_after_s: float | None = None,
        pages_of: int = PAGE,
        boots_s: float = 6.0,
        **more: Any,
    ) -> None:
        super().__init__(**more)
        self.key = key
        self.user = 4711
        self.asks = asks()
        self.is_taken = True  # an ask, by renting it
        self.cap = CAP  # of a search that asks for no limit
        self.most = 3000  # of one that does
        self.credit = 100.0
        self.pages_of = pages_of
        self.contracts: dict[int, dict[str, Any]] = {}
        self.leaves_stopped = False  # a contract of a bid that is too low, whatever the order says
        self.logs_at = "https://s3.amazonaws.com"
        self.logs_late = 0  # so often a log that was asked for is not there yet
        self.mounts: tuple[str, ...] = ()  # more for `docker run`
        self.ends: list[tuple[int, str]] = []  # which contract, by whose key
        self.queries: list[dict[str, Any]] = []
        self._machines = machines
        self._resumes_after_s = resumes_after_s  # a contract that was stopped starts again
        self._logs: dict[str, tuple[int, dict[str, str]]] = {}
        self._boots_s = boots_s
        self._net = f"127.{80 + secrets.randbelow(100)}"  # of containers that are processes

    # --- the test's side ------------------------------------------------------------------------------------------------

    def order_by_hand(self, name: str) -> str:
        body = {"label": name, "image": "x", "disk": 10, "env": {"-p 22:22": "1"}}
        return f"instances/{self._rent(ask(next(self.numbers) + 500), body)['id']}"

    def say(self, instance_id: str, **fields: Any) -> None:
        """What Vast.ai says of this contract from now on."""
        self.of(instance_id)["said"] = fields

    def of(self, instance_id: str) -> dict[str, Any]:
        return self.contracts[int(instance_id.rpartition("/")[2])]

    def named(self, name: str) -> dict[str, Any]:
        return next(one for one in self.contracts.values() if one["body"].get("label") == name)

    def alive(self) -> list[str]:
        return [str(one["body"].get("label")) for one in self.contracts.values() if one["gone_at"] is None]

    def outbid(self, instance_id: str) -> None:
        """Somebody bids more: the container is killed, the contract stays, costs its disk, and starts again later."""
        with self.lock:
            contract = self.of(instance_id)
            self._kill(contract)
            contract["stopped_at"] = self.now
            if contract["ran_from"] is not None:
                contract["ran"].append((contract["ran_from"], self.now))
            contract["ran_from"] = None

    def kill(self, instance_id: str) -> None:
        """The container is killed, and nobody says why."""
        with self.lock:
            self._kill(self.of(instance_id))
            self.say(instance_id, actual_status="exited")

    def bill(self, contract: dict[str, Any]) -> float:
        """USD: GPUs while it ran, the disk from the order to its end, each byte in both directions."""
        row, until = contract["ask"], contract["gone_at"] or self.now
        price = contract["body"].get("price") or row["dph_base"]
        ran = [*contract["ran"], *([(contract["ran_from"], until)] if contract["ran_from"] is not None else [])]
        gpus = sum(end - begin for begin, end in ran) / 3600 * price
        disk = (until - contract["at"]) / 3600 * row["storage_cost"] * contract["body"]["disk"] / 720
        return gpus + disk + self.traffic(contract)

    @staticmethod
    def traffic(contract: dict[str, Any]) -> float:
        row = contract["ask"]
        return contract["gb"]["up"] * row["inet_up_cost"] + contract["gb"]["down"] * row["inet_down_cost"]

    def moved(self, instance_id: str, *, up_gb: float = 0.0, down_gb: float = 0.0) -> None:
        self.of(instance_id)["gb"] = {"up": up_gb, "down": down_gb}

    # --- the API --------------------------------------------------------------------------------------------------------

    def kind(self, request: httpx.Request) -> str:
        path = request.url.path
        if request.method == "PUT" and "/asks/" in path:
            return "create"
        if path.startswith("/vast.ai/instance_logs/"):
            return "log"
        if path.endswith("/bundles/"):
            return "search"
        return {"GET": "get", "DELETE": "delete"}.get(request.method, "other")

    def admits(self, request: httpx.Request) -> httpx.Response | None:
        if self.kind(request) == "log":
            assert "authorization" not in request.headers, "the key goes to nobody else"
            return None
        assert request.url.host == "console.vast.ai"
        # Vast.ai's older client has the key in the address.
        given = request.headers.get("authorization", request.url.params.get("api_key", "")).removeprefix("Bearer ")
        own = next((one for one in self.contracts.values() if one["key"] == given), None)
        if own is not None:  # the key of one container, for its own contract
            is_own = request.url.path.rstrip("/").endswith(f"/instances/{own['id']}")
            return None if is_own else error(403, "not_authorized", "this key is of one instance alone")
        return None if given == self.key else error(401, "auth_error", "Invalid user key")

    def down(self) -> httpx.Response:
        return error(503, "unavailable", "Service temporarily down")

    def hold_to_the_document(self, request: httpx.Request, response: httpx.Response | None) -> None:
        if self.kind(request) == "log" or (vendor := document("vastai.yaml")) is None:
            return
        content = request.content
        if (
            "/asks/" in request.url.path and content
        ):  # the document says string, the vendor's guide and client send an object
            content = json.dumps({**json.loads(content), "env": "-e A=b"}).encode()
        if request.url.path.endswith("/bundles/"):  # of operators it names but those of its examples
            asked = json.loads(content)
            filters = {key: value for key, value in asked.items() if isinstance(value, dict)}
            assert all(value.keys() <= OPERATORS.keys() for value in filters.values())
            asked.pop("order")  # it says two fields, and its examples and the client send one
            content = json.dumps({**asked, **{key: {} for key in filters}}).encode()
        if request.method == "DELETE" and content.strip() in (b"", b"{}"):
            content = b""
        if response is not None and response.status_code >= 400 and b'"new_contract"' in response.content:
            response = None  # of a bid that is too low; the document does not describe it
        if any(contract["said"] for contract in self.contracts.values()):
            response = None  # what to say, by a test
        if response is not None and b'"extra_env"' in response.content and "/v0/" in request.url.path:
            row = response.json()["instances"]
            response = httpx.Response(
                200, json={"instances": {**row, "extra_env": [], "ports": []}}
            )  # of other types in its lists
        if response is not None and response.content == b'{"instances":null}':
            response = None  # of a contract that is gone; the document does not describe it
        plain = request.url.copy_with(path=request.url.path.rstrip("/"))
        vendor.hold(httpx.Request(request.method, plain, content=content), response)

    def answer(self, request: httpx.Request) -> httpx.Response:
        with self.lock:
            for contract in list(self.contracts.values()):
                self._live(contract)
        return super().answer(request)

    def serve(self, request: httpx.Request) -> httpx.Response:
        if self.kind(request) == "log":
            return self._log_file(request)
        match request.method, *request.url.path.strip("/").split("/")[1:]:
            case "GET", "v0", "users", "current":
                return httpx.Response(
                    200, json={"id": self.user, "key_id": 3, "email": "a@b.example", "balance": self.credit}
                )
            case "POST", "v0", "bundles":
                return self._search(json.loads(request.content))
            case "PUT", "v0", "asks", number:
                return self._create(int(number), json.loads(request.content))
            case "GET", "v0", "instances", number:
                contract = self._standing(number)
                row = self._row(contract, self.now) if contract else None
                return httpx.Response(200, json={"instances": row})
            case "DELETE", "v0", "instances", number:
                contract = self._standing(number)
                if contract is None:
                    return error(404, "no_such_instance", f"Instance {number} not found.")
                self.ends.append((contract["id"], request.headers["authorization"].removeprefix("Bearer ")))
                self._kill(contract)
                contract["gone_at"] = self.now
                return httpx.Response(200, json={"success": True, "msg": "Instance destroyed"})
            case "PUT", "v0", "instances", "request_logs", number:
                contract = self._standing(number)
                if contract is None:
                    return error(404, "invalid_id", "Invalid instance id.")
                of = hashlib.md5(f"{self.key}{number}".encode(), usedforsecurity=False).hexdigest()
                name = f"/vast.ai/instance_logs/{of}.log"
                self._logs[name] = (contract["id"], json.loads(request.content))
                return httpx.Response(200, json={"success": True, "result_url": f"{self.logs_at}{name}"})
            case "PUT", "v0", "instances", number:  # `vastai label instance`
                contract = self._standing(number)
                if contract is None:
                    return error(404, "no_such_instance")
                contract["body"] |= json.loads(request.content)
                return httpx.Response(200, json={"success": True})
            case "GET", "v0", "instances":  # of its older client
                standing = [one for one in self.contracts.values() if one["gone_at"] is None]
                return httpx.Response(200, json={"instances": [self._row(one, self.now) for one in standing]})
            case "GET", "v1", "instances":
                return self._list(request)
            case "GET", "v0", "charges":
                return self._charges(request)
        return error(404, "not_found", f"there is no {request.method} {request.url.path}")

    def _standing(self, number: str) -> dict[str, Any] | None:
        contract = self.contracts.get(int(number))
        return None if contract is None or contract["gone_at"] is not None else contract

    def _search(self, body: dict[str, Any]) -> httpx.Response:
        self.queries.append(body)
        assert "gpu_name" not in body or "_" not in str(body["gpu_name"]), "names have spaces"
        filters = {"verified": {"eq": True}, "rentable": {"eq": True}, "rented": {"eq": False}}
        filters |= {key: value for key, value in body.items() if key not in QUERY}
        rows = []
        for one in self.asks:
            row = {**one, "is_bid": body.get("type") == "bid"}
            base = row["min_bid"] if row["is_bid"] else row["dph_base"]
            row["dph_total"] = base + row["storage_cost"] * body["allocated_storage"] / 720
            seen = {
                **row,
                "verified": row["verification"] == "verified",
                "datacenter": row["hosting_type"] == 1,
                "geolocation": str(row["geolocation"] or "")[-2:],
            }
            if all(
                OPERATORS[op](seen[key], as_is(value, seen[key]))
                for key, ops in filters.items()
                for op, value in ops.items()
            ):
                rows.append(row)
        for key, way in reversed(body.get("order", [])):
            rows.sort(key=lambda row, key=key: row[key], reverse=way == "desc")
        return httpx.Response(200, json={"offers": rows[: min(body.get("limit", self.cap), self.most)]})

    def _create(self, number: int, body: dict[str, Any]) -> httpx.Response:
        assert len(body["image"]) <= 1024
        assert len(body.get("label") or "") <= 256
        variables = body.get("env") or {}
        assert all(len(str(value)) <= 256 for value in variables.values()), "a value of env has at most 256 characters"
        assert sum(len(one) for one in body.get("args") or []) + len(body.get("onstart") or "") <= 4048
        found = next((one for one in self.asks if one["id"] == number), None)
        if found is None:
            return error(
                404, "invalid_args", f"error 404/3603: no_such_ask Instance type by id {number} is not available."
            )
        if found["rented"]:
            return error(
                410, "no_such_ask", f"error 410/3907: no_such_ask Instance type {number} is no longer available."
            )
        if body["disk"] < 8:
            return error(400, "invalid_args", "error 400/3467: Invalid args: disk")
        if self.credit <= 0:
            return error(400, "insufficient_credit", "Your account lacks credit; see the billing page.")
        if body.get("price") is not None and body["price"] < found["min_bid"]:
            if body.get("cancel_unavail") and not self.leaves_stopped:
                return error(400, "invalid_price", "Your bid is too low")
            contract = self._rent(found, body)
            contract["stopped_at"] = self.now
            return httpx.Response(
                400, json={"success": False, "error": "invalid_price", "new_contract": contract["id"]}
            )
        contract = self._rent(found, body)
        made = {"success": True, "new_contract": contract["id"]}
        return httpx.Response(200, json=made)

    def _rent(self, found: dict[str, Any], body: dict[str, Any]) -> dict[str, Any]:
        number = next(self.numbers) + 40_000
        found["rented"] = self.is_taken
        contract: dict[str, Any] = {
            "id": number, "ask": found, "body": body, "at": self.now, "gone_at": None, "said": {}, "stopped_at": None,
            "ran": [], "ran_from": None, "key": f"scoped-{uuid.uuid4().hex}", "gb": {"up": 0.0, "down": 0.0}, "log": "",
        }  # fmt: skip
        self.contracts[number] = contract
        return contract

    def _list(self, request: httpx.Request) -> httpx.Response:
        if self.unreadable == "instances":
            return self.down()
        asked = parse_qs(request.url.query.decode())
        filters: dict[str, dict[str, Any]] = json.loads(asked.get("select_filters", ["{}"])[0])
        then = self.then()
        there = [one for one in self.contracts.values() if one["at"] <= then]
        there = [one for one in there if one["gone_at"] is None or one["gone_at"] > then]
        rows = [self._row(one, max(then, one["at"])) for one in there]
        rows = [
            row
            for row in rows
            if all(OPERATORS[op](row[key] or "", value) for key, ops in filters.items() for op, value in ops.items())
        ]
        rows.sort(key=lambda row: row["id"])
        after = int(asked.get("after_token", ["0"])[0])
        page = [row for row in rows if row["id"] > after][: min(self.pages_of, int(asked.get("limit", ["25"])[0]))]
        more = bool(page) and page[-1]["id"] != rows[-1]["id"]
        told = {"success": True, "instances_found": len(page), "total_instances": len(rows), "instances": page}
        return httpx.Response(200, json={**told, "next_token": str(page[-1]["id"]) if more else None})

    def _charges(self, request: httpx.Request) -> httpx.Response:
        asked = json.loads(parse_qs(request.url.query.decode())["select_filters"][0])
        assert asked["day"]["gte"] <= self.now <= asked["day"]["lte"]
        results = []
        for one in self.contracts.values():
            items = [
                {"type": kind, "amount": one["gb"][way] * one["ask"][f"inet_{way}_cost"], "description": f"{way}load"}
                for kind, way in (("bwu", "up"), ("bwd", "down"))
            ]
            results.append(
                {"type": "instance", "source": f"instance-{one['id']}", "amount": self.bill(one), "items": items}
            )
        return httpx.Response(
            200, json={"success": True, "count": len(results), "results": results, "next_token": None}
        )

    def _log_file(self, request: httpx.Request) -> httpx.Response:
        number, asked = self._logs[request.url.path]
        contract = self.contracts[number]
        if self.logs_late > 0:
            self.logs_late -= 1
            return httpx.Response(403, text="<Error><Code>AccessDenied</Code></Error>")
        log = contract["log"]
        if self._machines == "docker" and contract.get("container"):
            log = docker("logs", contract["container"], check=False)
        lines = log.splitlines()[-int(asked.get("tail", "1000")) :]
        told = "".join(f"{line}\n" for line in lines if asked.get("filter", "") in line)
        return httpx.Response(200, content=told.encode(), headers={"content-type": "binary/octet-stream"})

    def _row(self, contract: dict[str, Any], at: float) -> dict[str, Any]:
        age, row, body = at - contract["at"], contract["ask"], contract["body"]
        is_stopped = contract["stopped_at"] is not None
        status = (
            "stopped"
            if is_stopped
            else "running"
            if age >= self._boots_s
            else "loading"
            if age >= self._boots_s / 3
            else None
        )
        port = {f"{PORT}/tcp": [{"HostIp": "0.0.0.0", "HostPort": str(contract.get("port", 41_000))}]}
        price = body.get("price") or row["dph_base"]
        said = {
            "id": contract["id"],
            "actual_status": status,
            "cur_state": "stopped" if is_stopped else "running",
            "next_state": "stopped" if is_stopped else "running",
            "intended_status": "stopped" if is_stopped else "running",
            "label": body.get("label"),
            "status_msg": None,
            "public_ipaddr": f"{contract.get('address', '192.0.2.45')}\n",
            "ports": port if status == "running" else None,
            "machine_id": row["machine_id"],
            "start_date": contract["at"],
            "is_bid": body.get("price") is not None,
            "dph_total": price + row["storage_cost"] * body["disk"] / 720,
            "geolocation": row["geolocation"],
            "extra_env": [[key, str(value)] for key, value in (body.get("env") or {}).items()],
        }
        return said | contract["said"]

    # --- containers -----------------------------------------------------------------------------------------------------

    def _live(self, contract: dict[str, Any]) -> None:
        """What happens to a contract by itself: its container starts, and starts again when a higher bid is gone."""
        if contract["gone_at"] is not None:
            return
        since = contract["stopped_at"]
        if since is not None:
            if self._resumes_after_s is None or self.now - since < self._resumes_after_s:
                return
            contract["stopped_at"] = None
        if contract["ran_from"] is None and self.now - contract["at"] >= self._boots_s * 0.8:
            contract["ran_from"] = self.now
            self._boot(contract)

    def _boot(self, contract: dict[str, Any]) -> None:
        variables = {key: str(value) for key, value in (contract["body"].get("env") or {}).items() if key[0] != "-"}
        row = contract["ask"]
        is_usual = "H100" in row["gpu_name"]
        gpus = nvidia(row["num_gpus"], *(() if is_usual else (row["gpu_name"], int(row["gpu_ram"]))))
        if self._machines == "process":
            number = contract["id"] - 40_000
            contract |= {"address": f"{self._net}.{number // 250}.{number % 250 + 2}", "port": 41_000}
            there: Rented | None = contract.get("rented")
            if there is None:
                made = rented(contract["address"], variables["PREFECT_GPU_KEY"], port=41_000, gpus=gpus)
                there = contract["rented"] = self.running.enter_context(made)
            pair = derive(
                uuid.uuid4().bytes, contract["body"]["label"], "host"
            )  # its own, and another after each start
            there.show(pair.private.get_secret_value())
            public = " ".join(pair.public.split()[:2])
            contract["log"] += f"prefect-gpu host key {variables['PREFECT_GPU_NONCE']} {public}\n"
        if self._machines == "docker":
            if contract.get("container"):
                docker("start", contract["container"])
            else:
                self._run_in_docker(contract, variables, gpus)
            contract |= {"address": "127.0.0.1"}
            contract["port"] = int(docker("port", contract["container"], f"{PORT}/tcp").rpartition(":")[2])

    def _run_in_docker(self, contract: dict[str, Any], variables: dict[str, str], gpus: list[str]) -> None:
        """As the host does it: `onstart` is the entrypoint, `args` its arguments, and the key of this container is put into it."""
        name = f"vast-{contract['id']}-{uuid.uuid4().hex[:6]}"
        folder = self.running.enter_context(_folder())
        tool = folder / "nvidia-smi"
        lines = "".join(f'echo "{line}"\n' for line in gpus)
        tool.write_text(f"#!/bin/sh\ncase $* in *--query-gpu*) ;; *) exit 0 ;; esac\n{lines}")
        tool.chmod(0o755)
        given = variables | {"CONTAINER_ID": str(contract["id"]), "CONTAINER_API_KEY": contract["key"]}
        environment = [part for key, value in given.items() for part in ("-e", f"{key}={value}")]
        body = contract["body"]
        docker(
            "run", "-d", "--name", name, "--user", body["user"], "-p", f"127.0.0.1::{PORT}", "-v", f"{tool}:/usr/bin/nvidia-smi:ro", *environment,
            *self.mounts, "--entrypoint", body["onstart"], body["image"], *body["args"],
        )  # fmt: skip
        contract["container"] = name
        self.running.callback(docker, "rm", "-f", name, check=False)

    def _kill(self, contract: dict[str, Any]) -> None:
        if (there := contract.get("rented")) is not None:
            there.end()
        if contract.get("container"):
            docker("kill", contract["container"], check=False)


def docker(*arguments: str, check: bool = True) -> str:
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise RuntimeError(done.stderr)
    return (done.stdout + done.stderr if arguments[0] == "logs" else done.stdout).strip()


class _folder:  # noqa: N801 - a context manager that is used like a function
    def __enter__(self) -> Path:
        import tempfile

        self._path = Path(tempfile.mkdtemp(prefix="vast-"))
        return self._path

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._path, ignore_errors=True)
