"""Whatever an SSH server sends, it costs little memory and little time, and what it did is said in one clean line."""

from __future__ import annotations

import itertools
import socket
import struct
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefect_gpu.providers.core.errors import LinkLost, LoginRefused, NotReady
from prefect_gpu.providers.core.machine import channels
from prefect_gpu.providers.core.machine.shared import Shared
from prefect_gpu.providers.core.machine.ssh import connect
from prefect_gpu.providers.core.models import SshEndpoint
from tests.fakes.lawless_sshd import CLIENT, GREETING, HOST, lawless, listening, send_without_end


def not_ready(endpoint: SshEndpoint, timeout_s: float = 5.0) -> str:
    began = time.monotonic()
    with pytest.raises(NotReady) as caught:
        connect(endpoint, CLIENT, HOST.public, timeout_s=timeout_s)
    assert time.monotonic() - began < timeout_s + 10
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 400
    return caught.value.message


@pytest.mark.parametrize("line", [b"x" * 65536, b"banner\r\n" * 8192], ids=["one line", "many lines"])
def test_a_banner_without_end_is_cut_off(line: bytes) -> None:
    sent = [0]

    def flood(client: socket.socket) -> None:
        while True:
            sent[0] += client.send(line)

    with listening(flood) as endpoint:
        assert "not as an SSH server" in not_ready(endpoint)
    # What the kernel's own buffers hold comes on top; without a bound it is all that 5 s can carry.
    assert sent[0] < 40 * 2**20


@pytest.mark.parametrize("size", [0xFFFF_FFFC, 0x7FFF_FFFC, 400_004])
def test_a_packet_that_is_announced_too_long_ends_the_link_at_once(size: int) -> None:
    def answer(client: socket.socket) -> None:
        client.sendall(GREETING + struct.pack(">IB", size, 10) + b"\x14" * 4096)
        time.sleep(20)

    with listening(answer) as endpoint:
        began = time.monotonic()
        assert "announced a packet of" in not_ready(endpoint, 15.0)
        assert time.monotonic() - began < 10


def test_packets_without_end_before_the_login_are_cut_off() -> None:
    ignored = b"\x02" + struct.pack(">I", 30_000) + b"x" * 30_000  # SSH_MSG_IGNORE
    padding = 8 - (len(ignored) + 5) % 8 + 8
    packet = struct.pack(">IB", len(ignored) + padding + 1, padding) + ignored + b"\0" * padding

    def flood(client: socket.socket) -> None:
        client.sendall(GREETING)
        for _ in itertools.count():
            client.sendall(packet)

    with listening(flood) as endpoint:
        assert "before the login" in not_ready(endpoint, 10.0)


def test_what_a_server_says_of_itself_reaches_a_message_without_its_control_characters() -> None:
    with listening(
        lambda client: client.sendall(b"SSH-1.5-\x1b]52;c;aGk=\x07\x1b[2J" + b"A" * 5000 + b"\r\n")
    ) as endpoint:
        assert "\x1b" not in not_ready(endpoint)


@settings(max_examples=25, deadline=None)
@given(st.binary(max_size=600), st.booleans())
def test_any_bytes_instead_of_a_server_are_not_ready(noise: bytes, greets: bool) -> None:
    with listening(lambda client: client.sendall((GREETING if greets else b"") + noise)) as endpoint:
        not_ready(endpoint, 3.0)


# --- after the login, by a server that keeps to no rule ---------------------------------------------------------------


def test_data_beyond_the_window_that_was_given_ends_the_link_and_is_told() -> None:
    sent = [0]

    with lawless(lambda channel: send_without_end(channel, sent)) as endpoint:
        connection = connect(endpoint, CLIENT, HOST.public)
        channel = connection.open("anything")
        with pytest.raises(LinkLost, match="it sent more than it was asked for"):
            channel.exit_status(30.0)
        assert sent[0] < 30 * 2**20
        connection.close()


def test_a_server_that_never_answers_a_command_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channels, "OPEN_WITHIN_S", 1.0)

    def swallow(channel: Any) -> None:
        # Only its answers are lost: a server that also fell over when the channel is closed would lose the whole link.
        channel.transport = SimpleNamespace(
            _send_user_message=lambda _message: None, _unlink_channel=channel.transport._unlink_channel
        )

    with lawless(swallow) as endpoint:
        connection = connect(endpoint, CLIENT, HOST.public)
        began = time.monotonic()
        with pytest.raises(LinkLost, match="opened no channel"):
            connection.open("anything")
        assert time.monotonic() - began < 10
        assert connection.is_alive()
        connection.close()


def test_what_a_server_wants_beside_the_key_is_told_in_a_few_clean_words() -> None:
    with lawless(lambda _: None, second_factor="\x1b[2J" + "keyboard," * 5000) as endpoint:
        with pytest.raises(LoginRefused, match="wants more than a key") as caught:
            connect(endpoint, CLIENT, HOST.public)
        assert caught.value.message.isprintable()
        assert len(caught.value.message) < 400


def test_an_order_of_a_machine_that_is_slow_and_long_comes_whole() -> None:
    def talk(channel: Any) -> None:
        def send() -> None:
            for _ in range(300):
                channel.sendall(b"z" * 40_000)
            channel.send_exit_status(0)
            channel.close()

        threading.Timer(0.1, send).start()

    with lawless(talk) as endpoint:
        connection = connect(endpoint, CLIENT, HOST.public)
        channel = connection.open("anything")
        time.sleep(0.5)  # the window is full meanwhile
        got = 0
        while data := channel.recv(65536):
            got += len(data)
        assert (got, channel.exit_status(5.0)) == (12_000_000, 0)
        connection.close()


# --- what is shared ---------------------------------------------------------------------------------------------------


def test_many_who_want_the_same_share_one_and_the_last_closes_it() -> None:
    opened, closed = [], []
    shared: Shared[object] = Shared(lambda thing: thing not in closed, closed.append)
    may_open = threading.Event()

    def open_it() -> object:
        may_open.wait(10)
        opened.append(object())
        return opened[-1]

    got: list[Any] = []
    threads = [
        threading.Thread(target=lambda: got.append(shared.take("key", open_it, time.monotonic() + 10)))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    may_open.set()
    for thread in threads:
        thread.join()
    assert len(opened) == 1
    assert {id(thing) for thing, _ in got} == {id(opened[0])}
    for _, let_go in got[:-1]:
        let_go()
        let_go()  # twice is once
    assert closed == []
    got[-1][1]()
    assert closed == opened
    shared.take("key", open_it, time.monotonic() + 10)
    assert len(opened) == 2


def test_who_waits_for_what_cannot_be_opened_is_told_the_same_and_the_next_tries_again() -> None:
    shared: Shared[int] = Shared(lambda _: True, lambda _: None)
    for _ in range(2):
        with pytest.raises(NotReady, match="no"):
            shared.take("key", lambda: (_ for _ in ()).throw(NotReady("no")), time.monotonic() + 1)
    thing, _ = shared.take("key", lambda: 7, time.monotonic() + 1)
    assert thing == 7


def test_who_cannot_wait_so_long_is_told() -> None:
    shared: Shared[int] = Shared(lambda _: True, lambda _: None)
    started, may_open = threading.Event(), threading.Event()

    def slowly() -> int:
        started.set()
        may_open.wait(10)
        return 1

    first = threading.Thread(target=lambda: shared.take("key", slowly, time.monotonic() + 10))
    first.start()
    started.wait(10)
    with pytest.raises(TimeoutError):
        shared.take("key", slowly, time.monotonic() + 0.1)
    may_open.set()
    first.join()
