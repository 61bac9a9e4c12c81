"""The tasks of a library and its ways in: ids and names, secrets, keys that a log tells."""

from __future__ import annotations

from typing import Any, NoReturn

import pytest
from pydantic import SecretStr

from prefect_gpu.providers.core.errors import (
    HostKeyMismatch,
    InstanceFailed,
    InvalidRequest,
    NotFound,
    NotReady,
    Transient,
)
from prefect_gpu.providers.core.machine import keys
from prefect_gpu.providers.core.machine.job_end import RESTARTED
from prefect_gpu.providers.core.models import Instance, SshEndpoint, SshJump
from prefect_gpu.providers.core.renting.library import TaskLibrary
from prefect_gpu.providers.core.requests import Requirements
from prefect_gpu.providers.core.toolkit import container_boot
from tests.conformance import launch_spec, lease_name
from tests.fakes.reference import Reference, ReferenceCloud, reference

SECRET = b"the master secret of these tests"
JUMP = SshJump(host="192.0.2.9", user="hop", private_key=SecretStr("the-jump-key"))


class BehindAJumpHost(Reference):
    def _instance(self, row: dict[str, Any]) -> Instance:
        return super()._instance(row).model_copy(update={"ssh": SshEndpoint(host="10.0.0.1", jump=JUMP)})


class TellsByItsLog(Reference):
    capabilities = Reference.capabilities.model_copy(update={"host_key": "by_logs"})
    log = ""
    reads = 0

    def read_log(self, instance: Instance) -> str:
        self.reads += 1
        return self.log


def library(cloud: ReferenceCloud, driver: type[Reference] = Reference) -> tuple[TaskLibrary[Any], Any]:
    made: TaskLibrary[Any] = TaskLibrary(driver)
    made.connections.drivers["default"] = own = reference(cloud, driver)
    made.connections._secret = SECRET
    return made, own


def rented(driver: Reference, name: str) -> Instance:
    return driver.create_instance(driver.fetch_offers(Requirements())[0], launch_spec(driver, name))


def test_an_instance_is_terminated_by_its_id_or_its_whole_name_and_seen_gone() -> None:
    cloud = ReferenceCloud(is_stopped=True)
    tasks, driver = library(cloud)
    for by in ("id", "name"):
        made = rented(driver, lease_name())
        assert tasks.terminate_instance.fn(getattr(made, by)).is_gone
    assert not cloud.alive()


@pytest.mark.parametrize("wrong", ["", "pg-", "pg-conf", "i-999999", "*"])
def test_what_is_no_known_id_and_no_whole_name_is_refused_and_ends_nothing(wrong: str) -> None:
    cloud = ReferenceCloud(is_stopped=True)
    tasks, driver = library(cloud)
    rented(driver, lease_name())
    with pytest.raises(NotFound):
        tasks.terminate_instance.fn(wrong)
    assert len(cloud.alive()) == 1


def test_an_id_that_bears_a_name_which_is_not_ours_is_refused() -> None:
    cloud = ReferenceCloud(is_stopped=True)
    tasks, _ = library(cloud)
    cloud.order_by_hand("somebody's database")
    with pytest.raises(InvalidRequest, match="not an instance that prefect-gpu made"):
        tasks.terminate_instance.fn("i-000001")
    assert len(cloud.alive()) == 1


def test_no_task_returns_the_jump_host_s_key_and_every_process_finds_it_again() -> None:
    cloud = ReferenceCloud(is_stopped=True)
    tasks, driver = library(cloud, BehindAJumpHost)
    made = rented(driver, lease_name())
    returned = [tasks.get_instance.fn(made.id), *tasks.list_instances.fn().instances]
    for one in returned:
        assert one.ssh.jump.host == JUMP.host
        assert not one.ssh.jump.private_key.get_secret_value()
    another_process, other_driver = library(cloud, BehindAJumpHost)
    for found, own in ((tasks, driver), (another_process, other_driver)):
        whole = found.connections._with_jump_key(returned[0], returned[0].ssh, own)
        assert whole.jump.private_key.get_secret_value() == "the-jump-key"


def test_a_host_key_that_the_log_tells_is_the_only_one_and_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prefect_gpu.providers.core.renting.connections.LOG_EVERY_S", 0.0)
    cloud = ReferenceCloud(is_stopped=True)
    tasks, driver = library(cloud, TellsByItsLog)
    made = rented(driver, lease_name())
    client = keys.derive(SECRET, made.name, "client").public
    mine, job_s = keys.derive(SECRET, made.name, "host").public, keys.derive(SECRET, "another", "host").public

    def ask() -> str | None:
        return tasks.connections._host_key(driver, made, SECRET, client)

    mark = container_boot.nonce(client)
    for silent in (
        "",
        "boots",
        f"prefect-gpu host key {'0' * 32} {job_s}",
        f"prefect-gpu host key {mark} ssh-ed25519 AAAA",
    ):
        driver.log = silent
        with pytest.raises(NotReady, match="does not show its host key yet"):
            ask()
    driver.log = f"boots\n2026-11-28 prefect-gpu host key {mark} {mine}\nprefect-gpu host key {mark} {job_s}\n"
    reads = driver.reads
    assert ask() == mine
    driver.log = driver.log.replace(mine, job_s)
    assert ask() == mine
    assert driver.reads == reads + 1
    tasks.connections.hang_up(made.name)
    assert ask() == job_s


class HasAScript(Reference):
    settled: list[str]

    def settle_in(self, instance: Instance) -> None:
        self.settled.append(instance.name)
        raise Transient("the script could not be removed")


def test_what_held_a_secret_is_removed_once_the_machine_was_logged_in_to_and_a_failure_is_no_obstacle(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cloud = ReferenceCloud(is_stopped=True)
    tasks, driver = library(cloud, HasAScript)
    driver.settled = []
    made = rented(driver, lease_name())
    monkeypatch.setattr(tasks.connections, "connect", lambda *_, **__: object())
    assert tasks.wait_until_ready.fn(made, driver.fetch_offers(Requirements())[0]).id == made.id
    assert driver.settled == [made.name]
    assert "the script could not be removed" in caplog.text


def test_a_log_that_tells_nothing_yet_is_not_asked_for_at_every_connect() -> None:
    tasks, driver = library(ReferenceCloud(is_stopped=True), TellsByItsLog)
    made = rented(driver, lease_name())
    for _ in range(20):
        with pytest.raises(NotReady, match="does not show its host key yet"):
            tasks.connections._host_key(driver, made, SECRET, keys.derive(SECRET, made.name, "client").public)
    assert driver.reads == 1


def test_a_log_that_is_not_known_yet_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    tasks, driver = library(ReferenceCloud(is_stopped=True), TellsByItsLog)
    made = rented(driver, lease_name())
    monkeypatch.setattr(TellsByItsLog, "read_log", _unknown)
    with pytest.raises(NotReady, match="log is not there yet: no such pod"):
        tasks.connections._host_key(driver, made, SECRET, keys.derive(SECRET, made.name, "client").public)


def test_an_image_that_gets_no_ssh_server_ends_the_wait_with_the_sentence_in_its_log() -> None:
    tasks, driver = library(ReferenceCloud(is_stopped=True), TellsByItsLog)
    made = rented(driver, lease_name())
    driver.log = "E: no network\nprefect-gpu failed: the image has no OpenSSH server\x1b[31m, and none\n"
    with pytest.raises(InstanceFailed, match=r"^the image has no OpenSSH server$") as failed:
        tasks.connections._host_key(driver, made, SECRET, keys.derive(SECRET, made.name, "client").public)
    assert failed.value.category == "image"


@pytest.mark.parametrize("gone", [False, True], ids=["started again", "gone"])
def test_another_host_key_is_no_alarm_where_the_container_was_started_again_or_is_gone(
    gone: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    cloud = ReferenceCloud(is_stopped=True)
    tasks, driver = library(cloud, TellsByItsLog)
    made = rented(driver, lease_name()).model_copy(update={"ssh": SshEndpoint(host="192.0.2.1")})
    mark = container_boot.nonce(keys.derive(SECRET, made.name, "client").public)
    first, second = (keys.derive(SECRET, which, "host").public for which in ("one", "two"))

    def shows_another(*_: object, **__: object) -> NoReturn:
        raise HostKeyMismatch("it shows another key")

    monkeypatch.setattr("prefect_gpu.providers.core.machine.host_keys.FirstUse.connect", shows_another)
    monkeypatch.setattr("prefect_gpu.providers.core.renting.connections.LOG_EVERY_S", 0.0)
    driver.log = f"prefect-gpu host key {mark} {first}\n" * 2
    with pytest.raises(HostKeyMismatch):
        tasks.connections.connect(made)
    driver.log += f"prefect-gpu host key {mark} {second}\n"
    if gone:
        monkeypatch.setattr(TellsByItsLog, "read_log", _unknown)
    with pytest.raises(InstanceFailed, match=f"^{RESTARTED}$"):
        tasks.connections.connect(made)


def _unknown(*_: object) -> NoReturn:
    raise NotFound("no such pod")
