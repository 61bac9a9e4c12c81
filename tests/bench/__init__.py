"""Benchmarks: one module a group, each with `measure() -> dict[str, Metric]`; `python -m tests.bench` runs them all."""

from typing import Literal, NamedTuple


class Metric(NamedTuple):
    """One figure and what it should be."""

    value: float
    unit: str
    target: float
    better: Literal["lower", "higher"]

    @property
    def is_met(self) -> bool:
        return self.value <= self.target if self.better == "lower" else self.value >= self.target
