"""What organisations put on their clusters, on the real one: quotas on limits, an admission webhook as strict as `restricted`, a Windows node."""

from __future__ import annotations

import base64
import json
import ssl
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.fakes.kubernetes import Cluster
from tests.fakes.kubernetes_api import certificate

WEBHOOKS = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations"


def restricted(pod: dict[str, Any]) -> str:
    """What Pod Security's level `restricted` says of a pod: https://kubernetes.io/docs/concepts/security/pod-security-standards/."""
    spec = pod["spec"]
    whole = spec.get("securityContext") or {}
    wrong: list[str] = []
    if spec.get("hostNetwork") or spec.get("hostPID") or spec.get("hostIPC"):
        wrong.append("host namespaces")
    for volume in spec.get("volumes", []):
        kinds = volume.keys() - {"name"}
        if not kinds <= {
            "configMap",
            "csi",
            "downwardAPI",
            "emptyDir",
            "ephemeral",
            "persistentVolumeClaim",
            "projected",
            "secret",
        }:
            wrong.append(f"restricted volume types {kinds}")
    for container in (*spec.get("initContainers", []), *spec["containers"]):
        own = container.get("securityContext") or {}
        if own.get("allowPrivilegeEscalation") is not False:
            wrong.append("allowPrivilegeEscalation != false")
        if "ALL" not in (own.get("capabilities") or {}).get("drop", []):
            wrong.append("unrestricted capabilities")
        if (own.get("runAsNonRoot", whole.get("runAsNonRoot"))) is not True:
            wrong.append("runAsNonRoot != true")
        if own.get("runAsUser", whole.get("runAsUser")) == 0:
            wrong.append("runAsUser=0")
        profile = own.get("seccompProfile") or whole.get("seccompProfile") or {}
        if profile.get("type") not in {"RuntimeDefault", "Localhost"}:
            wrong.append("seccompProfile")
    return f'violates PodSecurity "restricted:latest": {", ".join(wrong)}' if wrong else ""


@contextmanager
def webhook(cluster: Cluster, folder: Path, judge: Callable[[dict[str, Any]], str] | None) -> Iterator[None]:
    """A validating webhook for the namespace's pods. `judge` says what is wrong with a pod; None: it answers 500."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            review = json.loads(self.rfile.read(int(self.headers["content-length"])))
            if judge is None:
                self.send_error(500)
                return
            words = judge(review["request"]["object"])
            response = {
                "uid": review["request"]["uid"],
                "allowed": not words,
                "status": {"message": words, "code": 403},
            }
            data = json.dumps({**review, "request": None, "response": response}).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None: ...

    name = f"{cluster.namespace}-{uuid.uuid4().hex[:6]}"
    paths = certificate(folder, name)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(*paths)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.socket = tls.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    cluster.patch(f"/api/v1/namespaces/{cluster.namespace}", {"metadata": {"labels": {"pg-test": cluster.namespace}}})
    hook = {
        "name": "pods.example.com",
        "clientConfig": {
            "url": f"https://127.0.0.1:{server.server_port}/",
            "caBundle": base64.b64encode(Path(paths[0]).read_bytes()).decode(),
        },
        "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}],
        "namespaceSelector": {"matchLabels": {"pg-test": cluster.namespace}},
        "failurePolicy": "Fail",
        "sideEffects": "None",
        "admissionReviewVersions": ["v1"],
        "timeoutSeconds": 5,
    }
    cluster.post(WEBHOOKS, {"metadata": {"name": name}, "webhooks": [hook]})
    try:
        cluster.wait(lambda: is_asked(cluster))
        yield
    finally:
        cluster.http.delete(f"{WEBHOOKS}/{name}")
        server.shutdown()
        server.server_close()


def is_asked(cluster: Cluster) -> bool:
    """Whether the API server asks its webhooks about the namespace's pods by now: it learns of them a moment later."""
    pod = {"metadata": {"name": "asked"}, "spec": {"containers": [{"name": "c", "image": "x"}]}}
    answer = cluster.http.post(f"/api/v1/namespaces/{cluster.namespace}/pods", json=pod, params={"dryRun": "All"})
    return "webhook" in answer.text


@contextmanager
def quota(cluster: Cluster, **hard: str) -> Iterator[None]:
    """A quota that counts from when its controller has looked at it."""
    path = f"/api/v1/namespaces/{cluster.namespace}/resourcequotas"
    cluster.post(
        path,
        {
            "metadata": {"name": "team"},
            "spec": {"hard": {key.replace("__", "."): value for key, value in hard.items()}},
        },
    )
    cluster.wait(lambda: cluster.get(f"{path}/team").get("status", {}).get("hard"))
    try:
        yield
    finally:
        cluster.http.delete(f"{path}/team")


@contextmanager
def windows_node(cluster: Cluster) -> Iterator[str]:
    """A node that says that it runs Windows, is ready, and has more of everything than the real one."""
    name = f"win-{uuid.uuid4().hex[:6]}"
    labels = {
        "kubernetes.io/os": "windows",
        "kubernetes.io/arch": "amd64",
        "nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3",
    }
    cluster.post("/api/v1/nodes", {"metadata": {"name": name, "labels": labels}})
    has = {"cpu": "512", "memory": "4Ti", "ephemeral-storage": "9Ti", "pods": "110", "nvidia.com/gpu": "8"}
    ready = {"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "kubelet is posting ready status"}
    cluster.patch(
        f"/api/v1/nodes/{name}/status", {"status": {"capacity": has, "allocatable": has, "conditions": [ready]}}
    )
    cluster.patch(f"/api/v1/nodes/{name}", {"spec": {"taints": None}})  # not-ready, from before it said so
    try:
        yield name
    finally:
        cluster.http.delete(f"/api/v1/nodes/{name}")
