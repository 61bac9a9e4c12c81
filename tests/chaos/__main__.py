"""`python -m tests.chaos [--seeds 0-299] [--database sqlite|postgresql|both]`: runs them and writes build/chaos.json; `--page` the table of docs/chaos.md."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prefect_gpu.providers.core.lease import run_prefix
from tests import postgres
from tests.chaos import judge, pages
from tests.chaos.batch import Batch, Ground
from tests.chaos.judge import KINDS, Verdict
from tests.chaos.schedule import BATCH, events, schedule
from tests.stack import ROOT

RESULT = ROOT / "build" / "chaos.json"


def seeds_of(text: str) -> list[int]:
    """`0-299`, `7`, `3,5,8-11`."""
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


def say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


def run_seeds(ground: Ground, numbers: list[int], *, with_events: bool = True) -> list[Verdict]:
    """All of one batch, at the same time, and what came of each."""
    began = time.monotonic()
    befalling = events(numbers[0] // BATCH) if with_events else ()
    batch = Batch(ground, [schedule(number) for number in numbers], befalling, say)
    batch.run()
    others_died = any(event.what != "fault" for event in befalling)
    found: list[Verdict] = []
    records = ground.records(list(batch.runs.values()))
    for seed in batch.seeds:
        run_id = batch.runs[seed.seed]
        verdict = Verdict(seed.seed, str(run_id))
        fired = [one for one in batch.fired if one["run"] == str(run_id)]
        verdict.fired = len(fired)
        prefix = run_prefix(ground.realm_name, run_id)
        judge.of_clouds(verdict, ground.clouds, prefix)
        is_complete = judge.of_state(verdict, seed, batch.last[run_id], fired, others_died=others_died)
        judge.of_output(verdict, seed, ground.job_output(run_id), is_complete=is_complete)
        judge.of_cost(verdict, ground.clouds, prefix, records[run_id])
        found.append(verdict)
        if verdict.faults:
            say(f"seed {seed.seed} ({run_id}, {verdict.state}): {verdict.faults}")
            say(f"    {seed}")
            say(f"    happened: {[(one['execution'], one['point'], one['do']) for one in fired]}")
    say(
        f"seeds {numbers[0]}-{numbers[-1]}: {time.monotonic() - began:.0f} s, {sum(bool(one.faults) for one in found)} with a fault, "
        f"{sum(one.fired for one in found)} of {sum(len(seed.acts) for seed in batch.seeds)} acts, {sum(one.resumes for one in found)} resumes"
    )
    return found


def run(batches: list[list[int]], database: str, keep: Path | None = None) -> Iterator[tuple[list[Verdict], float]]:
    """The batches, one after the other on one stack: what came of each, and how long it took."""
    with contextlib.ExitStack() as stack:
        folder = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="chaos-", ignore_cleanup_errors=True))
            if keep is None
            else keep / database
        )
        folder.mkdir(parents=True, exist_ok=True)
        address = stack.enter_context(postgres.running()) if database == "postgresql" else ""
        ground = Ground(folder, address)
        stack.callback(ground.stop)
        ground.start()
        for numbers in batches:
            began = time.monotonic()
            yield run_seeds(ground, numbers), time.monotonic() - began


def part(found: list[Verdict], database: str, seconds: float) -> dict[str, Any]:
    """What came of one batch, as build/chaos.json has it."""
    return {
        "database": database,
        "seeds": [one.seed for one in found],
        "runs": len(found),
        **{kind: sum(kind in one.faults for one in found) for kind in KINDS},
        "failures": {str(one.seed): one.faults for one in found if one.faults},
        "orders": sum(one.orders for one in found),
        "acts": sum(one.fired for one in found),
        "resumes": sum(one.resumes for one in found),
        "counted_late_s": round(max((one.counted_late_s for one in found), default=0.0), 1),
        "seconds": round(seconds),
    }


def kept(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """The whole, written to build/chaos.json: what an earlier command ran of other batches stays."""
    try:
        known = json.loads(RESULT.read_text())["parts"]
    except (OSError, ValueError, KeyError):
        known = []
    new = {seed for one in parts for seed in one["seeds"]}
    parts = sorted(
        [*parts, *(one for one in known if not new & set(one["seeds"]))], key=lambda one: min(one["seeds"], default=0)
    )
    sums = {key: sum(one[key] for one in parts) for key in ("runs", *KINDS)}
    failures = {seed: faults for one in parts for seed, faults in one["failures"].items()}
    whole = {
        **sums,
        "failures": failures,
        "seeds": sorted(seed for one in parts for seed in one["seeds"]),
        "parts": parts,
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(whole, indent=1) + "\n")
    return whole


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos")
    parser.add_argument("--seeds", default="0-299")
    parser.add_argument("--database", choices=("sqlite", "postgresql", "both"), default="both")
    parser.add_argument("--keep", type=Path, help="a folder that stays, with the logs of server and workers")
    parser.add_argument("--page", action="store_true", help="write the table of docs/chaos.md anew")
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))  # nothing that was started stays
    numbers = seeds_of(asked.seeds)
    batches = [list(group) for _, group in itertools.groupby(numbers, key=lambda number: number // BATCH)]
    of = {asked.database: batches}
    if asked.database == "both":  # every other batch
        of = {"sqlite": batches[::2], "postgresql": batches[1::2]}
    failed = False
    whole: dict[str, Any] = {}
    for database, some in of.items():
        if some:
            for found, seconds in run(some, database, asked.keep):
                failed = failed or any(one.faults for one in found)
                whole = kept([part(found, database, seconds)])
    print(pages.table(whole))
    if asked.page:
        pages.write(whole)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
