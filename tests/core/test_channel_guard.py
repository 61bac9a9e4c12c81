"""Nothing is sent on a channel after its end, whoever ends it: OpenSSH would end the whole connection."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import paramiko
import pytest

from prefect_gpu.providers.core.machine.channel_guard import ended_in_order, in_order

DATA, EOF, CLOSE = 94, 96, 97


class Wire:
    """In the place of paramiko's transport: data waits at the gate, as on a machine that is busy with something else."""

    active = True

    def __init__(self) -> None:
        self.sent: list[int] = []
        self.at_the_gate = threading.Event()
        self.gate = threading.Event()

    def _send_user_message(self, message: Any) -> None:
        kind = message.asbytes()[0]
        if kind == DATA:
            self.at_the_gate.set()
            self.gate.wait(10)
        self.sent.append(kind)

    def _unlink_channel(self, number: int) -> None: ...

    def get_log_channel(self) -> str:
        return "test"

    def _sanitize_packet_size(self, size: int) -> int:
        return size


@pytest.fixture
def wire() -> Wire:
    return Wire()


@pytest.fixture
def channel(wire: Wire) -> Any:
    made: Any = paramiko.Channel(0)
    made._set_transport(wire)
    made._set_window(2**20, 2**15)
    made._set_remote_channel(5, 2**20, 2**15)
    return in_order(made)


def ended_by_the_machine(channel: Any) -> None:
    ended_in_order(paramiko.Channel._handle_close)(channel, paramiko.Message())


ENDS = [lambda channel: channel.close(), ended_by_the_machine]


@pytest.mark.parametrize("end", ENDS)
def test_what_is_being_sent_goes_before_the_end(channel: Any, wire: Wire, end: Callable[[Any], None]) -> None:
    sending = threading.Thread(target=channel.send, args=(b"data",))
    sending.start()
    assert wire.at_the_gate.wait(10)
    ending = threading.Thread(target=end, args=(channel,))
    ending.start()
    time.sleep(0.1)
    assert wire.sent == []
    wire.gate.set()
    sending.join(10)
    ending.join(10)
    assert wire.sent == [DATA, EOF, CLOSE]


@pytest.mark.parametrize("end", ENDS)
def test_after_the_end_nothing_is_sent(channel: Any, wire: Wire, end: Callable[[Any], None]) -> None:
    wire.gate.set()
    end(channel)
    with pytest.raises(OSError, match="closed"):
        channel.send(b"late")
    with pytest.raises(OSError, match="closed"):
        channel.sendall(b"late")
    channel.shutdown_write()
    channel.close()
    assert wire.sent == [EOF, CLOSE]


def test_who_waits_for_room_when_the_channel_ends_sends_nothing(channel: Any, wire: Wire) -> None:
    wire.gate.set()
    channel.send(b"x" * 2**20)
    while channel.out_window_size:
        channel.send(b"x" * 2**15)
    sent: list[int] = []
    waiting = threading.Thread(target=lambda: sent.append(channel.send(b"more")))
    waiting.start()
    time.sleep(0.1)
    channel.close()
    waiting.join(10)
    assert sent == [0]
    assert wire.sent[-2:] == [EOF, CLOSE]
