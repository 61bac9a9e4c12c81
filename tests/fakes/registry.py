"""A container registry (OCI distribution, pull only) with one tiny image behind a password; Docker itself is the client that proves it.

https://github.com/opencontainers/distribution-spec/blob/main/spec.md
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple

USER, PASSWORD = "puller", "pass word'$x"


class Registry(NamedTuple):
    server: str  # as an image's name begins
    requests: list[str]


@contextmanager
def registry(image: str = "team/tiny", tag: str = "1") -> Iterator[Registry]:
    """A registry on loopback, which Docker accepts without TLS."""
    blobs, manifest = _image()
    digest = _digest(manifest)
    requests: list[str] = []
    expected = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requests.append(self.path)
            if self.headers.get("Authorization") != expected:
                self._answer(401, _error("UNAUTHORIZED"), {"WWW-Authenticate": 'Basic realm="the registry"'})
            elif self.path == "/v2/":
                self._answer(200, b"{}")
            elif self.path in {f"/v2/{image}/manifests/{tag}", f"/v2/{image}/manifests/{digest}"}:
                kind = "application/vnd.docker.distribution.manifest.v2+json"
                self._answer(200, manifest, {"Content-Type": kind, "Docker-Content-Digest": digest})
            elif (blob := blobs.get(self.path.rpartition("/")[2])) is not None and "/blobs/" in self.path:
                self._answer(200, blob, {"Content-Type": "application/octet-stream"})
            else:
                self._answer(404, _error("MANIFEST_UNKNOWN"))

        do_HEAD = do_GET  # noqa: N815 - http.server calls it so

        def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
                self.send_header(name, value)
            self.send_header("Docker-Distribution-Api-Version", "registry/2.0")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield Registry(f"127.0.0.1:{server.server_port}", requests)
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


def _image() -> tuple[dict[str, bytes], bytes]:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        entry = tarfile.TarInfo("hello")
        entry.size = 5
        tar.addfile(entry, io.BytesIO(b"hello"))
    plain = packed.getvalue()
    layer = gzip.compress(plain, mtime=0)
    config = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": [_digest(plain)]},
            "history": [{"created": "2026-01-01T00:00:00Z"}],
        }
    ).encode()
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
            "config": {
                "mediaType": "application/vnd.docker.container.image.v1+json",
                "size": len(config),
                "digest": _digest(config),
            },
            "layers": [
                {
                    "mediaType": "application/vnd.docker.image.rootfs.diff.tar.gzip",
                    "size": len(layer),
                    "digest": _digest(layer),
                }
            ],
        }
    ).encode()
    return {_digest(layer): layer, _digest(config): config}, manifest


def _digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def _error(code: str) -> bytes:
    return json.dumps({"errors": [{"code": code, "message": code.lower().replace("_", " ")}]}).encode()
