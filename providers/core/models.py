"""The nouns that flows, drivers and tests exchange; they import nothing else of ours.

All models are frozen and refuse unknown fields. Times are aware UTC datetimes, prices are USD per hour, sizes are GB (10^9
bytes is not told from 2^30 here: offers say what the provider says).
"""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr
from pydantic.json_schema import SkipJsonSchema


def utc_now() -> datetime:
    """Now, aware and in UTC: the only clock of this project that is a calendar."""
    return datetime.now(UTC)


MAX_WORD_BYTES: Final = 128 * 1024 - 1  # Linux's MAX_ARG_STRLEN, of one word of a command or one variable


class Model(BaseModel):
    """A frozen model that refuses fields it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Spot(StrEnum):
    """Whether the instance may be interrupted by its provider."""

    ON_DEMAND = "on-demand"
    SPOT = "spot"
    EITHER = "either"


class GpuRequest(Model):
    """One alternative of what `gpu=` asks for: any of `names` (empty: any GPU), so many of them, with so much memory each."""

    names: tuple[str, ...] = ()
    count_min: int = 1
    count_max: int | None = None  # None: no upper bound
    memory_min_gb: float | None = None  # per GPU
    memory_max_gb: float | None = None
    total_memory_min_gb: float | None = None  # of all GPUs of the instance together
    total_memory_max_gb: float | None = None
    text: str = ""  # what the user wrote, for messages


class Requirements(Model):
    """What the job needs of its instance. A bound that is not set does not restrict."""

    # `provision` has parameters of their own for these two, so its form does not show them a second time.
    gpu: SkipJsonSchema[tuple[GpuRequest, ...]] = ()  # alternatives in order; empty: no GPU needed
    max_price: SkipJsonSchema[float | None] = None  # USD per hour, for the whole instance

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

    @property
    def wants_gpu(self) -> bool:
        return bool(self.gpu)


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


class Availability(StrEnum):
    """What the provider says about an offer at the moment."""

    AVAILABLE = "available"
    UNKNOWN = "unknown"  # a price list knows prices, not stock
    UNAVAILABLE = "unavailable"


class Offer(Model):
    """An instance type in a region at a price, buyable now as far as its provider tells."""

    provider: str
    instance_type: str
    region: str
    zone: str | None = None
    country: str | None = None  # ISO 3166-1 alpha-2
    price: float = Field(ge=0, allow_inf_nan=False)  # USD per hour, whole instance
    spot: bool = False
    cpu: float | None = None
    memory_gb: float | None = None
    disk_gb: float | None = None
    arch: str | None = None
    gpu_name: str | None = None
    gpu_count: int = 0
    gpu_memory_gb: float | None = None  # per GPU
    gpu_vendor: str | None = None
    availability: Availability = Availability.UNKNOWN
    unavailable_because: str | None = None  # in the user's words: "quota is 0 vCPU in us-east-1"
    boot_deadline_s: int | None = None  # where it differs from the provider's
    priced_at: datetime | None = None  # when the price was collected; None: it is live
    raw: dict[str, Any] = Field(default_factory=dict)  # vendor leftovers that the driver needs at create

    @property
    def scope(self) -> str:
        """Where a name is a key for one order: the zone where the provider has zones, else the region."""
        return self.zone or self.region

    @property
    def gpu(self) -> str:
        """`H100:8`, or `none`: as `gpu=` takes it."""
        return f"{self.gpu_name}:{self.gpu_count}" if self.gpu_name and self.gpu_count else "none"


class KeyPair(Model):
    """An ed25519 key pair in OpenSSH's formats."""

    private: SecretStr  # openssh-key-v1, PEM
    public: str  # "ssh-ed25519 AAAA..."


class RegistryAuth(Model):
    """Credentials for the registry that a job's image comes from."""

    server: str
    username: str
    password: SecretStr


class LaunchSpec(Model):
    """What one order carries beside its offer. The same spec twice is byte for byte the same order."""

    name: str  # the lease's name, 40 characters
    deadline: datetime  # the lease's end; where `self_ends` allows the machine ends itself then
    client_public_key: str  # may log in
    host_key: KeyPair | None = None  # placed on the machine before it boots; None where it makes its own, or has none
    image: str | None = None  # only where capabilities.images is "native"
    registry: RegistryAuth | None = None
    cpu: int | None = None  # container providers size the instance by these three
    memory_gb: float | None = None
    disk_gb: float | None = None
    network: Literal["public", "private"] = "public"
    max_price: float | None = None  # USD per hour: what a price that moves, as spot's does, may rise to
    tags: dict[str, str] = Field(default_factory=dict)  # for people; the name is what counts
    options: dict[str, Any] = Field(default_factory=dict)  # provider-specific, checked by the driver's own model


class SshEndpoint(Model):
    """Where an instance answers SSH, and the jump host on the way, if any."""

    host: str
    port: int = 22
    user: str = "root"
    host_key: str | None = None  # where the provider knows it by other means than the lease's derived key
    jump: SshJump | None = None


class SshJump(Model):
    """A host in between, with the credentials its block holds (the instance's own keys do not open it)."""

    host: str
    port: int = 22
    user: str
    private_key: SecretStr
    host_key: str | None = None  # "ssh-ed25519 AAAA..."; None: pinned on first use, and said so


class InstanceState(StrEnum):
    """A status never seen before is `unknown`, never `running`."""

    PROVISIONING = "provisioning"
    RUNNING = "running"  # and reachable: endpoint or channel is there
    TERMINATING = "terminating"
    TERMINATED = "terminated"
    FAILED = "failed"  # accepted, will never run
    INTERRUPTED = "interrupted"  # taken back by the provider, by its own word or by the rule for spot
    UNKNOWN = "unknown"

    @property
    def is_final(self) -> bool:
        """Seen by id, this state proves absence. `failed` and `interrupted` may still cost money."""
        return self is InstanceState.TERMINATED


class Instance(Model):
    """A machine that may cost money."""

    id: str
    name: str
    provider: str
    state: InstanceState
    region: str = ""
    zone: str | None = None
    created_at: datetime | None = None
    ssh: SshEndpoint | None = None
    reason: str = ""  # the provider's own words for the state, where they matter
    price: float | None = None  # USD per hour, where the provider says it
    spot: bool = False
    env: dict[str, str] = Field(default_factory=dict)  # what jobs there must see: the GPUs of a slice
    raw: dict[str, Any] = Field(default_factory=dict)


class Leftover(Model):
    """What an instance brought along and left: a disk, an address, a key. `terminate_instance(id)` removes it too."""

    id: str
    kind: str  # "volume", "address", "script" ...
    name: str  # the lease's name
    region: str = ""


class Unread(Model):
    """A scope that a listing could not read, and why. Unread is not empty."""

    scope: str
    reason: str


class Listing(Model):
    """All that may cost money under a prefix, and what could not be read."""

    instances: tuple[Instance, ...] = ()
    leftovers: tuple[Leftover, ...] = ()
    incomplete: tuple[Unread, ...] = ()

    @property
    def is_complete(self) -> bool:
        return not self.incomplete

    def named(self, name: str) -> tuple[Instance, ...]:
        return tuple(instance for instance in self.instances if instance.name == name)


class JobSpec(Model):
    """A job as a machine gets it: secrets resolved, paths checked."""

    id: str  # instance name and try: started at most once each
    command: str | tuple[str, ...]  # a string goes to the shell, a tuple is an argv
    env: dict[str, str] = Field(default_factory=dict)
    secrets: dict[str, SecretStr] = Field(default_factory=dict)  # travel by stdin, never in an argv
    image: str | None = None  # run it in Docker there
    registry: RegistryAuth | None = None
    working_directory: str | None = None  # inside the job's directory
    timeout_s: int = 24 * 3600
    deadline: datetime | None = (
        None  # the lease's end: where nothing else ends the machine, the supervisor ends the job
    )


class MachineReport(Model):
    """What the machine check found; `problem` is None when the machine is what the offer promised."""

    gpus: tuple[str, ...] = ()  # one line a GPU: "NVIDIA H100 80GB HBM3, 81559 MiB"
    driver: str | None = None
    disk_free_gb: float | None = None
    problem: str | None = None


class JobResult(Model):
    """How the job ended. An exit code other than 0 is a result, not an exception."""

    exit_code: int | None  # None: it never ended by itself
    outcome: Literal["exited", "timed out", "cancelled", "lost"] = "exited"
    trouble: str = ""  # what went wrong beside the job itself: why it was lost, files that could not be brought back
    started_at: datetime
    ended_at: datetime
    log_bytes: int = 0
    log_cut_at: int | None = None  # bytes that went to Prefect, where the cap cut the rest; the file has all
    outputs: tuple[str, ...] = ()  # the files that were brought back
    stored_under: str | None = None  # where in result storage the whole log (job.log) is, and they (in outputs/)
    machine: MachineReport | None = None

    @property
    def duration_s(self) -> float:
        return (self.ended_at - self.started_at).total_seconds()
