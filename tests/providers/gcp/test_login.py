"""Who asks: keys, Application Default Credentials, other service accounts; and what a block refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from prefect_gcp import GcpCredentials as PrefectGcpCredentials
from pydantic import SecretStr, ValidationError

from prefect_gpu.blocks.api import ApiAccess
from prefect_gpu.blocks.gcp import GcpCredentials, GcpOptions
from prefect_gpu.providers.core.errors import AuthFailed, InvalidRequest, ProviderError, Transient
from prefect_gpu.providers.gcp.driver import Gcp
from prefect_gpu.providers.gcp.login import Account
from tests.conformance import launch_spec, lease_name
from tests.fakes.gcp import FakeGcp
from tests.fakes.gcp.project import EMAIL, PROJECT, error, key, priced_offers
from tests.providers.gcp.conftest import gcp, offer_of


def driver_of(cloud: FakeGcp, transport: httpx.BaseTransport | None = None, **block: Any) -> Gcp:
    return Gcp(GcpCredentials(**block), transport=transport or cloud.transport, priced_offers=priced_offers)


def test_a_token_is_kept_while_it_is_good_and_renewed_when_it_is_refused(cloud: FakeGcp) -> None:
    driver = gcp(cloud)
    for _ in range(3):
        assert driver.account_id() == PROJECT
    assert cloud.logins == 1
    cloud.tokens.clear()
    made = driver.create_instance(offer_of("e2-standard-4"), launch_spec(driver, lease_name()))
    assert (cloud.logins, cloud.creates, len(cloud.vms)) == (2, 1, 1)
    cloud.next["insert"] = error(401, "authError", "Token expired as the order was sent")
    again = driver.create_instance(offer_of("e2-standard-4"), launch_spec(driver, lease_name()))
    assert (cloud.logins, {one.name for one in cloud.vms}) == (3, {made.name, again.name})
    cloud.token_good_for_s = 30  # so short that it is renewed at once
    cloud.tokens.clear()
    driver.account_id()


def test_a_saved_block_of_prefect_gcp_is_used_as_it_is(cloud: FakeGcp, tmp_path: Path) -> None:
    official = PrefectGcpCredentials(service_account_info=key())  # type: ignore[arg-type]
    assert driver_of(cloud, gcp=official).account_id() == PROJECT
    file = tmp_path / "key.json"
    file.write_text(key())
    assert driver_of(cloud, gcp=PrefectGcpCredentials(service_account_file=file)).account_id() == PROJECT
    assert driver_of(cloud, gcp=official, project="other-1").api.project == "other-1"


def test_a_key_may_be_named_by_its_path_on_the_worker(cloud: FakeGcp, tmp_path: Path) -> None:
    file = tmp_path / "key.json"
    driver = driver_of(cloud, key=SecretStr(f" {file}"))
    with pytest.raises(AuthFailed, match="No such file or directory"):
        driver.account_id()
    file.write_text("{}")
    with pytest.raises(AuthFailed, match="Look at the block's credentials"):
        driver.account_id()
    file.write_text(key())
    assert driver.account_id() == PROJECT


def test_application_default_credentials_are_found_where_the_worker_s_environment_names_them(
    cloud: FakeGcp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "adc.json"
    file.write_text(key())
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(file))
    assert driver_of(cloud).account_id() == PROJECT
    assert driver_of(cloud, gcp=PrefectGcpCredentials.model_construct(service_account_info=None, service_account_file=None, project=None)).account_id() == PROJECT  # fmt: skip


def test_a_workload_identity_gets_its_token_from_its_provider_and_google_s_exchange(
    cloud: FakeGcp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "oidc").write_text("the-pods-own-token")
    told = {
        "type": "external_account", "audience": "//iam.googleapis.com/projects/8181/locations/global/workloadIdentityPools/k/providers/k",
        "subject_token_type": "urn:ietf:params:oauth:token-type:jwt", "token_url": "https://sts.googleapis.com/v1/token",
        "credential_source": {"file": str(tmp_path / "oidc")},
    }  # fmt: skip
    (tmp_path / "adc.json").write_text(json.dumps(told))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "adc.json"))
    exchanged: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.host == "sts.googleapis.com":
            exchanged.append(request.content.decode())
            cloud.tokens["federated"] = cloud.now + 600
            body = {"access_token": "federated", "expires_in": 600, "token_type": "Bearer", "issued_token_type": "x"}
            return httpx.Response(200, json=body)
        if request.url.host == "cloudresourcemanager.googleapis.com":  # the audience has the project's number alone
            return httpx.Response(200, json={"projectId": PROJECT})
        return cloud.answer(request)

    assert driver_of(cloud, httpx.MockTransport(answer)).account_id() == PROJECT
    assert "subject_token=the-pods-own-token" in exchanged[0]


def test_another_service_account_is_acted_as(cloud: FakeGcp) -> None:
    asked: list[tuple[str, str]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.host == "iamcredentials.googleapis.com":
            asked.append((request.url.path, request.headers["authorization"]))
            cloud.tokens["acted"] = cloud.now + 3600
            return httpx.Response(200, json={"accessToken": "acted", "expireTime": "2099-01-01T00:00:00Z"})
        if request.url.path.startswith("/compute"):
            assert request.headers["authorization"] == "Bearer acted"
        return cloud.answer(request)

    block: dict[str, Any] = {"key": SecretStr(key()), "impersonate": "renter@example.iam.gserviceaccount.com"}
    assert driver_of(cloud, httpx.MockTransport(answer), **block).account_id() == PROJECT
    ((path, login),) = asked
    assert path == "/v1/projects/-/serviceAccounts/renter@example.iam.gserviceaccount.com:generateAccessToken"
    assert login.startswith("Bearer ya29.1.")


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (400, {"error": "invalid_grant", "error_description": "Invalid JWT Signature."}, AuthFailed),
        (401, {"error": "invalid_client", "error_description": "The OAuth client was not found."}, AuthFailed),
        (503, {"error": "internal_failure"}, Transient),
    ],
)
def test_a_login_that_google_refuses_says_why_and_repeats_no_secret(
    cloud: FakeGcp, status: int, body: dict[str, str], kind: type[ProviderError], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)  # google-auth waits between its own tries
    refuse = httpx.MockTransport(lambda request: httpx.Response(status, json=body))
    with pytest.raises(kind) as refused:
        driver_of(cloud, refuse, key=SecretStr(key())).account_id()
    assert list(body.values())[-1] in refused.value.message
    assert "PRIVATE KEY" not in refused.value.message
    assert refused.value.__cause__ is None


def test_a_login_that_reaches_nobody_is_transient(cloud: FakeGcp) -> None:
    def broken(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("[Errno 111] Connection refused")

    with pytest.raises(Transient, match=r"ConnectError at oauth2\.googleapis\.com"):
        driver_of(cloud, httpx.MockTransport(broken), key=SecretStr(key())).account_id()


def test_without_any_credentials_the_message_says_what_to_do(
    cloud: FakeGcp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("GOOGLE_APPLICATION_CREDENTIALS", "GCE_METADATA_HOST", "GOOGLE_CLOUD_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    with pytest.raises(AuthFailed, match="Your default credentials were not found"):
        driver_of(cloud).account_id()
    user = {"type": "authorized_user", "client_id": "c", "client_secret": "s", "refresh_token": "r"}
    (tmp_path / "application_default_credentials.json").write_text(json.dumps(user))
    with pytest.raises(InvalidRequest, match="name no project: give the block's field project its id"):
        driver_of(cloud).account_id()


def test_the_way_to_google_is_the_block_s(tmp_path: Path) -> None:
    block = GcpCredentials(key=SecretStr(key()), api=ApiAccess(proxy=SecretStr("http://me:pass-word@127.0.0.1:1")))
    with pytest.raises(Transient) as refused:
        Account(block).login()
    assert "pass-word" not in refused.value.message
    with pytest.raises(ProviderError, match="the CA of the account's block cannot be used"):
        Account(GcpCredentials(key=SecretStr(key()), api=ApiAccess(ca=str(tmp_path / "none.pem")))).login()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"key": "not json"}, "this is not a service account's key"),
        ({"key": '{"type": "authorized_user"}'}, "this is not a service account's key"),
        ({"key": "[]"}, "this is not a service account's key"),
        ({"subnets": ["my-subnet"]}, "is not a subnet: write for example us-central1/my-subnet"),
        ({"network_tags": ["Allow SSH"]}, "is not a network tag"),
        ({"options": {"reservation": "mine"}}, "is not a reservation: write for example us-central1-a/my-reservation"),
        ({"options": {"image": "ubuntu"}}, "image"),
        ({"project": "My Project"}, "project"),
        ({"endpoint": "compute.example"}, "endpoint"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_a_block_is_said_when_it_is_saved(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        GcpCredentials(**fields)


def test_a_block_keeps_its_key_and_reads_names_in_each_form() -> None:
    block = GcpCredentials(
        key=SecretStr(key()),
        subnets=[
            "us-central1/a",
            "projects/host-1/regions/europe-west4/subnetworks/b",
            "https://www.googleapis.com/compute/v1/projects/host-2/regions/asia-east1/subnetworks/c",
        ],
        options=GcpOptions(reservation="projects/p-1/zones/us-central1-a/reservations/r"),
    )
    assert "PRIVATE KEY" not in repr(block) + block.model_dump_json()
    assert block.subnet_in("us-central1") == (None, "a")
    assert block.subnet_in("europe-west4") == ("host-1", "b")
    assert block.subnet_in("asia-east1") == ("host-2", "c")
    assert block.subnet_in("us-east1") is None
    assert block.options.reserved_in() == ("p-1", "us-central1-a", "r")
    assert GcpCredentials(key=SecretStr("")).key is None
    credentials, project = block.get_credentials()
    assert (credentials.service_account_email, project) == (EMAIL, PROJECT)


def test_the_block_gives_flows_a_client_of_google_s_own() -> None:
    pytest.importorskip("google.cloud.compute_v1")
    client = GcpCredentials(key=SecretStr(key()), endpoint="https://compute-x.p.googleapis.com").get_client(
        "machine_types"
    )
    assert type(client).__name__ == "MachineTypesClient"
    assert client.api_endpoint == "https://compute-x.p.googleapis.com"


def test_without_the_extra_the_registry_says_what_to_install() -> None:
    code = """
import sys
sys.modules["prefect_gcp"] = None
from prefect_gpu import providers
from prefect_gpu.providers.core.errors import Unsupported
assert "gcp" in list(providers.ProviderName)
try:
    providers.library("gcp")
except Unsupported as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert "gcp needs prefect_gcp: `" in done.stdout, done.stderr
