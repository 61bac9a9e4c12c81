"""What must hold of each seed once everything is over, by the clouds' own ledgers and by what Prefect's server has of the run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from tests.chaos.clouds import METERS, SKEW_S
from tests.chaos.schedule import Schedule
from tests.fakes.reference import Order, ReferenceCloud

SEEN_LATE_S = 180.0  # so long after its end a machine may be counted on, until somebody saw that it is gone
APART_S = 0.5  # so far apart two orders may be noted that were one after the other


@dataclass
class Verdict:
    """What is wrong with one seed, in sentences by kind; nothing where all is well."""

    seed: int
    run_id: str
    state: str = ""
    faults: dict[str, list[str]] = field(default_factory=dict)
    fired: int = 0  # acts of its schedule that happened
    resumes: int = 0
    orders: int = 0
    counted_late_s: float = 0.0

    def say(self, kind: str, what: str) -> None:
        self.faults.setdefault(kind, []).append(what)


KINDS = ("leaked", "double_bought", "jobs_lost", "lines_lost", "lines_doubled", "cost_mismatch")


def of_clouds(verdict: Verdict, clouds: dict[str, ReferenceCloud], prefix: str) -> None:
    """Nothing lives; never two at the same time."""
    spans: list[tuple[float, float, Order]] = []
    for provider, cloud in clouds.items():
        for order in cloud.orders(prefix):
            verdict.orders += 1
            if order.is_alive:
                verdict.say("leaked", f"{order.id} on {provider} is {order.status}")
            spans.append((order.ordered_at - SKEW_S[provider], (order.ended_at or math.inf) - SKEW_S[provider], order))
    spans.sort(key=lambda one: one[0])
    for number, (began, ended, order) in enumerate(spans):
        for later, until, other in spans[number + 1 :]:
            if later < ended - APART_S and until > later and not _is_the_clouds_own(order, other):
                verdict.say("double_bought", f"{other.name} began {ended - later:.1f} s before the end of {order.name}")
        del began


def _is_the_clouds_own(order: Order, other: Order) -> bool:
    """One order that bought two machines (`twice`); or one without an answer that appeared when all lists had been looked through (`late`)."""
    return order.name == other.name or "late" in (order.fate, other.fate)


def of_output(verdict: Verdict, seed: Schedule, lines: Sequence[str], *, is_complete: bool) -> None:
    """Each line of the last try exactly once and in order; of an earlier one, whose machine was taken back, what was shown of it."""
    tries: dict[str, list[int]] = {}
    ended: set[str] = set()
    for line in lines:
        word, _, rest = line.partition(" ")
        token, _, number = rest.partition(" ")
        if word == "line":
            tries.setdefault(token, []).append(int(number))
        elif word == "end":
            ended.add(token)
    for at, (token, numbers) in enumerate(tries.items()):
        is_last = at == len(tries) - 1
        seen = set(numbers)
        if len(numbers) != len(seen):
            verdict.say("lines_doubled", f"{len(numbers) - len(seen)} of {len(numbers)} lines of {token}")
        wanted = range(1, (seed.lines if is_last and is_complete else max(numbers)) + 1)
        if missing := [one for one in wanted if one not in seen]:
            verdict.say("lines_lost", f"{len(missing)} of {len(wanted)} lines of {token}, the first is {missing[0]}")
        if numbers != sorted(numbers):
            verdict.say("lines_doubled", f"lines of {token} are not in their order")
    if is_complete and (not tries or list(tries)[-1] not in ended):
        verdict.say("lines_lost", "the last line")
    if len(tries) > verdict.orders:
        verdict.say("lines_doubled", f"the job ran {len(tries)} times on {verdict.orders} machines")


def of_state(
    verdict: Verdict, seed: Schedule, row: dict[str, Any], fired: list[dict[str, Any]], *, others_died: bool
) -> bool:
    """Whether the run ended as it should; True where its job has all of its output."""
    state = row["state"]
    verdict.state = state["name"]
    verdict.resumes = row["run_count"] - 1
    if state["type"] == "COMPLETED":
        return True
    if state["type"] == "CANCELLED" and seed.cancel_at_s is not None:
        return False
    died = others_died or any(one["do"] in ("kill", "terminate", "stop and give away") for one in fired)
    if not seed.resume and died and state["type"] in ("CRASHED", "FAILED", "CANCELLED"):
        return False
    verdict.say("jobs_lost", f"{state['name']}: {state['message']}")
    return False


def of_cost(verdict: Verdict, clouds: dict[str, ReferenceCloud], prefix: str, record: list[dict[str, Any]]) -> None:
    """The run's own bound is the cloud's bill, and where a second counts, not less and only as much more as nobody could see."""
    lines = {line["name"]: line for line in record}
    bills: dict[str, tuple[str, float, float]] = {}
    for provider, cloud in clouds.items():
        for order in cloud.orders(prefix):
            _, bill, ended = bills.get(order.name, (provider, 0.0, 0.0))
            last = max(ended, (order.ended_at or cloud.now()) - SKEW_S[provider])
            bills[order.name] = (provider, bill + METERS[provider].position(cloud, order), last)
    for name, (provider, bill, ended) in bills.items():
        line = lines.get(name)
        if line is None:
            verdict.say("cost_mismatch", f"{name} cost ${bill:.4f} and is on no record")
            continue
        cost = line["cost"] or 0.0
        if line["gone_at"] is None:
            verdict.say("cost_mismatch", f"{name} ended and is still {line['outcome']} on the record: {line['why']}")
            continue
        late = datetime.fromisoformat(line["gone_at"]).timestamp() - ended
        verdict.counted_late_s = max(verdict.counted_late_s, late)
        by_the_hour = METERS[provider].step_s >= 3600
        if cost < bill - 1e-9 or (by_the_hour and cost > bill + 1e-9) or late > SEEN_LATE_S:
            verdict.say(
                "cost_mismatch",
                f"{name}: ${cost:.5f} on the record, ${bill:.5f} on the bill, seen gone after {late:.0f} s",
            )
