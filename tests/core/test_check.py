"""The machine check: what drivers say, in all the ways they say it, and what of it keeps a job away."""

from __future__ import annotations

import pytest

from prefect_gpu.providers.core.errors import LinkLost
from prefect_gpu.providers.core.machine import check as machine_check
from prefect_gpu.providers.core.machine import smi
from prefect_gpu.providers.core.machine.check import check
from prefect_gpu.providers.core.models import Offer
from prefect_gpu.providers.core.requests import Requirements

H100 = "NVIDIA H100 80GB HBM3, 81559 MiB, 550.54.15"


class Scripted:
    """A connection on which every script writes the same and ends."""

    def __init__(self, output: str, *, breaks: bool = False, stays_alive: bool = True) -> None:
        self.output = output
        self.breaks = breaks
        self.stays_alive = stays_alive
        self.scripts: list[str] = []

    def open(self, command: str) -> ScriptedChannel:
        return ScriptedChannel(self)

    def is_alive(self) -> bool:
        return self.stays_alive

    def close(self) -> None:
        pass


class ScriptedChannel:
    def __init__(self, connection: Scripted) -> None:
        self.connection = connection
        self.answer = b""

    def sendall(self, data: bytes) -> None:
        script = data.decode()
        self.connection.scripts.append(script)
        mark = next(line for line in script.splitlines() if line.startswith("printf %s")).split("'")[1]
        self.answer = (mark + "\n" + self.connection.output).encode(errors="replace")

    def shutdown_write(self) -> None:
        pass

    def recv(self, size: int) -> bytes:
        if self.connection.breaks:
            raise LinkLost("the link to the machine is lost")
        answer, self.answer = self.answer[:size], self.answer[size:]
        return answer

    def exit_status(self, timeout_s: float) -> int:
        return 0

    def error_text(self) -> str:
        return ""

    def close(self) -> None:
        pass


def offer(count: int = 2, name: str = "H100", memory_gb: float | None = 80, vendor: str | None = "nvidia") -> Offer:
    return Offer(
        provider="p",
        instance_type="t",
        region="r",
        price=1,
        gpu_name=name if count else None,
        gpu_count=count,
        gpu_memory_gb=memory_gb,
        gpu_vendor=vendor,
    )


def nvidia(*lines: str, exit_code: int = 0, more: str = "") -> str:
    return "".join(f"nvidia {line}\n" for line in lines) + f"nvidia-exit {exit_code}\n" + more


def good(index: int, errors: str = "0") -> str:
    return f"{index}, GPU-{index}abcd, {H100}, 00000000:{index:02X}:00.0, {errors}"


def problem_of(
    output: str, promised: Offer | None = None, requirements: Requirements | None = None, **more: str
) -> str | None:
    return check(Scripted(output), promised or offer(), requirements, **more).problem


def test_a_machine_that_is_what_was_promised_has_no_problem_and_is_described() -> None:
    report = check(Scripted(nvidia(good(0), good(1))), offer())
    assert report.problem is None
    assert report.gpus == ("NVIDIA H100 80GB HBM3, 81559 MiB",) * 2
    assert report.driver == "550.54.15"


def test_nothing_is_asked_of_a_machine_that_promised_no_gpu() -> None:
    connection = Scripted("")
    assert check(connection, offer(0)).problem is None
    assert connection.scripts == []


def test_one_command_asks_for_everything() -> None:
    connection = Scripted(nvidia(good(0), good(1), more="cuda 12.4\ndisk 1000000000 900000000\nuptime 100.0\n"))
    check(connection, offer(), Requirements(disk_gb=100, min_cuda=12.0))
    assert len(connection.scripts) == 1


@pytest.mark.parametrize("count", ["[N/A]", "N/A", "[Not Supported]", ""])
def test_memory_errors_that_are_not_counted_are_no_errors(count: str) -> None:
    assert problem_of(nvidia(good(0, count), good(1, count))) is None


def test_more_gpus_than_promised_are_no_problem() -> None:
    assert problem_of(nvidia(good(0), good(1), good(2))) is None


def test_fewer_gpus_are_a_problem_that_says_how_many() -> None:
    assert problem_of(nvidia(good(0))) == "the offer promised 2 x H100, but nvidia-smi shows only 1"
    assert "nvidia-smi shows none of them" in str(problem_of(nvidia("No devices were found", exit_code=6)))


def test_no_driver_at_all_is_said() -> None:
    assert "no driver is installed" in str(problem_of(""))


@pytest.mark.parametrize(
    ("lines", "exit_code", "words"),
    [
        (["Unable to determine the device handle for GPU0000:01:00.0: Unknown Error"], 255, "Unknown Error"),
        (["NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver."], 9, "couldn't communicate"),
        (["Failed to initialize NVML: Driver/library version mismatch"], 18, "version mismatch"),
        (["1, GPU-1, NVIDIA H100 80GB HBM3, [GPU is lost], 550.54.15, 00000000:01:00.0, 0"], 0, "GPU is lost"),
        (["1, GPU-1, NVIDIA H100 80GB HBM3, ERR!, 550.54.15, 00000000:01:00.0, 0"], 0, "ERR!"),
        ([], 124, "does not answer within"),
    ],
)
def test_what_the_driver_says_of_a_broken_gpu_is_in_the_problem(lines: list[str], exit_code: int, words: str) -> None:
    problem = problem_of(nvidia(good(0), *lines, exit_code=exit_code))
    assert problem is not None
    assert "nvidia-smi shows only 1" in problem
    assert words in problem
    assert "\n" not in problem


def test_a_broken_gpu_beside_enough_good_ones_is_still_said() -> None:
    lines = [good(0), good(1), "Unable to determine the device handle for GPU0000:02:00.0: GPU is lost"]
    assert "GPU is lost" in str(problem_of(nvidia(*lines, exit_code=15)))


def test_another_gpu_or_one_with_less_memory_is_not_what_was_promised() -> None:
    lines = ["0, GPU-0, NVIDIA A100-SXM4-40GB, 40960 MiB, 550.54.15, 00000000:00:00.0, 0"]
    assert "is the model NVIDIA A100-SXM4-40GB" in str(problem_of(nvidia(*lines), offer(1)))
    assert "has 40 GB" in str(problem_of(nvidia(*lines), offer(1, "A100", 80)))
    assert problem_of(nvidia(*lines), offer(1, "A100", 40)) is None


@pytest.mark.parametrize(
    ("model", "mib", "name", "sold_as_gb"),
    [
        ("Tesla T4", 15360, "T4", 16),
        ("NVIDIA A10G", 23028, "A10G", 24),
        ("NVIDIA RTX A6000", 46068, "A6000", 48),
        ("NVIDIA H200", 143771, "H200", 141),
        ("NVIDIA GeForce RTX 4090", 24564, "RTX4090", 24),
        ("NVIDIA Graphics Device", 81559, "H100", 80),  # a driver older than the GPU
    ],
)
def test_what_a_gpu_is_sold_as_and_what_its_driver_counts_is_the_same_gpu(
    model: str, mib: int, name: str, sold_as_gb: float
) -> None:
    line = f"0, GPU-0, {model}, {mib} MiB, 550.54.15, 00000000:00:00.0, [N/A]"
    assert problem_of(nvidia(line), offer(1, name, sold_as_gb)) is None


def test_uncorrected_memory_errors_are_a_problem() -> None:
    assert problem_of(nvidia(good(0), good(1, "3"))) == (
        "GPU 1 (NVIDIA H100 80GB HBM3) has 3 uncorrected memory errors since its driver was loaded"
    )


def test_only_the_gpus_of_the_slice_count() -> None:
    output = nvidia(good(0), good(1), good(2, "5"))
    assert problem_of(output, offer(2), devices="0,1") is None
    assert "GPU 2" in str(problem_of(output, offer(2), devices="1,2"))
    assert "shows only 1" in str(problem_of(output, offer(2), devices="0,7"))
    assert problem_of(output, offer(1), devices="GPU-1abcd") is None


def test_an_xid_that_a_job_caused_is_no_problem_and_one_that_needs_a_reset_is() -> None:
    caused = "xid [   90.1] NVRM: Xid (PCI:0000:01:00): 31, pid=1, name=python, MMU Fault\nuptime 100.0\n"
    assert problem_of(nvidia(good(0), good(1), more=caused)) is None
    fatal = "xid [   90.1] NVRM: Xid (PCI:0000:01:00): 79, pid=1, GPU has fallen off the bus.\n"
    assert "Xid 79" in str(problem_of(nvidia(good(0), good(1), more=fatal + "uptime 100.0\n")))
    assert problem_of(nvidia(good(0), good(1), more=fatal + "uptime 200000.0\n")) is None, "of days ago"
    assert problem_of(nvidia(good(0), good(1), more=fatal + "uptime 100.0\n"), offer(1), devices="0") is None


def test_disk_and_driver_are_what_the_job_requires() -> None:
    output = nvidia(good(0), good(1), more="cuda 12.2\ndisk 104857600 94371840\n")
    assert problem_of(output, requirements=Requirements(disk_gb=100, min_cuda=12.2)) is None
    assert problem_of(output, requirements=Requirements(disk_gb=200)) == (
        "the job requires a disk of 200 GB, but this one has 100 GB"
    )
    assert problem_of(output, requirements=Requirements(min_cuda=12.4)) == (
        "the job requires CUDA 12.4, but the driver runs CUDA only up to 12.2"
    )
    report = check(Scripted(output), offer(), Requirements(disk_gb=100))
    assert report.disk_free_gb == 90.0


def test_amd_is_read_from_rocm_smi() -> None:
    cards = (
        '{"card0": {"Card Series": "AMD Instinct MI300X OAM", "VRAM Total Memory (B)": "206141652992", "Unique ID": "0x1"},'
        ' "card1": {"Card series": "0x74a1", "Card model": "AMD Instinct MI300X", "VRAM Total Memory (B)": "206141652992"},'
        ' "system": {"Driver version": "6.7.0"}}'
    )
    output = f"amd WARNING: noise\namd {cards}\namd-exit 0\n"
    promised = offer(2, "MI300X", 192, "amd")
    report = check(Scripted(output), promised)
    assert report.problem is None
    assert report.driver == "6.7.0"
    assert report.gpus == ("AMD Instinct MI300X OAM, 196592 MiB", "AMD Instinct MI300X, 196592 MiB")
    assert "rocm-smi shows only 2" in str(problem_of(output, offer(8, "MI300X", 192, "amd")))
    assert "no AMD driver" in str(problem_of("amd ERROR: no AMD driver\namd-exit 1\n", promised))


def test_a_driver_too_old_for_the_question_is_understood() -> None:
    found = smi.parse(nvidia("0, GPU-0, Tesla V100-SXM2-16GB, 16160 MiB, 418.87.01"))
    (gpu,) = found.gpus
    assert (gpu.name, gpu.memory_gb, gpu.uncorrected) == ("V100", 16, None)


def test_a_driver_that_hangs_is_a_problem_and_a_lost_link_is_a_lost_link() -> None:
    report = check(Scripted("", breaks=True), offer())
    assert report.problem == f"the GPUs' driver does not answer within {machine_check.TIMEOUT_S:.0f} s"
    with pytest.raises(LinkLost):
        check(Scripted("", breaks=True, stays_alive=False), offer())


@pytest.mark.parametrize(
    ("name", "memory_gb"), [("H100-MIG-1g.10gb", 10), ("H100-SHARED", 80), ("H100-MIG-3g.40gb-SHARED", 40)]
)
def test_slices_and_shares_show_as_the_gpu_that_they_are_of(name: str, memory_gb: float) -> None:
    assert problem_of(nvidia(good(0)), offer(2, name, memory_gb)) is None  # two slices of one GPU
    assert "none of them" in str(problem_of(nvidia(), offer(2, name, memory_gb)))
    assert "is the model" in str(problem_of(nvidia(good(0)), offer(1, name.replace("H100", "A100"), memory_gb)))
