"""The digest that is taken here is the one that the machine's own tool tells, whichever it has."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from prefect_gpu.providers.core.contract import Channel, Connection
from prefect_gpu.providers.core.errors import InstanceFailed, LinkLost
from prefect_gpu.providers.core.machine.digest import Digest
from prefect_gpu.providers.core.machine.jobs import Machine
from prefect_gpu.providers.core.machine.shell import run_script

# What `openssl` before 3.0 says to a command that it has not.
OLD_OPENSSL = (
    '#!/bin/sh\n[ "$1" = dgst ] || {{ echo "Invalid command \'$1\'; type help" >&2; exit 1; }}\nexec {0} "$@"\n'
)
DATA = random.Random(4).randbytes(3_000_001)
PIECES = (b"", DATA[:7], DATA[7:131_079], DATA[131_079:])
BEGINS = {"gmac": "openssl mac ", "openssl": "openssl dgst ", "b2sum": "b2sum", "sha256sum": "sha256sum"}


class Having:
    """A machine whose only programs are those in a folder."""

    def __init__(self, inner: Connection, programs: Path) -> None:
        self._inner = inner
        self._programs = programs

    def open(self, command: str) -> Channel:
        return self._inner.open(f"PATH={self._programs}; export PATH; {command}")

    def is_alive(self) -> bool:
        return self._inner.is_alive()

    def close(self) -> None:
        self._inner.close()


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    folder = tmp_path / "programs"
    folder.mkdir()
    for name in ("sh", "head", "cat"):
        (folder / name).symlink_to(str(shutil.which(name)))
    return folder


def give(programs: Path, tool: str) -> None:
    real = shutil.which("openssl" if tool == "gmac" else tool)
    if real is None:
        pytest.skip(f"{tool} is not installed")
    if tool != "openssl":
        (programs / Path(real).name).symlink_to(real)
        return
    (programs / "openssl").write_text(OLD_OPENSSL.format(real))
    (programs / "openssl").chmod(0o755)


@pytest.mark.parametrize("tool", BEGINS)
def test_each_tool_tells_what_is_taken_here(machine: Machine, programs: Path, tool: str) -> None:
    give(programs, tool)
    link = Having(machine.connection(), programs)
    for sent, is_right in ((DATA, True), (DATA[:-1] + bytes([DATA[-1] ^ 1]), False)):
        digest = Digest(link)
        assert digest.command.startswith(BEGINS[tool])
        for piece in PIECES:
            digest.update(piece)
        told = run_script(link, digest.command, sent).stdout.decode()
        if is_right:
            digest.compare(told, "it")
        else:
            with pytest.raises(LinkLost, match="it arrived with another digest"):
                digest.compare(told, "it")


def test_the_first_that_is_there_is_taken(machine: Machine, programs: Path) -> None:
    link = Having(machine.connection(), programs)
    for tool in reversed(BEGINS):
        if tool == "gmac":
            (programs / "openssl").unlink()
        give(programs, tool)
        assert Digest(link).command.startswith(BEGINS[tool])


def test_each_transfer_has_a_key_of_its_own(machine: Machine, programs: Path) -> None:
    give(programs, "gmac")
    link = Having(machine.connection(), programs)
    first, second = Digest(link), Digest(link)
    assert first.command != second.command


def test_a_machine_that_has_none_is_told_so(machine: Machine, programs: Path) -> None:
    with pytest.raises(InstanceFailed, match="neither openssl nor b2sum nor sha256sum"):
        Digest(Having(machine.connection(), programs))


def test_nothing_is_a_digest_too(machine: Machine) -> None:
    link = machine.connection()
    digest = Digest(link)
    digest.compare(run_script(link, digest.command).stdout.decode(), "nothing")
