"""What an order brings along: a start-up script, an uploaded key, an address. Made before it under its name, removed after it.

Until it is gone such a thing stands in `Listing.leftovers`, so that whoever cleans up by name finds it when the process dies in between.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from prefect_gpu.providers.core.errors import ProviderError, Transient, Unconfirmed
from prefect_gpu.providers.core.models import Instance, Leftover, Listing
from prefect_gpu.providers.core.toolkit import scopes
from prefect_gpu.providers.core.toolkit.answers import at
from prefect_gpu.providers.core.toolkit.http import JsonApi
from prefect_gpu.providers.core.toolkit.scopes import scoped

T = TypeVar("T")


@dataclass(frozen=True)
class Companion:
    """One kind of thing that orders bring along: `make` it and answer with its id, `remove` it by that; gone already is success."""

    kind: str  # "script", "ssh-key": its scope in ids
    make: Callable[[], str]
    remove: Callable[[str], object]


class Lists:
    """A vendor's lists of such things, each below a path of its kind, their rows with an `id` and a `name`."""

    def __init__(self, api: JsonApi, *, list_at: str = "", id_at: str = "id") -> None:
        self.api = api
        self._list_at = list_at  # in the answer to GET
        self._id_at = id_at  # in the answer to POST, where that is not the bare id

    def rows(self, kind: str) -> list[dict[str, Any]]:
        """All of them."""
        return list(self.api.rows(f"/{kind}", self._list_at))

    def add(self, kind: str, body: Mapping[str, Any]) -> str:
        """Add one, asked once; its id."""
        answer = self.api.post(f"/{kind}", dict(body), what=f"add to {kind}")
        found = answer if isinstance(answer, str) else at(answer, self._id_at)
        if not isinstance(found, str) or not found:
            raise Transient(f"the answer to adding {body['name']} to {kind} names no id")
        return found

    def remove(self, kind: str, number: str) -> None:
        """Remove one; gone already is success."""
        self.api.delete(f"/{kind}/{number}", missing_ok=True, what=f"remove {number} from {kind}")


def named(kind: str, body: Mapping[str, Any], lists: Lists) -> Companion:
    """A companion that its vendor lists by name: found there where the answer to making it was lost."""

    def make() -> str:
        try:
            return lists.add(kind, body)
        except Transient:
            number = next((row["id"] for row in lists.rows(kind) if row.get("name") == body["name"]), None)
            if number is None:
                raise
            return str(number)

    return Companion(kind, make, lambda number: lists.remove(kind, number))


def sweep(names: Container[str], kinds: Iterable[str], lists: Lists) -> None:
    """Remove what machines of these names brought along."""
    for kind in kinds:
        for row in lists.rows(kind):
            if row.get("name") and row["name"] in names:
                lists.remove(kind, str(row["id"]))


def listing(
    kinds: Sequence[str],
    rows: Callable[[str], list[dict[str, Any]]],
    instance: Callable[[dict[str, Any]], Instance],
    prefix: str,
) -> Listing:
    """What stands in the first of these lists, the machines, and what is left over in the others.

    Nothing is left over while the machines could not be read; a list with a row that cannot be read is unread as a whole.
    """

    def read(kind: str) -> list[Instance] | list[dict[str, Any]]:
        found = rows(kind)
        return [instance(row) for row in found] if kind == kinds[0] else found

    found, unread = scopes.read_each(kinds, read)
    every = [one for one in found.get(kinds[0], []) if isinstance(one, Instance)]
    seen = scopes.listing(scopes.Read({kinds[0]: every}, unread), prefix)
    if kinds[0] not in found:
        return seen
    standing = [one for one in every if not one.state.is_final]
    left = [
        one
        for kind in kinds[1:]
        for one in left_over(kind, (row for row in found.get(kind, []) if isinstance(row, dict)), prefix, standing)
    ]
    return seen.model_copy(update={"leftovers": tuple(left)})


def with_companions(companions: Iterable[Companion], order: Callable[[Mapping[str, str]], T]) -> T:
    """What `order` answers, given the ids of its companions by kind.

    They are removed again when the order was refused. After Unconfirmed they stay: the machine may be booting with them.
    """
    made: list[tuple[Companion, str]] = []
    try:
        for companion in companions:
            made.append((companion, companion.make()))  # noqa: PERF401 - what was made counts when the next one fails
        return order({companion.kind: thing for companion, thing in made})
    except Unconfirmed:
        raise
    except BaseException:
        for companion, thing in reversed(made):
            with suppress(ProviderError):  # it is listed as a leftover
                companion.remove(thing)
        raise


def left_over(
    kind: str,
    rows: Iterable[Mapping[str, Any]],
    prefix: str,
    standing: Iterable[Instance],
    *,
    id_at: str = "id",
    name_at: str = "name",
) -> list[Leftover]:
    """Of the vendor's list of such things those under the prefix whose instance does not stand: they are nobody's any more."""
    names = {instance.name for instance in standing}
    found: list[Leftover] = []
    for row in rows:
        name = str(row.get(name_at) or "")
        if name.startswith(prefix) and name not in names and row.get(id_at):
            found.append(Leftover(id=scoped(kind, row[id_at]), kind=kind, name=name))
    return found
