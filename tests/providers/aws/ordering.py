"""Offers, orders and waiting, for the tests of AWS."""

from __future__ import annotations

import time
from datetime import datetime, timedelta
from typing import Any

from prefect_gpu.providers.aws.driver import Aws
from prefect_gpu.providers.core.models import Instance, InstanceState, Offer, utc_now
from prefect_gpu.providers.core.renting.order import Clock
from tests.fakes.aws import AwsCloud

SECRET = "wJalrXUtnFEMI-K7MDENG-bPxRfiCYEXAMPLEKEY"
AWS_ATTEMPTS = 3  # boto3 sends a read so often before it gives up


def offer_of(instance_type: str = "m5.large", zone: str = "us-east-1a", **more: Any) -> Offer:
    return Offer(
        **{
            "provider": "aws",
            "instance_type": instance_type,
            "region": zone[:-1],
            "zone": zone,
            "price": 0.1,
            "arch": "x86_64",
            **more,
        }
    )


def gpu_offer(**more: Any) -> Offer:
    return offer_of("g4dn.xlarge", **{"gpu_name": "T4", "gpu_count": 1, "gpu_vendor": "nvidia", **more})


def utc_soon(seconds: float) -> datetime:
    return utc_now() + timedelta(seconds=seconds)


def order_sent(cloud: AwsCloud) -> dict[str, str]:
    """The parameters of the last RunInstances, as they went over the wire."""
    return cloud.calls("RunInstances")[-1]["sent"]


def tags_sent(sent: dict[str, str]) -> dict[str, dict[str, str]]:
    tags: dict[str, dict[str, str]] = {}
    for key, kind in sent.items():
        if key.startswith("TagSpecification.") and key.endswith(".ResourceType"):
            at = key.removesuffix("ResourceType")
            tags[kind] = {
                sent[f"{at}Tag.{n}.Key"]: sent[f"{at}Tag.{n}.Value"] for n in range(1, 20) if f"{at}Tag.{n}.Key" in sent
            }
    return tags


def wait_for(state: InstanceState, driver: Aws, instance: Instance) -> Instance:
    end = time.monotonic() + 20
    while (seen := driver.get_instance(instance.id)).state is not state:
        assert time.monotonic() < end, f"it is {seen.state}, not {state}"
        time.sleep(0.02)
    return seen


def made_groups(cloud: AwsCloud, region: str = "us-east-1") -> list[dict[str, Any]]:
    groups = cloud.ec2(region).describe_security_groups()["SecurityGroups"]
    return [group for group in groups if group["GroupName"].startswith("prefect-gpu")]


class Quickly(Clock):
    """Minutes pass at once."""

    def __init__(self) -> None:
        self.time = 0.0

    def now(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.time += seconds
        time.sleep(0.002)
