"""Hosts of marketplaces that failed the machine check of a run: passed over for a day by all runs of this Prefect server.

Each failure is an artifact of its own, written by the run that saw it; they are read only where an offer names its host.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from datetime import datetime, timedelta
from itertools import islice
from typing import Any, Final, NamedTuple, cast
from uuid import UUID

from prefect_gpu.flows.report import text
from prefect_gpu.flows.report.artifacts import publish
from prefect_gpu.flows.run import ledger, offers
from prefect_gpu.flows.run.offers import Ranked
from prefect_gpu.flows.run.record import HIDDEN
from prefect_gpu.providers.core.errors import ProviderError
from prefect_gpu.providers.core.models import Offer, utc_now

FOR: Final = timedelta(days=1)
MOST: Final = 2000  # failures that are looked at
WHY: Final = "the host failed the machine check of a run of this server within a day"
_KEY: Final = "unfit-"


class Host(NamedTuple):
    """One machine of somebody's."""

    provider: str
    host: str


def note(run_id: UUID, offer: Offer, failure: ProviderError, log: Any) -> None:
    """Write down that this host is not what it was sold as, where that is what failed and the marketplace names hosts.

    What cannot be written is said in the log: the instance is given back all the same.
    """
    if failure.category != "machine_check" or failure.reach != "host" or offer.host is None:
        return
    host = Host(offer.provider, offer.host)
    which = hashlib.sha256(json.dumps(host).encode()).hexdigest()[:16]
    row = {**host._asdict(), "why": failure.message, "seen_at": utc_now().isoformat()}
    what = "A host that failed the machine check: no run of this server rents it for a day."
    try:
        publish(f"{_KEY}{which}", HIDDEN, json.dumps([row]), run_id, what)
    except Exception as trouble:  # noqa: BLE001 - whatever Prefect's API says
        log.warning(
            "that the host %s failed the machine check could not be written: %s", offer.host, type(trouble).__name__
        )


def lately(now: datetime | None = None) -> dict[Host, tuple[str, datetime]]:
    """Why a host failed the check of any run within a day, and when it did last."""
    since = (now or utc_now()) - FOR
    found: dict[Host, tuple[str, datetime]] = {}
    for row in islice(ledger.artifacts({"like_": f"{_KEY}%"}, since), MOST):  # the newest first
        try:
            told: Any = json.loads(row["data"])[0]
            when = datetime.fromisoformat(row["updated"])
            host = Host(str(told["provider"]), str(told["host"]))
        except (ValueError, TypeError, LookupError):  # what nobody can read hides no other
            continue
        found.setdefault(host, (str(cast("dict[str, Any]", told).get("why", "")), when))
    return found


def passed_over(ranked: Sequence[Ranked], now: datetime | None = None) -> list[Ranked]:
    """The offers; those of hosts that failed the check are not to be tried, and say why and until when."""
    if not any(one.is_buyable and one.offer.host is not None for one in ranked):
        return list(ranked)
    known = lately(now)
    kept: list[Ranked] = []
    others: list[Ranked] = []
    for one in ranked:
        failed = known.get(Host(one.offer.provider, one.offer.host or ""))
        if failed is None or not one.is_buyable:
            kept.append(one)
            continue
        why = f"{WHY} ({failed[0]}): passed over until {text.clock_time(failed[1] + FOR)}"
        others.append(one.model_copy(update={"rank": None, "why": why, "is_unfit": True}))
    return offers.passed_over(kept, others)
