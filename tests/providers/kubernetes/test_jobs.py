"""Jobs on a pod of the real cluster."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tarfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pydantic import SecretStr

pytest.importorskip("kubernetes", reason="needs the extra kubernetes")

from prefect_gpu.providers.core.errors import InstanceFailed
from prefect_gpu.providers.core.machine.check import check
from prefect_gpu.providers.core.machine.download import download
from prefect_gpu.providers.core.machine.jobs import Machine
from prefect_gpu.providers.core.machine.upload import upload
from prefect_gpu.providers.core.models import (
    Instance,
    InstanceState,
    JobSpec,
)
from prefect_gpu.providers.core.requests import Requirements
from prefect_gpu.providers.kubernetes.driver import Kubernetes
from tests.fakes.kubernetes import Cluster
from tests.fakes.kubernetes_api import Relay
from tests.providers.kubernetes.on_cluster import H100, create, run, until


@contextmanager
def image_of(*tools: str) -> Iterator[str]:
    """An image that has these tools of this machine, and nothing else."""
    name = f"prefect-gpu-test-bare:{os.getpid()}"
    with io.BytesIO() as packed:
        with tarfile.open(fileobj=packed, mode="w", dereference=True) as tar:
            for tool in tools:
                path = str(shutil.which(tool))
                tar.add(path, f"bin/{tool}")
                needs = subprocess.run(["ldd", path], check=True, capture_output=True, text=True).stdout
                for library in {word for word in needs.split() if word.startswith("/")} - {
                    f"/{one}" for one in tar.getnames()
                }:
                    tar.add(library)
        subprocess.run(["docker", "import", "-", name], input=packed.getvalue(), check=True, capture_output=True)
    try:
        yield name
    finally:
        used = ["docker", "ps", "--quiet", "--filter", f"ancestor={name}"]
        if pods := subprocess.run(used, check=False, capture_output=True, text=True).stdout.split():
            subprocess.run(["docker", "rm", "--force", *pods], check=False, capture_output=True)
        subprocess.run(["docker", "image", "rm", "--force", name], check=False, capture_output=True)


@pytest.mark.kubernetes
class TestJobsOnAPod:
    def test_a_job_runs_and_its_output_and_exit_code_come_back(
        self, pod: tuple[Kubernetes, Instance], tmp_path: Path
    ) -> None:
        machine = Machine(lambda: pod[0].open_channel(pod[1]))
        job = JobSpec(
            id=f"{pod[1].name}.{uuid.uuid4().hex[:4]}",
            command="echo $GREETING $WORD; echo err >&2; printf '\\000\\377'; exit 3",
            env={"GREETING": "hello"},
            secrets={"WORD": SecretStr("sesame")},
        )
        result = machine.run(job, tmp_path / "log")
        assert result is not None
        assert (result.exit_code, result.outcome) == (3, "exited")
        assert (tmp_path / "log").read_bytes() == b"hello sesame\nerr\n\x00\xff"

    def test_an_image_without_a_tool_that_every_command_needs_is_named_and_nothing_is_started(
        self, cluster: Cluster, tmp_path: Path
    ) -> None:
        driver = Kubernetes(cluster.credentials(tmp_path))
        with image_of("sh", "cat", "date", "sleep", "mkdir") as image:
            instance = create(driver, image=image)
            offer = driver.fetch_offers(H100)[0]
            try:
                machine = Machine(lambda: driver.open_channel(until(driver, instance, InstanceState.RUNNING)))
                for asked in (
                    lambda: check(machine.connection(), offer),
                    lambda: machine.start(JobSpec(id=f"{instance.name}.0001", command="true")),
                ):
                    with pytest.raises(InstanceFailed) as refused:
                        asked()
                    assert refused.value.message.startswith(f"the image {image} lacks dd, without which")
                    assert (refused.value.category, refused.value.reach) == ("image", "offer")
                machine.close()
            finally:
                driver.terminate_instance(instance.id)

    def test_a_job_that_the_kernel_ends_for_its_pod_s_memory_says_so(self, cluster: Cluster, tmp_path: Path) -> None:
        driver = Kubernetes(cluster.credentials(tmp_path, memory_limit_gb=0.1))
        instance = until(driver, create(driver, Requirements()), InstanceState.RUNNING)
        machine = Machine(lambda: driver.open_channel(instance))
        # The pod lives on: only what the job started is ended.
        command = "until [ -s ../memory ]; do sleep 0.05; done; x=x; while :; do x=$x$x; done"
        try:
            result = machine.run(JobSpec(id=f"{instance.name}.0001", command=command), tmp_path / "log")
            assert result is not None
            assert (result.exit_code, result.outcome) == (137, "exited")
            assert result.trouble.startswith("the container ran out of memory while the job ran")
        finally:
            machine.close()
            driver.terminate_instance(instance.id)

    def test_a_cancelled_job_leaves_nothing_running(self, pod: tuple[Kubernetes, Instance], tmp_path: Path) -> None:
        machine = Machine(lambda: pod[0].open_channel(pod[1]), grace_s=1)
        job = JobSpec(
            id=f"{pod[1].name}.{uuid.uuid4().hex[:4]}",
            command="setsid sleep 54321 & nohup sleep 54322 & echo started; sleep 54323",
        )
        seen = bytearray()
        result = machine.run(
            job,
            tmp_path / "log",
            lambda _, data: seen.extend(data),
            lambda: "cancelled" if b"started" in seen else None,
        )
        assert result is not None
        assert result.outcome == "cancelled"
        assert run(*pod, "ps -eo args | grep '[s]leep 5432' || :")[1] == b""

    def test_a_cut_link_loses_no_byte_and_doubles_none(
        self, cluster: Cluster, pod: tuple[Kubernetes, Instance], tmp_path: Path
    ) -> None:
        with Relay(cluster.url) as relay:
            far = Kubernetes(cluster.credentials(tmp_path, url=f"https://127.0.0.1:{relay.port}"))
            machine = Machine(lambda: far.open_channel(pod[1]))
            job = JobSpec(
                id=f"{pod[1].name}.{uuid.uuid4().hex[:4]}",
                command="i=0; while [ $i -lt 60 ]; do seq $((i * 1000)) $((i * 1000 + 999)); i=$((i + 1)); sleep 0.05; done",
            )
            notes: list[str] = []
            cuts = [20_000, 100_000]  # when so many bytes have come

            def cut(at: int, data: bytes) -> None:
                if cuts and at + len(data) >= cuts[0]:
                    del cuts[0]
                    relay.cut()

            result = machine.run(job, tmp_path / "log", cut, on_link=notes.append)
        assert result is not None
        assert result.exit_code == 0
        assert sum("attached to the job again" in note for note in notes) == 2
        assert (tmp_path / "log").read_bytes() == b"".join(b"%d\n" % n for n in range(60_000))

    def test_files_go_up_and_come_back_whole(self, pod: tuple[Kubernetes, Instance], tmp_path: Path) -> None:
        machine = Machine(lambda: pod[0].open_channel(pod[1]))
        here, back = tmp_path / "here", tmp_path / "back"
        (here / "data").mkdir(parents=True)
        back.mkdir()
        contents = {f"data/{number}.bin": os.urandom(size) for number, size in enumerate((0, 1, 70_000, 12_000_001))}
        for name, data in contents.items():
            (here / name).write_bytes(data)
        job = JobSpec(id=f"{pod[1].name}.{uuid.uuid4().hex[:4]}", command="cp -r data results")
        assert upload(machine, job.id, ["data"], here, is_checked=True).files == 4
        result = machine.run(job, tmp_path / "log")
        assert result is not None
        assert result.exit_code == 0, (tmp_path / "log").read_text()
        download(machine, job.id, ["results/"], back, is_checked=True)
        for name, data in contents.items():
            assert (back / name.replace("data", "results")).read_bytes() == data
        machine.close()

    def test_another_process_attaches_to_the_running_job(
        self, pod: tuple[Kubernetes, Instance], tmp_path: Path
    ) -> None:
        job = JobSpec(id=f"{pod[1].name}.{uuid.uuid4().hex[:4]}", command="echo one; sleep 2; echo two")
        first = Machine(lambda: pod[0].open_channel(pod[1]))
        assert first.start(job) is True
        first.close()
        second = Machine(lambda: Kubernetes(pod[0].credentials).open_channel(pod[1]))
        assert second.start(job) is False
        result = second.run(job, tmp_path / "log")
        assert result is not None
        assert (result.exit_code, (tmp_path / "log").read_bytes()) == (0, b"one\ntwo\n")
