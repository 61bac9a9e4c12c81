"""Kubernetes: a pod per instance, on the nodes of a cluster that the team has.

What is rented is a share of a node: GPUs, and the CPU and memory that the job asks for. The cluster costs nothing here unless the
account's block names prices; a pod is counted from when it runs until it is gone. The job runs by exec: no SSH, no host
key, no service. API: https://kubernetes.io/docs/reference/generated/kubernetes-api/v1.37/. What rights the credentials need
stands in docs/kubernetes-rbac.yaml: beyond one namespace, only reading nodes.

The file is over 300 lines because one provider is one file: nodes to offers, the pod, and the errors.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import itertools
import json
import re
import ssl
import threading
import urllib.parse
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, ClassVar, Final, NamedTuple, cast
from urllib.request import proxy_bypass_environment  # pyright: ignore[reportAttributeAccessIssue, reportUnknownVariableType] - typeshed lacks it

import httpx
from kubernetes.config import ConfigException  # pyright: ignore[reportMissingTypeStubs] - it has none
from pydantic import Field, ValidationError
from typing_extensions import override

from blocks.kubernetes import KubernetesCredentials, KubernetesMount, KubernetesToleration
from providers.core import matching
from providers.core.contract import Billing, Capabilities, Connection, Provider
from providers.core.errors import (
    AuthFailed,
    InstanceFailed,
    InvalidRequest,
    NotFound,
    NotReady,
    ProviderError,
    QuotaExceeded,
    RateLimited,
    Transient,
    Unconfirmed,
)
from providers.core.library import TaskLibrary
from providers.core.models import (
    Availability,
    Instance,
    InstanceState,
    LaunchSpec,
    Leftover,
    Listing,
    Model,
    Offer,
    Requirements,
    Unread,
    utc_now,
)
from providers.core.nodes import Json, Node, as_dict, as_list, gpu_counts, usual_tolerations
from providers.core.pod_exec import Api, PodConnection
from providers.core.pod_state import CONTAINER, instant, one_line, state_of

MANAGED_BY: Final = "app.kubernetes.io/managed-by=prefect-gpu"
PAGE: Final = 500
AUTOSCALED_FROM_S: Final = 60.0  # who waits so long for a node expects one to be added

# Waits until the lease ends or it is told to go. `activeDeadlineSeconds` counts from when the pod starts, which may be long after
# it was ordered: so the clock is looked at as well, where the image has `date`.
_WAIT: Final = """trap 'exit 0' TERM INT
while :; do
now=$(date +%s 2>/dev/null) || now=0
left=$(($1 - now))
[ "$left" -gt 0 ] || exit 0
[ "$left" -lt 3600 ] || left=3600
sleep "$left" & wait $!
done
"""


class KubernetesOptions(Model):
    """What a launch may ask of Kubernetes beyond the contract (`LaunchSpec.options`)."""

    mounts: tuple[KubernetesMount, ...] = ()  # beside those of the account's block
    tolerations: tuple[KubernetesToleration, ...] = ()
    node_selector: dict[str, str] = Field(default_factory=dict)
    annotations: dict[str, str] = Field(default_factory=dict)
    cpu_limit: float | None = None  # none: the pod may use what the node has free
    memory_limit_gb: float | None = None
    shared_memory_gb: float | None = None  # size of /dev/shm; none: half of the node's memory, as Linux has it


class Kubernetes(Provider[KubernetesCredentials]):
    """Pods of one namespace of one cluster; an instance's id is `namespace/name`."""

    name = "kubernetes"
    capabilities: ClassVar[Capabilities] = Capabilities(
        create_repeatable="namespace",
        listing_lag_s=0,  # a LIST without resourceVersion is a quorum read
        not_found_proves_absence=True,  # get_instance says NotFound only while the namespace is there
        self_ends="cluster",
        spot=True,
        images="native",
        host_key="channel",
        needs_catalog=False,
        boot_deadline_s=1200,  # pulling a big image takes minutes
        billing=Billing(starts="running", step_s=1, minimum_s=0),
    )

    def __init__(
        self,
        credentials: KubernetesCredentials,
        *,
        transport: Callable[[httpx.BaseTransport], httpx.BaseTransport] = lambda real: real,
        page: int = PAGE,
        timeout_s: float = 30.0,
    ) -> None:
        super().__init__(credentials)
        self._transport = transport
        self._page = page
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._wire: _Wire | None = None

    # --- who and what ------------------------------------------------------------------------------------------------

    @override
    def account_id(self) -> str:
        return str(self._get("/api/v1/namespaces/kube-system", "read the namespace kube-system")["metadata"]["uid"])

    @override
    def missing_rights(self) -> list[str]:
        self._get("/version", "reach the cluster")
        namespace = self.credentials.namespace
        missing: list[str] = []
        for verb, resource, where, name in _rights(namespace):
            group_resource, _, sub = resource.partition("/")
            attributes = {
                "verb": verb,
                "resource": group_resource,
                "subresource": sub,
                "namespace": where,
                "name": name,
            }
            review = {"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview"}
            answer = self._call(
                "POST",
                "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
                f"ask whether we may {verb} {resource}",
                body={**review, "spec": {"resourceAttributes": {k: v for k, v in attributes.items() if v}}},
            )
            if not answer.get("status", {}).get("allowed"):
                missing.append(f"{verb} {resource}" + (f" {name}" if name else "") + (f" in {where}" if where else ""))
        if f"get namespaces {namespace} in {namespace}" not in missing:
            try:
                self._must_have_namespace(namespace)
            except InvalidRequest as absent:
                missing.append(absent.message)
        return missing

    @override
    def fetch_offers(self, requirements: Requirements) -> list[Offer]:
        nodes = [Node(raw) for raw in self._list("/api/v1/nodes", "list nodes")]
        counted = self._count_pods({node.name: node for node in nodes})
        block = self.credentials
        shapes: dict[tuple[object, ...], list[Node]] = {}
        for node in nodes:
            if block.node_selector.items() <= node.labels.items():
                shapes.setdefault(node.shape, []).append(node)
        found: list[Offer] = []
        for shape in shapes.values():
            offers = (self._offer(shape, count, counted, requirements) for count in gpu_counts(shape[0], requirements))
            found.extend(itertools.islice((offer for offer in offers if matching.fits(offer, requirements)), 1))
        return found

    def _count_pods(self, nodes: dict[str, Node]) -> str:
        """Take off the nodes what their pods have; which pods that could be told of."""
        running = {"fieldSelector": "status.phase!=Succeeded,status.phase!=Failed"}
        namespace = self.credentials.namespace
        counted = "all pods"
        try:
            pods = list(self._list("/api/v1/pods", "list the pods of all namespaces", running))
        except AuthFailed:  # a right that is worth having, not one that is needed
            counted = f"the pods of the namespace {namespace}"
            pods = list(self._list(f"/api/v1/namespaces/{namespace}/pods", "list pods", running))
        for pod in pods:
            node = nodes.get(pod["spec"].get("nodeName", ""))
            if node is not None:
                node.take(pod)
        return counted

    def _offer(self, shape: list[Node], count: int, counted: str, requirements: Requirements) -> Offer:
        block = self.credentials
        wants = {
            "cpu": float(requirements.cpu or block.cpu),
            "memory": (requirements.memory_gb or block.memory_gb) * 2**30,
            "ephemeral-storage": (requirements.disk_gb or 0.0) * 2**30,
            "pods": 1.0,
            **({shape[0].gpu.resource: float(count)} if shape[0].gpu else {}),
        }
        problems = {node.name: node.problem(wants, block.tolerations) for node in shape}
        usable = [node for node in shape if problems[node.name] is None]
        best = max(usable or shape, key=lambda node: (node.free.get("cpu", 0.0), node.free.get("memory", 0.0)))
        problem = problems[best.name]
        availability = Availability.AVAILABLE if counted == "all pods" else Availability.UNKNOWN
        if problem is not None:
            waits = problem.is_full and block.scheduling_timeout_s >= AUTOSCALED_FROM_S
            availability = Availability.UNKNOWN if waits else Availability.UNAVAILABLE
        gpu = best.gpu if count else None
        return Offer(
            provider=self.name,
            instance_type=best.instance_type,
            region=best.region or block.namespace,
            zone=best.zone,
            country=block.country,
            price=self._price(best, count, wants),
            spot=best.is_spot,
            # What the emptiest node has: a pod may use it all, and is sure of what the job asks for.
            cpu=round(best.free.get("cpu", 0.0) if not problem else best.allocatable.get("cpu", 0.0), 2),
            memory_gb=round((best.free if not problem else best.allocatable).get("memory", 0.0) / 2**30, 1),
            disk_gb=round((best.free if not problem else best.allocatable).get("ephemeral-storage", 0.0) / 2**30, 1),
            arch={"amd64": "x86_64"}.get(best.arch, best.arch) or None,
            gpu_name=gpu.name if gpu else None,
            gpu_count=count,
            gpu_memory_gb=gpu.memory_gb if gpu else None,
            gpu_vendor=gpu.vendor if gpu else None,
            availability=availability,
            unavailable_because=problem.words if problem else None,
            raw={
                "gpu_resource": gpu.resource if gpu else None,
                "node_selector": best.selector,
                "absent_labels": best.lacks,
                "counted": counted,  # whose requests were taken off what the nodes have
                **({"cuda": best.cuda} if best.cuda else {}),
            },
        )

    def _price(self, node: Node, count: int, wants: Mapping[str, float]) -> float:
        block = self.credentials
        whole = block.node_price_per_hour.get(node.instance_type)
        if whole is not None:
            resource, part = (node.gpu.resource, float(count)) if node.gpu and count else ("cpu", wants["cpu"])
            return round(whole * min(1.0, part / max(node.allocatable.get(resource, 0.0), part)), 6)
        if not node.gpu or not count:
            return 0.0
        each = next((p for name, p in block.price_per_gpu_hour.items() if matching.same_gpu(name, node.gpu.name)), 0.0)
        return each * count

    # --- create, get, list, terminate --------------------------------------------------------------------------------

    @override
    def create_instance(self, offer: Offer, spec: LaunchSpec) -> Instance:
        try:
            options = KubernetesOptions.model_validate(spec.options)
        except ValidationError as error:
            wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_input=False))
            raise InvalidRequest(f"these options are none of Kubernetes: {wrong}") from None
        namespace = self.credentials.namespace
        pods = f"/api/v1/namespaces/{namespace}/pods"
        secret = f"/api/v1/namespaces/{namespace}/secrets/{spec.name}" if spec.registry else None
        pod = _pod(offer, spec, options, self.credentials)
        try:
            if secret:
                self._make_pull_secret(spec)
            made = self._call("POST", pods, f"create the pod {spec.name}", body=pod, order=spec.name)
        except _Exists:
            made = self._ours(namespace, spec.name)
        except (Unconfirmed, Transient):
            raise
        except ProviderError as refused:
            made = self._in_spite_of(refused, f"{pods}/{spec.name}", spec.name, secret)
        if secret:  # from now on it goes with the pod, whoever deletes that
            owner = {"apiVersion": "v1", "kind": "Pod", "name": spec.name, "uid": made["metadata"]["uid"]}
            tie = {"metadata": {"ownerReferences": [owner]}}
            # The pod stands: no error may say otherwise. A Secret that is not tied to it is deleted by name, or left over.
            with contextlib.suppress(ProviderError):
                self._call("PATCH", secret, f"tie the Secret {spec.name} to its pod", body=tie)
        return self._instance(made, utc_now())

    def _ours(self, namespace: str, name: str) -> Json:
        """The pod that stood there already. It is what an earlier, same order made, or somebody else's."""
        try:
            pod = self._get(f"/api/v1/namespaces/{namespace}/pods/{name}", f"read the pod {name}")
        except NotFound as gone:
            raise Unconfirmed(f"the pod {name} was there and is gone again") from gone
        except Transient as trouble:
            raise Unconfirmed(f"the pod {name} is there and cannot be read: {trouble.message}") from trouble
        if not _is_ours(pod, name):
            raise InvalidRequest(f"a pod {name} that is not ours stands in the namespace {namespace}: delete it")
        return pod

    def _in_spite_of(self, refused: ProviderError, path: str, name: str, secret: str | None) -> Json:
        """The pod of an earlier, same order whose answer was lost; if there is none, `refused` is raised.

        What is admitted is asked before what stands: a quota that counts our own pod refuses the order that made it.
        """
        try:
            pod = self._get(path, f"read the pod {name}")
        except NotFound:
            if secret:
                with contextlib.suppress(ProviderError):  # then it is left over
                    self._call("DELETE", secret, f"remove the Secret {name}", allow=(404,))
            raise refused from None
        except Transient as trouble:
            words = f"{refused.message}; whether it stands all the same is not known: {trouble.message}"
            raise Unconfirmed(words, code=refused.code) from trouble
        except ProviderError:
            raise refused from None
        if not _is_ours(pod, name):
            raise refused
        return pod

    def _make_pull_secret(self, spec: LaunchSpec) -> None:
        """The Secret of the image's registry, there before the pod so that the first pull finds it."""
        secrets = f"/api/v1/namespaces/{self.credentials.namespace}/secrets"
        with contextlib.suppress(_Exists):
            self._call("POST", secrets, f"create the Secret {spec.name}", body=_pull_secret(spec), order=spec.name)

    @override
    def get_instance(self, instance_id: str) -> Instance:
        namespace, name = _place(instance_id)
        now = utc_now()
        try:
            pod, now = self._get_dated(f"/api/v1/namespaces/{namespace}/pods/{name}", f"read the pod {name}")
        except NotFound:
            self._must_have_namespace(namespace)
            raise
        instance = self._instance(pod, now)
        if instance.state in {InstanceState.UNKNOWN, InstanceState.TERMINATING}:
            return self._with_news_of_its_node(instance, pod)
        return instance

    def _with_news_of_its_node(self, instance: Instance, pod: Json) -> Instance:
        """The same, or interrupted where the node has gone; a node that is silent leaves it as it is, and owed."""
        node = pod["spec"].get("nodeName")
        if not node:
            return instance
        try:
            raw = self._get(f"/api/v1/nodes/{node}", f"read the node {node}")
        except NotFound:
            return instance.model_copy(
                update={"state": InstanceState.INTERRUPTED, "reason": f"its node {node} is gone"}
            )
        except ProviderError:
            return instance
        return instance if Node(raw).is_ready else instance.model_copy(update={"reason": f"its node {node} is silent"})

    @override
    def list_instances(self, prefix: str) -> Listing:
        namespace = self.credentials.namespace
        ours = {"labelSelector": MANAGED_BY}
        root = f"/api/v1/namespaces/{namespace}"
        try:
            self._must_have_namespace(
                namespace
            )  # of a namespace that is gone Kubernetes lists nothing, and calls it complete
            secrets = list(self._list(f"{root}/secrets", "list Secrets", ours))  # first: a pod's own is not left over
            pods = list(self._list(f"{root}/pods", "list pods", ours))
        except AuthFailed as refused:
            if refused.code == "401":
                raise
            return Listing(incomplete=(Unread(scope=namespace, reason=refused.message),))
        except ProviderError as failure:
            return Listing(incomplete=(Unread(scope=namespace, reason=failure.message),))
        now = utc_now()
        instances = [self._instance(pod, now) for pod in pods if pod["metadata"]["name"].startswith(prefix)]
        standing = {pod["metadata"]["name"] for pod in pods}
        left = [
            Leftover(id=f"{namespace}/secret/{name}", kind="pull secret", name=name, region=namespace)
            for name in (secret["metadata"]["name"] for secret in secrets)
            if name.startswith(prefix) and name not in standing
        ]
        # A pod that has ended holds no GPU, but is there until somebody deletes it; one that is being deleted needs nobody any more.
        deleted = {pod["metadata"]["name"] for pod in pods if pod["metadata"].get("deletionTimestamp")}
        ended = [one for one in instances if one.state.is_final and one.name not in deleted]
        left += [Leftover(id=one.id, kind="ended pod", name=one.name, region=one.region) for one in ended]
        return Listing(instances=tuple(one for one in instances if not one.state.is_final), leftovers=tuple(left))

    @override
    def terminate_instance(self, instance_id: str) -> None:
        namespace, name = _place(instance_id)
        root = f"/api/v1/namespaces/{namespace}"
        if "/secret/" not in instance_id:
            # Never with grace 0: that forgets the pod without knowing whether its node has ended it.
            self._call("DELETE", f"{root}/pods/{name}", f"delete the pod {name}", allow=(404,))
        self._call("DELETE", f"{root}/secrets/{name}", f"delete the Secret {name}", allow=(403, 404))

    @override
    def open_channel(self, instance: Instance) -> Connection:
        namespace, name = _place(instance.id)

        def is_running() -> bool:
            return self._quick(namespace, name).state is InstanceState.RUNNING

        seen = self._quick(namespace, name)
        if seen.state in {InstanceState.FAILED, InstanceState.INTERRUPTED}:
            raise InstanceFailed(f"{name} does not run: {seen.reason or seen.state.value}")
        if seen.state is not InstanceState.RUNNING:
            raise NotReady(f"{name} does not run: {seen.reason or seen.state.value}")
        return PodConnection(lambda: self._connected().api, namespace, name, CONTAINER, is_running)

    def _quick(self, namespace: str, name: str) -> Instance:
        path = f"/api/v1/namespaces/{namespace}/pods/{name}"
        return self._instance(self._call("GET", path, f"read the pod {name}", timeout_s=5.0), utc_now())

    def _instance(self, pod: Json, now: datetime) -> Instance:
        metadata: Json = pod["metadata"]
        state, reason = state_of(pod, now, self.credentials.scheduling_timeout_s)
        notes: Json = metadata.get("annotations", {})
        namespace, name = metadata["namespace"], metadata["name"]
        return Instance(
            id=f"{namespace}/{name}",
            name=name,
            provider=self.name,
            state=state,
            region=notes.get("prefect-gpu/region") or namespace,
            zone=notes.get("prefect-gpu/zone") or None,
            created_at=instant(metadata.get("creationTimestamp")),
            reason=reason,
            price=float(notes.get("prefect-gpu/price", 0.0)),
            spot=notes.get("prefect-gpu/spot") == "true",
            raw={"node": pod["spec"].get("nodeName"), "uid": metadata.get("uid")},
        )

    def _must_have_namespace(self, namespace: str) -> None:
        """InvalidRequest if it is not there: then "not found" and "none" say nothing about what was in it."""
        try:
            self._get(f"/api/v1/namespaces/{namespace}", f"read the namespace {namespace}")
        except NotFound as gone:
            raise InvalidRequest(
                f"the namespace {namespace} does not exist: create it or name another one", code="404"
            ) from gone

    # --- the wire ----------------------------------------------------------------------------------------------------

    def _connected(self) -> _Wire:
        with self._lock:
            return self._wire or self._connect(_login(self.credentials))

    def _connect(self, login: _Login) -> _Wire:
        self._wire = _wire(login, self._transport)
        weakref.finalize(self, self._wire.client.close)  # not sooner: other threads may be using it
        return self._wire

    def _renewed(self, stale: _Wire) -> _Wire | None:
        """The wire, made again if the credentials are others by now: certificates are renewed while jobs run. None: they are not."""
        with self._lock:
            if self._wire is not stale:
                return self._wire
            with contextlib.suppress(AuthFailed):  # half written, perhaps: the next call looks again
                login = _login(self.credentials)
                if login.fingerprint != stale.fingerprint:
                    return self._connect(login)
            return None

    def _get(self, path: str, what: str) -> Json:
        return self._call("GET", path, what)

    def _get_dated(self, path: str, what: str) -> tuple[Json, datetime]:
        """The object, and now by the server's clock: ages are told by the clock that wrote the times."""
        response = self._send("GET", path, what)
        date = response.headers.get("date")
        return _object(response, what), parsedate_to_datetime(date) if date else utc_now()

    def _list(self, path: str, what: str, query: Mapping[str, str] | None = None) -> Iterator[Json]:
        """All objects, page by page. A page that expired between two requests (410) makes the listing fail, not end."""
        token = ""
        for _ in range(10_000):
            more = {"continue": token} if token else {}
            page = self._call("GET", path, what, query={"limit": str(self._page), **(query or {}), **more})
            yield from as_list(page.get("items"))
            token = str(page.get("metadata", {}).get("continue") or "")
            if not token:
                return
        raise Transient(f"cannot {what}: it has no end")

    def _call(self, method: str, path: str, what: str, **more: Any) -> Json:
        order = more.get("order")
        response = self._send(method, path, what, **more)
        return _object(response, what, order=order)

    def _send(
        self,
        method: str,
        path: str,
        what: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Json | None = None,
        order: str | None = None,
        allow: Iterable[int] = (),
        timeout_s: float | None = None,
    ) -> httpx.Response:
        """One request. `order`: one that may have taken effect when no definite answer comes."""
        kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
        lost = Unconfirmed if order else Transient

        def exchange(wire: _Wire) -> httpx.Response:
            return wire.client.request(
                method,
                path,
                params=query,
                content=json.dumps(body, sort_keys=True).encode() if body is not None else None,
                headers={"accept": "application/json", "content-type": kind, **wire.api.headers()},
                timeout=httpx.Timeout(timeout_s or self._timeout_s, connect=min(10.0, timeout_s or 10.0)),
                extensions={"sni_hostname": wire.api.server_name} if wire.api.server_name else None,
            )

        try:
            response = self._exchange(exchange)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            if isinstance(_root(error), ssl.SSLCertVerificationError):
                raise InvalidRequest(
                    f"cannot {what}: the cluster's certificate is not the one that the kubeconfig trusts"
                ) from None
            raise Transient(f"cannot {what}: the API server cannot be reached ({type(error).__name__})") from None
        except httpx.HTTPError as error:
            raise lost(f"cannot {what}: no answer came ({type(error).__name__})") from None
        if response.status_code >= 300 and response.status_code not in allow:
            raise _error(response, what, order)
        return response

    def _exchange(self, exchange: Callable[[_Wire], httpx.Response]) -> httpx.Response:
        """Sent once; only where the credentials were refused and there are others by now, again with these."""
        wire = self._connected()
        try:
            response = exchange(wire)
        except httpx.HTTPError as error:
            if isinstance(_root(error), ssl.SSLError) and (fresh := self._renewed(wire)):
                return exchange(fresh)
            raise
        if response.status_code == 401 and (fresh := self._renewed(wire)):
            return exchange(fresh)
        return response


# --- the wire, continued --------------------------------------------------------------------------------------------------


class _Wire(NamedTuple):
    client: httpx.Client
    api: Api
    fingerprint: bytes  # of the login that it was made with


class _Login(NamedTuple):
    """The account's credentials as they were when they were read."""

    configuration: Any
    tls: ssl.SSLContext | None
    fingerprint: bytes


class _Exists(ProviderError):
    """409 AlreadyExists; never leaves this file."""


def _login(block: KubernetesCredentials) -> _Login:
    try:
        configuration = block.get_configuration()
        files = (configuration.ssl_ca_cert, configuration.cert_file, configuration.key_file)
        parts = (configuration.host, configuration.api_key, [Path(one).read_bytes() for one in files if one])
        tls = _tls(configuration) if str(configuration.host).startswith("https") else None
    except (ConfigException, OSError, ValueError) as error:
        where = block.kubeconfig or "the account's block"
        raise AuthFailed(f"the kubeconfig of {where} cannot be used on this worker: {one_line(str(error))}") from None
    return _Login(configuration, tls, hashlib.sha256(repr(parts).encode()).digest())


def _wire(login: _Login, transport: Callable[[httpx.BaseTransport], httpx.BaseTransport]) -> _Wire:
    configuration, tls, fingerprint = login
    url = str(configuration.host).rstrip("/")
    host = urllib.parse.urlsplit(url).hostname or ""
    proxy = configuration.proxy
    if proxy and proxy_bypass_environment(host, {"no": configuration.no_proxy or ""}):
        proxy = None
    if proxy and not proxy.lower().startswith("http://"):
        raise InvalidRequest(
            "commands on pods go through http:// proxies only: name one by proxy-url in the kubeconfig or by HTTPS_PROXY"
        )
    lock = threading.Lock()

    def headers() -> dict[str, str]:
        with lock:  # it may run the credential plugin again
            token = configuration.get_api_key_with_prefix("BearerToken", "authorization")
        return {"authorization": re.sub(r"^bearer ", "Bearer ", token)} if token else {}

    real = httpx.HTTPTransport(
        verify=tls if tls is not None else True, proxy=proxy, limits=httpx.Limits(max_connections=50)
    )
    return _Wire(
        client=httpx.Client(base_url=url, transport=transport(real), trust_env=False),
        api=Api(url=url, tls=tls, server_name=configuration.tls_server_name or None, proxy=proxy, headers=headers),
        fingerprint=fingerprint,
    )


def _tls(configuration: Any) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=configuration.ssl_ca_cert or None)
    if not configuration.verify_ssl:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if configuration.cert_file:
        context.load_cert_chain(configuration.cert_file, configuration.key_file or None)
    return context


def _object(response: httpx.Response, what: str, *, order: str | None = None) -> Json:
    try:
        parsed = response.json()
        if isinstance(parsed, dict) and (not order or cast("Json", parsed)["metadata"]["uid"]):
            return cast("Json", parsed)
    except (ValueError, KeyError, TypeError):
        pass
    raise (Unconfirmed if order else Transient)(f"cannot {what}: the answer cannot be read")


# Kubernetes has few codes: a refusal by quota, by policy and by RBAC are all 403 Forbidden and differ by words that its own
# sources fix (plugin/pkg/admission/resourcequota/controller.go, staging/src/k8s.io/apiserver/pkg/endpoints/handlers/responsewriters).
_OVER_QUOTA: Final = (
    "exceeded quota",
    "maximum cpu usage per",
    "maximum memory usage per",
    "maximum nvidia.com/gpu usage per",
)
_MAY_NOT: Final = re.compile(r"cannot \w+ resource|no RBAC policy matched|User \"[^\"]*\" cannot")


def _error(response: httpx.Response, what: str, order: str | None) -> ProviderError:
    """One error of the table: by status, then by Kubernetes' reason, then (403 only) by its words."""
    status = response.status_code
    try:
        parsed: Json = response.json()
        words, reason = one_line(str(parsed.get("message", ""))), str(parsed.get("reason", ""))
    except (ValueError, AttributeError):
        words, reason = "", ""
    told = f"cannot {what}: {words or f'the API server answers {status}'}"
    code = reason or str(status)
    if status == 401:
        return AuthFailed(f"cannot {what}: the cluster refuses these credentials ({words or status})", code="401")
    if status == 403:
        if any(quota in words for quota in _OVER_QUOTA):
            return QuotaExceeded(told, code=code)
        return (AuthFailed if _MAY_NOT.search(words) or not words else InvalidRequest)(told, code=code)
    if status == 404:
        if order:
            return InvalidRequest(f"{told}: create the namespace or name another one in the account's block", code=code)
        return NotFound(told, code=code)
    if status == 409:
        return (
            _Exists(told, code=code) if reason == "AlreadyExists" else RateLimited(told, code=code, retry_after_s=1.0)
        )
    if status == 429:
        return RateLimited(told, code=code, retry_after_s=_seconds(response.headers.get("retry-after")))
    if status >= 500:
        return (Unconfirmed if order else Transient)(told, code=code)
    if status == 410:
        return Transient(told, code=code)
    return InvalidRequest(told, code=code)


def _seconds(text: str | None) -> float | None:
    return float(text) if text and text.isdigit() else None


def _root(error: BaseException) -> BaseException:
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return error


def _rights(namespace: str) -> list[tuple[str, str, str, str]]:
    """What docs/kubernetes-rbac.yaml grants: verb, resource, namespace, name."""
    return [
        ("list", "nodes", "", ""),
        ("get", "nodes", "", ""),
        ("get", "namespaces", "kube-system", "kube-system"),
        ("get", "namespaces", namespace, namespace),
        *((verb, "pods", namespace, "") for verb in ("create", "get", "list", "delete")),
        *((verb, "pods/exec", namespace, "") for verb in ("get", "create")),
        *((verb, "secrets", namespace, "") for verb in ("create", "list", "patch", "delete")),
    ]


# --- the pod --------------------------------------------------------------------------------------------------------------


def _labels(spec: LaunchSpec) -> dict[str, str]:
    tags = {f"prefect-gpu/{key.removeprefix('prefect-gpu-')}": value for key, value in spec.tags.items()}
    fits = {
        key: value
        for key, value in tags.items()
        if re.fullmatch(r"([A-Za-z0-9][-\w.]{0,61})?[A-Za-z0-9]", value, re.ASCII)
    }
    return {"app.kubernetes.io/managed-by": "prefect-gpu", **fits, "prefect-gpu/name": spec.name}


def _is_ours(pod: Json, name: str) -> bool:
    labels = as_dict(pod["metadata"].get("labels"))
    return labels.get("app.kubernetes.io/managed-by") == "prefect-gpu" and labels.get("prefect-gpu/name") == name


def _pod(offer: Offer, spec: LaunchSpec, options: KubernetesOptions, block: KubernetesCredentials) -> Json:
    """The order. The same spec gives the same pod, but for `activeDeadlineSeconds`, which counts from when the pod starts."""
    left_s = max(1, int((spec.deadline - utc_now()) / timedelta(seconds=1)))
    resource = offer.raw.get("gpu_resource")
    gpus = {str(resource): str(offer.gpu_count)} if resource and offer.gpu_count else {}
    asked = {
        "cpu": f"{round((spec.cpu or block.cpu) * 1000)}m",
        "memory": f"{round((spec.memory_gb or block.memory_gb) * 1024)}Mi",
        **({"ephemeral-storage": f"{round(spec.disk_gb * 1024)}Mi"} if spec.disk_gb else {}),
    }
    limits = {
        **({"cpu": f"{round(options.cpu_limit * 1000)}m"} if options.cpu_limit else {}),
        **({"memory": f"{round(options.memory_limit_gb * 1024)}Mi"} if options.memory_limit_gb else {}),
    }
    volumes, mounts = _volumes([*block.mounts, *options.mounts], options.shared_memory_gb)
    pull = [*([spec.name] if spec.registry else []), *([block.pull_secret] if block.pull_secret else [])]
    tolerations = (*block.tolerations, *options.tolerations, *usual_tolerations(resource if gpus else None))
    image = spec.image or block.image
    container: Json = {
        "name": CONTAINER,
        "image": image,
        "command": ["sh", "-c", _WAIT, "sh", str(int(spec.deadline.timestamp()))],
        "resources": {"requests": {**asked, **gpus}, "limits": {**limits, **gpus}},
        "volumeMounts": mounts,
        **({"imagePullPolicy": block.image_pull_policy} if block.image_pull_policy else {}),
    }
    pod_spec: Json = {
        "restartPolicy": "Never",
        "activeDeadlineSeconds": left_s,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": 5,
        "nodeSelector": {**block.node_selector, **options.node_selector, **offer.raw.get("node_selector", {})},
        "tolerations": [one.model_dump(exclude_none=True) for one in tolerations],
        "containers": [container],
        "volumes": volumes,
        **_affinity(offer.raw.get("absent_labels", [])),
        **({"imagePullSecrets": [{"name": name} for name in pull]} if pull else {}),
        **({"priorityClassName": block.priority_class} if block.priority_class else {}),
        **({"runtimeClassName": block.runtime_class} if block.runtime_class else {}),
    }
    notes = {
        "prefect-gpu/region": offer.region,
        "prefect-gpu/zone": offer.zone or "",
        "prefect-gpu/price": str(offer.price),
        "prefect-gpu/spot": str(offer.spot).lower(),
        **{f"prefect-gpu/{key.removeprefix('prefect-gpu-')}": value for key, value in spec.tags.items()},
        # A pod without a controller is not made again elsewhere: consolidating nodes would end the job.
        "karpenter.sh/do-not-disrupt": "true",
        "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
        **options.annotations,
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": spec.name, "labels": _labels(spec), "annotations": notes},
        "spec": pod_spec,
    }


def _affinity(absent: list[str]) -> Json:
    if not absent:
        return {}
    term = {"matchExpressions": [{"key": label, "operator": "DoesNotExist"} for label in absent]}
    return {
        "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}}
    }


def _volumes(mounts: list[KubernetesMount], shared_memory_gb: float | None) -> tuple[list[Json], list[Json]]:
    """Volumes and where they are mounted; /dev/shm is memory, as big as the job needs (a container's own is 64 MB)."""
    memory: Json = {
        "medium": "Memory",
        **({"sizeLimit": f"{round(shared_memory_gb * 1024)}Mi"} if shared_memory_gb else {}),
    }
    volumes: list[Json] = [{"name": "shm", "emptyDir": memory}]
    places: list[Json] = [{"name": "shm", "mountPath": "/dev/shm"}]  # noqa: S108 - a mount point
    for number, mount in enumerate(mounts):
        mode = {"defaultMode": 0o555 if mount.is_executable else 0o444}
        if mount.config_map:
            source: Json = {"configMap": {"name": mount.config_map, **mode}}
        elif mount.secret:
            source = {"secret": {"secretName": mount.secret, "defaultMode": 0o500 if mount.is_executable else 0o400}}
        else:
            source = {"persistentVolumeClaim": {"claimName": mount.claim, "readOnly": mount.read_only}}
        volumes.append({"name": f"mount-{number}", **source})
        sub = {"subPath": mount.sub_path} if mount.sub_path else {}
        places.append({"name": f"mount-{number}", "mountPath": mount.path, "readOnly": mount.read_only, **sub})
    return volumes, places


def _pull_secret(spec: LaunchSpec) -> Json:
    assert spec.registry is not None  # noqa: S101 - for the type checker: the caller looked
    login = f"{spec.registry.username}:{spec.registry.password.get_secret_value()}"
    # Docker Hub goes by an old name in what pulls images.
    server = (
        "https://index.docker.io/v1/"
        if spec.registry.server in {"docker.io", "index.docker.io", ""}
        else spec.registry.server
    )
    auths = {"auths": {server: {"auth": base64.b64encode(login.encode()).decode()}}}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "kubernetes.io/dockerconfigjson",
        "metadata": {"name": spec.name, "labels": _labels(spec)},
        "data": {".dockerconfigjson": base64.b64encode(json.dumps(auths).encode()).decode()},
    }


def _place(instance_id: str) -> tuple[str, str]:
    """Namespace and name of an id (`namespace/name`, `namespace/secret/name`)."""
    match = re.fullmatch(r"([a-z0-9-]+)/(?:secret/)?([a-z0-9.-]+)", instance_id)
    if match is None:
        raise NotFound(f"{instance_id!r} is no pod: ids are namespace/name")
    return match[1], match[2]


tasks = TaskLibrary(Kubernetes, KubernetesCredentials)
