"""What may be asked for: a job, and what its machine must have."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Final, Literal

from pydantic import Field
from pydantic.json_schema import SkipJsonSchema

from prefect_gpu.providers.core.models import Model, Trust

MAX_WORD_BYTES: Final = 128 * 1024 - 1  # Linux's MAX_ARG_STRLEN, of one word of a command or one variable
MAX_WORDS_BYTES: Final = (
    1024 * 1024
)  # of all of them together: Linux takes 2 MB, and a machine has variables of its own


def words_problem(command: str | tuple[str, ...], variables: Mapping[str, str]) -> str | None:
    """Why no machine starts this command with these environment variables, in a sentence; None where one does."""
    words = (command,) if isinstance(command, str) else command
    total = sum(len(word.encode()) + 1 for word in words)
    total += sum(len(name) + len(value.encode()) + 2 for name, value in variables.items())
    if total <= MAX_WORDS_BYTES:
        return None
    return (
        f"the command and its environment variables are {total / 2**20:.1f} MB together, and Linux starts no program with more than "
        f"2 MB: keep them below {MAX_WORDS_BYTES // 2**20} MB, and upload a file for the rest"
    )


class Spot(StrEnum):
    """Whether the instance may be interrupted by its provider."""

    ON_DEMAND = "on-demand"
    SPOT = "spot"
    EITHER = "either"


class GpuRequest(Model):
    """One alternative of what `gpu=` asks for: any of `names` (empty: any GPU), so many of them, with so much memory each.

    With `instance_type` it is that type, whatever its GPUs.
    """

    names: tuple[str, ...] = ()
    count_min: int = 1
    count_max: int | None = None  # None: no upper bound
    memory_min_gb: float | None = None  # per GPU
    memory_max_gb: float | None = None
    total_memory_min_gb: float | None = None  # of all GPUs of the instance together
    total_memory_max_gb: float | None = None
    instance_type: str = ""
    text: str = ""  # what the user wrote, for messages


class Requirements(Model):
    """What the job needs of its instance. A bound that is not set does not restrict."""

    # `provision` has parameters of their own for these two, so its form does not show them a second time.
    gpu: SkipJsonSchema[tuple[GpuRequest, ...]] = ()  # alternatives in order; empty: no GPU needed
    max_price: SkipJsonSchema[float | None] = None  # USD per hour, for the whole instance
    # Asked by the library where nothing fits: offers need not fit, and of one machine's GPUs the most come first, not the fewest.
    nearest: SkipJsonSchema[bool] = Field(
        default=False,
        title="The nearest",
        description="For the task library: what there is of these GPUs, where nothing fits. A run refuses it.",
    )

    spot: Spot = Field(
        default=Spot.ON_DEMAND,
        title="Spot or on-demand",
        description="Spot is cheaper and may be interrupted by the provider.",
    )
    cpu: int | None = Field(default=None, ge=1, title="CPU cores, at least")
    memory_gb: float | None = Field(default=None, gt=0, title="Memory in GB, at least")
    disk_gb: float | None = Field(default=None, gt=0, title="Disk in GB, at least")
    arch: Literal["x86_64", "arm64"] | None = Field(
        default=None, title="CPU architecture", description="Empty: either."
    )
    gpu_vendor: Literal["nvidia", "amd", "google", "intel", "tenstorrent"] | None = Field(
        default=None, title="GPU vendor", description="Empty: any."
    )
    min_cuda: float | None = Field(default=None, gt=0, title="CUDA version, at least", description="For example 12.4.")
    min_compute_capability: float | None = Field(
        default=None, gt=0, title="CUDA compute capability, at least", description="For example 8.0."
    )
    regions: tuple[str, ...] = Field(
        default=(), title="Regions", description="Only these, as the provider names them. Empty: all."
    )
    exclude_regions: tuple[str, ...] = Field(default=(), title="Regions to avoid")
    zones: tuple[str, ...] = Field(default=(), title="Zones", description="Only these. Empty: all.")
    exclude_zones: tuple[str, ...] = Field(default=(), title="Zones to avoid")
    countries: tuple[str, ...] = Field(
        default=(), title="Countries", description="Only these, as two letters: US, DE. Empty: all."
    )
    exclude_countries: tuple[str, ...] = Field(default=(), title="Countries to avoid")
    network: Literal["public", "private"] = Field(
        default="public",
        title="Network",
        description="Private: no public address; reached by the jump host of the account's block.",
    )
    trust: Trust = Field(
        default="any",
        title="Trust in the host",
        description="Of marketplaces, where a host is a stranger who can read all that runs there. Verified: the marketplace has checked it. Secure: it stands in a data centre.",
    )

    @property
    def wants_gpu(self) -> bool:
        return bool(self.gpu)

    def to_nearest(self) -> Requirements:
        """The same GPUs in any number, size and place: what there is, where nothing fits. A disk is sized by what is asked for."""
        needs_one = self.gpu_vendor or self.min_cuda or self.min_compute_capability
        named = tuple(GpuRequest(names=one.names, instance_type=one.instance_type, text=one.text) for one in self.gpu)
        gpu = named or ((GpuRequest(),) if needs_one else ())
        return Requirements(gpu=gpu, spot=Spot.EITHER, disk_gb=self.disk_gb, network=self.network, nearest=True)


class Job(Model):
    """What runs on the instance beside its command: environment, secrets, files, code, image, time."""

    env: dict[str, str] = Field(
        default_factory=dict, title="Environment", description="Stored in clear: secrets go below."
    )
    secrets: dict[str, str] = Field(
        default_factory=dict,
        title="Secrets",
        description="Environment variable to the name of a saved Secret block.",
    )
    files: tuple[str, ...] = Field(
        default=(),
        title="Files to upload",
        description="Files and folders in the worker's working directory; they arrive in the job's directory.",
    )
    outputs: tuple[str, ...] = Field(
        default=(),
        title="Files to bring back",
        description="Paths or patterns inside the job's directory, for example results/ or *.pt.",
    )
    checkpoint: tuple[str, ...] = Field(
        default=(),
        title="Files to keep",
        description="Paths or patterns inside the job's directory, for example checkpoints/: brought while the job runs, and given to it where it begins anew.",
    )
    checkpoint_every_s: int = Field(
        default=300,
        ge=1,
        title="Keep every",
        description="Seconds; also when the provider says that it takes the machine back.",
    )
    notice_signal: Literal["", "TERM", "INT", "HUP", "USR1", "USR2"] = Field(
        default="",
        title="Signal at the notice",
        description="Sent to those of the job's processes that handle it, when the provider says that it takes the machine back. Empty: none.",
    )
    code: str | None = Field(
        default=None,
        title="Code from git",
        description="A git URL, with @branch, @tag or @commit; cloned into the job's directory.",
    )
    image: str | None = Field(
        default=None, title="Container image", description="Empty: the job runs on the machine itself."
    )
    registry: str | None = Field(
        default=None, title="Registry credentials", description="Name of a saved gpu-registry block."
    )
    working_directory: str | None = Field(
        default=None, title="Working directory", description="Inside the job's directory."
    )
    timeout_s: int = Field(
        default=24 * 3600, gt=0, title="Timeout in seconds", description="The job is ended after it."
    )
