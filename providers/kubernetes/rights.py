"""What the credentials must be allowed to do: each call that the driver makes, as docs/kubernetes-rbac.yaml grants it."""

from __future__ import annotations

from typing import NamedTuple

from prefect_gpu.providers.core.toolkit.http import JsonApi
from prefect_gpu.providers.kubernetes.objects import as_dict


class Right(NamedTuple):
    """A verb on a kind of object, as RBAC names them."""

    verb: str
    resource: str  # pods, or pods/exec
    namespace: str = ""
    name: str = ""

    def __str__(self) -> str:
        name = f" {self.name}" if self.name else ""
        return f"{self.verb} {self.resource}{name}" + (f" in {self.namespace}" if self.namespace else "")


def needed(namespace: str) -> list[Right]:
    """All that the driver does in a cluster."""
    return [
        Right("list", "nodes"),
        Right("get", "nodes"),
        Right("get", "namespaces", name="kube-system"),
        Right("get", "namespaces", name=namespace),
        *(Right(verb, "pods", namespace) for verb in ("create", "get", "list", "delete")),
        *(Right(verb, "pods/exec", namespace) for verb in ("get", "create")),
        *(Right(verb, "secrets", namespace) for verb in ("create", "list", "patch", "delete")),
        Right("list", "events", namespace),
    ]


def missing(api: JsonApi, namespace: str) -> list[Right]:
    """Those that the credentials lack, by the cluster's own word."""
    return [right for right in needed(namespace) if not _is_allowed(api, right)]


def _is_allowed(api: JsonApi, right: Right) -> bool:
    resource, _, sub = right.resource.partition("/")
    # A namespace is asked about in itself too: that is how RBAC looks at it.
    where = right.name if right.resource == "namespaces" else right.namespace
    attributes = {"verb": right.verb, "resource": resource, "subresource": sub, "namespace": where, "name": right.name}
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": {key: value for key, value in attributes.items() if value}},
    }
    path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
    answer = as_dict(api.post(path, review, what=f"ask whether we may {right.verb} {right.resource}"))
    return as_dict(answer.get("status")).get("allowed") is True
