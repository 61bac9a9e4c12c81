"""What a driver must do: one provider, plain Python, synchronous, stateless, no Prefect, no loops that wait.

Waiting, retrying, naming, recording and cleaning up are the library's (providers/core/library.py) and the flows'. A driver may
be called from many threads. It takes its credentials block and, for tests, an endpoint or transport; it reads no environment
and no files but what its block names.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, Generic, Literal, Protocol, TypeVar

from pydantic import Field

from providers.core.errors import Unsupported
from providers.core.models import Instance, InstanceState, LaunchSpec, Listing, Model, Offer, Requirements

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

C = TypeVar("C")

CreateScope = Literal["account", "region", "zone", "namespace"]


class Billing(Model):
    """How a provider counts money; the default is the dearest reading: from the order, by the started hour."""

    starts: Literal["order", "boot", "running"] = "order"
    step_s: int = 3600
    minimum_s: int = 3600
    hourly_extras: float = 0.0  # USD per hour beside the offer's price: disk, address
    egress_per_gb: float = 0.0

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
    boot_deadline_s: int = 600
    rate_limits: dict[str, RateLimit] = Field(default_factory=dict)  # by method, "*" for all together
    billing: Billing = Billing()


class Channel(Protocol):
    """One running command on a machine: bytes in, bytes out, an exit status. Not shared between threads."""

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

    def __init__(self, credentials: C) -> None:
        self.credentials = credentials

    @abstractmethod
    def account_id(self) -> str:
        """Whose machines these are: AWS account, GCP project, kube-system UID. Stored with an instance and compared first."""

    @abstractmethod
    def fetch_offers(self, requirements: Requirements) -> list[Offer]:
        """What fits and can be bought now, in any order; empty if nothing, never NoCapacity."""

    @abstractmethod
    def create_instance(self, offer: Offer, spec: LaunchSpec) -> Instance:
        """ONE order, in one scope (`offer.scope`), under `spec.name`; returns at once.

        Raises any ProviderError; Unconfirmed when the order was sent and no definite answer came. Never repeats it.
        """

    @abstractmethod
    def get_instance(self, instance_id: str) -> Instance:
        """The instance as its provider sees it now. NotFound if the provider does not know it (any more)."""

    @abstractmethod
    def list_instances(self, prefix: str) -> Listing:
        """All whose name begins with prefix and that may cost money: all scopes, all pages, leftovers too."""

    @abstractmethod
    def terminate_instance(self, instance_id: str) -> None:
        """Give back an instance, or remove a leftover by its id. Returns at once; idempotent; already gone is success."""

    # --- what some providers have beside that; the default is what the others do -------------------------------------

    def terminate_instances(self, instance_ids: Sequence[str]) -> None:
        """Many at once, where the vendor takes many; else one by one."""
        for instance_id in instance_ids:
            self.terminate_instance(instance_id)

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

    def read_log(self, instance: Instance) -> str:
        """The machine's own console or container log, where `host_key` is by_logs."""
        raise Unsupported(f"{self.name} has no log to read of {instance.name}")

    def open_channel(self, instance: Instance) -> Connection:
        """A way onto the machine without SSH, where `host_key` is channel."""
        raise Unsupported(f"{self.name} is reached by SSH")

    def check(self, instance: Instance, connection: Connection) -> str | None:
        """A problem of this machine that only this provider can see, or None. The common checks are the library's."""
        return None

    def interruption_reason(self, instance: Instance) -> str | None:
        """Why the provider took it back, in its words, or None if it did not (as far as it tells)."""
        return instance.reason if instance.state is InstanceState.INTERRUPTED else None
