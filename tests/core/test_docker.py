"""Jobs in images against a real Docker Engine: output, exit code, cancel, timeout, files, environment, and nothing left behind."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from prefect_gpu.providers.core.errors import AuthFailed, InstanceFailed, InvalidRequest
from prefect_gpu.providers.core.machine import docker as images
from prefect_gpu.providers.core.machine import ssh
from prefect_gpu.providers.core.machine.jobs import Machine
from prefect_gpu.providers.core.models import JobResult, JobSpec, RegistryAuth
from prefect_gpu.providers.core.requests import Requirements
from prefect_gpu.providers.ssh.driver import Ssh
from tests.conformance import launch_spec, lease_name
from tests.fakes import sshd_hosts as fakes
from tests.fakes.registry import PASSWORD, USER, registry
from tests.fakes.sshd_hosts import ADMIN, SshdHost, block, sshd_hosts

IMAGE = "sshd:local"


def docker(*arguments: str, check: bool = True) -> str:
    return subprocess.run(["docker", *arguments], check=check, capture_output=True, text=True, timeout=60).stdout


def why_not() -> str | None:
    if (why := fakes.missing()) is not None:
        return why
    if (
        shutil.which("docker") is None
        or subprocess.run(["docker", "info"], check=False, capture_output=True).returncode != 0
    ):
        return "needs a Docker Engine"
    if subprocess.run(["docker", "image", "inspect", IMAGE], check=False, capture_output=True).returncode != 0:
        return f"needs the image {IMAGE}"
    return None


WHY_NOT = why_not()
pytestmark = [
    pytest.mark.root,
    pytest.mark.docker,
    pytest.mark.openssh,
    pytest.mark.skipif(WHY_NOT is not None, reason=f"jobs in images: {WHY_NOT}"),
]


@pytest.fixture(scope="module")
def host() -> Iterator[SshdHost]:
    with sshd_hosts("dock") as (one,):
        yield one


@pytest.fixture
def machine(host: SshdHost) -> Iterator[Machine]:
    before = in_docker()
    one = machine_at(host)
    yield one
    one.close()
    for tool in host.bin.iterdir():
        tool.unlink()
    assert in_docker() == before, "something is left in Docker"


def machine_at(host: SshdHost, user: str = "root") -> Machine:
    endpoint = host.endpoint.model_copy(update={"user": user})
    return Machine(lambda: ssh.connect(endpoint, ADMIN, None), wrap=images.in_docker, grace_s=2)


def in_docker() -> tuple[list[str], ...]:
    """Ours in Docker: containers by their label; all volumes and networks."""
    return (
        sorted(docker("ps", "--all", "--quiet", "--filter", f"label={images.JOB_LABEL}").split()),
        sorted(docker("volume", "ls", "--quiet").split()),
        sorted(docker("network", "ls", "--quiet").split()),
    )


def spec(command: str | tuple[str, ...], **more: object) -> JobSpec:
    return JobSpec(**{"id": f"{lease_name()}.1", "command": command, "image": IMAGE, **more})  # type: ignore[arg-type]


def work_of(host: SshdHost, job: JobSpec) -> Path:
    work = host.home / ".prefect-gpu" / job.id / "work"
    work.mkdir(parents=True, exist_ok=True)
    return work


def run(machine: Machine, job: JobSpec, log: Path) -> JobResult:
    images.prepare(machine, job)
    result = machine.run(job, log)
    assert result is not None
    return result


def wait_until(what: str, condition: object, within_s: float = 15.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, f"not within {within_s:g} s: {what}"
        time.sleep(0.05)


def test_output_exit_code_and_files_are_as_without_an_image(host: SshdHost, machine: Machine, tmp_path: Path) -> None:
    job = spec("cat given.txt; echo to stderr >&2; mkdir results; echo made > results/it; hostname; exit 3")
    (work_of(host, job) / "given.txt").write_text("what was uploaded\n")
    result = run(machine, job, tmp_path / "log")
    lines = (tmp_path / "log").read_text().splitlines()
    assert result.exit_code == 3
    assert result.outcome == "exited"
    assert set(lines[:2]) == {"what was uploaded", "to stderr"}
    assert lines[2] != "dock", "it ran on the machine itself"
    assert (work_of(host, job) / "results" / "it").read_text() == "made\n"


def test_variables_and_secrets_arrive_whole_and_stand_in_no_command_line(
    host: SshdHost, machine: Machine, tmp_path: Path
) -> None:
    secret = f'it\'s "se$cret"\nsecond line {uuid.uuid4()}'
    job = spec(
        'printf "%s|" "$TOKEN" "$GREETING" "$PATH" "$HOME" "$EMPTY" >got; touch ready; sleep 2',
        env={"GREETING": "a b  c", "PATH": "/opt/x:/usr/bin:/bin", "HOME": "/tmp/elsewhere", "EMPTY": ""},
        secrets={"TOKEN": SecretStr(secret)},
    )
    work = work_of(host, job)
    seen: list[bytes] = []

    def watch() -> None:
        while not (work / "ready").exists() or len(seen) < 3:
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                with contextlib.suppress(OSError):
                    seen.append(path.read_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    result = run(machine, job, tmp_path / "log")
    watcher.join(20)
    assert result.exit_code == 0
    assert (work / "got").read_text() == f"{secret}|a b  c|/opt/x:/usr/bin:/bin|/tmp/elsewhere||"
    assert seen
    assert not any(secret.rpartition(" ")[2].encode() in line for line in seen)


def test_a_variable_may_be_called_as_the_programs_around_the_container_call_theirs(
    machine: Machine, tmp_path: Path
) -> None:
    names = ("image", "docker", "work", "gpus", "shm", "first", "why", "variables", "root", "id", "dir")
    job = spec(
        " ".join(["printf '%s|'", *(f'"${name}"' for name in names)]), env={name: f"my {name}" for name in names}
    )
    assert run(machine, job, tmp_path / "log").exit_code == 0
    assert (tmp_path / "log").read_text() == "".join(f"my {name}|" for name in names)


def test_a_command_that_begins_with_a_dash_is_no_option_of_the_image_s_shell(machine: Machine, tmp_path: Path) -> None:
    assert run(machine, spec("-n hello"), tmp_path / "log").exit_code == 127
    assert "-n: " in (tmp_path / "log").read_text()


def test_the_job_works_in_its_working_directory_and_knows_its_id(
    host: SshdHost, machine: Machine, tmp_path: Path
) -> None:
    job = spec('pwd; ls; echo "$PREFECT_GPU_JOB"', working_directory="code/./here")
    (work_of(host, job) / "code" / "here").mkdir(parents=True)
    (work_of(host, job) / "code" / "here" / "main.py").touch()
    run(machine, job, tmp_path / "log")
    assert (tmp_path / "log").read_text().split() == ["/job/code/here", "main.py", f"{job.id}:"]


def test_an_argv_is_no_shells_text(machine: Machine, tmp_path: Path) -> None:
    result = run(machine, spec(("printf", "%s.", "$HOME", "a b", "*")), tmp_path / "log")
    assert result.exit_code == 0
    assert (tmp_path / "log").read_text() == "$HOME.a b.*."


def test_a_command_that_the_image_lacks_is_127_as_in_any_shell(machine: Machine, tmp_path: Path) -> None:
    assert run(machine, spec("no-such-program"), tmp_path / "log").exit_code == 127
    assert run(machine, spec(("no-such-program",)), tmp_path / "log2").exit_code == 127


def test_a_cancel_leaves_nothing_of_the_container(host: SshdHost, machine: Machine, tmp_path: Path) -> None:
    job = spec("trap '' TERM; touch up; sleep 1101 & while :; do sleep 1; done")
    images.prepare(machine, job)
    wish: list[str] = []
    results: list[JobResult | None] = []
    runner = threading.Thread(
        target=lambda: results.append(machine.run(job, tmp_path / "log", should_stop=lambda: wish[0] if wish else None))
    )
    runner.start()
    wait_until("the container runs", (work_of(host, job) / "up").exists)
    # A busy engine lists it a moment after its first process began.
    wait_until("it is listed", lambda: len(docker("ps", "--quiet", "--filter", f"name={job.id}").split()) == 1)
    began = time.monotonic()
    wish.append("cancelled")
    runner.join(30)
    assert time.monotonic() - began < 12
    assert results[0] is not None
    assert results[0].outcome == "cancelled"
    assert docker("ps", "--all", "--quiet", "--filter", f"name={job.id}") == ""


def test_a_cancel_at_any_moment_of_the_start_leaves_nothing(machine: Machine) -> None:
    for delay in (0.0, 0.1, 0.2, 0.35, 0.5, 0.8):
        job = spec("sleep 1102")
        images.prepare(machine, job)
        machine.start(job)
        time.sleep(delay)
        assert machine.cancel(job).outcome == "cancelled"
        assert docker("ps", "--all", "--quiet", "--filter", f"name={job.id}") == "", f"after {delay} s"
    time.sleep(1)  # a request that Docker was still busy with; the fixture looks for what it made


def test_a_timeout_ends_the_container(machine: Machine, tmp_path: Path) -> None:
    result = run(machine, spec("echo begun; sleep 1103", timeout_s=3), tmp_path / "log")
    assert result.outcome == "timed out"
    assert (tmp_path / "log").read_text() == "begun\n"


def test_a_process_that_the_job_leaves_behind_ends_with_it(machine: Machine, tmp_path: Path) -> None:
    result = run(machine, spec("setsid sleep 1104 & echo done"), tmp_path / "log")
    assert result.exit_code == 0
    listed = subprocess.run(["ps", "-eo", "args"], check=True, capture_output=True, text=True).stdout
    assert "sleep 1104" not in listed


def test_the_shared_memory_is_as_large_as_on_a_machine(machine: Machine, tmp_path: Path) -> None:
    run(machine, spec("df -Pk /dev/shm | tail -n 1"), tmp_path / "log")
    total_kb = int((tmp_path / "log").read_text().split()[1])
    memory_kb = int(
        next(line for line in Path("/proc/meminfo").read_text().splitlines() if "MemTotal" in line).split()[1]
    )
    assert total_kb == pytest.approx(memory_kb / 2, rel=0.01)


@pytest.fixture(scope="module")
def image_of_a_user() -> Iterator[str]:
    name = f"prefect-gpu-test-user:{os.getpid()}"
    container = docker("create", IMAGE).strip()
    docker("commit", "--change", "USER 1234", container, name)
    docker("rm", container)
    yield name
    docker("image", "rm", "--force", name)


def test_an_image_whose_user_is_not_root_can_write_its_outputs(
    host: SshdHost, machine: Machine, tmp_path: Path, image_of_a_user: str
) -> None:
    job = spec("id -u; echo out >out; umask 077; mkdir d; echo x >d/x", image=image_of_a_user)
    result = run(machine, job, tmp_path / "log")
    assert (result.exit_code, (tmp_path / "log").read_text()) == (0, "1234\n")
    assert (work_of(host, job) / "out").read_text() == "out\n"


def test_files_of_the_containers_root_belong_to_the_machines_user_afterwards(host: SshdHost, tmp_path: Path) -> None:
    before = in_docker()
    docker_group = Path("/var/run/docker.sock").stat().st_gid
    host.run(
        f"printf 'docker:x:{docker_group}:worker\\n' >{host.folder}/group; mount --bind {host.folder}/group /etc/group"
    )
    machine = machine_at(host, "worker")
    job = spec("id -u; umask 077; mkdir d; echo x >d/x; echo out >out")
    result = run(machine, job, tmp_path / "log")
    assert (result.exit_code, (tmp_path / "log").read_text()) == (0, "0\n")
    done = machine.execute(
        f'{machine.job_directory(job.id)}\ncat "$dir/work/d/x" && stat -c %u "$dir/work/out" && rm -rf "$dir/work"'
    )
    assert (done.exit_code, done.stdout) == (0, b"x\n4242\n")
    machine.close()
    host.run("umount /etc/group")
    assert in_docker() == before


def test_a_user_who_may_not_use_docker_is_told_so(host: SshdHost) -> None:
    machine = machine_at(host, "worker")
    with pytest.raises(InstanceFailed, match=r"cannot be used: .*permission denied"):
        images.prepare(machine, spec("true"))
    machine.close()


def test_a_machine_without_docker_is_told_in_one_sentence(host: SshdHost) -> None:
    programs = subprocess.run(["which", "-a", "docker"], check=True, capture_output=True, text=True).stdout.split()
    for program in programs:
        host.run(f"mount --bind /dev/null {os.path.realpath(program)}")
    machine = machine_at(host)
    try:
        with pytest.raises(InstanceFailed, match="this machine has no Docker"):
            images.prepare(machine, spec("true"))
    finally:
        machine.close()
        for program in reversed(programs):
            host.run(f"umount {os.path.realpath(program)}")


def test_an_image_behind_a_password_is_pulled_and_the_password_stays_nowhere(host: SshdHost, machine: Machine) -> None:
    with registry() as peer:
        image = f"{peer.server}/team/tiny:1"
        right = RegistryAuth(server=peer.server, username=USER, password=SecretStr(PASSWORD))
        try:
            images.prepare(machine, spec("true", image=image, registry=right))
            assert docker("image", "inspect", "--format", "{{.Architecture}}", image) == "amd64\n"
            assert not list(Path("/dev/shm").glob("prefect-gpu.*"))
            assert not (host.home / ".docker").exists()
            asked = len(peer.requests)
            images.prepare(machine, spec("true", image=image))
            assert len(peer.requests) == asked, "a tag that is there is not asked for again"
        finally:
            docker("image", "rm", "--force", image, check=False)
        wrong = right.model_copy(update={"password": SecretStr("not that one")})
        with pytest.raises(AuthFailed, match="refuses the credentials") as refused:
            images.prepare(machine, spec("true", image=image, registry=wrong))
        assert "not that one" not in repr(refused.value)
        with pytest.raises(InvalidRequest, match="does not give out the image"):
            images.prepare(machine, spec("true", image=image))
        with pytest.raises(InvalidRequest, match="does not give out the image"):
            images.prepare(machine, spec("true", image=f"{peer.server}/team/none:1", registry=right))
    with pytest.raises(InstanceFailed, match="cannot be pulled"):
        images.prepare(machine, spec("true", image="127.0.0.1:1/team/tiny:1"))
    assert not list(Path("/dev/shm").glob("prefect-gpu.*"))


def test_latest_is_asked_for_each_time_and_a_local_one_serves_where_nobody_has_it(
    machine: Machine, tmp_path: Path
) -> None:
    name = "127.0.0.1:1/prefect-gpu-test:latest"
    docker("tag", IMAGE, name)
    try:
        assert run(machine, spec("echo local", image=name), tmp_path / "log").exit_code == 0
    finally:
        docker("image", "rm", name)
    assert (tmp_path / "log").read_text() == "local\n"


def test_giving_back_an_own_machine_removes_the_container_of_a_job_whose_supervisor_died(host: SshdHost) -> None:
    before = in_docker()
    driver = Ssh(block(host))
    (offer,) = driver.fetch_offers(Requirements())
    held = driver.create_instance(offer, launch_spec(driver, lease_name()))
    machine = machine_at(host)
    job = spec("touch up; sleep 1105", id=f"{held.name}.1")
    images.prepare(machine, job)
    machine.start(job)
    wait_until("the container runs", (work_of(host, job) / "up").exists)
    for process in host.processes(job.id):  # the supervisor and Docker's client; the container is another's child
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    machine.close()
    assert len(docker("ps", "--quiet", "--filter", f"name={job.id}").split()) == 1
    driver.terminate_instance(held.id)
    wait_until("the claim is gone", lambda: not driver.list_instances(held.name).instances)
    assert in_docker() == before


# --- GPUs, with stand-ins for docker and nvidia-smi that write down how they were called -------------------------------


def recorded_run(host: SshdHost, machine: Machine, job: JobSpec, log: Path) -> str:
    calls = host.folder / "calls"
    calls.unlink(missing_ok=True)
    host.install(
        "docker",
        f'case $1 in run) printf "<%s>" "$@" >>{calls} ;; rm) echo gone >&2 ;; image) [ "$4" != "" ] ;; esac; exit 0',
    )
    assert run(machine, job, log).exit_code == 0
    return calls.read_text()


def test_gpu_flags_are_given_only_where_there_are_gpus(host: SshdHost, machine: Machine, tmp_path: Path) -> None:
    assert "--gpus" not in recorded_run(host, machine, spec("true"), tmp_path / "1")
    host.install("nvidia-smi", "exit 0")
    host.install("nvidia-ctk", "exit 0")
    assert "<--gpus><all>" in recorded_run(host, machine, spec("true"), tmp_path / "2")
    of_a_slice = recorded_run(host, machine, spec("true", env={"CUDA_VISIBLE_DEVICES": "2,3"}), tmp_path / "3")
    assert '<--gpus><"device=2,3">' in of_a_slice
    assert "<CUDA_VISIBLE_DEVICES>" not in of_a_slice, "inside, they are counted from 0"
    none = recorded_run(host, machine, spec("true", env={"CUDA_VISIBLE_DEVICES": ""}), tmp_path / "4")
    assert "--gpus" not in none


def test_gpus_that_docker_cannot_hand_on_are_said(host: SshdHost, machine: Machine) -> None:
    host.install("nvidia-smi", "exit 0")
    with pytest.raises(InstanceFailed, match="nvidia-container-toolkit"):
        images.prepare(machine, spec("true"))


# --- what is refused before anything is sent --------------------------------------------------------------------------


def test_names_that_are_no_images_and_secrets_that_docker_reads_itself_are_refused() -> None:
    for image in ("--privileged", "", "a b"):
        with pytest.raises(InvalidRequest):
            images.in_docker(spec("true", image=image))
    with pytest.raises(InvalidRequest, match="DOCKER_HOST"):
        images.in_docker(spec("true", secrets={"DOCKER_HOST": SecretStr("x")}))
