"""Every block of ours is one that Prefect's own suite accepts, and keeps its secrets."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path
from typing import Any

import httpx
import pytest
from prefect.blocks.core import Block
from prefect.testing.standard_test_suites import BlockStandardTestSuite
from pydantic import SecretStr

from prefect_gpu.blocks import collection
from prefect_gpu.blocks.api import ApiAccess
from prefect_gpu.blocks.realm import GpuRealm
from prefect_gpu.blocks.vultr import VultrCredentials
from tests.bench.imports import imported

FOLDER = Path(collection.__file__).parent
OURS = collection.installed()
SDKS = {  # what each provider's block and no other may load
    "aws": {"aiobotocore", "boto3", "botocore", "prefect_aws"},
    "azure": {"msal", "paramiko", "prefect_azure"},  # prefect_azure itself loads paramiko
    "gcp": {"googleapiclient", "prefect_gcp"},
    "kubernetes": {"kubernetes", "kubernetes_asyncio", "prefect_kubernetes"},
}
NAMES_OF_SECRETS = {"pull_secret"}  # of an object in the cluster
HEAVY = {"asyncssh", "gpuhunt", "paramiko", "pandas", "rapidfuzz"}.union(*SDKS.values())


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
            if name.endswith(words) and name not in NAMES_OF_SECRETS:
                assert "Secret" in str(field.annotation), f"{name} of {block.__name__} is stored in clear"


def test_the_collection_lists_every_block_of_every_file() -> None:
    there = {path.stem: [block.__name__ for block in blocks_in(path)] for path in FOLDER.glob("*.py")}
    assert {file: names for file, names in there.items() if names} == {
        module: [name] for module, name in collection.BLOCKS.items()
    }
    assert len(OURS) == len(collection.BLOCKS), "an extra is not installed here"


def blocks_in(path: Path) -> list[type[Block]]:
    """The block classes that a file defines, whatever their base is called."""
    classes = [node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef)]
    module = __import__(f"prefect_gpu.blocks.{path.stem}", fromlist=classes) if classes else None
    found = [getattr(module, name) for name in classes]
    return [one for one in found if issubclass(one, Block)]


def test_prefect_finds_the_collection_by_itself() -> None:
    project = tomllib.loads((FOLDER.parent / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["prefect.collections"] == {"prefect_gpu": collection.__name__}


def test_no_sdk_is_imported_before_it_is_used() -> None:
    assert not tops("prefect_gpu.blocks", "prefect_gpu.flows.provision", "prefect_gpu.flows.reap") & HEAVY


def test_blocks_without_an_sdk_import_none() -> None:
    assert not tops(*(f"prefect_gpu.blocks.{module}" for module in collection.BLOCKS if module not in SDKS)) & HEAVY


@pytest.mark.parametrize("provider", sorted(SDKS))
def test_a_block_imports_no_other_providers_sdk(provider: str) -> None:
    assert not tops(f"prefect_gpu.blocks.{provider}") & (HEAVY - SDKS[provider])


def tops(*modules: str) -> set[str]:
    """The packages that are loaded in a new process once the modules are imported."""
    return {name.partition(".")[0] for name in imported(*modules)[1]}


def test_a_block_whose_extra_is_missing_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    real = collection.importlib.import_module

    def without_boto3(name: str) -> object:
        if name.endswith(".aws"):
            raise ModuleNotFoundError("No module named 'boto3'", name="boto3")
        return real(name)

    monkeypatch.setattr(collection.importlib, "import_module", without_boto3)
    assert {block.__name__ for block in collection.installed()} == set(collection.BLOCKS.values()) - {"AwsCredentials"}


def test_a_fault_of_our_own_is_not_taken_for_a_missing_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> object:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(collection.importlib, "import_module", broken)
    with pytest.raises(ModuleNotFoundError):
        collection.installed()


def test_a_realm_shows_its_secret_to_nobody() -> None:
    realm = GpuRealm(realm="ab12", master_secret=SecretStr("ab" * 32))
    assert "abab" not in repr(realm) + str(realm) + realm.model_dump_json()
    assert realm.secret_bytes() == b"\xab" * 32


def test_a_client_of_a_block_trusts_the_company_s_ca_beside_the_public_ones_and_goes_by_its_proxy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.fakes.authority import Authority

    given: dict[str, Any] = {}
    monkeypatch.setattr(httpx, "Client", lambda **how: given.update(how))
    ca = Authority(tmp_path).ca
    for told in (str(ca), ca.read_text()):
        way = ApiAccess(proxy=SecretStr("http://me:pass-word@proxy.example:3128"), ca=told)
        VultrCredentials(api_key=SecretStr("key-1"), api=way).get_client()
        public = len(httpx.create_ssl_context().get_ca_certs())
        assert len(given["verify"].get_ca_certs()) == public + 1
        assert given["proxy"] == "http://me:pass-word@proxy.example:3128"
        assert given["headers"] == {"authorization": "Bearer key-1"}
