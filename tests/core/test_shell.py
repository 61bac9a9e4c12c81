"""Scripts on a machine that lies or never stops."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator

import pytest

from prefect_gpu.providers.core.machine.shell import WritesWithoutEnd, run_script, start_script


class Endless:
    """A machine that writes one thing for ever, after the mark of the script if it is a polite one."""

    def __init__(self, *, has_mark: bool) -> None:
        self._has_mark = has_mark
        self.taken = 0
        self.is_closed = False
        self._data: Iterator[bytes] = itertools.repeat(b"y\n" * 32_000)

    def open(self, command: str) -> Endless:
        return self

    def sendall(self, data: bytes) -> None:
        mark = re.search(rb"prefect-gpu-[0-9a-f]{16}\n", data)
        if mark is not None and self._has_mark:
            self._data = itertools.chain([b"welcome\n" + mark[0][:5], mark[0][5:]], self._data)

    def shutdown_write(self) -> None: ...

    def recv(self, size: int) -> bytes:
        data = next(self._data)
        self.taken += len(data)
        return data

    def exit_status(self, timeout_s: float) -> int:
        raise AssertionError("it never ends")

    def error_text(self) -> str:
        return ""

    def is_alive(self) -> bool:
        return True

    def close(self) -> None:
        self.is_closed = True


@pytest.mark.parametrize(
    ("has_mark", "said"), [(True, "printed more than 4 MB"), (False, "login shell prints without end")]
)
def test_a_machine_that_writes_without_end_is_hung_up_on(has_mark: bool, said: str) -> None:
    machine = Endless(has_mark=has_mark)
    with pytest.raises(WritesWithoutEnd, match=said):
        run_script(machine, ":")
    assert machine.is_closed
    assert machine.taken < 8_000_000


def test_the_mark_is_found_where_it_comes_in_two_pieces() -> None:
    channel = start_script(Endless(has_mark=True), ":")
    assert channel.recv(10) == b"y\n" * 32_000
