"""Whatever EC2 answers, it is an error of that region or machine, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from prefect_gpu.blocks.aws import AwsCredentials
from prefect_gpu.providers.aws import give_back, listing, network, offers, order, quotas, reservations
from prefect_gpu.providers.aws.api import Api
from prefect_gpu.providers.aws.images import Images
from prefect_gpu.providers.core.errors import ProviderError
from prefect_gpu.providers.core.requests import Requirements
from tests.conformance import lease_name
from tests.providers.aws.ordering import offer_of

NAME = lease_name()
SCALARS: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**400), 10**400),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from([NAME, "running", "available", "i-1", "vol-1", "us-east-1a", "9" * 400, "ubuntu@public:99999"]),
    st.just(datetime(2026, 1, 1, tzinfo=UTC)),
)
KEYS = st.sampled_from(
    [
        "Instances",
        "InstanceId",
        "State",
        "Name",
        "ClientToken",
        "Tags",
        "Key",
        "Value",
        "Placement",
        "AvailabilityZone",
        "LaunchTime",
        "StateReason",
        "Code",
        "Message",
        "PublicIpAddress",
        "VolumeId",
        "CreateTime",
        "NetworkInterfaceId",
        "TagSet",
        "AllocationId",
        "SubnetId",
        "VpcId",
        "GroupId",
        "IpPermissions",
        "IpRanges",
        "CidrIp",
        "FromPort",
        "ImageId",
        "CreationDate",
        "BlockDeviceMappings",
        "Ebs",
        "VolumeSize",
        "InstanceType",
        "Location",
        "Quota",
        "CapacityReservations",
    ]
)
ROWS = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=6), max_leaves=25
)


class Answers:
    """A client, and its paginator, whose every call is answered by what was drawn."""

    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def get_paginator(self, _call: str) -> Answers:
        return self

    def paginate(self, **_sent: Any) -> Iterator[Any]:
        yield dict.fromkeys(
            [
                "Reservations",
                "Volumes",
                "NetworkInterfaces",
                "Subnets",
                "SecurityGroups",
                "Images",
                "InstanceTypeOfferings",
            ],
            self.rows,
        )

    def __getattr__(self, _call: str) -> Any:
        return lambda **_sent: {
            "Addresses": self.rows,
            "Quota": self.rows,
            "CapacityReservations": self.rows,
            "GroupId": self.rows,
        }


class OddApi(Api):
    def __init__(self, rows: Any) -> None:
        super().__init__(AwsCredentials(security_group="team", capacity_reservation="cr-1"))
        self.rows = rows

    def client(self, service: str, region: str, *, repeats: bool = True) -> Any:
        return Answers(self.rows)

    def regions(self) -> set[str]:
        return {"us-east-1"}


@settings(max_examples=150, deadline=None)
@given(rows=st.lists(ROWS, max_size=3) | ROWS)
def test_nothing_that_ec2_answers_breaks_anything_but_itself(rows: Any) -> None:
    api = OddApi(rows)
    listed = listing.everywhere(api, "pg-")
    for one in listed.instances:
        assert one.name.startswith("pg-")
    calls = (
        lambda: network.subnets(api, "us-east-1"),
        lambda: network.security_group(api, "us-east-1", "vpc-1", NAME, 22),
        lambda: Images(api).of(offer_of()),
        lambda: quotas.read(api, "us-east-1", quotas.ANY),
        lambda: reservations.active(api, "us-east-1", None),
        lambda: offers.offers(
            api, Images(api), lambda *_: [offer_of().model_copy(update={"zone": None})], Requirements()
        ),
        lambda: give_back.terminate(api, ["us-east-1/i-1", "us-east-1/vol-1"]),
        lambda: listing.machines_of(api, "us-east-1", NAME),
    )
    for call in calls:
        with suppress(ProviderError):
            call()


@settings(max_examples=100, deadline=None)
@given(rows=ROWS)
def test_a_machine_that_cannot_be_read_hides_no_other(rows: Any) -> None:
    right = {
        "InstanceId": "i-0123",
        "ClientToken": NAME,
        "State": {"Name": "running"},
        "Tags": [{"Key": "Name", "Value": NAME}],
    }
    listed = listing.everywhere(OddApi([{"Instances": [rows, right]}]), "pg-")
    assert "us-east-1/i-0123" in {one.id for one in listed.instances}


def test_the_limits_of_a_disk_are_ec2s() -> None:
    assert order.MOST_DISK_GB == 16_384
