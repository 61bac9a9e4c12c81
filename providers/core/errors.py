"""What can go wrong, named by what happened and classified by how much of the remaining choice it rules out.

    ProviderError
    ├── Transient            nothing; when retries are used up, the provider for this run
    │   └── RateLimited      nothing; certainly not carried out; retried after `retry_after_s`
    ├── Unconfirmed          the offer, once settled or owed: an order was sent and no definite answer came
    ├── NoCapacity           the offer
    ├── QuotaExceeded        the region and GPU (or instance) family
    ├── RegionClosed         the region, loudly: what an order needs is missing there, or it is not opened to the account yet
    ├── InsufficientFunds    the provider
    ├── AuthFailed           the provider, loudly
    ├── InvalidRequest       the provider, loudly: our bug, or a vendor code nobody mapped yet
    ├── Unsupported          the provider: a capability it does not declare, or an extra that is not installed
    ├── InstanceFailed       the offer: accepted, will never run
    └── NotFound             nothing: it is gone

`error.rules_out(failed, other)` is the whole failover policy. No message contains a credential, a query string or a header.
"""

from __future__ import annotations

import re
from typing import ClassVar, Literal

from providers.core.models import Offer

Reach = Literal["nothing", "offer", "family", "region", "provider"]


class ProviderError(Exception):
    """Something a provider said or did. `message` is one sentence for a user; `code` the vendor's own code."""

    reach: ClassVar[Reach] = "nothing"
    short: ClassVar[str] = "failed"  # two words for the story of a run: "sold out"
    is_loud: ClassVar[bool] = False  # worth a warning even when another offer serves

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.code = code

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.message, self.__dict__.copy()))

    def rules_out(self, failed: Offer, other: Offer) -> bool:
        """Whether `other` is not worth trying after this happened to `failed`."""
        if self.reach == "nothing" or failed.provider != other.provider:
            return False
        if self.reach == "provider":
            return True
        if self.reach == "region":
            return failed.region == other.region
        if self.reach == "family":
            same_family = (
                failed.gpu_name == other.gpu_name
                if failed.gpu_name
                else family(failed.instance_type) == family(other.instance_type)
            )
            return failed.region == other.region and failed.spot == other.spot and same_family
        return offer_key(failed) == offer_key(other)


class Transient(ProviderError):
    """A timeout, a reset, a 5xx on a call without side effects: the same call may succeed."""

    short = "not answering"
    # What retries could not mend rules the provider out for this run: TaskLibrary raises it again only then.
    reach = "provider"


class RateLimited(Transient):
    """429: certainly not carried out."""

    short = "rate limited"
    reach = "nothing"

    def __init__(self, message: str, *, code: str | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(message, code=code)
        self.retry_after_s = retry_after_s


class Unconfirmed(ProviderError):
    """An order was sent and no definite answer came: 5xx, read timeout, unreadable 2xx, 2xx without an id."""

    short = "answer lost"
    reach = "offer"


class NoCapacity(ProviderError):
    """The provider has none of these now."""

    short = "sold out"
    reach = "offer"


class QuotaExceeded(ProviderError):
    """The account may not have more of this family in this region."""

    short = "over quota"
    reach = "family"


class RegionClosed(ProviderError):
    """The account cannot order in this region as it is: an image or network is missing there, or the vendor has yet to open it."""

    short = "region closed"
    reach = "region"
    is_loud = True


class InsufficientFunds(ProviderError):
    """The account's balance is too low."""

    short = "balance too low"
    reach = "provider"


class AuthFailed(ProviderError):
    """401 or 403: the credentials are wrong, or lack a right."""

    short = "credentials refused"
    reach = "provider"
    is_loud = True


class InvalidRequest(ProviderError):
    """The provider calls our request wrong: our bug, or a code that is not mapped yet."""

    short = "request refused"
    reach = "provider"
    is_loud = True


class Unsupported(ProviderError):
    """The provider cannot do this, or its extra is not installed."""

    short = "not supported"
    reach = "provider"


class InstanceFailed(ProviderError):
    """Accepted, but it will never run: image error, boot deadline passed, machine check failed, host key mismatch."""

    short = "boot failed"
    reach = "offer"


class NotFound(ProviderError):
    """The provider does not know it (any more)."""

    short = "not found"


class NotReady(Transient):
    """The machine does not answer yet, or answers with another host key before its first verified connect."""

    short = "not ready"
    reach = "nothing"


class HostKeyMismatch(NotReady):
    """The machine showed another host key than the only one accepted: not ready before its first verified connect, an alarm after."""

    short = "wrong host key"


class LoginRefused(NotReady):
    """The machine is who it should be and refuses our key: not ready while it boots (the key comes last), an error of the block after."""

    short = "login refused"


class LinkLost(Transient):
    """The connection to the machine broke; the job there goes on."""

    short = "link lost"
    reach = "nothing"


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
