"""What GPUs a machine has, by what its drivers say: nvidia-smi for NVIDIA, rocm-smi for AMD.

`PROGRAM` asks them, on any machine; `parse` reads what it printed. Both believe no more than they can use: a driver in trouble says
strange things, and a machine may lie. https://docs.nvidia.com/deploy/nvidia-smi/, https://rocm.docs.amd.com/projects/rocm_smi_lib/
"""

from __future__ import annotations

import json
import re
from typing import Any, Final, NamedTuple, cast

from prefect_gpu.providers.core.gpu.names import gpu_memory_gb, gpu_name
from prefect_gpu.providers.core.machine import scripts
from prefect_gpu.providers.core.machine.shell import plain

PROGRAM: Final = scripts.text("smi")
TOOLS: Final = ("nvidia-smi", "rocm-smi")

_MOST_LINES = 2000  # of an answer
_MOST_GPUS = 64  # of one machine; what lists more is no driver
_MOST_MIB = 16 * 2**20  # of one GPU
_WORD = 100  # letters of a name, a UUID, a bus
_NUMBER = re.compile(r"\s*(\d{1,12}(?:\.\d{1,6})?)\s*(MiB|GiB)?", re.ASCII)
_CUDA = re.compile(r"^cuda (\d{1,3}(?:\.\d{1,3})?)$", re.ASCII | re.MULTILINE)
_INDEX = re.compile(r"\d{1,4}", re.ASCII)
_BROKEN = ("unknown error", "err!", "gpu is lost", "requires reset", "insufficient")


class Gpu(NamedTuple):
    """One GPU as its driver tells of it."""

    number: str  # as the driver counts
    uuid: str
    model: str  # as the driver calls it: "NVIDIA H100 80GB HBM3"
    memory_mib: float | None
    vendor: str
    bus_id: str = ""
    uncorrected: int | None = None  # memory errors since the driver was loaded; None: not counted

    @property
    def name(self) -> str | None:
        """As prices call it: H100; None where that is not clear."""
        return gpu_name(self.model)

    @property
    def memory_gb(self) -> float | None:
        return None if self.memory_mib is None else gpu_memory_gb(self.name or self.model, self.memory_mib)

    @property
    def line(self) -> str:
        return f"{self.model}, {self.memory_mib:.0f} MiB" if self.memory_mib is not None else self.model


class Gpus(NamedTuple):
    """What a machine's drivers said."""

    gpus: tuple[Gpu, ...] = ()
    driver: str | None = None
    tool: str | None = None  # nvidia-smi, rocm-smi; None: neither is there
    trouble: str | None = None  # what the tool said instead, or beside

    @property
    def unseen(self) -> str | None:
        """Why no GPU is seen though the tool of its driver is there; None where some are, or where nothing is wrong."""
        return None if self.gpus or not self.trouble else f"no GPU answers: {self.tool}: {self.trouble}"

    def visible(self, devices: str | None) -> tuple[Gpu, ...]:
        """Those of a slice, as CUDA_VISIBLE_DEVICES names them: by index or the beginning of a UUID."""
        if devices is None:
            return self.gpus
        wanted = [device.strip() for device in devices.split(",") if device.strip()]
        return tuple(
            gpu
            for gpu in self.gpus
            if any(gpu.number == one or (len(one) > 4 and gpu.uuid.startswith(one)) for one in wanted)
        )


def parse(text: str) -> Gpus:
    """What the output of `PROGRAM` tells, whatever else stands around it."""
    said: dict[str, list[str]] = {}
    for line in text.split("\n"):
        tag, _, rest = line.partition(" ")
        if tag in {"nvidia", "nvidia-exit", "amd", "amd-exit"}:
            lines = said.setdefault(tag, [])
            if len(lines) < _MOST_LINES:
                lines.append(rest.strip())
    if "nvidia" in said or "nvidia-exit" in said:
        return _nvidia(said.get("nvidia", []), _code(said.get("nvidia-exit")))
    if "amd" in said or "amd-exit" in said:
        return _amd("\n".join(said.get("amd", [])), _code(said.get("amd-exit")))
    return Gpus()


def cuda(text: str) -> float | None:
    """Up to which CUDA the driver runs, where sh/cuda.sh asked for it."""
    found = _CUDA.search(text)
    return float(found[1]) if found else None


def _code(codes: list[str] | None) -> str:
    """What its tool ended with, in words; "" for success."""
    match codes[-1] if codes else None:
        case None:
            return "it wrote without end"
        case "0":
            return ""
        case "124":
            return "the driver does not answer within 40 s"
        case code:
            return f"exit {code[:_WORD]}"


def _nvidia(lines: list[str], failure: str) -> Gpus:
    gpus: list[Gpu] = []
    trouble: list[str] = []
    driver = None
    for line in lines:
        fields = [field.strip()[:_WORD] for field in line.split(",", 8)]
        if len(fields) not in (5, 7) or not _INDEX.fullmatch(fields[0]):
            if line and not line.startswith("No devices were found"):
                trouble.append(line)
            continue
        bad = [field for field in fields[1:5] if any(word in field.lower() for word in _BROKEN)]
        if bad:
            trouble.append(f"GPU {fields[0]}: {bad[0].strip('[]')}")
            continue
        driver = fields[4] or driver
        gpus.append(
            Gpu(
                number=fields[0],
                uuid=fields[1],
                model=plain(fields[2]),
                memory_mib=_memory(number(fields[3])),
                vendor="nvidia",
                bus_id=fields[5] if len(fields) == 7 else "",
                uncorrected=_count(fields[6]) if len(fields) == 7 else None,
            )
        )
    if failure.startswith("the driver") or (failure and not trouble and lines != ["No devices were found"]):
        trouble.append(failure)
    return _told(gpus, driver, "nvidia-smi", trouble)


def _amd(text: str, failure: str) -> Gpus:
    start = text.find("{")
    try:
        cards: Any = json.loads(text[start:]) if start >= 0 else None
    except (ValueError, RecursionError):
        cards = None
    if not isinstance(cards, dict):
        return Gpus(tool="rocm-smi", trouble=_sentence([text or failure or "it says nothing"]))
    gpus: list[Gpu] = []
    driver = None
    for card, told in cast("dict[str, Any]", cards).items():
        facts = (
            {
                str(key).lower(): str(value)[:_WORD]
                for key, value in cast("dict[Any, Any]", told).items()
                if isinstance(value, str | int | float)
            }
            if isinstance(told, dict)
            else {}
        )
        driver = next((value for key, value in facts.items() if key.startswith("driver version")), driver)
        index = card.removeprefix("card")
        if not _INDEX.fullmatch(index):
            continue
        # Which of them holds the marketing name changed between releases.
        models = [facts[key] for key in ("card series", "card model", "device name") if key in facts]
        model = next((one for one in models if gpu_name(one)), models[0] if models else "AMD GPU")
        size = number(facts.get("vram total memory (b)", ""))
        memory = _memory(size / 2**20) if size else None
        gpus.append(Gpu(index, facts.get("unique id", ""), plain(model), memory, "amd"))
    return _told(gpus, driver, "rocm-smi", [failure] if failure else [])


def _told(gpus: list[Gpu], driver: str | None, tool: str, trouble: list[str]) -> Gpus:
    if len(gpus) > _MOST_GPUS:
        return Gpus(tool=tool, trouble=f"it lists {len(gpus)} GPUs in one machine")
    if len({gpu.number for gpu in gpus}) < len(gpus):
        return Gpus(tool=tool, trouble="it lists one GPU twice")
    return Gpus(tuple(gpus), plain(driver) if driver else None, tool, _sentence(trouble))


def _sentence(lines: list[str]) -> str | None:
    return plain("; ".join(line[:300] for line in lines[:20]))[:300] or None


def number(field: str) -> float | None:
    """The number that a field begins with, MiB where it says GiB; None where there is none that can be believed."""
    match = _NUMBER.match(field)
    if match is None or field[match.end() : match.end() + 1].isdigit():
        return None
    return float(match[1]) * (1024 if match[2] == "GiB" else 1)


def _memory(mib: float | None) -> float | None:
    return mib if mib is not None and 0 < mib <= _MOST_MIB else None


def _count(field: str) -> int | None:
    found = number(field)
    return None if found is None else int(found)
