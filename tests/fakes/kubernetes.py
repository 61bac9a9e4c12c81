"""A real cluster for tests: a namespace and a service account with exactly the rights of docs/kubernetes-rbac.yaml, and faults on the wire.

The cluster is real; what it cannot be asked to do (lose an answer, be overloaded) happens between the driver and it.
"""

from __future__ import annotations

import base64
import json
import re
import ssl
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import yaml

from prefect_gpu.blocks.kubernetes import KubernetesCredentials, KubernetesMount
from prefect_gpu.providers.core.lease import realm_prefix
from prefect_gpu.providers.core.models import Instance
from tests.conformance import Faults

KEPT = "kept"  # the realm of pods that outlive a test
MANIFEST = Path(__file__).parents[2] / "docs" / "kubernetes-rbac.yaml"
NVIDIA_SMI = """#!/bin/sh
# A stand-in: as many H100s as the pod asked for, as nvidia-smi writes them.
i=0
case "$*" in
*uncorrected*) more=', 0' bus=', 00000000:0%d:00.0' ;;
*) more='' bus='' ;;
esac
case "$*" in
*--query-gpu=*) while [ "$i" -lt "$(cat /etc/gpus/count)" ]; do
  printf "%d, GPU-%d, NVIDIA H100 80GB HBM3, 81559 MiB, 550.54.15${bus}${more}\\n" "$i" "$i"; i=$((i + 1)); done ;;
*) echo 'NVIDIA-SMI 550.54.15    Driver Version: 550.54.15    CUDA Version: 12.4' ;;
esac
"""
DEFAULTS = {
    "image": "sshd:local",
    "image_pull_policy": "Never",
    "cpu": 0.05,
    "memory_gb": 0.05,
    "price_per_gpu_hour": {"H100": 2.0},
    "scheduling_timeout_s": 1.0,
}


class Cluster:
    """The administrator's view of the cluster, and one namespace made from the manifest that goes with `remove`."""

    def __init__(self, kubeconfig: Path) -> None:
        self.config = yaml.safe_load(kubeconfig.read_text())
        self.url = self.config["clusters"][0]["cluster"]["server"]
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        token = self.config["users"][0]["user"]["token"]
        self.http = httpx.Client(
            base_url=self.url, verify=context, headers={"authorization": f"Bearer {token}"}, timeout=30, trust_env=False
        )
        self.namespace = f"pg-test-{uuid.uuid4().hex[:8]}"
        # Exactly the manifest, under a name of our own.
        text = re.sub(r"\bprefect-gpu\b", self.namespace, MANIFEST.read_text())
        self.objects = [one for one in yaml.safe_load_all(text) if one]
        for one in self.objects:
            self.post(self._collection(one), one)
        self.token = self._token()

    def remove(self) -> None:
        for one in reversed(self.objects):
            self.http.delete(f"{self._collection(one)}/{one['metadata']['name']}")
        self.http.close()

    def credentials(self, folder: Path, **settings: Any) -> KubernetesCredentials:
        """A block that speaks with the service account's token and nothing else."""
        path = folder / f"kubeconfig-{uuid.uuid4().hex[:6]}"
        user = {"name": "gpu", "user": {"token": self.token}}
        context = {"name": "gpu", "context": {"cluster": "local", "user": "gpu"}}
        config = {**self.config, "users": [user], "contexts": [context], "current-context": "gpu"}
        if url := settings.pop("url", None):
            config["clusters"] = [{"name": "local", "cluster": {"server": url, "insecure-skip-tls-verify": True}}]
        path.write_text(yaml.safe_dump(config))
        return KubernetesCredentials(**{"kubeconfig": str(path), "namespace": self.namespace, **DEFAULTS, **settings})

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        answer = self.http.post(path, json=body)
        assert answer.is_success, answer.text
        return answer.json()

    def get(self, path: str) -> dict[str, Any]:
        answer = self.http.get(path)
        assert answer.is_success, answer.text
        return answer.json()

    def patch(self, path: str, body: object, kind: str = "merge-patch") -> None:
        answer = self.http.patch(path, content=json.dumps(body), headers={"content-type": f"application/{kind}+json"})
        assert answer.is_success, answer.text

    def pods(self) -> list[dict[str, Any]]:
        return self.get(f"/api/v1/namespaces/{self.namespace}/pods")["items"]

    def clear(self) -> None:
        """Delete all pods but those of the realm that a whole module shares.

        With grace 0, which the product never asks for: the API server forgets the pod at once, the kubelet ends it at once, and what it
        had is free for the next one. To wait until the kubelet has tidied up and says so takes 8 s a time, and more of it the more pods there were.
        """
        for pod in self.pods():
            name = pod["metadata"]["name"]
            if not name.startswith(realm_prefix(KEPT)):
                path = f"/api/v1/namespaces/{self.namespace}/pods/{name}"
                self.http.delete(path, params={"gracePeriodSeconds": 0})
        self.wait(lambda: all(pod["metadata"]["name"].startswith(realm_prefix(KEPT)) for pod in self.pods()))

    def wait(self, done: Callable[[], object], seconds: float = 60.0) -> None:
        deadline = time.monotonic() + seconds
        while not done():
            assert time.monotonic() < deadline, "it did not happen"
            time.sleep(0.1)

    @contextmanager
    def stand_in(self, gpus: int) -> Iterator[list[KubernetesMount]]:
        """An `nvidia-smi` that reports so many GPUs, as mounts."""
        path = f"/api/v1/namespaces/{self.namespace}/configmaps"
        name = f"smi-{uuid.uuid4().hex[:6]}"
        self.post(path, {"metadata": {"name": name}, "data": {"nvidia-smi": NVIDIA_SMI, "count": str(gpus)}})
        try:
            yield [
                KubernetesMount(path="/usr/bin/nvidia-smi", config_map=name, sub_path="nvidia-smi", is_executable=True),
                KubernetesMount(path="/etc/gpus", config_map=name),
            ]
        finally:
            self.http.delete(f"{path}/{name}")

    @staticmethod
    def _collection(one: dict[str, Any]) -> str:
        version = one["apiVersion"]
        root = "/api/v1" if version == "v1" else f"/apis/{version}"
        namespace = one["metadata"].get("namespace")
        plural = f"{one['kind'].lower()}s"
        return f"{root}/namespaces/{namespace}/{plural}" if namespace else f"{root}/{plural}"

    def _token(self) -> str:
        account = f"/api/v1/namespaces/{self.namespace}/serviceaccounts/{self.namespace}"

        def names() -> list[str]:
            return [one["name"] for one in self.get(account).get("secrets", [])]

        self.wait(names)
        data = self.get(f"/api/v1/namespaces/{self.namespace}/secrets/{names()[0]}")["data"]
        return base64.b64decode(data["token"]).decode()


class Wire(httpx.BaseTransport):
    """The way to the API server, on which requests and answers can be lost or changed; `armed` holds what happens to which next."""

    def __init__(self, real: httpx.BaseTransport) -> None:
        self.real = real
        self.requests: list[tuple[str, str]] = []
        self.armed: list[tuple[Callable[[httpx.Request], bool], Callable[[httpx.Request], httpx.Response], bool]] = []

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.requests.append((request.method, request.url.path))
        for index, (is_it, happen, stays) in enumerate(self.armed):
            if is_it(request):
                if not stays:
                    del self.armed[index]
                return happen(request)
        return self.real.handle_request(request)

    def close(self) -> None:
        self.real.close()

    def once(self, is_it: Callable[[httpx.Request], bool], happen: Callable[[httpx.Request], httpx.Response]) -> None:
        self.armed.append((is_it, happen, False))

    def always(self, is_it: Callable[[httpx.Request], bool], happen: Callable[[httpx.Request], httpx.Response]) -> None:
        self.armed.append((is_it, happen, True))


def is_create(request: httpx.Request) -> bool:
    return request.method == "POST" and request.url.path.endswith("/pods")


def is_get(request: httpx.Request) -> bool:
    return request.method == "GET" and re.search(r"/pods/[^/]+$", request.url.path) is not None


def is_delete(request: httpx.Request) -> bool:
    return request.method == "DELETE" and "/pods/" in request.url.path


def is_list(request: httpx.Request) -> bool:
    return request.method == "GET" and re.search(r"/namespaces/[^/]+/pods$", request.url.path) is not None


def status(code: int, words: str, reason: str = "", **headers: str) -> Callable[[httpx.Request], httpx.Response]:
    """An answer as the API server words it."""
    body = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": words, "reason": reason, "code": code}
    names = {key.replace("_", "-"): value for key, value in headers.items()}
    return lambda request: httpx.Response(code, json=body, headers=names, request=request)


class KubernetesFaults(Faults):
    """Faults of a real cluster: some the cluster's own, some on the wire."""

    def __init__(self, cluster: Cluster, wire: Wire, shrink: Callable[[], None]) -> None:
        self.cluster = cluster
        self.wire = wire
        self.shrink = shrink

    def refuse_quota(self) -> str:
        path = f"/api/v1/namespaces/{self.cluster.namespace}/resourcequotas"
        made = self.cluster.post(
            path, {"metadata": {"name": "none"}, "spec": {"hard": {"requests.nvidia.com/gpu": "0"}}}
        )
        # It counts from when the controller has looked at it; the wire takes it away again after the refusal.
        self.cluster.wait(lambda: self.cluster.get(f"{path}/none").get("status", {}).get("hard"))

        def refuse(request: httpx.Request) -> httpx.Response:
            answer = self.wire.real.handle_request(request)
            answer.read()
            self.cluster.http.delete(f"{path}/{made['metadata']['name']}")
            return answer

        self.wire.once(is_create, refuse)
        return "exceeded quota: none"

    def refuse_credentials(self) -> str:
        self.wire.always(lambda _: True, status(401, "Unauthorized", "Unauthorized"))
        return "Unauthorized"

    def refuse_the_request(self) -> str:
        words = 'admission webhook "policy.example.com" denied the request: pods need an owner'
        self.wire.once(is_create, status(400, words, "BadRequest"))
        return words

    def limit_rate(self) -> float:
        self.wire.once(is_get, status(429, "too many requests", "TooManyRequests", retry_after="7"))
        return 7

    def limit_creates(self) -> None:
        self.wire.once(is_create, status(429, "too many requests", "TooManyRequests", retry_after="7"))

    def break_creates(self) -> str:
        self.wire.once(is_create, status(500, "etcdserver: request timed out", "InternalError"))
        return "etcdserver: request timed out"

    def break_reads(self) -> str:
        self.wire.always(
            is_get, status(503, "the server is currently unable to handle the request", "ServiceUnavailable")
        )
        return "unable to handle the request"

    def break_terminates(self) -> str:
        self.wire.once(is_delete, status(500, "etcdserver: leader changed", "InternalError"))
        return "leader changed"

    def lose_the_answer(self) -> None:
        def lose(request: httpx.Request) -> httpx.Response:
            self.wire.real.handle_request(request).read()
            raise httpx.ReadTimeout("timed out", request=request)

        self.wire.once(is_create, lose)

    def garble_the_answer(self) -> None:
        def garble(request: httpx.Request) -> httpx.Response:
            body = self.wire.real.handle_request(request).read()
            return httpx.Response(201, content=body[: len(body) // 2], request=request)

        self.wire.once(is_create, garble)

    def refuse_connections(self) -> None:
        def refuse(request: httpx.Request) -> httpx.Response:
            raise httpx.ConnectError("connection refused", request=request)

        self.wire.once(is_create, refuse)

    def make_unreadable(self) -> str:
        words = f'pods is forbidden: User "x" cannot list resource "pods" in API group "" in the namespace "{self.cluster.namespace}"'
        self.wire.always(is_list, status(403, words, "Forbidden"))
        return self.cluster.namespace

    def restore(self) -> None:
        self.wire.armed.clear()

    def show_status(self, instance: Instance, status: str) -> None:
        def change(request: httpx.Request) -> httpx.Response:
            answer = self.wire.real.handle_request(request)
            seen = json.loads(answer.read())
            for pod in seen.get("items", [seen]):
                if pod["metadata"]["name"] == instance.name:
                    pod["status"]["phase"] = status
            return httpx.Response(200, json=seen, request=request)

        self.wire.always(lambda request: is_get(request) or is_list(request), change)

    def shrink_pages(self) -> None:
        self.shrink()

    def leave_something(self) -> None:
        def leave(request: httpx.Request) -> httpx.Response:
            name = request.url.path.rpartition("/")[2]
            labels = {"app.kubernetes.io/managed-by": "prefect-gpu", "prefect-gpu/name": name}
            self.cluster.post(
                f"/api/v1/namespaces/{self.cluster.namespace}/secrets", {"metadata": {"name": name, "labels": labels}}
            )
            return httpx.Response(404, json={"kind": "Status"}, request=request)

        self.wire.once(lambda request: request.method == "DELETE" and "/secrets/" in request.url.path, leave)

    def create_requests(self) -> int:
        return sum(method == "POST" and path.endswith("/pods") for method, path in self.wire.requests)

    def someone_elses(self) -> str:
        name = f"x-pg-conf-{uuid.uuid4().hex[:6]}"
        container = {"name": "c", "image": "sshd:local", "imagePullPolicy": "Never", "command": ["sleep", "60"]}
        labels = {"app.kubernetes.io/managed-by": "prefect-gpu"}  # even so
        self.cluster.post(
            f"/api/v1/namespaces/{self.cluster.namespace}/pods",
            {"metadata": {"name": name, "labels": labels}, "spec": {"containers": [container]}},
        )
        return name

    def pass_deadline(self, instance: Instance) -> None:
        path = f"/api/v1/namespaces/{self.cluster.namespace}/pods/{instance.name}"
        self.cluster.patch(path, {"spec": {"activeDeadlineSeconds": 1}})
