"""What can go wrong, named by what happened and classified by how much of the remaining choice it rules out.

    ProviderError
    ├── Transient            nothing; when retries are used up, the provider for this run
    │   ├── RateLimited      nothing; certainly not carried out; retried after `retry_after_s`
    │   ├── NotReady         nothing: the machine does not answer yet
    │   │   ├── HostKeyMismatch  nothing while it boots; an alarm after its first verified connect
    │   │   └── LoginRefused     nothing while it boots; an error of the account's block after
    │   └── LinkLost         nothing: the connection to the machine broke, the job there goes on
    ├── Unconfirmed          the offer, once settled or owed: an order was sent and no definite answer came
    ├── NoCapacity           the offer
    ├── QuotaExceeded        the region and GPU (or instance) family
    ├── RegionClosed         the region, loudly: what an order needs is missing there, or it is not opened to the account yet
    ├── InsufficientFunds    the provider
    ├── OverBudget           the offer (run's budget) or the provider (its account's): nothing was ordered
    ├── AuthFailed           the provider, loudly; from an order that a policy denies: its region, type and market
    ├── InvalidRequest       the provider, loudly: our bug, or a vendor code nobody mapped yet
    ├── Unsupported          the provider: a capability it does not declare, or an extra that is not installed
    ├── InstanceFailed       the offer: accepted, will never run; the host, where it is not what it was sold as
    └── NotFound             nothing: it is gone

`error.rules_out(failed, other)` is the whole failover policy: a refusal rules out what it speaks of, never more. Where a vendor's code says
that more or less than usual is meant, the driver says so: `AuthFailed(words, reach="market")`. No message contains a credential, a query
string or a header.
"""

from __future__ import annotations

import re
from typing import ClassVar, Literal

from prefect_gpu.providers.core.models import Offer

# host: all that this machine of a marketplace's is offered as; type: this instance type in this region and market; market: spot or
# on-demand, everywhere.
Reach = Literal["nothing", "offer", "host", "type", "family", "region", "market", "provider"]


# What an automation can match on in the event of an offer that was refused.
# fmt: off
Category = Literal[
    "sold_out", "quota", "funds", "credentials", "policy", "region", "image", "network", "host_key", "boot",
    "machine_check", "interrupted", "lost", "rate_limit", "unconfirmed", "request", "unsupported", "budget",
]
# fmt: on


class ProviderError(Exception):
    """Something a provider said or did.

    `message` is one sentence for a user; `code` the vendor's own code; `reach` what it rules out; `category` what it is for automations.
    """

    usual_reach: ClassVar[Reach] = "nothing"
    usual_category: ClassVar[Category] = "request"
    short: ClassVar[str] = "failed"  # two words for the story of a run: "sold out"
    is_loud: ClassVar[bool] = False  # worth a warning even when another offer serves

    def __init__(
        self, message: str, *, code: str | None = None, reach: Reach | None = None, category: Category | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.told_reach: Reach | None = reach  # by the vendor's code
        self.told_category: Category | None = category  # by who raises it and knows better than the class

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.message, self.__dict__.copy()))

    @property
    def reach(self) -> Reach:
        """How much of the choice this rules out."""
        return self.told_reach or self.usual_reach

    @property
    def category(self) -> Category:
        """What happened, in a word of a fixed list."""
        return self.told_category or self.usual_category

    def rules_out(self, failed: Offer, other: Offer) -> bool:
        """Whether `other` is not worth trying after this happened to `failed`."""
        if self.reach == "nothing" or failed.provider != other.provider:
            return False
        is_same_market = failed.spot == other.spot
        is_here = failed.region == other.region
        if self.reach == "family":
            same_family = (
                failed.gpu_name == other.gpu_name
                if failed.gpu_name
                else family(failed.instance_type) == family(other.instance_type)
            )
            return is_here and is_same_market and same_family
        if self.reach == "type":
            return is_here and is_same_market and failed.instance_type == other.instance_type
        if self.reach == "provider":
            return True
        if self.reach == "market":
            return is_same_market
        if self.reach == "region":
            return is_here
        if self.reach == "host" and failed.host is not None and failed.host == other.host:
            return True
        return offer_key(failed) == offer_key(other)


class Transient(ProviderError):
    """A timeout, a reset, a 5xx on a call without side effects: the same call may succeed."""

    short = "not answering"
    usual_category = "network"
    # What retries could not mend rules the provider out for this run: TaskLibrary raises it again only then.
    usual_reach = "provider"


class RateLimited(Transient):
    """429: certainly not carried out."""

    short = "rate limited"
    usual_category = "rate_limit"
    usual_reach = "nothing"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        reach: Reach | None = None,
        category: Category | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message, code=code, reach=reach, category=category)
        self.retry_after_s = retry_after_s


class Unconfirmed(ProviderError):
    """An order was sent and no definite answer came: 5xx, read timeout, unreadable 2xx, 2xx without an id."""

    short = "answer lost"
    usual_category = "unconfirmed"
    usual_reach = "offer"


class NoCapacity(ProviderError):
    """The provider has none of these now."""

    short = "sold out"
    usual_category = "sold_out"
    usual_reach = "offer"


class QuotaExceeded(ProviderError):
    """The account may not have more of this family in this region."""

    short = "over quota"
    usual_category = "quota"
    usual_reach = "family"


class RegionClosed(ProviderError):
    """The account cannot order in this region as it is: an image or network is missing there, or the vendor has yet to open it."""

    short = "region closed"
    usual_category = "region"
    usual_reach = "region"
    is_loud = True


class InsufficientFunds(ProviderError):
    """The account's balance is too low."""

    short = "balance too low"
    usual_category = "funds"
    usual_reach = "provider"


class OverBudget(ProviderError):
    """A budget does not pay for it: the run's own, or its account's. Nothing was ordered."""

    short = "over budget"
    usual_category = "budget"
    usual_reach = "offer"


class AuthFailed(ProviderError):
    """401 or 403: the credentials are wrong, or lack a right."""

    short = "credentials refused"
    usual_category = "credentials"
    usual_reach = "provider"
    is_loud = True

    def of_an_order(self) -> AuthFailed:
        """The same, as an order's answer: a policy that denies one order says nothing of another region, type or market."""
        self.told_reach = self.told_reach or "type"
        self.told_category = self.told_category or "policy"
        return self


class InvalidRequest(ProviderError):
    """The provider calls our request wrong: our bug, or a code that is not mapped yet."""

    short = "request refused"
    usual_reach = "provider"
    is_loud = True


class Unsupported(ProviderError):
    """The provider cannot do this, or its extra is not installed."""

    short = "not supported"
    usual_category = "unsupported"
    usual_reach = "provider"


class InstanceFailed(ProviderError):
    """Accepted, but it will never run: image error, boot deadline passed, machine check failed, host key mismatch."""

    short = "boot failed"
    usual_category = "boot"
    usual_reach = "offer"


class NotFound(ProviderError):
    """The provider does not know it (any more)."""

    short = "not found"
    usual_category = "lost"


class NotReady(Transient):
    """The machine does not answer yet, or answers with another host key before its first verified connect."""

    short = "not ready"
    usual_reach = "nothing"


class HostKeyMismatch(NotReady):
    """The machine showed another host key than the only one accepted: not ready before its first verified connect, an alarm after."""

    short = "wrong host key"
    usual_category = "host_key"


class LoginRefused(NotReady):
    """The machine is who it should be and refuses our key: not ready while it boots (the key comes last), an error of the block after."""

    short = "login refused"
    usual_category = "credentials"


class LinkLost(Transient):
    """The connection to the machine broke; the job there goes on."""

    short = "link lost"
    usual_reach = "nothing"


def offer_key(offer: Offer) -> tuple[object, ...]:
    """What makes two offers the same thing to buy, whatever they cost."""
    ask = offer.raw.get("ask_id")  # a marketplace's asks are each one machine
    return (offer.provider, offer.instance_type, offer.region, offer.zone, offer.spot, offer.gpu, ask)


def family(instance_type: str) -> str:
    """`p5` of `p5.48xlarge`: the part of a type's name that quotas are counted by, where no GPU tells."""
    return re.split(r"[.-]", instance_type, maxsplit=1)[0].lower()


def _rebuild(cls: type[ProviderError], message: str, state: dict[str, object]) -> ProviderError:
    error = cls.__new__(cls)
    Exception.__init__(error, message)
    error.__dict__.update(state)
    return error
