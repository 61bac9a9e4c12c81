"""EC2 for tests: moto's server in a process of its own, made to behave like EC2 where moto does not, with real SSH machines.

`AwsCloud.start(folder)` starts the process (`python -m tests.fakes.aws`); it survives whatever happens to the flows that use it
and ends with the test process. What moto does differently, and the layer around it does as AWS documents it:

* moto starts a new instance for each RunInstances: here a ClientToken is a key within Region and zone; the same token with other
  parameters is `IdempotentParameterMismatch`, with the same ones the first answer again (also while the first is being carried out),
  and `IdempotentInstanceTerminated` once its instance is terminated;
* moto's instances run at once and end at once: here they are `pending`, `running`, `shutting-down`, `terminated`;
* moto shows at once what was made: here listings can lag (`hide_new`), by id it is `InvalidInstanceID.NotFound` until then;
* moto has no machines: here each instance has an SSH server on a loopback address of its own (tests/fakes/aws_machine.py),
  reads its user data, and ends itself at its lease's end;
* moto tags no network interfaces at RunInstances, knows no `client-token` filter, no EC2 quotas and pages only instances: here it does;
* moto has no capacity reservations: here they are what `set(reservations=)` says, and orders that do not fit theirs are refused;
* moto drops the IOPS of an order's disk, and so refuses every io2: here an io2 has what was asked for, within EC2's bounds;
* moto terminates the first of two ids though the second is unknown: EC2 terminates none;
* errors by code, lost and unreadable answers, closed regions: `fail()`.
"""

from __future__ import annotations

import base64
import copy
import io
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode
from xml.etree import ElementTree as ET
from xml.sax.saxutils import escape

from blocks.aws import AwsCredentials, AwsImage, PrefectAwsCredentials
from providers.aws import Aws
from providers.core import prices
from providers.core.matching import fits
from providers.core.models import Offer, Requirements, utc_now
from providers.core.snapshot import Kind, Place, Price
from tests.fakes.aws_machine import Machine

REGIONS = ("us-east-1", "us-west-2", "eu-west-1")
ACCOUNT = "123456789012"  # moto's
ROOT = Path(__file__).resolve().parents[2]

# What the price list says: type, region, USD per hour, spot, vCPU, GB, GPU, count, GB per GPU. Sorted nowhere, on purpose.
PRICES = (
    ("p4d.24xlarge", "us-east-1", 21.96, False, 96, 1152, "A100", 8, 40),
    ("g4dn.xlarge", "us-east-1", 0.526, False, 4, 16, "T4", 1, 16),
    ("g4dn.xlarge", "us-east-1", 0.158, True, 4, 16, "T4", 1, 16),
    ("g4dn.xlarge", "us-west-2", 0.526, False, 4, 16, "T4", 1, 16),
    ("g4dn.xlarge", "eu-west-1", 0.587, False, 4, 16, "T4", 1, 16),
    ("m5.large", "us-west-2", 0.096, False, 2, 8, None, 0, None),
    ("m5.large", "us-east-1", 0.096, False, 2, 8, None, 0, None),
    ("m5.large", "us-east-1", 0.035, True, 2, 8, None, 0, None),
    ("m5.large", "eu-west-1", 0.107, False, 2, 8, None, 0, None),
)


def _image(number: int, name: str, owner: str, created: str, arch: str = "x86_64") -> dict[str, Any]:
    return {
        "ami_id": f"ami-{number:08x}",
        "name": name,
        "owner_id": owner,
        "creation_date": created,
        "architecture": arch,
        "root_device_name": "/dev/sda1",
        "root_device_type": "ebs",
        "virtualization_type": "hvm",
        "description": name,
        "public": True,
    }


# The newest stands neither first nor last, and somebody else's image of the same name is newer.
IMAGES = (
    _image(1, "Deep Learning Base OSS Nvidia Driver GPU AMI (Ubuntu 22.04) 20260101", "898082745236", "2026-01-01T00:00:00.000Z"),
    _image(2, "Deep Learning Base OSS Nvidia Driver GPU AMI (Ubuntu 22.04) 20261001", "898082745236", "2026-10-01T00:00:00.000Z"),
    _image(3, "Deep Learning Base OSS Nvidia Driver GPU AMI (Ubuntu 22.04) 20260501", "898082745236", "2026-05-01T00:00:00.000Z"),
    _image(4, "Deep Learning Base OSS Nvidia Driver GPU AMI (Ubuntu 22.04) 20261111", "666666666666", "2026-11-11T00:00:00.000Z"),
    _image(5, "ubuntu/images/hvm-ssd-gp3/ubuntu-noble-24.04-amd64-server-20260801", "099720109477", "2026-08-01T00:00:00.000Z"),
    _image(6, "ubuntu/images/hvm-ssd-gp3/ubuntu-noble-24.04-arm64-server-20260801", "099720109477", "2026-08-01T00:00:00.000Z", "arm64"),
    _image(7, "ubuntu/images/hvm-ssd-gp3/ubuntu-noble-24.04-amd64-server-20260301", "099720109477", "2026-03-01T00:00:00.000Z"),
    _image(8, "test-machine-1", ACCOUNT, "2026-02-01T00:00:00.000Z"),
)  # fmt: skip


def priced_offers(provider: str, requirements: Requirements) -> list[Offer]:
    """The catalog's part: prices by region, without zones."""
    offers = [
        Offer(
            provider=provider,
            instance_type=kind,
            region=region,
            price=price,
            spot=spot,
            cpu=cpu,
            memory_gb=memory,
            arch="x86_64",
            gpu_name=gpu,
            gpu_count=count,
            gpu_memory_gb=gpu_memory,
            gpu_vendor="nvidia" if gpu else None,
        )
        for kind, region, price, spot, cpu, memory, gpu, count, gpu_memory in PRICES
    ]
    return [offer for offer in offers if fits(offer, requirements)]


def publish_prices() -> None:
    """The same prices as this machine's snapshot (under PREFECT_HOME), for flows in processes of their own."""
    found = [
        Price(Kind(kind, spot, cpu, memory, gpu_name=gpu, gpu_count=count, gpu_memory_gb=gpu_memory, gpu_vendor="nvidia" if gpu else None), Place(region), price)
        for kind, region, price, spot, cpu, memory, gpu, count, gpu_memory in PRICES
    ]  # fmt: skip
    prices.publish("aws", found, collected_at=utc_now(), source="the tests")


# --- what tests hold ----------------------------------------------------------------------------------------------------


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


# --- the cloud's own process --------------------------------------------------------------------------------------------

_PAGED = {
    "DescribeInstances": "reservationSet",
    "DescribeVolumes": "volumeSet",
    "DescribeNetworkInterfaces": "networkInterfaceSet",
    "DescribeImages": "imagesSet",
    "DescribeSubnets": "subnetSet",
    "DescribeSecurityGroups": "securityGroupInfo",
    "DescribeInstanceTypeOfferings": "instanceTypeOfferingSet",
}
_DEFAULTS = {
    "page_size": 1000,
    "hide_new": 0.0,
    "boot_s": 0.0,
    "shutdown_s": 0.1,
    "regions": list(REGIONS),
    "quotas": {},
    "reservations": {},
    "keep_volumes": False,  # the next terminate leaves the root volume behind
}
_DISK = "BlockDeviceMapping.1.Ebs."
Reply = tuple[int, str, bytes]


class _Cloud:
    def __init__(self, folder: Path, ssh_port: int) -> None:
        from moto.server import DomainDispatcherApplication, create_backend_app

        self.moto = DomainDispatcherApplication(create_backend_app)
        self.folder, self.ssh_port = folder, ssh_port
        self.lock = threading.RLock()  # moto is not made for threads
        self.addresses = itertools.count(2)
        self.machines: dict[str, Machine] = {}
        self._clear()

    def _clear(self) -> None:
        self.settings: dict[str, Any] = copy.deepcopy(_DEFAULTS)
        self.faults: list[dict[str, Any]] = []
        self.history: list[dict[str, Any]] = []
        self.orders: dict[tuple[str, str, str], tuple[str, Reply]] = {}
        self.tokens: dict[str, str] = {}  # instance -> token
        self.visible_at: dict[str, float] = {}

    # --- WSGI

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        if environ["PATH_INFO"] == "/_cloud":
            status, kind, data = 200, "application/json", json.dumps(self.order(json.loads(body))).encode()
        else:
            scope = re.search(r"Credential=[^/]+/\d+/([^/]+)/([^/]+)/", environ.get("HTTP_AUTHORIZATION", ""))
            region, service = scope.groups() if scope else ("us-east-1", "ec2")
            answer = self.serve(environ, region, service, body)
            if answer is None:
                environ["werkzeug.socket"].shutdown(2)
                raise ConnectionAbortedError("the answer is lost")
            status, kind, data = answer
        start_response(f"{status} x", [("Content-Type", kind), ("Content-Length", str(len(data)))])
        return [data]

    def serve(self, environ: dict[str, Any], region: str, service: str, body: bytes) -> Reply | None:
        if service == "servicequotas":
            return self._quota(region, environ.get("HTTP_X_AMZ_TARGET", "").rpartition(".")[2], json.loads(body))
        sent = dict(parse_qsl(body.decode(), keep_blank_values=True))
        action = sent.get("Action", "")
        fault = self._seen(action, region, sent)
        if fault and fault["how"] == "refused":
            return _error(fault["code"], fault["message"], fault["status"])
        if fault and fault["how"] == "dropped":
            return None
        handler = {
            "RunInstances": self._run,
            "TerminateInstances": self._terminate,
            "DescribeCapacityReservations": self._reservations,
        }.get(action, self._describe if action in _PAGED or action == "DescribeRegions" else self._plain)
        with self.lock:
            reply = handler(environ, region, action, sent)
        if fault and fault["how"] == "unreadable":
            return 200, "text/xml", b"<html>gateway"
        if fault and fault["how"] == "empty":
            return 200, "text/xml", b"<RunInstancesResponse><reservationId>r-1</reservationId></RunInstancesResponse>"
        return None if fault and fault["how"] == "lost" else reply

    def _seen(self, action: str, region: str, sent: dict[str, str]) -> dict[str, Any] | None:
        with self.lock:
            self.history.append({"action": action, "region": region, "sent": sent})
            for fault in self.faults:
                if fault["action"] not in {"*", action} or fault["region"] not in {None, region}:
                    continue
                if fault["zone"] not in {None, sent.get("Placement.AvailabilityZone")}:
                    continue
                if fault["times"] is not None:
                    fault["times"] -= 1
                    if fault["times"] == 0:
                        self.faults.remove(fault)
                return dict(fault)
        return None

    def _plain(self, environ: dict[str, Any], region: str, action: str, sent: dict[str, str]) -> Reply:
        data = urlencode(sent).encode()
        captured: list[Any] = []
        inner = {
            **{key: value for key, value in environ.items() if not key.startswith("werkzeug.")},
            "wsgi.input": io.BytesIO(data),
            "CONTENT_LENGTH": str(len(data)),
        }
        parts = self.moto(inner, lambda status, headers, _exc=None: captured.append((status, headers)))
        reply = b"".join(parts)
        status, headers = captured[0]
        return int(status.split()[0]), dict(headers).get("Content-Type", "text/xml"), reply

    # --- orders

    def _run(self, environ: dict[str, Any], region: str, action: str, sent: dict[str, str]) -> Reply:
        if sent.get("DryRun") == "true":
            return self._plain(environ, region, action, sent)
        zone = sent.get("Placement.AvailabilityZone", "")
        key = (region, zone, sent.get("ClientToken", ""))
        print_ = json.dumps(sorted(item for item in sent.items() if item[0] not in {"Action", "Version"}))
        if key[2] and key in self.orders:
            first, reply = self.orders[key]
            if first != print_:
                return _error("IdempotentParameterMismatch", "Arguments on this idempotent request are inconsistent with arguments used in previous request(s).", 400)  # fmt: skip
            ordered = (one for one in self._backend(region).all_instances() if self.tokens.get(one.id) == key[2])
            if all(one.state == "terminated" for one in ordered if one.placement.zone == zone):
                return _error("IdempotentInstanceTerminated", "The client token was used by a request whose instance has been terminated.", 400)  # fmt: skip
            return reply
        if refusal := self._reserved_otherwise(region, sent):
            return refusal
        taken = dict(sent)
        if sent.get(f"{_DISK}VolumeType") == "io2" and (iops := int(taken.pop(f"{_DISK}Iops", "0"))):
            if not 100 <= iops <= 500 * int(sent[f"{_DISK}VolumeSize"]):
                return _error("InvalidParameterValue", "The IOPS do not go with the size of the volume", 400)
            taken[f"{_DISK}VolumeType"] = "gp3"
        before = {machine.id for machine in self._backend(region).all_instances()}
        reply = self._plain(environ, region, action, taken)
        if reply[0] != 200:
            return reply
        if key[2]:
            self.orders[key] = (print_, reply)
        for instance in self._backend(region).all_instances():
            if instance.id not in before:
                self._boot(region, instance, sent)
        return reply

    def _reserved(self, region: str, one: str) -> dict[str, Any] | None:
        found = self.settings["reservations"].get(one)
        return found if found and found["AvailabilityZone"].startswith(region) else None

    def _reserved_otherwise(self, region: str, sent: dict[str, str]) -> Reply | None:
        """The refusal of an order that names a reservation and does not fit it."""
        one = sent.get("CapacityReservationSpecification.CapacityReservationTarget.CapacityReservationId")
        market = sent.get("InstanceMarketOptions.MarketType")
        found = self._reserved(region, one) if one else None
        if one and not found:
            return _no_reservation(one)
        if market == "capacity-block" and not found:
            return _error("InvalidParameterCombination", "A capacity block needs its reservation", 400)
        if found is None:
            return None
        wanted = "capacity-block" if found["ReservationType"] == "capacity-block" else None
        place = (sent["InstanceType"], sent["Placement.AvailabilityZone"])
        if place != (found["InstanceType"], found["AvailabilityZone"]) or market != wanted:
            return _error("InvalidParameterCombination", f"The order does not fit the reservation {one}", 400)
        if found["State"] != "active" or not found["AvailableInstanceCount"]:
            return _error("ReservationCapacityExceeded", f"The reservation {one} has no capacity", 400)
        found["AvailableInstanceCount"] -= 1
        return None

    def _reservations(self, environ: dict[str, Any], region: str, action: str, sent: dict[str, str]) -> Reply:
        if sent.get("DryRun") == "true":
            return _error("DryRunOperation", "Request would have succeeded, but DryRun flag is set.", 412)
        rows = ""
        for one in (value for key, value in sent.items() if key.startswith("CapacityReservationId.")):
            found = self._reserved(region, one)
            if found is None:
                return _no_reservation(one)
            fields = {"CapacityReservationId": one, **found}.items()
            rows += "".join(["<item>", *(f"<{key[0].lower()}{key[1:]}>{value}</{key[0].lower()}{key[1:]}>" for key, value in fields), "</item>"])  # fmt: skip
        return 200, "text/xml", f"<{action}Response><capacityReservationSet>{rows}</capacityReservationSet></{action}Response>".encode()  # fmt: skip

    def _boot(self, region: str, instance: Any, sent: dict[str, str]) -> None:
        number = next(self.addresses)
        address = f"127.{80 + os.getpid() % 40}.{number // 250 % 250}.{number % 250 + 2}"
        nic = instance.nics[0]
        nic.private_ip_address = address
        if nic.public_ip is not None:
            nic.public_ip = address
        for at in itertools.count(1):
            kind = sent.get(f"TagSpecification.{at}.ResourceType")
            if kind is None:
                break
            if kind == "network-interface":
                nic.add_tags({sent[f"TagSpecification.{at}.Tag.{tag}.Key"]: sent[f"TagSpecification.{at}.Tag.{tag}.Value"] for tag in range(1, 99) if f"TagSpecification.{at}.Tag.{tag}.Key" in sent})  # fmt: skip
        if sent.get(f"{_DISK}VolumeType") == "io2":
            for attached in instance.block_device_mapping.values():
                volume = self._backend(region).volumes[attached.volume_id]
                volume.volume_type, volume.iops = "io2", int(sent[f"{_DISK}Iops"])
        self.tokens[instance.id] = sent.get("ClientToken", "")
        self.visible_at[instance.id] = time.monotonic() + self.settings["hide_new"]
        instance._state.name, instance._state.code = "pending", 0
        user_data = base64.b64decode(sent.get("UserData", "")).decode()
        if len(user_data.encode()) > 16384:
            raise AssertionError("EC2 takes no more than 16 KB of user data")
        machine = None
        if user_data:
            machine = Machine(
                self.folder / instance.id,
                address,
                self.ssh_port,
                user_data,
                lambda: self._power_off(region, instance),
            )
            self.machines[instance.id] = machine
        boot_s = self.settings["boot_s"]

        def boot() -> None:
            time.sleep(boot_s)
            if machine is not None:
                machine.start()
            with self.lock:
                if instance._state.name == "pending":
                    instance._state.name, instance._state.code = "running", 16
                    return
            if machine is not None:
                machine.stop()

        threading.Thread(target=boot, daemon=True).start()

    def _power_off(self, region: str, instance: Any) -> None:
        """The machine's own shutdown: what follows is what the order said."""
        if instance.instance_initiated_shutdown_behavior == "terminate":
            self._end(region, instance, "Client.InstanceInitiatedShutdown", "Client.InstanceInitiatedShutdown: Instance initiated shutdown")  # fmt: skip
        else:
            instance.stop()

    def _terminate(self, environ: dict[str, Any], region: str, action: str, sent: dict[str, str]) -> Reply:
        ids = [value for key, value in sent.items() if key.startswith("InstanceId.")]
        known = {instance.id: instance for instance in self._backend(region).all_instances()}
        unknown = [one for one in ids if one not in known or self._is_hidden(one)]
        if unknown and sent.get("DryRun") != "true":
            return _error("InvalidInstanceID.NotFound", f"The instance ID '{unknown[0]}' does not exist", 400)
        done = {one for one in ids if one in known and known[one].state == "terminated"}
        if sent.get("DryRun") != "true":
            self._keep_volumes(known[one] for one in ids)
        reply = self._plain(environ, region, action, sent)
        if reply[0] == 200:
            for one in ids:
                if one not in done:
                    self._end(region, known[one], "Client.UserInitiatedShutdown", "Client.UserInitiatedShutdown: User initiated shutdown")  # fmt: skip
        return reply

    def _keep_volumes(self, instances: Iterable[Any]) -> None:
        for instance in instances:
            if self.settings["keep_volumes"]:
                self.settings["keep_volumes"] = False
                for volume in instance.block_device_mapping.values():
                    volume.delete_on_termination = False

    def _end(self, region: str, instance: Any, code: str, message: str) -> None:
        """shutting-down, and terminated after a while; its machine goes at once."""
        with self.lock:
            self._keep_volumes([instance])
            if instance._state.name != "terminated":
                instance.terminate()
            instance.state_reason.code, instance.state_reason.message = code, message
            instance._state.name, instance._state.code = "shutting-down", 32
            machine = self.machines.pop(instance.id, None)
        shutdown_s = self.settings["shutdown_s"]

        def finish() -> None:
            if machine is not None:
                machine.stop()
            time.sleep(shutdown_s)
            with self.lock:
                instance._state.name, instance._state.code = "terminated", 48

        threading.Thread(target=finish, daemon=True).start()

    # --- listings

    def _is_hidden(self, instance_id: str) -> bool:
        return time.monotonic() < self.visible_at.get(instance_id, 0.0)

    def _describe(self, environ: dict[str, Any], region: str, action: str, sent: dict[str, str]) -> Reply:
        size, token = self.settings["page_size"], int(sent.pop("NextToken", "0"))
        size = min(size, int(sent.pop("MaxResults", "1000")))
        ids = [value for key, value in sent.items() if re.fullmatch(r"(InstanceId|ImageId)\.\d+", key)]
        if action == "DescribeInstances":
            for one in ids:
                if self._is_hidden(one):
                    return _error("InvalidInstanceID.NotFound", f"The instance ID '{one}' does not exist", 400)
            for key, value in list(sent.items()):
                if re.fullmatch(r"Filter\.\d+\.Name", key) and value == "client-token":
                    wanted = sent[key.replace("Name", "Value.1")]
                    found = [one for one, of in self.tokens.items() if of == wanted] or ["i-00000000000000000"]
                    sent[key] = "instance-id"
                    for at, one in enumerate(found, 1):
                        sent[key.replace("Name", f"Value.{at}")] = one
        status, kind, data = self._plain(environ, region, action, sent)
        if status != 200:
            return status, kind, data
        space = re.search(rb'xmlns="([^"]+)"', data)
        if space:
            ET.register_namespace("", space[1].decode())
        tree = ET.fromstring(data)
        name = f"{{{space[1].decode()}}}" if space else ""
        if action == "DescribeRegions":
            rows = tree.find(f"{name}regionInfo")
            for row in list(rows):
                if row.findtext(f"{name}regionName") not in self.settings["regions"]:
                    rows.remove(row)
            return status, kind, ET.tostring(tree)
        rows = tree.find(f"{name}{_PAGED[action]}")
        if rows is None:
            return status, kind, data
        if action == "DescribeInstances":
            for reservation in list(rows):
                machines = reservation.find(f"{name}instancesSet")
                for machine in list(machines):
                    if self._is_hidden(machine.findtext(f"{name}instanceId")):
                        machines.remove(machine)
                if not len(machines):
                    rows.remove(reservation)
        if not ids:
            everything = list(rows)
            for row in everything:
                rows.remove(row)
            rows.extend(everything[token : token + size])
            for old in tree.findall(f"{name}nextToken"):
                tree.remove(old)
            if token + size < len(everything):
                ET.SubElement(tree, f"{name}nextToken").text = str(token + size)
        return status, kind, ET.tostring(tree)

    def _quota(self, region: str, action: str, sent: dict[str, Any]) -> Reply:
        fault = self._seen(action, region, {key: str(value) for key, value in sent.items()})
        kind = "application/x-amz-json-1.1"
        if fault:
            return fault["status"], kind, json.dumps({"__type": fault["code"], "message": fault["message"]}).encode()
        code = sent["QuotaCode"]
        value = self.settings["quotas"].get(f"{region}/{code}", self.settings["quotas"].get(code, 1000.0))
        if value is None:
            return 400, kind, json.dumps({"__type": "NoSuchResourceException", "message": "no such quota"}).encode()
        return 200, kind, json.dumps({"Quota": {"QuotaCode": code, "ServiceCode": "ec2", "Value": value}}).encode()

    # --- the test's orders

    def order(self, order: dict[str, Any]) -> Any:
        op = order["op"]
        if op == "processes":
            machine = self.machines.get(order["id"])
            return machine.processes() if machine else []
        with self.lock:
            if op == "reset":
                return self._reset()
            if op == "fail":
                self.faults.append(order["fault"])
            elif op == "set":
                assert order["settings"].keys() <= _DEFAULTS.keys()
                self.settings.update(order["settings"])
            elif op == "calls":
                return self.history
            elif op == "alive":
                return [
                    {"id": f"{region}/{one.id}", "state": one.state, "name": _name(one)}
                    for region in REGIONS
                    for one in self._backend(region).all_instances()
                    if one.state != "terminated"
                ]  # fmt: skip
            elif op == "mend":
                self.faults.clear()
            elif op == "status":
                self._find(order["id"])[1]._state.name = order["status"]
            elif op == "lease":
                machine = self.machines[order["id"]]
                if machine.lease_end() is not None:
                    machine.on_lease_end()
            elif op == "end":
                self._end(*self._find(order["id"]), order["code"], order["message"])
        return None

    def _reset(self) -> None:
        from moto.ec2.models import ec2_backends

        for machine in self.machines.values():
            machine.stop()
        self.machines.clear()
        for region in REGIONS:
            ec2_backends[ACCOUNT][region].reset()
        self._clear()

    def _find(self, instance_id: str) -> tuple[str, Any]:
        for region in REGIONS:
            for one in self._backend(region).all_instances():
                if one.id == instance_id:
                    return region, one
        raise LookupError(instance_id)

    def _backend(self, region: str) -> Any:
        from moto.ec2.models import ec2_backends

        return ec2_backends[ACCOUNT][region]


def _name(resource: Any) -> str | None:
    return {tag["key"]: tag["value"] for tag in resource.get_tags()}.get("Name")


def _no_reservation(one: str) -> Reply:
    return _error("InvalidCapacityReservationId.NotFound", f"The capacity reservation '{one}' does not exist", 400)


def _error(code: str, message: str, status: int) -> Reply:
    text = f"<Response><Errors><Error><Code>{escape(code)}</Code><Message>{escape(message)}</Message></Error></Errors><RequestID>1</RequestID></Response>"
    return status, "text/xml", text.encode()


def _ssh_port() -> int:
    """22 where this process may, as on EC2; else one that is free on all loopback addresses."""
    import socket

    for wanted in (22, 0):
        with socket.socket() as probe:
            try:
                probe.bind(("127.80.255.1", wanted))
                return int(probe.getsockname()[1])
            except OSError:
                continue
    raise RuntimeError("no port is free")


def main(folder: Path) -> None:
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_request(self, *_: Any) -> None:
            pass

    ssh_port = _ssh_port()
    cloud = _Cloud(folder, ssh_port)
    server = make_server("127.0.0.1", 0, cloud, threaded=True, request_handler=Quiet)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(json.dumps([server.server_port, ssh_port]), flush=True)
    sys.stdin.buffer.read()
    with cloud.lock:
        for machine in cloud.machines.values():
            machine.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
