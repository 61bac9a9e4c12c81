"""`connect`: asks for what a provider's credentials block needs, checks it with the provider, saves it.

The same check in Python: `library("aws").driver_class(block).missing_rights()`.
"""

from __future__ import annotations

import getpass
import inspect
from pathlib import Path
from types import UnionType
from typing import Any, Final, Literal, Protocol, TypeVar, Union, cast, get_args, get_origin

from prefect.blocks.core import Block
from prefect.client.orchestration import SyncPrefectClient
from pydantic import BaseModel, SecretStr, ValidationError
from pydantic.fields import FieldInfo

from prefect_gpu.flows.terminal.addresses import machines
from prefect_gpu.flows.terminal.asked import provider_named
from prefect_gpu.flows.terminal.follow import Display
from prefect_gpu.flows.terminal.found_here import Found, answer_to
from prefect_gpu.flows.terminal.messages import Trouble, waiting
from prefect_gpu.flows.terminal.records import PAGE
from prefect_gpu.providers import library
from prefect_gpu.providers.core.errors import AuthFailed, ProviderError

# What the users of a provider have, in the order in which they have it; everything else is asked for by name.
FIRST: Final = {
    "gpu-aws": ("aws",),
    "aws-credentials": ("profile_name", "aws_access_key_id", "aws_secret_access_key", "aws_session_token"),
    "gpu-azure": ("subscription_id", "tenant_id", "client_id", "client_secret"),
    "gpu-gcp": ("project", "key"),
    "gpu-kubernetes": ("kubeconfig", "context", "namespace"),
    "gpu-ssh": ("hosts", "private_key"),
}
# Who has the one needs no other.
INSTEAD: Final = {"profile_name": ("aws_access_key_id", "aws_secret_access_key", "aws_session_token")}
SIMPLE: Final = (str, int, float, bool)

NOTHING: Final = Found()

M = TypeVar("M", bound=BaseModel)


class Ask(Protocol):
    """Puts a question and gives the answer, without spaces around it."""

    def __call__(self, question: str, *, secret: bool = False) -> str: ...


def ask_terminal(question: str, *, secret: bool = False) -> str:
    """An answer from the terminal, secrets without echo."""
    try:
        return (getpass.getpass(question) if secret else input(question)).strip()
    except EOFError:
        raise Trouble("The answers ended before the questions: nothing was saved.") from None


def connect(client: SyncPrefectClient, name: str, account: str, display: Display, ask: Ask | None = None) -> int:
    """Ask, check and save; the exit code. `ask` stands in for the terminal in tests."""
    provider = provider_named(name)
    try:
        tasks = library(provider)
    except ProviderError as missing:
        raise Trouble(missing.message) from missing
    ask = ask or ask_terminal
    block_class = tasks.credentials_class
    if block_class is None:
        raise Trouble(f"{provider.value} needs no credentials.")
    display.line(f"{block_class.get_block_type_name()}, to be saved as {account!r}. Enter keeps what stands in [ ].")
    block = _asked(client, block_class, ask, display)
    with waiting(f"asking {provider.value}"):
        driver = tasks.driver_class(cast("Any", block))
        try:
            missing_rights = driver.missing_rights()
            block, learnt = driver.first_contact()
        except AuthFailed as refused:
            raise Trouble(
                f"{provider.value} refuses these credentials, and nothing was saved: {refused.message}"
            ) from refused
        except ProviderError as trouble:
            raise Trouble(f"{provider.value} could not be asked, and nothing was saved: {trouble.message}") from trouble
        except Exception as trouble:  # an SDK's own word against half of the credentials
            raise Trouble(f"{provider.value} could not be asked, and nothing was saved: {trouble}") from trouble
    block.save(account, overwrite=True, _sync=True)  # pyright: ignore[reportCallIssue] - async dispatch
    display.line(f"Saved as {account!r}. {provider.value} accepts them.")
    for line in learnt:
        display.line(f"  {line}")
    for right in missing_rights:
        display.line(f"  missing: {right}")
    return 0


def _asked(client: SyncPrefectClient, model: type[M], ask: Ask, display: Display) -> M:
    """An object of the model from the answers; asked again, with what is wrong, until it is one."""
    slug = _slug(model)
    while True:
        values: dict[str, Any] = {}
        further: list[tuple[str, FieldInfo]] = []
        order = FIRST.get(slug, ())
        fields = {name: model.model_fields[name] for name in order if name in model.model_fields} | model.model_fields
        for name, field in fields.items():
            if any(name in others for one, others in INSTEAD.items() if values.get(one)):
                continue
            if name in order or (not order and _is_first(field)) or field.is_required():
                _answer(
                    client, name, field, values, ask, display, answer_to(slug, name, values), is_usual=name in order
                )
            elif _is_simple(_inner(field.annotation)) or _is_first(field):
                further.append((name, field))
        if further and ask(
            f"{len(further)} more settings ({', '.join(_title(*one) for one in further[:3])} ...)? [n] "
        ) in {"y", "yes"}:
            for name, field in further:
                _answer(client, name, field, values, ask, display)
        try:
            return model(**values)
        except ValidationError as error:
            for problem in error.errors():
                display.line(f"  {'.'.join(map(str, problem['loc']))}: {problem['msg'].removeprefix('Value error, ')}")


def _slug(model: type[BaseModel]) -> str:
    return model.get_block_type_slug() if issubclass(model, Block) else ""


def _answer(
    client: SyncPrefectClient,
    name: str,
    field: FieldInfo,
    values: dict[str, Any],
    ask: Ask,
    display: Display,
    found: Found = NOTHING,
    *,
    is_usual: bool = False,
) -> None:
    """Ask for one field and put the answer among the values; Enter takes what was found here, or leaves the default."""
    kind, title = _inner(field.annotation), _title(name, field)
    if found.said:
        display.line(f"  {found.said}", "dim")
    if field.description:
        display.line(f"  {field.description}", "dim")
    if inspect.isclass(kind) and issubclass(kind, Block):
        if block := _nested(client, kind, title, ask, display, is_usual=is_usual):
            values[name] = block
    elif item := _item(kind):
        items: list[BaseModel] = []
        if "address" in item.model_fields:
            values[name] = _machines(item, title, ask, display)
            return
        while (one := _one_item(item, f"{title} {len(items) + 1}", ask, display)) is not None:
            items.append(one)
        values[name] = items
    elif kind is SecretStr:
        if answer := ask(f"{title} (or @file): ", secret=True):
            values[name] = SecretStr(_from_file(answer))
    elif answer := _word(title, field, found, ask):
        values[name] = answer.replace(",", " ").split() if _is_list(kind) else answer


def _word(title: str, field: FieldInfo, found: Found, ask: Ask) -> str:
    """One answer; empty for the default."""
    if found.answer is None:
        return ask(f"{title}{_shown_default(field)}: ")
    answer = ask(f"{title} [{found.answer}], - for none: ") or found.answer
    return "" if answer == "-" else answer


def _nested(
    client: SyncPrefectClient, block_class: type[Block], title: str, ask: Ask, display: Display, *, is_usual: bool
) -> Block | None:
    """A block inside the block: a saved one by name, a new one from answers, or none."""
    type_name = block_class.get_block_type_name()
    saved = _saved(client, block_class)
    known = f" (saved: {', '.join(saved)})" if saved else ""
    while True:
        default = "new" if is_usual and not saved else "none"
        answer = ask(f"{title}: name of a saved block {type_name}{known}, new or none [{default}]: ") or default
        if answer == "none":
            return None
        if answer == "new":
            return _asked(client, block_class, ask, display)
        try:
            return cast("Block", block_class.load(answer, _sync=True))  # pyright: ignore[reportCallIssue] - async dispatch
        except ValueError:
            display.line(f"  there is no {type_name} saved as {answer!r}")


def _saved(client: SyncPrefectClient, block_class: type[Block]) -> list[str]:
    """The names of all saved blocks of a type: the server gives 200 at once."""
    found: list[str] = []
    offset = 0
    while True:
        page = client.read_block_documents_by_type(block_class.get_block_type_slug(), offset=offset, limit=PAGE)
        found += [document.name for document in page if document.name and not document.is_anonymous]
        if len(page) < PAGE:
            return found
        offset += PAGE


def _machines(item: type[BaseModel], title: str, ask: Ask, display: Display) -> list[BaseModel]:
    """All machines at once, as people write them."""
    while True:
        answer = ask(f"{title}, as user@host:port or by their names in ~/.ssh/config, several with spaces: ")
        try:
            return [item(**one) for one in machines(answer)]
        except ValidationError as error:
            display.line(f"  {'.'.join(map(str, error.errors()[0]['loc']))}: {error.errors()[0]['msg']}")
        except ValueError as error:
            display.line(f"  {error}")


def _one_item(item: type[BaseModel], title: str, ask: Ask, display: Display) -> BaseModel | None:
    """One element of a list, or None when Enter ends it; what is not required stays at its default."""
    while True:
        values: dict[str, Any] = {}
        for name, field in item.model_fields.items():
            if not field.is_required():
                continue
            end = "" if values else " [no more]"
            answer = ask(f"{title}, {_title(name, field).lower()}{end}: ")
            if not answer and not values:
                return None
            values[name] = answer
        try:
            return item(**values)
        except ValidationError as error:
            display.line(f"  {error.errors()[0]['msg']}")


def _is_first(field: FieldInfo) -> bool:
    """Whether a newcomer is asked for it: what is required, secrets, and official credentials inside ours."""
    kind = _inner(field.annotation)
    return field.is_required() or kind is SecretStr or (inspect.isclass(kind) and issubclass(kind, Block))


def _is_simple(kind: Any) -> bool:
    return kind in SIMPLE or _is_list(kind) or get_origin(kind) is Literal


def _is_list(kind: Any) -> bool:
    return get_origin(kind) in (list, tuple) and get_args(kind)[0] in SIMPLE


def _item(kind: Any) -> type[BaseModel] | None:
    """The model of the elements, where the field is a list of models."""
    if get_origin(kind) not in (list, tuple):
        return None
    item = get_args(kind)[0]
    return item if inspect.isclass(item) and issubclass(item, BaseModel) else None


def _inner(annotation: Any) -> Any:
    """The type without `| None`."""
    if get_origin(annotation) in (Union, UnionType):
        rest = [one for one in get_args(annotation) if one is not type(None)]
        return rest[0] if len(rest) == 1 else annotation
    return annotation


def _title(name: str, field: FieldInfo) -> str:
    return field.title or name.replace("_", " ").capitalize()


def _shown_default(field: FieldInfo) -> str:
    if field.is_required():
        return ""
    default: Any = field.get_default(call_default_factory=True, validated_data={})
    if default in (None, "", [], ()):
        return " [none]"
    return (
        f" [{', '.join(map(str, cast('list[Any]', default)))}]"
        if isinstance(default, list | tuple)
        else f" [{default}]"
    )


def _from_file(answer: str) -> str:
    """A secret that is written as @path is the file's content: private keys have many lines."""
    if not answer.startswith("@"):
        return answer
    path = Path(answer[1:]).expanduser()
    try:
        return path.read_text()
    except OSError as error:
        raise Trouble(f"{path} cannot be read ({error.strerror}): nothing was saved.") from None
