"""The commands that rent and that tell prices. What a flow or Prefect is needed for is imported where it is used: it takes a second."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Final

from cyclopts import Parameter

from prefect_gpu.flows.terminal import asked, options
from prefect_gpu.flows.terminal.app import RENT, Json, at_server, command
from prefect_gpu.flows.terminal.messages import waiting
from prefect_gpu.flows.terminal.options import Option, of_flow, with_options
from prefect_gpu.flows.terminal.place import Place

OF_RUN: Final = of_flow("provision")
OF_PLAN: Final = of_flow("plan")


@command(RENT)
@with_options(OF_RUN)
def run(
    *command: Annotated[
        str,
        Parameter(
            help="What to run. One word is a shell line ('cd src && make'); several are a program and its arguments, as they are."
        ),
    ],
    **given: Any,
) -> int:
    """Run one job: rent the machine, run it, show its output, give the machine back.

    Ctrl-C ends the job and gives its machine back. Without a command a small job runs here, for nothing.
    What belongs to the job stands after `--`.

    ```
    prefect-gpu run
    prefect-gpu run --gpu H100:8 --max-price 20 --files . --outputs '*.pt' -- python train.py --lr 3e-4
    prefect-gpu run --gpu 'A100:80GB|H100' --spot spot --env WANDB_MODE=offline 'cd src && make train'
    ```
    """
    from prefect_gpu.flows.terminal import along

    parameters = asked.job(command, options.parameters(OF_RUN, given))  # refused before anything is started
    going = along.of(parameters, Path.cwd())

    def follow_it(place: Place) -> int:
        if place.is_own:  # its worker knows the same prices: a slip is told at once
            asked.gpu_known(parameters.get("gpu", ""))
        with waiting("Prefect starts"):
            from prefect_gpu.flows.terminal import running
        return running.run(place, parameters, going)

    return at_server(follow_it)


_ALSO_RUN: Final = [one for one in OF_RUN if one.name not in {other.name for other in OF_PLAN}]


def _is_of_run_only(option: Option) -> bool:
    return option in _ALSO_RUN


@command(RENT)
@with_options([*OF_PLAN, *_ALSO_RUN], hidden=_is_of_run_only)
def plan(
    *_command: Annotated[str, Parameter(name="command", show=False)],
    as_json: Annotated[Json, Parameter(name="--json")] = False,
    **given: Any,
) -> int:
    """What a job would get and for how much, cheapest first. Buys nothing, and needs no account.

    It takes the line of `run` as it is.

    ```
    prefect-gpu plan --gpu H100
    prefect-gpu plan --gpu H100:8 --hours 24 --spot either --countries DE --countries FR
    prefect-gpu plan --gpu H100 --json
    ```
    """
    options.parameters(_ALSO_RUN, given)  # what makes no sense there makes none here
    parameters = options.parameters(OF_PLAN, given)

    def show_it(place: Place) -> int:
        if place.is_own:
            asked.gpu_known(parameters.get("gpu", ""))
        with waiting("Prefect starts"):
            from prefect_gpu.flows.terminal import planning
        return planning.show(place, parameters, as_json=as_json)

    return at_server(show_it)


@command(RENT)
def providers(*, as_json: Annotated[Json, Parameter(name="--json")] = False) -> int:
    """Each provider: whose credentials are saved, how soon it answers, its cheapest H100 and A100 per GPU-hour."""

    def show_them(place: Place) -> int:
        with waiting("Prefect starts"):
            from prefect_gpu.flows.terminal import overview
        return overview.providers(place, as_json=as_json)

    return at_server(show_them)
