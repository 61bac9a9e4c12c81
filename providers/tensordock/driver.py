"""The driver: shares of hosts, one order with the scripts that place its keys, and its end."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from datetime import datetime
from typing import Any, Final, cast

import httpx

from prefect_gpu.blocks.tensordock import TensordockCredentials, TensordockOptions
from prefect_gpu.providers.core import errors, models
from prefect_gpu.providers.core.contract import Capabilities, Provider, RateLimit
from prefect_gpu.providers.core.requests import Requirements
from prefect_gpu.providers.core.toolkit import answers, late_keys, options, scopes, states
from prefect_gpu.providers.core.toolkit.http import JsonApi
from prefect_gpu.providers.tensordock.offers import offers_of
from prefect_gpu.providers.tensordock.words import MEANINGS, REASONS, STATES, word

# Not below /etc/ssh: cloud-init deletes host keys there after it wrote files and before it runs commands.
KEYS: Final = "/var/lib/prefect-gpu-keys"


class Tensordock(Provider[TensordockCredentials]):
    """Drives API version 2. `transport` is for tests."""

    name = "tensordock"
    capabilities = Capabilities(
        listing_lag_s=60,  # not measured
        not_found_proves_absence=True,
        needs_catalog=False,
        boot_deadline_s=20 * 60,
        rate_limits={"*": RateLimit(calls=100, per_s=60)},
    )
    options_model = TensordockOptions

    def __init__(self, credentials: TensordockCredentials, *, transport: httpx.BaseTransport | None = None) -> None:
        super().__init__(credentials)
        way: Any = {"token": credentials.api_token, "access": credentials.api, "transport": transport}
        self._api = JsonApi("TensorDock", "https://dashboard.tensordock.com/api/v2", meanings=MEANINGS, **way)

    def account_id(self) -> str:
        self._rows("/instances", "instances")  # TensorDock tells no identity; this only proves the token
        token = self.credentials.api_token.get_secret_value().strip()
        return f"token-{hashlib.sha256(token.encode()).hexdigest()[:16]}"

    def fetch_offers(self, requirements: Requirements) -> list[models.Offer]:
        if not requirements.wants_gpu and not requirements.gpu_vendor:
            return []  # a machine without GPUs is not rented here
        chosen = options.read(TensordockOptions, self.name, {}, self.credentials)
        found: list[models.Offer] = []
        for host in self._rows("/hostnodes", "hostnodes"):
            with suppress(KeyError, TypeError, ValueError, AttributeError):  # an odd host hides no other
                found += offers_of(host, requirements, chosen)
        return found

    def create_instance(self, offer: models.Offer, spec: models.LaunchSpec) -> models.Instance:
        if spec.network == "private":
            raise errors.Unsupported("TensorDock's machines have public addresses: leave out network=private")
        chosen = options.read(TensordockOptions, self.name, spec.options, self.credentials)
        scripts = {"root": late_keys.root_login(spec.client_public_key)}
        if spec.host_key is not None:
            scripts["host"] = late_keys.host_key(spec.host_key)
        attributes: dict[str, Any] = {
            "name": spec.name,
            "type": "virtualmachine",
            "image": chosen.image,
            "hostnode_id": offer.zone,
            "resources": {
                "vcpu_count": int(offer.cpu or 0),
                "ram_gb": int(offer.memory_gb or 0),
                "storage_gb": int(offer.disk_gb or 0),
                "gpus": {offer.raw["gpu"]: {"count": offer.gpu_count}},
            },
            "ssh_key": spec.client_public_key,
            "cloud_init": {
                "write_files": [
                    {"path": f"{KEYS}/{name}", "content": text, "owner": "root:root", "permissions": "0700"}
                    for name, text in scripts.items()
                ],
                "runcmd": [*(f"sh {KEYS}/{name}" for name in scripts), f"rm -rf {KEYS}"],
            },
        }
        if chosen.dedicated_ip:
            attributes["useDedicatedIp"] = True
        elif ports := offer.raw["ports"]:  # by the name: two orders at once do not want the same one
            port = ports[int(hashlib.sha256(spec.name.encode()).hexdigest(), 16) % len(ports)]
            attributes["port_forwards"] = [{"internal_port": 22, "external_port": port}]
        else:
            raise errors.NoCapacity(offer.unavailable_because or f"no port is free for SSH on host {offer.zone}")
        body = {"data": {"type": "virtualmachine", "attributes": attributes}}
        doing = f"order {offer.instance_type} on host {offer.zone}"
        try:
            answer = self._api.order("/instances", body, id_at="data.id", what=doing)
        except errors.NotFound as gone:  # a host left the marketplace
            raise errors.NoCapacity(gone.message, code=gone.code) from None
        number = answers.at(answer, "data.id")
        return self._instance({"id": number, "name": spec.name, "status": "starting"}, offer.region)

    def get_instance(self, instance_id: str) -> models.Instance:
        _, number = scopes.split(instance_id, ("instances",))
        found = self._api.row(f"/instances/{number}", "", what=f"look at {number}")
        return self._instance(cast("dict[str, Any]", found["data"]) if isinstance(found.get("data"), dict) else found)

    def list_instances(self, prefix: str) -> models.Listing:
        def read(kind: str) -> list[models.Instance]:
            return [self._instance(row) for row in self._rows(f"/{kind}", kind)]

        return scopes.listing(scopes.read_each(["instances"], read), prefix)

    def terminate_instance(self, instance_id: str) -> None:
        with suppress(errors.NotFound):
            _, number = scopes.split(instance_id, ("instances",))
            self._api.delete(f"/instances/{number}", what=f"delete {number}")

    def provider_time(self) -> datetime:
        return self._api.now()

    def _rows(self, path: str, key: str) -> list[dict[str, Any]]:
        """The list in an answer, which TensorDock writes in three ways. Transient where there is none: unread is not empty."""
        answer = self._api.get(path)
        for place in (f"data.{key}", f"data.attributes.{key}", "data"):
            found = answers.at(answer, place)
            if isinstance(found, list) and all(isinstance(row, dict) for row in cast("list[object]", found)):
                return cast("list[dict[str, Any]]", found)
        raise errors.Transient(f"TensorDock's answer to GET {path} has no list of {key}")

    def _instance(self, row: dict[str, Any], region: str = "") -> models.Instance:
        more = row.get("attributes")
        said: dict[str, Any] = {**row, **cast("dict[str, Any]", more)} if isinstance(more, dict) else row
        status, address = word(said.get("status")), said.get("ipAddress") or said.get("ip_address")
        told = "portForwards" if "portForwards" in said else "port_forwards"
        inner, outer = (answers.each(said, told, f"{one}_port") for one in ("internal", "external"))
        ports = dict(zip(inner, outer, strict=True))
        port = ports.get(22, None if ports else 22)  # with an address of its own nothing is forwarded
        ssh = models.SshEndpoint(host=str(address), port=port) if address and isinstance(port, int) else None
        price = said.get("rateHourly")
        return models.Instance(
            id=scopes.scoped("instances", row["id"]),
            name=str(said.get("name") or ""),  # only an order can set it
            provider=self.name,
            state=states.state_of(status, STATES, ssh),
            region=str(said.get("region") or answers.at(said, "location.city") or region or "tensordock"),
            ssh=ssh,
            reason=REASONS.get(status, ""),
            price=float(price) if isinstance(price, int | float) else None,
            raw={"status": status},
        )
