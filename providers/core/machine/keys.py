"""SSH keys derived per instance from one master secret: any worker can make them again, so nothing is stored.

The private half is written in OpenSSH's own format (openssh-key-v1, PROTOCOL.key in OpenSSH's sources: OpenSSH 9.2 refuses PKCS#8)
and is the same bytes each time: an order that is repeated must be the identical order.
"""

from __future__ import annotations

import base64
import hashlib
import struct
from typing import Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from pydantic import SecretStr

from prefect_gpu.providers.core.models import KeyPair

Purpose = Literal["client", "host"]


def derive(master_secret: bytes, name: str, purpose: Purpose) -> KeyPair:
    """The ed25519 key pair of one instance name: `client` logs in, `host` is the machine's own."""
    seed = HKDF(SHA256(), length=32, salt=None, info=f"prefect-gpu/1/{purpose}/{name}".encode()).derive(master_secret)
    key = Ed25519PrivateKey.from_private_bytes(seed)
    public = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    blob = _field(b"ssh-ed25519") + _field(public)
    return KeyPair(
        private=SecretStr(_openssh_private(seed, public, blob)),
        public="ssh-ed25519 " + base64.b64encode(blob).decode(),
    )


def fingerprint(public: str) -> str:
    """`SHA256:...` of a public key line, as ssh-keygen -l prints it."""
    digest = hashlib.sha256(base64.b64decode(public.split()[1])).digest()
    return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")


def _openssh_private(seed: bytes, public: bytes, blob: bytes) -> str:
    check = public[:4]  # any number that stands twice; taken from the key so that the bytes repeat
    secret = check + check + blob + _field(seed + public) + _field(b"")
    secret += bytes(range(1, 9))[: -len(secret) % 8]
    body = b"openssh-key-v1\0" + _field(b"none") + _field(b"none") + _field(b"") + struct.pack(">I", 1)
    text = base64.b64encode(body + _field(blob) + _field(secret)).decode()
    lines = [text[at : at + 70] for at in range(0, len(text), 70)]
    return "\n".join(["-----BEGIN OPENSSH PRIVATE KEY-----", *lines, "-----END OPENSSH PRIVATE KEY-----", ""])


def _field(data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + data
