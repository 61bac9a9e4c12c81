"""Every block of ours is one that Prefect's own suite accepts, and keeps its secrets."""

from __future__ import annotations

import pytest
from prefect.blocks.core import Block
from prefect.testing.standard_test_suites import BlockStandardTestSuite
from pydantic import SecretStr

import blocks
from blocks.realm import GpuRealm
from blocks.registry import GpuRegistry

OURS = sorted(
    (block for block in Block.__subclasses__() if block.__module__.startswith(f"{blocks.__name__}.")),
    key=lambda block: block.__name__,
)


@pytest.mark.parametrize("block", OURS, ids=lambda block: block.__name__)
class TestEveryBlock(BlockStandardTestSuite):
    @pytest.fixture
    def block(self, request: pytest.FixtureRequest) -> type[Block]:
        return request.param

    def test_its_slug_begins_with_gpu(self, block: type[Block]) -> None:
        assert block.get_block_type_slug().startswith("gpu-")

    def test_every_field_has_a_title(self, block: type[Block]) -> None:
        for name, field in block.model_fields.items():
            assert field.title, f"{name} of {block.__name__} has no title"

    def test_what_is_named_like_a_secret_is_one(self, block: type[Block]) -> None:
        words = ("secret", "password", "token", "private_key", "api_key")
        for name, field in block.model_fields.items():
            if name.endswith(words):
                assert "Secret" in str(field.annotation), f"{name} of {block.__name__} is stored in clear"


def test_the_realm_and_the_registry_are_among_them() -> None:
    assert {GpuRealm, GpuRegistry} <= set(OURS)


def test_a_realm_shows_its_secret_to_nobody() -> None:
    realm = GpuRealm(realm="ab12", master_secret=SecretStr("ab" * 32))
    assert "abab" not in repr(realm) + str(realm) + realm.model_dump_json()
    assert realm.secret_bytes() == b"\xab" * 32
