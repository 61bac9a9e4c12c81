"""The subscription: its resource groups, networks and machines, by the paths, envelopes and states of the Resource Manager.

`azure-mgmt-compute` and `azure-mgmt-network` take it for Azure, which the driver's tests have them do.
"""

from __future__ import annotations

import json
import re
import threading
import time
import uuid
from datetime import UTC, datetime
from email.utils import formatdate
from pathlib import Path
from typing import Any, Self

import httpx

from tests.fakes.azure import facts
from tests.fakes.azure.facts import error
from tests.fakes.azure.machines import Machines

COMPUTE, NETWORK = "microsoft.compute", "microsoft.network"
LISTED = {
    (COMPUTE, "virtualmachines"): "virtualMachines", (COMPUTE, "disks"): "disks",
    (NETWORK, "networkinterfaces"): "networkInterfaces", (NETWORK, "publicipaddresses"): "publicIPAddresses",
    (NETWORK, "virtualnetworks"): "virtualNetworks", (NETWORK, "networksecuritygroups"): "networkSecurityGroups",
    (COMPUTE, "capacityreservationgroups"): "capacityReservationGroups",
}  # fmt: skip
_PATH = re.compile(
    r"/subscriptions/(?P<subscription>[^/]+)(/resourcegroups(/(?P<group>[^/]+))?)?(/providers/(?P<rest>.+))?",
    re.IGNORECASE,
)


class FakeAzure:
    """`transport` is what a driver gets; the clock stands still but for `advance`."""

    def __init__(self, *, listing_lag_s: float = 0.0, ssh_folder: Path | None = None, ssh_port: int = 22) -> None:
        self.transport = httpx.MockTransport(self.answer)
        self.listing_lag_s = listing_lag_s
        self.page_size = 1000
        self.name_suffix = ""  # what Azure adds to the names of interfaces that it makes for a machine
        self.actions = ["*"]  # what the credentials may do
        self.restrictions: dict[tuple[str, str], list[dict[str, Any]]] = {}
        self.limits = dict(facts.LIMITS)
        self.allocation: dict[str, tuple[str, str]] = {}  # type -> code and words of what is told after it was accepted
        self.reservations: dict[str, list[dict[str, Any]]] = {}  # group's id in lower case -> rows
        self.events: list[dict[str, Any]] = []  # the activity log
        self.log_refused: httpx.Response | None = None
        self.keeps_next_disk = False
        self.forgets_writes = False  # `if-none-match` is ignored, as before api-version 2024-03-01
        self.creates = 0
        self.requests: list[tuple[str, str]] = []
        self.bodies: list[tuple[str, dict[str, Any]]] = []
        self.refused: httpx.Response | None = None  # every call, from now on
        self.refusals: dict[str, httpx.Response] = {}  # by "METHOD kind", each time
        self.broken = False  # reads are answered by 503
        self.unreadable: str | None = None  # this list
        self.next: dict[str, Any] = {}  # what happens to the next call of a kind: create, get, delete; once
        self.groups: dict[str, dict[str, Any]] = {}
        self.things: dict[str, dict[str, dict[str, Any]]] = {kind: {} for kind in LISTED.values()}
        self.operations: dict[str, dict[str, Any]] = {}
        self.now = time.time()
        self.machines = Machines(ssh_folder, ssh_port)
        self._lock = threading.RLock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.machines.stop_all()

    # --- the test's side ------------------------------------------------------------------------------------------------

    def advance(self, seconds: float) -> None:
        with self._lock:
            self.now += seconds
            self._pass()

    def machine(self, instance_id: str) -> dict[str, Any]:
        return self.things["virtualMachines"][instance_id.rpartition("/")[2].lower()]

    def body(self, name: str) -> dict[str, Any]:
        """What was ordered under this name, the last time."""
        return next(body for path, body in reversed(self.bodies) if path.endswith(f"/virtualmachines/{name}".lower()))

    def left(self, name: str = "pg-") -> list[str]:
        """Everything that is called so and may cost money."""
        kinds = ("virtualMachines", "disks", "networkInterfaces", "publicIPAddresses")
        return [f"{kind}/{key}" for kind in kinds for key in self.things[kind] if key.startswith(name.lower())]

    def take_back(self, instance_id: str) -> None:
        """A spot machine ends as Azure needs it: gone at once, with a line in the activity log."""
        with self._lock:
            machine = self.machine(instance_id)
            assert machine["body"]["properties"]["evictionPolicy"] == "Delete"
            self._remove(machine)
            self.events.append(
                {
                    "resourceId": machine["id"],
                    "eventTimestamp": self._moment(self.now),
                    "operationName": {
                        "value": "Microsoft.Compute/virtualMachines/evictSpotVM/action",
                        "localizedValue": "Evict",
                    },
                    "status": {"value": "Succeeded"},
                    "level": "Informational",
                }
            )

    def say(self, instance_id: str, *, state: str | None = None, power: str | None = None, **more: Any) -> None:
        """What Azure says of this machine from now on, whatever its age."""
        self.machine(instance_id)["said"] = {"state": state, "power": power, **more}

    # --- the API --------------------------------------------------------------------------------------------------------

    def answer(self, request: httpx.Request) -> httpx.Response:
        with self._lock:
            response = self._routed(request)
            response.headers["date"] = formatdate(self.now, usegmt=True)
            response.headers["x-ms-request-id"] = str(uuid.uuid4())
            return response

    def _routed(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path
        self.requests.append((request.method, path))
        found = _PATH.fullmatch(path)
        rest = ((found and found["rest"]) or "").split("/")
        kind = LISTED.get((rest[0].lower(), rest[1].lower() if len(rest) > 1 else ""))
        is_machine = kind == "virtualMachines"
        what = {"GET": "get", "DELETE": "delete"}.get(request.method, "create" if is_machine else "other")
        if what == "create":
            self.creates += 1
        if what == "get" and not is_machine:
            what = "other"
        fault = self.next.pop(what, None)
        if fault == "unreachable":
            raise httpx.ConnectError("[Errno 111] Connection refused")
        if self.refused is not None:
            return self.refused
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        if not token.endswith(".TOKENSIGNATURE"):
            return error(401, "InvalidAuthenticationToken", "The access token is invalid.")
        if isinstance(fault, httpx.Response):
            return fault
        if self.broken and request.method == "GET":
            return error(503, "ServiceUnavailable", "The service is unavailable.")
        if (refusal := self.refusals.get(f"{request.method} {kind}")) is not None:
            return refusal
        if "api-version" not in request.url.params:
            return error(
                400, "MissingApiVersionParameter", "The api-version query parameter is required for all requests."
            )
        if found is None or found["subscription"].lower() != facts.SUBSCRIPTION:
            return error(404, "SubscriptionNotFound", f"The subscription '{path.split('/')[2]}' could not be found.")
        body = json.loads(request.content) if request.content else {}
        if request.method == "PUT":
            self.bodies.append((path.lower(), body))
        response = self._served(request, found["group"], rest, kind, body, in_group=bool(found[2]))
        if fault == "lost":
            raise httpx.ReadError("connection reset by peer")
        return httpx.Response(201, content=fault) if isinstance(fault, bytes) else response

    def _served(
        self, request: httpx.Request, group: str | None, rest: list[str], kind: str | None, body: Any, *, in_group: bool
    ) -> httpx.Response:
        method = request.method
        if rest == [""]:
            return self._of_groups(method, group, body, request) if in_group else self._subscription()
        if group is not None and group.lower() not in self.groups:
            return error(404, "ResourceGroupNotFound", f"Resource group '{group}' could not be found.")
        match [one.lower() for one in rest]:
            case ["microsoft.authorization", "permissions"]:
                return self._page(request, [{"actions": self.actions, "notActions": []}])
            case ["microsoft.compute", "skus"]:
                region = request.url.params["$filter"].partition("'")[2].rstrip("'")
                return self._page(request, facts.skus(region, self.restrictions) if region in facts.REGIONS else [])
            case ["microsoft.compute", "locations", region, "usages"]:
                return self._page(request, self._usages(region))
            case [_, "locations", _, "operations", number]:
                return httpx.Response(200, json=self.operations[number])
            case ["microsoft.insights", "eventtypes", "management", "values"]:
                asked = request.url.params["$filter"].lower()
                own = [one for one in self.events if str(one.get("resourceId", "")).lower() in asked]
                return self.log_refused or self._page(request, own)
            case [_, "capacityreservationgroups", _, "capacityreservations"]:
                key = request.url.path.lower().rpartition("/")[0]
                return self._page(request, self.reservations[key])
        if kind is None or group is None:
            return error(404, "InvalidResourceType", f"The resource type of {request.url.path} could not be found.")
        if len(rest) == 2:
            return self._list(request, kind)
        name = rest[2]
        if len(rest) > 3:
            return error(404, "NotFound", f"Azure has no {request.url.path} here")
        if method == "PUT":
            return self._put(request, group, kind, name, body)
        thing = self.things[kind].get(name.lower())
        if method == "DELETE":
            return self._delete(kind, thing)
        if thing is None:
            words = f"The Resource 'Microsoft.{'Network' if rest[0].lower() == NETWORK else 'Compute'}/{kind}/{name}' under resource group '{group}' was not found."
            return error(404, "ResourceNotFound", words)
        return httpx.Response(
            200, json=self._row(kind, thing, has_view=request.url.params.get("$expand") == "instanceView")
        )

    def _subscription(self) -> httpx.Response:
        said = {
            "id": f"/subscriptions/{facts.SUBSCRIPTION}",
            "subscriptionId": facts.SUBSCRIPTION,
            "tenantId": facts.TENANT,
        }
        return httpx.Response(200, json={**said, "displayName": "research", "state": "Enabled"})

    def _of_groups(self, method: str, group: str | None, body: Any, request: httpx.Request) -> httpx.Response:
        if group is None:
            return self._page(request, list(self.groups.values()))
        if method == "PUT":
            is_new = group.lower() not in self.groups
            row = {"id": f"/subscriptions/{facts.SUBSCRIPTION}/resourceGroups/{group}", "name": group, **body}
            self.groups[group.lower()] = {**row, "properties": {"provisioningState": "Succeeded"}}
            return httpx.Response(201 if is_new else 200, json=self.groups[group.lower()])
        if group.lower() not in self.groups:
            return error(404, "ResourceGroupNotFound", f"Resource group '{group}' could not be found.")
        return httpx.Response(200, json=self.groups[group.lower()])

    def _usages(self, region: str) -> list[dict[str, Any]]:
        used = dict.fromkeys(self.limits, 0)
        for machine in self.things["virtualMachines"].values():
            size = facts.SIZES[machine["body"]["properties"]["hardwareProfile"]["vmSize"]]
            if machine["body"]["location"] == region:
                spot = machine["body"]["properties"].get("priority") == "Spot"
                for name in ("lowPriorityCores",) if spot else ("cores", size.family):
                    used[name] += size.cpu
        return [
            {
                "unit": "Count",
                "currentValue": used[name],
                "limit": limit,
                "name": {"value": name, "localizedValue": name},
            }
            for name, limit in self.limits.items()
        ]

    def _list(self, request: httpx.Request, kind: str) -> httpx.Response:
        if self.unreadable == kind:
            return error(500, "InternalServerError", "Encountered internal server error.")
        if "$expand" in request.url.params and "$filter" not in request.url.params:
            return error(400, "BadRequest", "$expand is only valid with a $filter.")  # of a scale set
        then = self.now - self.listing_lag_s
        there = [one for one in self.things[kind].values() if kind != "virtualMachines" or one["at"] <= then]
        return self._page(request, [self._row(kind, one, has_view=False) for one in there])

    def _page(self, request: httpx.Request, rows: list[dict[str, Any]]) -> httpx.Response:
        start = int(request.url.params.get("$skiptoken", 0))
        page: dict[str, Any] = {"value": rows[start : start + self.page_size]}
        if start + self.page_size < len(rows):
            page["nextLink"] = str(request.url.copy_set_param("$skiptoken", start + self.page_size))
        return httpx.Response(200, json=page)

    # --- what is made, and goes -----------------------------------------------------------------------------------------

    def _put(self, request: httpx.Request, group: str, kind: str, name: str, body: dict[str, Any]) -> httpx.Response:
        standing = self.things[kind].get(name.lower())
        if standing is not None and request.headers.get("if-none-match") == "*" and not self.forgets_writes:
            return error(412, "PreconditionFailed", "The condition '*' in the If-None-Match header was not satisfied.")
        if standing is not None and self.forgets_writes and kind == "virtualMachines":
            return error(409, "PropertyChangeNotAllowed", "Changing property 'osProfile.customData' is not allowed.")
        if kind == "virtualMachines" and (refusal := self._why_not(body)) is not None:
            return refusal
        provider = "Network" if (NETWORK, kind.lower()) in LISTED else "Compute"
        path = (
            f"/subscriptions/{facts.SUBSCRIPTION}/resourceGroups/{group}/providers/Microsoft.{provider}/{kind}/{name}"
        )
        thing = {"id": path, "name": name, "at": self.now, "body": body, "said": {}, "gone_at": None}
        if standing is None:
            self.things[kind][name.lower()] = thing
            if kind == "virtualMachines":
                self._bring_along(group, thing)
        number = str(uuid.uuid4())
        self.operations[number] = {"name": number, "status": "Succeeded", "startTime": self._moment(self.now)}
        region = str(body.get("location"))
        operation = f"https://management.azure.com/subscriptions/{facts.SUBSCRIPTION}/providers/Microsoft.{provider}/locations/{region}/operations/{number}?api-version=2024-07-01"
        row = self._row(kind, self.things[kind][name.lower()], has_view=False)
        return httpx.Response(
            200 if standing else 201, json=row, headers={"azure-asyncoperation": operation, "retry-after": "0"}
        )

    def _why_not(self, body: dict[str, Any]) -> httpx.Response | None:
        asked = body["properties"]
        size, region = asked["hardwareProfile"]["vmSize"], body["location"]
        if size not in facts.SIZES or region not in facts.REGIONS:
            return error(
                400, "InvalidParameter", f"The value {size} provided for the VM size is not valid in {region}."
            )
        os_profile, image = asked["osProfile"], asked["storageProfile"]["imageReference"]
        assert len(os_profile["computerName"]) <= 64
        assert os_profile["adminUsername"] not in {"root", "admin"}, "Azure disallows it"
        if "id" not in image:
            publisher, offer, skus = next(
                (one for one in (facts.HPC, facts.CANONICAL) if one[0] == image["publisher"]), ("", "", set())
            )
            if (publisher, offer) != (image["publisher"], image["offer"]) or image["sku"] not in skus:
                return error(
                    404, "PlatformImageNotFound", f"The platform image '{':'.join(image.values())}' is not available."
                )
        for resource, kind in _references(asked):
            name = resource.split("/subnets/")[0].rpartition("/")[2].lower()
            if name not in self.things[kind]:
                return error(
                    400, "InvalidResourceReference", f"Resource {resource} referenced by resource was not found."
                )
            assert self.things[kind][name]["body"]["location"] == region, "a network of another region"
        spec = facts.SIZES[size]
        for row in self._usages(region):
            name = row["name"]["value"]
            counts = ("lowPriorityCores",) if asked.get("priority") == "Spot" else ("cores", spec.family)
            if name in counts and row["currentValue"] + spec.cpu > row["limit"]:
                label = {"cores": "Total Regional Cores", "lowPriorityCores": "LowPriorityCores"}.get(
                    name, f"{name} Cores"
                )
                words = f"Operation could not be completed as it results in exceeding approved {label} quota. Additional details - Deployment Model: Resource Manager, Location: {region}, Current Limit: {row['limit']}"
                return error(409, "OperationNotAllowed", words)
        return None

    def _bring_along(self, group: str, machine: dict[str, Any]) -> None:
        """Interface, address and disk, named as the order says."""
        body, base = machine["body"], f"/subscriptions/{facts.SUBSCRIPTION}/resourceGroups/{group}/providers"
        machine["brought"], machine["interfaces"] = [], []
        machine["address"] = self.machines.next_address()

        def add(provider: str, kind: str, name: str, goes: bool, **more: Any) -> str:
            path = f"{base}/{provider}/{kind}/{name}"
            made = {"location": body["location"], "properties": {}}
            thing = {"id": path, "name": name, "at": self.now, "body": made, "said": {}, "gone_at": None, **more}
            self.things[kind][name.lower()] = thing
            if goes:
                machine["brought"].append((kind, name.lower()))
            return path

        disk = body["properties"]["storageProfile"]["osDisk"]
        name = disk.get("name") or f"{machine['name']}_OsDisk_1_{uuid.uuid4().hex}"
        add("Microsoft.Compute", "disks", name, disk.get("deleteOption") == "Delete" and not self.keeps_next_disk)
        self.keeps_next_disk = False
        network = body["properties"]["networkProfile"]
        for reference in network.get("networkInterfaces", []):  # made apart, as the SDK does
            interface = self.things["networkInterfaces"][reference["id"].rpartition("/")[2].lower()]
            interface["machine"] = machine
            machine["interfaces"].append(interface["id"])
        for asked in network.get("networkInterfaceConfigurations", []):
            assert network["networkApiVersion"] == "2020-11-01", "another is not in compute's 2024-07-01"
            (ip,) = asked["properties"]["ipConfigurations"]
            public = ip["properties"].get("publicIPAddressConfiguration")
            address = None
            if public is not None:
                goes = public["properties"]["deleteOption"] == "Delete"
                address = add(
                    "Microsoft.Network", "publicIPAddresses", public["name"] + self.name_suffix, goes, machine=machine
                )
            goes = asked["properties"]["deleteOption"] == "Delete"
            made = add(
                "Microsoft.Network",
                "networkInterfaces",
                asked["name"] + self.name_suffix,
                goes,
                machine=machine,
                public=address,
            )
            machine["interfaces"].append(made)
        self.machines.order(machine)

    def _delete(self, kind: str, thing: dict[str, Any] | None) -> httpx.Response:
        if thing is None:
            return httpx.Response(204)
        if kind != "virtualMachines":
            del self.things[kind][thing["name"].lower()]
            return httpx.Response(202, headers={"retry-after": "0"})
        if thing["gone_at"] is None:
            thing["gone_at"] = self.now
            self.machines.stop(thing)
        number = str(uuid.uuid4())
        self.operations[number] = {"name": number, "status": "Succeeded"}
        operation = f"https://management.azure.com/subscriptions/{facts.SUBSCRIPTION}/providers/Microsoft.Compute/locations/eastus/operations/{number}?api-version=2024-07-01"
        return httpx.Response(202, headers={"azure-asyncoperation": operation, "retry-after": "0"})

    def _pass(self) -> None:
        for machine in list(self.things["virtualMachines"].values()):
            if machine["gone_at"] is not None and self.now - machine["gone_at"] >= 5:
                self._remove(machine)
            elif machine["gone_at"] is None and self._power(machine) == "running":
                self.machines.boot(machine)

    def _remove(self, machine: dict[str, Any]) -> None:
        self.machines.stop(machine)
        self.things["virtualMachines"].pop(machine["name"].lower(), None)
        for kind, name in machine["brought"]:
            self.things[kind].pop(name, None)

    # --- what is shown --------------------------------------------------------------------------------------------------

    def _power(self, machine: dict[str, Any]) -> str | None:
        if machine["body"]["properties"]["hardwareProfile"]["vmSize"] in self.allocation:
            return None
        age = self.now - machine["at"]
        return "running" if age >= 4 else "starting" if age >= 2 else None

    def _row(self, kind: str, thing: dict[str, Any], *, has_view: bool) -> dict[str, Any]:
        body = thing["body"]
        row: dict[str, Any] = {
            "id": thing["id"],
            "name": thing["name"],
            "location": body.get("location"),
            "tags": body.get("tags", {}),
        }
        properties = {"provisioningState": "Succeeded", **body.get("properties", {})}
        if kind == "virtualMachines":
            return self._machine_row(row, thing, has_view=has_view)
        if kind == "networkInterfaces" and (machine := thing.get("machine")) is not None:
            address = {"privateIPAddress": machine["address"], "primary": True}
            if thing.get("public"):
                address["publicIPAddress"] = {"id": thing["public"]}
            properties |= {
                "ipConfigurations": [{"name": thing["name"], "properties": address}],
                "virtualMachine": {"id": machine["id"]},
            }
        if kind == "publicIPAddresses" and (machine := thing.get("machine")) is not None:
            properties["ipAddress"] = machine["address"] if self.now - thing["at"] >= 1 else None
        return {**row, "properties": properties}

    def _machine_row(self, row: dict[str, Any], machine: dict[str, Any], *, has_view: bool) -> dict[str, Any]:
        body, said, age = machine["body"], machine["said"], self.now - machine["at"]
        shown = json.loads(json.dumps(body["properties"]))
        shown["osProfile"].pop("customData", None)  # it never comes back
        failure = self.allocation.get(shown["hardwareProfile"]["vmSize"])
        state = "Succeeded" if age >= 6 else "Creating"
        if failure is not None and age >= 2:
            state = "Failed"
        if machine["gone_at"] is not None:
            state = "Deleting"
        state, power = said.get("state") or state, said.get("power") or self._power(machine)
        shown["networkProfile"] = {"networkInterfaces": [{"id": one} for one in machine["interfaces"]]}
        shown |= {"provisioningState": state, "vmId": str(uuid.uuid5(uuid.NAMESPACE_URL, machine["id"]))}
        shown["timeCreated"] = self._moment(machine["at"])
        if has_view:
            code = f"ProvisioningState/{state.lower()}" + (f"/{failure[0]}" if failure and state == "Failed" else "")
            status = {"code": code, "level": "Info", "displayStatus": state}
            statuses = [status | ({"message": failure[1], "level": "Error"} if failure and state == "Failed" else {})]
            statuses += (
                [{"code": f"PowerState/{power}", "level": "Info", "displayStatus": f"VM {power}"}] if power else []
            )
            shown["instanceView"] = {"statuses": said.get("statuses", statuses)}
        more = {key: body[key] for key in ("zones", "identity", "plan") if key in body}
        return {**row, **more, "type": "Microsoft.Compute/virtualMachines", "properties": shown, **said.get("row", {})}

    @staticmethod
    def _moment(when: float) -> str:
        return datetime.fromtimestamp(when, UTC).isoformat()


def _references(asked: dict[str, Any]) -> list[tuple[str, str]]:
    found = []
    for interface in asked["networkProfile"].get("networkInterfaceConfigurations", []):
        properties = interface["properties"]
        found.append((properties["networkSecurityGroup"]["id"], "networkSecurityGroups"))
        found += [(one["properties"]["subnet"]["id"], "virtualNetworks") for one in properties["ipConfigurations"]]
    return found
