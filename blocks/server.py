"""Which Prefect server is asked now: what tells it from another one that has a copy of its database.

| the server | is known by |
|---|---|
| that its workers' environment names (PREFECT_GPU_SERVER) | that name |
| at an address that is one place in the world | the address |
| on this host | the host's id and the server's own folder |
| in this Kubernetes cluster | cluster and namespace, and its address |
| else: a short name, a private address | its address alone: two networks may have one each, so give it a name |

A container has nothing of its own that outlives it, and each run of a Docker pool is a new one: what only its disk holds would refuse
them all.
"""

from __future__ import annotations

import hashlib
import ipaddress
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit
from uuid import getnode

import httpx
from prefect.context import SyncClientContext
from prefect.settings import get_current_settings

VARIABLE: Final = "PREFECT_GPU_SERVER"  # in the environment of workers: the server's name, which nothing else decides
NAMED: Final = "named "
_MACHINE_ID: Final = Path("/etc/machine-id")
_ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_CONTAINER: Final = (Path("/.dockerenv"), Path("/run/.containerenv"), _ACCOUNT)
# Ends of names that each network may give to a host of its own.
_LOCAL: Final = frozenset(
    ("arpa", "corp", "docker", "home", "internal", "intranet", "lan", "local", "localdomain", "private", "svc", "test")
)


def this_server(*, with_home: bool = True) -> str:
    """What the Prefect server that is asked now is known by.

    `with_home`: with the server's own folder, where it is a process of this host, whose port may change; a call tells it.
    """
    return f"{NAMED}{name}" if (name := given_name()) else unnamed_server(with_home=with_home)


def given_name() -> str:
    """The server's name as an operator gave it, empty where none is given."""
    return "-".join(os.environ.get(VARIABLE, "").split())[:100]


def unnamed_server(*, with_home: bool = True) -> str:
    """What it is known by whatever it is named."""
    address = urlsplit(get_current_settings().api.url or "")
    host = (address.hostname or "").lower().rstrip(".")
    if _is_here(host):
        here = _host_id() or _cluster() or "container"
        return f"{here} {_home_of_server()}" if with_home else here
    port = f":{address.port}" if address.port else ""
    known = f"{host}{port}{address.path.rstrip('/').removesuffix('/api')}"
    if _is_one_in_the_world(host):
        return known
    cluster = _cluster()
    return f"{known} in {cluster}" if cluster else known


def is_own_server() -> bool:
    """Whether the Prefect server is a process of this host, as one's own is, or in this very process."""
    host = (urlsplit(get_current_settings().api.url or "").hostname or "").lower()
    return _is_here(host)


def _is_here(host: str) -> bool:
    return host in {"", "localhost", "::1"} or host.startswith("127.")


def _is_one_in_the_world(host: str) -> bool:
    """Whether no two networks can mean different hosts by it."""
    try:
        return ipaddress.ip_address(host).is_global
    except ValueError:
        return "." in host and host.rpartition(".")[2] not in _LOCAL


def _host_id() -> str:
    """This host, by what neither its name nor its network changes; empty in a container, which has no such thing.

    A container may have a machine id that is its image's, and so each container's of that image. Only one that is mounted is the host's.
    """
    known = ""
    with suppress(OSError):
        is_mounted = _MACHINE_ID.stat().st_dev != _MACHINE_ID.parent.stat().st_dev
        if is_mounted or not any(mark.exists() for mark in _CONTAINER):
            known = _MACHINE_ID.read_text().strip()
    if not known and sys.platform != "linux":
        known = str(getnode())
    return f"host-{_short(known)}" if known else ""


def _cluster() -> str:
    """This Kubernetes cluster, by its certificate authority, and the namespace; empty elsewhere."""
    with suppress(OSError):
        return f"{(_ACCOUNT / 'namespace').read_text().strip()} of cluster-{_short((_ACCOUNT / 'ca.crt').read_text())}"
    return ""


def _home_of_server() -> str:
    with SyncClientContext.get_or_create() as prefect:
        try:
            return str(prefect.client.request("GET", "/admin/settings").json()["home"])
        except (httpx.HTTPError, ValueError, KeyError, TypeError):
            return ""  # it does not say


def _short(text: str) -> str:
    return hashlib.sha256(f"prefect-gpu {text}".encode()).hexdigest()[:8]
