"""The options of a command are the parameters of the flow that it starts: names, types and help come from the flow's own form.

They are read from the flow's source and `flows/fields.py`, because importing a flow takes two seconds. A field of `requirements` or
`job` is an option of its own. There is no second list: what a flow takes tomorrow can be typed tomorrow, as a flag and after `make`.
"""

from __future__ import annotations

import ast
import enum
import inspect
import json
import math
import os
import re
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple, Union, cast, get_args, get_origin

from cyclopts import Group, Parameter
from cyclopts.token import Token
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic.json_schema import SkipJsonSchema

from prefect_gpu.flows import fields as forms
from prefect_gpu.flows.terminal.messages import Wrong
from prefect_gpu.providers import ProviderName
from prefect_gpu.providers.core.typed import spelled

FLOWS: Final = Path(__file__).resolve().parents[1]
WHAT: Final = Group("What is rented", sort_key=1)
MACHINE: Final = Group("What the machine must have", sort_key=2)
JOB: Final = Group("The job", sort_key=3)
GROUPS: Final = {"": WHAT, "requirements": MACHINE, "job": JOB}
_HIDDEN: Final[Any] = SkipJsonSchema  # an alias of Annotated to type checkers
SHORT: Final = {"providers": "--provider", "files": "--file", "outputs": "--output", "secrets": "--secret"}


class Option(NamedTuple):
    """One of them."""

    name: str  # of the flow's parameter, or of the field
    inside: str  # "", "requirements" or "job"
    kind: Any  # what the flow takes
    help: str

    @property
    def flag(self) -> str:
        return f"--{self.name.replace('_', '-')}"

    @property
    def is_list(self) -> bool:
        """Whether it is written again and again."""
        return any(get_origin(one) in (list, tuple, dict) for one in (self.kind, *get_args(self.kind)))


@cache
def of_flow(module: str) -> tuple[Option, ...]:
    """The options of the flow in this module of `flows/`, in the order of its form; without `command`, which is no option."""
    tree = ast.parse((FLOWS / f"{module}.py").read_text())
    function = next(one for one in tree.body if isinstance(one, ast.FunctionDef) and one.name == module)
    found: list[Option] = []
    for parameter in function.args.args:
        annotation = parameter.annotation
        if parameter.arg == "command" or not isinstance(annotation, ast.Attribute):
            continue  # `list[str]` and its like are for programs
        kind, said = _read(getattr(forms, annotation.attr))
        if inspect.isclass(kind) and issubclass(kind, BaseModel):
            found += _fields(kind, parameter.arg)
        else:
            found.append(Option(parameter.arg, "", kind, said))
    return tuple(found)


def _read(annotated: Any) -> tuple[Any, str]:
    """The type without `| None`, and what the form says of it."""
    kind, said = annotated, ""
    if get_origin(annotated) is Annotated:
        kind, *more = get_args(annotated)
        field = next((one for one in more if isinstance(one, FieldInfo)), None)
        said = _said(field) if field is not None else ""
    return _without_none(kind), said


def _fields(model: type[BaseModel], inside: str) -> Iterator[Option]:
    for name, field in model.model_fields.items():
        if not any(isinstance(one, _HIDDEN) for one in field.metadata):  # it is a parameter of the flow
            yield Option(name, inside, _without_none(field.annotation), _said(field))


def _said(field: FieldInfo) -> str:
    return ". ".join(part.rstrip(".") for part in (field.title, field.description) if part) + "."


def _without_none(kind: Any) -> Any:
    if get_origin(kind) in (Union, types.UnionType):
        rest = [one for one in get_args(kind) if one is not type(None)]
        return rest[0] if len(rest) == 1 else kind
    return kind


# --- as a command has them ----------------------------------------------------------------------------------------------


def with_options(
    options: Sequence[Option], hidden: Callable[[Option], bool] = lambda _: False
) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Give a command function that ends in `**given` these options instead."""

    def given_to(function: Callable[..., int]) -> Callable[..., int]:
        signature = inspect.signature(function, eval_str=True)
        own = [one for one in signature.parameters.values() if one.kind is not inspect.Parameter.VAR_KEYWORD]
        added = [
            inspect.Parameter(
                one.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=_annotation(one, hidden(one))
            )
            for one in options
        ]
        function.__signature__ = signature.replace(parameters=[*own, *added])  # type: ignore[attr-defined]
        function.__annotations__ = {}
        return function

    return given_to


def _annotation(option: Option, is_hidden: bool) -> Any:
    kind = _typed(option)
    return Annotated[
        kind | None,
        Parameter(
            name=option.flag,
            alias=SHORT.get(option.name),
            help=option.help,
            group=GROUPS[option.inside],
            negative_iterable="",
            show=not is_hidden,
            converter=_number if kind is float else None,
            allow_leading_hyphen=kind is float,  # a price of -1 is refused as a price
        ),
    ]


def _typed(option: Option) -> Any:
    """As it is typed: everything with structure is one word after another."""
    kind = option.kind
    if option.is_list:
        return list[str]
    if inspect.isclass(kind) and issubclass(kind, enum.Enum):
        return Literal[tuple(one.value for one in kind)]
    if kind in (int, float, bool) or get_origin(kind) is Literal:
        return kind
    return str


def _number(_kind: Any, tokens: Sequence[Token]) -> float:
    """USD, hours or GB; what limits nothing ("nan", "inf", nothing at all) is refused: it is money."""
    token = tokens[0]
    name = token.keyword or "the number"
    text = token.value.strip()
    try:
        number = float(text.removeprefix("$"))
    except ValueError:
        number = math.nan
    if math.isfinite(number) and number >= 0:
        return number
    if re.search("price|cost", name, re.IGNORECASE):
        what = "is empty, which would be no limit" if not text else "is not a price"
        per_hour = " per hour" if "price" in name else ""
        raise Wrong(f"{spelled(name, token.value)} {what}: write USD{per_hour}, for example {spelled(name, '20')}.")
    raise Wrong(f"{spelled(name, token.value)} is not a number: write one, 0 or more.")


# --- as the flow takes them ---------------------------------------------------------------------------------------------


def parameters(options: Sequence[Option], given: Mapping[str, Any]) -> dict[str, Any]:
    """The flow's parameters from what was typed; what was not typed is left to the flow. Wrong, in a sentence."""
    found: dict[str, Any] = {}
    for one in options:
        value = given.get(one.name)
        if value is None:
            continue
        value = _value(one, value)
        if not one.inside:
            found[one.name] = value
        else:
            found.setdefault(one.inside, {})[one.name] = value
    return found


def _value(option: Option, value: Any) -> Any:
    if option.name == "providers":
        return providers(value)
    if option.name == "account":
        return _account(value)
    if option.name == "options":
        return _provider_options(value)
    if option.name == "env":
        return dict(_pair(word, option, os.environ) for word in value)
    if get_origin(option.kind) is dict:
        return dict(_pair(word, option, {}) for word in value)
    if option.is_list and get_args(option.kind)[:1] == (int,):
        return [_whole(word, option) for word in value]
    return value


def providers(words: Sequence[str]) -> list[str]:
    """The providers' own names: the server's form of the flow knows no aliases."""
    names: list[str] = []
    for word in " ".join(words).replace(",", " ").split():
        try:
            names.append(ProviderName(word.lower()).value)
        except ValueError:
            known = ", ".join(one.value for one in ProviderName)
            raise Wrong(f"There is no provider {word!r}: write one or some of {known}.") from None
    return names


def _account(words: Sequence[str]) -> str | dict[str, str]:
    if len(words) == 1 and "=" not in words[0]:
        return words[0]
    chosen: dict[str, str] = {}
    for word in words:
        name, is_pair, account = word.partition("=")
        if not is_pair:
            raise Wrong(
                f"{spelled('--account', word)}: write one name, or a name for each provider, as in {spelled('--account', 'aws=team')}."
            )
        chosen[providers([name])[0]] = account
    return chosen


def _provider_options(words: Sequence[str]) -> dict[str, dict[str, Any]]:
    chosen: dict[str, dict[str, Any]] = {}
    for word in words:
        if word.lstrip().startswith("{"):
            told = _json(word)
            if not isinstance(told, dict):
                raise Wrong(f"{spelled('--options', word)} is not a JSON object.")
            chosen |= cast("dict[str, dict[str, Any]]", told)
            continue
        where, is_pair, value = word.partition("=")
        provider, is_inside, name = where.partition(".")
        if not (is_pair and is_inside):
            raise Wrong(
                f"{spelled('--options', word)}: write PROVIDER.NAME=VALUE, for example {spelled('--options', 'aws.volume_type=gp3')}."
            )
        chosen.setdefault(providers([provider])[0], {})[name] = _json(value)
    return chosen


def _json(text: str) -> Any:
    """JSON where it is some, else the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _pair(word: str, option: Option, known: Mapping[str, str]) -> tuple[str, str]:
    """`NAME=value`; a name alone is taken from `known`, which is the environment of who types."""
    name, is_pair, value = word.partition("=")
    if name and is_pair:
        return name, value
    if name in known:
        return name, known[name]
    also = f"; {name} alone is not set here" if known and name else ""
    raise Wrong(f"{spelled(option.flag, word)}: write NAME=value{also}.")


def _whole(word: str, option: Option) -> int:
    try:
        return int(word)
    except ValueError:
        raise Wrong(f"{spelled(option.flag, word)} is not a whole number.") from None
