"""Own machines keep the contract of every provider; against real OpenSSH servers."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from prefect_gpu.providers.core.errors import (
    Unsupported,
)
from prefect_gpu.providers.core.models import Instance
from prefect_gpu.providers.ssh.driver import Ssh
from tests.conformance import OTHER_REALM, Faults, ProviderConformance, Subject, launch_spec, lease_name
from tests.fakes.own_machines import (
    BREAK_THE_LINK,
    age,
    claim,
    needs_machines,
    offer_of,
)
from tests.fakes.sshd_hosts import ADMIN, SshdHost, block, sshd_hosts

pytestmark = needs_machines


@pytest.fixture(scope="module")
def machines() -> Iterator[tuple[SshdHost, ...]]:
    with sshd_hosts(*(f"m{number}" for number in range(8))) as hosts:
        yield hosts


class SshFaults(Faults):
    def __init__(self, hosts: tuple[SshdHost, ...], driver: Ssh) -> None:
        self.hosts = hosts
        self.driver = driver

    def sell_out(self) -> None:
        for host in self.hosts:
            claim(self.driver, lease_name(OTHER_REALM), host.name)

    def break_reads(self) -> None:
        self.break_once("flock", "exit 1")

    def break_terminates(self) -> None:
        self.break_once("flock", "exit 1")

    def break_creates(self) -> None:
        self.break_once("ln", f'({BREAK_THE_LINK})\nexec /bin/ln "$@"')

    def break_once(self, tool: str, script: str) -> None:
        """The next call of a tool, on whichever machine, does this; the ones after it are as ever."""
        traps = " ".join(str(host.bin / tool) for host in self.hosts)
        for host in self.hosts:
            host.install(tool, f"rm -f {traps}\n{script}")

    def lose_the_answer(self) -> None:
        self.break_creates()

    def make_unreadable(self) -> str:
        self.hosts[-1].cut_off()
        return self.hosts[-1].name

    def restore(self) -> None:
        self.hosts[-1].bring_back()

    def someone_elses(self) -> str:
        claims = self.hosts[0].claims
        claims.mkdir(mode=0o700, exist_ok=True)
        (claims / "slot.theirs").write_text(f"my-pg-conf {int(time.time()) + 60} {int(time.time())} root 7\n")
        return "my-pg-conf"

    def pass_deadline(self, instance: Instance) -> None:
        (host,) = (host for host in self.hosts if host.name == instance.zone)
        age(host)


class TestSsh(ProviderConformance):
    @pytest.fixture
    def subject(self, machines: tuple[SshdHost, ...]) -> Iterator[Subject]:
        described = [host.described(region=f"room-{number % 2}") for number, host in enumerate(machines)]
        driver = Ssh(block(*described))
        yield Subject(
            provider=driver,
            secrets=(ADMIN.private.get_secret_value().splitlines()[2],),
            unknown_id=f"m3/{lease_name()}",
            pass_time=lambda seconds: time.sleep(seconds / 5),
            faults=SshFaults(machines, driver),
            one_each=True,
        )
        for host in machines:
            for left in [*host.bin.iterdir(), *host.claims.glob("slot.theirs")]:
                left.unlink()


def test_there_is_no_spot_on_own_machines(one: SshdHost) -> None:
    driver = Ssh(block(one))
    offer = offer_of(driver).model_copy(update={"spot": True})
    with pytest.raises(Unsupported):
        driver.create_instance(offer, launch_spec(driver, lease_name()))
