"""What those ask whom nobody has an account with: their price lists, so that prices can be seen before anything is saved."""

from __future__ import annotations

import ast
from functools import cache
from importlib import resources
from typing import Final

from prefect_gpu import providers as registry
from prefect_gpu.flows.report import text
from prefect_gpu.flows.run.offers import Ranked, rank
from prefect_gpu.providers import ProviderName
from prefect_gpu.providers.core.catalog import facts, query, store
from prefect_gpu.providers.core.contract import Billing
from prefect_gpu.providers.core.errors import Unsupported
from prefect_gpu.providers.core.gpu import matching
from prefect_gpu.providers.core.requests import Requirements
from prefect_gpu.providers.core.typed import typed

EACH: Final = 3  # offers of one provider
SHOWN: Final = 12


def without_account(requirements: Requirements, asked: list[ProviderName], hours: float) -> list[Ranked]:
    """The cheapest offers of every price list that is not among those that were asked, by what such a stay costs."""
    others = [
        name
        for name in store.providers()
        if name not in asked and matching.is_trusted(facts.of(name).trust, requirements)
    ]
    offers = [
        offer
        for name in others
        for alternative in requirements.gpu or (None,)
        for offer in query.query(query.filters(requirements, alternative), [name], limit=EACH)
    ]
    return [one for one in rank(offers, requirements, hours, written_billing_of) if one.is_buyable]


def billing_of(provider: str) -> Billing:
    """How it is billed; by the hour, as prices are told, where there is no driver to say it."""
    try:
        return registry.library(provider).capabilities.billing
    except (ValueError, Unsupported):
        return Billing()


@cache
def written_billing_of(provider: str) -> Billing:
    """The same by the driver's source, where it stands in plain values: to import the SDK of one that nobody uses takes a second."""
    try:
        name = ProviderName(provider).value
        package = resources.files("prefect_gpu.providers")
        driver = package / name / "driver.py"
        source = driver if driver.is_file() else package / f"{name}.py"
        # Among what stands in plain values, so not inside a function: walking through all of it takes longer than all else here.
        values = [
            part
            for statement in ast.parse(source.read_text()).body
            for part in (statement.body if isinstance(statement, ast.ClassDef) else [statement])
            if isinstance(part, ast.Assign | ast.AnnAssign)
        ]
        calls = [
            node
            for value in values
            for node in ast.walk(value)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Billing"
        ]
        if not calls:
            return Billing()
        (said,) = (
            {one.arg or "": ast.literal_eval(one.value) for one in call.keywords} for call in calls if not call.args
        )
        return Billing(**said)
    except (OSError, ValueError, TypeError, SyntaxError):
        return billing_of(provider)


def how_to_use(provider: str) -> str:
    """What to type before this offer can be rented."""
    try:
        name = ProviderName(provider)
    except ValueError:
        return "cannot be rented here yet"
    return typed("connect", provider=name.value)


def sentence(market: list[Ranked]) -> str:
    """The cheapest of them that could be rented, and how; or that there are no prices."""
    if not store.providers():
        return f"No prices were collected here yet: `{typed('refresh')}` does, and needs no account."
    rentable = [one for one in market if one.offer.provider in set(ProviderName)]
    best = (rentable or market)[:1]
    return "".join(
        f"Without an account: {text.dollars(one.offer.price)}/h {one.offer.provider} {one.offer.instance_type} in"
        f" {one.offer.scope}: `{how_to_use(one.offer.provider)}`."
        if rentable
        else f"Without an account: {text.dollars(one.offer.price)}/h {one.offer.provider}, which {how_to_use(one.offer.provider)}."
        for one in best
    )


def table(market: list[Ranked]) -> list[str]:
    """In columns, for a log and a terminal."""
    rows = [("without an account", "machine", "gpu", "spot", "$/h", "to use it")]
    rows += [
        (
            one.offer.provider,
            f"{one.offer.instance_type} {one.offer.scope}",
            one.offer.gpu,
            "yes" if one.offer.spot else "no",
            f"{one.offer.price:.2f}",
            how_to_use(one.offer.provider),
        )
        for one in market[:SHOWN]
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    right = 4  # the price
    return [
        "  ".join(
            cell.rjust(width) if column == right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def markdown(market: list[Ranked]) -> str:
    """A section of the artifact `offers`."""
    rows = [
        text.row(
            one.offer.provider,
            one.offer.instance_type,
            one.offer.scope,
            one.offer.gpu,
            "spot" if one.offer.spot else "",
            f"{one.offer.price:.2f}",
            "" if one.price_per_gpu is None else f"{one.price_per_gpu:.2f}",
            how_to_use(one.offer.provider),
        )
        for one in market[:SHOWN]
    ]
    if not rows:
        return ""
    header = (
        "| provider | machine | where | GPU | spot | $/h | $/GPU-h | to use it |\n|---|---|---|---|---|--:|--:|---|"
    )
    return "\n".join(["## Without an account", "", header, *rows])
