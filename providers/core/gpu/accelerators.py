"""The accelerators that exist, as prices name them: who makes them, how much memory they come with, what CUDA they speak.

The same names as gpuhunt's list, which a test compares with this one: importing gpuhunt costs 0.2 s (it brings `requests`),
this costs nothing. A name that only a provider's snapshot has is known too, where `gpu=` is read (request.py).
"""

from __future__ import annotations

from typing import Final, NamedTuple


class Accelerator(NamedTuple):
    """One model; `memory_gb` lists the sizes it is sold with (none for a TPU, which has no memory of its own in prices)."""

    name: str
    vendor: str
    memory_gb: tuple[int, ...]
    compute_capability: tuple[int, int] | None

    def nearest_memory_gb(self, memory_gb: float) -> float:
        """The size that is meant: what drivers and providers report is off by up to 7 % (81,559 MiB is 80 GB)."""
        nearest = min(self.memory_gb, key=lambda size: abs(size - memory_gb), default=0)
        return float(nearest) if nearest and abs(nearest - memory_gb) / nearest < 0.07 else float(round(memory_gb))


# fmt: off
KNOWN: Final[tuple[Accelerator, ...]] = (
    Accelerator("A10", "nvidia", (24,), (8, 6)),
    Accelerator("A16", "nvidia", (16,), (8, 6)),
    Accelerator("A40", "nvidia", (48,), (8, 6)),
    Accelerator("A100", "nvidia", (40, 80), (8, 0)),
    Accelerator("A10G", "nvidia", (24,), (8, 6)),
    Accelerator("A4000", "nvidia", (16,), (8, 6)),
    Accelerator("A4500", "nvidia", (20,), (8, 6)),
    Accelerator("A5000", "nvidia", (24,), (8, 6)),
    Accelerator("A6000", "nvidia", (48,), (8, 6)),
    Accelerator("H100", "nvidia", (80,), (9, 0)),
    Accelerator("H100NVL", "nvidia", (94,), (9, 0)),
    Accelerator("H200", "nvidia", (141,), (9, 0)),
    Accelerator("H200NVL", "nvidia", (141,), (9, 0)),
    Accelerator("B200", "nvidia", (180,), (10, 0)),
    Accelerator("GB200", "nvidia", (186,), (10, 0)),
    Accelerator("B300", "nvidia", (270,), (10, 0)),
    Accelerator("GB300", "nvidia", (270,), (10, 0)),
    Accelerator("L4", "nvidia", (24,), (8, 9)),
    Accelerator("L40", "nvidia", (48,), (8, 9)),
    Accelerator("L40S", "nvidia", (48,), (8, 9)),
    Accelerator("P100", "nvidia", (16,), (6, 0)),
    Accelerator("RTX2060", "nvidia", (6, 12), (7, 5)),
    Accelerator("RTX2060SUPER", "nvidia", (8,), (7, 5)),
    Accelerator("RTX2070", "nvidia", (8,), (7, 5)),
    Accelerator("RTX2070SUPER", "nvidia", (8,), (7, 5)),
    Accelerator("RTX2080", "nvidia", (8,), (7, 5)),
    Accelerator("RTX2080SUPER", "nvidia", (8,), (7, 5)),
    Accelerator("RTX2080Ti", "nvidia", (11,), (7, 5)),
    Accelerator("RTX3050", "nvidia", (6, 8), (8, 6)),
    Accelerator("RTX3060", "nvidia", (8, 12), (8, 6)),
    Accelerator("RTX3060Ti", "nvidia", (8,), (8, 6)),
    Accelerator("RTX3070", "nvidia", (8,), (8, 6)),
    Accelerator("RTX3070Ti", "nvidia", (8,), (8, 6)),
    Accelerator("RTX3080", "nvidia", (10,), (8, 6)),
    Accelerator("RTX3080Ti", "nvidia", (12,), (8, 6)),
    Accelerator("RTX3090", "nvidia", (24,), (8, 6)),
    Accelerator("RTX3090Ti", "nvidia", (24,), (8, 6)),
    Accelerator("RTX4060", "nvidia", (8,), (8, 9)),
    Accelerator("RTX4060Ti", "nvidia", (8, 16), (8, 9)),
    Accelerator("RTX4070", "nvidia", (12,), (8, 9)),
    Accelerator("RTX4070SUPER", "nvidia", (12,), (8, 9)),
    Accelerator("RTX4070Ti", "nvidia", (12,), (8, 9)),
    Accelerator("RTX4070TiSUPER", "nvidia", (16,), (8, 9)),
    Accelerator("RTX4080", "nvidia", (16,), (8, 9)),
    Accelerator("RTX4080SUPER", "nvidia", (16,), (8, 9)),
    Accelerator("RTX4090", "nvidia", (24,), (8, 9)),
    Accelerator("RTX5060", "nvidia", (8,), (12, 0)),
    Accelerator("RTX5060Ti", "nvidia", (8, 16), (12, 0)),
    Accelerator("RTX5070", "nvidia", (12,), (12, 0)),
    Accelerator("RTX5070Ti", "nvidia", (16,), (12, 0)),
    Accelerator("RTX5080", "nvidia", (16,), (12, 0)),
    Accelerator("RTX5090", "nvidia", (32,), (12, 0)),
    Accelerator("RTX6000", "nvidia", (24,), (7, 5)),
    Accelerator("RTX2000Ada", "nvidia", (16,), (8, 9)),
    Accelerator("RTX4000Ada", "nvidia", (20,), (8, 9)),
    Accelerator("RTX6000Ada", "nvidia", (48,), (8, 9)),
    Accelerator("RTXPRO4500", "nvidia", (32,), (12, 0)),
    Accelerator("RTXPRO6000", "nvidia", (96,), (12, 0)),
    Accelerator("T4", "nvidia", (16,), (7, 5)),
    Accelerator("V100", "nvidia", (16, 32), (7, 0)),
    Accelerator("GH200", "nvidia", (96,), (9, 0)),
    Accelerator("MI100", "amd", (32,), None),
    Accelerator("MI210", "amd", (64,), None),
    Accelerator("MI250", "amd", (128,), None),
    Accelerator("MI250X", "amd", (128,), None),
    Accelerator("MI300A", "amd", (128,), None),
    Accelerator("MI300X", "amd", (192,), None),
    Accelerator("MI308X", "amd", (128,), None),
    Accelerator("MI325X", "amd", (288,), None),
    Accelerator("MI350X", "amd", (288,), None),
    Accelerator("MI355X", "amd", (288,), None),
    Accelerator("v2", "google", (), None),
    Accelerator("v3", "google", (), None),
    Accelerator("v4", "google", (), None),
    Accelerator("v5p", "google", (), None),
    Accelerator("v5litepod", "google", (), None),
    Accelerator("v6e", "google", (), None),
    Accelerator("Gaudi", "intel", (32,), None),
    Accelerator("Gaudi2", "intel", (96,), None),
    Accelerator("Gaudi3", "intel", (128,), None),
    Accelerator("n150", "tenstorrent", (12,), None),
    Accelerator("n300", "tenstorrent", (24,), None),
    Accelerator("tt-galaxy-wh", "tenstorrent", (12,), None),
    Accelerator("p100a", "tenstorrent", (28,), None),
    Accelerator("p150", "tenstorrent", (32,), None),
    Accelerator("p300", "tenstorrent", (32, 64), None),
    Accelerator("tt-galaxy-bh", "tenstorrent", (32,), None),
)
# What a team's own machines, clusters and older price lists have beside them.
OTHERS: Final[tuple[Accelerator, ...]] = (
    Accelerator("A2", "nvidia", (16,), (8, 6)),
    Accelerator("A2000", "nvidia", (6, 12), (8, 6)),
    Accelerator("A30", "nvidia", (24,), (8, 0)),
    Accelerator("A800", "nvidia", (40, 80), (8, 0)),
    Accelerator("GB10", "nvidia", (128,), (12, 1)),
    Accelerator("H20", "nvidia", (96, 141), (9, 0)),
    Accelerator("H800", "nvidia", (80,), (9, 0)),
    Accelerator("K80", "nvidia", (12,), (3, 7)),
    Accelerator("L2", "nvidia", (24,), (8, 9)),
    Accelerator("L20", "nvidia", (48,), (8, 9)),
    Accelerator("M60", "nvidia", (8,), (5, 2)),
    Accelerator("P4", "nvidia", (8,), (6, 1)),
    Accelerator("P40", "nvidia", (24,), (6, 1)),
    Accelerator("RTX5000Ada", "nvidia", (32,), (8, 9)),
    Accelerator("RTX4500Ada", "nvidia", (24,), (8, 9)),
    Accelerator("T4G", "nvidia", (16,), (7, 5)),
)
# fmt: on

BY_NAME: Final[dict[str, Accelerator]] = {accelerator.name.lower(): accelerator for accelerator in (*OTHERS, *KNOWN)}


def find(name: str) -> Accelerator | None:
    """The accelerator of exactly this name, whatever its case."""
    return BY_NAME.get(name.lower())
