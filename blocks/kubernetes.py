"""The credentials block of Kubernetes: which cluster, where in it pods may stand, and what its GPUs cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, Literal

from kubernetes import client, config  # pyright: ignore[reportMissingTypeStubs] - it has none
from prefect.blocks.abstract import CredentialsBlock
from prefect_kubernetes.credentials import KubernetesClusterConfig  # pyright: ignore[reportMissingTypeStubs] - it has none
from prefect_kubernetes.credentials import (  # pyright: ignore[reportMissingTypeStubs] - it has none
    KubernetesCredentials as PrefectKubernetesCredentials,
)
from pydantic import BaseModel, ConfigDict, Field, model_validator
from typing_extensions import override

from prefect_gpu.blocks.budget import AccountBudget, budget_field
from prefect_gpu.blocks.pages import logo, page

KUBECONFIG: Final = "~/.kube/config"  # looked for where a block names no other


class KubernetesToleration(BaseModel):
    """A taint that pods bear, as Kubernetes writes it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str | None = Field(default=None, title="Key", description="Empty: every taint.")
    operator: Literal["Equal", "Exists"] = Field(default="Exists", title="Operator")
    value: str | None = Field(default=None, title="Value", description="Only with Equal.")
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = Field(
        default=None, title="Effect", description="Empty: every effect."
    )


class KubernetesMount(BaseModel):
    """A ConfigMap, a Secret or a PersistentVolumeClaim of the namespace that stands in the pod's file system."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str = Field(pattern=r"^/", title="Path", description="Where in the pod, for example /data.")
    config_map: str | None = Field(default=None, title="ConfigMap", description="Its name.")
    secret: str | None = Field(default=None, title="Secret", description="Its name.")
    claim: str | None = Field(default=None, title="PersistentVolumeClaim", description="Its name.")
    sub_path: str | None = Field(default=None, title="Only this file or folder of it")
    read_only: bool = Field(default=False, title="Read only", description="ConfigMaps and Secrets always are.")
    is_executable: bool = Field(default=False, title="Files of a ConfigMap or Secret are executable")

    @model_validator(mode="after")
    def _is_one_thing(self) -> KubernetesMount:
        if sum(name is not None for name in (self.config_map, self.secret, self.claim)) != 1:
            raise ValueError("a mount is one of config_map, secret and claim: name exactly one")
        return self


class KubernetesCredentials(CredentialsBlock):
    """A Kubernetes cluster whose nodes run GPU jobs: how to speak to it, and where in it pods may stand.

    With none of the first three fields, a worker inside the cluster uses its pod's service account, any other `~/.kube/config`.

    Example:
        Load a saved cluster and list its nodes:

        ```python
        from prefect_gpu.blocks.kubernetes import KubernetesCredentials

        cluster = KubernetesCredentials.load("BLOCK_NAME")
        cluster.get_client().list_node()
        ```
    """

    _block_type_name = "GPU: Kubernetes"
    _block_type_slug = "gpu-kubernetes"
    _description = "A cluster of yours: each job is a pod with the GPUs that it asks for."
    _logo_url = logo("kubernetes")
    _documentation_url = page("providers/kubernetes/")

    kubernetes: PrefectKubernetesCredentials | None = Field(
        default=None, title="Kubernetes credentials", description="A saved block of prefect-kubernetes."
    )
    cluster_config: KubernetesClusterConfig | None = Field(
        default=None, title="Cluster config", description="A saved block of prefect-kubernetes that holds a kubeconfig."
    )
    kubeconfig: str | None = Field(
        default=None, title="Kubeconfig file", description="Its path on the worker, for example ~/.kube/config."
    )
    context: str | None = Field(
        default=None, title="Context", description="Of the kubeconfig file. Empty: its current context."
    )
    namespace: str = Field(
        default="default",
        pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$",
        title="Namespace",
        description="Where pods are made. One of its own is best: see docs/kubernetes-rbac.yaml.",
    )
    image: str = Field(
        default="docker.io/library/python:3.12",
        title="Image",
        description="For jobs that name none. It needs sh and the usual commands (busybox has them).",
    )
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = Field(
        default=None, title="Pull images", description="Empty: always for :latest, else if not present."
    )
    pull_secret: str | None = Field(
        default=None, title="Pull secret", description="Name of a docker-registry Secret in the namespace."
    )
    price_per_gpu_hour: dict[str, float] = Field(
        default_factory=dict,
        title="Price per GPU-hour",
        description='USD, by GPU, for example {"H100": 2.5}. What is not named costs 0.',
    )
    node_price_per_hour: dict[str, float] = Field(
        default_factory=dict,
        title="Price per node-hour",
        description='USD, by instance type, for example {"p5.48xlarge": 55.0}; a pod pays its share. It goes before the GPU\'s.',
    )
    country: str | None = Field(
        default=None, pattern=r"^[A-Z]{2}$", title="Country", description="Where the cluster stands, for example DE."
    )
    node_selector: dict[str, str] = Field(
        default_factory=dict, title="Node selector", description="Only nodes with these labels."
    )
    tolerations: list[KubernetesToleration] = Field(
        default_factory=list[KubernetesToleration],
        title="Tolerations",
        description="Taints that pods bear. The usual taints of GPU nodes (nvidia.com/gpu, amd.com/gpu) they bear anyway.",
    )
    mounts: list[KubernetesMount] = Field(
        default_factory=list[KubernetesMount],
        title="Mounts",
        description="ConfigMaps, Secrets and volume claims that every pod gets.",
    )
    cpu: float = Field(
        default=1.0, gt=0, title="CPU request", description="In cores, where the job asks for none; it may use more."
    )
    memory_gb: float = Field(
        default=2.0, gt=0, title="Memory request", description="In GB, where the job asks for none; it may use more."
    )
    limits: Literal["as needed", "as requests"] = Field(
        default="as needed",
        title="Limits",
        description="As needed: limits that equal the requests only where a quota or limit range of the namespace wants limits.",
    )
    cpu_limit: float | None = Field(
        default=None, gt=0, title="CPU limit", description="In cores. Empty: what the node has free."
    )
    memory_limit_gb: float | None = Field(
        default=None, gt=0, title="Memory limit", description="In GB. Empty: what the node has free."
    )
    shared_memory_gb: float | None = Field(
        default=None,
        gt=0,
        title="Shared memory",
        description="Size of /dev/shm in GB. Empty: half of the node's memory.",
    )
    security: Literal["image's own", "restricted"] = Field(
        default="image's own",
        title="Security context",
        description="Restricted: what Pod Security's level of that name admits; the image must run as another user than root.",
    )
    run_as_user: int | None = Field(
        default=None, ge=0, title="Run as user", description="Its number, for example 1000. Empty: the image's own."
    )
    read_only_root: bool = Field(
        default=False,
        title="Read-only root file system",
        description="The job then writes to its home, /tmp and /var/tmp only.",
    )
    labels: dict[str, str] = Field(default_factory=dict, title="Labels", description="Every pod gets these too.")
    annotations: dict[str, str] = Field(
        default_factory=dict, title="Annotations", description="Every pod gets these too."
    )
    priority_class: str | None = Field(default=None, title="Priority class", description="Name of a PriorityClass.")
    runtime_class: str | None = Field(
        default=None, title="Runtime class", description="Name of a RuntimeClass, for example nvidia."
    )
    budget: AccountBudget = budget_field()
    scheduling_timeout_s: float = Field(
        default=5.0,
        ge=0,
        title="Wait for a node, in seconds",
        description="How long an unschedulable pod may wait before the next offer is tried. With a cluster autoscaler give it "
        "time, for example 300: from 60 on, nodes that are full count as offers too.",
    )

    @override
    def get_client(self, client_type: str = "CoreV1Api") -> Any:
        """A client of the package `kubernetes`, for flows of your own, for example `BatchV1Api`."""
        return getattr(client, client_type)(client.ApiClient(self.get_configuration()))

    def get_configuration(self) -> Any:
        """A new `kubernetes.client.Configuration`; runs the kubeconfig's credential plugin, if it names one.

        Raises kubernetes.config.ConfigException or OSError where what is named is not there.
        """
        configuration: Any = client.Configuration()
        named: Any = self.cluster_config or (self.kubernetes and self.kubernetes.cluster_config)
        options = {"client_configuration": configuration, "persist_config": False}
        load: Any = config
        if named is not None:
            load.load_kube_config_from_dict(named.config, context=named.context_name, **options)
        elif self.kubeconfig is not None:
            load.load_kube_config(str(Path(self.kubeconfig).expanduser()), context=self.context, **options)
        else:
            try:
                load.load_incluster_config(client_configuration=configuration)
            except config.ConfigException:
                load.load_kube_config(str(Path(KUBECONFIG).expanduser()), context=self.context, **options)
        return configuration

    def contexts(self) -> list[str]:
        """The names of the contexts in the kubeconfig file; none where it cannot be read."""
        load: Any = config
        try:
            found, _ = load.list_kube_config_contexts(str(Path(self.kubeconfig or KUBECONFIG).expanduser()))
        except (config.ConfigException, OSError, ValueError):
            return []
        return [str(one["name"]) for one in found]
