"""What a rented container runs first: it tells its host key by its log, and ends with its lease. On Docker, as marketplaces do it."""

from __future__ import annotations

import contextlib
import io
import shutil
import subprocess
import tarfile
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from prefect_gpu.providers.core.contract import Capabilities, Provider
from prefect_gpu.providers.core.errors import HostKeyMismatch, NotFound, NotReady
from prefect_gpu.providers.core.machine.jobs import Machine
from prefect_gpu.providers.core.models import (
    Instance,
    InstanceState,
    JobResult,
    JobSpec,
    LaunchSpec,
    Listing,
    Offer,
    SshEndpoint,
    utc_now,
)
from prefect_gpu.providers.core.renting.library import TaskLibrary
from prefect_gpu.providers.core.requests import Requirements
from prefect_gpu.providers.core.toolkit import container_boot
from tests.conformance import MASTER_SECRET, launch_spec, lease_name
from tests.stack import wait_until


def docker(*arguments: str, check: bool = True) -> str:
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise RuntimeError(done.stderr)
    return done.stdout.strip()


def has_image(image: str) -> bool:
    if shutil.which("docker") is None:
        return False
    return subprocess.run(["docker", "image", "inspect", image], capture_output=True, check=False).returncode == 0


pytestmark = [
    pytest.mark.docker,
    pytest.mark.skipif(not has_image("sshd:local"), reason="needs a Docker Engine with the image sshd:local"),
]


class Marketplace(Provider[None]):
    """Docker as a marketplace of containers: it takes an image, a command and variables, and shows a container's log."""

    name = "marketplace"
    capabilities = Capabilities(
        listing_lag_s=0, not_found_proves_absence=True, images="native", host_key="by_logs", needs_catalog=False
    )
    give_back = ""
    limits: tuple[str, ...] = ()  # more of what `docker run` takes

    def account_id(self) -> str:
        return "docker"

    def fetch_offers(self, requirements: Requirements) -> list[Offer]:
        return [Offer(provider=self.name, instance_type="container", region="here", price=0)]

    def create_instance(self, offer: Offer, spec: LaunchSpec) -> Instance:
        variables = container_boot.environment(spec, give_back=self.give_back)
        given = [part for name, value in variables.items() for part in ("-e", f"{name}={value}")]
        docker(
            "run", "-d", "--name", spec.name, "-p", f"127.0.0.1::{container_boot.PORT}", "-e", "FROM_THE_IMAGE=a b",
            *given, *self.limits, "--entrypoint", "", spec.image or "sshd:local", *container_boot.command(),
        )  # fmt: skip
        return self.get_instance(spec.name)

    def get_instance(self, instance_id: str) -> Instance:
        word = docker("inspect", "-f", "{{.State.Status}}", instance_id, check=False)
        if not word:
            raise NotFound(f"no container {instance_id}")
        port = docker("port", instance_id, f"{container_boot.PORT}/tcp", check=False).rpartition(":")[2]
        state = InstanceState.RUNNING if word == "running" and port else InstanceState.FAILED
        ssh = SshEndpoint(host="127.0.0.1", port=int(port)) if port else None
        return Instance(id=instance_id, name=instance_id, provider=self.name, state=state, ssh=ssh)

    def list_instances(self, prefix: str) -> Listing:
        names = docker("ps", "-a", "--format", "{{.Names}}", "--filter", f"name=^{prefix}").split()
        return Listing(instances=tuple(self.get_instance(name) for name in names))

    def terminate_instance(self, instance_id: str) -> None:
        docker("rm", "-f", instance_id, check=False)

    def read_log(self, instance: Instance) -> str:
        return docker("logs", instance.id)


@contextlib.contextmanager
def rented(**more: Any) -> Iterator[tuple[TaskLibrary[Any], Instance]]:
    tasks: TaskLibrary[Any] = TaskLibrary(Marketplace)
    tasks.connections._secret = MASTER_SECRET
    driver = tasks.driver()
    made = driver.create_instance(driver.fetch_offers(Requirements())[0], launch_spec(driver, lease_name(), **more))
    try:
        yield tasks, made
    finally:
        tasks.connections.hang_up(made.name)
        driver.terminate_instance(made.id)


def ready(tasks: TaskLibrary[Any], made: Instance) -> Instance:
    return tasks.wait_until_ready.fn(made, tasks.driver().fetch_offers(Requirements())[0])


def run(tasks: TaskLibrary[Any], there: Instance, command: str) -> tuple[int, bytes]:
    channel = tasks.connections.connect(there).open(command)
    said = b""
    while piece := channel.recv(4096):
        said += piece
    return channel.exit_status(10), said


def test_a_container_tells_its_key_by_its_log_is_logged_in_to_by_no_other_and_is_given_back() -> None:
    with rented() as (tasks, made):
        there = ready(tasks, made)
        assert run(tasks, there, 'echo "$FROM_THE_IMAGE"; exit 3') == (3, b"a b\n")
        assert b"PREFECT_GPU" not in run(tasks, there, "env")[1]
        with rented() as (others, other):  # somebody in between shows a key of their own
            ready(others, other)
            taken = there.model_copy(update={"ssh": other.ssh})
            with pytest.raises((HostKeyMismatch, NotReady)):
                tasks.connections.connect(taken)
        assert tasks.terminate_instance.fn(made.id).is_gone


def test_two_containers_of_one_image_have_keys_of_their_own() -> None:
    with rented() as (tasks, one), rented() as (others, other):
        ready(tasks, one)
        ready(others, other)
        told = [tasks.connections._told_keys[one.name], others.connections._told_keys[other.name]]
        assert len(set(told)) == 2


def test_a_container_ends_when_its_lease_is_over_though_its_host_s_calendar_says_1970() -> None:
    with rented(deadline=utc_now() + timedelta(days=56 * 365), lasts_s=3) as (tasks, made):
        end = time.monotonic() + 60
        while tasks.driver().get_instance(made.id).state is InstanceState.RUNNING and time.monotonic() < end:
            time.sleep(0.5)
        assert tasks.driver().get_instance(made.id).state is InstanceState.FAILED
        assert "prefect-gpu the lease is over" in tasks.driver().read_log(made)


def test_a_container_gives_itself_back_by_the_command_that_it_was_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Marketplace, "give_back", "echo gives itself back with $HOME")
    with rented(deadline=utc_now() + timedelta(seconds=1)) as (tasks, made):
        end = time.monotonic() + 60
        while "gives itself back with /root" not in tasks.driver().read_log(made) and time.monotonic() < end:
            time.sleep(0.5)
        assert "gives itself back with /root" in tasks.driver().read_log(made)


def test_a_job_that_the_kernel_ends_for_its_container_s_memory_says_so_and_a_neighbour_s_is_not_ours(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(Marketplace, "limits", ("-m", "96m", "--memory-swap", "96m"))
    hog = "x=x; while :; do x=$x$x; done"
    neighbour = ["run", "--rm", "-m", "16m", "--memory-swap", "16m", "--entrypoint", "sh", "sshd:local", "-c", hog]
    with rented() as (tasks, made):
        there = ready(tasks, made)
        machine = Machine(lambda: tasks.connections.connect(there))

        def ended(command: str, meanwhile: Callable[[], object] = lambda: None) -> JobResult:
            spec = JobSpec(id=f"{made.name}.{uuid.uuid4().hex[:4]}", command=command)
            machine.start(spec)
            begun = f"test -s {machine.root}/{spec.id}/memory"
            wait_until(lambda: run(tasks, there, begun)[0] == 0, 30, "the supervisor's first count")
            meanwhile()
            run(tasks, there, f"touch {machine.root}/{spec.id}/work/go")
            result = machine.run(spec, tmp_path / spec.id)
            assert result is not None
            return result

        wait = "until [ -e go ]; do sleep 0.05; done;"
        killed = ended(f"{wait} {hog}")
        assert (killed.exit_code, killed.outcome) == (137, "exited")
        assert killed.trouble == (
            "the container ran out of memory while the job ran, and the kernel ended a process: ask for more memory"
        )
        beside = ended(f"{wait} exit 3", lambda: docker(*neighbour, check=False))
        assert (beside.exit_code, beside.trouble) == (3, "")
        machine.close()


@pytest.mark.parametrize(
    ("spoilt", "user", "why"),
    [
        ("rm -f /usr/sbin/sshd /usr/bin/apt-get; sleep() { :; }", "0", "the image has no OpenSSH server, and none can be installed"),
        ("rm -f /usr/bin/ssh-keygen", "0", "the image has no ssh-keygen that works"),
        ("sed -i /^sshd:/d /etc/passwd", "0", "its SSH server does not start: Privilege separation user sshd does not exist"),
        (":", "1000", "the image does not run as root, and jobs are sent to root"),
    ],
    ids=["no server", "no key", "no user", "not root"],
)  # fmt: skip
def test_an_image_in_which_no_ssh_server_can_be_had_says_so_in_one_sentence(spoilt: str, user: str, why: str) -> None:
    name = lease_name()
    spec = launch_spec(Marketplace(None), name)
    given = [part for key, value in container_boot.environment(spec).items() for part in ("-e", f"{key}={value}")]
    try:
        docker(
            "run", "--name", name, "--network", "none", "--user", user, "--entrypoint", "", *given, "sshd:local", "sh", "-c",
            f"{spoilt}; {container_boot.SCRIPT}", check=False,
        )  # fmt: skip
        assert container_boot.failure_in(docker("logs", name)) == why
        assert docker("inspect", "-f", "{{.State.ExitCode}}", name) == "1"
    finally:
        docker("rm", "-f", name, check=False)


MANAGERS = {
    "apk": "add --no-cache openssh-server openssh-keygen",
    "microdnf": "install -y openssh-server",
    "dnf": "install -y openssh-server",
    "yum": "install -y openssh-server",
    "zypper": "--non-interactive install openssh-server",
}


def small_image() -> bytes:
    """An image of BusyBox alone, as Alpine is. Its package managers, each in a folder of its own, give OpenSSH for exactly what is asked for."""
    busybox, sshd, keygen = "/usr/bin/busybox", "/usr/sbin/sshd", "/usr/bin/ssh-keygen"
    wanted = {library for program in (busybox, sshd, keygen) for library in libraries(program)}
    held = io.BytesIO()
    gives = "mkdir -p /usr/sbin /usr/bin && cp /opt/sshd /usr/sbin && cp /opt/ssh-keygen /usr/bin"
    with tarfile.open(fileobj=held, mode="w", dereference=True) as tar:
        for path, to in [
            (busybox, "bin/busybox"),
            (sshd, "opt/sshd"),
            (keygen, "opt/ssh-keygen"),
            *zip(wanted, wanted, strict=True),
        ]:
            tar.add(path, to)
        for applet in subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True).stdout.split():
            if applet not in {"busybox", "apt-get", "dpkg", "rpm"}:
                link = tarfile.TarInfo(f"bin/{applet}")
                link.type, link.linkname = tarfile.SYMTYPE, "busybox"
                tar.addfile(link)
        for to, text, mode in [
            *(
                (f"opt/{name}/{name}", f'#!/bin/sh\n[ "$*" = "{asks}" ] || exit 1\n{gives}\n', 0o755)
                for name, asks in MANAGERS.items()
            ),
            ("etc/passwd", "root:x:0:0::/root:/bin/sh\nsshd:x:22:22::/var/empty:/bin/false\n", 0o644),
            ("etc/shadow", "root:!:19000:0:::::\n", 0o600),
            ("etc/group", "root:x:0:\nsshd:x:22:\n", 0o644),
        ]:
            entry = tarfile.TarInfo(to)
            entry.size, entry.mode = len(text), mode
            tar.addfile(entry, io.BytesIO(text.encode()))
        for folder in ("root", "var/empty", "tmp"):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(entry)
    return held.getvalue()


def libraries(program: str) -> list[str]:
    """The shared objects of a program, the loader among them."""
    said = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    return [word for line in said.splitlines() for word in line.split() if word.startswith("/")]


@pytest.fixture(scope="module")
def small() -> Iterator[str]:
    image = f"prefect-gpu-small:{uuid.uuid4().hex[:8]}"
    subprocess.run(["docker", "import", "-", image], input=small_image(), capture_output=True, check=True)
    yield image
    docker("rmi", image, check=False)


@pytest.mark.openssh
@pytest.mark.skipif(
    not all(map(shutil.which, ("busybox", "sshd", "ssh-keygen", "ldd"))), reason="needs BusyBox and OpenSSH"
)
@pytest.mark.parametrize("manager", MANAGERS)
def test_an_image_without_an_ssh_server_gets_it_from_its_distribution(
    manager: str, small: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Marketplace, "limits", ("-e", f"PATH=/opt/{manager}:/usr/bin:/bin"))
    with rented(image=small) as (tasks, made):
        there = ready(tasks, made)
        assert run(tasks, there, "id -un; readlink /bin/sh; exit 3") == (3, b"root\nbusybox\n")
