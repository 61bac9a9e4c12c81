"""What own machines offer, and the machine check on them."""

from __future__ import annotations

import pytest

from prefect_gpu.providers.core.gpu.request import parse_gpu
from prefect_gpu.providers.core.machine import check
from prefect_gpu.providers.core.models import Availability
from prefect_gpu.providers.core.requests import Requirements, Spot
from prefect_gpu.providers.ssh.driver import Ssh
from tests.conformance import launch_spec, lease_name
from tests.fakes.own_machines import (
    TWO_GPUS,
    machine_of,
    needs_machines,
    offer_of,
)
from tests.fakes.sshd_hosts import SshdHost, block

pytestmark = needs_machines


def test_an_offer_tells_what_the_machine_has(one: SshdHost) -> None:
    one.install("nvidia-smi", TWO_GPUS)
    driver = Ssh(block(one.described(price=1.5, region="berlin", country="DE", labels={"rack": "7"})))
    (offer,) = driver.fetch_offers(Requirements(gpu=parse_gpu("H100:2"), countries=("DE",)))
    assert offer.gpu == "H100:2"
    assert (offer.gpu_memory_gb, offer.gpu_vendor) == (80, "nvidia")
    assert offer.cpu is not None
    assert offer.cpu >= 1
    assert offer.memory_gb is not None
    assert offer.memory_gb > 0.5
    assert offer.disk_gb is not None
    assert offer.arch in {"x86_64", "arm64"}
    assert (offer.price, offer.region, offer.zone, offer.scope) == (1.5, "berlin", "m0", "m0")
    assert offer.raw["labels"] == {"rack": "7"}
    assert driver.fetch_offers(Requirements(gpu=parse_gpu("A100"))) == []
    assert driver.fetch_offers(Requirements(spot=Spot.SPOT)) == []


def test_each_slice_is_an_offer_with_its_share_of_the_machine(one: SshdHost) -> None:
    one.install("nvidia-smi", TWO_GPUS)
    whole = offer_of(Ssh(block(one)))
    slices = Ssh(block(one.described(gpu_slices=("0", "GPU-bbbb2222")))).fetch_offers(Requirements())
    assert [offer.instance_type for offer in slices] == ["m0:0", "m0:GPU-bbbb2222"]
    assert [offer.gpu for offer in slices] == ["H100:1", "H100:1"]
    assert all(offer.memory_gb == pytest.approx((whole.memory_gb or 0) / 2, abs=0.1) for offer in slices)


def test_a_slice_whose_gpu_is_not_there_is_said(one: SshdHost) -> None:
    one.install("nvidia-smi", TWO_GPUS)
    offers = Ssh(block(one.described(gpu_slices=("0", "1,2")))).fetch_offers(Requirements())
    assert [offer.availability for offer in offers] == [Availability.AVAILABLE, Availability.UNAVAILABLE]
    assert "slice 1,2" in str(offers[1].unavailable_because)
    two = Requirements(gpu=parse_gpu("H100:2"))
    (offer,) = Ssh(block(one.described(gpu_slices=("0", "1,2")))).fetch_offers(two)
    assert offer.unavailable_because == "m0: of the slice 1,2 1 GPUs answer: the others are not there"


def test_gpus_whose_driver_is_in_trouble_are_not_called_absent(one: SshdHost) -> None:
    one.install("nvidia-smi", "echo Failed to initialize NVML: Driver/library version mismatch; exit 18")
    for asked in (Requirements(gpu=parse_gpu("H100:2")), Requirements(gpu=parse_gpu("24GB.."))):
        (offer,) = Ssh(block(one)).fetch_offers(asked)
        assert offer.is_unseen
        assert offer.availability is Availability.UNAVAILABLE
        assert "m0: no GPU answers: nvidia-smi: Failed to initialize NVML" in str(offer.unavailable_because)
    (offer,) = Ssh(block(one)).fetch_offers(Requirements())
    assert offer.availability is Availability.AVAILABLE, "a job without GPUs runs there"


# --- the machine check, on a machine whose nvidia-smi is a stand-in ---------------------------------------------------


def test_a_machine_with_fewer_gpus_than_promised_has_a_problem(one: SshdHost) -> None:
    one.install("nvidia-smi", TWO_GPUS)
    driver = Ssh(block(one))
    offer = offer_of(driver)
    held = driver.create_instance(offer, launch_spec(driver, lease_name()))
    connection = machine_of(held).connection()
    report = check.check(connection, offer)
    assert report.problem is None
    assert report.gpus == ("NVIDIA H100 80GB HBM3, 81559 MiB",) * 2
    assert report.driver == "550.54.15"
    one.install(
        "nvidia-smi", 'echo "0, GPU-aaaa1111, NVIDIA H100 80GB HBM3, 81559 MiB, 550.54.15, 00000000:3B:00.0, 0"'
    )
    assert check.check(connection, offer).problem == ("the offer promised 2 x H100, but nvidia-smi shows only 1")
    connection.close()


def test_a_machine_with_a_broken_gpu_has_a_problem(one: SshdHost) -> None:
    one.install("nvidia-smi", TWO_GPUS)
    driver = Ssh(block(one))
    offer = offer_of(driver)
    connection = machine_of(driver.create_instance(offer, launch_spec(driver, lease_name()))).connection()
    one.install(
        "nvidia-smi",
        'echo "0, GPU-aaaa1111, NVIDIA H100 80GB HBM3, 81559 MiB, 550.54.15, 00000000:3B:00.0, 0"\n'
        'echo "Unable to determine the device handle for GPU0000:5E:00.0: GPU is lost.  Reboot the system to recover this GPU"\n'
        "exit 15",
    )
    problem = check.check(connection, offer).problem
    assert problem is not None
    assert "GPU is lost" in problem
    one.install("nvidia-smi", TWO_GPUS)
    one.install(
        "dmesg",
        'read up rest </proc/uptime; echo "[${up%.*}.000001] NVRM: Xid (PCI:0000:5e:00): 79, pid=1, GPU has fallen off the bus."',
    )
    assert check.check(connection, offer).problem == ("GPU 1 (NVIDIA H100 80GB HBM3) reported Xid 79: it needs a reset")
    connection.close()
