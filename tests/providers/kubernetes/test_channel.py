"""A command's bytes in both directions at once, and how much of them is kept whatever the other side sends."""

from __future__ import annotations

import hashlib
import os
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

pytest.importorskip("kubernetes", reason="needs the extra kubernetes")

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode
from websockets.sync.server import ServerConnection

from prefect_gpu.providers.core.errors import InstanceFailed, LinkLost
from prefect_gpu.providers.core.machine.check import check
from prefect_gpu.providers.core.machine.jobs import Machine
from prefect_gpu.providers.core.machine.upload import upload
from prefect_gpu.providers.core.models import JobSpec, Offer
from prefect_gpu.providers.kubernetes import channel as module
from prefect_gpu.providers.kubernetes.connection import PodConnection
from tests.fakes.kubernetes_exec import SUCCESS, exit_status, opened, pod, read_all, wired

STATUSES = (
    b"[" * 40_000,
    b"{}",
    b"null",
    b'{"status": 1, "details": [1]}',
    b'{"details": {"causes": [1, {"reason": "ExitCode", "message": "-1"}]}}',
    b'{"details": {"causes": [{"reason": "ExitCode", "message": 5}]}}',
    b'{"details": {"causes": [{"reason": "ExitCode", "message": "99999999999999999999"}]}, "message": {}}',
)


@pytest.fixture(scope="module")
def link() -> Iterator[PodConnection]:
    with pod() as found:
        yield found


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """The watchdog's patience, thirty times shorter."""
    for name in ("PING_S", "SILENCE_S", "DOUBT_S"):
        monkeypatch.setattr(module, name, getattr(module, name) / 30)


class TestBothDirections:
    def test_a_writer_does_not_wait_for_a_reader_in_another_thread(self, link: PodConnection) -> None:
        channel = opened(link, "cat")
        came: list[bytes] = []
        reader = threading.Thread(target=lambda: came.append(channel.recv(99)))
        reader.start()
        time.sleep(0.2)  # it waits in recv
        began = time.monotonic()
        channel.sendall(b"hello")
        reader.join(3.5)  # a reader that holds the socket lets go after a ping, 5 s
        assert came == [b"hello"]
        assert time.monotonic() - began < 3.5
        channel.close()

    def test_questions_and_answers_take_turns_without_a_pause(self, link: PodConnection) -> None:
        channel = opened(link, "cat")
        told = threading.Semaphore(0)
        answers = bytearray()

        def read() -> None:
            while data := channel.recv(99):
                answers.extend(data)
                told.release()

        reader = threading.Thread(target=read)
        reader.start()
        began = time.monotonic()
        for number in range(200):
            channel.sendall(b"%d\n" % number)
            assert told.acquire(timeout=4)
        assert time.monotonic() - began < 20
        channel.shutdown_write()
        reader.join(5)
        assert bytes(answers) == b"".join(b"%d\n" % number for number in range(200))
        assert channel.exit_status(5) == 0
        channel.close()

    def test_much_goes_both_ways_at_once_and_every_byte_arrives(self, link: PodConnection) -> None:
        data = os.urandom(24_000_000)
        channel = opened(link, "cat")
        digest = hashlib.sha256()

        def read() -> None:
            while piece := channel.recv(1 << 18):
                digest.update(piece)

        reader = threading.Thread(target=read)
        reader.start()
        channel.sendall(data)
        channel.shutdown_write()
        reader.join(60)
        assert channel.exit_status(5) == 0
        assert digest.digest() == hashlib.sha256(data).digest()
        channel.close()

    def test_who_writes_first_and_reads_then_may_write_some_megabytes(self, link: PodConnection) -> None:
        data = os.urandom(6_000_000)
        channel = opened(link, "cat")
        channel.sendall(data)
        channel.shutdown_write()
        assert read_all(channel) == data
        channel.close()

    def test_closing_wakes_reader_and_writer(self, link: PodConnection) -> None:
        channel = opened(link, "sleep 60")
        ended: list[str] = []

        def until_lost(call: Callable[[], object]) -> None:
            try:
                call()
            except LinkLost as lost:
                ended.append(lost.message)

        threads = [
            threading.Thread(target=until_lost, args=(call,))
            for call in (lambda: channel.recv(9), lambda: channel.sendall(bytes(64 << 20)))
        ]
        for thread in threads:
            thread.start()
        time.sleep(0.3)
        began = time.monotonic()
        channel.close()
        for thread in threads:
            thread.join(4)
        assert time.monotonic() - began < 4
        assert ended == ["the channel to p was closed"] * 2

    def test_a_worker_with_more_than_1024_open_files_reads_on(self, link: PodConnection) -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if hard < 1400:
            pytest.skip("this machine lets nobody open 1,400 files")
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 1400), hard))
        try:
            with ExitStack() as many:
                for _ in range(1100):
                    many.enter_context(socket.socket())
                channel = opened(link, "cat")
                channel.sendall(b"x")
                assert channel.recv(9) == b"x"
                channel.close()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class TestBounds:
    def test_output_without_end_is_not_kept_while_stdin_is_sent(
        self, link: PodConnection, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "STALL_S", 0.5)
        monkeypatch.setattr(module, "PING_S", 0.2)
        channel = opened(link, "exec yes")  # it reads nothing and writes without end
        with pytest.raises(LinkLost, match="took nothing of its stdin"):
            channel.sendall(bytes(64 << 20))
        assert len(channel._out) <= module.WHILE_SENDING + (1 << 18)
        channel.close()

    def test_output_that_nobody_reads_is_kept_up_to_a_megabyte(self, link: PodConnection) -> None:
        channel = opened(link, "exec yes")
        with pytest.raises(LinkLost, match="no exit status"):
            channel.exit_status(1.0)
        assert len(channel._out) <= module.UNREAD_KEPT + (1 << 18)
        assert channel.recv(4) == b"y\ny\n"
        channel.close()

    def test_output_byte_by_byte_costs_no_more_than_in_one_piece(self) -> None:
        frames = Frame(Opcode.BINARY, b"\1x").serialize(mask=False) * 100_000

        def drip(peer: ServerConnection) -> None:
            for _ in range(25):
                peer.socket.sendall(frames)
            peer.send(SUCCESS)

        with pod(drip) as link:
            channel = opened(link, "")
            with pytest.raises(LinkLost, match="no exit status"):
                channel.exit_status(2.0)
            assert type(channel._out) is bytearray
            assert len(channel._out) <= module.UNREAD_KEPT + (1 << 18)
            channel.close()

    @pytest.mark.parametrize("size", [5 << 20, 1 << 40])
    def test_a_frame_larger_than_any_kubelets_ends_the_link_and_is_not_awaited(self, size: int) -> None:
        def lie(peer: ServerConnection) -> None:
            peer.socket.sendall(b"\x82\x7f" + size.to_bytes(8, "big") + b"\1" + bytes(1 << 16))
            time.sleep(0.2)

        with pod(lie) as link, pytest.raises(LinkLost, match="does not speak the exec protocol"):
            read_all(opened(link, ""))

    def test_a_status_without_end_is_cut(self) -> None:
        def chatter(peer: ServerConnection) -> None:
            peer.send(b"\3" + b"x" * 1_000_000)

        with pod(chatter) as link:
            channel = opened(link, "")
            assert channel.recv(9) == b""
            assert len(channel._status or b"") == module.STATUS_KEPT
            with pytest.raises(LinkLost, match="not a status"):
                channel.exit_status(1)
            channel.close()

    def test_stderr_without_end_is_cut(self, link: PodConnection) -> None:
        channel = opened(link, "head -c 3000000 /dev/zero | tr '\\0' e >&2")
        channel.shutdown_write()
        assert channel.exit_status(10) == 0
        assert channel.error_text() == "e" * module.STDERR_KEPT
        channel.close()


class TestFrames:
    def test_a_message_in_pieces_is_one_stream(self) -> None:
        def speak(peer: ServerConnection) -> None:
            peer.send(iter([b"\1he", b"\1l", b"", b"\2o"]))  # within a message only its first byte names the stream
            peer.send(iter([exit_status(7)[:9], exit_status(7)[9:]]))

        with pod(speak) as link:
            channel = opened(link, "")
            assert read_all(channel) == b"he\1l\2o"
            assert channel.exit_status(1) == 7
            channel.close()

    def test_what_came_with_the_answer_to_the_upgrade_is_read(self) -> None:
        frames = [Frame(Opcode.BINARY, data).serialize(mask=False) for data in (b"\1early", exit_status(3))]
        link, far = wired(with_answer=b"".join(frames))
        channel = module.PodChannel(link, "p", b"", lambda: True)
        assert read_all(channel) == b"early"
        assert channel.exit_status(1) == 3
        channel.close()
        far.close()

    @settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(
        st.lists(
            st.binary(max_size=80)
            | st.builds(lambda head, data: bytes([head, len(data)]) + data, st.integers(0, 255), st.binary(max_size=60))
            | st.integers(0, len(STATUSES) - 1).map(
                lambda which: Frame(Opcode.BINARY, b"\3" + STATUSES[which]).serialize(mask=False)
            ),
            max_size=12,
        )
    )
    def test_frames_of_every_shape_end_in_bytes_or_a_lost_link(self, wire: list[bytes]) -> None:
        link, far = wired()
        channel = None
        far.sendall(b"".join(wire))
        far.shutdown(socket.SHUT_WR)
        try:
            channel = module.PodChannel(link, "p", b"true", lambda: True)
            read_all(channel)
            assert 0 <= channel.exit_status(1) < 256
        except LinkLost:
            pass
        finally:
            if channel is not None:
                channel.close()
            far.close()


@pytest.mark.usefixtures("hasty")
class TestTheWatchdog:
    def test_a_pause_longer_than_its_patience_is_not_a_lost_link(self, link: PodConnection) -> None:
        channel = opened(link, "sleep 1.5; echo late")
        channel.shutdown_write()
        assert channel.recv(99) == b"late\n"
        channel.close()

    def test_a_frozen_link_is_noticed(self) -> None:
        link, far = wired()  # a peer that never answers
        channel = module.PodChannel(link, "p", b"true", lambda: False)
        began = time.monotonic()
        with pytest.raises(LinkLost, match="does not answer"):
            channel.recv(9)
        assert time.monotonic() - began < 10
        channel.close()
        far.close()

    def test_a_frozen_link_without_stdin_on_its_way_is_noticed_and_nobody_asked(self) -> None:
        link, far = wired()
        channel = module.PodChannel(link, "p", b"true", lambda: True)
        channel._sent_since_pong = 0
        with pytest.raises(LinkLost, match="no answer for"):
            channel.recv(9)
        channel.close()
        far.close()

    def test_stdin_that_waits_behind_a_slow_reader_is_no_lost_link_while_the_pod_runs(self) -> None:
        asked: list[bool] = []

        def slow(peer: ServerConnection) -> None:
            time.sleep(1.5)
            for _ in peer:
                pass

        with pod(slow, is_running=lambda: asked.append(True) or True) as link:
            channel = opened(link, "")
            channel._link._protocol.send_ping = lambda data: None  # type: ignore[method-assign] - it stands behind the stdin
            sender = threading.Timer(1.0, channel.close)
            sender.start()
            with pytest.raises(LinkLost, match="was closed"):
                channel.recv(9)
            assert asked, "the API was not asked about the pod"

    def test_a_pod_that_is_gone_ends_the_wait(self) -> None:
        with pod(lambda _: time.sleep(2), is_running=lambda: False) as link:
            channel = opened(link, "")
            channel._link._protocol.send_ping = lambda data: None  # type: ignore[method-assign] - see above
            with pytest.raises(LinkLost, match="the pod does not answer"):
                channel.recv(9)
            channel.close()


@pytest.mark.parametrize("is_cut", [False, True])
def test_what_an_image_lacks_is_said_to_the_check_and_the_job_and_no_machine_is_blamed(
    tmp_path: Path, is_cut: bool
) -> None:
    def lacks(peer: ServerConnection) -> None:
        mark = bytes(peer.recv()).split()[1]  # type: ignore[arg-type] - bytes
        peer.send(b"\2" + 2 * mark + b"dd")
        if not is_cut:
            peer.send(exit_status(255))
        peer.close()

    (tmp_path / "a").touch()
    offer = Offer(provider="kubernetes", instance_type="n", region="", price=0.0, gpu_name="H100", gpu_count=1)
    with pod(lacks, image="team/none:1") as link:
        machine = Machine(lambda: link)
        for asked in (
            lambda: check(link, offer),
            lambda: machine.start(JobSpec(id="x.1", command="true")),
            lambda: upload(machine, "x.1", ["a"], tmp_path),
        ):
            with pytest.raises(InstanceFailed) as refused:
                asked()
            assert refused.value.message.startswith("the image team/none:1 lacks dd, without which")
            assert (refused.value.category, refused.value.reach) == ("image", "offer")
