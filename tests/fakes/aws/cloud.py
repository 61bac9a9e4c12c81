"""What tests hold of the cloud: orders to it, blocks and drivers that speak to it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

from prefect_gpu.blocks.aws import AwsCredentials, AwsImage, PrefectAwsCredentials
from prefect_gpu.providers.aws.driver import Aws
from tests.fakes.aws.account import IMAGES, priced_offers

ROOT = Path(__file__).resolve().parents[3]


class AwsCloud:
    """The running cloud: orders to the layer, blocks and drivers that speak to it. From another process: its address."""

    def __init__(self, endpoint_url: str, ssh_port: int, process: subprocess.Popen[bytes] | None = None) -> None:
        self.endpoint_url, self.ssh_port, self._process = endpoint_url, ssh_port, process

    @classmethod
    def start(cls, folder: Path) -> AwsCloud:
        (folder / "images.json").write_text(json.dumps(IMAGES))
        environment = {**os.environ, "MOTO_AMIS_PATH": str(folder / "images.json"), "PYTHONPATH": str(ROOT)}
        with (folder / "cloud.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.fakes.aws", str(folder)],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.PIPE,  # its end is the cloud's end, however this process dies
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise RuntimeError((folder / "cloud.log").read_text())
        port, ssh_port = json.loads(line)
        return cls(f"http://127.0.0.1:{port}", ssh_port, process)

    def stop(self) -> None:
        assert self._process is not None, "only who started the cloud stops it"
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(30)
        self._process.stdout.close()

    def block(self, **fields: Any) -> AwsCredentials:
        """A credentials block for this cloud, ready to be saved."""
        official = PrefectAwsCredentials(
            aws_access_key_id="AKIAIOSFODNN7EXAMPLE",
            aws_secret_access_key="wJalrXUtnFEMI-K7MDENG-bPxRfiCYEXAMPLEKEY",
            region_name="us-east-1",
            aws_client_parameters={"endpoint_url": self.endpoint_url},
        )
        machine = AwsImage(owner="self", name="test-machine-*", user="root", port=self.ssh_port)
        return AwsCredentials(**{"aws": official, "cpu_image": machine, "gpu_image": machine, **fields})

    def driver(self, **fields: Any) -> Aws:
        return Aws(self.block(**fields), priced_offers=priced_offers)

    def reset(self) -> None:
        """An empty account again: no instances, no faults, all defaults."""
        self._tell(op="reset")

    def fail(
        self,
        action: str,
        code: str = "",
        *,
        how: str = "refused",
        status: int = 400,
        message: str = "as the test wants",
        region: str | None = None,
        zone: str | None = None,
        times: int | None = 1,
    ) -> None:
        """The next calls of `action` ("*": all) fail: `refused` by code, `lost` or `unreadable` after they were carried out,
        `empty` without an instance, `dropped` before.
        """
        self._tell(op="fail", fault={"action": action, "code": code, "how": how, "status": status, "message": message, "region": region, "zone": zone, "times": times})  # fmt: skip

    def mend(self) -> None:
        """No more faults."""
        self._tell(op="mend")

    def set(self, **settings: Any) -> None:
        """`page_size`, `hide_new` (s), `boot_s`, `shutdown_s`, `regions`, `quotas` ({code: vCPU}), `keep_volumes`,
        `reservations` ({id: what DescribeCapacityReservations shows of it}).
        """
        self._tell(op="set", settings=settings)

    def calls(self, action: str = "") -> list[dict[str, Any]]:
        """What was asked since the reset: action, region and parameters."""
        return [call for call in self._tell(op="calls") if action in {"", call["action"]}]

    def alive(self) -> list[dict[str, Any]]:
        """The truth behind all listings: every instance that is not terminated, hidden or not."""
        return self._tell(op="alive")

    def take_back(self, instance_id: str, code: str = "Server.SpotInstanceTermination", message: str = "Spot instance termination") -> None:  # fmt: skip
        """AWS ends an instance by itself."""
        self._tell(op="end", id=instance_id.rpartition("/")[2], code=code, message=message)

    def show_status(self, instance_id: str, status: str) -> None:
        """Every answer shows this state of the instance from now on."""
        self._tell(op="status", id=instance_id.rpartition("/")[2], status=status)

    def end_lease(self, instance_id: str) -> None:
        """The timer that the machine's user data set goes off now."""
        self._tell(op="lease", id=instance_id.rpartition("/")[2])

    def machine_processes(self, instance_id: str) -> list[int]:
        """What runs on an instance's machine."""
        return self._tell(op="processes", id=instance_id.rpartition("/")[2])

    def ec2(self, region: str = "us-east-1") -> Any:
        """boto3's own client, for what no driver does."""
        return self.block().get_client("ec2", region)

    def _tell(self, **order: Any) -> Any:
        request = urllib.request.Request(f"{self.endpoint_url}/_cloud", json.dumps(order).encode())
        with urllib.request.urlopen(request, timeout=30) as reply:
            return json.loads(reply.read())
