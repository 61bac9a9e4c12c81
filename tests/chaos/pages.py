"""The table of the seeds that were run, for the terminal and for docs/chaos.md."""

from __future__ import annotations

from typing import Any

from tests.chaos.judge import KINDS
from tests.stack import ROOT

PAGE = ROOT / "docs" / "chaos.md"
BEGIN, END = "<!-- measured: chaos -->", "<!-- /measured -->"
COLUMNS = ("runs", *KINDS, "orders", "acts", "resumes")


def table(whole: dict[str, Any]) -> str:
    """One row per database, and the sum."""
    databases = dict.fromkeys(part["database"] for part in whole["parts"])
    rows = [f"| database | {' | '.join(name.replace('_', ' ') for name in COLUMNS)} |", f"|---|{'--:|' * len(COLUMNS)}"]
    rows += [_row(one, [part for part in whole["parts"] if part["database"] == one]) for one in databases]
    if len(databases) > 1:
        rows.append(_row("both", whole["parts"]))
    return "\n".join([*rows, "", f"Seeds {_ranges(whole['seeds'])}."])


def write(whole: dict[str, Any]) -> None:
    """Put the table into the page, in place of the one there."""
    text = PAGE.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n{table(whole)}\n{END}{after}")


def _row(name: str, parts: list[dict[str, Any]]) -> str:
    return f"| {name} | {' | '.join(f'{sum(part[column] for part in parts):,}' for column in COLUMNS)} |"


def _ranges(numbers: list[int]) -> str:
    said: list[str] = []
    first = 0
    for at, number in enumerate(numbers):
        if at + 1 == len(numbers) or numbers[at + 1] != number + 1:
            said.append(f"{numbers[first]}-{number}" if at > first else f"{number}")
            first = at + 1
    return ", ".join(said)
