"""Commands on a pod of the real cluster."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip("kubernetes", reason="needs the extra kubernetes")

from prefect_gpu.providers.core.errors import (
    LinkLost,
    NotFound,
    NotReady,
)
from prefect_gpu.providers.core.models import (
    Instance,
    InstanceState,
)
from prefect_gpu.providers.kubernetes.driver import Kubernetes
from tests.conformance import lease_name
from tests.fakes.kubernetes import Cluster
from tests.providers.kubernetes.on_cluster import create, run


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
