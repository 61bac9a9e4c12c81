"""Host keys that nobody told us beforehand: pinned when they are first seen, and from then on the only ones accepted."""

from __future__ import annotations

import threading

from prefect_gpu.providers.core.contract import Connection
from prefect_gpu.providers.core.errors import NotReady
from prefect_gpu.providers.core.machine import ssh
from prefect_gpu.providers.core.models import KeyPair, SshEndpoint


class FirstUse:
    """The pins of one process. A jump host's key is pinned by its address, a machine's by `who` it is."""

    def __init__(self) -> None:
        self._pins: dict[str, str] = {}
        self._lock = threading.Lock()

    def pinned(self, who: str) -> str | None:
        """The host key that was pinned for a machine."""
        with self._lock:
            return self._pins.get(who)

    def connect(
        self,
        who: str,
        endpoint: SshEndpoint,
        client_key: KeyPair,
        host_key: str | None = None,
        *,
        may_pin: bool = True,
        timeout_s: float = 10.0,
    ) -> Connection:
        """As `ssh.connect`; a machine without a known key is NotReady unless `may_pin`, a jump host's is pinned."""
        jump = endpoint.jump
        between = f"{jump.user}@{jump.host}:{jump.port}" if jump and jump.host_key is None else ""
        with self._lock:
            known = host_key or endpoint.host_key or self._pins.get(who)
            if jump and between in self._pins:
                endpoint = endpoint.model_copy(
                    update={"jump": jump.model_copy(update={"host_key": self._pins[between]})}
                )
                between = ""
        shown: list[str] = []  # the jump host's key, then the machine's
        if known is None and not may_pin:
            raise NotReady(f"the host key of {who} is not known yet")
        connection = ssh.connect(endpoint, client_key, known, timeout_s=timeout_s, on_first_use=shown.append)
        with self._lock:
            if between:
                self._pins.setdefault(between, shown.pop(0))
            if shown:
                self._pins.setdefault(who, shown[0])
        return connection
