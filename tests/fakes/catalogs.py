"""Price catalogs from a seed, in gpuhunt's format: the nine providers it publishes, with their names, sizes and prices.

`rows(provider, 200_000)` are the CSV rows a provider has in a catalog of so many rows in all; the same seed gives the same rows.
`publish(folder, ...)` lays them out as gpuhunt's bucket does, `serve(folder)` serves that on loopback: what GPUHUNT_CATALOG_URL
takes. gpuhunt's own integrity tests pass on them (test_catalog_fakes.py), so what our gates refuse is not the fake's fault.

Long because nine providers' names and shapes are data.
"""

from __future__ import annotations

import csv
import io
import json
import random
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import product
from pathlib import Path
from typing import NamedTuple

from prefect_gpu.providers.core.catalog import places

COLUMNS = [
    *(
        "instance_name",
        "location",
        "price",
        "cpu",
        "memory",
        "gpu_count",
        "gpu_name",
        "gpu_memory",
        "spot",
        "disk_size",
    ),
    *("gpu_vendor", "flags", "cpu_arch", "provider_data"),
]
SHARES = {"gcp": 0.55, "aws": 0.16, "azure": 0.14, "oci": 0.08, "runpod": 0.03}  # of all rows
SMALL = ("lambdalabs", "nebius", "verda", "cloudrift")  # as large as they are
OFFLINE = (*SHARES, *SMALL)

# USD per GPU-hour on demand, GB, vendor: what they cost in 2026, about.
GPUS = {
    ("B300", 270): (7.5, "nvidia"),
    ("GB300", 270): (8.0, "nvidia"),
    ("B200", 180): (5.2, "nvidia"),
    ("GB200", 186): (5.8, "nvidia"),
    ("H200", 141): (3.6, "nvidia"),
    ("H100NVL", 94): (2.9, "nvidia"),
    ("H100", 80): (2.9, "nvidia"),
    ("A100", 80): (1.7, "nvidia"),
    ("A100", 40): (1.3, "nvidia"),
    ("L40S", 48): (1.1, "nvidia"),
    ("RTXPRO6000", 96): (1.8, "nvidia"),
    ("RTXPRO4500", 32): (0.8, "nvidia"),
    ("RTX6000Ada", 48): (0.9, "nvidia"),
    ("A6000", 48): (0.6, "nvidia"),
    ("A40", 48): (0.5, "nvidia"),
    ("L4", 24): (0.6, "nvidia"),
    ("A10G", 24): (0.9, "nvidia"),
    ("A10", 24): (0.75, "nvidia"),
    ("A5000", 24): (0.3, "nvidia"),
    ("RTX5090", 32): (0.7, "nvidia"),
    ("RTX4090", 24): (0.45, "nvidia"),
    ("RTX3090", 24): (0.25, "nvidia"),
    ("T4", 16): (0.4, "nvidia"),
    ("V100", 16): (0.9, "nvidia"),
    ("P100", 16): (0.8, "nvidia"),
    ("MI300X", 192): (2.4, "amd"),
    ("MI355X", 288): (4.6, "amd"),
    ("v2-8", 64): (4.5, "google"),
    ("v3-8", 128): (8.0, "google"),
    ("v5litepod-4", 64): (4.8, "google"),
    ("v5p-8", 95): (16.8, "google"),
}


class Type(NamedTuple):
    """An instance type before it has a place and a price."""

    name: str
    cpu: int
    memory: float
    gpu: tuple[str, int] | None = None
    count: int = 0
    arch: str = "x86"
    disk: float | None = None
    flags: str = ""
    data: str = "{}"
    gpu_memory: float | None = None  # where it is a part of a GPU
    spot: bool | None = None  # only spot, only on demand, or both


def locations(provider: str) -> list[str]:
    """All locations of a provider that gpuhunt publishes."""
    if provider == "gcp":
        zones = {"us-central1": "abcf", "us-east1": "bcd", "europe-west1": "bcd"}
        old = [region for region in sorted(places.known("gcp")) if region not in _GCP_NEW]
        return [f"{region}-{zone}" for region in old for zone in zones.get(region, "abc")]
    if provider == "runpod":
        secure = (
            "US-KS-2 US-GA-1 US-TX-3 US-IL-1 US-CA-2 CA-MTL-1 CA-MTL-3 EU-RO-1 EU-SE-1 EU-NL-1 EU-CZ-1 EUR-IS-1 AP-JP-1"
        )
        return [*secure.split(), "US", "CA", "SE", "NO", "FR", "DE", "NL", "PL", "BG", "CZ"]
    if provider == "cloudrift":
        return ["us-east-nc-nr-1", "us-east-nc-nr-2", "us-west-nv-ls-1"]
    if provider == "lambdalabs":
        return sorted(places.known(provider) - {"us-east-2", "us-midwest-2", "us-south-1"})
    return sorted(places.known(provider))


_GCP_NEW = {
    "africa-south1",
    "asia-southeast3",
    "europe-north2",
    "northamerica-south1",
    "us-central2",
    "us-east7",
    "us-west8",
}


def types(provider: str) -> Iterator[Type]:
    """Instance types of a provider, GPUs first; endless where a provider has hundreds."""
    return {
        "aws": _aws,
        "azure": _azure,
        "gcp": _gcp,
        "oci": _oci,
        "runpod": _runpod,
        "lambdalabs": _lambdalabs,
        "nebius": _nebius,
        "verda": _verda,
        "cloudrift": _cloudrift,
    }[provider]()


def _aws() -> Iterator[Type]:
    yield Type("m5.large", 2, 8)
    for name, cpu, memory, gpu, count in (
        ("p5.48xlarge", 192, 2048, ("H100", 80), 8),
        ("p5.4xlarge", 16, 256, ("H100", 80), 1),
        ("p4d.24xlarge", 96, 1152, ("A100", 40), 8),
        ("p4de.24xlarge", 96, 1152, ("A100", 80), 8),
        ("g7e.2xlarge", 8, 64, ("RTXPRO6000", 96), 1),
        ("g7e.48xlarge", 192, 2048, ("RTXPRO6000", 96), 8),
        ("g7.2xlarge", 8, 32, ("RTXPRO4500", 32), 1),
    ):
        yield Type(name, cpu, memory, gpu, count)
    for family, gpu in (("g6e", ("L40S", 48)), ("g6", ("L4", 24)), ("g5", ("A10G", 24)), ("g4dn", ("T4", 16))):
        for size, cpu, count in (("xlarge", 4, 1), ("4xlarge", 16, 1), ("12xlarge", 48, 4), ("48xlarge", 192, 8)):
            yield Type(f"{family}.{size}", cpu, cpu * 4, gpu, count)
    sizes = {
        "large": 2,
        "xlarge": 4,
        "2xlarge": 8,
        "4xlarge": 16,
        "8xlarge": 32,
        "12xlarge": 48,
        "16xlarge": 64,
        "24xlarge": 96,
    }
    for n, (family, size) in enumerate(
        product(_cpu_families("mcrtxzihd", "5678", ("", "i", "a", "g", "gd", "id", "n")), sizes)
    ):
        if (family, size) != ("m5", "large"):
            ratio = {"c": 2, "r": 8, "x": 16}.get(family[0], 4)
            yield Type(f"{family}.{size}", sizes[size], sizes[size] * ratio, arch="arm" if "g" in family[1:] else "x86")
        if n > 5000:
            return


def _cpu_families(letters: str, generations: str, variants: tuple[str, ...]) -> Iterator[str]:
    for generation, variant, letter in product(generations, variants, letters):
        yield f"{letter}{generation}{variant}"


def _azure() -> Iterator[Type]:
    yield Type("Standard_D2s_v3", 2, 8)
    for name, cpu, memory, gpu, count in (
        ("Standard_ND96isr_H200_v5", 96, 1850, ("H200", 141), 8),
        ("Standard_NC40ads_H100_v5", 40, 320, ("H100NVL", 94), 1),
        ("Standard_NC80adis_H100_v5", 80, 640, ("H100NVL", 94), 2),
        ("Standard_ND96amsr_A100_v4", 96, 1900, ("A100", 80), 8),
        ("Standard_ND96asr_v4", 96, 900, ("A100", 40), 8),
        ("Standard_NC24ads_A100_v4", 24, 220, ("A100", 80), 1),
        ("Standard_NC48ads_A100_v4", 48, 440, ("A100", 80), 2),
        ("Standard_NV36ads_A10_v5", 36, 440, ("A10", 24), 1),
        ("Standard_NC4as_T4_v3", 4, 28, ("T4", 16), 1),
        ("Standard_NC64as_T4_v3", 64, 440, ("T4", 16), 4),
        ("Standard_NC6s_v3", 6, 112, ("V100", 16), 1),
        ("Standard_NC24s_v3", 24, 448, ("V100", 16), 4),
    ):
        yield Type(name, cpu, memory, gpu, count)
    for version, series, cpu in product(
        "3456789", ("D{}s", "D{}as", "D{}ds", "E{}s", "E{}as", "F{}s", "D{}ps"), (2, 4, 8, 16, 32, 48, 64, 96)
    ):
        if (series, cpu, version) != ("D{}s", 2, "3"):
            memory = cpu * {"E": 8, "F": 2}.get(series[0], 4)
            yield Type(f"Standard_{series.format(cpu)}_v{version}", cpu, memory, arch="arm" if "p" in series else "x86")


def _gcp() -> Iterator[Type]:
    yield Type("e2-highcpu-2", 2, 2)
    for name, cpu, memory, gpu, count in (
        ("a4-highgpu-8g", 224, 3968, ("B200", 180), 8),
        ("a3-ultragpu-8g", 224, 2952, ("H200", 141), 8),
        ("a3-megagpu-8g", 208, 1872, ("H100", 80), 8),
        ("a3-highgpu-8g", 208, 1872, ("H100", 80), 8),
        ("a3-highgpu-4g", 104, 936, ("H100", 80), 4),
        ("a3-highgpu-2g", 52, 468, ("H100", 80), 2),
        ("a3-highgpu-1g", 26, 234, ("H100", 80), 1),
        ("a2-ultragpu-8g", 96, 1360, ("A100", 80), 8),
        ("a2-ultragpu-1g", 12, 170, ("A100", 80), 1),
        ("a2-megagpu-16g", 96, 1360, ("A100", 40), 16),
        ("a2-highgpu-8g", 96, 680, ("A100", 40), 8),
        ("a2-highgpu-1g", 12, 85, ("A100", 40), 1),
        ("g2-standard-8", 8, 32, ("L4", 24), 1),
        ("g2-standard-96", 96, 384, ("L4", 24), 8),
    ):
        yield Type(name, cpu, memory, gpu, count, flags="gcp-a4" if name.startswith("a4") else "")
    for part, memory in ((6, 12.0), (12, 24.0), (24, 48.0)):
        yield Type(f"g4-standard-{part}", part, part * 4, ("RTXPRO6000", 96), 1, flags="gcp-g4", gpu_memory=memory)
    for cpu, count in ((48, 1), (96, 2), (192, 4), (384, 8)):
        yield Type(f"g4-standard-{cpu}", cpu, cpu * 4, ("RTXPRO6000", 96), count, flags="gcp-g4")
    for name, cpu, memory, hbm in (
        ("v2-8", 96, 334, 64),
        ("v3-8", 96, 334, 128),
        ("v5litepod-4", 112, 192, 64),
        ("v5p-8", 208, 448, 95),
    ):
        yield Type(name, cpu, memory, (name, hbm), 1)
    for gpu, count, cpu in product((("T4", 16), ("V100", 16), ("P100", 16)), (1, 2, 4), (4, 8, 16, 32)):
        yield Type(f"n1-standard-{cpu}-{gpu[0].lower()}-{count}", cpu, cpu * 3.75, gpu, count)
    for series, shape, cpu in product(
        (
            "e2",
            "n1",
            "n2",
            "n2d",
            "c2",
            "c2d",
            "c3",
            "c3d",
            "c4",
            "c4a",
            "c4d",
            "n4",
            "n4d",
            "t2a",
            "t2d",
            "m3",
            "z3",
            "h3",
            "x4",
        ),
        ("standard", "highmem", "highcpu", "ultramem", "megamem"),
        (2, 4, 8, 16, 22, 32, 44, 48, 64, 80, 96, 128),
    ):
        if (series, shape, cpu) != ("e2", "highcpu", 2):
            memory = cpu * {"highmem": 8, "highcpu": 1, "ultramem": 24, "megamem": 14}.get(shape, 4)
            yield Type(f"{series}-{shape}-{cpu}", cpu, memory, arch="arm" if series in {"t2a", "c4a"} else "x86")


def _oci() -> Iterator[Type]:
    for gpu, counts in (
        (("P100", 16), (1, 2)),
        (("V100", 16), (1, 2, 4, 8)),
        (("A10", 24), (1, 2, 4)),
        (("A100", 40), (8,)),
        (("A100", 80), (8,)),
        (("L40S", 48), (4,)),
        (("H100", 80), (8,)),
        (("H200", 141), (8,)),
        (("MI300X", 192), (8,)),
        (("MI355X", 288), (8,)),
        (("B200", 180), (8,)),
        (("B300", 270), (8,)),
        (("GB200", 186), (4,)),
        (("GB300", 270), (4,)),
        (("RTXPRO6000", 96), (8,)),
    ):
        for count in counts:
            kind = "VM" if count < 4 else "BM"
            yield Type(
                f"{kind}.GPU.{gpu[0]}{gpu[1] if gpu[0] == 'A100' else ''}.{count}", 12 * count, 180 * count, gpu, count
            )
    for cpu, series, kind in product(range(2, 130, 2), ("E4", "E5", "A2", "X9"), ("VM", "BM")):
        yield Type(f"{kind}.Standard.{series}.{cpu}", cpu, cpu * 8, arch="arm" if series.startswith("A") else "x86")


def _runpod() -> Iterator[Type]:
    for cpu in (2, 4, 8, 16, 32):
        yield Type(f"cpu{cpu}c-{cpu}-{cpu * 4}", cpu, cpu * 4, flags="runpod-cpu", spot=False)
    for gpu, count in product(GPUS, (1, 2, 3, 4, 5, 6, 7, 8)):
        if GPUS[gpu][1] != "google":
            name = f"NVIDIA {gpu[0]} {gpu[1]}GB" if GPUS[gpu][1] == "nvidia" else f"AMD Instinct {gpu[0]} OAM"
            yield Type(name, 16 * count, 120 * count, gpu, count, spot=False, data=json.dumps({"pod_counts": [count]}))


def _lambdalabs() -> Iterator[Type]:
    for gpu, word, counts in (
        (("H100", 80), "h100_sxm5", (1, 2, 4, 8)),
        (("A100", 40), "a100_sxm4", (1, 8)),
        (("A100", 80), "a100_80gb_sxm4", (8,)),
        (("A10", 24), "a10", (1,)),
        (("A6000", 48), "a6000", (1, 2, 4)),
        (("B200", 180), "b200_sxm6", (1, 2, 4, 8)),
        (("V100", 16), "v100_n", (8,)),
    ):
        for count in counts:
            yield Type(
                f"gpu_{count}x_{word}",
                26 * count,
                round(225 * count * 1.074, 3),
                gpu,
                count,
                disk=1024 * 1.074,
                spot=False,
            )


def _nebius() -> Iterator[Type]:
    flat = {"fabrics": [], "is_preemptible_flat_rate": False}
    for platform, gpu, shapes in (
        ("gpu-h100-sxm", ("H100", 80), ((1, 16, 200), (8, 128, 1600))),
        ("gpu-h200-sxm", ("H200", 141), ((1, 16, 200), (8, 128, 1600))),
        ("gpu-b200-sxm", ("B200", 180), ((1, 20, 224), (8, 160, 1792))),
        ("gpu-l40s-a", ("L40S", 48), ((1, 8, 32), (1, 16, 64), (1, 24, 96))),
        ("gpu-l40s-d", ("L40S", 48), ((1, 16, 96), (2, 64, 384))),
        ("gpu-rtx6000", ("RTXPRO6000", 96), ((1, 24, 218), (8, 192, 1744))),
    ):
        for count, cpu, memory in shapes:
            name = f"{platform} {count}gpu-{cpu}vcpu-{memory}gb"
            fabrics = [f"fabric-{n}" for n in (2, 3, 4, 6)] if count == 8 else []
            yield Type(name, cpu, memory, gpu, count, spot=False, data=json.dumps({**flat, "fabrics": fabrics}))
            data = {"fabrics": fabrics, "is_preemptible_flat_rate": "l40s" in platform}
            yield Type(name, cpu, memory, gpu, count, spot=True, data=json.dumps(data))
    for cpu in (2, 4, 8, 16, 32, 48, 64, 80, 96, 128):
        yield Type(f"cpu-d3 {cpu}vcpu-{cpu * 4}gb", cpu, cpu * 4, spot=False, data=json.dumps(flat))


def _verda() -> Iterator[Type]:
    for gpu, name, counts in (
        (("B300", 268), "B300.{}V", (1, 2, 4, 8)),
        (("B200", 180), "B200.{}V", (1, 2, 4, 8)),
        (("H200", 141), "H200.141S.{}V", (1, 2, 4, 8)),
        (("H100", 80), "H100.80S.{}V", (1, 2, 4, 8)),
        (("A100", 80), "A100.80S.{}V", (1, 2, 4, 8)),
        (("A100", 40), "A100.40S.{}V", (1, 8)),
        (("RTX6000Ada", 48), "RTX6000ADA.{}V", (1, 2, 4, 8)),
        (("RTXPRO6000", 96), "RTXPRO6000.{}V", (1, 2, 4, 8)),
        (("A6000", 48), "A6000.{}V", (1, 2, 4, 8)),
        (("V100", 16), "V100.{}V", (1, 2, 4, 8)),
        (("L40S", 48), "L40S.{}V", (1, 2, 4, 8)),
    ):
        for count in counts:
            yield Type(f"{count}{name.format(22 * count)}", 22 * count, 120 * count, gpu, count)


def _cloudrift() -> Iterator[Type]:
    for gpu, count in product((("RTX4090", 24), ("RTX5090", 32), ("RTXPRO6000", 96)), (1, 2, 4, 8)):
        yield Type(f"{gpu[0].lower()}.{count}", 12 * count, 64 * count, gpu, count, disk=500.0, spot=False)


def rows(provider: str, total: int = 200_000, *, seed: int = 1, day: int = 0) -> list[tuple[str, ...]]:
    """A provider's part of a catalog of `total` rows, by price; prices drift a little from `day` to `day`."""
    size = round(SHARES[provider] * total) if provider in SHARES else 10**9
    if provider == "gcp":
        size = total - sum(len(rows(other, total, seed=seed)) for other in OFFLINE if other != "gcp")
    made: list[tuple[float, tuple[str, ...]]] = []
    where = locations(provider)
    steady = random.Random(f"{seed} {provider}")
    dear = {location: steady.uniform(0.9, 1.35) for location in where}
    drift = random.Random(f"{seed} {provider} {day}")
    todays = {gpu: 1.0 if day == 0 else drift.uniform(0.97, 1.03) for gpu in (*GPUS, None)}
    for kind in types(provider):
        dollars = kind.cpu * 0.035 + kind.memory * 0.004
        if kind.gpu:
            gpu = kind.gpu if kind.gpu in GPUS else ("B300", 270)
            per_gpu = GPUS[gpu][0] * (kind.gpu_memory or kind.gpu[1]) / kind.gpu[1]
            dollars = per_gpu * kind.count * steady.uniform(0.95, 1.1) + kind.cpu * 0.002
        dollars *= todays[kind.gpu if kind.gpu in GPUS else None]
        off = steady.uniform(0.3, 0.7)
        for location, spot in product(where, (False, True)):
            if provider == "runpod" and not kind.gpu and "-" not in location:
                continue  # machines without a GPU are in its own data centres only
            if (kind.spot is None or spot is kind.spot) and not (
                spot and provider in {"lambdalabs", "runpod", "cloudrift"}
            ):
                price = round(dollars * dear[location] * (off if spot else 1.0), 5)
                flags = " ".join(filter(None, (kind.flags, "oci-spot" if provider == "oci" and spot else "")))
                made.append((price, _row(kind, location, price, spot, flags)))
        if len(made) >= size:
            break
    kept = made[:size] if len(made) > size else made
    return [row for _, row in sorted(kept)]


def _row(kind: Type, location: str, price: float, spot: bool, flags: str) -> tuple[str, ...]:
    gpu = kind.gpu
    vendor = GPUS[gpu if gpu in GPUS else ("B300", 270)][1] if gpu else ""
    memory = "" if gpu is None else str(float(kind.gpu_memory or gpu[1]))
    return (
        kind.name,
        location,
        str(price),
        str(kind.cpu),
        str(float(kind.memory)),
        str(kind.count),
        gpu[0] if gpu else "",
        memory,
        str(spot),
        "" if kind.disk is None else str(kind.disk),
        vendor,
        flags,
        kind.arch,
        kind.data,
    )


def csv_text(lines: list[tuple[str, ...]]) -> str:
    """Rows as gpuhunt writes them."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    writer.writerows(lines)
    return text.getvalue()


def write_directory(folder: Path, lines: dict[str, list[tuple[str, ...]]]) -> None:
    """What GPUHUNT_CATALOG_DIR takes."""
    folder.mkdir(parents=True, exist_ok=True)
    for provider, of_provider in lines.items():
        (folder / f"{provider}.csv").write_text(csv_text(of_provider), newline="")


def publish(folder: Path, provider: str, lines: list[tuple[str, ...]], *, version: str = "20261124-1") -> None:
    """One provider as gpuhunt's bucket has it: `<provider>/version` and `<provider>/<version>/catalog.zip`."""
    place = folder / provider / version
    place.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(place / "catalog.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{provider}.csv", csv_text(lines))
    (folder / provider / "version").write_text(version)


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is http.server's
        pass


@contextmanager
def serve(folder: Path) -> Iterator[str]:
    """The folder over HTTP on loopback; the address is what GPUHUNT_CATALOG_URL takes."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), lambda *args: _Quiet(*args, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
