"""Giving back what must end, all of one account together, and writing it on the runs' records."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from functools import partial
from typing import Final
from uuid import UUID

from prefect_gpu import providers as registry
from prefect_gpu.flows.reaping.found import Found, at_once
from prefect_gpu.flows.run import ledger
from prefect_gpu.flows.run.attempt import Attempt
from prefect_gpu.flows.run.giving_back import settled
from prefect_gpu.flows.run.record import Record
from prefect_gpu.providers.core.errors import ProviderError
from prefect_gpu.providers.core.lease import Lease
from prefect_gpu.providers.core.renting.give_back import Absence

CONFIRM_S: Final = 60.0  # what is not seen gone by then is owed, and the next reap's
AGAIN_S: Final = 5.0  # of which there is hope, but no more than that
GRACE_S: Final = 15.0  # for calls that are under way when the time is over


def ended(doomed: list[Found], owed_before: Collection[str]) -> list[Found]:
    """What came of ending them; an account that hangs or whose driver breaks leaves its own owed, and nobody else's.

    What an earlier reap waited for in vain is asked for again and waited for no more than seconds.
    """
    groups = _groups(doomed, owed_before)
    patience = [AGAIN_S if {one.name for one in group} <= set(owed_before) else CONFIRM_S for group in groups]
    calls = [partial(_end, group, seconds) for group, seconds in zip(groups, patience, strict=True)]
    answers = at_once(calls, [seconds + GRACE_S for seconds in patience])
    return [
        one
        for group, answer in zip(groups, answers, strict=True)
        for one in answer or _owed(group, "it takes longer than this reap waits")
    ]


def _owed(group: list[Found], evidence: str) -> list[Found]:
    return [one.model_copy(update={"came_of_it": f"owed: {evidence}"}) for one in group]


def _groups(doomed: list[Found], owed_before: Collection[str]) -> list[list[Found]]:
    """By account, and what was owed before apart, so that nothing new waits less for it."""
    groups: dict[tuple[str, str, bool], list[Found]] = {}
    for one in doomed:
        groups.setdefault((one.provider, one.account, one.name in owed_before), []).append(one)
    return list(groups.values())


def _end(group: list[Found], within_s: float) -> list[Found]:
    """Give back all of one account together: one listing confirms many."""
    library = registry.library(group[0].provider)
    ids = tuple(instance_id for one in group for instance_id in one.ids)
    names = frozenset(one.name for one in group)
    try:
        absence = library.give_back("pg-", ids, group[0].account, names=names, within_s=within_s, are_seen=True)
    except ProviderError as trouble:
        return _owed(group, trouble.message)
    except Exception as bug:  # noqa: BLE001 - one broken driver must not keep the others' orphans alive
        return _owed(group, f"its driver broke: {type(bug).__name__}")
    owed = set(absence.owed)
    return [
        one.model_copy(
            update={"came_of_it": f"owed: {absence.evidence}" if owed & set(one.ids) else f"gone: {absence.evidence}"}
        )
        for one in group
    ]


def settle_records(ended: list[Found]) -> None:
    """Write on the runs' records what came of it, beside what their flows wrote: once a run."""
    by_run: dict[UUID, list[Found]] = {}
    for one in ended:
        if (lease := Lease.parse(one.name)) is not None:
            by_run.setdefault(lease.run_id, []).append(one)
    records: dict[UUID, Record] = {}
    with suppress(Exception):  # what is not written now is seen by the next reap
        records = ledger.records(by_run)
    for run_id, found in by_run.items():
        with suppress(Exception):
            if (record := records.get(run_id)) is not None:
                record.settle(*(_settled(record, line, one) for one in found if (line := _open_line(record, one))))


def _open_line(record: Record, one: Found) -> Attempt | None:
    line = record.line(one.name)
    return line if line is not None and line.may_cost else None


def _settled(record: Record, line: Attempt, one: Found) -> Attempt:
    absence = Absence(
        is_gone=one.is_gone, evidence=one.came_of_it.partition(": ")[2], owed=one.ids, machines=one.machines
    )
    return settled(record.run_id, line, absence)
