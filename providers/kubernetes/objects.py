"""Kubernetes' JSON, read with distrust: whatever is missing, misshapen or endless becomes something empty, never an exception."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any, Final, cast

Json = dict[str, Any]

MOST_WORDS: Final = 500  # characters of what somebody else wrote, in a message
_UNITS: Final = {
    "n": 1e-9, "u": 1e-6, "m": 1e-3, "": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18,
    "Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40, "Pi": 2.0**50, "Ei": 2.0**60,
}  # fmt: skip
_QUANTITY: Final = re.compile(r"\+?(\d{1,30}(?:\.\d{0,30})?(?:[eE][+-]?\d{1,2})?)([A-Za-z]{0,2})", re.ASCII)
_MOST: Final = 2.0**63  # what Kubernetes itself can count to


def as_dict(value: object) -> Json:
    """A JSON object, or an empty one where there is none: Kubernetes leaves out what is empty."""
    return cast("Json", value) if isinstance(value, dict) else {}


def as_list(value: object) -> list[Json]:
    """The objects of a JSON array, or none where there is no array."""
    if not isinstance(value, list):
        return []
    return [cast("Json", one) for one in cast("list[object]", value) if isinstance(one, dict)]


def as_text(value: object, most: int = MOST_WORDS) -> str:
    """A JSON string in one line of bounded length, or an empty one where there is none."""
    return one_line(value[: 8 * most], most) if isinstance(value, str) else ""


def as_texts(value: object) -> dict[str, str]:
    """Labels and the like: strings by name, without what is no string."""
    return {key: one[:MOST_WORDS] for key, one in as_dict(value).items() if isinstance(one, str)}


def as_number(value: object) -> int:
    """A JSON number, or a number that is written as a string, as a whole one; 0 where there is none."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 16:
        return int(value)
    return int(max(-1e15, min(value, 1e15))) if isinstance(value, int | float) and value == value else 0  # noqa: PLR0124 - NaN


def instant(value: object) -> datetime | None:
    """A time as Kubernetes writes it, aware; None where there is none."""
    try:
        moment = datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        return None
    return moment.replace(tzinfo=UTC) if moment is not None and moment.tzinfo is None else moment


def one_line(text: str, most: int = MOST_WORDS) -> str:
    """The text in one line, cut where it is longer than a message may be."""
    line = " ".join(text.split())
    return line if len(line) <= most else line[: most - 1] + "…"


def quantity(value: object) -> float:
    """A Kubernetes quantity as a number: "1930m" is 1.93, "24581696Ki" is bytes; 0 where it cannot be read."""
    match = _QUANTITY.fullmatch(str(value)[:64]) if isinstance(value, str | int | float) else None
    if match is None or match[2] not in _UNITS:
        return 0.0
    return min(float(match[1]) * _UNITS[match[2]], _MOST)


def quantities(value: object) -> dict[str, float]:
    """A list of resources as numbers by name."""
    return {key: quantity(one) for key, one in as_dict(value).items()}


def requests(spec: Json) -> dict[str, float]:
    """What a pod has of its node: the sum of its containers or its biggest init container, and the overhead."""

    def of(container: Json) -> dict[str, float]:
        resources = as_dict(container.get("resources"))
        return quantities({**as_dict(resources.get("limits")), **as_dict(resources.get("requests"))})

    total: dict[str, float] = {"pods": 1.0}
    init = as_list(spec.get("initContainers"))
    sidecars = [one for one in init if one.get("restartPolicy") == "Always"]
    for container in (*as_list(spec.get("containers")), *sidecars):
        for key, value in of(container).items():
            total[key] = total.get(key, 0.0) + value
    for container in init:
        for key, value in of(container).items():
            total[key] = max(total.get(key, 0.0), value)
    for key, value in quantities(spec.get("overhead")).items():
        total[key] = total.get(key, 0.0) + value
    return total
