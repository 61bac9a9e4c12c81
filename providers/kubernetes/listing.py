"""All pods and Secrets of ours under a prefix, and what could not be told."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

from prefect_gpu.providers.core.errors import AuthFailed, InvalidRequest, NotFound, ProviderError
from prefect_gpu.providers.core.lease import Lease
from prefect_gpu.providers.core.models import Instance, InstanceState, Leftover, Listing, Unproved, Unread
from prefect_gpu.providers.core.toolkit.http import JsonApi
from prefect_gpu.providers.kubernetes.objects import Json, as_dict, as_text, instant
from prefect_gpu.providers.kubernetes.order import why_not_ours
from prefect_gpu.providers.kubernetes.pod import MANAGED_BY
from prefect_gpu.providers.kubernetes.pod_state import state_of

PAGE = 500  # objects


def rows(api: JsonApi, path: str, page: int = PAGE, **query: str) -> Iterator[Json]:
    """All objects of a kind, page by page. A page that expired between two requests (410) makes the listing fail, not end."""
    asked = {"limit": str(page), **query}
    return api.rows(path, "items", asked, cursor="continue", next_at="metadata.continue", is_nullable=True)


def must_have_namespace(api: JsonApi, namespace: str) -> None:
    """InvalidRequest if it is not there: then "not found" and "none" say nothing about what was in it."""
    try:
        api.get(f"/api/v1/namespaces/{namespace}", what=f"read the namespace {namespace}")
    except NotFound as gone:
        raise InvalidRequest(
            f"the namespace {namespace} does not exist: create it or name another one", code="404"
        ) from gone


def list_instances(
    api: JsonApi, namespace: str, prefix: str, instance_of: Callable[[Json], Instance], page: int
) -> Listing:
    """Names that are no whole lease's are nobody's of ours; a pod under a whole name that is not of our making is unproved."""
    root = f"/api/v1/namespaces/{namespace}"
    by_name = {"fieldSelector": f"metadata.name={prefix}"} if Lease.parse(prefix) else {}
    managed = ",".join(f"{key}={value}" for key, value in MANAGED_BY.items())
    try:
        must_have_namespace(
            api, namespace
        )  # of a namespace that is gone Kubernetes lists nothing, and calls it complete
        # Secrets first: a pod's own is not left over. By label, since the namespace may hold others' too.
        secrets = list(rows(api, f"{root}/secrets", page, labelSelector=managed, **by_name))
        # Pods by name: whoever takes our labels off a pod has not ended it.
        pods = [pod for pod in rows(api, f"{root}/pods", page, **by_name) if _named(pod, prefix)]
    except AuthFailed as refused:
        if refused.code in {"401", "Unauthorized"}:
            raise
        return Listing(incomplete=(Unread(scope=namespace, reason=refused.message),))
    except ProviderError as failure:
        return Listing(incomplete=(Unread(scope=namespace, reason=failure.message),))
    strangers = {_name(pod): why for pod in pods if (why := why_not_ours(pod, _name(pod)))}
    ours = [pod for pod in pods if _name(pod) not in strangers]
    instances = [instance_of(pod) for pod in ours]
    left = [
        Leftover(id=f"{namespace}/secret/{name}", kind="pull secret", name=name, region=namespace)
        for name in map(_name, secrets)
        if _named_so(name, prefix) and name not in {_name(pod) for pod in pods}
    ]
    # A pod that has ended holds no GPU, but is there until somebody deletes it; one that is being deleted needs nobody any more.
    deleted = {_name(pod) for pod in ours if as_dict(pod.get("metadata")).get("deletionTimestamp")}
    ended = [one for one in instances if one.state.is_final and one.name not in deleted]
    left += [Leftover(id=one.id, kind="ended pod", name=one.name, region=one.region) for one in ended]
    return Listing(
        instances=tuple(one for one in instances if not one.state.is_final),
        leftovers=tuple(left),
        unproved=tuple(
            Unproved(id=f"{namespace}/{name}", kind="pod", name=name, region=namespace, reason=why)
            for name, why in strangers.items()
        ),
    )


def instance_of(pod: Json, now: datetime, provider: str, scheduling_timeout_s: float) -> Instance:
    """A pod as instances are. What it says of itself is bounded, and may be wrong."""
    metadata = as_dict(pod.get("metadata"))
    notes = as_dict(metadata.get("annotations"))
    state, reason = state_of(pod, now, scheduling_timeout_s)
    namespace, name = as_text(metadata.get("namespace"), 63), _name(pod)
    return Instance(
        id=f"{namespace}/{name}",
        name=name,
        provider=provider,
        state=state,
        region=as_text(notes.get("prefect-gpu/region"), 100) or namespace,
        zone=as_text(notes.get("prefect-gpu/zone"), 100) or None,
        created_at=instant(metadata.get("creationTimestamp")),
        reason=reason,
        price=_price(notes.get("prefect-gpu/price")),
        spot=notes.get("prefect-gpu/spot") == "true",
        raw={
            "node": as_text(as_dict(pod.get("spec")).get("nodeName"), 253) or None,
            "uid": as_text(metadata.get("uid"), 100),
        },
    )


def gone_with_its_node(instance: Instance, node: str) -> Instance:
    """The same, taken back by the cluster."""
    return instance.model_copy(update={"state": InstanceState.INTERRUPTED, "reason": f"its node {node} is gone"})


def _price(written: Any) -> float:
    try:
        price = float(as_text(written, 40) or 0)
    except ValueError:
        return 0.0
    return price if 0 <= price <= 1e6 else 0.0


def _name(found: Json) -> str:
    return as_text(as_dict(found.get("metadata")).get("name"), 253)


def _named(pod: Json, prefix: str) -> bool:
    return _named_so(_name(pod), prefix)


def _named_so(name: str, prefix: str) -> bool:
    return name.startswith(prefix) and Lease.parse(name) is not None
