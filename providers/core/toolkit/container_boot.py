"""What a rented container runs first: an SSH server with a key of its own, that key told in its log, and the end of its lease.

A container cannot be given a host key that its marketplace does not see, so it makes one and prints the public half with a nonce; the
driver reads it over the vendor's authenticated log API (`read_log`), where nobody in between can write. Declare `host_key="by_logs"`.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Final

from prefect_gpu.providers.core.models import LaunchSpec

PORT: Final = 10022
SCRIPT: Final = (Path(__file__).parent / "sh" / "container_boot.sh").read_text()
_LOG_BYTES: Final = 4_000_000  # of a log that is looked through


def command() -> tuple[str, ...]:
    """The container's command, where its vendor takes one: without it the script is `SCRIPT`, for a shell."""
    return ("sh", "-c", SCRIPT)


def environment(spec: LaunchSpec, *, give_back: str = "", port: int = PORT) -> dict[str, str]:
    """The variables that the script reads.

    Args:
        spec: The order.
        give_back: A command for sh that ends the rent from inside, with the key that the vendor puts there for that. Empty: the
            container just ends, which by itself ends no bill.
        port: Where its sshd listens.
    """
    return {
        "PREFECT_GPU_KEY": spec.client_public_key,
        "PREFECT_GPU_NONCE": nonce(spec.client_public_key),
        "PREFECT_GPU_ENDS": str(int(spec.deadline.timestamp())),
        "PREFECT_GPU_LASTS": str(spec.lasts_s),
        "PREFECT_GPU_GIVE_BACK": give_back,
        "PREFECT_GPU_PORT": str(port),
    }


def nonce(client_public_key: str) -> str:
    """What marks the line of this very order: nobody else can have printed it before."""
    return hashlib.sha256(f"prefect-gpu/1/log/{client_public_key}".encode()).hexdigest()[:32]


def host_key_in(log: str, of_nonce: str) -> str | None:
    """The host key that a container's log tells, by its first line with the nonce: later ones may be a job's. None: not told yet."""
    return next(iter(_keys_in(log, of_nonce)), None)


def began_again(log: str, of_nonce: str) -> bool:
    """Whether a container told a second key: it was started again, with nothing on its disk of what ran there."""
    return len(set(_keys_in(log, of_nonce))) > 1


def failure_in(log: str) -> str | None:
    """Why it will never answer, in the script's own sentence; None where it says nothing of the kind."""
    found = re.search(r"prefect-gpu failed: ([ -~]{1,200})", log[:_LOG_BYTES])
    return found[1].strip() if found else None


def _keys_in(log: str, of_nonce: str) -> list[str]:
    line = rf"prefect-gpu host key {re.escape(of_nonce)} (ssh-ed25519 [A-Za-z0-9+/]{{68}})(?![A-Za-z0-9+/=])"
    return re.findall(line, log[:_LOG_BYTES])
