"""Orders and ends of machines, as EC2 does them."""

from __future__ import annotations

import base64
import itertools
import json
import os
import threading
import time
from collections.abc import Iterable
from typing import Any

from tests.fakes.aws.backend import Backend, Reply, error
from tests.fakes.aws.machine import Machine

_DISK = "BlockDeviceMapping.1.Ebs."


class Orders(Backend):
    """RunInstances and TerminateInstances, reservations, and the machines behind."""

    def _run(self, environ: dict[str, Any], region: str, action: str, sent: dict[str, str]) -> Reply:
        if sent.get("DryRun") == "true":
            return self._plain(environ, region, action, sent)
        zone = sent.get("Placement.AvailabilityZone", "")
        key = (region, zone, sent.get("ClientToken", ""))
        print_ = json.dumps(sorted(item for item in sent.items() if item[0] not in {"Action", "Version"}))
        if key[2] and key in self.orders:
            first, reply = self.orders[key]
            if first != print_:
                return error("IdempotentParameterMismatch", "Arguments on this idempotent request are inconsistent with arguments used in previous request(s).", 400)  # fmt: skip
            ordered = (one for one in self._backend(region).all_instances() if self.tokens.get(one.id) == key[2])
            if all(one.state == "terminated" for one in ordered if one.placement.zone == zone):
                return error("IdempotentInstanceTerminated", "The client token was used by a request whose instance has been terminated.", 400)  # fmt: skip
            return reply
        if refusal := self._reserved_otherwise(region, sent):
            return refusal
        taken = dict(sent)
        if sent.get(f"{_DISK}VolumeType") == "io2" and (iops := int(taken.pop(f"{_DISK}Iops", "0"))):
            if not 100 <= iops <= 500 * int(sent[f"{_DISK}VolumeSize"]):
                return error("InvalidParameterValue", "The IOPS do not go with the size of the volume", 400)
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
            return error("InvalidParameterCombination", "A capacity block needs its reservation", 400)
        if found is None:
            return None
        wanted = "capacity-block" if found["ReservationType"] == "capacity-block" else None
        place = (sent["InstanceType"], sent["Placement.AvailabilityZone"])
        if place != (found["InstanceType"], found["AvailabilityZone"]) or market != wanted:
            return error("InvalidParameterCombination", f"The order does not fit the reservation {one}", 400)
        if found["State"] != "active" or not found["AvailableInstanceCount"]:
            return error("ReservationCapacityExceeded", f"The reservation {one} has no capacity", 400)
        found["AvailableInstanceCount"] -= 1
        return None

    def _reservations(self, environ: dict[str, Any], region: str, action: str, sent: dict[str, str]) -> Reply:
        if sent.get("DryRun") == "true":
            return error("DryRunOperation", "Request would have succeeded, but DryRun flag is set.", 412)
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
            return error("InvalidInstanceID.NotFound", f"The instance ID '{unknown[0]}' does not exist", 400)
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


def _no_reservation(one: str) -> Reply:
    return error("InvalidCapacityReservationId.NotFound", f"The capacity reservation '{one}' does not exist", 400)
