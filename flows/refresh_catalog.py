"""The prices of all providers made new, each on its own: what fails or looks wrong keeps its last good snapshot and is reported.

React to prices with a trigger on the events below, in an automation or a deployment. This one runs when an H100 falls below $2 per
GPU-hour on demand:

    triggers:
      - type: event
        expect: [prefect-gpu.price.dropped]
        match: {gpu: H100, spot: "false"}
        match_related: {prefect.resource.id: prefect-gpu.price-below.H100.2.00}
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any
from uuid import UUID

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.context import FlowRunContext
from prefect.events import emit_event
from prefect.logging import get_run_logger
from prefect.states import Completed
from pydantic import Field

from prefect_gpu import providers as registry
from prefect_gpu.flows.report import prices
from prefect_gpu.flows.report.artifacts import newest, publish
from prefect_gpu.flows.report.refreshed import catalog
from prefect_gpu.flows.run import outliving
from prefect_gpu.flows.run.failure import failed
from prefect_gpu.providers import DEFAULT_ACCOUNT, account_of
from prefect_gpu.providers.core.catalog import collect, published, store
from prefect_gpu.providers.core.catalog.collect import Collection
from prefect_gpu.providers.core.catalog.refresh import Refreshed, refresh
from prefect_gpu.providers.core.contract import Provider
from prefect_gpu.providers.core.errors import NotFound, ProviderError
from prefect_gpu.providers.core.renting import shared_prices

PATIENCE_S = 15 * 60.0  # so long one provider may take
MOST_EVENTS = 100  # price drops of one provider that are told one by one, the largest first


@flow(name="refresh-catalog")
def refresh_catalog(
    providers: Annotated[
        list[str], Field(title="Providers", description="Empty: all whose prices are published or can be collected.")
    ] = [],  # noqa: B006 - Prefect shows it in the form and nothing changes it
    accept: Annotated[
        list[str],
        Field(
            title="Accept",
            description="Providers whose prices are published even though they look wrong: you have looked.",
        ),
    ] = [],  # noqa: B006 - Prefect shows it in the form and nothing changes it
    account: Annotated[
        str | dict[str, str],
        Field(title="Account", description="Name of the saved credentials, or a map from provider to name."),
    ] = DEFAULT_ACCOUNT,
) -> State[Any]:
    """Collect the prices of all providers, check them, publish them, and say what changed.

    Args:
        providers: Whose prices; empty for all that are published or that a saved account can collect.
        accept: Providers whose prices are published even though they look wrong: you have looked.
        account: Name of the saved credentials, or a map from provider to name.
    """
    outliving.outlive_worker()
    for name in (*providers, *accept):
        try:
            store.folder_of(name)
        except ValueError as wrong:
            return failed(str(wrong))
    own = _with_prices_of_their_own(account)
    names = list(dict.fromkeys(providers)) or sorted({*published.PROVIDERS, *own})
    refresh_one: Any = _refresh
    refreshing: dict[str, Any] = {name: refresh_one.submit(name, own.get(name), name in accept) for name in names}
    results: list[Refreshed] = []
    for name, future in refreshing.items():
        future.wait(timeout=PATIENCE_S)
        answer = future.result(raise_on_failure=False) if future.state.is_final() else None
        results.append(answer if isinstance(answer, Refreshed) else _gave_up(name, answer))
    _tell(results)
    _write_page(prices.markdown(results))
    found = catalog(results)
    if results and all(result.outcome == "kept" for result in results):
        return failed(found.message, found=found)
    return Completed(message=found.message, data=found)


@task(name="refresh prices", task_run_name="{provider}", cache_policy=NO_CACHE, persist_result=False)
def _refresh(provider: str, account: str | None, accept_suspicious: bool) -> Refreshed:
    """One provider: fetched from the shared storage first, so that what is compared and remembered is everybody's."""
    shared_prices.fetch_newer(provider)

    def collected(source: str | None) -> Collection | None:
        if account is not None:
            offers = registry.library(provider).driver(account).collect_prices()
            if offers is not None:
                return collect.from_offers(offers, f"{provider}'s own price list")
        if provider not in published.PROVIDERS:
            raise NotFound(f"nobody publishes prices of {provider}")
        return published.catalog(provider, unless=source)

    result = refresh(provider, collected, accept_suspicious=accept_suspicious)
    if result.outcome != "published":
        return result
    try:
        if (storage := shared_prices.storage()) is not None:
            shared_prices.send(provider, storage)
    except ProviderError as failure:
        return replace(result, trouble=f"on this machine only: {failure.message}")
    return result


def _write_page(page: str) -> None:
    """The artifact `prices`, over the one of the last refresh: a version each hour is more than anybody reads."""
    context = FlowRunContext.get()
    run_id = context.flow_run.id if context and context.flow_run else None
    before = newest(prices.CARD.key)
    over = UUID(before["id"]) if before else None
    publish(prices.CARD.key, "markdown", page, run_id, prices.CARD.question, over=over)


def _with_prices_of_their_own(account: str | dict[str, str]) -> dict[str, str]:
    """Enabled providers whose driver collects prices, and the account it does so with."""
    found: dict[str, str] = {}
    for name in registry.enabled(account):
        try:
            library = registry.library(name)
        except ProviderError:
            continue  # its extra is not installed here: another worker's part
        driver: Any = library.driver_class
        if driver.collect_prices is not Provider.collect_prices:  # pyright: ignore[reportUnknownMemberType] - generic over credentials
            found[str(name)] = account_of(account, name)
    return found


def _gave_up(provider: str, failure: object) -> Refreshed:
    if isinstance(failure, ProviderError):
        return Refreshed(provider, "kept", trouble=failure.message)
    trouble = (
        f"{type(failure).__name__}: {failure}"
        if isinstance(failure, Exception)
        else f"no end within {PATIENCE_S / 60:.0f} min"
    )
    return Refreshed(provider, "kept", trouble=trouble)


def _tell(results: list[Refreshed]) -> None:
    """A log line and an event for each provider, and an event for each price that fell."""
    log = get_run_logger()
    for line in prices.lines([result for result in results if result.outcome != "kept"]):
        log.info(line)
    for line in prices.lines([result for result in results if result.outcome == "kept"]):
        log.warning(line)
    for result in results:
        for finding in result.findings:
            log.debug("%s %s: %s", result.provider, finding.rule.action, finding)
        emit_event(
            f"prefect-gpu.prices.{result.outcome}",
            resource={
                "prefect.resource.id": f"prefect-gpu.prices.{result.provider}",
                "prefect.resource.name": f"prices of {result.provider}",
                "provider": result.provider,
            },
            payload={"offers": result.offers, "what": prices.line(result)},
        )
        for drop in result.drops[:MOST_EVENTS]:
            emit_event("prefect-gpu.price.dropped", **prices.drop_event(drop))
