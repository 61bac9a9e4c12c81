"""What a driver must do: one provider, plain Python, synchronous, stateless, no Prefect, no loops that wait.

Waiting, retrying, naming, recording and cleaning up are the library's (providers/core/renting/library.py) and the flows'. A driver may
be called from many threads. It takes its credentials block and, for tests, an endpoint or transport; it reads no environment
and no files but what its block names.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from datetime import datetime
from typing import TYPE_CHECKING, ClassVar, Final, Generic, Literal, Protocol, TypeVar

from pydantic import BaseModel, Field

from prefect_gpu.providers.core.errors import Unsupported
from prefect_gpu.providers.core.models import Instance, InstanceState, LaunchSpec, Listing, Model, Offer
from prefect_gpu.providers.core.requests import Requirements

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

C = TypeVar("C")

CreateScope = Literal["account", "region", "zone", "namespace"]

# On a machine: its provider's notice that it is taken back, as soon as there is one. Only root writes there.
NOTICE_FILE: Final = "/run/prefect-gpu/interruption"


class Billing(Model):
    """How a provider counts money; the default is the dearest reading: from the order, by the started hour."""

    starts: Literal["order", "boot", "running"] = "order"  # boot: booted and checked; running: its state says so
    step_s: int = 3600
    minimum_s: int = 3600
    hourly_extras: float = 0.0  # USD per hour beside the offer's price: disk, address
    traffic: bool = False  # bytes cost too, at each host's price: `traffic_cost` tells how much

    def cost(self, price: float, seconds: float) -> float:
        """USD for a stay of so many seconds at so many USD per hour, rounded up as the provider does."""
        if seconds <= 0:
            return 0.0
        billed = max(float(self.minimum_s), -(-seconds // self.step_s) * self.step_s)
        return (price + self.hourly_extras) * billed / 3600


class RateLimit(Model):
    """So many calls in so many seconds, counted per account over all workers."""

    calls: int
    per_s: float


class Capabilities(Model):
    """Facts about a provider that the library acts on. The default is the least a provider can do."""

    create_repeatable: CreateScope | None = None  # where the name is an idempotency key; None: nowhere
    listing_lag_s: float = 300  # a listing shows what happened this long ago
    not_found_proves_absence: bool = False  # for an id seen before and older than the lag
    self_ends: Literal["server", "guest", "cluster", "scoped_key", "none"] = "none"
    spot: bool = False
    images: Literal["none", "docker", "native"] = "none"  # docker: the library runs it in Docker there
    host_key: Literal["placed", "by_logs", "first_use", "channel"] = "placed"  # channel: no SSH at all
    needs_catalog: bool = True  # offers come from the price catalog
    runs_on_worker: bool = (
        False  # jobs run on the worker itself, as its user: taken only when asked for, or when it is all there is
    )
    boot_deadline_s: int = 600
    sold_out_s: float = 300  # so long what it refused as sold out is passed over by all runs of a server
    rate_limits: dict[str, RateLimit] = Field(default_factory=dict)  # by method, "*" for all together
    billing: Billing = Billing()


class NoOptions(Model):
    """What an order may ask for beyond the contract, where that is nothing."""


class Channel(Protocol):
    """One running command on a machine: bytes in, bytes out, an exit status. One thread may read while another writes."""

    def sendall(self, data: bytes) -> None: ...

    def shutdown_write(self) -> None:
        """End of the command's stdin."""
        ...

    def recv(self, size: int) -> bytes:
        """Up to `size` bytes of stdout; b"" at its end, which counts only together with an exit status."""
        ...

    def exit_status(self, timeout_s: float) -> int:
        """The command's exit status; LinkLost if the connection broke or none came in time."""
        ...

    def error_text(self) -> str:
        """What the command wrote to stderr, at most the first 64 KB."""
        ...

    def close(self) -> None: ...


class Connection(Protocol):
    """A way onto one machine. `open` may be called from several threads."""

    def open(self, command: str) -> Channel:
        """Start a command by the machine's shell."""
        ...

    def is_alive(self) -> bool: ...

    def close(self) -> None: ...


class Provider(ABC, Generic[C]):
    """A place that rents machines. `C` is its credentials block."""

    name: ClassVar[str]
    capabilities: ClassVar[Capabilities]
    options_model: ClassVar[type[BaseModel]] = NoOptions  # of LaunchSpec.options, read by toolkit.options

    def __init__(self, credentials: C) -> None:
        self.credentials = credentials

    @abstractmethod
    def account_id(self) -> str:
        """Whose machines these are: AWS account, GCP project, kube-system UID. Stored with an instance and compared first."""

    @abstractmethod
    def fetch_offers(self, requirements: Requirements) -> list[Offer]:
        """What fits and can be bought now, in any order; empty if nothing, never NoCapacity.

        With `requirements.nearest` and no price list: what there is of these GPUs, of one machine's the most; in as few calls as will do.
        """

    @abstractmethod
    def create_instance(self, offer: Offer, spec: LaunchSpec) -> Instance:
        """ONE order, in one scope (`offer.scope`), under `spec.name`; returns at once.

        Raises any ProviderError; Unconfirmed when the order was sent and no definite answer came. Never repeats it.
        """

    @abstractmethod
    def get_instance(self, instance_id: str) -> Instance:
        """The instance as its provider sees it now. NotFound if the provider does not know it (any more).

        Its name is the one that is proved by what only the order could have set; empty where it is not ours.
        """

    @abstractmethod
    def list_instances(self, prefix: str) -> Listing:
        """All whose name begins with prefix and that may cost money: all scopes, all pages, leftovers too.

        Ours is proved, not believed: what bears such a name and is not shown to be ours by what only the order could have set
        stands in `unproved` alone.
        """

    @abstractmethod
    def terminate_instance(self, instance_id: str) -> None:
        """Give back an instance, or remove a leftover by its id. Returns at once; idempotent; already gone is success.

        InvalidRequest for the id of something that is seen not to be ours: it is left alone.
        """

    # --- what some providers have beside that; the default is what the others do -------------------------------------

    def terminate_instances(self, instance_ids: Sequence[str]) -> None:
        """Many at once, where the vendor takes many; else one by one."""
        for instance_id in instance_ids:
            self.terminate_instance(instance_id)

    def provider_time(self) -> datetime | None:
        """Now by the provider's own clock, as the `Date` of its last answer told it; None where it tells none.

        Asked after a listing, before what this process's clock alone condemns is ended.
        """
        return None

    def collect_prices(self) -> Iterable[Offer] | None:
        """All that this provider sells, for the catalog, where its own price list says more than gpuhunt's; None: gpuhunt's is taken.

        Called by the scheduled refresh, with no instance in sight; Transient and the like keep the last good snapshot.
        """
        return None

    def missing_rights(self) -> list[str]:
        """What these credentials may not do and should, in the vendor's terms; by the cheapest harmless calls.

        Raises AuthFailed when the credentials are no good at all.
        """
        self.account_id()
        return []

    def first_contact(self) -> tuple[C, list[str]]:
        """The credentials with what can only be learnt by asking (the host keys of own machines), and a line for people about each.

        Called once when credentials are saved, so that later runs hold to what was seen then.
        """
        return self.credentials, []

    def read_log(self, instance: Instance) -> str:
        """The machine's own console or container log, where `host_key` is by_logs."""
        raise Unsupported(f"{self.name} has no log to read of {instance.name}")

    def open_channel(self, instance: Instance) -> Connection:
        """A way onto the machine without SSH, where `host_key` is channel."""
        raise Unsupported(f"{self.name} is reached by SSH")

    def check(self, instance: Instance, connection: Connection) -> str | None:
        """A problem of this machine that only this provider can see, or None. The common checks are the library's."""
        return None

    def settle_in(self, instance: Instance) -> None:
        """After the first verified connect: remove what held a secret on its way there, such as a start-up script with the host key."""

    def traffic_cost(self, instance_id: str, since: datetime) -> float | None:
        """USD for bytes to and from an instance that was ordered at `since`, as its provider has booked them; None: not told yet."""
        return None

    def interruption_reason(self, instance: Instance) -> str | None:
        """Why the provider took it back, in its words, or None if it did not (as far as it tells)."""
        return instance.reason if instance.state is InstanceState.INTERRUPTED else None
