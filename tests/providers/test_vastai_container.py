"""A Vast.ai container from inside and by its log: the host key that it tells, a start after a stop, and the end that it makes itself."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from prefect_gpu.blocks.vastai import VastaiCredentials
from prefect_gpu.providers.core.errors import InstanceFailed, NotReady, Transient
from prefect_gpu.providers.core.models import Instance, InstanceState, LaunchSpec, utc_now
from prefect_gpu.providers.core.renting.library import TaskLibrary
from prefect_gpu.providers.core.toolkit import container_boot, log_file
from prefect_gpu.providers.vastai.driver import Vastai
from tests.conformance import MASTER_SECRET, launch_spec, lease_name
from tests.core.test_container_boot import has_image
from tests.fakes import vastai as fakes
from tests.fakes.served import served
from tests.fakes.vastai import FakeVastai
from tests.providers.test_vastai import H100, KEY, SPOT, _quick, cloud, ready, vastai

__all__ = ["_quick", "cloud"]


# --- the log -------------------------------------------------------------------------------------------------------------


def ordered(cloud: FakeVastai, **more: Any) -> tuple[Vastai, Instance, LaunchSpec, dict[str, Any]]:
    driver = vastai(cloud)
    spec = launch_spec(driver, lease_name(), **more)
    made = driver.create_instance(driver.fetch_offers(H100)[0], spec)
    cloud.advance(10)
    return driver, driver.get_instance(made.id), spec, cloud.of(made.id)


def told(spec: LaunchSpec, letter: str = "A") -> str:
    return f"prefect-gpu host key {container_boot.nonce(spec.client_public_key)} ssh-ed25519 {letter * 68}\n"


def test_the_host_key_is_the_first_that_the_log_tells_and_no_noise_hides_it(cloud: FakeVastai) -> None:
    driver, made, spec, contract = ordered(cloud)
    nonce = container_boot.nonce(spec.client_public_key)
    forged = f"prefect-gpu host key {'0' * 32} ssh-ed25519 {'B' * 68}\n"
    noise = "error: kex_exchange_identification: Connection closed by remote host\n" * 5000
    contract["log"] = "installs\n" + forged + told(spec) + noise + told(spec, "C")
    log = driver.read_log(made)
    assert container_boot.host_key_in(log, nonce) == f"ssh-ed25519 {'A' * 68}"
    assert len(log) < 1000, "only what the container says of itself is fetched"
    contract["log"] = "prefect-gpu failed: the image has no OpenSSH server, and none can be installed\n"
    assert (
        container_boot.failure_in(driver.read_log(made)) == "the image has no OpenSSH server, and none can be installed"
    )


def test_a_log_is_waited_for_a_moment_and_is_empty_where_it_does_not_come(
    cloud: FakeVastai, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver, made, spec, contract = ordered(cloud)
    contract["log"] = told(spec)
    cloud.logs_late = log_file.TRIES - 1
    assert driver.read_log(made) == told(spec)
    cloud.logs_late = log_file.TRIES
    assert driver.read_log(made) == ""
    monkeypatch.setattr(log_file, "MAX_BYTES", 100)
    contract["log"] = "prefect-gpu\n" * 100
    with pytest.raises(Transient, match="larger than 100 bytes"):
        driver.read_log(made)


def test_the_key_goes_to_no_storage_and_a_redirect_to_nowhere(cloud: FakeVastai) -> None:
    driver, made, spec, contract = ordered(cloud)
    contract["log"] = told(spec)
    hosts: list[str] = []
    served_ = cloud._log_file

    def elsewhere(request: httpx.Request) -> httpx.Response:
        hosts.append(request.url.host)
        assert KEY not in f"{request.headers} {request.url}"
        return httpx.Response(302, headers={"location": "https://169.254.169.254/latest/meta-data"})

    cloud._log_file = elsewhere  # type: ignore[method-assign]
    assert driver.read_log(made) == ""
    assert set(hosts) == {"s3.amazonaws.com"}
    cloud._log_file = served_  # type: ignore[method-assign]
    assert driver.read_log(made) == told(spec)


@pytest.mark.parametrize("address", ["http://s3.amazonaws.com/x", "file:///etc/passwd", "", None, 7, "https://", "https://xn--/", "//x", "https://a:b/"])  # fmt: skip
def test_an_address_of_a_log_that_is_none_is_an_error_and_nothing_is_fetched(cloud: FakeVastai, address: Any) -> None:
    driver, made, _, _ = ordered(cloud)
    cloud.next["other"] = httpx.Response(200, json={"success": True, "result_url": address})
    with pytest.raises(Transient, match="names no place from which a log can be fetched"):
        driver.read_log(made)
    assert cloud.requests[-1][0] == "PUT"


def connected(cloud: FakeVastai) -> tuple[TaskLibrary[Any], Vastai]:
    tasks: TaskLibrary[Any] = TaskLibrary(Vastai, VastaiCredentials)
    tasks.connections.drivers["default"] = driver = vastai(cloud)
    tasks.connections._secret = MASTER_SECRET
    return tasks, driver


def test_until_the_log_tells_its_key_a_container_is_not_ready_and_an_image_without_ssh_says_so(
    cloud: FakeVastai,
) -> None:
    tasks, driver = connected(cloud)
    made = ready(cloud, driver)
    with pytest.raises(NotReady, match="log does not show its host key yet"):
        tasks.connections.connect(made)
    cloud.of(made.id)["log"] = "prefect-gpu failed: the image does not run as root, and jobs are sent to root\n"
    tasks.connections._logs_read.clear()
    with pytest.raises(InstanceFailed, match=r"^the image does not run as root, and jobs are sent to root$"):
        tasks.wait_until_ready.fn(made, driver.fetch_offers(H100)[0])


def test_a_contract_that_is_stopped_ends_the_wait_for_it(cloud: FakeVastai) -> None:
    tasks, driver = connected(cloud)
    made = ready(cloud, driver, SPOT)
    cloud.outbid(made.id)
    with pytest.raises(InstanceFailed, match="stopped for a higher bid") as failed:
        tasks.wait_until_ready.fn(made, driver.fetch_offers(SPOT)[0])
    assert failed.value.category == "interrupted"
    assert tasks._why_gone(driver, made) == "it was stopped for a higher bid, and would start again by itself"


@pytest.mark.docker
@pytest.mark.skipif(not has_image("sshd:local"), reason="needs a Docker Engine with the image sshd:local")
def test_a_container_boots_what_its_order_says_is_logged_in_to_by_the_key_in_its_log_and_starts_again_with_another() -> (
    None
):
    with FakeVastai(KEY, machines="docker", resumes_after_s=60) as cloud:
        tasks, driver = connected(cloud)
        offer = driver.fetch_offers(SPOT)[0]
        made = driver.create_instance(offer, launch_spec(driver, lease_name(), image="sshd:local"))
        cloud.advance(30)
        there = tasks.wait_until_ready.fn(made, offer)
        channel = tasks.connections.connect(there).open("id -un; nvidia-smi --query-gpu=name; exit 3")
        assert channel.recv(4).startswith(b"root")
        assert channel.exit_status(10) == 3
        cloud.outbid(made.id)
        assert "higher bid" in (tasks._why_gone(driver, there) or "")
        cloud.advance(61)  # it starts again by itself: whoever meets it takes it for another machine
        tasks.connections._logs_read.clear()
        again = driver.get_instance(made.id)
        assert again.state is InstanceState.RUNNING
        said: Exception | None = None
        for _ in range(50):
            try:
                tasks.connections.connect(again)
            except NotReady:
                tasks.connections._logs_read.clear()
                time.sleep(0.2)
            except InstanceFailed as failed:
                said = failed
                break
        assert isinstance(said, InstanceFailed)
        assert said.category == "lost"
        driver.terminate_instance(made.id)
        assert cloud.alive() == []


# --- the end of a lease --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("has", ["curl", "python3", "apk", "apt-get"])
def test_a_container_destroys_its_own_contract_with_its_own_key_and_no_word_of_that_stands_in_its_log(
    has: str, cloud: FakeVastai, tmp_path: Path
) -> None:
    """The commands as they run there, against the API under its own name, with no more than these programs at hand."""
    if shutil.which("curl") is None:
        pytest.skip("needs curl")
    cloud.is_taken = False
    driver = vastai(cloud)
    made, other = ready(cloud, driver), ready(cloud, driver)
    contract = cloud.of(made.id)
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    (tmp_path / "tls").mkdir()
    sh, ln, curl = (str(shutil.which(one)) for one in ("sh", "ln", "curl"))
    does = {
        "curl": f'exec {curl} "$@"',
        "python3": f'exec {sys.executable} "$@"',
        **dict.fromkeys(("apk", "apt-get"), f'case "$*" in *curl*) {ln} -s {curl} {bin_}/curl ;; esac'),
    }
    (bin_ / has).write_text(f"#!{sh}\n{does[has]}\n")
    (bin_ / has).chmod(0o755)
    variables = {key: str(value) for key, value in contract["body"]["env"].items() if not key.startswith("-")}
    with served(cloud, "console.vast.ai", tmp_path / "tls") as api:
        assert api.proxy is not None
        (tmp_path / "ca.pem").write_text(str(api.ca))
        given = {
            **variables, "PATH": str(bin_), "CONTAINER_ID": str(contract["id"]), "CONTAINER_API_KEY": contract["key"],
            "https_proxy": api.proxy.get_secret_value(), "CURL_CA_BUNDLE": str(tmp_path / "ca.pem"), "SSL_CERT_FILE": str(tmp_path / "ca.pem"),
        }  # fmt: skip

        def ends() -> str:
            done = subprocess.run(
                [sh, "-c", variables["PREFECT_GPU_GIVE_BACK"]], env=given, capture_output=True, text=True, check=False, timeout=60,
            )  # fmt: skip
            return done.stdout + done.stderr

        cloud.next["delete"] = httpx.Response(429, text="API requests too frequent")
        tries = [ends() for _ in range(3)]
    assert cloud.ends == [(contract["id"], contract["key"])]
    assert cloud.alive() == [other.name]
    assert contract["key"] not in "".join(tries)
    assert KEY not in json.dumps(contract["body"])


@pytest.mark.docker
@pytest.mark.skipif(not has_image("sshd:local"), reason="needs a Docker Engine with the image sshd:local")
def test_at_the_end_of_its_lease_a_container_calls_vast_ai_with_what_vast_ai_put_there(tmp_path: Path) -> None:
    with FakeVastai(KEY, machines="docker") as cloud:
        driver = vastai(cloud)
        curl = tmp_path / "curl"
        curl.write_text('#!/bin/sh\necho "curl $*"\n')
        curl.chmod(0o755)
        cloud.mounts = ("-v", f"{curl}:/usr/bin/curl:ro")
        spec = launch_spec(driver, lease_name(), image="sshd:local", deadline=utc_now())
        made = driver.create_instance(driver.fetch_offers(H100)[0], spec)
        cloud.advance(10)
        driver.get_instance(made.id)
        contract = cloud.of(made.id)
        wanted = f"curl -sfm30 -XDELETE -H Authorization: Bearer {contract['key']} https://console.vast.ai/api/v0/instances/{contract['id']}/"
        end = time.monotonic() + 60
        while wanted not in (log := fakes.docker("logs", contract["container"])) and time.monotonic() < end:
            time.sleep(0.2)
        assert "prefect-gpu the lease is over" in log
        assert wanted in log
