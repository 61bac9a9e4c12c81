"""`make bench [ONLY=group]`: every group's figures beside their targets, and build/bench.json.

A group is a module here with `measure() -> dict[str, Metric]`. One that cannot run on this machine (no root, no OpenSSH) raises
pytest.skip with the reason; it installs nothing. The exit code is 0 when everything that ran met its target.
"""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import sys
import time
from pathlib import Path
from typing import NamedTuple

from _pytest.outcomes import Skipped

import tests.bench as bench
from tests.bench import Metric

RESULT = Path("build/bench.json")
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # what is measured compiles each file once, as it does for its users


class Outcome(NamedTuple):
    """What came of one group."""

    group: str
    metrics: dict[str, Metric]
    seconds: float
    skipped: str = ""  # why it did not run
    failed: str = ""  # how it broke


def groups() -> list[str]:
    return [module.name for module in pkgutil.iter_modules(bench.__path__) if not module.name.startswith("_")]


def run_group(name: str) -> Outcome:
    """Measure one group; a break is an outcome too, so that the other groups still run."""
    began = time.monotonic()
    try:
        metrics = importlib.import_module(f"tests.bench.{name}").measure()
    except Skipped as reason:
        return Outcome(name, {}, time.monotonic() - began, skipped=str(reason))
    except Exception as error:  # noqa: BLE001 - a benchmark may fail in any way
        return Outcome(name, {}, time.monotonic() - began, failed=f"{type(error).__name__}: {error}")
    return Outcome(name, metrics, time.monotonic() - began)


def table(outcomes: list[Outcome]) -> str:
    """One line a figure: name, value, unit, target, met or missed; a group without figures says why."""
    rows = [("metric", "value", "unit", "target", "")]
    for outcome in outcomes:
        for name, metric in sorted(outcome.metrics.items()):
            bound = f"{'<=' if metric.better == 'lower' else '>='} {shown(metric.target)}"
            rows.append((name, shown(metric.value), metric.unit, bound, "met" if metric.is_met else "MISSED"))
        if not outcome.metrics:
            rows.append(
                (
                    f"{outcome.group}.*",
                    "-",
                    "",
                    "",
                    f"did not run: {outcome.skipped}" if outcome.skipped else f"FAILED: {outcome.failed}",
                )
            )
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return "\n".join(
        f"{name:<{widths[0]}}  {value:>{widths[1]}}  {unit:<{widths[2]}}  {target:>{widths[3]}}  {met}".rstrip()
        for name, value, unit, target, met in rows
    )


def shown(number: float) -> str:
    """Three digits that count, without an exponent."""
    if number == 0 or abs(number) >= 100:
        return f"{number:,.0f}"
    return f"{number:.3g}" if abs(number) >= 0.001 else f"{number:.6f}"


def write(outcomes: list[Outcome], path: Path = RESULT) -> None:
    """Metric name to value, unit, target and better; what another run measured of other groups stays."""
    try:
        known = json.loads(path.read_text())
    except (OSError, ValueError):
        known = {}
    for outcome in outcomes:
        for name, metric in outcome.metrics.items():
            known[name] = metric._asdict()
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(known, indent=2, sort_keys=True) + "\n")


def main(only: str | None = None) -> int:
    known = groups()
    if only is not None and only not in known:
        print(f"There is no group {only!r}: {', '.join(known)}.", file=sys.stderr)
        return 2
    outcomes: list[Outcome] = []
    for name in [only] if only else known:
        print(f"{name} ...", file=sys.stderr, flush=True)
        outcome = run_group(name)
        outcomes.append(outcome)
        print(f"{name}: {outcome.seconds:.0f} s", file=sys.stderr, flush=True)
    write(outcomes)
    print(table(outcomes))
    missed = sum(not metric.is_met for outcome in outcomes for metric in outcome.metrics.values())
    failed = [outcome.group for outcome in outcomes if outcome.failed]
    return 1 if missed or failed else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))
