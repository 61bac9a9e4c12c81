"""What a machine may say instead of what it was asked: strategies for hypothesis, and bounds within which nonsense must be refused.

Whoever reads anything that a machine, a vendor or a job wrote can take `text()` for a whole answer, `like(example)` for one that is
nearly right, and `json_like(example)` for a document; and hold the reader to `bounded()`.
"""

from __future__ import annotations

import contextlib
import json
import time
import tracemalloc
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

# Numbers and words that broke a parser somewhere: too long for int(), for a float, for a calendar; digits of other scripts.
ODD = (
    "", " ", "-", "-1", "0", "1e400", "nan", "inf", "-inf", "0x10", "1_000", "9" * 400, "9" * 5000, "1" + "0" * 30, "3.", ".5",
    "٣", "²", "\0", "\x1b[2J", "\x1b]0;x\a", "\N{RIGHT-TO-LEFT OVERRIDE}", "\ud800", "é", "[N/A]", "ERR!", "%s", "{}", "$(id)",
    "../../etc", "a" * 100_000, ",", "|", "\t", "true", "null",
)  # fmt: skip


def word() -> st.SearchStrategy[str]:
    """One field."""
    return st.one_of(st.sampled_from(ODD), st.text(max_size=20), st.integers().map(str), st.floats().map(str))


def text() -> st.SearchStrategy[str]:
    """A whole answer of nonsense, as it stands after `decode(errors="replace")`."""
    lines = st.lists(st.lists(word(), max_size=8).map(" ".join), max_size=12).map("\n".join)
    return st.one_of(lines, st.binary(max_size=500).map(lambda data: data.decode(errors="replace")))


@st.composite
def like(draw: st.DrawFn, example: str) -> str:
    """The example with some of its fields, lines or bytes changed, dropped, repeated or cut."""
    lines = example.split("\n")
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, max(0, len(lines) - 1)))
        match draw(st.sampled_from(["field", "field", "field", "drop", "repeat", "insert", "cut"])):
            case "field":
                separator = ", " if ", " in lines[at] else " "
                fields = lines[at].split(separator)
                fields[draw(st.integers(0, len(fields) - 1))] = draw(word())
                lines[at] = separator.join(fields)
            case "drop":
                lines[at] = ""
            case "repeat":
                lines[at : at + 1] = [lines[at]] * draw(st.integers(2, 40))
            case "insert":
                lines.insert(at, draw(word()))
            case _:
                lines[at] = lines[at][: draw(st.integers(0, 20))]
    return "\n".join(lines)


def json_value() -> st.SearchStrategy[Any]:
    """Any document, shallow or with a list far too deep in it."""
    plain = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), word())
    return st.recursive(
        plain, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(word(), inner, max_size=4), max_leaves=12
    )


@st.composite
def json_like(draw: st.DrawFn, example: Any) -> str:
    """The example document as text, some of its values replaced by others of any type, or the text itself damaged."""

    def changed(value: Any) -> Any:
        if draw(st.integers(0, 7)) == 0:
            return draw(json_value())
        if isinstance(value, dict):
            return {
                (draw(word()) if draw(st.integers(0, 15)) == 0 else key): changed(inner) for key, inner in value.items()
            }
        if isinstance(value, list):
            return [changed(inner) for inner in value]
        return value

    said = json.dumps(changed(example))
    match draw(st.integers(0, 5)):
        case 0:
            return "[" * draw(st.sampled_from([10, 990, 100_000])) + said
        case 1:
            return said[: draw(st.integers(0, len(said)))]
        case _:
            return said


@contextlib.contextmanager
def bounded(*, seconds: float = 2.0, megabytes: float = 32.0) -> Iterator[None]:
    """What runs in it takes no longer and no more memory than this, whatever it was given; generous, for a busy machine."""
    tracemalloc.start()
    began = time.process_time()
    try:
        yield
        taken, (_, peak) = time.process_time() - began, tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert taken < seconds, f"{taken:.1f} s of CPU"
    assert peak < megabytes * 2**20, f"{peak / 2**20:.0f} MB"
