"""The fields of the flows' forms, written once for every flow that has them: Prefect shows title and description."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, cast, get_type_hints

from pydantic import Field
from pydantic.fields import FieldInfo

from prefect_gpu.providers import DEFAULT_ACCOUNT, ProviderName
from prefect_gpu.providers.core import requests

if TYPE_CHECKING:
    from prefect.flows import Flow

__all__ = [
    "ANY_MACHINE",
    "DEFAULT_ACCOUNT",
    "PLAIN_JOB",
    "Account",
    "Command",
    "Gpu",
    "Hours",
    "Job",
    "MaxCost",
    "MaxPrice",
    "MaxWait",
    "Options",
    "Order",
    "Providers",
    "Requirements",
    "Resume",
    "Retries",
    "RetryExitCodes",
    "schema",
]

ANY_MACHINE: Final = requests.Requirements()
PLAIN_JOB: Final = requests.Job()

Command = Annotated[
    str | list[str],
    Field(
        title="Command",
        description="What to run on the machine: a shell line such as python train.py --epochs 3, or a list of words.",
        examples=["python train.py"],
    ),
]
Gpu = Annotated[
    str,
    Field(
        title="GPU",
        description="H100 is one, H100:8 eight, A100:80GB one with that memory, 24GB.. any with at least so much; "
        "H100:8|A100:8 takes either, the first before the second. Empty: a machine without a GPU.",
        examples=["H100:8"],
    ),
]
MaxPrice = Annotated[
    float | None,
    Field(title="Price limit", description="USD per hour for the whole machine, for example 20. Empty: no limit."),
]
MaxCost = Annotated[
    float | None,
    Field(
        title="Budget",
        description="USD for the whole run, failed attempts included: it is stopped before more can be billed. Empty: none.",
    ),
]
MaxWait = Annotated[
    str,
    Field(
        title="Wait for a machine",
        description="How long offers are looked at again while nothing is to be had: 30m, 2h, 1d. Empty: not at all.",
    ),
]
Resume = Annotated[
    bool,
    Field(
        title="Resume",
        description="When the worker dies, another one goes on with the machine and its job. Off: the machine is given back.",
    ),
]
Retries = Annotated[
    int, Field(title="Retries of the job", description="So often a job that failed is run again, where it left off.")
]
RetryExitCodes = Annotated[
    list[int], Field(title="Exit codes to retry", description="Only after these. Empty: after any but 0.")
]
Providers = Annotated[
    list[ProviderName],
    Field(
        title="Providers",
        description="Whom to ask. Empty: all with saved credentials. local is the worker's own machine, and free.",
    ),
]
Order = Annotated[
    Literal["price", "given"],
    Field(
        title="Order", description="price: the cheapest offer first. given: the providers in the order listed above."
    ),
]
Requirements = Annotated[
    requests.Requirements, Field(title="Requirements", description="What else the machine must have.")
]
Job = Annotated[
    requests.Job, Field(title="Job", description="Files up and back, environment, secrets, code, image, time.")
]
Account = Annotated[
    str | dict[str, str],
    Field(
        title="Account",
        description="Name of the saved credentials, default where you gave none, or a map from provider to name.",
    ),
]
Options = Annotated[
    dict[str, dict[str, Any]],
    Field(
        title="Provider options",
        description='By provider, what only it has; each provider\'s page lists it. For example {"aws": {"volume_type": "gp3"}}.',
    ),
]
Hours = Annotated[
    float, Field(title="Expected stay in hours", description="Offers are ranked by what such a stay costs.")
]


def schema(flow: Flow[..., Any]) -> dict[str, Any]:
    """The flow's form as Prefect's UIs draw it best: with the titles and descriptions from here, and an empty field where nothing is set.

    Prefect titles a field by its parameter and draws `float | None = None` as a choice whose answer is `Property is type "None"`.
    A field of one type without a default may be left empty, and the server still takes null for it.
    """
    from prefect.utilities.callables import parameter_schema

    form: dict[str, Any] = parameter_schema(flow).model_dump_for_openapi()
    for name, hint in get_type_hints(flow.fn, include_extras=True).items():
        for told in (one for one in getattr(hint, "__metadata__", ()) if isinstance(one, FieldInfo)):
            said = {"title": told.title, "description": told.description}
            form["properties"][name] |= {key: value for key, value in said.items() if value}
    definitions = cast("dict[str, dict[str, Any]]", form.get("definitions", {}))
    for fields in (form["properties"], *(one.get("properties", {}) for one in definitions.values())):
        _leave_empty(fields.values(), definitions)
    return form


def _leave_empty(fields: Iterable[dict[str, Any]], definitions: dict[str, dict[str, Any]]) -> None:
    for field in fields:
        default = field.get("default")
        if isinstance(default, dict):  # what the form does not show, the server refuses when the form sends it back
            model = definitions.get(str(field.get("$ref", "")).rpartition("/")[2], {})
            set_ones = cast("dict[str, Any]", default).items()
            shown = model.get("properties", default)
            field["default"] = {key: value for key, value in set_ones if value is not None and key in shown}
        kinds = cast("list[dict[str, Any]]", field.get("anyOf", []))
        kept = [kind for kind in kinds if kind.get("type") != "null"]
        if default is not None or len(kept) == len(kinds):
            continue
        field.pop("default", None)
        if len(kept) == 1 and "type" in kept[0] and "enum" not in kept[0]:  # null is none of an enum's values
            field.pop("anyOf")
            field.update(kept[0])
