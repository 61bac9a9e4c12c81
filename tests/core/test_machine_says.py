"""Whatever a machine says where its GPUs, its disk, its job's end or its Docker are read: an error of that machine, or the truth."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import HealthCheck, example, given, settings

from prefect_gpu.providers.core.errors import ProviderError
from prefect_gpu.providers.core.machine import docker, job_end, smi
from prefect_gpu.providers.core.machine.check import check
from prefect_gpu.providers.core.machine.jobs import Machine
from prefect_gpu.providers.core.models import JobSpec, MachineReport, Offer, utc_now
from prefect_gpu.providers.core.requests import Requirements
from prefect_gpu.providers.local import offers
from tests import hostile
from tests.core.test_check import Scripted

MANY = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)  # fmt: skip

NVIDIA = "\n".join(
    [
        *(
            f"nvidia {index}, GPU-{index}a, NVIDIA H100 80GB HBM3, 81559 MiB, 550.54.15, 00000000:0{index}:00.0, 0"
            for index in range(2)
        ),
        "nvidia-exit 0",
        "xid [   90.1] NVRM: Xid (PCI:0000:01:00): 79, pid=1, GPU has fallen off the bus.",
        "uptime 100.5",
        "cuda 12.4",
        "disk 104857600 94371840",
    ]
)
CARD = {"Card Series": "AMD Instinct MI300X OAM", "VRAM Total Memory (B)": "206141652992", "Unique ID": "0x1"}
AMD = {"card0": CARD, "card1": CARD, "system": {"Driver version": "6.7.0"}}
END = "3 exited 1795549200.123 100.25 160.75 4096 -"


def judged(said: str) -> MachineReport:
    promised = Offer(
        provider="p", instance_type="t", region="r", price=1, gpu_name="H100", gpu_count=2, gpu_memory_gb=80
    )  # fmt: skip
    with hostile.bounded():
        report = check(Scripted(said), promised, Requirements(disk_gb=50, min_cuda=12.0))
        offers._largest_kind(smi.parse(said))
    words = json.dumps(report.model_dump())
    assert len(words) < 64_000
    for line in (report.problem or "", report.driver or "", *report.gpus):
        assert line.isprintable()
        assert len(line) < 1_000
    assert report.disk_free_gb is None or math.isfinite(report.disk_free_gb)
    return report


def test_the_truth_is_read() -> None:
    report = judged(NVIDIA.replace("Xid (PCI:0000:01:00): 79", "Xid (PCI:0000:01:00): 31"))
    assert (report.problem, len(report.gpus), report.disk_free_gb) == (None, 2, 90.0)
    assert smi.parse(f"amd {json.dumps(AMD)}\namd-exit 0").gpus[1].memory_gb == 192
    ended = job_end.ended(END)
    assert (ended.exit_code, ended.log_bytes, (ended.ended_at - ended.started_at).total_seconds()) == (3, 4096, 60.5)


@MANY
@given(said=hostile.text() | hostile.like(NVIDIA))
@example(said=NVIDIA.replace("81559", "9" * 400))
@example(said=NVIDIA.replace(", 0\n", f", {'9' * 5000}\n"))
@example(said=NVIDIA.replace("104857600", "9" * 400))
@example(said=NVIDIA.replace("100.5", "9" * 400))
@example(said=NVIDIA.replace("79,", f"{'7' * 5000},"))
def test_whatever_nvidia_smi_and_df_say_is_a_report(said: str) -> None:
    judged(said)


HUGE = {
    "a GPU 20,000 times": "\n".join([NVIDIA.split("\n")[0]] * 20_000),
    "20,000 GPUs": "\n".join(NVIDIA.split("\n")[0].replace(" 0, ", f" {number % 9999}, ") for number in range(20_000)),
    "a million fields": "nvidia " + "0, " * 1_000_000,
    "a line of 4 MB": "nvidia " + "x" * 4_000_000,
    "a deep document": "amd " + '{"card0": ' + '{"a":' * 950 + "1" + "}" * 951,
    "a very deep one": "amd " + "{" * 200_000,
    "5,000 cards": "amd " + json.dumps({f"card{number}": CARD for number in range(5_000)}) + "\namd-exit 0",
    "a digit 4,000,000 times": "disk " + "9" * 4_000_000,
    "a million Xids": "xid " * 1_000_000,
}


@pytest.mark.parametrize("name", HUGE)
def test_answers_without_measure_are_reports_too(name: str) -> None:
    report = judged(HUGE[name])
    assert report.problem
    assert len(report.gpus) <= 64


@MANY
@given(said=hostile.json_like(AMD))
@example(said='{"card0": {"VRAM Total Memory (B)": ' + "9" * 4000 + "}}")
def test_whatever_rocm_smi_says_is_a_report(said: str) -> None:
    judged("\n".join(f"amd {line}" for line in said.split("\n")) + "\namd-exit 0\ndisk 104857600 94371840")


@MANY
@given(said=hostile.text() | hostile.like(END))
@example(said=END.replace("1795549200.123", "9" * 400))
@example(said=END.replace("160.75", "nan"))
@example(said=END.replace("160.75", "999999999999"))
@example(said=END.replace("4096", "9" * 5000))
@example(said=END.replace("3 ", "- "))
@example(said=END.replace("exited", "finished"))
@example(said=END.replace("1795549200.123", "999999999999"))
def test_whatever_a_machine_says_of_a_job_s_end_is_an_end_or_a_lost_link(said: str) -> None:
    refused: ProviderError | None = None
    with hostile.bounded():
        try:
            ended = job_end.ended(said)
        except ProviderError as error:
            refused = error
    if refused is not None:
        assert refused.message.isprintable()
        assert len(refused.message) < 1_000
        return
    assert ended.started_at <= utc_now()
    assert ended.started_at <= ended.ended_at
    assert 0 <= ended.log_bytes < 10**18
    assert ended.exit_code is None or 0 <= ended.exit_code <= 999


class Failing(Scripted):
    """A machine whose scripts fail with these words."""

    def __init__(self, words: str, code: int) -> None:
        super().__init__("")
        self.words, self.code = words, code

    def open(self, command: str) -> object:
        channel = super().open(command)
        channel.exit_status = lambda timeout_s: self.code
        channel.error_text = lambda: self.words[:65536]
        return channel


@MANY
@given(said=hostile.text() | hostile.like("Error response from daemon: manifest unknown"))
@example(said="\x1b]52;c;cm0gLXJm\a")
def test_whatever_docker_says_the_image_is_there_or_an_error_in_one_line(said: str) -> None:
    job = JobSpec(id="pg-x.1", command="true", image="team/train:1")
    for code in (10, 11, 12, 13, 14, 125, 255):
        with hostile.bounded(), pytest.raises(ProviderError) as refused:
            docker.prepare(Machine(lambda code=code: Failing(said, code), root="/x"), job)
        assert refused.value.message.isprintable()
        assert len(refused.value.message) < 1_000


@MANY
@given(said=hostile.text() | hostile.like("cannot write to /root/.prefect-gpu"))
def test_whatever_a_machine_says_to_a_start_it_is_an_error_in_one_line(said: str) -> None:
    machine = Machine(lambda: Failing(said, 73), root="/x")
    with hostile.bounded(), pytest.raises(ProviderError) as refused:
        machine.start(JobSpec(id="job-1", command="true"))
    assert refused.value.message.isprintable()
    assert len(refused.value.message) < 1_000
