"""The catalog beside gpuhunt, over the same 200,000 rows in one run: questions, a cold start, publishing.

What bounds each path, measured beside it and printed: a narrow answer is as many `Offer`s as it has rows (0.5 us each, a dict and an
object), a broad one is one look at every kind (some 3,000, 0.2 us each in SQLite), a cold start is imports (pydantic's models, 40 ms of
CPU on a slow machine, are the contract's and not counted), publishing is reading, checking and inserting a row (about 8 us together).
"""

from __future__ import annotations

import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from operator import attrgetter
from pathlib import Path
from typing import Any
from unittest.mock import patch

import gpuhunt
from gpuhunt._internal import storage
from gpuhunt._internal.catalog import ProviderCatalog

from prefect_gpu.providers.core.catalog import collect, query, rules, store
from prefect_gpu.providers.core.catalog.filters import Filters
from prefect_gpu.providers.core.models import utc_now
from tests.bench import Metric
from tests.fakes import catalogs

TOTAL = 200_000
ROOT = Path(__file__).parents[2]

# One value of each filter in gpuhunt's signature, as theirs and ours name it.
EACH_FILTER: dict[str, tuple[dict[str, Any], Filters]] = {
    "provider": ({"provider": "aws"}, Filters()),
    "cpu_arch": ({"cpu_arch": "arm"}, Filters(cpu_arch="arm64")),
    "min_cpu": ({"min_cpu": 64}, Filters(min_cpu=64)),
    "max_cpu": ({"max_cpu": 4}, Filters(max_cpu=4)),
    "min_memory": ({"min_memory": 512}, Filters(min_memory=512)),
    "max_memory": ({"max_memory": 8}, Filters(max_memory=8)),
    "min_gpu_count": ({"min_gpu_count": 8}, Filters(min_gpu_count=8)),
    "max_gpu_count": ({"max_gpu_count": 0}, Filters(max_gpu_count=0)),
    "gpu_vendor": ({"gpu_vendor": "amd"}, Filters(gpu_vendor="amd")),
    "gpu_name": ({"gpu_name": ["A100", "H100", "L4"]}, Filters(gpu_name=("A100", "H100", "L4"))),
    "min_gpu_memory": ({"min_gpu_memory": 24}, Filters(min_gpu_memory=24)),
    "max_gpu_memory": ({"max_gpu_memory": 16}, Filters(max_gpu_memory=16)),
    "min_total_gpu_memory": ({"min_total_gpu_memory": 640}, Filters(min_total_gpu_memory=640)),
    "max_total_gpu_memory": ({"max_total_gpu_memory": 48}, Filters(max_total_gpu_memory=48)),
    "min_disk_size": ({"min_disk_size": 600}, Filters(min_disk_size=600)),
    "max_disk_size": ({"max_disk_size": 600}, Filters(max_disk_size=600)),
    "min_price": ({"min_price": 20.0}, Filters(min_price=20.0)),
    "max_price": ({"max_price": 0.5}, Filters(max_price=0.5)),
    "min_compute_capability": ({"min_compute_capability": "8.0"}, Filters(min_compute_capability=(8, 0))),
    "max_compute_capability": ({"max_compute_capability": "7.5"}, Filters(max_compute_capability=(7, 5))),
    "spot": ({"spot": True}, Filters(spot=True)),
    "allowed_flags": ({"allowed_flags": ["oci-spot"]}, Filters(allowed_flags=("oci-spot",))),
}
NARROW = {"gpu_name": "H100", "min_gpu_count": 8, "max_gpu_count": 8, "spot": True}
OUR_NARROW = Filters(gpu_name=("H100",), min_gpu_count=8, max_gpu_count=8, spot=True)
BROAD = Filters(min_gpu_memory=24)

COLD = """
import json, os, resource, sys, time
import pydantic, asyncio, logging, threading, pathlib, hashlib  # what Prefect has imported already, as it has ...
import prefect_gpu.providers.core.models, prefect_gpu.providers.core.requests  # ... the contract, which every flow needs
def rss():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() / 1e6
before, began = rss(), time.perf_counter()
from prefect_gpu.providers.core.catalog import query as catalog
from prefect_gpu.providers.core.catalog.filters import Filters
found = catalog.query(Filters(gpu_name=("H100",), min_gpu_count=8, max_gpu_count=8, spot=True))
print(json.dumps({"ms": (time.perf_counter() - began) * 1e3, "mb": rss() - before, "found": len(found)}))
"""


def measure() -> dict[str, Metric]:
    """Everything under *Must show* in the issue of the catalog."""
    with tempfile.TemporaryDirectory() as folder, patch.dict(os.environ, {"PREFECT_HOME": folder}):
        rows = {provider: catalogs.rows(provider, TOTAL) for provider in catalogs.OFFLINE}
        texts = {provider: catalogs.csv_text(of_provider) for provider, of_provider in rows.items()}
        published = _published(texts)
        directory = Path(folder) / "csv"
        catalogs.write_directory(directory, rows)
        theirs = gpuhunt.Catalog(auto_reload=False)
        for provider, text in texts.items():
            theirs.catalog[provider] = ProviderCatalog("1", list(storage.load(io.StringIO(text), provider=provider)))
        theirs.loaded_at = time.monotonic()
        return {**_narrow(theirs, directory), **_broad(), **_worst(theirs), **_cold(), **published}


def _published(texts: dict[str, str]) -> dict[str, Metric]:
    """From collected offers to snapshots that every reader sees: gates, comparison with the last snapshot, files, fsync."""
    collections = {
        provider: collect.read_csv(provider, io.BytesIO(text.encode()), "gpuhunt 1", utc_now())
        for provider, text in texts.items()
    }
    seconds: list[float] = []
    for hour in range(3):
        began = time.perf_counter()
        for provider, collection in collections.items():
            checked = rules.check(provider, collection, store.opened(provider))
            assert not checked.refusals, [str(finding) for finding in checked.refusals]
            store.publish(
                provider,
                checked.prices,
                collected_at=datetime.now(UTC) + timedelta(hours=hour),
                source=f"gpuhunt {hour}",
            )
        seconds.append(time.perf_counter() - began)
    offers = sum(snapshot.about.offers for name in store.providers() if (snapshot := store.opened(name)))
    assert offers == TOTAL
    return {"catalog.publish_s": Metric(statistics.median(seconds), "s", 3.0, "lower")}


def _narrow(theirs: gpuhunt.Catalog, directory: Path) -> dict[str, Metric]:
    """The whole answer, as Offers; ratios pair by pair."""
    ours: list[float] = []
    to_memory: list[float] = []
    to_directory: list[float] = []
    for round_ in range(15):
        mine = statistics.median(_seconds(lambda: query.query(OUR_NARROW)) for _ in range(9))
        ours.append(mine)
        to_memory.append(_seconds(lambda: theirs.query(**NARROW)) / mine)
        if round_ < 3:
            with patch.dict(os.environ, {"GPUHUNT_CATALOG_DIR": str(directory)}):
                to_directory.append(_seconds(lambda: theirs.query(**NARROW)) / mine)
    assert len(query.query(OUR_NARROW)) == len(theirs.query(**NARROW)) > 100
    return {
        "catalog.narrow_ms": Metric(statistics.median(ours) * 1e3, "ms", 2.0, "lower"),
        "catalog.narrow_vs_memory": Metric(statistics.median(to_memory), "x", 100.0, "higher"),
        "catalog.narrow_vs_directory": Metric(statistics.median(to_directory), "x", 1000.0, "higher"),
    }


def _broad() -> dict[str, Metric]:
    seconds = [_seconds(lambda: query.query(BROAD, limit=25)) for _ in range(41)]
    return {"catalog.broad_ms": Metric(statistics.median(seconds) * 1e3, "ms", 5.0, "lower")}


def _worst(theirs: gpuhunt.Catalog) -> dict[str, Metric]:
    """Of all filters, the one where our top 25 gains least on gpuhunt's whole answer, sorted."""
    gains: dict[str, float] = {}
    for name, (their_filter, our_filter) in EACH_FILTER.items():
        names = ["aws"] if name == "provider" else None

        def their_answer(asked: dict[str, Any] = their_filter) -> list[gpuhunt.CatalogItem]:
            return sorted(theirs.query(**asked), key=attrgetter("price"))

        def our_answer(asked: Filters = our_filter, names: list[str] | None = names) -> list[Any]:
            return query.query(asked, names, limit=25)

        assert [offer.price for offer in our_answer()] == [item.price for item in their_answer()[:25]], name
        pairs = [_seconds(their_answer) / statistics.median(_seconds(our_answer) for _ in range(7)) for _ in range(3)]
        gains[name] = statistics.median(pairs)
    worst = min(gains, key=lambda name: gains[name])
    print(f"catalog: the filter that gains least is {worst}", file=sys.stderr)
    return {"catalog.worst_filter_vs_memory": Metric(gains[worst], "x", 20.0, "higher")}


def _cold() -> dict[str, Metric]:
    runs: list[dict[str, float]] = []
    for _ in range(7):
        done = subprocess.run(
            [sys.executable, "-c", COLD],
            cwd=ROOT,
            env=os.environ,
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        runs.append(json.loads(done.stdout))
    assert all(run["found"] > 100 for run in runs)
    return {
        "catalog.cold_ms": Metric(statistics.median(run["ms"] for run in runs), "ms", 50.0, "lower"),
        "catalog.cold_rss_mb": Metric(statistics.median(run["mb"] for run in runs), "MB", 30.0, "lower"),
    }


def _seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began
