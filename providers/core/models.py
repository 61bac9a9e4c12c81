"""The nouns that flows, drivers and tests exchange; they import nothing else of ours.

All models are frozen and refuse unknown fields. Times are aware UTC datetimes, prices are USD per hour, sizes are GB (10^9
bytes is not told from 2^30 here: offers say what the provider says).
"""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, SecretStr


def utc_now() -> datetime:
    """Now, aware and in UTC: the only clock of this project that is a calendar."""
    return datetime.now(UTC)


class Model(BaseModel):
    """A frozen model that refuses fields it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


# What a marketplace vouches for: nothing, a host that it has checked, one in a data centre of its own or of a partner's.
Trust: TypeAlias = Literal["any", "verified", "secure"]
TRUST: Final[tuple[Trust, ...]] = ("any", "verified", "secure")  # each is more than the one before


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
    is_unseen: bool = (
        False  # it could not be looked at: what is not told of it is not known, and no bound rules that out
    )
    is_alarm: bool = False  # somebody must look at it whatever else serves: another machine answers in its place
    boot_deadline_s: int | None = None  # where it differs from the provider's
    trust: Trust | None = (
        None  # in the host, where it is one of a marketplace's; None: the machine is the provider's own
    )
    host: str | None = None  # which machine of whose, where a marketplace says so
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
    lasts_s: int = 366 * 86400  # from the order to that end: what a machine counts by, for its calendar may be wrong
    boots_s: int = (
        366 * 86400
    )  # so much of it may be over when it has booted: more than that its calendar is not believed
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
    """A host in between. What logs in there is the account's block's (the instance's own keys do not open it); no task returns it."""

    host: str
    port: int = 22
    user: str
    private_key: SecretStr = SecretStr("")
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
    name: str  # the lease's name, as far as it is proved; empty where it is not ours
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


class Unproved(Model):
    """Something that bears one of our names by what anybody may set, a tag for example: reported, never ended."""

    id: str
    kind: str  # "instance", "volume" ...
    name: str  # that it bears
    region: str = ""
    reason: str  # why it is not taken for ours, for people: "its client token is not its name"


class Unread(Model):
    """A scope that a listing could not read, and why. Unread is not empty."""

    scope: str
    reason: str


class Listing(Model):
    """All of ours that may cost money under a prefix, what only looks like ours, and what could not be read."""

    instances: tuple[Instance, ...] = ()
    leftovers: tuple[Leftover, ...] = ()
    unproved: tuple[Unproved, ...] = ()
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
    notice_signal: str = ""  # what its processes are told by that the machine is taken back: TERM, USR1


class MachineReport(Model):
    """What the machine check found; `problem` is None when the machine is what the offer promised."""

    gpus: tuple[str, ...] = ()  # one line a GPU: "NVIDIA H100 80GB HBM3, 81559 MiB"
    driver: str | None = None
    disk_free_gb: float | None = None
    problem: str | None = None
    is_unfit: bool = False  # the problem is the machine's own, for any job: it is not what it was sold as


class JobResult(Model):
    """How the job ended. An exit code other than 0 is a result, not an exception."""

    exit_code: int | None  # None: it never ended by itself
    outcome: Literal["exited", "timed out", "cancelled", "lost", "over budget"] = "exited"
    is_gone: bool = False  # a job that is lost: its machine was taken back, vanished or was restarted, by its provider's or its own word
    trouble: str = ""  # what went wrong beside the job itself: why it was lost, files that could not be brought back
    started_at: datetime
    ended_at: datetime
    log_bytes: int = 0
    log_unshown: int = 0  # bytes at its end that Prefect's API did not take in time; the file has them
    log_cut_at: int | None = None  # bytes that went to Prefect, where the cap cut the rest; the file has all
    outputs: tuple[str, ...] = ()  # the files that were brought back
    stored_under: str | None = None  # where in result storage the whole log (job.log) is, and they (in outputs/)
    machine: MachineReport | None = None
    tries: int = 1  # on the machine that it ended on
    cost: float | None = None  # USD of the whole run at most, as its providers bill, failed attempts included
    cost_estimate: float | None = None  # USD of the whole run as it will probably be billed

    @property
    def duration_s(self) -> float:
        return (self.ended_at - self.started_at).total_seconds()
