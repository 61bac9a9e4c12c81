"""The credentials block."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from prefect.testing.standard_test_suites import BlockStandardTestSuite
from pydantic import ValidationError

from prefect_gpu.blocks.aws import AwsCredentials
from tests.fakes.aws import ACCOUNT, AwsCloud
from tests.providers.aws.ordering import (
    SECRET,
)


class TestAwsBlock(BlockStandardTestSuite):
    @pytest.fixture
    def block(self) -> type[AwsCredentials]:
        return AwsCredentials


def test_the_block_hides_what_is_secret_and_refuses_what_is_no_address_range(cloud: AwsCloud) -> None:
    block = cloud.block(network={"jump": {"address": "bastion", "private_key": "the-jump-key"}})
    assert "the-jump-key" not in repr(block)
    assert SECRET not in repr(block)
    assert AwsCredentials.get_block_type_slug() == "gpu-aws"
    with pytest.raises(ValidationError, match="is not an address range: write for example"):
        AwsCredentials(network={"ssh_from": ["everywhere"]})


FIRST_VERSION = {  # as a server stored it
    "aws": None,
    "regions": ["eu-west-1"],
    "subnets": [],
    "security_group": None,
    "ssh_from": ["203.0.113.0/24"],
    "private": True,
    "jump_host": "bastion.example.com",
    "jump_port": 2222,
    "jump_user": "ops",
    "jump_private_key": "the-jump-key",
    "jump_host_key": None,
    "gpu_image": None,
    "cpu_image": {"owner": "self", "name": "mine-*", "user": "ubuntu", "port": 22},
    "volume_type": "gp3",
    "instance_profile": None,
    "capacity_reservation": None,
}


def test_a_block_that_the_first_version_saved_loads_and_means_the_same() -> None:
    block = AwsCredentials.model_validate(FIRST_VERSION)
    assert (block.regions, block.network.private, block.network.ssh_from) == (["eu-west-1"], True, ["203.0.113.0/24"])
    jump = block.network.jump
    assert jump is not None
    assert jump.private_key is not None
    assert (jump.address, jump.port, jump.user) == ("bastion.example.com", 2222, "ops")
    assert jump.private_key.get_secret_value() == "the-jump-key"
    assert AwsCredentials.model_validate({**FIRST_VERSION, "jump_host": None}).network.jump is None


def test_the_block_gives_flows_a_client_of_their_own(cloud: AwsCloud) -> None:
    assert cloud.block().get_client("sts").get_caller_identity()["Account"] == ACCOUNT


def test_without_the_extra_the_registry_says_what_to_install() -> None:
    code = """
import sys
sys.modules["boto3"] = None
from prefect_gpu import providers
from prefect_gpu.providers.core.errors import Unsupported
assert "aws" in list(providers.ProviderName)
try:
    providers.library("aws")
except Unsupported as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False, cwd=Path.cwd()
    )
    assert "aws needs boto3: `" in done.stdout, done.stderr
