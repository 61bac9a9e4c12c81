"""The machine check: are the GPUs that the offer promised there and do they answer; are disk and driver what was asked for.

One command on the machine, none where nothing was promised. What GPUs a machine has is read here for offers too (`GPUS`,
`parse_gpus`). NVIDIA is asked by nvidia-smi (https://docs.nvidia.com/deploy/nvidia-smi/), AMD by rocm-smi.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final, NamedTuple, cast

from providers.core.contract import Connection
from providers.core.errors import LinkLost
from providers.core.gpus import gpu_memory_gb, gpu_name
from providers.core.matching import same_gpu
from providers.core.models import MachineReport, Offer, Requirements
from providers.core.shell import run_script

TIMEOUT_S: Final = 60.0
_LEAST_SHARE = 0.9  # of the promised memory: ECC and the driver keep up to 7 % to themselves
_XID_AGE_S = 24 * 3600  # a machine of one's own may have been repaired since

# Xids after which a GPU needs a reset or a reboot; the others are the fault of a job that ran before.
# https://docs.nvidia.com/deploy/xid-errors/
_FATAL_XIDS: Final = frozenset({48, 62, 64, 74, 79, 95, 110, 119, 120, 140, 143, 154})

# A driver in trouble answers after minutes or never, hence the timeouts. A driver too old for one of the fields refuses the whole
# question, hence the second one.
GPUS: Final = r"""
patient() { if command -v timeout >/dev/null; then timeout 40 "$@"; else "$@"; fi; }
if command -v nvidia-smi >/dev/null; then
    answer=$(patient nvidia-smi --query-gpu=index,uuid,name,memory.total,driver_version,pci.bus_id,ecc.errors.uncorrected.volatile.total \
        --format=csv,noheader 2>&1); code=$?
    case $answer in *"not a valid field"*)
        answer=$(patient nvidia-smi --query-gpu=index,uuid,name,memory.total,driver_version --format=csv,noheader 2>&1); code=$? ;;
    esac
    printf '%s\n' "$answer" | sed 's/^/nvidia /'
    echo "nvidia-exit $code"
elif command -v rocm-smi >/dev/null; then
    answer=$(patient rocm-smi --showproductname --showmeminfo vram --showdriverversion --json 2>&1); code=$?
    printf '%s\n' "$answer" | sed 's/^/amd /'
    echo "amd-exit $code"
fi
"""

_XIDS = """dmesg 2>/dev/null | grep 'NVRM: Xid' | tail -n 200 | sed 's/^/xid /'
read -r up rest </proc/uptime; echo "uptime $up"
"""
_CUDA = """command -v nvidia-smi >/dev/null && patient nvidia-smi 2>/dev/null | sed -n 's/.*CUDA[A-Za-z ]*Version: *\\([0-9.]*\\).*/cuda \\1/p'
"""
_DISK = """df -Pk "${HOME:-/}" 2>/dev/null | awk 'NR == 2 { print "disk", $2, $4 }'
"""


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


def check(
    connection: Connection,
    offer: Offer,
    requirements: Requirements | None = None,
    *,
    devices: str | None = None,
) -> MachineReport:
    """What the machine has; `problem` says in one sentence where it is less than what the offer promised or the job requires.

    `devices` are the GPUs of a slice, as CUDA_VISIBLE_DEVICES. Nothing is asked where no GPU was promised and no disk is
    required. Raises LinkLost when the link breaks; a machine whose driver hangs has a problem.
    """
    disk_gb = requirements.disk_gb if requirements else None
    min_cuda = requirements.min_cuda if requirements else None
    if not offer.gpu_count and disk_gb is None:
        return MachineReport()
    script = (
        (GPUS + (_XIDS if offer.gpu_vendor in (None, "nvidia") else "") if offer.gpu_count else "")
        + (_CUDA if offer.gpu_count and min_cuda is not None else "")
        + (_DISK if disk_gb is not None else "")
    )
    try:
        done = run_script(connection, f"{script}\n:", timeout_s=TIMEOUT_S)
    except LinkLost:
        if not connection.is_alive():
            raise
        return MachineReport(problem=f"the GPUs' driver does not answer within {TIMEOUT_S:.0f} s")
    text = done.stdout.decode(errors="replace")
    found = parse_gpus(text)
    facts = _facts(text)
    visible = found.visible(devices)
    problem = None
    if offer.gpu_count:
        problem = (
            _gpu_problem(found, visible, offer) or _xid_problem(text, facts, visible) or _cuda_problem(facts, min_cuda)
        )
    total_kb, free_kb = facts.get("disk", (None, None))
    if problem is None and disk_gb is not None and total_kb is not None and total_kb / 2**20 < disk_gb * _LEAST_SHARE:
        problem = f"the disk has {total_kb / 2**20:.0f} GB, {disk_gb:g} GB are required"
    return MachineReport(
        gpus=tuple(gpu.line for gpu in visible),
        driver=found.driver,
        disk_free_gb=round(free_kb / 2**20, 1) if free_kb is not None else None,
        problem=problem,
    )


def parse_gpus(text: str) -> Gpus:
    """What the output of `GPUS` tells."""
    tagged: dict[str, list[str]] = {}
    for line in text.splitlines():
        tag, _, rest = line.partition(" ")
        tagged.setdefault(tag, []).append(rest.strip())
    if "nvidia-exit" in tagged:
        return _nvidia(tagged.get("nvidia", []), tagged["nvidia-exit"][0])
    if "amd-exit" in tagged:
        return _amd("\n".join(tagged.get("amd", [])), tagged["amd-exit"][0])
    return Gpus()


def _nvidia(lines: list[str], code: str) -> Gpus:
    gpus: list[Gpu] = []
    trouble: list[str] = []
    driver = None
    for line in lines:
        fields = [field.strip() for field in line.split(",")]
        if len(fields) not in (5, 7) or not fields[0].isdecimal():
            if line and not line.startswith("No devices were found"):
                trouble.append(line)
            continue
        bad = [field for field in fields[1:5] if _is_error(field)]
        if bad:
            trouble.append(f"GPU {fields[0]}: {bad[0].strip('[]')}")
            continue
        driver = fields[4] or driver
        gpus.append(
            Gpu(
                number=fields[0],
                uuid=fields[1],
                model=fields[2],
                memory_mib=_number(fields[3]),
                vendor="nvidia",
                bus_id=fields[5] if len(fields) == 7 else "",
                uncorrected=_count(fields[6]) if len(fields) == 7 else None,
            )
        )
    if code == "124":
        trouble.append("the driver does not answer within 40 s")
    elif code != "0" and not trouble and lines != ["No devices were found"]:
        trouble.append(f"exit {code}")
    return Gpus(tuple(gpus), driver, "nvidia-smi", _sentence(trouble))


def _amd(text: str, code: str) -> Gpus:
    start = text.find("{")
    try:
        cards: Any = json.loads(text[start:]) if start >= 0 else None
    except ValueError:
        cards = None
    if not isinstance(cards, dict):
        return Gpus(tool="rocm-smi", trouble=_sentence([text or f"exit {code}"]))
    gpus: list[Gpu] = []
    driver = None
    for card, told in cast("dict[str, Any]", cards).items():
        facts = (
            {str(key).lower(): str(value) for key, value in cast("dict[Any, Any]", told).items()}
            if isinstance(told, dict)
            else {}
        )
        driver = next((value for key, value in facts.items() if key.startswith("driver version")), driver)
        index = card.removeprefix("card")
        if not index.isdecimal():
            continue
        # Which of them holds the marketing name changed between releases.
        models = [facts[key] for key in ("card series", "card model", "device name") if key in facts]
        model = next((one for one in models if gpu_name(one)), models[0] if models else "AMD GPU")
        size = _number(facts.get("vram total memory (b)", ""))
        gpus.append(Gpu(index, facts.get("unique id", ""), model, size / 2**20 if size else None, "amd"))
    return Gpus(tuple(gpus), driver, "rocm-smi", None if code == "0" else _sentence([f"exit {code}"]))


def _is_error(field: str) -> bool:
    lowered = field.lower()
    return any(word in lowered for word in ("unknown error", "err!", "gpu is lost", "requires reset", "insufficient"))


def _sentence(lines: list[str]) -> str | None:
    text = re.sub(r"\s+", " ", "; ".join(lines)).strip()
    return text[:300] or None


def _number(field: str) -> float | None:
    match = re.match(r"\s*(\d+(?:\.\d+)?)\s*(MiB|GiB)?", field)
    return float(match[1]) * (1024 if match[2] == "GiB" else 1) if match else None


def _count(field: str) -> int | None:
    number = _number(field)
    return None if number is None else int(number)


def _facts(text: str) -> dict[str, tuple[float, ...]]:
    facts: dict[str, tuple[float, ...]] = {}
    for line in text.splitlines():
        tag, *values = line.split() or [""]
        if (
            tag in {"uptime", "cuda", "disk"}
            and all(re.fullmatch(r"\d+(\.\d+)?", value) for value in values)
            and values
        ):
            facts[tag] = tuple(float(value) for value in values)
    return facts


def _gpu_problem(found: Gpus, visible: tuple[Gpu, ...], offer: Offer) -> str | None:
    promised = f"{offer.gpu_count} x {offer.gpu_name or 'GPU'}"
    if found.tool is None:
        return f"the offer promised {promised}, and the machine has neither nvidia-smi nor rocm-smi: no driver is installed"
    if len(visible) < offer.gpu_count:
        what = f": {found.trouble}" if found.trouble else ""
        return f"the offer promised {promised}, and {len(visible)} of them answer {found.tool}{what}"
    for gpu in visible:
        if offer.gpu_name and gpu.name and not same_gpu(gpu.name, offer.gpu_name):
            return f"the offer promised {promised}, and GPU {gpu.number} is a {gpu.model}"
        if offer.gpu_memory_gb and gpu.memory_mib and gpu.memory_mib / 1024 < offer.gpu_memory_gb * _LEAST_SHARE:
            return f"the offer promised {offer.gpu_memory_gb:g} GB per GPU, and GPU {gpu.number} has {gpu.memory_mib / 1024:.0f} GB"
        if gpu.uncorrected:
            errors = "error" if gpu.uncorrected == 1 else "errors"
            return f"GPU {gpu.number} ({gpu.model}) has {gpu.uncorrected} uncorrected memory {errors} since its driver was loaded"
    if found.trouble and len(visible) == len(found.gpus):
        return f"{found.tool} reports: {found.trouble}"
    return None


def _xid_problem(text: str, facts: dict[str, tuple[float, ...]], visible: tuple[Gpu, ...]) -> str | None:
    (uptime,) = facts.get("uptime", (0.0,))
    buses = {_bus(gpu.bus_id): gpu for gpu in visible if gpu.bus_id}
    for line in text.splitlines():
        match = re.match(r"xid (?:\[\s*(\d+)\.\d+\])?.*Xid \((?:PCI:)?([0-9A-Fa-f:.]+)\): (\d+)", line)
        if match is None or int(match[3]) not in _FATAL_XIDS:
            continue
        gpu = buses.get(_bus(match[2]))
        if gpu is not None and (match[1] is None or uptime - float(match[1]) <= _XID_AGE_S):
            return f"GPU {gpu.number} ({gpu.model}) reported Xid {match[3]}: it needs a reset"
    return None


def _bus(bus_id: str) -> str:
    """`00000000:3B:00.0` and `0000:3b:00` are the same."""
    return bus_id.lower().rpartition(".")[0].removeprefix("0000") if "." in bus_id else bus_id.lower()


def _cuda_problem(facts: dict[str, tuple[float, ...]], min_cuda: float | None) -> str | None:
    (cuda,) = facts.get("cuda", (None,))
    if min_cuda is None or cuda is None or cuda >= min_cuda:
        return None
    return f"the driver runs CUDA up to {cuda:g}, {min_cuda:g} is required"
