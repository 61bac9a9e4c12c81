"""The names of GPUs: what a vendor, a driver or a person calls one, as prices call it."""

from __future__ import annotations

import re
from string import ascii_lowercase
from typing import TYPE_CHECKING, Final

from prefect_gpu.providers.core.gpu.accelerators import KNOWN, OTHERS, find

if TYPE_CHECKING:
    from collections.abc import Iterable

# What vendors and drivers write around a name: "NVIDIA H100 80GB HBM3", "Tesla T4", "A100-SXM4".
_AROUND: Final = frozenset({
    "nvidia", "tesla", "geforce", "graphics", "card", "tensor", "core", "blackwell", "generation", "gen",
    "amd", "instinct", "intel", "habana", "google", "tpu", "tenstorrent", "gpu", "gpus",
    "sxm", "pcie", "oam", "nvlink", "hbm2", "hbm2e", "hbm3", "hbm3e", "server", "workstation", "edition",
})  # fmt: skip
_FORM_FACTOR = re.compile(r"(sxm\d?|pcie|hbm\d?e?)$")
_MEMORY = re.compile(r"\d+(?:\.\d+)?\s*(?:GB|GiB|G|TB|TiB|T)", re.IGNORECASE)
_TPU = re.compile(r"(?:tpu[-_ ]?)?(v\d+[a-z]*)(?:-(\d+))?", re.IGNORECASE)
_OTHER_NAMES: Final = {"v5e": "v5litepod"}
_LOOK_ALIKE: Final = str.maketrans("oilsz", "01152")  # typed for a digit


def gpu_name(text: str, *, more: Iterable[str] = ()) -> str | None:
    """The name in prices of what a vendor, a driver or a person calls a GPU; None where that is not clear.

    "NVIDIA H100 80GB HBM3" is H100, "Tesla T4" is T4, "4090" is RTX4090. `more` are names beside the known ones.
    """
    found = candidates(text, more)
    return found[0] if len(found) == 1 else None


def gpu_memory_gb(name: str, memory_mib: float) -> float:
    """GB as prices count them of what a driver reports in MiB: 81,559 MiB of an H100 are 80."""
    accelerator = find(name)
    memory_gb = memory_mib / 1024
    return accelerator.nearest_memory_gb(memory_gb) if accelerator else float(round(memory_gb))


def tpu(written: str) -> tuple[str, int | None] | None:
    """A TPU and the number of chips or cores in its slice, if that is said: `tpu-v6e`, `v5e-8`, `v5litepod-8`; None for another name."""
    match = _TPU.fullmatch(written.strip())
    if match is None:
        return None
    name = _OTHER_NAMES.get(match[1].lower(), match[1].lower())
    known = find(name)
    if known is None or known.vendor != "google":
        return None
    return known.name, int(match[2]) if match[2] else None


def is_slice_of(name: str, tpu_name: str) -> bool:
    """Whether `v6e-8` is a slice of the TPU `v6e`."""
    found = tpu(name)
    return found is not None and found[1] is not None and found[0].lower() == tpu_name.lower()


def candidates(written: str, more: Iterable[str] = ()) -> list[str]:
    """The names that `written` stands for: one if it is clear, several if it is not, none if it is unknown."""
    by_squashed = {squash(name): name for name in more} | _SQUASHED
    if slice_of := tpu(written):
        name, size = slice_of
        return [f"{name}-{size}" if size else name]
    if exact := by_squashed.get(squash(written)):
        return [exact]
    words = [word for word in re.split(r"[\s_/()-]+", written.lower()) if word]
    words = [
        word
        for word in words
        if word not in _AROUND and not _MEMORY.fullmatch(word) and not re.fullmatch(r"sxm\d", word)
    ]
    squashed = _FORM_FACTOR.sub("", "".join(words))
    squashed = squash(_OTHER_NAMES.get(squashed, squashed))
    if squashed[:1].isdigit():  # 4090: the letters in front were left out
        return sorted(name for key, name in by_squashed.items() if key.lstrip(ascii_lowercase) == squashed)
    exact = by_squashed.get(squashed) or by_squashed.get(squashed.removeprefix("rtx"))  # "RTX A6000" is A6000
    return [exact] if exact else []


def nearest(squashed: str, more: Iterable[str] = ()) -> list[str]:
    """The names that are spelled most like this one: one or two, or none."""
    names = {**{squash(name): name for name in more}, **_SQUASHED}
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


def squash(name: str) -> str:
    """A name as names are looked up: lower case, letters and digits only."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


_SQUASHED: Final = {squash(accelerator.name): accelerator.name for accelerator in (*KNOWN, *OTHERS)}
