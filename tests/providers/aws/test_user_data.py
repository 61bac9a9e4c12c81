"""What a machine of EC2 boots with: its keys, its end, the notice of a spot instance."""

from __future__ import annotations

import asyncio
import http.server
import os
import shutil
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import asyncssh
import pytest
import yaml

from prefect_gpu.providers.aws import order
from prefect_gpu.providers.aws.driver import Aws
from prefect_gpu.providers.aws.instances import described
from prefect_gpu.providers.core.errors import (
    InvalidRequest,
)
from prefect_gpu.providers.core.lease import Lease
from prefect_gpu.providers.core.machine import ssh as remote
from prefect_gpu.providers.core.machine.jobs import Machine
from prefect_gpu.providers.core.machine.keys import Purpose, derive
from prefect_gpu.providers.core.models import (
    InstanceState,
    JobSpec,
)
from prefect_gpu.providers.core.toolkit import cloud_init
from prefect_gpu.providers.core.toolkit import notice as notices
from tests.conformance import MASTER_SECRET, launch_spec, lease_name
from tests.fakes.aws import AwsCloud
from tests.providers.aws.ordering import (
    offer_of,
    wait_for,
)


def files_of(user_data: str) -> dict[str, str]:
    return {Path(file["path"]).name: file["content"] for file in yaml.safe_load(user_data)["write_files"]}


def test_user_data_places_the_host_key_and_who_may_log_in_and_is_the_same_bytes_twice(driver: Aws) -> None:
    spec = launch_spec(driver, lease_name())
    assert spec.host_key is not None
    text = order.user_data(offer_of(), spec)
    assert text == order.user_data(offer_of(), spec)
    assert text.startswith("#cloud-config\n")
    assert len(text.encode()) < 4096
    config = yaml.safe_load(text)
    assert config["ssh_deletekeys"] is True
    assert config["ssh_authorized_keys"] == [spec.client_public_key]
    assert config["ssh_keys"]["ed25519_private"] == spec.host_key.private.get_secret_value()
    assert config["ssh_keys"]["ed25519_public"] == spec.host_key.public
    assert "notice" not in files_of(text)
    assert "notice" in files_of(order.user_data(offer_of(spot=True), spec))


def test_user_data_that_ec2_would_not_take_is_refused_before_the_order(cloud: AwsCloud, driver: Aws) -> None:
    spec = launch_spec(driver, lease_name())
    fat = spec.model_copy(update={"client_public_key": "ssh-ed25519 " + "A" * 16_384})
    with pytest.raises(InvalidRequest, match="EC2 takes 16384"):
        driver.create_instance(offer_of(), fat)
    assert cloud.calls("RunInstances") == []


def test_user_data_is_what_cloud_init_reads(driver: Aws, tmp_path: Path) -> None:
    if shutil.which("cloud-init") is None:
        pytest.skip("cloud-init is not installed")
    file = tmp_path / "user-data"
    file.write_text(order.user_data(offer_of(spot=True), launch_spec(driver, lease_name())))
    checked = subprocess.run(
        ["cloud-init", "schema", "-c", str(file)], capture_output=True, text=True, timeout=60, check=False
    )
    assert "Valid" in checked.stdout, checked.stdout + checked.stderr


def test_the_units_are_what_systemd_reads_and_the_timer_goes_off_at_the_leases_end(driver: Aws, tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd is not installed")
    name = lease_name()
    lease = Lease.parse(name)
    assert lease is not None
    files = files_of(order.user_data(offer_of(spot=True), launch_spec(driver, name)))
    for file, content in files.items():
        (tmp_path / file).write_text(content.replace(cloud_init.FOLDER, str(tmp_path)))
        (tmp_path / file).chmod(0o755 if "." not in file else 0o644)
    units = [str(tmp_path / file) for file in files if "." in file]
    assert len(units) == 3
    checked = subprocess.run(
        ["systemd-analyze", "verify", *units], capture_output=True, text=True, timeout=60, check=False
    )
    assert checked.returncode == 0, checked.stderr
    (when,) = [line for line in files["prefect-gpu-lease.timer"].splitlines() if line.startswith("OnCalendar=")]
    read = subprocess.run(
        ["systemd-analyze", "calendar", when.removeprefix("OnCalendar=")],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env={**os.environ, "TZ": "UTC", "LC_ALL": "C"},
    )
    assert f"{lease.deadline:%Y-%m-%d %H:%M:%S} UTC" in read.stdout.partition("Next elapse:")[2]


def run_script(script: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(["/bin/sh", "-c", script])


class Imds(http.server.BaseHTTPRequestHandler):
    """The metadata service of a spot instance, version 2: no answer without a token."""

    notice: bytes | None = None

    def do_PUT(self) -> None:
        self._answer(b"a-token" if self.headers["X-aws-ec2-metadata-token-ttl-seconds"] else None)

    def do_GET(self) -> None:
        is_known = self.headers["X-aws-ec2-metadata-token"] == "a-token"
        self._answer(self.notice if is_known and self.path == "/latest/meta-data/spot/instance-action" else None)

    def _answer(self, body: bytes | None) -> None:
        self.send_response(404 if body is None else 200)
        self.send_header("Content-Length", str(len(body or b"")))
        self.end_headers()
        self.wfile.write(body or b"")

    def log_message(self, *_: Any) -> None:
        pass


def test_the_machine_hears_the_two_minute_notice_and_the_check_tells_it(driver: Aws, tmp_path: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    notice = tmp_path / "run" / "interruption"
    action = b'{"action": "terminate", "time": "2026-11-24T20:00:00Z"}'
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Imds) as imds:
        threading.Thread(target=imds.serve_forever, daemon=True).start()
        script = files_of(order.user_data(offer_of(spot=True), launch_spec(driver, lease_name())))["notice"]
        script = script.replace("169.254.169.254", f"127.0.0.1:{imds.server_port}").replace("every=5", "every=0.05")
        process = run_script(script.replace(notices.FILE, str(notice)))
        try:
            time.sleep(0.3)
            assert not notice.exists(), "no notice, no file"
            Imds.notice = action
            end = time.monotonic() + 10
            while not notice.exists():
                assert time.monotonic() < end, "the notice was not heard"
                time.sleep(0.02)
        finally:
            Imds.notice = None
            process.kill()
            process.wait(10)
            imds.shutdown()
    assert notice.read_bytes() == action
    instance = described("us-east-1", {"InstanceId": "i-1", "State": {"Name": "running"}}, driver.credentials).instance
    assert driver.check(instance, OneAnswer(b"")) is None
    assert "take this spot instance back" in (driver.check(instance, OneAnswer(action)) or "")


class OneAnswer:
    """A connection whose every command answers the same."""

    def __init__(self, answer: bytes) -> None:
        self.answer = answer

    def open(self, command: str) -> OneAnswer:
        assert notices.FILE in command
        return self

    def recv(self, _size: int) -> bytes:
        return self.answer

    def exit_status(self, _timeout_s: float) -> int:
        return 0

    def sendall(self, _data: bytes) -> None: ...

    def shutdown_write(self) -> None: ...

    def error_text(self) -> str:
        return ""

    def is_alive(self) -> bool:
        return True

    def close(self) -> None: ...


def test_the_machine_answers_with_the_key_that_was_placed_and_lets_in_whom_the_order_names(
    cloud: AwsCloud, driver: Aws
) -> None:
    spec = launch_spec(driver, lease_name())
    created = driver.create_instance(offer_of(), spec)
    ssh = wait_for(InstanceState.RUNNING, driver, created).ssh
    assert ssh is not None
    assert spec.host_key is not None
    host_key = asyncssh.import_public_key(spec.host_key.public)

    async def run(command: str, purpose: Purpose) -> asyncssh.SSHCompletedProcess:
        key = asyncssh.import_private_key(derive(MASTER_SECRET, spec.name, purpose).private.get_secret_value())
        async with asyncssh.connect(
            ssh.host,
            ssh.port,
            username=ssh.user,
            client_keys=[key],
            known_hosts=([host_key], [], []),
            config=None,
            agent_path=None,
        ) as connection:
            return await connection.run(command)

    done = asyncio.run(run('echo "$HOME"; setsid sleep 600 >/dev/null 2>&1 & exit 3', "client"))
    assert done.exit_status == 3
    with pytest.raises(asyncssh.PermissionDenied):
        asyncio.run(run("true", "host"))
    assert cloud.machine_processes(created.id), "the job's child runs on"
    driver.terminate_instance(created.id)
    wait_for(InstanceState.TERMINATED, driver, created)
    assert cloud.machine_processes(created.id) == []


def test_a_job_runs_there_by_the_supervisor_and_its_output_comes_whole(
    cloud: AwsCloud, driver: Aws, tmp_path: Path
) -> None:
    spec = launch_spec(driver, lease_name())
    running = wait_for(InstanceState.RUNNING, driver, driver.create_instance(offer_of(), spec))
    endpoint = running.ssh
    assert endpoint is not None
    assert spec.host_key is not None
    host_key, client_key = spec.host_key.public, derive(MASTER_SECRET, spec.name, "client")
    machine = Machine(lambda: remote.connect(endpoint, client_key, host_key))
    try:
        job = JobSpec(id=f"{spec.name}.1", command='echo "$HOME"; seq 20000; exit 3', timeout_s=60)
        result = machine.run(job, tmp_path / "job.log")
    finally:
        machine.close()
    assert result is not None
    assert result.exit_code == 3
    home, *lines = (tmp_path / "job.log").read_text().splitlines()
    assert running.id.split("/")[1] in home, "the machine's own home"
    assert lines == [str(number) for number in range(1, 20001)]
