"""Files up and down against OpenSSH's `scp` through the same server, pair by pair, in memory where /dev/shm is."""

from __future__ import annotations

import random
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from prefect_gpu.providers.core.machine.download import download
from prefect_gpu.providers.core.machine.jobs import Machine
from prefect_gpu.providers.core.machine.upload import upload
from tests.bench import Metric
from tests.fakes.sshd import has_openssh, openssh_server, ssh_options

_BIG = 1 << 30
_SMALL = 10_000
_PAIRS = 5


def measure() -> dict[str, Metric]:
    if not has_openssh():
        return {}
    memory = Path("/dev/shm")
    with (
        tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder_name,
        openssh_server() as server,
        ssh_options(server) as options,
    ):
        folder = Path(folder_name)
        base, there, back = folder / "base", folder / "there", folder / "back"
        (base / "small").mkdir(parents=True)
        there.mkdir()
        source = random.Random(1)
        with (base / "big").open("wb") as big:
            for _ in range(_BIG >> 20):
                big.write(source.randbytes(1 << 20))
        for number in range(_SMALL):
            (base / "small" / f"{number:05}").write_bytes(source.randbytes(4096))
        machine = Machine(server.connect, root=str(folder / "root"))
        machine.connection()

        def scp(*arguments: str) -> None:
            subprocess.run(["scp", "-q", *options, *arguments], check=True, stdin=subprocess.DEVNULL)

        host = server.endpoint.host

        def ratio(ours: Callable[[], object], theirs: Callable[[], object]) -> float:
            ratios: list[float] = []
            for _ in range(_PAIRS):
                times: list[float] = []
                for move in (ours, theirs):
                    for path in (folder / "root", back, *there.iterdir()):
                        shutil.rmtree(path, ignore_errors=True)
                        path.unlink(missing_ok=True) if path.is_file() else None
                    if move is ours and "down" in ours.__name__:
                        _place(base, folder / "root")
                    began = time.perf_counter()
                    move()
                    times.append(time.perf_counter() - began)
                ratios.append(times[1] / times[0])
            return statistics.median(ratios)

        def up() -> None:
            upload(machine, "job", ["big"], base)

        def up_checked() -> None:
            upload(machine, "job", ["big"], base, is_checked=True)

        def up_small() -> None:
            upload(machine, "job", ["small"], base)

        def down() -> None:
            assert download(machine, "job", ["big"], back).bytes == _BIG

        def down_small() -> None:
            assert len(download(machine, "job", ["small"], back).paths) == _SMALL

        def scp_up() -> None:
            scp(str(base / "big"), f"{host}:{there}/big")

        def scp_up_small() -> None:
            scp("-r", str(base / "small"), f"{host}:{there}/")

        def scp_down() -> None:
            scp(f"{host}:{base}/big", str(there / "big"))

        def scp_down_small() -> None:
            scp("-r", f"{host}:{base}/small", str(there))

        figures = {
            "files.up_vs_scp": Metric(ratio(up, scp_up), "x", 0.9, "higher"),
            "files.down_vs_scp": Metric(ratio(down, scp_down), "x", 1.0, "higher"),
            "files.checked_vs_scp": Metric(ratio(up_checked, scp_up), "x", 0.95, "higher"),
            "files.small_vs_scp": Metric(
                min(ratio(up_small, scp_up_small), ratio(down_small, scp_down_small)), "x", 3.0, "higher"
            ),
        }
        machine.close()
        return figures


def _place(base: Path, root: Path) -> None:
    """What is brought down stands in the job's directory already."""
    work = root / "job"
    work.mkdir(parents=True)
    (work / "work").symlink_to(base)
