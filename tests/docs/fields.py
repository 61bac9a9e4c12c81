"""Fields of models and parameters of flows, as markdown tables."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterable
from typing import Any

from prefect.flows import Flow
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from prefect_gpu.blocks.collection import BLOCKS
from prefect_gpu.flows import fields as flow_fields
from prefect_gpu.flows.report import text


def table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """A markdown table."""
    names = tuple(head)
    return "\n".join([text.row(*names), "|" + "---|" * len(names), *(text.row(*row) for row in rows)])


def block_type(module: str) -> Any:
    """The block of a module in blocks/."""
    return getattr(importlib.import_module(f"prefect_gpu.blocks.{module}"), BLOCKS[module])


def of_model(model: type[BaseModel]) -> str:
    """Field, title, default and description; what stands in a field's own fields follows with a dot."""
    rows = list(_rows(model, ""))
    return table(("field", "default", "what it is"), rows) if rows else "Nothing."


def of_form(module: Any) -> str:
    """The parameters of the one flow that a module is for."""
    (flow,) = (
        one for name, one in vars(module).items() if isinstance(one, Flow) and one.fn.__module__ == module.__name__
    )
    form = flow_fields.schema(flow)
    defaults = inspect.signature(flow.fn).parameters
    rows: list[tuple[str, ...]] = []
    for name, field in sorted(form["properties"].items(), key=lambda one: one[1]["position"]):
        default = defaults[name].default
        shown = "needed" if default is inspect.Parameter.empty else shown_value(default)
        rows.append((f"`{name}`", field["title"], shown, field.get("description", "")))
    return table(("parameter", "in the form", "default", "what it is"), rows)


def first_sentence(doc: str | None) -> str:
    """Of a docstring, on one line."""
    return re.sub(r"\s+", " ", inspect.cleandoc(doc or "").partition("\n\n")[0])


def _rows(model: type[BaseModel], before: str) -> Iterable[tuple[str, ...]]:
    for name, field in model.model_fields.items():
        nested = _model_in(field.annotation)
        said = ". ".join(part.rstrip(".") for part in (field.title or "", field.description or "") if part)
        yield f"`{before}{name}`", default_of(field), f"{said}." if said else ""
        if nested is not None and nested.__module__.startswith("prefect_gpu") and before.count(".") < 2:
            yield from _rows(nested, f"{before}{name}.")


def default_of(field: Any) -> str:
    """`none`, `needed` or the value."""
    if field.is_required():
        return "needed"
    value = field.get_default(call_default_factory=True) if field.default is PydanticUndefined else field.default
    return shown_value(value)


def shown_value(value: Any) -> str:
    """A default as people read it."""
    if (
        value is None
        or value == ""
        or (isinstance(value, (list, tuple, dict)) and not value)
        or isinstance(value, BaseModel)
    ):
        return ""
    if isinstance(value, (list, tuple)):
        return ", ".join(f"`{one}`" for one in value)
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for one in getattr(annotation, "__args__", ()) if (found := _model_in(one))), None)
