"""What tests do with pods of the real cluster."""

from __future__ import annotations

import time
from typing import Any

import pytest

pytest.importorskip("kubernetes", reason="needs the extra kubernetes")

from prefect_gpu.providers.core.errors import (
    NotFound,
)
from prefect_gpu.providers.core.gpu.request import parse_gpu
from prefect_gpu.providers.core.models import (
    Instance,
    InstanceState,
)
from prefect_gpu.providers.core.requests import Requirements
from prefect_gpu.providers.kubernetes.driver import Kubernetes
from tests.conformance import launch_spec, lease_name

H100 = Requirements(gpu=parse_gpu("H100"))


def create(driver: Kubernetes, requirements: Requirements = H100, **more: Any) -> Instance:
    offer = driver.fetch_offers(requirements)[0]
    return driver.create_instance(offer, launch_spec(driver, lease_name(), **more))


def until(driver: Kubernetes, instance: Instance, state: InstanceState, seconds: float = 90.0) -> Instance:
    deadline = time.monotonic() + seconds
    while (seen := driver.get_instance(instance.id)).state is not state:
        assert time.monotonic() < deadline, f"it is {seen.state}: {seen.reason}"
        assert seen.state in {InstanceState.PROVISIONING, InstanceState.RUNNING, InstanceState.TERMINATING}, seen.reason
        time.sleep(0.1)
    return seen


def until_gone(driver: Kubernetes, instance: Instance, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            driver.get_instance(instance.id)
        except NotFound:
            return
        assert time.monotonic() < deadline, "it never went away"
        time.sleep(0.1)


def run(driver: Kubernetes, instance: Instance, command: str, stdin: bytes = b"") -> tuple[int, bytes, str]:
    channel = driver.open_channel(instance).open(command)
    try:
        channel.sendall(stdin)
        channel.shutdown_write()
        output = bytearray()
        while data := channel.recv(1 << 20):
            output += data
        return channel.exit_status(10), bytes(output), channel.error_text()
    finally:
        channel.close()
