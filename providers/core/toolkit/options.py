"""What one order may ask of one provider beyond the contract: its own model, over the defaults of the account's block."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from prefect_gpu.providers.core.errors import InvalidRequest

M = TypeVar("M", bound=BaseModel)


def read(model: type[M], provider: str, given: Mapping[str, Any], block: object = None) -> M:
    """The options of one order: what it names, else what the block's field `options` has, else the model's defaults.

    Raises InvalidRequest, saying which option is wrong and which there are.
    """
    saved = getattr(block, "options", None)
    defaults = saved.model_dump(exclude_unset=True) if isinstance(saved, BaseModel) else {}
    try:
        return model.model_validate({**defaults, **given})
    except ValidationError as error:
        known = sorted(model.model_fields)
        wrong = "; ".join(_said(problem, provider) for problem in error.errors(include_url=False, include_input=False))
        takes = f"it takes {', '.join(known)}" if known else "it takes none"
        raise InvalidRequest(f"{wrong}: {takes}") from None


def _said(problem: Any, provider: str) -> str:
    name = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return f"{provider} has no option {name!r}"
    return f"{provider}'s option {name!r}: {problem['msg'][:1].lower()}{problem['msg'][1:]}"
