"""What an order to RunPod brings along: registry credentials and a volume, made before the pod under its name and gone after it."""

from __future__ import annotations

import json

import pytest

from prefect_gpu.blocks.runpod import RunpodOptions
from prefect_gpu.providers.core.errors import InsufficientFunds, InvalidRequest, Unconfirmed, Unsupported
from prefect_gpu.providers.core.renting.give_back import give_back
from tests.conformance import launch_spec, lease_name
from tests.fakes import runpod as fakes
from tests.fakes.runpod import FakeRunpod
from tests.providers.renting import CloudClock
from tests.providers.test_runpod import AUTH, PASSWORD, _quick, cloud, offers, order, runpod

__all__ = ["_quick", "cloud"]


def test_registry_credentials_go_to_runpod_for_the_pull_alone(cloud: FakeRunpod) -> None:
    driver = runpod(cloud)
    made = order(driver, image="ghcr.io/me/app", registry=AUTH)
    ((number, kept),) = cloud.held["registries"].items()
    assert (kept["name"], cloud.passwords) == (made.name, [PASSWORD])
    assert cloud.pod(made.name)["body"]["registry"] == number
    assert PASSWORD not in json.dumps([cloud.pod(made.name)["body"], made.model_dump(mode="json")])
    assert driver.list_instances(made.name).leftovers == ()
    absence = give_back(driver, made.name, known_ids=(made.id,), within_s=300, clock=CloudClock(cloud))
    assert (absence.is_gone, cloud.left()) == (True, []), absence


def test_what_a_pod_still_holds_when_it_ends_is_left_over_and_removed_after_it(cloud: FakeRunpod) -> None:
    driver = runpod(cloud)
    made = order(driver, image="ghcr.io/me/app", registry=AUTH, options={"volume_gb": 10})
    somebody_s = {"name": "somebody-s", "size": 10, "dataCenter": "US-KS-2"}
    cloud._add("network-volumes", somebody_s)
    cloud._add("registries", {"name": "somebody-s", "username": "x", "password": "y"})
    driver.terminate_instance(made.id)
    left = driver.list_instances(made.name).leftovers
    assert sorted(one.kind for one in left) == ["network-volumes", "registries"]
    cloud.advance(5)
    for one in left:
        driver.terminate_instance(one.id)
    assert cloud.left() == ["somebody-s", "somebody-s"]


def test_what_a_pod_holds_no_more_goes_with_it(cloud: FakeRunpod) -> None:
    cloud.holds_s = 0.0
    driver = runpod(cloud)
    made = order(driver, image="ghcr.io/me/app", registry=AUTH, options={"volume_gb": 10})
    cloud.requests.clear()
    driver.terminate_instance(made.id)
    assert cloud.left() == []
    made = order(driver)
    cloud.requests.clear()
    driver.terminate_instance(made.id)
    assert len(cloud.requests) == 2, "a pod that brought nothing along costs no more requests"


def test_credentials_are_shown_to_no_registry_but_theirs(cloud: FakeRunpod) -> None:
    driver = runpod(cloud)
    hub = AUTH.model_copy(update={"server": "https://index.docker.io/v1/"})
    for image, auth in (
        ("ghcr.io/me/app", hub),
        ("me/app", AUTH),
        ("runpod/pytorch:1", AUTH),
        ("localhost:5000/x", AUTH),
    ):
        with pytest.raises(
            InvalidRequest, match=f"the credentials are for {auth.server}, and the image {image} is not"
        ):
            order(driver, image=image, registry=auth)
    assert (cloud.creates, cloud.left()) == (0, [])
    for image, auth in (
        ("me/app", hub),
        ("docker.io/me/app", hub),
        ("app", AUTH.model_copy(update={"server": "docker.io"})),
    ):
        order(driver, image=image, registry=auth)


def test_what_was_made_for_an_order_that_is_refused_goes_and_stays_where_its_answer_was_lost(cloud: FakeRunpod) -> None:
    driver = runpod(cloud)
    cloud.next["create"] = fakes.error(402, "Payment required")
    with pytest.raises(InsufficientFunds):
        order(driver, image="ghcr.io/me/app", registry=AUTH, options={"volume_gb": 10})
    assert cloud.left() == []
    cloud.next["create"] = "lost"
    with pytest.raises(Unconfirmed):
        order(driver, image="ghcr.io/me/app", registry=AUTH, options={"volume_gb": 10})
    assert len(cloud.left()) == 3
    cloud.next["add"] = "lost"  # found by its name
    made = order(driver, image="ghcr.io/me/app", registry=AUTH)
    assert cloud.pod(made.name)["body"]["registry"] in cloud.held["registries"]


def test_a_volume_is_mounted_and_the_community_has_none(cloud: FakeRunpod) -> None:
    driver = runpod(cloud, options=RunpodOptions(volume_gb=20))
    found = offers(cloud, options=driver.credentials.options)
    made = driver.create_instance(found[fakes.H100, "US-KS-2"], launch_spec(driver, lease_name()))
    ((number, volume),) = cloud.held["network-volumes"].items()
    assert (volume["name"], volume["size"], volume["dataCenter"]) == (made.name, 20, "US-KS-2")
    mounts = cloud.pod(made.name)["body"]["mounts"]
    assert mounts == {"network": [{"volumeId": number, "path": "/workspace"}]}
    with pytest.raises(Unsupported, match="community cloud has no network volumes") as refused:
        driver.create_instance(offers(cloud)["NVIDIA H100 PCIe", "community"], launch_spec(driver, lease_name()))
    assert refused.value.reach == "offer"
