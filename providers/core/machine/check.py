"""The machine check: are the GPUs that the offer promised there and do they answer; are disk and driver what was asked for.

One command on the machine, none where nothing was promised.
"""

from __future__ import annotations

import re
from typing import Final

from prefect_gpu.providers.core.contract import Connection
from prefect_gpu.providers.core.errors import LinkLost
from prefect_gpu.providers.core.gpu.matching import same_gpu
from prefect_gpu.providers.core.machine import scripts, smi
from prefect_gpu.providers.core.machine.shell import run_script
from prefect_gpu.providers.core.machine.smi import Gpu, Gpus
from prefect_gpu.providers.core.models import MachineReport, Offer
from prefect_gpu.providers.core.requests import Requirements

TIMEOUT_S: Final = 60.0
_SLICE = re.compile(r"(-MIG-[\w.]+)?(-SHARED)?$")
_LEAST_SHARE = 0.9  # of the promised memory: ECC and the driver keep up to 7 % to themselves
_FACTS = {"uptime": 1, "disk": 2}  # how many numbers each has
_FACT = re.compile(r"\d{1,15}(\.\d{1,6})?", re.ASCII)
_XID = re.compile(r"xid (?:\[ *(\d{1,12})\.\d+\])?.*Xid \((?:PCI:)?([0-9A-Fa-f:.]{1,20})\): (\d{1,6})\b", re.ASCII)
_XID_AGE_S = 24 * 3600  # a machine of one's own may have been repaired since

# Xids after which a GPU needs a reset or a reboot; the others are the fault of a job that ran before.
# https://docs.nvidia.com/deploy/xid-errors/
_FATAL_XIDS: Final = frozenset({48, 62, 64, 74, 79, 95, 110, 119, 120, 140, 143, 154})


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
    asked: list[str] = []
    if offer.gpu_count:
        asked += ["smi", *(["xids"] if offer.gpu_vendor in (None, "nvidia") else [])]
        asked += ["cuda"] if min_cuda is not None else []
    asked += ["disk"] if disk_gb is not None else []
    try:
        done = run_script(connection, f"{scripts.text(*asked)}:", timeout_s=TIMEOUT_S)
    except LinkLost:
        if not connection.is_alive():
            raise
        return MachineReport(problem=f"the GPUs' driver does not answer within {TIMEOUT_S:.0f} s", is_unfit=True)
    text = done.stdout.decode(errors="replace")
    found = smi.parse(text)
    facts = _facts(text)
    visible = found.visible(devices)
    if done.exit_code and found.tool is None:  # the script itself could not run: nothing is known of the machine
        return MachineReport(problem=f"the machine check could not run: {done.problem}")
    problem = None
    if offer.gpu_count:
        problem = _gpu_problem(found, visible, offer) or _xid_problem(text, facts, visible)
    is_unfit = problem is not None
    if problem is None and offer.gpu_count:
        problem = _cuda_problem(smi.cuda(text), min_cuda)
    total_kb, free_kb = facts.get("disk", (None, None))
    if problem is None and disk_gb is not None and total_kb is not None and total_kb / 2**20 < disk_gb * _LEAST_SHARE:
        problem = f"the job requires a disk of {disk_gb:g} GB, but this one has {total_kb / 2**20:.0f} GB"
    return MachineReport(
        gpus=tuple(gpu.line for gpu in visible),
        driver=found.driver,
        disk_free_gb=round(free_kb / 2**20, 1) if free_kb is not None else None,
        problem=problem,
        is_unfit=is_unfit,
    )


def _facts(text: str) -> dict[str, tuple[float, ...]]:
    facts: dict[str, tuple[float, ...]] = {}
    for line in text.split("\n"):
        tag, *values = line.split(maxsplit=4) or [""]
        if tag in _FACTS and len(values) == _FACTS[tag] and all(_FACT.fullmatch(value) for value in values):
            facts[tag] = tuple(float(value) for value in values)
    return facts


def _gpu_problem(found: Gpus, visible: tuple[Gpu, ...], offer: Offer) -> str | None:
    promised = f"{offer.gpu_count} x {offer.gpu_name or 'GPU'}"
    if found.tool is None:
        return f"the offer promised {promised}, but the machine has neither nvidia-smi nor rocm-smi: no driver is installed"
    # A slice (MIG) or a share shows as the GPU that it is of, several of one GPU as that one.
    whole = _SLICE.sub("", offer.gpu_name or "")
    is_sliced = whole != (offer.gpu_name or "")
    if len(visible) < (min(1, offer.gpu_count) if is_sliced else offer.gpu_count):
        what = f": {found.trouble}" if found.trouble else ""
        shown = f"only {len(visible)}" if visible else "none of them"
        return f"the offer promised {promised}, but {found.tool} shows {shown}{what}"
    for gpu in visible:
        if whole and gpu.name and not same_gpu(gpu.name, whole):
            return f"the offer promised {promised}, but GPU {gpu.number} is the model {gpu.model}"
        if offer.gpu_memory_gb and gpu.memory_mib and gpu.memory_mib / 1024 < offer.gpu_memory_gb * _LEAST_SHARE:
            return f"the offer promised {offer.gpu_memory_gb:g} GB per GPU, but GPU {gpu.number} has {gpu.memory_mib / 1024:.0f} GB"
        if gpu.uncorrected:
            errors = "error" if gpu.uncorrected == 1 else "errors"
            return f"GPU {gpu.number} ({gpu.model}) has {gpu.uncorrected} uncorrected memory {errors} since its driver was loaded"
    if found.trouble and len(visible) == len(found.gpus):
        return f"{found.tool} reports: {found.trouble}"
    return None


def _xid_problem(text: str, facts: dict[str, tuple[float, ...]], visible: tuple[Gpu, ...]) -> str | None:
    (uptime,) = facts.get("uptime", (0.0,))
    buses = {_bus(gpu.bus_id): gpu for gpu in visible if gpu.bus_id}
    for line in text.split("\n"):
        match = _XID.match(line[:1000])
        if match is None or int(match[3]) not in _FATAL_XIDS:
            continue
        gpu = buses.get(_bus(match[2]))
        if gpu is not None and (match[1] is None or uptime - float(match[1]) <= _XID_AGE_S):
            return f"GPU {gpu.number} ({gpu.model}) reported Xid {match[3]}: it needs a reset"
    return None


def _bus(bus_id: str) -> str:
    """`00000000:3B:00.0` and `0000:3b:00` are the same."""
    return bus_id.lower().rpartition(".")[0].removeprefix("0000") if "." in bus_id else bus_id.lower()


def _cuda_problem(cuda: float | None, min_cuda: float | None) -> str | None:
    if min_cuda is None or cuda is None or cuda >= min_cuda:
        return None
    return f"the job requires CUDA {min_cuda:g}, but the driver runs CUDA only up to {cuda:g}"
