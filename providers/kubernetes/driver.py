"""Kubernetes: a pod per instance, on the nodes of a cluster that the team has.

What is rented is a share of a node: GPUs, and the CPU and memory that the job asks for. The cluster costs nothing here unless the
account's block names prices; a pod is counted from when it runs until it is gone. The job runs by exec: no SSH, no host
key, no service. API: https://kubernetes.io/docs/reference/generated/kubernetes-api/v1.37/. What rights the credentials need
stands in docs/kubernetes-rbac.yaml: beyond one namespace, only reading nodes and the UID of kube-system.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from datetime import datetime
from typing import ClassVar

import httpx
from typing_extensions import override

from prefect_gpu.blocks.kubernetes import KubernetesCredentials
from prefect_gpu.providers.core.contract import Billing, Capabilities, Connection, Provider
from prefect_gpu.providers.core.errors import (
    AuthFailed,
    InstanceFailed,
    InvalidRequest,
    NotFound,
    NotReady,
    ProviderError,
    Transient,
)
from prefect_gpu.providers.core.lease import Lease
from prefect_gpu.providers.core.models import Instance, InstanceState, LaunchSpec, Listing, Offer
from prefect_gpu.providers.core.requests import Requirements
from prefect_gpu.providers.core.toolkit.http import JsonApi
from prefect_gpu.providers.kubernetes import events, listing, offers, rights
from prefect_gpu.providers.kubernetes.connection import PodConnection
from prefect_gpu.providers.kubernetes.errors import MEANINGS
from prefect_gpu.providers.kubernetes.login import Logins
from prefect_gpu.providers.kubernetes.nodes import Node
from prefect_gpu.providers.kubernetes.objects import Json, as_dict, as_list, as_text
from prefect_gpu.providers.kubernetes.options import KubernetesOptions
from prefect_gpu.providers.kubernetes.order import Order, why_not_ours
from prefect_gpu.providers.kubernetes.pod_state import CONTAINER, wants_events, with_cause

QUICK_S = 2.0  # for one of the tries of a question that a job waits for


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
        sold_out_s=0,  # own machines: free again as soon as whoever has them is done
        boot_deadline_s=1200,  # pulling a big image takes minutes
        billing=Billing(step_s=1, minimum_s=0),
    )

    options_model = KubernetesOptions

    def __init__(
        self,
        credentials: KubernetesCredentials,
        *,
        transport: Callable[[httpx.BaseTransport], httpx.BaseTransport] = lambda real: real,
        page: int = listing.PAGE,
        timeout_s: float = 30.0,
    ) -> None:
        super().__init__(credentials)
        self._transport = transport
        self._page = page
        self._timeout_s = timeout_s
        self._logins = Logins(lambda: self.credentials)
        self._lock = threading.Lock()
        self._made: JsonApi | None = None

    @property
    def _api(self) -> JsonApi:
        with self._lock:
            if self._made is None:
                self._made = JsonApi(
                    "Kubernetes",
                    self._logins.endpoint().url,
                    login=self._logins,
                    meanings=MEANINGS,
                    timeout_s=self._timeout_s,
                    transport=self._transport,
                )
            return self._made

    # --- who and what ------------------------------------------------------------------------------------------------

    @override
    def account_id(self) -> str:
        found = as_dict(self._api.get("/api/v1/namespaces/kube-system", what="read the namespace kube-system"))
        if uid := as_text(as_dict(found.get("metadata")).get("uid"), 100):
            return uid
        raise InvalidRequest("the namespace kube-system has no UID: this is not Kubernetes")

    @override
    def missing_rights(self) -> list[str]:
        self._api.get("/version", what="reach the cluster")
        namespace = self.credentials.namespace
        lacking = rights.missing(self._api, namespace)
        missing = [str(right) for right in lacking]
        if rights.Right("get", "namespaces", name=namespace) not in lacking:
            try:
                listing.must_have_namespace(self._api, namespace)
            except InvalidRequest as absent:
                missing.append(absent.message)
        return missing

    @override
    def fetch_offers(self, requirements: Requirements) -> list[Offer]:
        return offers.fetch(self._api, self.credentials, requirements, self._page)

    # --- create, get, list, terminate --------------------------------------------------------------------------------

    @override
    def create_instance(self, offer: Offer, spec: LaunchSpec) -> Instance:
        return self._instance(Order(self._api, self.credentials, offer, spec).send())

    @override
    def get_instance(self, instance_id: str) -> Instance:
        namespace, name = _place(instance_id)
        try:
            pod = self._pod(namespace, name)
        except (NotFound, AuthFailed) as refused:
            if (
                isinstance(refused, NotFound) or refused.code == "Forbidden"
            ):  # rights of a namespace that was deleted go with it
                listing.must_have_namespace(self._api, namespace)
            raise
        instance = self._instance(pod)
        if why := why_not_ours(pod, name):
            return instance.model_copy(update={"name": "", "reason": why})
        if instance.state in {InstanceState.UNKNOWN, InstanceState.TERMINATING}:
            return self._with_news_of_its_node(instance)
        return self._with_cause(instance, pod, namespace)

    @override
    def provider_time(self) -> datetime | None:
        return self._api.now()

    @override
    def list_instances(self, prefix: str) -> Listing:
        return listing.list_instances(self._api, self.credentials.namespace, prefix, self._instance, self._page)

    @override
    def terminate_instance(self, instance_id: str) -> None:
        namespace, name = _place(instance_id)
        if Lease.parse(name) is None:
            raise InvalidRequest(f"{name} is not a name that this project gives: it is not touched")
        root = f"/api/v1/namespaces/{namespace}"
        if "/secret/" not in instance_id:
            self._delete_pod(f"{root}/pods/{name}", name)
        try:
            self._api.delete(f"{root}/secrets/{name}", what=f"delete the Secret {name}", missing_ok=True)
        except AuthFailed as refused:
            if refused.code != "Forbidden":  # a right that only orders with a registry need
                raise

    def _delete_pod(self, path: str, name: str) -> None:
        """End the pod that was proved to be ours, and no other that takes its name meanwhile."""
        what = f"delete the pod {name}"
        try:
            found = as_dict(self._api.get(path, what=f"read the pod {name}"))
        except NotFound:
            return
        if why := why_not_ours(found, name):
            raise InvalidRequest(f"{why}: it is not touched, delete it yourself")
        uid = as_text(as_dict(found.get("metadata")).get("uid"), 100)
        # Never with grace 0: that forgets the pod without knowing whether its node has ended it.
        body = {"kind": "DeleteOptions", "apiVersion": "v1", "preconditions": {"uid": uid}}
        self._api.delete(path, body=body, what=what, missing_ok=True)

    @override
    def open_channel(self, instance: Instance) -> Connection:
        namespace, name = _place(instance.id)

        def is_running() -> bool:
            return self._instance(self._pod(namespace, name, QUICK_S)).state is InstanceState.RUNNING

        try:
            pod = self._pod(namespace, name, QUICK_S)
            seen = self._instance(pod)
        except AuthFailed as refused:
            self._must_stand(namespace, name, refused)
            raise
        if seen.state in {InstanceState.FAILED, InstanceState.INTERRUPTED}:
            raise InstanceFailed(f"{name} does not run: {seen.reason or seen.state.value}")
        if seen.state is not InstanceState.RUNNING:
            raise NotReady(f"{name} does not run: {seen.reason or seen.state.value}")
        containers = as_list(as_dict(pod.get("spec")).get("containers"))
        image = next((as_text(one.get("image"), 300) for one in containers if one.get("name") == CONTAINER), "")
        return PodConnection(self._logins.endpoint, namespace, name, CONTAINER, is_running, image=image)

    def _must_stand(self, namespace: str, name: str, refused: AuthFailed) -> None:
        """InstanceFailed where the pod went with its namespace: then its rights are gone too, and no renewed login helps."""
        if refused.code != "Forbidden":
            return
        try:
            listing.must_have_namespace(self._api, namespace)
        except InvalidRequest as gone:
            raise InstanceFailed(f"the namespace {namespace} was deleted, and {name} with it") from gone

    def _pod(self, namespace: str, name: str, timeout_s: float | None = None) -> Json:
        path = f"/api/v1/namespaces/{namespace}/pods/{name}"
        found = as_dict(self._api.get(path, what=f"read the pod {name}", timeout_s=timeout_s))
        if as_dict(found.get("metadata")).get("name") != name:
            raise Transient(f"Kubernetes' answer to the question for the pod {name} cannot be read")
        return found

    def _instance(self, pod: Json) -> Instance:
        return listing.instance_of(pod, self._api.now(), self.name, self.credentials.scheduling_timeout_s)

    def _with_news_of_its_node(self, instance: Instance) -> Instance:
        """The same, or interrupted where the node has gone; a node that is silent leaves it as it is, and owed."""
        node = instance.raw["node"]
        if not node:
            return instance
        try:
            found = Node(as_dict(self._api.get(f"/api/v1/nodes/{node}", what=f"read the node {node}")))
        except NotFound:
            return listing.gone_with_its_node(instance, node)
        except ProviderError:
            return instance
        return instance if found.is_ready else instance.model_copy(update={"reason": f"its node {node} is silent"})

    def _with_cause(self, instance: Instance, pod: Json, namespace: str) -> Instance:
        """The same, with what the pod's events tell where its status only says that it waits."""
        waiting = wants_events(pod, instance.state)
        if waiting is None:
            return instance
        query = {"fieldSelector": f"involvedObject.name={instance.name},involvedObject.uid={instance.raw['uid']}"}
        try:
            cause = events.cause(listing.rows(self._api, f"/api/v1/namespaces/{namespace}/events", self._page, **query))
        except ProviderError:  # a right that is worth having, not one that is needed
            return instance
        if not cause:
            return instance
        state, reason = with_cause(instance.state, cause, waiting, self._api.now())
        return instance.model_copy(update={"state": state, "reason": reason})


def _place(instance_id: str) -> tuple[str, str]:
    """Namespace and name of an id (`namespace/name`, `namespace/secret/name`)."""
    match = re.fullmatch(r"([a-z0-9-]{1,63})/(?:secret/)?([a-z0-9.-]{1,253})", instance_id)
    if match is None:
        raise NotFound(f"{instance_id[:100]!r} is not the id of a pod: ids are namespace/name")
    return match[1], match[2]
