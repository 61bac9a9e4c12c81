"""`plan`: prices at once. It asks as the flow `plan` does and makes no run of it, which would take longer than the question."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotInTime
from contextvars import copy_context
from typing import Any

from pydantic import ValidationError

from prefect_gpu.flows.run.look import Accounts, look
from prefect_gpu.flows.run.request import Refused
from prefect_gpu.flows.terminal import first_prices
from prefect_gpu.flows.terminal.follow import Display
from prefect_gpu.flows.terminal.messages import Wrong, waiting
from prefect_gpu.flows.terminal.place import Place
from prefect_gpu.providers import ProviderName, account_of, library
from prefect_gpu.providers.core.errors import InvalidRequest, ProviderError, Transient
from prefect_gpu.providers.core.models import Offer
from prefect_gpu.providers.core.requests import Requirements

PATIENCE_S = 30.0  # so long a provider may take


def show(place: Place, parameters: dict[str, Any], *, as_json: bool) -> int:
    """What a job would get; 1 where that is nothing."""
    try:
        requirements = Requirements(**parameters.get("requirements", {}))
    except ValidationError as wrong:
        raise Wrong(_sentence(wrong)) from None
    display = Display()
    no_prices = first_prices.fetched(parameters.get("providers") or None)
    with place.asked():
        try:
            looked = look(
                parameters.get("gpu", ""),
                parameters.get("max_price"),
                [ProviderName(name) for name in parameters.get("providers", [])],
                requirements,
                parameters.get("hours", 1.0),
                parameters.get("account", "default"),
                ask,
            )
        except Refused as refused:
            raise Wrong(f"{refused}.") from None
    found = looked.found
    if no_prices:
        found = found.model_copy(update={"troubles": {**found.troubles, "prices": no_prices}})
    if as_json:
        display.document(found.model_dump(mode="json"))
        return 0 if found.buyable or found.market else 1
    for table in looked.tables():
        for line in table:
            display.line(line)
    for line in [f"{name}: {trouble}" for name, trouble in found.troubles.items()] + looked.unseen():
        display.line(line, "yellow")
    display.line(found.message)
    return 0 if found.buyable or found.market else 1


def ask(
    names: Sequence[ProviderName], requirements: Requirements, account: Accounts
) -> tuple[list[Offer], dict[str, ProviderError]]:
    """All offers, and what went wrong by provider: all are asked at once, and none holds up the others for long."""
    offers: list[Offer] = []
    troubles: dict[str, ProviderError] = {}
    if not names:
        return offers, troubles
    pool = ThreadPoolExecutor(max_workers=len(names))
    try:
        with waiting(f"asking {', '.join(names)}"):
            deadline = time.monotonic() + PATIENCE_S
            pending = {name: pool.submit(copy_context().run, _offers_of, name, requirements, account) for name in names}
            for name, future in pending.items():
                try:
                    offers += future.result(timeout=max(0.1, deadline - time.monotonic()))
                except ProviderError as trouble:
                    troubles[name.value] = trouble
                except NotInTime:
                    troubles[name.value] = Transient(f"no answer within {PATIENCE_S:.0f} s")
                except Exception as bug:  # noqa: BLE001 - one driver's bug is that provider's trouble alone
                    troubles[name.value] = InvalidRequest(f"its driver broke: {type(bug).__name__}")
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    return offers, troubles


def _offers_of(name: ProviderName, requirements: Requirements, account: Accounts) -> list[Offer]:
    return library(name).offers(requirements, account_of(account, name))


def _sentence(wrong: ValidationError) -> str:
    first = wrong.errors()[0]
    name = "-".join(str(part) for part in first["loc"][:1]).replace("_", "-")
    return f"--{name} {first['input']}: {first['msg'].removeprefix('Value error, ')}."
