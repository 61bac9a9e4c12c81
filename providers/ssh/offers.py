"""What each machine of a block offers: itself, or each GPU slice of it, with what it has and why it may not be had."""

from __future__ import annotations

import re

from prefect_gpu.blocks.ssh import SshHost
from prefect_gpu.providers.core.errors import HostKeyMismatch, ProviderError
from prefect_gpu.providers.core.gpu import matching
from prefect_gpu.providers.core.machine import smi
from prefect_gpu.providers.core.models import Availability, Offer
from prefect_gpu.providers.core.requests import Requirements
from prefect_gpu.providers.ssh.claims import WHOLE, unreadable
from prefect_gpu.providers.ssh.errors import out_of_reach
from prefect_gpu.providers.ssh.listing import Survey

_ARCHITECTURES = {"x86_64": "x86_64", "amd64": "x86_64", "aarch64": "arm64", "arm64": "arm64"}
_NUMBER = re.compile(r"[0-9]{1,15}", re.ASCII)
_WORD = re.compile(r"[A-Za-z0-9_.-]{1,32}", re.ASCII)
_MOST = {"cores": 100_000, "memory": 2**40, "disk": 2**50}  # of one machine: memory and disk in KB
_MOST_GPUS = 1024
_KB_PER_GB = 2**20


def of_unreachable(host: SshHost, failure: ProviderError, requirements: Requirements) -> list[Offer]:
    """A machine that does not answer, as an offer that says why: of it nothing is known but what its block says."""
    offer = _offer(host, None).model_copy(
        update={
            "availability": Availability.UNAVAILABLE,
            "unavailable_because": out_of_reach(host.name, failure),
            "is_unseen": True,
            "is_alarm": isinstance(failure, HostKeyMismatch),
        }
    )
    return [offer] if matching.fits(offer, requirements) else []


def of_machine(host: SshHost, survey: Survey, requirements: Requirements, pinned: str | None) -> list[Offer]:
    """What a machine that answered offers; Transient where what it says cannot be so."""
    found = smi.parse(survey.text)
    if len(found.gpus) > _MOST_GPUS:
        raise unreadable(host.name, f"{len(found.gpus)} GPUs")
    facts = _facts(host.name, survey.text)
    shares = max(1, len(host.gpu_slices))
    raw = {"labels": dict(host.labels)} | ({"host_key_on_first_use": pinned} if pinned else {})
    offers: list[Offer] = []
    for gpus in host.gpu_slices or (WHOLE,):
        visible = found.visible(None if gpus == WHOLE else gpus)
        first = visible[0] if visible else None
        holder = survey.holder(gpus)
        because = f"in use by {holder}" if holder else None
        count = len(visible) if gpus == WHOLE else len(gpus.split(","))
        unseen = found.unseen if requirements.wants_gpu and not visible else None
        if gpus != WHOLE and len(visible) < count:
            unseen = f"of the slice {gpus} {len(visible)} GPUs answer: {found.trouble or 'the others are not there'}"
        if because is None and unseen is not None:
            because = f"{host.name}: {unseen}"
        offer = _offer(host, None if gpus == WHOLE else gpus).model_copy(
            update={
                "cpu": facts["cores"] / shares if "cores" in facts else None,
                "memory_gb": _gb(facts.get("memory"), shares),
                "disk_gb": _gb(facts.get("disk"), 1),
                "arch": _architecture(host.name, survey.text),
                "gpu_name": (first.name or first.model) if first else None,
                "gpu_count": count,
                "gpu_memory_gb": first.memory_gb if first else None,
                "gpu_vendor": first.vendor if first else None,
                "availability": Availability.UNAVAILABLE if because else Availability.AVAILABLE,
                "unavailable_because": because,
                "is_unseen": unseen is not None,
                "raw": {"gpus": gpus, **raw},
            }
        )
        offers += [offer] if matching.fits(offer, requirements) else []
    return offers


def _offer(host: SshHost, gpus: str | None) -> Offer:
    return Offer(
        provider="ssh",
        instance_type=f"{host.name}:{gpus}" if gpus else host.name,
        region=host.region,
        zone=host.name,
        country=host.country,
        price=host.price,
    )


def _facts(host: str, text: str) -> dict[str, int]:
    facts: dict[str, int] = {}
    for line in text.splitlines():
        match line.split():
            case [("cores" | "memory" | "disk") as fact, value]:
                if not _NUMBER.fullmatch(value) or int(value) > _MOST[fact]:
                    raise unreadable(host, line)
                facts[fact] = int(value)
            case _:
                pass
    return facts


def _architecture(host: str, text: str) -> str | None:
    told: str | None = None
    for line in text.splitlines():
        match line.split():
            case ["arch", word]:
                if not _WORD.fullmatch(word):
                    raise unreadable(host, line)
                told = _ARCHITECTURES.get(word, word)
            case _:
                pass
    return told


def _gb(kilobytes: int | None, shares: int) -> float | None:
    return None if kilobytes is None else round(kilobytes / _KB_PER_GB / shares, 1)
