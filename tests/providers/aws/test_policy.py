"""The policy of docs/providers/aws.md allows what the driver calls, on what it tags, and nothing else."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from prefect_gpu.providers.core.models import InstanceState
from prefect_gpu.providers.core.requests import Requirements, Spot
from tests.conformance import launch_spec, lease_name
from tests.fakes.aws import AwsCloud
from tests.providers.aws.ordering import offer_of, tags_sent, wait_for
from tests.stack import ROOT

TEXT = (ROOT / "docs" / "providers" / "aws.md").read_text()
(POLICY,) = [json.loads(block) for block in re.findall(r"```json\n(.*?)```", TEXT, re.DOTALL)]
TAG = "prefect-gpu-realm"


def actions(statement: dict[str, Any]) -> set[str]:
    named = statement["Action"]
    return {named} if isinstance(named, str) else set(named)


@pytest.fixture
def calls(cloud: AwsCloud) -> list[dict[str, Any]]:
    """All that the driver asks AWS in a whole life: rights, offers, orders on both markets, listings, a disk that stays, the end."""
    driver = cloud.driver()
    assert driver.missing_rights() == []
    assert driver.account_id()
    assert driver.fetch_offers(Requirements(spot=Spot.EITHER))
    cloud.set(keep_volumes=True)
    for spot in (False, True):
        spec = launch_spec(driver, lease_name(), tags={TAG: "conf"})
        created = driver.create_instance(offer_of(spot=spot), spec)
        wait_for(InstanceState.RUNNING, driver, created)
        driver.terminate_instance(created.id)
        wait_for(InstanceState.TERMINATED, driver, created)
        for left in driver.list_instances(spec.name).leftovers:
            driver.terminate_instance(left.id)
    return cloud.calls()


def test_the_policy_allows_every_call_and_no_other(calls: list[dict[str, Any]]) -> None:
    services = {"GetServiceQuota": "servicequotas", "GetCallerIdentity": "sts"}
    made = {f"{services.get(call['action'], 'ec2')}:{call['action']}" for call in calls}
    if any(key.startswith("TagSpecification") for call in calls for key in call["sent"]):
        made.add("ec2:CreateTags")
    assert set.union(*(actions(statement) for statement in POLICY["Statement"])) == made


def test_all_that_is_ordered_bears_the_tag_that_the_policy_asks_for(calls: list[dict[str, Any]]) -> None:
    (ordering,) = [one for one in POLICY["Statement"] if f"aws:RequestTag/{TAG}" in str(one.get("Condition"))]
    allowed = {resource.rpartition(":")[2].removesuffix("/*") for resource in ordering["Resource"]}
    orders = [call["sent"] for call in calls if call["action"] in {"RunInstances", "CreateSecurityGroup"}]
    assert len(orders) >= 5, "dry runs too"
    for sent in orders:
        tags = tags_sent(sent)
        brings = {"instance", "volume", "network-interface"} if sent["Action"] == "RunInstances" else {"security-group"}
        if sent.get("InstanceMarketOptions.MarketType") == "spot":
            brings.add("spot-instances-request")
        assert set(tags) == brings
        assert brings <= allowed
        assert all(TAG in one for one in tags.values())


def test_only_looking_and_naming_what_is_there_needs_no_tag() -> None:
    for statement in POLICY["Statement"]:
        ends = {"ec2:TerminateInstances", "ec2:DeleteVolume", "ec2:AuthorizeSecurityGroupIngress"}
        if actions(statement) & ends:
            assert statement["Condition"] == {"Null": {f"aws:ResourceTag/{TAG}": "false"}}
        if "ec2:CreateTags" in actions(statement):
            assert statement["Condition"]["StringEquals"]["ec2:CreateAction"] == ["RunInstances", "CreateSecurityGroup"]
    assert POLICY["Statement"][0]["Resource"] == "*"
    assert all(statement["Resource"] != "*" for statement in POLICY["Statement"][1:])
