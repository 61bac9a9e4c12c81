"""An API server on loopback that answers as it is told, objects as API servers write them, and a relay on the way to a real one."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

import httpx
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from prefect_gpu.blocks.kubernetes import KubernetesCredentials
from prefect_gpu.providers.core.models import (
    Offer,
    utc_now,
)


def node(
    allocatable: dict[str, str] | None = None, labels: dict[str, str] | None = None, **more: Any
) -> dict[str, Any]:
    return {
        "metadata": {"name": more.pop("name", "n1"), "labels": {"kubernetes.io/arch": "amd64", **(labels or {})}},
        "spec": more,
        "status": {
            "allocatable": {
                "cpu": "8",
                "memory": "64Gi",
                "ephemeral-storage": "100Gi",
                "pods": "110",
                **(allocatable or {}),
            },
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }


GKE_MIG = "cloud.google.com/gke-gpu-partition-size"
GKE_SHARING = "cloud.google.com/gke-gpu-sharing-strategy"


def pod_status(**status: Any) -> dict[str, Any]:
    return {"metadata": status.pop("metadata", {}), "status": status, "spec": {}}


# Containers' statuses, as kubelets write them.
READY: dict[str, Any] = {"ready": True, "state": {"running": {}}}
STARTING: dict[str, Any] = {"ready": False, "state": {"running": {}}}
ENDED: dict[str, Any] = {"ready": False, "state": {"terminated": {"exitCode": 0, "reason": "Completed"}}}
OOM_KILLED: dict[str, Any] = {"ready": False, "state": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}}
MAKING: dict[str, Any] = {"ready": False, "state": {"waiting": {"reason": "ContainerCreating"}}}
CRASHED = {"reason": "CrashLoopBackOff", "message": "back-off 10s"}
PULLING: dict[str, Any] = {"ready": False, "state": {"waiting": {"reason": "ErrImagePull", "message": "EOF"}}}


def waiting_pod(reason: str, message: str, scheduled_s_ago: float) -> tuple[dict[str, Any], datetime]:
    now = utc_now()
    at = (now - timedelta(seconds=scheduled_s_ago)).isoformat()
    waiting = {"reason": reason, "message": message}
    pod = pod_status(
        phase="Pending",
        conditions=[{"type": "PodScheduled", "status": "True", "lastTransitionTime": at}],
        containerStatuses=[{"name": "job", "image": "x", "state": {"waiting": waiting}}],
    )
    return pod, now


class FakeApi:
    """An HTTP server on loopback that answers as it is told; `answers` maps method and path to status, body and headers."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.answers: dict[tuple[str, str], Any] = {}
        self.knows: Callable[[str, str], bool] = lambda _authorization, _common_name: True
        self.seen: list[str] = []  # paths
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                length = int(self.headers.get("content-length", 0))
                self.rfile.read(length)
                path = self.path.partition("?")[0]
                fake.seen.append(path)
                answer = fake.answers[self.command, path]
                subject = self.connection.getpeercert() if isinstance(self.connection, ssl.SSLSocket) else None
                name = subject["subject"][0][0][1] if subject else ""
                if not fake.knows(self.headers.get("authorization", ""), str(name)):
                    answer = (401, {"kind": "Status", "message": "Unauthorized", "reason": "Unauthorized"}, {})
                if answer == "hang up":
                    self.close_connection = True
                    return
                if answer == "silence":
                    time.sleep(1.5)
                    self.close_connection = True
                    return
                code, body, headers = answer
                data = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(code)
                for key, value in {"content-length": str(len(data)), **headers}.items():
                    self.send_header(key, value)
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = do_DELETE = do_PATCH = answer  # noqa: N815 - http.server's names

            def log_message(self, *_: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.server.server_port}"
        if tls:
            self.server.socket = tls.wrap_socket(self.server.socket, server_side=True)
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


def write_kubeconfig(path: Path, cluster: dict[str, Any], user: dict[str, Any]) -> KubernetesCredentials:
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": cluster}],
        "users": [{"name": "u", "user": user}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
    path.write_text(yaml.safe_dump(config))
    return KubernetesCredentials(kubeconfig=str(path), namespace="ns")


OFFER = Offer(provider="kubernetes", instance_type="t", region="ns", price=0)
FORBIDDEN = 'pods is forbidden: User "system:serviceaccount:ns:x" cannot create resource "pods" in API group ""'


def certificate(folder: Path, name: str) -> tuple[str, str]:
    """Paths of a new certificate, which is its own authority, and of its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    here = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    made = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(utc_now() - timedelta(days=1))
        .not_valid_after(utc_now() + timedelta(days=1))
        .add_extension(here, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    paths = folder / f"{name}.crt", folder / f"{name}.key"
    paths[0].write_bytes(made.public_bytes(serialization.Encoding.PEM))
    plain = serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    paths[1].write_bytes(key.private_bytes(serialization.Encoding.PEM, *plain))
    return str(paths[0]), str(paths[1])


class Relay:
    """A TCP relay to the API server that can stop passing anything on while connections stay up."""

    def __init__(self, url: str) -> None:
        self.target = httpx.URL(url)
        self.is_frozen = threading.Event()
        self.server = socket.create_server(("127.0.0.1", 0))
        self.port = self.server.getsockname()[1]
        self.open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for sock in (self.server, *self.open):
            sock.close()

    def freeze(self) -> None:
        self.is_frozen.set()

    def cut(self) -> None:
        for sock in list(self.open):
            with contextlib.suppress(OSError):  # it has ended by itself
                sock.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self.server.accept()
            except OSError:
                return
            far = socket.create_connection((self.target.host, self.target.port or 443))
            self.open += [near, far]
            for one, other in ((near, far), (far, near)):
                threading.Thread(target=self._pass_on, args=(one, other), daemon=True).start()

    def _pass_on(self, one: socket.socket, other: socket.socket) -> None:
        try:
            while data := one.recv(65536):
                while self.is_frozen.is_set():
                    time.sleep(0.1)
                other.sendall(data)
            other.shutdown(socket.SHUT_WR)
        except OSError:
            pass
