"""What people write for `gpu=`, read: what is clear is understood, what is not is refused with the nearest thing.

H100        one H100                    24GB..          one GPU with 24 GB or more
H100:8      eight of them, also 8xH100  24GB..80GB      between 24 and 80
H100:4..8   from four to eight          ..              any GPU
A100:80GB   the large one               640GB.. total   all GPUs together, however many
H100,H200:8 either of the two           H100:8|A100:8   alternatives, the first that can be had
"""

from __future__ import annotations

import re
from string import ascii_lowercase
from typing import TYPE_CHECKING, Final, NamedTuple

from providers.core.accelerators import KNOWN, find
from providers.core.models import GpuRequest

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
_NAME_AND_MEMORY = re.compile(rf"(?P<name>.*[^\s_-])[\s_-]+(?P<memory>{_SIZE}(?:\s*\.\.)?)", re.IGNORECASE)
_TOTAL = re.compile(r"\btotal\b", re.IGNORECASE)

# What vendors and drivers write around a name: "NVIDIA H100 80GB HBM3", "Tesla T4", "A100-SXM4".
_AROUND: Final = frozenset({
    "nvidia", "tesla", "geforce", "graphics", "card", "tensor", "core", "blackwell", "generation", "gen",
    "amd", "instinct", "intel", "habana", "google", "tpu", "tenstorrent", "gpu", "gpus",
    "sxm", "pcie", "oam", "nvlink", "hbm2", "hbm2e", "hbm3", "hbm3e", "server", "workstation", "edition",
})  # fmt: skip
_FORM_FACTOR = re.compile(r"(sxm\d?|pcie|hbm\d?e?)$")


class _Memory(NamedTuple):
    """GB, at least and at most."""

    low: float | None
    high: float | None


_OTHER_NAMES: Final = {"v5e": "v5litepod"}
_LOOK_ALIKE: Final = str.maketrans("oilsz", "01152")  # typed for a digit


def parse_gpu(text: str) -> tuple[GpuRequest, ...]:
    """The alternatives that `gpu=` asks for, in order; empty for none. ValueError with one sentence for what is not clear."""
    text = text.strip()
    if text.lower() in {"", "none"}:
        return ()
    if len(text) > _LONGEST:
        raise ValueError(f"gpu= is longer than {_LONGEST} characters: write something like H100:8 or 24GB..")
    return tuple(_alternative(part.strip(), text) for part in text.split("|"))


def gpu_name(text: str, *, more: Iterable[str] = ()) -> str | None:
    """The name in prices of what a vendor, a driver or a person calls a GPU; None where that is not clear.

    "NVIDIA H100 80GB HBM3" is H100, "Tesla T4" is T4, "4090" is RTX4090. `more` are names beside the known ones.
    """
    found = _candidates(text, more)
    return found[0] if len(found) == 1 else None


def gpu_memory_gb(name: str, memory_mib: float) -> float:
    """GB as prices count them of what a driver reports in MiB: 81,559 MiB of an H100 are 80."""
    accelerator = find(name)
    memory_gb = memory_mib / 1024
    return accelerator.nearest_memory_gb(memory_gb) if accelerator else float(round(memory_gb))


class _Said:
    """What one alternative has said so far: each thing at most once."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.names: tuple[str, ...] = ()
        self.count: tuple[int, int | None] | None = None
        self.memory: _Memory | None = None
        self.total: _Memory | None = None

    def without_times(self) -> str:
        """The text without the `8x` in front or the `x8` behind, which say the number of GPUs."""
        if (before := _TIMES_BEFORE.match(self.text)) and not _MEMORY.match(self.text):
            self.say_count(_count_pair(before[1] or before[2], self.text))
            return self.text[before.end() :]
        if after := _TIMES_AFTER.search(self.text):
            self.say_count(_count_pair(after[1], self.text))
            return self.text[: after.start()]
        return self.text

    def first(self, part: str) -> None:
        """What stands first is a name (which may be all digits: 4090), unless it is memory or `..`."""
        if part == "..":
            return
        if not self.is_memory(part):
            match = _NAME_AND_MEMORY.fullmatch(part)
            self.names = _names(match["name"] if match else part, self.text)
            if match:
                self.is_memory(match["memory"])

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


def _alternative(text: str, whole: str) -> GpuRequest:
    if not text:
        raise ValueError(f"gpu={whole!r} has an empty alternative: write for example H100:8|A100:8")
    said = _Said(text)
    first, *more = _join_total([part.strip() for part in said.without_times().split(":")])
    said.first(first)
    for part in more:
        said.more(part)
    count_min, count_max = said.count or (1, None if said.total else 1)
    memory = said.memory or _Memory(None, None)
    total = said.total or _Memory(None, None)
    _refuse_impossible_memory(said.names, memory, text)
    return GpuRequest(
        names=said.names,
        count_min=count_min,
        count_max=count_max,
        memory_min_gb=memory.low,
        memory_max_gb=memory.high,
        total_memory_min_gb=total.low,
        total_memory_max_gb=total.high,
        text=text,
    )


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


def _names(part: str, text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(_name(name.strip(), text) for name in part.split(",")))


def _name(written: str, text: str) -> str:
    if not written:
        raise ValueError(f"gpu={text!r} names no GPU: write for example H100:8, or .. for any")
    found = _candidates(written)
    if len(found) != 1:
        found = _candidates(written, _names_in_snapshots())
    if len(found) == 1:
        return found[0]
    raise ValueError(f"{written!r} may be {_or(found)}: write which" if found else _unknown(written))


def _candidates(written: str, more: Iterable[str] = ()) -> list[str]:
    """The names that `written` stands for: one if it is clear, several if it is not, none if it is unknown."""
    by_squashed = {_squash(name): name for name in more} | _SQUASHED
    written = _OTHER_NAMES.get(written.lower(), written)
    if exact := by_squashed.get(_squash(written)):
        return [exact]
    words = [word for word in re.split(r"[\s_/()-]+", written.lower()) if word]
    words = [
        word
        for word in words
        if word not in _AROUND and not _MEMORY.fullmatch(word) and not re.fullmatch(r"sxm\d", word)
    ]
    squashed = _FORM_FACTOR.sub("", "".join(words))
    squashed = _squash(_OTHER_NAMES.get(squashed, squashed))
    if squashed[:1].isdigit():  # 4090: the letters in front were left out
        return sorted(name for key, name in by_squashed.items() if key.lstrip(ascii_lowercase) == squashed)
    exact = by_squashed.get(squashed) or by_squashed.get(squashed.removeprefix("rtx"))  # "RTX A6000" is A6000
    return [exact] if exact else []


def _unknown(written: str) -> str:
    nearest = _nearest(_squash(written), {**{_squash(name): name for name in _names_in_snapshots()}, **_SQUASHED})
    hint = f"did you mean {_or(nearest)}?" if nearest else "write for example H100, A100:80GB, RTX4090 or 24GB.."
    return f"there is no GPU called {written[:40]!r}: {hint}"


def _nearest(squashed: str, names: dict[str, str]) -> list[str]:
    from rapidfuzz import fuzz  # 50 ms that only a misspelled name costs

    longer = [name for key, name in names.items() if squashed and key.startswith(squashed)]
    if 0 < len(longer) <= 3:
        return longer
    spellings = {squashed, squashed[:1] + squashed[1:].translate(_LOOK_ALIKE)}
    bare = squashed[:1].isdigit()  # 4090 Ti: compared without the letters in front

    def score(key: str) -> float:
        same_start = key[:1] == squashed[:1]
        return (
            max(fuzz.ratio(spelling, key.lstrip(ascii_lowercase) if bare else key) for spelling in spellings)
            + same_start
        )

    scores = {name: score(key) for key, name in names.items()}
    best = max(scores.values())
    close = sorted(
        (name for name, score in scores.items() if score >= max(60, best - 5)), key=lambda name: -scores[name]
    )
    return close[:2] if best < 100 else close[:1]


def _refuse_impossible_memory(names: tuple[str, ...], asked: _Memory, text: str) -> None:
    known = [find(name) for name in names]
    sizes = sorted({size for accelerator in known if accelerator for size in accelerator.memory_gb})
    if not sizes or not all(accelerator and accelerator.memory_gb for accelerator in known):
        return  # of a GPU that only a snapshot knows, the snapshot knows the memory
    low, high = asked.low or 0, asked.high or float("inf")
    if not any(low <= size * (1 + _ROUNDING) and size * (1 - _ROUNDING) <= high for size in sizes):
        raise ValueError(f"no {_or(names)} has the memory that gpu={text!r} asks for: it comes with {_or(sizes)} GB")


def _names_in_snapshots() -> list[str]:
    from providers.core import prices  # opened only for a name that is not known here

    return prices.gpu_names()


def _squash(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _or(names: Iterable[object]) -> str:
    texts = [str(name) for name in names]
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} or {texts[-1]}"


_SQUASHED: Final = {_squash(accelerator.name): accelerator.name for accelerator in KNOWN}
