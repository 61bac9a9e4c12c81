"""The driver `kubernetes`: against a real cluster, and what needs none (labels, quantities, states, the error table)."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import ipaddress
import json
import os
import socket
import ssl
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

import httpx
import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import SecretStr, ValidationError

pytest.importorskip("kubernetes", reason="needs the extra: pip install 'prefect-gpu[kubernetes]'")

from blocks.kubernetes import KubernetesCredentials, KubernetesMount, KubernetesToleration
from providers.core import files
from providers.core.errors import (
    AuthFailed,
    InstanceFailed,
    InvalidRequest,
    LinkLost,
    NotFound,
    NotReady,
    ProviderError,
    QuotaExceeded,
    RateLimited,
    Transient,
    Unconfirmed,
)
from providers.core.gpus import parse_gpu
from providers.core.jobs import Machine
from providers.core.models import (
    Availability,
    Instance,
    InstanceState,
    JobSpec,
    LaunchSpec,
    Offer,
    RegistryAuth,
    Requirements,
    Spot,
    utc_now,
)
from providers.core.nodes import Node, quantity, requests
from providers.core.pod_exec import PodConnection
from providers.core.pod_state import state_of
from providers.kubernetes import Kubernetes, KubernetesOptions, _pod
from tests.conformance import ProviderConformance, Subject, launch_spec, lease_name
from tests.fakes.kubernetes import KEPT, Cluster, KubernetesFaults, Wire, is_create, is_get, status

H100 = Requirements(gpu=parse_gpu("H100"))


# --- against the real cluster ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    path = os.environ.get("PREFECT_GPU_TEST_KUBECONFIG")
    if not path:
        pytest.skip("no cluster: set PREFECT_GPU_TEST_KUBECONFIG to an administrator's kubeconfig")
    cluster = Cluster(Path(path))
    try:
        yield cluster
    finally:
        cluster.remove()


@pytest.fixture
def driver(cluster: Cluster, tmp_path: Path) -> Iterator[Kubernetes]:
    driver = Kubernetes(cluster.credentials(tmp_path))
    yield driver
    cluster.clear()


def create(driver: Kubernetes, requirements: Requirements = H100, **more: Any) -> Instance:
    offer = driver.fetch_offers(requirements)[0]
    return driver.create_instance(offer, launch_spec(driver, lease_name(), **more))


def until(driver: Kubernetes, instance: Instance, state: InstanceState, seconds: float = 90.0) -> Instance:
    deadline = time.monotonic() + seconds
    while (seen := driver.get_instance(instance.id)).state is not state:
        assert time.monotonic() < deadline, f"it is {seen.state}: {seen.reason}"
        assert seen.state in {InstanceState.PROVISIONING, InstanceState.RUNNING, InstanceState.TERMINATING}, seen.reason
        time.sleep(0.1)
    return seen


def until_gone(driver: Kubernetes, instance: Instance, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            driver.get_instance(instance.id)
        except NotFound:
            return
        assert time.monotonic() < deadline, "it never went away"
        time.sleep(0.1)


@pytest.mark.kubernetes
class TestConformance(ProviderConformance):
    @pytest.fixture
    def subject(self, cluster: Cluster, tmp_path: Path) -> Iterator[Subject]:
        wires: list[Wire] = []

        def wire(real: httpx.BaseTransport) -> Wire:
            wires.append(Wire(real))
            return wires[0]

        driver = Kubernetes(cluster.credentials(tmp_path), transport=wire)
        driver.account_id()

        def shrink() -> None:
            driver._page = 1

        yield Subject(
            provider=driver,
            secrets=(cluster.token,),
            unknown_id=f"{cluster.namespace}/{lease_name()}",
            requirements=H100,
            faults=KubernetesFaults(cluster, wires[0], shrink),
            pass_time=lambda seconds: time.sleep(min(seconds, 0.2)),
        )
        wires[0].armed.clear()
        cluster.clear()


@pytest.fixture(scope="module")
def pod(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Kubernetes, Instance]]:
    driver = Kubernetes(cluster.credentials(tmp_path_factory.mktemp("pod")))
    offer = driver.fetch_offers(H100)[0]
    made = driver.create_instance(offer, launch_spec(driver, lease_name(KEPT)))
    instance = until(driver, made, InstanceState.RUNNING)
    yield driver, instance
    driver.terminate_instance(instance.id)


def run(driver: Kubernetes, instance: Instance, command: str, stdin: bytes = b"") -> tuple[int, bytes, str]:
    channel = driver.open_channel(instance).open(command)
    try:
        channel.sendall(stdin)
        channel.shutdown_write()
        output = bytearray()
        while data := channel.recv(1 << 20):
            output += data
        return channel.exit_status(10), bytes(output), channel.error_text()
    finally:
        channel.close()


@pytest.mark.kubernetes
class TestCommandsOnAPod:
    def test_output_error_and_exit_status_are_the_commands_own(self, pod: tuple[Kubernetes, Instance]) -> None:
        assert run(*pod, "echo out; echo err >&2; exit 3") == (3, b"out\n", "err\n")
        assert run(*pod, "true") == (0, b"", "")
        assert run(*pod, "kill -9 $$")[0] == 137

    def test_every_byte_arrives_in_both_directions(self, pod: tuple[Kubernetes, Instance]) -> None:
        every = bytes(range(256)) * 7 + b"\0\n\r\xff 0\n5\nabc\n"
        assert run(*pod, "cat", every) == (0, every, "")

    @pytest.mark.parametrize("size", [0, 1, 65535, 1 << 20, (1 << 20) + 1, 3_000_017])
    def test_the_end_of_stdin_reaches_the_command(self, pod: tuple[Kubernetes, Instance], size: int) -> None:
        data = os.urandom(size)
        code, output, _ = run(*pod, "sha256sum | cut -d' ' -f1", data)
        assert (code, output.decode().strip()) == (0, hashlib.sha256(data).hexdigest())

    def test_100_mb_come_whole(self, pod: tuple[Kubernetes, Instance]) -> None:
        code, output, _ = run(*pod, "head -c 100000000 /dev/zero | tr '\\0' x")
        assert code == 0
        assert len(output) == 100_000_000
        assert output.strip(b"x") == b""

    def test_a_command_that_reads_no_stdin_ends_by_itself(self, pod: tuple[Kubernetes, Instance]) -> None:
        channel = pod[0].open_channel(pod[1]).open("exit 4")
        assert channel.exit_status(10) == 4  # although its stdin was never ended
        channel.close()

    def test_a_command_that_stops_reading_does_not_block_or_fail_the_sender(
        self, pod: tuple[Kubernetes, Instance]
    ) -> None:
        assert run(*pod, "head -c 5; exit 7", b"hello" + bytes(20_000_000)) == (7, b"hello", "")

    def test_what_is_not_read_stops_the_sender_and_is_not_lost(self, pod: tuple[Kubernetes, Instance]) -> None:
        channel = pod[0].open_channel(pod[1]).open("seq 1 3000000")
        channel.shutdown_write()
        time.sleep(1.0)
        assert sum(len(part) for part in channel._out) <= 1 << 20
        digest = hashlib.sha256()
        while data := channel.recv(65536):
            digest.update(data)
        assert digest.digest() == hashlib.sha256(b"".join(b"%d\n" % n for n in range(1, 3_000_001))).digest()
        assert channel.exit_status(10) == 0
        channel.close()

    def test_a_pause_longer_than_the_watchdogs_patience_is_not_a_lost_link(
        self, pod: tuple[Kubernetes, Instance]
    ) -> None:
        channel = pod[0].open_channel(pod[1]).open("sleep 17; echo late")
        channel.shutdown_write()
        assert channel.recv(99) == b"late\n"
        channel.close()

    def test_a_command_whose_link_was_closed_is_hung_up(self, pod: tuple[Kubernetes, Instance]) -> None:
        channel = pod[0].open_channel(pod[1]).open("echo on; exec sleep 98765")
        assert channel.recv(99) == b"on\n"
        channel.close()
        deadline = time.monotonic() + 10
        while b"98765" in run(*pod, "ps -eo args | grep '[s]leep 9876' || :")[1]:
            assert time.monotonic() < deadline, "it stays behind"
            time.sleep(0.2)

    def test_closing_wakes_a_reader_in_another_thread(self, pod: tuple[Kubernetes, Instance]) -> None:
        channel = pod[0].open_channel(pod[1]).open("sleep 60")
        threading.Timer(0.3, channel.close).start()
        began = time.monotonic()
        with pytest.raises(LinkLost):
            channel.recv(10)
        assert time.monotonic() - began < 5

    def test_commands_run_side_by_side_from_many_threads(self, pod: tuple[Kubernetes, Instance]) -> None:
        link = pod[0].open_channel(pod[1])

        def one(number: int) -> bytes:
            channel = link.open(f"sleep 0.2; echo {number}")
            channel.shutdown_write()
            output = channel.recv(99)
            channel.close()
            return output

        with ThreadPoolExecutor(6) as pool:
            assert list(pool.map(one, range(12))) == [b"%d\n" % number for number in range(12)]

    def test_the_commands_words_are_not_in_the_url(self, pod: tuple[Kubernetes, Instance]) -> None:
        # 200 KB of them: no URL and no argument of execve takes that.
        assert run(*pod, "x=" + "a" * 100_000 + "; echo ${#x}")[:2] == (0, b"100000\n")

    def test_a_pod_that_is_gone_is_not_found_and_not_a_lost_link(self, driver: Kubernetes, cluster: Cluster) -> None:
        ghost = Instance(
            id=f"{cluster.namespace}/{lease_name()}", name="ghost", provider="kubernetes", state=InstanceState.RUNNING
        )
        with pytest.raises(NotFound):
            driver.open_channel(ghost)

    def test_a_pod_that_does_not_run_yet_is_not_ready(self, driver: Kubernetes) -> None:
        instance = create(driver)
        with pytest.raises(NotReady):
            driver.open_channel(instance)

    def test_a_frozen_link_is_noticed_within_20_s(
        self, cluster: Cluster, pod: tuple[Kubernetes, Instance], tmp_path: Path
    ) -> None:
        with Relay(cluster.url) as relay:
            far = Kubernetes(cluster.credentials(tmp_path, url=f"https://127.0.0.1:{relay.port}"))
            channel = far.open_channel(pod[1]).open("echo on; sleep 100")
            assert channel.recv(99) == b"on\n"
            relay.freeze()
            began = time.monotonic()
            with pytest.raises(LinkLost):
                channel.recv(99)
            assert time.monotonic() - began < 20
            channel.close()


class Relay:
    """A TCP relay to the API server that can stop passing anything on while connections stay up."""

    def __init__(self, url: str) -> None:
        self.target = httpx.URL(url)
        self.is_frozen = threading.Event()
        self.server = socket.create_server(("127.0.0.1", 0))
        self.port = self.server.getsockname()[1]
        self.open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for sock in (self.server, *self.open):
            sock.close()

    def freeze(self) -> None:
        self.is_frozen.set()

    def cut(self) -> None:
        for sock in list(self.open):
            with contextlib.suppress(OSError):  # it has ended by itself
                sock.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self.server.accept()
            except OSError:
                return
            far = socket.create_connection((self.target.host, self.target.port or 443))
            self.open += [near, far]
            for one, other in ((near, far), (far, near)):
                threading.Thread(target=self._pass_on, args=(one, other), daemon=True).start()

    def _pass_on(self, one: socket.socket, other: socket.socket) -> None:
        try:
            while data := one.recv(65536):
                while self.is_frozen.is_set():
                    time.sleep(0.1)
                other.sendall(data)
            other.shutdown(socket.SHUT_WR)
        except OSError:
            pass


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
        assert files.upload(machine, job.id, ["data"], here, is_checked=True).files == 4
        result = machine.run(job, tmp_path / "log")
        assert result is not None
        assert result.exit_code == 0, (tmp_path / "log").read_text()
        files.download(machine, job.id, ["results/"], back, is_checked=True)
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


@pytest.mark.kubernetes
class TestPods:
    def test_more_gpus_than_there_are_is_an_instance_that_failed_in_a_users_words(self, driver: Kubernetes) -> None:
        offer = driver.fetch_offers(H100)[0].model_copy(update={"gpu_count": 9})
        began = time.monotonic()
        instance = driver.create_instance(offer, launch_spec(driver, lease_name()))
        failed = until(driver, instance, InstanceState.FAILED, 10)
        assert "no node takes it" in failed.reason
        assert "Insufficient nvidia.com/gpu" in failed.reason
        assert time.monotonic() - began < 8

    def test_a_pod_that_fits_no_node_waits_as_long_as_the_block_says(self, cluster: Cluster, tmp_path: Path) -> None:
        patient = Kubernetes(cluster.credentials(tmp_path, scheduling_timeout_s=300))
        offer = patient.fetch_offers(H100)[0].model_copy(update={"gpu_count": 9})
        instance = patient.create_instance(offer, launch_spec(patient, lease_name()))
        deadline = time.monotonic() + 10
        while "Insufficient" not in (seen := patient.get_instance(instance.id)).reason:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        time.sleep(2)
        assert (seen := patient.get_instance(instance.id)).state is InstanceState.PROVISIONING, seen.reason
        patient.terminate_instance(instance.id)

    @pytest.mark.parametrize(
        ("image", "policy", "words"),
        [
            ("nosuch:local", "Never", "is not on the node"),
            ("127.0.0.1:9/nosuch:1", "IfNotPresent", "cannot be pulled"),
            ("UPPER CASE", "IfNotPresent", "has a name that is none"),
        ],
    )
    def test_an_image_that_cannot_be_had_is_told_within_seconds(
        self, cluster: Cluster, tmp_path: Path, image: str, policy: str, words: str
    ) -> None:
        driver = Kubernetes(cluster.credentials(tmp_path, image_pull_policy=policy))
        began = time.monotonic()
        instance = create(driver, image=image)
        failed = until(driver, instance, InstanceState.FAILED, 60)
        took = time.monotonic() - began
        assert words in failed.reason
        assert image in failed.reason
        with pytest.raises(InstanceFailed, match=words):
            driver.open_channel(failed)
        driver.terminate_instance(instance.id)
        assert took < 30

    def test_the_jobs_image_is_the_pods(self, cluster: Cluster, driver: Kubernetes) -> None:
        instance = create(driver, image="sshd:local")
        (made,) = [one for one in cluster.pods() if one["metadata"]["name"] == instance.name]
        assert made["spec"]["containers"][0]["image"] == "sshd:local"

    def test_a_pod_has_no_rights_no_restarts_and_an_end(self, cluster: Cluster, driver: Kubernetes) -> None:
        instance = create(
            driver, tags={"prefect-gpu-flow-run": "abc", "prefect-gpu-lease-ends": "2030-01-01T00:00+00:00"}
        )
        (made,) = [one for one in cluster.pods() if one["metadata"]["name"] == instance.name]
        spec, metadata = made["spec"], made["metadata"]
        assert spec["automountServiceAccountToken"] is False
        assert spec["restartPolicy"] == "Never"
        assert 7000 < spec["activeDeadlineSeconds"] <= 7260
        assert metadata["labels"]["prefect-gpu/name"] == instance.name
        assert metadata["labels"]["prefect-gpu/flow-run"] == "abc"
        assert metadata["annotations"]["prefect-gpu/lease-ends"] == "2030-01-01T00:00+00:00"

    def test_the_lease_ends_the_pod_and_it_is_left_to_be_deleted(self, driver: Kubernetes) -> None:
        offer = driver.fetch_offers(H100)[0]
        name = lease_name()
        instance = driver.create_instance(offer, launch_spec(driver, name, deadline=utc_now() + timedelta(seconds=8)))
        until(driver, instance, InstanceState.TERMINATED, 60)
        listing = driver.list_instances(name)
        assert listing.instances == ()
        assert [left.kind for left in listing.leftovers] == ["ended pod"]
        driver.terminate_instance(listing.leftovers[0].id)
        until_gone(driver, instance)
        assert driver.list_instances(name).leftovers == ()

    def test_a_job_ends_with_its_pod(self, driver: Kubernetes) -> None:
        instance = until(driver, create(driver), InstanceState.RUNNING)
        channel = driver.open_channel(instance).open("sleep 100")
        driver.terminate_instance(instance.id)
        try:
            assert channel.recv(10) == b""
            assert channel.exit_status(5) == 137  # killed with its pod
        except LinkLost:
            pass  # the pod was gone before its node told
        channel.close()
        until_gone(driver, instance)

    def test_two_orders_at_once_are_one_pod(self, cluster: Cluster, driver: Kubernetes) -> None:
        offer, name = driver.fetch_offers(H100)[0], lease_name()
        together = threading.Barrier(2)

        def order(_: int) -> str:
            together.wait()
            return driver.create_instance(offer, launch_spec(driver, name)).id

        with ThreadPoolExecutor(2) as pool:
            assert len(set(pool.map(order, range(2)))) == 1
        assert len([one for one in cluster.pods() if one["metadata"]["name"] == name]) == 1

    def test_a_strangers_pod_under_our_name_is_not_taken_for_ours(self, cluster: Cluster, driver: Kubernetes) -> None:
        offer, name = driver.fetch_offers(H100)[0], lease_name()
        container = {"name": "c", "image": "sshd:local", "imagePullPolicy": "Never", "command": ["sleep", "60"]}
        cluster.post(
            f"/api/v1/namespaces/{cluster.namespace}/pods",
            {"metadata": {"name": name}, "spec": {"containers": [container]}},
        )
        with pytest.raises(InvalidRequest, match="not ours"):
            driver.create_instance(offer, launch_spec(driver, name))

    def test_registry_credentials_live_as_long_as_their_pod(self, cluster: Cluster, driver: Kubernetes) -> None:
        registry = RegistryAuth(server="ghcr.io", username="u", password=SecretStr("hunter2"))
        instance = create(driver, registry=registry)
        path = f"/api/v1/namespaces/{cluster.namespace}/secrets/{instance.name}"
        secret = cluster.get(path)
        (owner,) = secret["metadata"]["ownerReferences"]
        assert (owner["kind"], owner["name"]) == ("Pod", instance.name)
        assert driver.list_instances(instance.name).leftovers == ()
        cluster.http.delete(f"/api/v1/namespaces/{cluster.namespace}/pods/{instance.name}")  # by somebody else
        cluster.wait(lambda: cluster.http.get(path).status_code == 404)

    def test_a_refused_order_leaves_no_registry_credentials(self, cluster: Cluster, tmp_path: Path) -> None:
        wires: list[Wire] = []
        driver = Kubernetes(cluster.credentials(tmp_path), transport=lambda real: wires.append(Wire(real)) or wires[0])
        offer, name = driver.fetch_offers(H100)[0], lease_name()
        wires[0].once(is_create, status(403, 'pods "x" is forbidden: exceeded quota: q', "Forbidden"))
        registry = RegistryAuth(server="ghcr.io", username="u", password=SecretStr("hunter2"))
        with pytest.raises(QuotaExceeded):
            driver.create_instance(offer, launch_spec(driver, name, registry=registry))
        assert driver.list_instances(name).leftovers == ()

    def test_an_order_that_died_between_secret_and_pod_is_left_over(self, cluster: Cluster, tmp_path: Path) -> None:
        wires: list[Wire] = []
        driver = Kubernetes(cluster.credentials(tmp_path), transport=lambda real: wires.append(Wire(real)) or wires[0])
        offer, name = driver.fetch_offers(H100)[0], lease_name()
        wires[0].once(is_create, status(500, "etcdserver: request timed out"))
        registry = RegistryAuth(server="ghcr.io", username="u", password=SecretStr("hunter2"))
        with pytest.raises(Unconfirmed):
            driver.create_instance(offer, launch_spec(driver, name, registry=registry))
        (left,) = driver.list_instances(name).leftovers
        assert left.kind == "pull secret"
        driver.terminate_instance(left.id)
        assert driver.list_instances(name).leftovers == ()

    def test_mounts_come_from_the_block_and_from_the_options(self, cluster: Cluster, tmp_path: Path) -> None:
        with cluster.stand_in(2) as (smi, count):
            driver = Kubernetes(cluster.credentials(tmp_path, mounts=[smi]))
            instance = until(driver, create(driver, options={"mounts": [count.model_dump()]}), InstanceState.RUNNING)
            code, output, error = run(
                driver, instance, "nvidia-smi --query-gpu=index,name --format=csv,noheader; df /dev/shm"
            )
            driver.terminate_instance(instance.id)
        assert code == 0, error
        assert output.count(b"NVIDIA H100 80GB HBM3") == 2
        assert b"tmpfs" in output
        assert b" 65536 " not in output, "/dev/shm is the container's own 64 MB"

    def test_an_option_that_does_not_exist_is_refused_before_anything_is_ordered(
        self, cluster: Cluster, driver: Kubernetes
    ) -> None:
        offer, name = driver.fetch_offers(H100)[0], lease_name()
        with pytest.raises(InvalidRequest, match="vollumes"):
            driver.create_instance(offer, launch_spec(driver, name, options={"vollumes": []}))
        assert name not in {one["metadata"]["name"] for one in cluster.pods()}

    def test_a_node_that_vanished_is_an_interruption(self, cluster: Cluster, tmp_path: Path) -> None:
        wires: list[Wire] = []
        driver = Kubernetes(cluster.credentials(tmp_path), transport=lambda real: wires.append(Wire(real)) or wires[0])
        instance = until(driver, create(driver), InstanceState.RUNNING)

        def silent(request: httpx.Request) -> httpx.Response:
            seen = json.loads(wires[0].real.handle_request(request).read())
            for condition in seen["status"]["conditions"]:
                if condition["type"] == "Ready":
                    condition["status"] = "False"
            return httpx.Response(200, json=seen, request=request)

        wires[0].always(is_get, silent)
        assert driver.get_instance(instance.id).state is InstanceState.UNKNOWN
        wires[0].always(
            lambda request: "/nodes/" in request.url.path, status(404, 'nodes "node1" not found', "NotFound")
        )
        gone = driver.get_instance(instance.id)
        assert gone.state is InstanceState.INTERRUPTED
        assert "node1 is gone" in gone.reason
        assert driver.interruption_reason(gone) == gone.reason
        driver.terminate_instance(instance.id)


@pytest.mark.kubernetes
class TestOffers:
    def test_what_other_pods_have_is_taken_off(self, cluster: Cluster, driver: Kubernetes) -> None:
        eight = Requirements(gpu=parse_gpu("H100:8"))
        create(driver)
        (offer,) = driver.fetch_offers(eight)
        assert offer.availability is Availability.UNAVAILABLE
        assert "nvidia.com/gpu free" in (offer.unavailable_because or "")

    def test_without_the_right_to_list_all_pods_an_offer_says_what_it_does_not_know(
        self, cluster: Cluster, driver: Kubernetes
    ) -> None:
        (offer,) = driver.fetch_offers(H100)
        assert offer.availability is Availability.UNKNOWN
        assert offer.raw["counted"] == f"the pods of the namespace {cluster.namespace}"
        assert (offer.gpu, offer.gpu_memory_gb, offer.price, offer.arch) == ("H100:1", 80.0, 2.0, "x86_64")

    def test_with_it_an_offer_is_known_to_be_available(self, cluster: Cluster) -> None:
        admin = Kubernetes(KubernetesCredentials(kubeconfig=os.environ["PREFECT_GPU_TEST_KUBECONFIG"], cpu=0.01))
        (offer,) = admin.fetch_offers(H100)
        assert offer.raw["counted"] == "all pods"
        assert offer.availability is Availability.AVAILABLE

    def test_a_cordoned_node_is_passed_over_and_says_why(self, cluster: Cluster, driver: Kubernetes) -> None:
        cluster.patch("/api/v1/nodes/node1", {"spec": {"unschedulable": True}})
        try:
            (offer,) = driver.fetch_offers(H100)
        finally:
            cluster.patch("/api/v1/nodes/node1", {"spec": {"unschedulable": None}})
        assert offer.availability is Availability.UNAVAILABLE
        assert offer.unavailable_because == "the node node1 is cordoned"


@pytest.mark.kubernetes
class TestRights:
    def test_the_manifest_grants_all_that_is_needed_and_the_identity(
        self, cluster: Cluster, driver: Kubernetes
    ) -> None:
        assert driver.missing_rights() == []
        uid = cluster.get("/api/v1/namespaces/kube-system")["metadata"]["uid"]
        assert driver.account_id() == uid

    def test_the_manifest_grants_nothing_beyond_its_namespace_but_reading_nodes(
        self, cluster: Cluster, tmp_path: Path
    ) -> None:
        path = Path(cluster.credentials(tmp_path).kubeconfig or "")
        token = yaml.safe_load(path.read_text())["users"][0]["user"]["token"]
        with httpx.Client(
            base_url=cluster.url, verify=False, headers={"authorization": f"Bearer {token}"}, trust_env=False
        ) as http:
            for forbidden in (
                "/api/v1/pods",
                "/api/v1/namespaces/default/pods",
                "/api/v1/namespaces/kube-system/secrets",
                "/api/v1/namespaces",
                "/api/v1/namespaces/default",
                "/api/v1/secrets",
            ):
                assert http.get(forbidden).status_code == 403, forbidden
            assert http.get("/api/v1/nodes").status_code == 200

    def test_a_missing_right_is_named_as_rbac_names_it(self, cluster: Cluster, tmp_path: Path) -> None:
        path = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{cluster.namespace}/roles/{cluster.namespace}"
        rules = cluster.get(path)["rules"]
        cluster.patch(path, {"rules": [rule for rule in rules if rule["resources"] != ["pods/exec"]]})
        try:
            driver = Kubernetes(cluster.credentials(tmp_path))
            assert driver.missing_rights() == [
                f"get pods/exec in {cluster.namespace}",
                f"create pods/exec in {cluster.namespace}",
            ]
            instance = until(driver, create(driver), InstanceState.RUNNING)
            with pytest.raises(AuthFailed, match="pods/exec"):
                driver.open_channel(instance).open("true")
            driver.terminate_instance(instance.id)
        finally:
            cluster.patch(path, {"rules": rules})

    def test_another_namespace_is_refused_with_the_right_that_is_missing(
        self, cluster: Cluster, tmp_path: Path
    ) -> None:
        driver = Kubernetes(cluster.credentials(tmp_path, namespace="default"))
        assert "create pods in default" in driver.missing_rights()
        offer = Kubernetes(cluster.credentials(tmp_path)).fetch_offers(H100)[0]
        with pytest.raises(AuthFailed, match='cannot create resource "pods"'):
            driver.create_instance(offer, launch_spec(driver, lease_name()))

    def test_a_namespace_that_is_gone_proves_no_absence(self) -> None:
        path = os.environ.get("PREFECT_GPU_TEST_KUBECONFIG")
        if not path:
            pytest.skip("no cluster: set PREFECT_GPU_TEST_KUBECONFIG to an administrator's kubeconfig")
        driver = Kubernetes(KubernetesCredentials(kubeconfig=path, namespace="no-such-namespace"))
        with pytest.raises(InvalidRequest, match="does not exist"):
            driver.get_instance(f"no-such-namespace/{lease_name()}")
        listing = driver.list_instances("pg-")
        assert [unread.scope for unread in listing.incomplete] == ["no-such-namespace"]
        with pytest.raises(InvalidRequest, match="namespace"):
            driver.create_instance(driver.fetch_offers(H100)[0], launch_spec(driver, lease_name()))
        assert "the namespace no-such-namespace does not exist" in " ".join(driver.missing_rights())

    def test_a_wrong_token_is_auth_failed(self, cluster: Cluster, tmp_path: Path) -> None:
        credentials = cluster.credentials(tmp_path)
        path = Path(credentials.kubeconfig or "")
        path.write_text(path.read_text().replace(cluster.token, "wrong"))
        with pytest.raises(AuthFailed, match="refuses these credentials"):
            Kubernetes(credentials).missing_rights()


# --- what needs no cluster ------------------------------------------------------------------------------------------------


def node(
    allocatable: dict[str, str] | None = None, labels: dict[str, str] | None = None, **more: Any
) -> dict[str, Any]:
    return {
        "metadata": {"name": more.pop("name", "n1"), "labels": {"kubernetes.io/arch": "amd64", **(labels or {})}},
        "spec": more,
        "status": {
            "allocatable": {
                "cpu": "8",
                "memory": "64Gi",
                "ephemeral-storage": "100Gi",
                "pods": "110",
                **(allocatable or {}),
            },
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }


GKE_MIG = "cloud.google.com/gke-gpu-partition-size"
GKE_SHARING = "cloud.google.com/gke-gpu-sharing-strategy"


class TestNodes:
    @pytest.mark.parametrize(
        ("labels", "resource", "name", "memory_gb"),
        [
            (
                {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3", "nvidia.com/gpu.memory": "81559"},
                "nvidia",
                "H100",
                80,
            ),
            (
                {"nvidia.com/gpu.product": "NVIDIA-A100-SXM4-40GB", "nvidia.com/gpu.memory": "40960"},
                "nvidia",
                "A100",
                40,
            ),
            ({"nvidia.com/gpu.product": "Tesla-T4", "nvidia.com/gpu.memory": "15360"}, "nvidia", "T4", 16),
            (
                {"nvidia.com/gpu.product": "NVIDIA-GeForce-RTX-4090", "nvidia.com/gpu.memory": "24564"},
                "nvidia",
                "RTX4090",
                24,
            ),
            (
                {"nvidia.com/gpu.product": "NVIDIA-A100-SXM4-40GB-MIG-1g.5gb", "nvidia.com/gpu.memory": "4864"},
                "nvidia",
                "A100-MIG-1g.5gb",
                5,
            ),
            (
                {"nvidia.com/gpu.product": "Tesla-T4-SHARED", "nvidia.com/gpu.memory": "15360"},
                "nvidia",
                "T4-SHARED",
                15,
            ),
            ({"nvidia.com/gpu.product": "Quadro-P9999"}, "nvidia", "Quadro-P9999", None),
            ({"cloud.google.com/gke-accelerator": "nvidia-h100-80gb"}, "nvidia", "H100", 80),
            (
                {"karpenter.k8s.aws/instance-gpu-name": "l4", "karpenter.k8s.aws/instance-gpu-memory": "22888"},
                "nvidia",
                "L4",
                24,
            ),
            ({"cloud.google.com/gke-accelerator": "nvidia-h100-mega-80gb"}, "nvidia", "H100", 80),
            (
                {"cloud.google.com/gke-accelerator": "nvidia-tesla-a100", GKE_MIG: "1g.5gb"},
                "nvidia",
                "A100-MIG-1g.5gb",
                5,
            ),
            (
                {"cloud.google.com/gke-accelerator": "nvidia-h100-80gb", GKE_MIG: "3g.40gb"},
                "nvidia",
                "H100-MIG-3g.40gb",
                40,
            ),
            (
                {"cloud.google.com/gke-accelerator": "nvidia-l4", GKE_SHARING: "time-sharing"},
                "nvidia",
                "L4-SHARED",
                None,
            ),
            ({"cloud.google.com/gke-accelerator": "nvidia-l4", GKE_SHARING: "mps"}, "nvidia", "L4-SHARED", None),
            (
                {"cloud.google.com/gke-accelerator": "nvidia-tesla-a100", GKE_MIG: "2g.10gb", GKE_SHARING: "mps"},
                "nvidia",
                "A100-MIG-2g.10gb-SHARED",
                10,
            ),
            (
                {"nvidia.com/gpu.product": "NVIDIA-A100-SXM4-40GB-MIG-1g.5gb-SHARED", "nvidia.com/gpu.memory": "4864"},
                "nvidia",
                "A100-MIG-1g.5gb-SHARED",
                5,
            ),
            (
                {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3-MIG-1g.10gb.me", "nvidia.com/gpu.memory": "9984"},
                "nvidia",
                "H100-MIG-1g.10gb.me",
                10,
            ),
            ({"amd.com/gpu.product-name": "AMD_Instinct_MI300X_VF", "amd.com/gpu.vram": "192G"}, "amd", "MI300X", 192),
            ({"amd.com/gpu.product-name": "AMD_Instinct_MI308X_HF_VF"}, "amd", "MI308X", None),
            ({"amd.com/gpu.device-id": "74a2"}, "amd", "MI308X", None),
            ({"amd.com/gpu.device-id": "74a8"}, "amd", "MI308X", None),
            ({"amd.com/gpu.device-id": "74a9"}, "amd", "MI300X", None),
            ({"amd.com/gpu.device-id": "74b5"}, "amd", "MI300X", None),
            ({"amd.com/gpu.device-id": "74b9"}, "amd", "MI325X", None),
            ({"amd.com/gpu.device-id": "74bd"}, "amd", "MI300X", None),
            ({"amd.com/gpu.product-name": "AMD_Instinct_MI300X_OAM", "amd.com/gpu.vram": "192G"}, "amd", "MI300X", 192),
            ({"amd.com/gpu.device-id": "74a1", "amd.com/gpu.vram": "192G"}, "amd", "MI300X", 192),
            ({"beta.amd.com/gpu.device-id.740f": "8", "beta.amd.com/gpu.vram.64G": "8"}, "amd", "MI210", 64),
        ],
    )
    def test_gpus_are_told_by_the_labels_that_clusters_write(
        self, labels: dict[str, str], resource: str, name: str, memory_gb: float | None
    ) -> None:
        gpu = Node(node({f"{resource}.com/gpu": "8"}, labels)).gpu
        assert gpu is not None
        assert (gpu.name, gpu.memory_gb, gpu.vendor) == (name, memory_gb, resource)

    def test_a_node_without_gpus_has_none_whatever_its_labels_say(self) -> None:
        assert Node(node({"nvidia.com/gpu": "0"}, {"nvidia.com/gpu.product": "Tesla-T4"})).gpu is None

    @pytest.mark.parametrize(
        ("text", "number"),
        [
            ("2", 2),
            ("1930m", 1.93),
            ("24581696Ki", 24581696 * 1024),
            ("1.5Gi", 1.5 * 2**30),
            ("129e6", 129000000.0),
            ("129M", 129000000.0),
            ("100n", 1e-07),
            ("nonsense", 0),
            ("", 0),
            ("12Qi", 0),
        ],
    )
    def test_quantities_are_numbers(self, text: str, number: float) -> None:
        assert quantity(text) == pytest.approx(number)

    def test_a_pods_requests_are_its_containers_or_its_biggest_init_container(self) -> None:
        def asks(cpu: str, **more: str) -> dict[str, Any]:
            return {"resources": {"requests": {"cpu": cpu}}, **more}

        spec = {
            "containers": [asks("1"), asks("500m"), {"resources": {"limits": {"nvidia.com/gpu": "2"}}}],
            "initContainers": [asks("4"), asks("250m", restartPolicy="Always")],
            "overhead": {"cpu": "100m"},
        }
        assert requests(spec) == {"pods": 1, "cpu": pytest.approx(4.1), "nvidia.com/gpu": 2}

    def test_taints_need_a_toleration_but_gpu_pods_bear_the_usual_one(self) -> None:
        wants = {"cpu": 1.0, "nvidia.com/gpu": 1.0}
        usual = Node(node({"nvidia.com/gpu": "8"}, taints=[{"key": "nvidia.com/gpu", "effect": "NoSchedule"}]))
        assert usual.problem(wants, ()) is None
        assert "taint nvidia.com/gpu" in str(usual.problem({"cpu": 1.0}, ()))
        team = Node(node({"nvidia.com/gpu": "8"}, taints=[{"key": "team", "value": "a", "effect": "NoExecute"}]))
        assert "taint team" in str(team.problem(wants, ()))
        assert team.problem(wants, (KubernetesToleration(key="team", operator="Equal", value="a"),)) is None
        assert team.problem(wants, (KubernetesToleration(key="team", operator="Equal", value="b"),)) is not None
        assert team.problem(wants, (KubernetesToleration(key="team", effect="NoSchedule"),)) is not None
        soft = Node(node({"nvidia.com/gpu": "8"}, taints=[{"key": "x", "effect": "PreferNoSchedule"}]))
        assert soft.problem(wants, ()) is None

    def test_a_node_that_is_not_ready_or_full_says_so(self) -> None:
        raw = node({"nvidia.com/gpu": "8"})
        raw["status"]["conditions"][0]["status"] = "Unknown"
        assert "not ready" in str(Node(raw).problem({"cpu": 1.0}, ()))
        full = Node(node({"nvidia.com/gpu": "8"})).problem({"nvidia.com/gpu": 9.0}, ())
        assert full is not None
        assert full.is_full
        assert full.words == "the node n1 has 8 of nvidia.com/gpu free"


def pod_status(**status: Any) -> dict[str, Any]:
    return {"metadata": status.pop("metadata", {}), "status": status, "spec": {}}


# Containers' statuses, as kubelets write them.
READY: dict[str, Any] = {"ready": True, "state": {"running": {}}}
STARTING: dict[str, Any] = {"ready": False, "state": {"running": {}}}
ENDED: dict[str, Any] = {"ready": False, "state": {"terminated": {"exitCode": 0, "reason": "Completed"}}}
OOM_KILLED: dict[str, Any] = {"ready": False, "state": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}}
MAKING: dict[str, Any] = {"ready": False, "state": {"waiting": {"reason": "ContainerCreating"}}}
CRASHED = {"reason": "CrashLoopBackOff", "message": "back-off 10s"}
PULLING: dict[str, Any] = {"ready": False, "state": {"waiting": {"reason": "ErrImagePull", "message": "EOF"}}}


def waiting_pod(reason: str, message: str, scheduled_s_ago: float) -> tuple[dict[str, Any], datetime]:
    now = utc_now()
    at = (now - timedelta(seconds=scheduled_s_ago)).isoformat()
    waiting = {"reason": reason, "message": message}
    pod = pod_status(
        phase="Pending",
        conditions=[{"type": "PodScheduled", "status": "True", "lastTransitionTime": at}],
        containerStatuses=[{"name": "job", "image": "x", "state": {"waiting": waiting}}],
    )
    return pod, now


class TestStates:
    @pytest.mark.parametrize(
        ("pod", "state", "words"),
        [
            (pod_status(phase="Pending"), InstanceState.PROVISIONING, ""),
            (
                pod_status(
                    phase="Pending",
                    containerStatuses=[
                        {
                            "name": "job",
                            "image": "x",
                            "state": {"waiting": {"reason": "ErrImagePull", "message": "manifest unknown"}},
                        }
                    ],
                ),
                InstanceState.FAILED,
                "the image x cannot be pulled: ErrImagePull: manifest unknown",
            ),
            (
                pod_status(
                    phase="Pending",
                    containerStatuses=[
                        {
                            "name": "job",
                            "state": {
                                "waiting": {"reason": "CreateContainerConfigError", "message": 'secret "s" not found'}
                            },
                        }
                    ],
                ),
                InstanceState.FAILED,
                'secret "s" not found',
            ),
            (
                pod_status(
                    phase="Running",
                    conditions=[{"type": "Ready", "status": "True"}],
                    containerStatuses=[{"name": "job", "ready": True, "state": {"running": {}}}],
                ),
                InstanceState.RUNNING,
                "",
            ),
            (
                pod_status(
                    phase="Running",
                    conditions=[{"type": "Ready", "status": "False"}],
                    containerStatuses=[{"name": "job", "ready": True, "state": {"running": {}}}],
                ),
                InstanceState.UNKNOWN,
                "does not answer",
            ),
            (
                pod_status(phase="Running", containerStatuses=[{"name": "job", "ready": False, "state": {}}]),
                InstanceState.PROVISIONING,
                "",
            ),
            (pod_status(phase="Running", metadata={"deletionTimestamp": "x"}), InstanceState.TERMINATING, ""),
            (pod_status(phase="Failed", reason="DeadlineExceeded"), InstanceState.TERMINATED, "lease is over"),
            (pod_status(phase="Succeeded"), InstanceState.TERMINATED, ""),
            (pod_status(phase="Failed", reason="Evicted", message="disk"), InstanceState.INTERRUPTED, "Evicted: disk"),
            (
                pod_status(
                    phase="Running",
                    metadata={"deletionTimestamp": "x"},
                    conditions=[
                        {
                            "type": "DisruptionTarget",
                            "status": "True",
                            "reason": "PreemptionByScheduler",
                            "message": "m",
                        }
                    ],
                ),
                InstanceState.INTERRUPTED,
                "PreemptionByScheduler: m",
            ),
            (
                pod_status(
                    phase="Failed",
                    containerStatuses=[
                        {"name": "job", "state": {"terminated": {"exitCode": 128, "reason": "StartError"}}}
                    ],
                ),
                InstanceState.FAILED,
                "exit code 128: StartError",
            ),
            (
                pod_status(phase="Failed", reason="UnexpectedAdmissionError"),
                InstanceState.FAILED,
                "UnexpectedAdmission",
            ),
            (pod_status(phase="Unknown"), InstanceState.UNKNOWN, "Unknown"),
            (pod_status(), InstanceState.UNKNOWN, ""),
        ],
    )
    def test_a_pods_status_is_a_state_and_a_reason(self, pod: dict[str, Any], state: InstanceState, words: str) -> None:
        seen, reason = state_of(pod, utc_now(), 5)
        assert seen is state
        assert words in reason

    @pytest.mark.parametrize(
        ("others", "own", "more", "state", "words"),
        [
            ([("istio-proxy", READY)], OOM_KILLED, {}, InstanceState.FAILED, "exit code 137: OOMKilled"),
            ([("istio-proxy", READY)], ENDED, {}, InstanceState.TERMINATED, "it has ended"),
            ([("istio-proxy", STARTING)], READY, {}, InstanceState.RUNNING, ""),
            ([("helper", ENDED)], READY, {}, InstanceState.RUNNING, ""),
            ([("helper", OOM_KILLED)], READY, {}, InstanceState.RUNNING, ""),
            ([("helper", PULLING)], READY, {"phase": "Pending"}, InstanceState.RUNNING, ""),
            ([("helper", PULLING)], OOM_KILLED, {"phase": "Pending"}, InstanceState.FAILED, "exit code 137: OOMKilled"),
            ([("istio-proxy", READY)], STARTING, {}, InstanceState.PROVISIONING, "being started"),
            ([("istio-proxy", READY)], MAKING, {"phase": "Pending"}, InstanceState.PROVISIONING, "being made"),
            ([("helper", ENDED)], OOM_KILLED, {"phase": "Failed"}, InstanceState.FAILED, "exit code 137: OOMKilled"),
            ([("helper", OOM_KILLED)], ENDED, {"phase": "Failed"}, InstanceState.TERMINATED, "it has ended"),
            (
                [("init", OOM_KILLED)],
                MAKING,
                {"phase": "Failed"},
                InstanceState.FAILED,
                "container init ended with exit",
            ),
        ],
        ids=str,
    )
    def test_the_container_of_ours_decides_whatever_stands_beside_it(
        self,
        others: list[tuple[str, dict[str, Any]]],
        own: dict[str, Any],
        more: dict[str, str],
        state: InstanceState,
        words: str,
    ) -> None:
        for kind in ("containerStatuses", "initContainerStatuses"):
            beside = [{"name": name, "image": name, **status} for name, status in others]
            status = {"phase": "Running", "conditions": [{"type": "Ready", "status": "False"}], **more}
            for ours in (0, len(beside)):  # the order of containers is the cluster's
                containers = list(beside) if kind == "containerStatuses" else []
                containers.insert(ours, {"name": "job", "image": "x", **own})
                initial = beside if kind == "initContainerStatuses" else []
                seen, reason = state_of(
                    pod_status(containerStatuses=containers, initContainerStatuses=initial, **status), utc_now(), 5
                )
                assert (kind, seen) == (kind, state)
                assert words in reason

    def test_a_sidecar_that_restarts_beside_a_running_job_ends_nothing(self) -> None:
        pod = pod_status(
            phase="Running",
            conditions=[{"type": "Ready", "status": "True"}],
            initContainerStatuses=[{"name": "istio-proxy", "ready": False, "state": {"waiting": CRASHED}}],
            containerStatuses=[{"name": "job", **READY}],
        )
        assert state_of(pod, utc_now(), 5) == (InstanceState.RUNNING, "")

    def test_only_a_node_that_does_not_answer_makes_a_pod_unknown(self) -> None:
        for condition, beside, state in (
            ({"status": "False"}, READY, InstanceState.UNKNOWN),  # its node is silent: all were ready when it last told
            ({"status": "Unknown"}, READY, InstanceState.UNKNOWN),
            ({"status": "False", "reason": "ContainersNotReady"}, STARTING, InstanceState.RUNNING),
            ({"status": "False", "reason": "ReadinessGatesNotReady"}, READY, InstanceState.RUNNING),
        ):
            pod = pod_status(
                phase="Running",
                conditions=[{"type": "Ready", **condition}],
                containerStatuses=[{"name": "istio-proxy", **beside}, {"name": "job", **READY}],
            )
            assert state_of(pod, utc_now(), 5)[0] is state

    @pytest.mark.parametrize(
        ("reason", "message"),
        [
            # containerd
            (
                "ErrImagePull",
                'failed to resolve reference "docker.io/library/nosuch:1": docker.io/library/nosuch:1: not found',
            ),
            (
                "ErrImagePull",
                "pull access denied, repository does not exist or may require authorization: server message: x",
            ),
            (
                "ErrImagePull",
                "failed to authorize: unexpected status from GET request to https://ghcr.io/t: 401 Unauthorized",
            ),
            ("ErrImagePull", 'failed to pull and unpack image "x": no match for platform in manifest: not found'),
            # docker, and cri-o
            (
                "ErrImagePull",
                "rpc error: code = Unknown desc = Error response from daemon: manifest for nginx:nosuch not found",
            ),
            ("ErrImagePull", "Error response from daemon: manifest unknown: manifest unknown"),
            (
                "ErrImagePull",
                "Error response from daemon: Get https://r.example/v2/a/manifests/1: no basic auth credentials",
            ),
            ("ErrImagePull", "no matching manifest for linux/arm64/v8 in the manifest list entries"),
            (
                "ErrImagePull",
                "reading manifest 1 in quay.io/a/b: unauthorized: access to the requested resource is not authorized",
            ),
            # a cluster without a way out
            ("ErrImagePull", 'Get "https://ghcr.io/v2/": dial tcp: lookup ghcr.io on 10.0.0.10:53: no such host'),
            ("ErrImagePull", 'Get "http://127.0.0.1:9/v2/": dial tcp 127.0.0.1:9: connect: connection refused'),
            # kubelets from 1.31 on say it here too
            ("ImagePullBackOff", 'Back-off pulling image "x": ErrImagePull: reading manifest: manifest unknown'),
            ("InvalidImageName", 'Failed to apply default image tag "UPPER CASE"'),
            ("ErrImageNeverPull", 'Container image "x" is not present with pull policy of Never'),
            ("SignatureValidationFailed", "image policy denies it"),
            ("CreateContainerConfigError", 'configmap "c" not found'),
            ("CreateContainerConfigError", "couldn't find key k in Secret ns/s"),
            ("CreateContainerConfigError", "container has runAsNonRoot and image will run as root"),
        ],
    )
    def test_what_waiting_does_not_mend_is_told_at_once(self, reason: str, message: str) -> None:
        pod, now = waiting_pod(reason, message, scheduled_s_ago=1)
        state, words = state_of(pod, now, 5)
        assert state is InstanceState.FAILED
        assert message[:100] in words

    @pytest.mark.parametrize(
        ("reason", "message"),
        [
            ("ErrImagePull", "pull QPS exceeded"),
            (
                "ErrImagePull",
                'failed to resolve reference "x": unexpected status from HEAD request: 429 Too Many Requests',
            ),
            ("ErrImagePull", "toomanyrequests: You have reached your unauthenticated pull rate limit"),
            ("ErrImagePull", "denied: Quota exceeded for quota metric 'Requests per project per region'"),
            (
                "ErrImagePull",
                'Get "https://ghcr.io/v2/": dial tcp: lookup ghcr.io on 10.0.0.10:53: read udp: i/o timeout',
            ),
            ("ErrImagePull", "net/http: TLS handshake timeout"),
            ("ErrImagePull", "unexpected EOF"),
            (
                "ImagePullBackOff",
                'Back-off pulling image "ghcr.io/acme/denied:unauthorized"',
            ),  # words of a name, not of a refusal
            ("ImagePullBackOff", 'Back-off pulling image "denied:1"'),
            ("RegistryUnavailable", "image pull failed: the registry is unavailable"),
            ("CreateContainerConfigError", "failed to sync configmap cache: timed out waiting for the condition"),
            ("CreateContainerError", "context deadline exceeded"),
        ],
    )
    def test_what_the_kubelet_tries_again_has_two_minutes_and_is_told_meanwhile(
        self, reason: str, message: str
    ) -> None:
        pod, now = waiting_pod(reason, message, scheduled_s_ago=100)
        state, words = state_of(pod, now, 5)
        assert state is InstanceState.PROVISIONING
        assert message in words
        pod, now = waiting_pod(reason, message, scheduled_s_ago=121)
        assert state_of(pod, now, 5) == (InstanceState.FAILED, words)

    def test_a_pod_that_no_node_takes_fails_when_its_time_is_over(self) -> None:
        now = utc_now()
        condition = {
            "type": "PodScheduled",
            "status": "False",
            "reason": "Unschedulable",
            "message": "0/1 nodes are available",
            "lastTransitionTime": (now - timedelta(seconds=10)).isoformat(),
        }
        pod = pod_status(phase="Pending", conditions=[condition])
        assert state_of(pod, now, 5) == (
            InstanceState.FAILED,
            "no node takes it: Unschedulable: 0/1 nodes are available",
        )
        assert state_of(pod, now, 60)[0] is InstanceState.PROVISIONING

    def test_a_pod_for_which_others_make_room_goes_on_waiting(self) -> None:
        now = utc_now()
        condition = {
            "type": "PodScheduled",
            "status": "False",
            "reason": "Unschedulable",
            "message": "0/1 nodes are available: 1 Insufficient nvidia.com/gpu.",
            "lastTransitionTime": (now - timedelta(seconds=600)).isoformat(),
        }
        pod = pod_status(phase="Pending", nominatedNodeName="n1", conditions=[condition])
        state, words = state_of(pod, now, 5)
        assert state is InstanceState.PROVISIONING
        assert words.startswith("others make room for it on the node n1: Unschedulable")


class FakeApi:
    """An HTTP server on loopback that answers as it is told; `answers` maps method and path to status, body and headers."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.answers: dict[tuple[str, str], Any] = {}
        self.knows: Callable[[str, str], bool] = lambda _authorization, _common_name: True
        self.seen: list[str] = []  # paths
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                length = int(self.headers.get("content-length", 0))
                self.rfile.read(length)
                path = self.path.partition("?")[0]
                fake.seen.append(path)
                answer = fake.answers[self.command, path]
                subject = self.connection.getpeercert() if isinstance(self.connection, ssl.SSLSocket) else None
                name = subject["subject"][0][0][1] if subject else ""
                if not fake.knows(self.headers.get("authorization", ""), str(name)):
                    answer = (401, {"kind": "Status", "message": "Unauthorized", "reason": "Unauthorized"}, {})
                if answer == "hang up":
                    self.close_connection = True
                    return
                if answer == "silence":
                    time.sleep(1.5)
                    self.close_connection = True
                    return
                code, body, headers = answer
                data = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(code)
                for key, value in {"content-length": str(len(data)), **headers}.items():
                    self.send_header(key, value)
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = do_DELETE = do_PATCH = answer  # noqa: N815 - http.server's names

            def log_message(self, *_: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.server.server_port}"
        if tls:
            self.server.socket = tls.wrap_socket(self.server.socket, server_side=True)
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def api() -> Iterator[FakeApi]:
    fake = FakeApi()
    yield fake
    fake.close()


def write_kubeconfig(path: Path, cluster: dict[str, Any], user: dict[str, Any]) -> KubernetesCredentials:
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": cluster}],
        "users": [{"name": "u", "user": user}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
    path.write_text(yaml.safe_dump(config))
    return KubernetesCredentials(kubeconfig=str(path), namespace="ns")


@pytest.fixture
def faked(api: FakeApi, tmp_path: Path) -> Kubernetes:
    block = write_kubeconfig(tmp_path / "kubeconfig", {"server": api.url}, {"token": "s3cret-token"})
    return Kubernetes(block, timeout_s=0.5)


OFFER = Offer(provider="kubernetes", instance_type="t", region="ns", price=0)
FORBIDDEN = 'pods is forbidden: User "system:serviceaccount:ns:x" cannot create resource "pods" in API group ""'


class TestErrors:
    @pytest.mark.parametrize(
        ("code", "reason", "words", "at_create", "at_get"),
        [
            (400, "BadRequest", "bad", InvalidRequest, InvalidRequest),
            (401, "Unauthorized", "Unauthorized", AuthFailed, AuthFailed),
            (403, "Forbidden", FORBIDDEN, AuthFailed, AuthFailed),
            (
                403,
                "Forbidden",
                'pods "p" is forbidden: exceeded quota: q, requested: pods=1',
                QuotaExceeded,
                QuotaExceeded,
            ),
            (403, "Forbidden", "maximum cpu usage per Container is 2, but limit is 4", QuotaExceeded, QuotaExceeded),
            (
                403,
                "Forbidden",
                'pods "p" is forbidden: violates PodSecurity "restricted"',
                InvalidRequest,
                InvalidRequest,
            ),
            (
                403,
                "Forbidden",
                "unable to create new content because it is being terminated",
                InvalidRequest,
                InvalidRequest,
            ),
            (404, "NotFound", 'namespaces "ns" not found', InvalidRequest, NotFound),
            (405, "MethodNotAllowed", "no", InvalidRequest, InvalidRequest),
            (409, "Conflict", "the object has been modified", RateLimited, RateLimited),
            (410, "Expired", "too old resource version", InvalidRequest, Transient),
            (422, "Invalid", 'Pod "p" is invalid: spec: nope', InvalidRequest, InvalidRequest),
            (429, "TooManyRequests", "slow down", RateLimited, RateLimited),
            (500, "InternalError", "etcdserver: request timed out", Unconfirmed, Transient),
            (503, "ServiceUnavailable", "apiserver not ready", Unconfirmed, Transient),
            (504, "Timeout", "request did not complete", Unconfirmed, Transient),
        ],
    )
    def test_each_answer_is_an_error_of_ours_in_the_clusters_words(
        self,
        api: FakeApi,
        faked: Kubernetes,
        code: int,
        reason: str,
        words: str,
        at_create: type[ProviderError],
        at_get: type[ProviderError],
    ) -> None:
        name = lease_name()
        body = {"kind": "Status", "message": words, "reason": reason, "code": code}
        answer = (code, body, {"retry-after": "3"} if code == 429 else {})
        api.answers = {
            ("POST", "/api/v1/namespaces/ns/pods"): answer,
            ("GET", f"/api/v1/namespaces/ns/pods/{name}"): answer,
            ("GET", "/api/v1/namespaces/ns"): (200, {"metadata": {"uid": "1"}}, {}),
        }
        for kind, call in (
            (at_create, lambda: faked.create_instance(OFFER, launch_spec(faked, name))),
            (at_get, lambda: faked.get_instance(f"ns/{name}")),
        ):
            with pytest.raises(ProviderError) as raised:
                call()
            if code == 410:
                continue  # only listings get it
            assert type(raised.value) is kind
            assert words in raised.value.message
            assert "s3cret" not in str(raised.value)
            if code == 429:
                assert raised.value.retry_after_s == 3

    @pytest.mark.parametrize(
        ("answer", "at_create", "at_get"),
        [
            ("hang up", Unconfirmed, Transient),
            ("silence", Unconfirmed, Transient),
            ((201, b"{half", {}), Unconfirmed, Transient),
            ((201, b"[]", {}), Unconfirmed, Transient),
            ((200, {"metadata": {}}, {}), Unconfirmed, None),
            ((502, b"<html>bad gateway</html>", {}), Unconfirmed, Transient),
            ((302, b"", {"location": "http://127.0.0.1:9/"}), InvalidRequest, InvalidRequest),
        ],
        ids=["hangs up", "silent", "half a body", "no object", "no id", "a proxy's page", "redirect"],
    )
    def test_an_answer_that_is_none_is_unconfirmed_only_at_create(
        self, api: FakeApi, faked: Kubernetes, answer: Any, at_create: type[ProviderError], at_get: type[ProviderError]
    ) -> None:
        name = lease_name()
        api.answers = {
            ("POST", "/api/v1/namespaces/ns/pods"): answer,
            ("GET", f"/api/v1/namespaces/ns/pods/{name}"): answer,
        }
        with pytest.raises(ProviderError) as raised:
            faked.create_instance(OFFER, launch_spec(faked, name))
        assert type(raised.value) is at_create
        if at_get is not None:
            with pytest.raises(ProviderError) as raised:
                faked.get_instance(f"ns/{name}")
            assert type(raised.value) is at_get

    def test_a_server_that_cannot_be_reached_is_transient_also_at_create(self, api: FakeApi, faked: Kubernetes) -> None:
        api.close()
        with pytest.raises(Transient, match="cannot be reached"):
            faked.create_instance(OFFER, launch_spec(faked, lease_name()))
        api.server = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)  # for the fixture to close
        threading.Thread(target=api.server.serve_forever, args=(0.05,), daemon=True).start()

    def test_a_page_that_expired_makes_the_listing_incomplete_and_not_short(
        self, api: FakeApi, faked: Kubernetes
    ) -> None:
        api.answers = {
            ("GET", "/api/v1/namespaces/ns"): (200, {"metadata": {"uid": "1"}}, {}),
            ("GET", "/api/v1/namespaces/ns/secrets"): (200, {"items": []}, {}),
            ("GET", "/api/v1/namespaces/ns/pods"): (410, {"message": "expired", "reason": "Expired"}, {}),
        }
        listing = faked.list_instances("pg-")
        assert [unread.scope for unread in listing.incomplete] == ["ns"]

    def test_a_kubeconfig_that_is_not_there_is_said_in_one_sentence(self, tmp_path: Path) -> None:
        driver = Kubernetes(KubernetesCredentials(kubeconfig=str(tmp_path / "none")))
        with pytest.raises(AuthFailed, match="cannot be used on this worker"):
            driver.account_id()

    def test_an_id_that_is_none_is_not_found(self, faked: Kubernetes) -> None:
        for wrong in ("", "pod", "../../x", "a/b/c", "ns/../x"):
            with pytest.raises(NotFound):
                faked.get_instance(wrong)


class Quota:
    """An API server's pods and Secrets where a quota lets one pod stand; as there, admission comes before what stands already."""

    def __init__(self) -> None:
        self.pods: dict[str, Any] = {}
        self.secrets: dict[str, Any] = {}
        self.counts_secrets = False
        self.refused: dict[
            tuple[str, str], tuple[int, str, str]
        ] = {}  # by method and kind of object: status, words, reason
        self.lost: list[tuple[str, str]] = []  # whose answer does not come

    def __call__(self, request: httpx.Request) -> httpx.Response:
        _, _, _, _, _, kind, *name = request.url.path.split("/") if "/ns/" in request.url.path else [""] * 6
        call = (request.method, kind)
        answer = self.answer(call, name[0] if name else "", request)
        if call in self.lost:
            self.lost.remove(call)
            raise httpx.ReadTimeout("timed out", request=request)
        return answer

    def answer(self, call: tuple[str, str], name: str, request: httpx.Request) -> httpx.Response:
        if call in self.refused:
            code, words, reason = self.refused[call]
            return status(code, words, reason)(request)
        method, kind = call
        if not kind:
            return httpx.Response(200, json={"metadata": {"uid": "1"}})
        objects = self.pods if kind == "pods" else self.secrets
        if method == "POST":
            body = json.loads(request.content)
            name = body["metadata"]["name"]
            if objects and (kind == "pods" or self.counts_secrets):
                return status(403, f'{kind} "{name}" is forbidden: exceeded quota: q', "Forbidden")(request)
            if name in objects:
                return status(409, f'{kind} "{name}" already exists', "AlreadyExists")(request)
            body["metadata"] |= {"uid": f"uid-of-{kind}", "namespace": "ns"}
            objects[name] = {**body, "status": {"phase": "Pending"}}
            return httpx.Response(201, json=objects[name])
        if not name:
            return httpx.Response(200, json={"items": list(objects.values())})
        if name not in objects:
            return status(404, f'{kind} "{name}" not found', "NotFound")(request)
        one = objects.pop(name) if method == "DELETE" else objects[name]
        if method == "PATCH":
            one["metadata"] |= json.loads(request.content)["metadata"]
        return httpx.Response(200, json=one)


class TestOrders:
    REGISTRY = RegistryAuth(server="ghcr.io", username="u", password=SecretStr("hunter2"))

    @pytest.fixture
    def server(self) -> Quota:
        return Quota()

    @pytest.fixture
    def driver(self, faked: Kubernetes, server: Quota) -> Kubernetes:
        return Kubernetes(faked.credentials, transport=lambda _: httpx.MockTransport(server))

    @pytest.mark.parametrize("counts_secrets", [False, True], ids=["pods", "pods and Secrets"])
    def test_a_repeated_order_that_its_own_pod_puts_over_quota_finds_it(
        self, driver: Kubernetes, server: Quota, counts_secrets: bool
    ) -> None:
        server.counts_secrets = counts_secrets
        server.lost = [("POST", "pods")]
        spec = launch_spec(driver, lease_name(), registry=self.REGISTRY)
        with pytest.raises(Unconfirmed):
            driver.create_instance(OFFER, spec)
        assert driver.create_instance(OFFER, spec).id == f"ns/{spec.name}"
        owners = server.secrets[spec.name]["metadata"]["ownerReferences"]
        assert [owner["uid"] for owner in owners] == ["uid-of-pods"]

    def test_a_refusal_leaves_nothing_where_no_pod_stands(self, driver: Kubernetes, server: Quota) -> None:
        server.pods["other"] = {"metadata": {"name": "other"}}
        with pytest.raises(QuotaExceeded):
            driver.create_instance(OFFER, launch_spec(driver, lease_name(), registry=self.REGISTRY))
        assert server.secrets == {}

    def test_a_strangers_pod_does_not_answer_a_refused_order(self, driver: Kubernetes, server: Quota) -> None:
        name = lease_name()
        server.pods[name] = {"metadata": {"name": name, "namespace": "ns", "uid": "1"}, "spec": {}}
        with pytest.raises(QuotaExceeded):
            driver.create_instance(OFFER, launch_spec(driver, name))

    def test_a_refusal_is_told_also_where_what_it_left_cannot_be_deleted(
        self, driver: Kubernetes, server: Quota
    ) -> None:
        server.pods["other"] = {"metadata": {"name": "other"}}
        server.refused["DELETE", "secrets"] = (500, "etcdserver: leader changed", "InternalError")
        with pytest.raises(QuotaExceeded):
            driver.create_instance(OFFER, launch_spec(driver, lease_name(), registry=self.REGISTRY))

    def test_a_refusal_while_pods_cannot_be_read_settles_nothing_and_takes_no_secret(
        self, driver: Kubernetes, server: Quota
    ) -> None:
        server.pods["other"] = {"metadata": {"name": "other"}}
        server.refused["GET", "pods"] = (503, "the server is currently unable to handle the request", "")
        name = lease_name()
        with pytest.raises(Unconfirmed, match="exceeded quota"):
            driver.create_instance(OFFER, launch_spec(driver, name, registry=self.REGISTRY))
        assert list(server.secrets) == [name]

    def test_a_refusal_where_pods_may_not_be_read_is_told_and_takes_no_secret(
        self, driver: Kubernetes, server: Quota
    ) -> None:
        server.pods["other"] = {"metadata": {"name": "other"}}
        server.refused["GET", "pods"] = (403, 'User "u" cannot get resource "pods"', "Forbidden")
        name = lease_name()
        with pytest.raises(QuotaExceeded):
            driver.create_instance(OFFER, launch_spec(driver, name, registry=self.REGISTRY))
        assert list(server.secrets) == [name]

    @pytest.mark.parametrize(
        "refusal",
        [
            (403, 'secrets "x" is forbidden: User "u" cannot patch resource "secrets"', "Forbidden"),
            (404, 'secrets "x" not found', "NotFound"),
            (409, "the object has been modified", "Conflict"),
            (429, "too many requests", "TooManyRequests"),
            (500, "etcdserver: request timed out", "InternalError"),
        ],
        ids=lambda refusal: str(refusal[0]),
    )
    def test_a_pod_that_stands_is_the_answer_also_where_its_secret_cannot_be_tied_to_it(
        self, driver: Kubernetes, server: Quota, refusal: tuple[int, str, str]
    ) -> None:
        server.refused["PATCH", "secrets"] = refusal
        spec = launch_spec(driver, lease_name(), registry=self.REGISTRY)
        assert driver.create_instance(OFFER, spec).id == f"ns/{spec.name}"
        assert list(server.pods) == list(server.secrets) == [spec.name]

    def test_a_secret_that_is_not_tied_to_its_pod_goes_with_it_or_is_left_over(
        self, driver: Kubernetes, server: Quota
    ) -> None:
        server.refused["PATCH", "secrets"] = (403, 'User "u" cannot patch resource "secrets"', "Forbidden")
        ours = driver.create_instance(OFFER, launch_spec(driver, lease_name(), registry=self.REGISTRY))
        driver.terminate_instance(ours.id)
        assert server.secrets == server.pods == {}
        taken = driver.create_instance(OFFER, launch_spec(driver, lease_name(), registry=self.REGISTRY))
        assert driver.list_instances(taken.name).leftovers == ()
        server.pods.clear()  # by somebody else
        (left,) = driver.list_instances(taken.name).leftovers
        assert (left.kind, left.name) == ("pull secret", taken.name)
        driver.terminate_instance(left.id)
        assert server.secrets == {}


class TestProxies:
    def test_a_proxys_user_and_password_are_sent_for_commands_too(self, api: FakeApi, tmp_path: Path) -> None:
        asked: list[str] = []

        class Proxy(BaseHTTPRequestHandler):
            def do_CONNECT(self) -> None:
                asked.append(self.headers.get("proxy-authorization", ""))
                self.send_error(502)

            def log_message(self, *_: object) -> None: ...

        with ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as proxy:
            threading.Thread(target=proxy.serve_forever, args=(0.05,), daemon=True).start()
            url = f"http://us%40er:p%3Ass@127.0.0.1:{proxy.server_port}"
            cluster = {"server": "https://api.example:6443", "proxy-url": url}
            driver = Kubernetes(write_kubeconfig(tmp_path / "kubeconfig", cluster, {}))
            with pytest.raises(Transient) as by_request:
                driver.account_id()
            link = PodConnection(lambda: driver._connected().api, "ns", "p", "job", lambda: True)
            with pytest.raises(LinkLost) as by_command:
                link.open("true")
            proxy.shutdown()
        assert [base64.b64decode(one.removeprefix("Basic ")) for one in asked] == [b"us@er:p:ss"] * 2
        assert "p:ss" not in f"{by_request.value}{by_command.value}"

    @pytest.mark.parametrize(
        "url", ["socks5://user:hunter2@proxy.example:1080", "https://user:hunter2@proxy.example:443"]
    )
    def test_a_proxy_that_commands_cannot_go_through_is_refused_before_anything_is_bought(
        self, api: FakeApi, tmp_path: Path, url: str
    ) -> None:
        block = write_kubeconfig(tmp_path / "kubeconfig", {"server": api.url, "proxy-url": url}, {})
        with pytest.raises(InvalidRequest, match="http://") as raised:
            Kubernetes(block).fetch_offers(Requirements())
        assert "hunter2" not in str(raised.value)
        assert api.seen == []


def certificate(folder: Path, name: str) -> tuple[str, str]:
    """Paths of a new certificate, which is its own authority, and of its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    here = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    made = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(utc_now() - timedelta(days=1))
        .not_valid_after(utc_now() + timedelta(days=1))
        .add_extension(here, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    paths = folder / f"{name}.crt", folder / f"{name}.key"
    paths[0].write_bytes(made.public_bytes(serialization.Encoding.PEM))
    plain = serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    paths[1].write_bytes(key.private_bytes(serialization.Encoding.PEM, *plain))
    return str(paths[0]), str(paths[1])


class TestCredentialsThatChange:
    UID = (200, {"metadata": {"uid": "the-uid"}}, {"connection": "close"})

    @pytest.fixture
    def tls(self, tmp_path: Path) -> Iterator[FakeApi]:
        """Asks for a client's certificate and refuses as the API server does: not by TLS, but by 401."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate(tmp_path, "server"))
        context.verify_mode = ssl.CERT_OPTIONAL
        for name in ("old", "new"):
            context.load_verify_locations(certificate(tmp_path, name)[0])
        fake = FakeApi(context)
        fake.answers["GET", "/api/v1/namespaces/kube-system"] = self.UID
        yield fake
        fake.close()

    @pytest.mark.parametrize("how", ["files", "data", "plugin"])
    def test_a_client_certificate_that_was_renewed_is_taken_up_without_a_failed_call(
        self, tls: FakeApi, tmp_path: Path, how: str
    ) -> None:
        path, ca = tmp_path / "kubeconfig", {"server": tls.url, "certificate-authority": str(tmp_path / "server.crt")}

        def issue(name: str) -> KubernetesCredentials:
            texts = [(tmp_path / f"{name}.{kind}").read_text() for kind in ("crt", "key")]
            if how == "files":
                for kind, text in zip(("crt", "key"), texts, strict=True):
                    (tmp_path / f"client.{kind}").write_text(text)
                user: dict[str, Any] = {
                    "client-certificate": str(tmp_path / "client.crt"),
                    "client-key": str(tmp_path / "client.key"),
                }
            elif how == "data":
                data = [base64.b64encode(text.encode()).decode() for text in texts]
                user = dict(zip(("client-certificate-data", "client-key-data"), data, strict=True))
            else:
                version = "client.authentication.k8s.io/v1"
                status = dict(zip(("clientCertificateData", "clientKeyData"), texts, strict=True))
                answer = {"apiVersion": version, "kind": "ExecCredential", "status": status}
                (tmp_path / "answer.json").write_text(json.dumps(answer))
                plugin = {"command": "cat", "args": [str(tmp_path / "answer.json")], "apiVersion": version}
                user = {"exec": {**plugin, "interactiveMode": "Never"}}
            return write_kubeconfig(path, ca, user)

        driver = Kubernetes(issue("old"))
        tls.knows = lambda _, name: name == "old"
        assert driver.account_id() == "the-uid"
        issue("new")
        tls.knows = lambda _, name: name == "new"
        assert driver.account_id() == "the-uid"
        assert len(tls.seen) == 3

    def test_a_cluster_with_a_new_certificate_is_believed_when_the_kubeconfig_says_so(
        self, tls: FakeApi, tmp_path: Path
    ) -> None:
        path, server = tmp_path / "kubeconfig", tmp_path / "server.crt"
        driver = Kubernetes(write_kubeconfig(path, {"server": tls.url, "certificate-authority": str(server)}, {}))
        assert driver.account_id() == "the-uid"
        old = server.read_text()
        assert isinstance(tls.server.socket, ssl.SSLSocket)
        tls.server.socket.context.load_cert_chain(*certificate(tmp_path, "server"))
        assert driver.account_id() == "the-uid"
        server.write_text(old)
        with pytest.raises(InvalidRequest, match="is not the one that the kubeconfig trusts"):
            Kubernetes(driver.credentials).account_id()

    def test_credentials_that_are_refused_and_the_same_as_before_are_sent_once(
        self, api: FakeApi, faked: Kubernetes
    ) -> None:
        api.answers["GET", "/api/v1/namespaces/kube-system"] = self.UID
        api.knows = lambda *_: False
        with pytest.raises(AuthFailed):
            faked.account_id()
        assert len(api.seen) == 1

    def test_a_kubeconfig_that_is_half_written_is_an_error_of_ours_and_read_again_by_the_next_call(
        self, tls: FakeApi, tmp_path: Path
    ) -> None:
        paths = {
            f"client-{kind}": str(tmp_path / f"old.{end}") for kind, end in (("certificate", "crt"), ("key", "key"))
        }
        ca = {"server": tls.url, "certificate-authority": str(tmp_path / "server.crt")}
        block = write_kubeconfig(tmp_path / "kubeconfig", ca, paths)
        driver = Kubernetes(block)
        tls.knows = lambda _, name: name == "old"
        assert driver.account_id() == "the-uid"
        tls.knows = lambda _, name: name == "new"
        (tmp_path / "old.crt").write_text((tmp_path / "new.crt").read_text())  # its key is still to come
        with pytest.raises(AuthFailed, match="refuses these credentials"):
            driver.account_id()
        with pytest.raises(AuthFailed, match="cannot be used on this worker"):
            Kubernetes(block).account_id()
        (tmp_path / "old.key").write_text((tmp_path / "new.key").read_text())
        assert driver.account_id() == "the-uid"

    def test_commands_on_a_pod_use_the_new_credentials_too(
        self, api: FakeApi, faked: Kubernetes, tmp_path: Path
    ) -> None:
        name = lease_name()
        pod = pod_status(
            phase="Running",
            containerStatuses=[{"name": "job", **READY}],
            conditions=[{"type": "Ready", "status": "True"}],
        )
        pod["metadata"] = {"name": name, "namespace": "ns"}
        path = f"/api/v1/namespaces/ns/pods/{name}"
        api.answers = {("GET", path): (200, pod, {}), ("GET", f"{path}/exec"): (500, {"message": "not yet"}, {})}
        link = faked.open_channel(faked.get_instance(f"ns/{name}"))
        write_kubeconfig(tmp_path / "kubeconfig", {"server": api.url}, {"token": "renewed"})
        api.knows = lambda authorization, _: authorization == "Bearer renewed"
        assert link.is_alive()
        with pytest.raises(NotReady, match="not yet"):
            link.open("true")


class TestOffersOfNodes:
    def offers(
        self, api: FakeApi, faked: Kubernetes, nodes: list[Any], requirements: Requirements, **block: Any
    ) -> list[Offer]:
        api.answers[("GET", "/api/v1/nodes")] = (200, {"items": nodes}, {})
        api.answers[("GET", "/api/v1/pods")] = (200, {"items": []}, {})
        faked.credentials = faked.credentials.model_copy(update=block)
        return faked.fetch_offers(requirements)

    def test_nodes_of_one_shape_are_one_offer_and_it_tells_of_the_emptiest(
        self, api: FakeApi, faked: Kubernetes
    ) -> None:
        gpu = {"nvidia.com/gpu.product": "NVIDIA-L4", "nvidia.com/gpu.memory": "23034"}
        nodes = [node({"nvidia.com/gpu": "4"}, gpu, name=f"n{number}") for number in range(3)]
        nodes[1]["spec"]["unschedulable"] = True
        other = node({"nvidia.com/gpu": "8"}, gpu, name="big")
        offers = self.offers(api, faked, [*nodes, other], Requirements(gpu=parse_gpu("L4:2")))
        assert sorted(offer.gpu for offer in offers) == ["L4:2", "L4:2"]
        assert all(offer.availability is Availability.AVAILABLE for offer in offers)

    def test_whole_gpus_slices_and_shares_of_the_same_kind_are_offers_of_their_own(
        self, api: FakeApi, faked: Kubernetes
    ) -> None:
        kind = {"cloud.google.com/gke-accelerator": "nvidia-tesla-a100"}
        one = {"nvidia.com/gpu": "7"}
        nodes = [
            node(one, kind, name="whole"),
            node(one, {**kind, GKE_MIG: "1g.5gb"}, name="sliced"),
            node(one, {**kind, GKE_SHARING: "mps"}, name="shared"),
        ]
        offers = self.offers(api, faked, nodes, Requirements(gpu=parse_gpu("..")))
        assert sorted(str(offer.gpu_name) for offer in offers) == ["A100", "A100-MIG-1g.5gb", "A100-SHARED"]
        by_name = {offer.gpu_name: offer for offer in offers}
        assert by_name["A100-MIG-1g.5gb"].raw["node_selector"][GKE_MIG] == "1g.5gb"
        assert by_name["A100-SHARED"].raw["node_selector"][GKE_SHARING] == "mps"
        (whole,) = self.offers(api, faked, nodes, Requirements(gpu=parse_gpu("A100")))
        assert whole.gpu_name == "A100"

    def test_a_pod_for_whole_gpus_or_on_demand_does_not_stand_on_a_node_that_is_less(
        self, api: FakeApi, faked: Kubernetes
    ) -> None:
        kind = {"cloud.google.com/gke-accelerator": "nvidia-tesla-a100"}
        nodes = [node({"nvidia.com/gpu": "7"}, kind), node({"nvidia.com/gpu": "7"}, {**kind, GKE_MIG: "1g.5gb"})]
        spec = launch_spec(faked, lease_name())
        for offer in self.offers(api, faked, nodes, Requirements(gpu=parse_gpu(".."))):
            affinity = _pod(offer, spec, KubernetesOptions(), faked.credentials)["spec"]["affinity"]["nodeAffinity"]
            (term,) = affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
            assert {one["operator"] for one in term["matchExpressions"]} == {"DoesNotExist"}
            absent = {one["key"] for one in term["matchExpressions"]}
            assert {"cloud.google.com/gke-spot", GKE_SHARING} <= absent
            assert (GKE_MIG in absent) is (offer.gpu_name == "A100")

    def test_the_fewest_gpus_that_do_are_offered(self, api: FakeApi, faked: Kubernetes) -> None:
        gpu = {"nvidia.com/gpu.product": "NVIDIA-L4", "nvidia.com/gpu.memory": "23034"}
        nodes = [node({"nvidia.com/gpu": "8"}, gpu)]
        for text, count in (("L4:2..4", 2), ("L4", 1), ("L4:total=90GB", 4)):
            try:
                asked = Requirements(gpu=parse_gpu(text))
            except ValueError:
                continue  # not how totals are written
            assert [offer.gpu_count for offer in self.offers(api, faked, nodes, asked)] == [count]

    def test_prices_come_from_the_block_by_node_or_by_gpu(self, api: FakeApi, faked: Kubernetes) -> None:
        labels = {"nvidia.com/gpu.product": "NVIDIA-L4", "node.kubernetes.io/instance-type": "g2-48"}
        nodes = [node({"nvidia.com/gpu": "4"}, labels)]
        asked = Requirements(gpu=parse_gpu("L4:2"))
        (free,) = self.offers(api, faked, nodes, asked)
        (by_gpu,) = self.offers(api, faked, nodes, asked, price_per_gpu_hour={"l4": 0.7})
        (by_node,) = self.offers(api, faked, nodes, asked, node_price_per_hour={"g2-48": 4.0})
        assert (free.price, by_gpu.price, by_node.price) == (0, 1.4, 2.0)
        assert by_node.instance_type == "g2-48"

    def test_spot_nodes_are_spot_offers(self, api: FakeApi, faked: Kubernetes) -> None:
        nodes = [node(labels={"cloud.google.com/gke-spot": "true"})]
        assert self.offers(api, faked, nodes, Requirements()) == []
        (offer,) = self.offers(api, faked, nodes, Requirements(spot=Spot.SPOT))
        assert offer.spot

    def test_full_nodes_are_worth_a_try_where_an_autoscaler_has_time(self, api: FakeApi, faked: Kubernetes) -> None:
        nodes = [node({"nvidia.com/gpu": "1"}, {"nvidia.com/gpu.product": "NVIDIA-L4"})]
        asked = Requirements(gpu=parse_gpu("L4"))
        taken = {"spec": {"nodeName": "n1", "containers": [{"resources": {"limits": {"nvidia.com/gpu": "1"}}}]}}
        self.offers(api, faked, nodes, asked)
        api.answers[("GET", "/api/v1/pods")] = (200, {"items": [taken]}, {})
        (full,) = faked.fetch_offers(asked)
        assert full.availability is Availability.UNAVAILABLE
        faked.credentials = faked.credentials.model_copy(update={"scheduling_timeout_s": 300.0})
        (patient,) = faked.fetch_offers(asked)
        assert patient.availability is Availability.UNKNOWN

    def test_a_selector_of_the_block_leaves_other_nodes_out(self, api: FakeApi, faked: Kubernetes) -> None:
        nodes = [node(labels={"pool": "gpu"}), node(name="n2")]
        (offer,) = self.offers(api, faked, nodes, Requirements(), node_selector={"pool": "gpu"})
        assert offer.gpu == "none"

    def test_a_job_that_asks_for_more_than_is_free_gets_no_offer(self, api: FakeApi, faked: Kubernetes) -> None:
        assert self.offers(api, faked, [node()], Requirements(cpu=9)) == []
        assert self.offers(api, faked, [node()], Requirements(memory_gb=65)) == []
        assert self.offers(api, faked, [node()], Requirements(disk_gb=101)) == []
        assert len(self.offers(api, faked, [node()], Requirements(cpu=8, memory_gb=64, disk_gb=100))) == 1


class TestBlock:
    def test_a_mount_is_exactly_one_thing(self) -> None:
        with pytest.raises(ValidationError, match="exactly one"):
            KubernetesMount(path="/x")
        with pytest.raises(ValidationError, match="exactly one"):
            KubernetesMount(path="/x", claim="a", secret="b")

    def test_the_blocks_of_prefect_kubernetes_are_used_as_they_are(self, api: FakeApi) -> None:
        from prefect_kubernetes.credentials import KubernetesClusterConfig
        from prefect_kubernetes.credentials import KubernetesCredentials as Theirs

        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "c", "cluster": {"server": api.url}}],
            "users": [{"name": "u", "user": {"token": "t"}}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        }
        saved = KubernetesClusterConfig(config=config, context_name="x")
        api.answers[("GET", "/api/v1/namespaces/kube-system")] = (200, {"metadata": {"uid": "the-uid"}}, {})
        for block in (
            KubernetesCredentials(cluster_config=saved),
            KubernetesCredentials(kubernetes=Theirs(cluster_config=saved)),
        ):
            assert Kubernetes(block).account_id() == "the-uid"


def test_the_same_spec_is_the_same_pod() -> None:
    name = lease_name()
    spec = LaunchSpec(name=name, deadline=utc_now() + timedelta(hours=1), client_public_key="k", tags={"a": "b"})
    block = KubernetesCredentials()
    one, other = (_pod(OFFER, spec, KubernetesOptions(), block) for _ in range(2))
    for made in (one, other):
        made["spec"].pop("activeDeadlineSeconds")
    assert json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def test_a_pod_is_not_moved_by_who_tidies_up_nodes_unless_the_job_says_so() -> None:
    spec = LaunchSpec(name=lease_name(), deadline=utc_now() + timedelta(hours=1), client_public_key="k")
    evict = "cluster-autoscaler.kubernetes.io/safe-to-evict"
    notes = _pod(OFFER, spec, KubernetesOptions(), KubernetesCredentials())["metadata"]["annotations"]
    assert notes.items() >= {"karpenter.sh/do-not-disrupt": "true", evict: "false"}.items()
    options = KubernetesOptions(annotations={evict: "true"})
    assert _pod(OFFER, spec, options, KubernetesCredentials())["metadata"]["annotations"][evict] == "true"
