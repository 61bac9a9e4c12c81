"""All providers at a glance: whose credentials are saved, how soon each answers, its cheapest H100 and A100."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotInTime
from typing import Final

from rich.table import Table

from prefect_gpu.flows.terminal import first_prices
from prefect_gpu.flows.terminal.follow import Display
from prefect_gpu.flows.terminal.messages import waiting
from prefect_gpu.flows.terminal.place import Place
from prefect_gpu.providers import ProviderName, library, saved_accounts
from prefect_gpu.providers.core.catalog import query
from prefect_gpu.providers.core.errors import ProviderError
from prefect_gpu.providers.core.gpu.request import parse_gpu
from prefect_gpu.providers.core.models import Availability, Model, Offer
from prefect_gpu.providers.core.requests import Requirements, Spot
from prefect_gpu.providers.core.typed import typed

GPUS: Final = ("H100", "A100")
PATIENCE_S: Final = 30.0  # so long a provider may take to answer


class Row(Model):
    """One account of one provider, or a provider without any."""

    provider: str
    account: str  # empty: none is saved
    answered_in_s: float | None = None
    cheapest: dict[str, str]  # GPU -> "$1.99", per GPU-hour
    trouble: str = ""


def of_all() -> list[Row]:
    """Every account of every provider, all asked at once."""
    saved = saved_accounts()
    wanted = [
        (provider, account)
        for provider in ProviderName
        for account in (saved[provider] or (["default"] if provider is ProviderName.LOCAL else [""]))
    ]
    pool = ThreadPoolExecutor(max_workers=len(wanted))
    try:
        with waiting("asking the providers"):
            began = time.monotonic()
            pending = [(provider, account, pool.submit(_row, provider, account)) for provider, account in wanted]
            rows: list[Row] = []
            for provider, account, future in pending:
                try:
                    rows.append(future.result(timeout=max(0.1, began + PATIENCE_S - time.monotonic())))
                except NotInTime:
                    trouble = f"no answer within {PATIENCE_S:.0f} s"
                    rows.append(Row(provider=provider.value, account=account, cheapest={}, trouble=trouble))
            return rows
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _row(provider: ProviderName, account: str) -> Row:
    if not account:
        return Row(provider=provider.value, account="", cheapest={gpu: _listed(provider, gpu) for gpu in GPUS})
    began = time.monotonic()
    try:
        driver = library(provider).driver(account)
        answers = {gpu: driver.fetch_offers(_wants(gpu)) for gpu in GPUS}
    except ProviderError as trouble:
        return Row(provider=provider.value, account=account, cheapest={}, trouble=trouble.message)
    seconds = (time.monotonic() - began) / len(GPUS)
    cheapest = {gpu: _price(offers) for gpu, offers in answers.items()}
    return Row(provider=provider.value, account=account, answered_in_s=seconds, cheapest=cheapest)


def _wants(gpu: str) -> Requirements:
    return Requirements(gpu=parse_gpu(f"{gpu}:1.."), spot=Spot.EITHER)


def _listed(provider: ProviderName, gpu: str) -> str:
    """By the collected prices, where there are some: what an account would see."""
    try:
        return _price(query.offers(provider.value, _wants(gpu), limit=1))
    except ProviderError:
        return ""


def _price(offers: list[Offer]) -> str:
    """The lowest price per GPU-hour."""
    prices = [
        offer.price / offer.gpu_count
        for offer in offers
        if offer.gpu_count and offer.availability is not Availability.UNAVAILABLE
    ]
    return f"${min(prices):.2f}" if prices else ""


def providers(place: Place, *, as_json: bool) -> int:
    """All of them, as a table or as JSON."""
    no_prices = first_prices.fetched()
    with place.asked():
        rows = of_all()
    display = Display()
    if as_json:
        display.document([row.model_dump(mode="json") for row in rows])
    else:
        show(rows, display, no_prices)
    return 0


def show(rows: list[Row], display: Display, no_prices: str = "") -> None:
    """The table, and below it what went wrong and what to type."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("provider")
    table.add_column("credentials")
    table.add_column("answered in", justify="right")
    for gpu in GPUS:
        table.add_column(f"{gpu} $/GPU-h", justify="right")
    for row in rows:
        credentials = "none needed" if row.provider == ProviderName.LOCAL else row.account or "none"
        answered = f"{row.answered_in_s:.1f} s" if row.answered_in_s is not None else "did not" if row.trouble else ""
        table.add_row(row.provider, credentials, answered, *(row.cheapest.get(gpu) or "-" for gpu in GPUS))
    display.print(table)
    for row in rows:
        if row.trouble:
            display.line(f"{row.provider} ({row.account}): {row.trouble}", "yellow")
    if no_prices:
        display.line(f"prices: {no_prices}", "yellow")
    if without := [row.provider for row in rows if not row.account]:
        display.line()
        display.line(f"Next: {typed('connect', provider=without[0])}")
