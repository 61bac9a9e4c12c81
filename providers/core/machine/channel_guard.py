"""What paramiko's channels lack: a bound on what comes and is not read, and that nothing goes after a channel's end.

A sender of paramiko's looks whether the channel is open, and sends only then; where the channel ends between the two, OpenSSH is sent
data for a channel that it does not know any more, and ends the whole connection: behind a jump host that is all machines' at once.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Final

from prefect_gpu.providers.core.machine.channels import WINDOW_BYTES
from prefect_gpu.providers.core.machine.link import TooMuch

_UNREAD_BYTES: Final = 2 * WINDOW_BYTES
_LOCK: Final = "prefect_gpu_order"

Handler = Callable[[Any, Any], Any]


def within_bounds(feed: Handler) -> Handler:
    """A handler of SSH_MSG_CHANNEL_DATA (RFC 4254) that takes no more than the window that was given: paramiko keeps whatever comes."""

    def feed_if_it_fits(channel: Any, message: Any) -> None:
        if len(channel.in_buffer) + len(channel.in_stderr_buffer) > _UNREAD_BYTES:
            raise TooMuch("it sent more than it was asked for")
        feed(channel, message)

    return feed_if_it_fits


def in_order(channel: Any) -> Any:
    """The channel, whose data is sent before its end or not at all."""
    lock = threading.Lock()
    close, shutdown = channel.close, channel.shutdown

    def send(data: bytes, message: Any) -> int:
        with channel.lock:
            if channel.closed:
                raise OSError("the channel is closed")
            size: int = channel._wait_for_send_window(len(data))  # noqa: SLF001 - as paramiko's own, which sends unlocked
            if size == 0:
                return 0
            message.add_string(data[:size])
        with lock:  # not the channel's own: whoever is needed for new keys may wait for that
            if channel.closed:
                raise OSError("the channel is closed")
            channel.transport._send_user_message(message)  # noqa: SLF001
        return size

    def close_in_order() -> None:
        with lock:
            close()

    def shutdown_in_order(how: int) -> None:
        with lock:
            if not channel.closed:
                shutdown(how)

    channel._send, channel.close, channel.shutdown = send, close_in_order, shutdown_in_order  # noqa: SLF001
    setattr(channel, _LOCK, lock)
    return channel


def ended_in_order(handle: Handler) -> Handler:
    """A handler of SSH_MSG_CHANNEL_CLOSE, which answers with our own: that too goes after the data."""

    def handle_in_order(channel: Any, message: Any) -> None:
        lock = getattr(channel, _LOCK, None)
        if lock is None:  # it ends before it was handed out: nobody sends
            handle(channel, message)
            return
        with lock:
            handle(channel, message)

    return handle_in_order
