"""What Azure's credentials block takes, and how it logs in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from prefect_azure.credentials import AzureContainerInstanceCredentials
from pydantic import SecretStr, ValidationError

from prefect_gpu.blocks.api import ApiAccess
from prefect_gpu.blocks.azure import CLOUDS, AzureCredentials, AzureImage
from tests.fakes.azure import facts

PRINCIPAL: dict[str, Any] = {"tenant_id": facts.TENANT, "client_id": facts.CLIENT}
RESOURCE = f"/subscriptions/{facts.SUBSCRIPTION}/resourceGroups/x"


def block(**fields: Any) -> AzureCredentials:
    return AzureCredentials(**{"subscription_id": facts.SUBSCRIPTION, **fields})


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"subscription_id": "research"}, "is not a subscription's id"),
        ({"resource_group": "/subscriptions/x"}, "write its name alone"),
        ({"resource_group": "ends."}, "is not a resource group's name"),
        ({"subnets": ["subnet-1"]}, "is not the id of a resource"),
        ({"subnets": [RESOURCE]}, "is not a subnet's id"),
        ({"security_group": "ours"}, "is not the id of a resource"),
        ({"identity": "me"}, "is not the id of a resource"),
        ({"client_secret": "x"}, "a client secret needs the tenant and the client"),
        ({"certificate": "x", "tenant_id": "t"}, "a certificate needs the tenant and the client"),
        (
            {"client_secret": "x", "managed_identity": True, **PRINCIPAL},
            "a client secret and a managed identity: keep one way",
        ),
        ({"gpu_image": {"reference": "ubuntu"}}, "is not an image"),
        ({"gpu_image": {"reference": "a:b:c"}}, "is not an image"),
        ({"cloud": "private"}, "public"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_in_a_sentence_that_says_what_to_write(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        block(**fields)


def test_ids_are_kept_without_spaces_and_an_empty_one_is_none() -> None:
    saved = block(subscription_id=f" {facts.SUBSCRIPTION.upper()} ", security_group=f" {RESOURCE}/ ", identity=" ")
    assert (saved.subscription_id, saved.security_group, saved.identity) == (facts.SUBSCRIPTION, RESOURCE, None)
    assert AzureImage(reference=" me:grid:22:latest ").reference == "me:grid:22:latest"


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({}, "DefaultAzureCredential"),
        ({"client_id": facts.CLIENT}, "DefaultAzureCredential"),
        ({"client_secret": facts.SECRET, **PRINCIPAL}, "ClientSecretCredential"),
        ({"managed_identity": True}, "ManagedIdentityCredential"),
        ({"managed_identity": True, "client_id": facts.CLIENT}, "ManagedIdentityCredential"),
        ({"azure": AzureContainerInstanceCredentials()}, "DefaultAzureCredential"),
        ({"azure": AzureContainerInstanceCredentials(client_secret=SecretStr(facts.SECRET), **PRINCIPAL)}, "ClientSecretCredential"),
    ],
)  # fmt: skip
def test_each_way_to_log_in_is_azure_identity_s_own(fields: dict[str, Any], kind: str) -> None:
    assert type(block(**fields).get_credential()).__name__ == kind


def test_a_certificate_is_text_or_a_file(tmp_path: Any) -> None:
    from datetime import UTC, datetime, timedelta

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    key = rsa.generate_private_key(65537, 2048)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "worker")])
    now = datetime.now(UTC)
    made = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(7)
    certificate = made.not_valid_before(now).not_valid_after(now + timedelta(days=1)).sign(key, hashes.SHA256())
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    text = (pem + certificate.public_bytes(serialization.Encoding.PEM)).decode()
    (tmp_path / "worker.pem").write_text(text)
    for given in (text, str(tmp_path / "worker.pem")):
        assert type(block(certificate=given, **PRINCIPAL).get_credential()).__name__ == "CertificateCredential"


def test_proxy_and_ca_of_the_company_are_on_the_way_to_the_login_too(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import azure.identity

    from tests.fakes.authority import Authority

    given: dict[str, Any] = {}
    monkeypatch.setattr(azure.identity, "ClientSecretCredential", lambda *_, **how: given.update(how))
    ca = Authority(tmp_path).ca
    way = ApiAccess(proxy=SecretStr("http://me:pass-word@proxy.example:3128"), ca=str(ca))
    block(client_secret=facts.SECRET, api=way, cloud="us-government", **PRINCIPAL).get_credential()
    assert given["authority"] == CLOUDS["us-government"].login
    assert given["proxies"]["https"] == "http://me:pass-word@proxy.example:3128"
    told = Path(given["connection_verify"]).read_text()
    assert ca.read_text() in told
    assert told.count("BEGIN CERTIFICATE") > 50, "the public ones stay trusted"


def test_the_block_gives_a_client_that_is_logged_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AzureCredentials, "get_credential", lambda _: facts.FakeCredential())
    client = block().get_client()
    assert str(client.base_url) == "https://management.azure.com"
    assert client.headers["authorization"] == f"Bearer {facts.token_of(1)}"
