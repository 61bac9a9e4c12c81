"""`logs`: the steps of a run and its job's output, from the beginning or its last lines, and on until it ends."""

from __future__ import annotations

import math

from prefect_gpu.flows.terminal import runs
from prefect_gpu.flows.terminal.follow import Display, follow
from prefect_gpu.flows.terminal.messages import Wrong
from prefect_gpu.flows.terminal.place import Place
from prefect_gpu.flows.terminal.records import Records


def show(place: Place, wanted: str, *, follow_it: bool, tail: int | None) -> int:
    """What the run logged; the exit code. Ending this ends the showing and nothing else."""
    if tail is not None and tail < 0:
        raise Wrong(f"--tail {tail}: write how many lines, 0 or more.")
    display = Display()
    with place.asked() as client:
        run = runs.find(client, wanted)
        records = Records(client, run.id)
        for log in records.last(tail) if tail is not None else records.new():
            display.record(log)
        if follow_it:
            run = follow(records, display, every_s=0.5, pick_up_s=math.inf, start_s=math.inf)
    if follow_it and run.state is not None and run.state.message and not run.state.is_completed():
        display.line(f"{run.state.name}: {run.state.message.splitlines()[0]}", "bold red")
    return 0
