"""What people write for `gpu=`, read: what is clear is understood, what is not is refused with the nearest thing.

H100        one H100                    24GB..          one GPU with 24 GB or more
H100:8      eight of them, also 8xH100  24GB..80GB      between 24 and 80
H100:4..8   from four to eight          ..              any GPU
A100:80GB   the large one               640GB.. total   all GPUs together, however many
H100,H200:8 either of the two           H100:8|A100:8   alternatives, the first that can be had
v6e, v6e-8  a TPU, of any or one size   p5.48xlarge     an instance type, by the provider's name for it
=Some Name  a GPU by exactly that name, as an offer shows it
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from prefect_gpu.providers.core.gpu.accelerators import find
from prefect_gpu.providers.core.gpu.names import candidates, nearest, squash, tpu
from prefect_gpu.providers.core.requests import GpuRequest

if TYPE_CHECKING:
    from collections.abc import Iterable

_LONGEST: Final = 500
# A size as providers round it: 80 GB are sold as 79.6, 80 and 81 (accelerators.py has the same 7 %).
_ROUNDING: Final = 0.07

_TIMES_BEFORE = re.compile(r"(\d+)\s*[x×*]\s*(?=\S)|(\d{1,2})\s+(?=[a-z])", re.IGNORECASE)  # noqa: RUF001 - people paste it
_TIMES_AFTER = re.compile(r"(?:\s+[x×*]\s*|(?<=\S)[x×*])(\d{1,2})$", re.IGNORECASE)  # noqa: RUF001 - people paste it
_COUNT = re.compile(r"(\d+)")
_COUNTS = re.compile(r"(\d*)\s*\.\.\s*(\d*)")
_SIZE = r"(\d+(?:\.\d+)?)\s*(GB|GiB|G|TB|TiB|T)"
_MEMORY = re.compile(_SIZE, re.IGNORECASE)
_MEMORIES = re.compile(rf"(?:{_SIZE})?\s*\.\.\s*(?:{_SIZE})?|(\d+(?:\.\d+)?)\s*\.\.\s*{_SIZE}", re.IGNORECASE)
_MEMORY_IN_NAME = re.compile(rf"(?<=[\s_-])(?P<memory>{_SIZE}(?:\s*\.\.)?)(?=$|[\s_-])", re.IGNORECASE)
_NAME_AND_NUMBER = re.compile(r"(?P<name>.*[^\s_-])[\s_-]+(?P<number>\d+)")
_PLAIN = re.compile(r"[A-Za-z0-9 ._/()+-]+")
_TOTAL = re.compile(r"\btotal\b", re.IGNORECASE)


class _Memory(NamedTuple):
    """GB, at least and at most."""

    low: float | None
    high: float | None


class Market(Protocol):
    """What is sold, by its names: asked only for what is not a known GPU."""

    def gpu_names(self) -> list[str]: ...

    def has_instance_type(self, name: str) -> bool: ...


def parse_gpu(text: str, market: Market | None = None) -> tuple[GpuRequest, ...]:
    """The alternatives that `gpu=` asks for, in order; empty for none. ValueError with one sentence for what is not clear.

    `market` knows the GPUs and instance types of price lists beside the known GPUs.
    """
    text = text.strip()
    if text.lower() in {"", "none"}:
        return ()
    if len(text) > _LONGEST:
        raise ValueError(f"gpu= is longer than {_LONGEST} characters: write something like H100:8 or 24GB..")
    return tuple(_alternative(part.strip(), text, market) for part in text.split("|"))


class _Said:
    """What one alternative has said so far: each thing at most once."""

    def __init__(self, text: str, market: Market | None) -> None:
        self.text = text
        self.market = market
        self.names: tuple[str, ...] = ()
        self.count: tuple[int, int | None] | None = None
        self.memory: _Memory | None = None
        self.total: _Memory | None = None

    def without_times(self) -> str:
        """The text without the `8x` in front or the `x8` behind, which say the number of GPUs."""
        if self.text.startswith("="):
            return self.text
        if (before := _TIMES_BEFORE.match(self.text)) and not _MEMORY.match(self.text):
            self.say_count(_count_pair(before[1] or before[2], self.text))
            return self.text[before.end() :]
        if after := _TIMES_AFTER.search(self.text):
            self.say_count(_count_pair(after[1], self.text))
            return self.text[: after.start()]
        return self.text

    def first(self, part: str) -> None:
        """What stands first is a name (which may be all digits: 4090), unless it is memory or `..`."""
        if part == ".." or part.lower() in {"any", "any gpu", "gpu"}:
            return
        if part.startswith("="):
            self.names = (_exact(part, self.text),)
        elif not self.is_memory(part):
            sizes = list(_MEMORY_IN_NAME.finditer(part))  # A100-80GB, A100 80GB SXM
            self.names = _names(_MEMORY_IN_NAME.sub("", part).strip(" _-") if sizes else part, self.text, self.market)
            for size in sizes:
                self.is_memory(size["memory"])

    def more(self, part: str) -> None:
        if self.is_memory(part):
            return
        count = _counts(part, self.text)
        if count is None:
            raise ValueError(
                f"{part!r} in gpu={self.text!r} is neither a number of GPUs nor memory: write for example H100:8 or A100:80GB"
            )
        self.say_count(count)

    def say_count(self, count: tuple[int, int | None]) -> None:
        if self.count is not None:
            raise self._twice("number of GPUs")
        self.count = count

    def is_memory(self, part: str) -> bool:
        """Whether this part says memory, and if so, keep it."""
        if _TOTAL.search(part):
            size = _TOTAL.sub("", part).strip()
            total = _memory(size, self.text)
            if total is None:
                raise ValueError(f"{size!r} in gpu={self.text!r} is no memory: write for example 640GB.. total")
            if self.total is not None:
                raise self._twice("total memory")
            self.total = total
            return True
        memory = _memory(part, self.text)
        if memory is not None and self.memory is not None:
            raise self._twice("memory")
        self.memory = memory or self.memory
        return memory is not None

    def _twice(self, what: str) -> ValueError:
        return ValueError(f"gpu={self.text!r} says the {what} twice: write it once, for example H100:80GB:8")


def _alternative(text: str, whole: str, market: Market | None) -> GpuRequest:
    if not text:
        raise ValueError(f"gpu={whole!r} has an empty alternative: write for example H100:8|A100:8")
    try:
        return _of_gpu(text, market)
    except ValueError:
        if market is None or not market.has_instance_type(text):
            raise
        return GpuRequest(instance_type=text, count_min=0, text=text)


def _of_gpu(text: str, market: Market | None) -> GpuRequest:
    said = _Said(text, market)
    first, *more = _join_total([part.strip() for part in said.without_times().split(":")])
    said.first(first)
    for part in more:
        said.more(part)
    count_min, count_max = said.count or (1, None if said.total else 1)
    memory = said.memory or _Memory(None, None)
    total = said.total or _Memory(None, None)
    _refuse_impossible_memory(said.names, memory, text)
    names, count_min, count_max = _slices(said.names, count_min, count_max, text)
    return GpuRequest(
        names=names,
        count_min=count_min,
        count_max=count_max,
        memory_min_gb=memory.low,
        memory_max_gb=memory.high,
        total_memory_min_gb=total.low,
        total_memory_max_gb=total.high,
        text=text,
    )


def _slices(
    names: tuple[str, ...], count_min: int, count_max: int | None, text: str
) -> tuple[tuple[str, ...], int, int | None]:
    """A TPU is sold in slices that are named by their size: `v6e:8` is one v6e-8."""
    if (count_min, count_max) == (1, 1) or not any((found := tpu(name)) and found[1] is None for name in names):
        return names, count_min, count_max
    if count_min != count_max or not all(tpu(name) for name in names):
        raise ValueError(f"gpu={text!r} asks for several sizes of a TPU: write each, for example v6e-4|v6e-8")
    return tuple(f"{name}-{count_min}" for name in names), 1, 1


def _join_total(parts: list[str]) -> list[str]:
    """`total` may stand before its memory with a colon (`H100:total:640GB..`); elsewhere it stands beside it."""
    joined: list[str] = []
    for part in parts:
        if joined and joined[-1].lower() == "total":
            joined[-1] += " " + part
        else:
            joined.append(part)
    return joined


def _count_pair(digits: str, text: str) -> tuple[int, int]:
    return _at_least_one(int(digits), text), int(digits)


def _counts(part: str, text: str) -> tuple[int, int | None] | None:
    if exact := _COUNT.fullmatch(part):
        return _count_pair(exact[1], text)
    bounds = _COUNTS.fullmatch(part)
    if bounds is None:
        return None
    low = _at_least_one(int(bounds[1]), text) if bounds[1] else 1
    high = _at_least_one(int(bounds[2]), text) if bounds[2] else None
    if high is not None and high < low:
        raise ValueError(f"gpu={text!r} asks for {low} to {high} GPUs: write the smaller number first, {high}..{low}")
    return low, high


def _at_least_one(count: int, text: str) -> int:
    if count < 1:
        raise ValueError(f"gpu={text!r} asks for 0 GPUs: leave gpu empty for a machine without one")
    if count > 100_000:
        raise ValueError(f"gpu={text!r} asks for {count} GPUs: no machine has so many")
    return count


def _memory(part: str, text: str) -> _Memory | None:
    """The memory that a part says; None if it says something else."""
    if exact := _MEMORY.fullmatch(part):
        size = _gb(exact[1], exact[2])
        return _Memory(round(size * (1 - _ROUNDING), 3), round(size * (1 + _ROUNDING), 3))
    bounds = _MEMORIES.fullmatch(part)
    if bounds is None or not any(bounds.groups()):
        return None
    left, left_unit, right, right_unit, bare_left, bare_right, unit = bounds.groups()  # 24GB..80GB, or 24..80GB
    low = _gb(bare_left, unit) if bare_left else _gb(left, left_unit) if left else None
    high = _gb(bare_right, unit) if bare_right else _gb(right, right_unit) if right else None
    if high is not None and high <= (low or 0):
        raise ValueError(f"no GPU has the memory that gpu={text!r} asks for: write the smaller size first, 24GB..80GB")
    return _Memory(low, high)


def _gb(number: str, unit: str) -> float:
    return float(number) * (1000 if unit.upper().startswith("T") else 1)


def _exact(part: str, text: str) -> str:
    name = part.removeprefix("=").strip()
    if not name or not name.isprintable():
        raise ValueError(f"gpu={text!r} names no GPU: write for example H100:8, or .. for any")
    return name


def _names(part: str, text: str, market: Market | None) -> tuple[str, ...]:
    return tuple(dict.fromkeys(_name(name.strip(), text, market) for name in part.split(",")))


def _name(written: str, text: str, market: Market | None) -> str:
    if not written:
        raise ValueError(f"gpu={text!r} names no GPU: write for example H100:8, or .. for any")
    if not _PLAIN.fullmatch(written):
        raise ValueError(f"{written[:40]!r} in gpu={text[:80]!r} is not the name of a GPU: write for example H100:8")
    if written.isdigit() and len(written) < 3:
        raise ValueError(
            f"{written!r} in gpu={text!r} is a number, not a GPU: write for example H100:8, or 80GB.. for memory"
        )
    found = candidates(written)
    more = [] if market is None or len(found) == 1 else market.gpu_names()
    if more:
        found = candidates(written, more)
    if len(found) == 1:
        return found[0]
    raise ValueError(f"{written!r} may be {_or(found)}: write which" if found else _unknown(written, more))


def _unknown(written: str, more: Iterable[str]) -> str:
    close = _with_number(written) or nearest(squash(written), more)
    hint = f"did you mean {_or(close)}?" if close else "write for example H100, A100:80GB, RTX4090 or 24GB.."
    return f"there is no GPU called {written[:40]!r}: {hint}"


def _with_number(written: str) -> list[str]:
    """What a number behind a name was meant to be: A100-80 is the one with 80 GB, H100-8 are eight."""
    match = _NAME_AND_NUMBER.fullmatch(written)
    found = candidates(match["name"]) if match else []
    if match is None or len(found) != 1:
        return []
    number, known = int(match["number"]), find(found[0])
    if known and number in known.memory_gb:
        return [f"{found[0]}:{number}GB"]
    return [f"{found[0]}:{number}"] if 1 <= number <= 16 else []


def _refuse_impossible_memory(names: tuple[str, ...], asked: _Memory, text: str) -> None:
    known = [find(name) for name in names]
    sizes = sorted({size for accelerator in known if accelerator for size in accelerator.memory_gb})
    if not sizes or not all(accelerator and accelerator.memory_gb for accelerator in known):
        return  # of a GPU that only a snapshot knows, the snapshot knows the memory
    low, high = asked.low or 0, asked.high or float("inf")
    if not any(low <= size * (1 + _ROUNDING) and size * (1 - _ROUNDING) <= high for size in sizes):
        raise ValueError(f"no {_or(names)} has the memory that gpu={text!r} asks for: it comes with {_or(sizes)} GB")


def _or(names: Iterable[object]) -> str:
    texts = [str(name) for name in names]
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} or {texts[-1]}"
