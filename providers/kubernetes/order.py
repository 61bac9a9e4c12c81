"""One order sent to the API server, and whose a pod is that stands under our name.

| the API server answers | what follows |
|---|---|
| 201 | the pod |
| 409 already exists | the pod, if it is ours; else InvalidRequest |
| any definite refusal | the pod of an earlier, same order whose answer was lost, if it stands; else the refusal |
| 403, limits are wanted | not carried out: the order again, its limits equal to its requests; then as above |
| 5xx, no answer | Unconfirmed |
"""

from __future__ import annotations

import contextlib
from typing import cast

from prefect_gpu.blocks.kubernetes import KubernetesCredentials
from prefect_gpu.providers.core.errors import (
    InvalidRequest,
    NotFound,
    ProviderError,
    Transient,
    Unconfirmed,
)
from prefect_gpu.providers.core.lease import Lease
from prefect_gpu.providers.core.models import LaunchSpec, Offer
from prefect_gpu.providers.core.toolkit.http import JsonApi
from prefect_gpu.providers.kubernetes.errors import Exists, wanted_limits
from prefect_gpu.providers.kubernetes.objects import Json, as_dict, as_list, as_text
from prefect_gpu.providers.kubernetes.options import KubernetesOptions, merged
from prefect_gpu.providers.kubernetes.pod import pod, pull_secret
from prefect_gpu.providers.kubernetes.pod_state import CONTAINER


class Order:
    """One pod ordered in the account's namespace."""

    def __init__(self, api: JsonApi, block: KubernetesCredentials, offer: Offer, spec: LaunchSpec) -> None:
        self._api = api
        self._block = block
        self._offer = offer
        self._spec = spec
        self._options: KubernetesOptions = merged(block, spec.options)
        root = f"/api/v1/namespaces/{block.namespace}"
        self._pods = f"{root}/pods"
        self._path = f"{root}/pods/{spec.name}"
        self._secrets = f"{root}/secrets"

    def send(self) -> Json:
        """The pod. Raises what settles the order, or Unconfirmed."""
        try:
            self._make_pull_secret()
            made = self._send_pod(frozenset())
        except Exists:
            made = self._standing()
        except (Unconfirmed, Transient):
            raise
        except ProviderError as refused:
            made = self._in_spite_of(refused)
        self._tie_pull_secret(made)
        return made

    def _send_pod(self, limits_of: frozenset[str]) -> Json:
        name = self._spec.name
        body = pod(self._offer, self._spec, self._options, self._block, limits_of)
        try:
            return as_dict(self._api.order(self._pods, body, id_at="metadata.uid", what=f"create the pod {name}"))
        except NotFound as absent:
            words = f"{absent.message}: create the namespace or name another one in the account's block"
            raise InvalidRequest(words, code=absent.code) from None
        except InvalidRequest as refused:
            wanted = wanted_limits(refused.message)
            if not wanted or limits_of:
                raise
            if "ephemeral-storage" in wanted and not self._spec.disk_gb:
                words = f"{refused.message}: say with the requirement disk_gb how much disk the job needs"
                raise InvalidRequest(words, code=refused.code) from None
            return self._send_pod(wanted)

    def _make_pull_secret(self) -> None:
        """The Secret of the image's registry, there before the pod so that the first pull finds it."""
        if self._spec.registry is None:
            return
        body = pull_secret(self._spec.name, self._spec.registry, self._spec)
        with contextlib.suppress(Exists):
            self._api.order(self._secrets, body, id_at="metadata.uid", what=f"create the Secret {self._spec.name}")

    def _tie_pull_secret(self, made: Json) -> None:
        """From now on it goes with the pod, whoever deletes that."""
        if self._spec.registry is None:
            return
        name = self._spec.name
        owner = {"apiVersion": "v1", "kind": "Pod", "name": name, "uid": as_dict(made.get("metadata")).get("uid")}
        # The pod stands: no error may say otherwise. A Secret that is not tied to it is deleted by name, or left over.
        with contextlib.suppress(ProviderError):
            self._api.patch(
                f"{self._secrets}/{name}",
                {"metadata": {"ownerReferences": [owner]}},
                what=f"tie the Secret {name} to its pod",
                content_type="application/merge-patch+json",
            )

    def _standing(self) -> Json:
        """The pod that stood there already. It is what an earlier, same order made, or somebody else's."""
        name = self._spec.name
        try:
            found = as_dict(self._api.get(self._path, what=f"read the pod {name}"))
        except NotFound as gone:
            raise Unconfirmed(f"the pod {name} was there and is gone again") from gone
        except Transient as trouble:
            raise Unconfirmed(f"the pod {name} is there and cannot be read: {trouble.message}") from trouble
        if why := why_not_ours(found, name):
            raise InvalidRequest(f"{why} in the namespace {self._block.namespace}: delete it")
        return found

    def _in_spite_of(self, refused: ProviderError) -> Json:
        """The pod of an earlier, same order whose answer was lost; if there is none, `refused` is raised.

        What is admitted is asked before what stands: a quota that counts our own pod refuses the order that made it.
        """
        name = self._spec.name
        try:
            found = as_dict(self._api.get(self._path, what=f"read the pod {name}"))
        except NotFound:
            if self._spec.registry is not None:
                with contextlib.suppress(ProviderError):  # then it is left over
                    self._api.delete(f"{self._secrets}/{name}", what=f"remove the Secret {name}")
            raise refused from None
        except Transient as trouble:
            words = f"{refused.message}; whether it stands all the same is not known: {trouble.message}"
            raise Unconfirmed(words, code=refused.code) from trouble
        except ProviderError:
            raise refused from None
        if why_not_ours(found, name):
            raise refused
        return found


def why_not_ours(found: Json, name: str) -> str | None:
    """Why a pod under a name of ours is not of our making, or None where it is.

    Anybody who may patch pods can write our labels on one, or take them off. Name and command were given with the order for good.
    """
    metadata = as_dict(found.get("metadata"))
    if as_text(metadata.get("name")) != name or Lease.parse(name) is None:
        return f"{name} is not a name that this project gives"
    containers = as_list(as_dict(found.get("spec")).get("containers"))
    ours = next((one for one in containers if one.get("name") == CONTAINER), Json())
    words = ours.get("command")
    told = cast("list[object]", words) if isinstance(words, list) else []
    if told[:2] != ["sh", "-c"] or told[3:4] != ["sh"] or told[5:] != [name]:
        return f"a pod {name} that is not ours stands"
    return None
