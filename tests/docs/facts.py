"""What the code knows, as markdown tables for the pages: one function for each kind of generated part."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Callable
from typing import Any, Final

from prefect.tasks import Task

from prefect_gpu import providers as registry
from prefect_gpu.blocks.collection import BLOCKS
from prefect_gpu.flows.report import text
from prefect_gpu.flows.run import cards
from prefect_gpu.providers import ProviderName
from prefect_gpu.providers.core import errors, requests
from prefect_gpu.providers.core.contract import Billing, Capabilities
from tests.docs import fields, pages
from tests.docs.fields import table

SELF_ENDS: Final = {
    "server": "the provider itself, by a time limit that the order carries",
    "guest": "the machine itself: it powers off at the end of its lease, and that ends the bill",
    "cluster": "the cluster: the pod has an active deadline",
    "scoped_key": "the machine itself, with a key that can end nothing else",
    "none": "nothing but `reap`: a machine that is switched off goes on costing money here",
}
HOST_KEYS: Final = {
    "placed": "placed on the machine by the order, known before the first connect",
    "by_logs": "told by the machine over the provider's own log, before the first connect",
    "first_use": "the one in the block; where it names none, the first that is seen, and that is said",
    "channel": "none is needed: commands go through the provider's own API",
}
IMAGES: Final = {
    "none": "no: jobs run on the machine as it is",
    "docker": "yes, in Docker on the machine",
    "native": "yes, the machine is the container",
}
REPEATABLE: Final = "yes: the same order sent twice is one machine, within one {}"
NOT_REPEATABLE: Final = "no: after a lost answer the machine is looked for by its name before anything else is ordered"


def capabilities(name: str) -> str:
    """What a provider can do, as its driver declares it."""
    able: Capabilities = registry.library(name).capabilities
    rows = [
        ("Spot machines", "yes" if able.spot else "no"),
        ("Prices", "from the catalog" if able.needs_catalog else "from its own answers, or its block"),
        ("Container images", IMAGES[able.images]),
        ("Host key", HOST_KEYS[able.host_key]),
        ("A lost answer to an order can be asked for again", _repeatable(able)),
        ("A machine that was ended is believed gone", _absent(able)),
        ("A machine may take to boot", text.duration(able.boot_deadline_s) + ", then the next offer is tried"),
        ("Billed", billed(able.billing)),
        ("Calls are held to", _limits(able)),
        ("Ends a machine if everything of ours is dead", SELF_ENDS[able.self_ends]),
    ]
    return table(("", ""), rows)


def billed(billing: Billing) -> str:
    """`by the started hour, at least one hour`."""
    step = {1: "by the second", 60: "by the started minute", 3600: "by the started hour"}
    said = step.get(billing.step_s, f"in steps of {text.duration(billing.step_s)}")
    if billing.minimum_s > billing.step_s:
        said += f", at least {text.duration(billing.minimum_s)}"
    said += {"order": ", from the order", "boot": ", from when it has booted", "running": ", from when it runs"}[
        billing.starts
    ]
    if billing.hourly_extras:
        said += f"; counted beside the price: {text.dollars(billing.hourly_extras)} an hour for disk and address"
    return said


def options(name: str) -> str:
    """What one order may ask of this provider beyond what all have: `options` of a run."""
    return fields.of_model(registry.library(name).driver_class.options_model)


def block(name: str) -> str:
    """The fields of a block, by its module's name."""
    return fields.of_model(fields.block_type(name))


def provider_table() -> str:
    """Each provider in a row."""
    rows: list[tuple[str, ...]] = []
    for name in ProviderName:
        able: Capabilities = registry.library(name).capabilities
        images = {"none": "-", "docker": "in Docker", "native": "native"}[able.images]
        ends = "no" if able.self_ends == "none" else "yes"
        rows.append(
            (
                f"[`{name.value}`]({name.value}.md)" if _has_page(name) else f"`{name.value}`",
                "yes" if able.spot else "-",
                images,
                billed(able.billing).partition(";")[0],
                ends,
            )
        )
    return table(("provider", "spot", "images", "billed", "ends by itself"), rows)


def billing_table() -> str:
    """How each provider counts money, as its driver declares it."""
    return table(
        ("provider", "billed"),
        [(f"`{name.value}`", billed(registry.library(name).capabilities.billing)) for name in ProviderName],
    )


def _has_page(name: ProviderName) -> bool:
    return (pages.DOCS / "providers" / f"{name.value}.md").is_file()


def block_table() -> str:
    """Each block type in a row."""
    rows: list[tuple[str, ...]] = []
    for module in BLOCKS:
        of_block: Any = fields.block_type(module)
        rows.append(
            (f"`{of_block._block_type_slug}`", of_block._block_type_name, fields.first_sentence(of_block.__doc__))
        )
    return table(("slug", "type", "holds"), rows)


def parameters(entrypoint: str) -> str:
    """The parameters of a deployable flow, by its module in flows/: as its form shows them."""
    return fields.of_form(importlib.import_module(f"prefect_gpu.flows.{entrypoint.replace('-', '_')}"))


def model(name: str) -> str:
    """The fields of `requirements` and `job`."""
    return fields.of_model({"requirements": requests.Requirements, "job": requests.Job}[name])


def tasks() -> str:
    """The tasks of a provider's task library."""
    library = registry.library(ProviderName.LOCAL)
    rows: list[tuple[str, ...]] = []
    for name, one in vars(library).items():
        if isinstance(one, Task):
            call = inspect.signature(one.fn)
            told = [
                str(parameter.name) + ("" if parameter.default is inspect.Parameter.empty else "=")
                for parameter in call.parameters.values()
                if parameter.name not in {"should_stop", "on_progress", "on_running"}
            ]
            rows.append(
                (
                    f"`{name}({', '.join(told)})`",
                    f"{one.name.partition(' (')[0]}",
                    fields.first_sentence(one.fn.__doc__),
                )
            )
    return table(("task", "shown as", "what it does"), rows)


def errors_table() -> str:
    """What can go wrong, and how much of the choice it rules out."""
    rows = [
        (f"`{one.__name__}`", one.short, one.usual_reach, fields.first_sentence(one.__doc__))
        for one in vars(errors).values()
        if inspect.isclass(one) and issubclass(one, errors.ProviderError) and one is not errors.ProviderError
    ]
    return table(("error", "in a run's story", "rules out", "what happened"), rows)


def events() -> str:
    """Each event that is sent, found in the source."""
    return table(("event", "when"), [(f"`{name}`", EVENTS.get(name, "")) for name in sorted(found_events())])


def found_events() -> dict[str, str]:
    """Every event in flows/: its name and the module that sends it."""
    found: dict[str, str] = {}
    for path in sorted((pages.ROOT / "flows").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            called = node.func if isinstance(node, ast.Call) else None
            name = (
                called.attr if isinstance(called, ast.Attribute) else called.id if isinstance(called, ast.Name) else ""
            )
            if isinstance(node, ast.Call) and name in {"tell", "_tell", "emit_event"}:
                for one in names_in(
                    node.args[1] if name == "tell" and len(node.args) > 1 else node.args[0] if node.args else node
                ):
                    event = one if one.startswith("prefect-gpu.") else f"prefect-gpu.{one}"
                    found.setdefault(event, str(path.relative_to(pages.ROOT / "flows")))
    return found


def names_in(node: ast.AST) -> list[str]:
    """The names that an argument may be: a literal, either side of a choice, or a literal's beginning with `*`."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return [node.value] if re.fullmatch(r"[a-z-]+(\.[a-z-]+)+", node.value) else []
    if isinstance(node, ast.IfExp):
        return [*names_in(node.body), *names_in(node.orelse)]
    if isinstance(node, ast.JoinedStr):
        text_of = "".join(str(part.value) if isinstance(part, ast.Constant) else "*" for part in node.values)
        return [text_of] if re.fullmatch(r"prefect-gpu\.[a-z]+\.\*", text_of) else []
    return []


def artifacts() -> str:
    """Each artifact that a person may look at."""
    return table(("artifact", "of", "what it answers"), ARTIFACTS)


def commands() -> str:
    """The commands of `prefect-gpu`."""
    from prefect_gpu.flows.terminal import jobs, setting_up, watching  # noqa: F401 - they name their commands
    from prefect_gpu.flows.terminal.app import app

    rows: list[tuple[str, ...]] = []
    for group in ("Rent", "Look and end", "Set up"):
        of_group = [
            one
            for name in app
            if not name.startswith("-")
            for one in (app[name],)
            if group in {g.name for g in one.group}
        ]
        rows += [(f"`prefect-gpu {one.name[0]}`", group, fields.first_sentence(one.help)) for one in of_group]
    return table(("command", "", "what it does"), rows)


EVENTS: Final = {
    "prefect-gpu.offer.refused": "An offer came to nothing: provider, machine, where, `category` and the provider's own words.",
    "prefect-gpu.instance.created": "An order was accepted: name, provider, machine, price.",
    "prefect-gpu.instance.gone": "A machine's absence was observed: name, provider, how it is known, what it cost.",
    "prefect-gpu.termination.owed": "A machine is not confirmed gone: name, provider, what was seen instead.",
    "prefect-gpu.termination.overdue": "A machine does not end though its lease is over: name, provider, account, and how a person ends it.",
    "prefect-gpu.job.lost": "A job's machine went while it ran: `interrupted` or `lost`, and what became of it.",
    "prefect-gpu.cost.crossed": "A run has used a share of its budget.",
    "prefect-gpu.price.dropped": "A price fell: GPU, provider, price per GPU-hour, what it was; related to each threshold that it fell below.",
    "prefect-gpu.prices.*": "The prices of a provider were `published`, are `unchanged`, or were `kept` because the new ones fail or look wrong.",
}
ARTIFACTS: Final = [
    *((f"`{card.key}`", "a run", card.question) for card in (cards.TRIED, cards.COST, cards.FILES)),
    ("`offers`", "`plan`", "What would I get? The offers in the order they would be tried, and why."),
    ("`prices`", "`refresh-catalog`", "What changed? Prices by provider, what fell, what was held back."),
    ("`reap`", "`reap`", "What did the last reap see? Machines in use, ended, still to confirm, reported."),
]

WRITERS: Final[dict[str, Callable[..., str]]] = {
    "capabilities": capabilities,
    "options": options,
    "block": block,
    "providers": provider_table,
    "blocks": block_table,
    "parameters": parameters,
    "model": model,
    "tasks": tasks,
    "errors": errors_table,
    "events": events,
    "artifacts": artifacts,
    "commands": commands,
    "billing": billing_table,
}


def write(kind: str, words: list[str]) -> str:
    """The generated part of a kind; KeyError for a kind that there is not."""
    return WRITERS[kind](*words)


def _repeatable(able: Capabilities) -> str:
    return REPEATABLE.format(able.create_repeatable) if able.create_repeatable else NOT_REPEATABLE


def _absent(able: Capabilities) -> str:
    lag = (
        "at once"
        if not able.listing_lag_s
        else f"when complete lists {text.duration(able.listing_lag_s)} apart lack it"
    )
    return f"when its id is unknown, or {lag}" if able.not_found_proves_absence else f"when its state says so, or {lag}"


def _limits(able: Capabilities) -> str:
    said = [
        f"{limit.calls} in {_time(limit.per_s)}" + ("" if what == "*" else f" for `{what}`")
        for what, limit in able.rate_limits.items()
    ]
    return ", ".join(said) + ", over all workers together" if said else "nothing; a refusal for too many is waited out"


def _time(seconds: float) -> str:
    return "a second" if seconds == 1 else text.duration(seconds)
