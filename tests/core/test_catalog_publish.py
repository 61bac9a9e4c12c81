"""A reader never sees half a snapshot, whatever dies when; what is published is fetched whole or not at all."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from prefect_gpu.providers.core.catalog import published, store
from prefect_gpu.providers.core.catalog.filters import Filters
from prefect_gpu.providers.core.catalog.kinds import Kind, Place, Price
from prefect_gpu.providers.core.catalog.snapshot import Snapshot
from prefect_gpu.providers.core.errors import InvalidRequest, NotFound, Transient
from prefect_gpu.providers.core.renting import shared_prices
from tests.fakes import catalogs

ROOT = Path(__file__).parents[2]
WHEN = datetime(2026, 11, 24, 12, tzinfo=UTC)
H100 = Kind("p5.48xlarge", cpu=192, memory_gb=2048, gpu_name="H100", gpu_count=8, gpu_memory_gb=80, gpu_vendor="nvidia")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


# --- kill -9 ----------------------------------------------------------------------------------------------------------

# Publishes for ever in a child that it forks at each line of its stdin; imports are done, so the child begins at once.
PUBLISHER = """
import os, sys
from datetime import UTC, datetime, timedelta
from prefect_gpu.providers.core.catalog import store as prices
from prefect_gpu.providers.core.catalog.kinds import Kind, Place, Price
rows = [Price(Kind(f"t{k}", cpu=8, memory_gb=64), Place(f"r-{p}"), 1.0 + k / 1000) for k in range(100) for p in range(50)]
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        hours = int(line)
        while True:
            hours += 1
            prices.publish("aws", [row._replace(price=row.price + hours) for row in rows],
                           collected_at=datetime(2026, 11, 24, tzinfo=UTC) + timedelta(hours=hours), source=str(hours))
    print(child, flush=True)
    os.waitpid(child, 0)
    print("dead", flush=True)
"""


def test_kill_9_at_any_moment_of_publishing_leaves_the_old_snapshot_or_the_new_one() -> None:
    chance = random.Random(9)
    place = store.folder() / "aws"
    seen: list[int] = []
    kills = 0
    ended_at = time.monotonic() + 120
    with subprocess.Popen(
        [sys.executable, "-c", PUBLISHER],
        cwd=ROOT,
        env=os.environ,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as publisher:
        assert publisher.stdin is not None
        assert publisher.stdout is not None
        while kills < 60 or len(set(seen)) < 10:
            assert time.monotonic() < ended_at, f"{kills} kills, {len(set(seen))} snapshots"
            publisher.stdin.write(f"{seen[-1] if seen else 0}\n")
            publisher.stdin.flush()
            child = int(publisher.stdout.readline())
            time.sleep(chance.uniform(0.0, 0.2))
            os.kill(child, signal.SIGKILL)
            assert publisher.stdout.readline() == "dead\n"
            kills += 1
            edition = store.latest(place)
            if edition is None:
                assert not seen, "what was there once is there for ever"
                continue
            assert (place / edition.file).stat().st_size == edition.bytes
            snapshot = Snapshot(place / edition.file)
            assert len(snapshot.find(Filters())) == snapshot.about.offers == 5000
            assert snapshot._db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            hours = int(snapshot.about.source)
            assert snapshot.find(Filters(), limit=1)[0][0] == 1.0 + hours, "all of it is of that hour"
            assert hours >= (seen[-1] if seen else 0)
            seen.append(hours)
            snapshot.close()
        publisher.stdin.close()


def test_what_a_dead_publisher_left_behind_goes_in_time() -> None:
    publish(31.0)
    left = store.folder() / "aws" / ".20261124T000000000000Z-abcdef.unfinished"
    left.write_bytes(b"half")
    publish(30.0, hours=1)
    assert left.exists(), "it may be another worker's, still alive"
    os.utime(left, (time.time() - 7200, time.time() - 7200))
    publish(29.0, hours=2)
    assert not left.exists()


def publish(price: float, hours: int = 0) -> None:
    store.publish(
        "aws",
        [Price(H100, Place("us-east-1", None, "US"), price)],
        collected_at=WHEN + timedelta(hours=hours),
        source="test",
    )


# --- shared storage ---------------------------------------------------------------------------------------------------


class Bucket:
    """Storage as object stores are: whole objects, by key."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.reads: list[str] = []

    def read_path(self, path: str) -> bytes:
        self.reads.append(path)
        return self.objects[path]

    def write_path(self, path: str, content: bytes) -> None:
        self.objects[path] = content


def current() -> float | None:
    snapshot = store.opened("aws")
    return None if snapshot is None else snapshot.find(Filters())[0][0]


def other_worker(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "other"))


def test_a_worker_fetches_what_another_published_and_only_when_it_is_newer(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bucket = Bucket()
    publish(31.0)
    shared_prices.send("aws", bucket)
    other_worker(monkeypatch, tmp_path)
    assert current() is None
    assert shared_prices.fetch("aws", bucket)
    assert current() == 31.0
    bucket.reads.clear()
    assert not shared_prices.fetch("aws", bucket)
    assert all(path.endswith("latest.json") for path in bucket.reads), "no snapshot is fetched twice"
    publish(30.0, hours=1)
    assert not shared_prices.fetch("aws", bucket)
    assert current() == 30.0, "what is newer here stays"


def test_half_an_upload_is_never_a_snapshot(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bucket = Bucket()
    publish(31.0)
    shared_prices.send("aws", bucket)
    whole = dict(bucket.objects)
    edition = next(path for path in whole if path.endswith(".sqlite"))
    pointer = f"{shared_prices.PREFIX}/aws/latest.json"
    other_worker(monkeypatch, tmp_path)
    for broken in (
        {pointer: whole[pointer]},
        {edition: whole[edition]},
        {**whole, edition: whole[edition][:-100]},
        {**whole, edition: whole[edition][:-1] + b"x"},
        {**whole, pointer: whole[pointer][:20]},
        {**whole, pointer: whole[pointer].replace(b".sqlite", b"/../../x")},
        {},
    ):
        bucket.objects = broken
        assert not shared_prices.fetch("aws", bucket)
        assert current() is None
        assert not list(store.folder().rglob("*unfinished"))
    bucket.objects = whole
    assert shared_prices.fetch("aws", bucket)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("version", "../../../../x"),
        ("version", "20261128T120000000000Z-abcdef/../../x"),
        ("version", "/tmp/x"),
        ("version", "20261128T120000000000Z-abcdef\n"),
        ("version", "99999999T999999999999Z-abcdef"),
        ("file", "../x.sqlite"),
        ("file", "other.sqlite"),
        ("bytes", 10**12),
        ("bytes", -1),
        ("bytes", "1e999"),
    ],
)
def test_a_pointer_that_says_a_path_or_nonsense_installs_nothing_anywhere(
    field: str, value: object, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bucket = Bucket()
    publish(31.0)
    shared_prices.send("aws", bucket)
    pointer = f"{shared_prices.PREFIX}/aws/latest.json"
    told = json.loads(bucket.objects[pointer])
    content = bucket.objects[f"{shared_prices.PREFIX}/aws/{told['file']}"]
    told[field] = value
    bucket.objects = {pointer: json.dumps(told).encode(), f"{shared_prices.PREFIX}/aws/{told['file']}": content}
    other_worker(monkeypatch, tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert not shared_prices.fetch("aws", bucket)
    assert current() is None
    new = [path for path in tmp_path.rglob("*") if path not in before and path.is_file()]
    assert not new, "not a file is written, inside or outside"
    (store.folder() / "aws").mkdir(parents=True, exist_ok=True)
    (store.folder() / "aws" / "latest.json").write_text(json.dumps(told))
    assert current() is None


@pytest.mark.parametrize("provider", ["../x", "/etc", "", "a/b", "aws\n", "A" * 40])
def test_a_provider_is_a_name_and_not_a_path(provider: str) -> None:
    with pytest.raises(ValueError, match="is not the name of a provider"):
        store.publish(provider, [], collected_at=WHEN, source="test")
    assert store.opened(provider) is None


def test_storage_that_fails_is_one_sentence_and_no_secret() -> None:
    class Broken(Bucket):
        def write_path(self, path: str, content: bytes) -> None:
            raise RuntimeError("https://key:secret@bucket")

    publish(31.0)
    with pytest.raises(Transient, match="could not be stored: RuntimeError") as failure:
        shared_prices.send("aws", Broken())
    assert "secret" not in str(failure.value)


# --- gpuhunt's bucket -------------------------------------------------------------------------------------------------


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / "v3"
    folder.mkdir()
    with catalogs.serve(folder) as address:
        monkeypatch.setenv("GPUHUNT_CATALOG_URL", address + "/")
        yield folder


def test_a_published_catalog_is_fetched_and_not_again_while_it_is_the_same(bucket: Path) -> None:
    rows = catalogs.rows("verda")
    catalogs.publish(bucket, "verda", rows, version="20261120-7")
    read = published.catalog("verda")
    assert read is not None
    assert (len(read.prices), read.malformed, read.source) == (len(rows), 0, "gpuhunt 20261120-7")
    assert abs((read.collected_at - datetime.now(UTC)).total_seconds()) < 60, "the server's word for when it changed"
    assert published.catalog("verda", unless=read.source) is None
    catalogs.publish(bucket, "verda", rows, version="20261121-8")
    assert published.catalog("verda", unless=read.source) is not None


def test_a_date_in_the_version_tells_the_age_where_the_server_does_not() -> None:
    assert published._published_at(None, "20261120-7") == datetime(2026, 11, 20, tzinfo=UTC)
    assert abs((published._published_at(None, "v7") - datetime.now(UTC)).total_seconds()) < 60
    assert abs((published._published_at("nonsense", "v7") - datetime.now(UTC)).total_seconds()) < 60
    assert published._published_at("Wed, 21 Oct 2043 07:28:00 GMT", "v7") <= datetime.now(UTC), "never younger than now"


def test_what_is_not_published_or_no_catalog_is_one_sentence(bucket: Path) -> None:
    with pytest.raises(NotFound, match=r"no price catalog of aws is published at 127\.0\.0\.1"):
        published.catalog("aws")
    (bucket / "aws").mkdir()
    (bucket / "aws" / "version").write_text("../../etc")
    with pytest.raises(InvalidRequest, match="that is not a version"):
        published.catalog("aws")
    (bucket / "aws" / "version").write_text("1")
    (bucket / "aws" / "1").mkdir()
    (bucket / "aws" / "1" / "catalog.zip").write_bytes(b"PK nonsense")
    with pytest.raises(InvalidRequest, match=r"is not a ZIP file with aws\.csv"):
        published.catalog("aws")
    catalogs.publish(bucket, "verda", [])
    (bucket / "aws" / "1" / "catalog.zip").write_bytes((bucket / "verda" / "20261124-1" / "catalog.zip").read_bytes())
    with pytest.raises(InvalidRequest, match=r"is not a ZIP file with aws\.csv"):
        published.catalog("aws")


def test_without_network_one_sentence_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUHUNT_CATALOG_URL", "http://user:hunter2@127.0.0.1:1/v3")
    with pytest.raises(
        Transient, match=r"the price catalog of aws could not be fetched: ConnectError from 127\.0\.0\.1"
    ) as failure:
        published.catalog("aws")
    assert "hunter2" not in str(failure.value)


def test_a_folder_of_csv_files_is_read_instead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUHUNT_CATALOG_DIR", str(tmp_path))
    with pytest.raises(NotFound, match=r"there is no verda.csv in GPUHUNT_CATALOG_DIR"):
        published.catalog("verda")
    rows = catalogs.rows("verda")
    catalogs.write_directory(tmp_path, {"verda": rows})
    read = published.catalog("verda")
    assert read is not None
    assert len(read.prices) == len(rows)
    (tmp_path / "verda.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InvalidRequest, match="has no column cpu, gpu_count"):
        published.catalog("verda")


def test_the_pointer_is_readable_by_people() -> None:
    publish(31.0)
    told = json.loads((store.folder() / "aws" / "latest.json").read_text())
    assert set(told) == {"version", "file", "bytes", "sha256"}
