"""What a machine boots with: its host key stays its own, whatever Google's guest agent does."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from prefect_gpu.blocks.gcp import GcpCredentials, GcpImage
from prefect_gpu.providers.core.errors import HostKeyMismatch
from prefect_gpu.providers.core.machine.keys import derive
from prefect_gpu.providers.core.models import InstanceState
from prefect_gpu.providers.core.renting.library import TaskLibrary
from prefect_gpu.providers.gcp.driver import Gcp
from prefect_gpu.providers.gcp.order import KEEP_HOST_KEYS, user_data
from tests.conformance import MASTER_SECRET, launch_spec, lease_name
from tests.fakes.aws.machine import HAS_OPENSSH
from tests.fakes.gcp import FakeGcp
from tests.fakes.gcp.machine import GceMachine, user_data_of
from tests.providers.gcp.conftest import gcp, offer_of


@pytest.mark.parametrize("spot", [False, True])
@pytest.mark.skipif(shutil.which("cloud-init") is None, reason="needs cloud-init")
def test_cloud_init_takes_the_user_data(cloud: FakeGcp, tmp_path: Path, spot: bool) -> None:
    file = tmp_path / "user-data"
    file.write_text(user_data(offer_of("g2-standard-8", spot=spot), launch_spec(gcp(cloud), lease_name())))
    checked = subprocess.run(["cloud-init", "schema", "-c", str(file)], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize(
    "before",
    [
        None,
        "",
        "[Daemons]\naccounts_daemon = true\n",
        "[InstanceSetup]\nset_host_keys = true",
        "[InstanceSetup]\nset_host_keys = false\n",
        "[InstanceSetup]\nhost_key_types = ecdsa\n\n[Snapshots]\nenabled = false",
    ],
    ids=["no file", "empty", "other sections", "on", "off already", "last line open"],
)
def test_the_guest_agent_is_told_to_leave_host_keys_alone(cloud: FakeGcp, tmp_path: Path, before: str | None) -> None:
    file = tmp_path / "instance_configs.cfg"
    if before is not None:
        file.write_text(before)
    line = KEEP_HOST_KEYS.replace("/etc/default/instance_configs.cfg", str(file))
    for _ in range(3):
        subprocess.run(["sh", "-euc", line], check=True)
    import configparser

    agent = configparser.RawConfigParser(strict=False)
    agent.read(file)
    assert agent.get("InstanceSetup", "set_host_keys") == "false"
    assert file.read_text().count("set_host_keys = false") == 1


@pytest.mark.openssh
@pytest.mark.root
@pytest.mark.skipif(not HAS_OPENSSH, reason="needs root and OpenSSH: port 22 of a loopback address")
@pytest.mark.skipif(os.getuid() != 0, reason="needs root")
@pytest.mark.parametrize("agent_wins", [False, True])
def test_what_was_ordered_is_logged_in_to_by_its_derived_keys_only(
    cloud: FakeGcp, tmp_path: Path, agent_wins: bool
) -> None:
    machines: list[GceMachine] = []

    def boot(vm: Any) -> None:
        text = user_data_of(vm.metadata)
        assert text is not None
        if agent_wins:
            text = text.replace("set_host_keys = false", "set_host_keys = maybe")
        machine = GceMachine(tmp_path / vm.name, vm.address, 22, text, lambda: None)
        machine.start()
        machines.append(machine)

    cloud.on_create = boot
    image = GcpImage(project="ubuntu-os-cloud", family="ubuntu-2404-lts-amd64", user="root")
    tasks: TaskLibrary[Any] = TaskLibrary(Gcp, GcpCredentials)
    tasks.connections.drivers["default"] = driver = gcp(cloud, cpu_image=image)
    tasks.connections._secret = MASTER_SECRET
    try:
        offer = offer_of("e2-standard-4")
        made = driver.create_instance(offer, launch_spec(driver, lease_name()))
        cloud.advance(5)
        if agent_wins:
            with pytest.raises(HostKeyMismatch):
                tasks.connections.connect(driver.get_instance(made.id))
            return
        ready = tasks.wait_until_ready.fn(made, offer)
        assert user_data_of(cloud.vm(made.id).metadata) is None, "the host key can be read by who may describe machines"
        channel = tasks.connections.connect(ready).open("id -un; exit 3")
        assert channel.recv(100) == b"root\n"
        assert channel.exit_status(10) == 3
        driver.terminate_instance(ready.id)
        cloud.advance(5)
        assert driver.get_instance(ready.id).state is InstanceState.TERMINATED
    finally:
        for machine in machines:
            machine.stop()


def test_no_secret_but_the_host_key_stands_in_the_metadata(cloud: FakeGcp) -> None:
    driver = gcp(cloud)
    made = driver.create_instance(offer_of("e2-standard-4"), launch_spec(driver, lease_name()))
    text = str(cloud.vm(made.id).metadata)
    host, client = (
        derive(MASTER_SECRET, made.name, kind).private.get_secret_value().splitlines()[2] for kind in ("host", "client")
    )  # type: ignore[arg-type]
    assert host in text
    assert client not in text
    cloud.advance(5)
    assert host not in driver.get_instance(made.id).model_dump_json()
