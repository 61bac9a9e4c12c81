"""What may be asked of Kubernetes beyond the contract: by the account's block for all pods, by `options` for one run."""

from __future__ import annotations

from typing import Any, Final, Literal

from pydantic import Field, ValidationError, field_validator

from prefect_gpu.blocks.kubernetes import KubernetesCredentials, KubernetesMount, KubernetesToleration
from prefect_gpu.providers.core.errors import InvalidRequest
from prefect_gpu.providers.core.models import Model
from prefect_gpu.providers.core.toolkit import options

OURS: Final = "prefect-gpu/"  # what our own labels and annotations begin with
_ONE_BY_ONE: Final = (
    "limits",
    "cpu_limit",
    "memory_limit_gb",
    "shared_memory_gb",
    "security",
    "run_as_user",
    "read_only_root",
    "priority_class",
    "runtime_class",
)


class KubernetesOptions(Model):
    """`LaunchSpec.options`. What is not set is as the account's block says; lists and maps come on top of the block's."""

    mounts: tuple[KubernetesMount, ...] = ()
    tolerations: tuple[KubernetesToleration, ...] = ()
    node_selector: dict[str, str] = Field(default_factory=dict)
    labels: dict[str, str] = Field(default_factory=dict)
    annotations: dict[str, str] = Field(default_factory=dict)
    limits: Literal["as needed", "as requests"] | None = None
    cpu_limit: float | None = Field(default=None, gt=0, allow_inf_nan=False)  # in cores
    memory_limit_gb: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    shared_memory_gb: float | None = Field(default=None, gt=0, allow_inf_nan=False)  # size of /dev/shm
    security: Literal["image's own", "restricted"] | None = None
    run_as_user: int | None = Field(default=None, ge=0)
    read_only_root: bool | None = None
    priority_class: str | None = None
    runtime_class: str | None = None

    @field_validator("labels", "annotations")
    @classmethod
    def _are_not_ours(cls, named: dict[str, str]) -> dict[str, str]:
        if taken := [key for key in named if key.startswith(OURS) or key == "app.kubernetes.io/managed-by"]:
            raise ValueError(f"{', '.join(taken)}: these names are this project's own")
        return named


def merged(block: KubernetesCredentials, asked: dict[str, Any]) -> KubernetesOptions:
    """What the block and a run ask for together. InvalidRequest, naming each, where one is wrong."""
    ours = options.read(KubernetesOptions, "kubernetes", asked)
    one_by_one = {
        name: getattr(block, name) if getattr(ours, name) is None else getattr(ours, name) for name in _ONE_BY_ONE
    }
    try:
        return KubernetesOptions(
            mounts=(*block.mounts, *ours.mounts),
            tolerations=(*block.tolerations, *ours.tolerations),
            node_selector={**block.node_selector, **ours.node_selector},
            labels={**block.labels, **ours.labels},
            annotations={**block.annotations, **ours.annotations},
            **one_by_one,
        )
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_input=False))
        raise InvalidRequest(f"the account's block asks for what Kubernetes does not accept: {wrong}") from None
