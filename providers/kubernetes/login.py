"""The account's credentials as they are now: read from the kubeconfig that its block names, or from the pod that a worker runs in."""

from __future__ import annotations

import os
import re
import ssl
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.request import proxy_bypass_environment  # pyright: ignore[reportAttributeAccessIssue, reportUnknownVariableType] - typeshed lacks it

from kubernetes.config import ConfigException  # pyright: ignore[reportMissingTypeStubs] - it has none

from prefect_gpu.blocks.kubernetes import KUBECONFIG, KubernetesCredentials
from prefect_gpu.providers.core.errors import AuthFailed, InvalidRequest
from prefect_gpu.providers.core.toolkit.login import Login
from prefect_gpu.providers.kubernetes.objects import one_line

_SERVICE_ACCOUNT: Final = "/var/run/secrets/kubernetes.io/serviceaccount/token"


class Endpoint(NamedTuple):
    """Where the API server is, and how it is spoken to."""

    url: str  # https://host:port, and a path where a proxy serves several clusters
    login: Login


class Logins:
    """One account's credentials. Read when they are first needed, and again when they were refused: certificates and tokens are renewed."""

    def __init__(self, block: Callable[[], KubernetesCredentials]) -> None:
        self._block = block
        self._last: Endpoint | None = None

    def __call__(self) -> Login:
        """The credentials as they are now. AuthFailed, with where they were looked for, where they cannot be used."""
        try:
            self._last = _read(self._block())
        except (
            AuthFailed
        ):  # half written, perhaps: those in use are refused in words of their own, and the next call looks again
            if self._last is None:
                raise
        return self._last.login

    def endpoint(self) -> Endpoint:
        """The API server and the credentials that are in use."""
        return self._last or _read(self._block())


def _read(block: KubernetesCredentials) -> Endpoint:
    if absent := _absent(block):
        raise AuthFailed(absent, reach="provider")
    try:
        configuration = block.get_configuration()
        token = configuration.get_api_key_with_prefix("BearerToken", "authorization")
        files = (configuration.ssl_ca_cert, configuration.cert_file, configuration.key_file)
        tls_key = (configuration.verify_ssl, *(Path(one).read_bytes() for one in files if one))
        tls = _tls(configuration) if str(configuration.host).startswith("https") else None
    except (ConfigException, OSError, ValueError) as error:
        words = f"{one_line(str(error), 300)}{_choice(block)}"
        raise AuthFailed(f"{_where(block)} cannot be used on this worker: {words}", reach="provider") from None
    except Exception as error:  # noqa: BLE001 - PyYAML's, the credential plugin's: whatever such a file leads to
        words = one_line(f"{type(error).__name__}: {error}", 300)
        raise AuthFailed(f"{_where(block)} cannot be used on this worker: {words}", reach="provider") from None
    header = re.sub(r"^bearer ", "Bearer ", token) if token else ""
    proxy = _proxy(configuration)
    password = urllib.parse.urlsplit(proxy).password if proxy else None
    secrets = (header.removeprefix("Bearer "), urllib.parse.unquote(password or ""), password or "")
    return Endpoint(
        url=str(configuration.host).rstrip("/"),
        login=Login(
            headers={"authorization": header} if header else {},
            secrets=tuple(one for one in secrets if one),
            proxy=proxy,
            tls=tls,
            tls_key=(str(configuration.host), tls_key),
            server_name=configuration.tls_server_name or None,
        ),
    )


def _proxy(configuration: Any) -> str | None:
    host = urllib.parse.urlsplit(str(configuration.host)).hostname or ""
    proxy = configuration.proxy
    if proxy and proxy_bypass_environment(host, {"no": configuration.no_proxy or ""}):
        return None
    if proxy and not proxy.lower().startswith("http://"):
        raise InvalidRequest(
            "commands on pods go through http:// proxies only: name one by proxy-url in the kubeconfig or by HTTPS_PROXY"
        )
    return proxy or None


def _absent(block: KubernetesCredentials) -> str | None:
    """What is not there, and where it was looked for; None where there is a file to read, or another source."""
    if block.kubernetes is not None or block.cluster_config is not None:
        return None
    path = Path(block.kubeconfig or KUBECONFIG).expanduser()
    if path.exists() or (block.kubeconfig is None and Path(_SERVICE_ACCOUNT).exists()):
        return None
    if block.kubeconfig is not None:
        return f"the kubeconfig {path}, which the account's block names, is not on this worker"
    said = f"there is no kubeconfig: {path} is not on this worker, and the worker is not in a cluster (no {_SERVICE_ACCOUNT})"
    if elsewhere := os.environ.get("KUBECONFIG"):
        return f"{said}; KUBECONFIG is not read: write {elsewhere} into the field kubeconfig of the account's block"
    return f"{said}: name the file in the field kubeconfig of the account's block"


def _where(block: KubernetesCredentials) -> str:
    if block.kubernetes is not None or block.cluster_config is not None:
        return "the kubeconfig in the account's saved block"
    return f"the kubeconfig {Path(block.kubeconfig or KUBECONFIG).expanduser()}"


def _choice(block: KubernetesCredentials) -> str:
    """The contexts that there are, where the one that is named is not among them."""
    names = block.contexts() if block.context is not None else []
    return "" if block.context in names or not names else f"; its contexts are {one_line(', '.join(names), 200)}"


def _tls(configuration: Any) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=configuration.ssl_ca_cert or None)
    if not configuration.verify_ssl:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if configuration.cert_file:
        context.load_cert_chain(configuration.cert_file, configuration.key_file or None)
    return context
