"""Vultr: cloud GPUs (plans `vcg-...`) and bare metal (`vbm-...`), rented by the started hour from the order until they are destroyed.

A machine that is switched off goes on costing money, so only a destroy ends the bill: `reap` is the last net. Prices come from the
catalog, what is in stock from the API, which has no key for an order and takes 30 requests a second from one address. API: https://www.vultr.com/api/
"""

from __future__ import annotations

import base64
from contextlib import suppress
from datetime import datetime
from typing import Any, Final

import httpx

from prefect_gpu.blocks.vultr import VultrCredentials, VultrOptions
from prefect_gpu.providers.core import errors, models
from prefect_gpu.providers.core.catalog import query
from prefect_gpu.providers.core.contract import Billing, Capabilities, Provider, RateLimit
from prefect_gpu.providers.core.models import InstanceState
from prefect_gpu.providers.core.renting.library import TaskLibrary
from prefect_gpu.providers.core.requests import Requirements
from prefect_gpu.providers.core.toolkit import answers, cloud_init, options, scopes, states, stock
from prefect_gpu.providers.core.toolkit.http import JsonApi

# Vultr has no codes, one sentence in `error` and 400 for most of it. The sentences are not documented.
MEANINGS: Final = answers.Meanings(
    words={
        errors.NoCapacity: ("not available in the selected region", "out of stock"),
        errors.QuotaExceeded: ("maximum number of", "limit has been reached"),
        errors.InsufficientFunds: ("insufficient funds", "add a payment method", "account balance"),
        errors.AuthFailed: ("unauthorized ip",),
    }
)
STATES: Final = {  # bare metal's `status`; of an active virtual machine its `server_status`
    "pending": InstanceState.PROVISIONING,
    "active": InstanceState.RUNNING,
    "none": InstanceState.PROVISIONING,
    "locked": InstanceState.PROVISIONING,
    "installingbooting": InstanceState.PROVISIONING,
    "ok": InstanceState.RUNNING,
}
REASONS: Final = {
    "suspended": "Vultr suspended it, and it goes on costing money: look at the account",
    "stopped": "it is powered off, and goes on costing money",
}
KINDS: Final = ("instances", "bare-metals")  # two lists in the API
UBUNTU_22_04: Final = 1743
BOOT_S: Final = {"vbm": 55 * 60}  # bare metal
NO_ADDRESS: Final = (None, "", "0.0.0.0")  # noqa: S104 - what Vultr says while there is none
RIGHTS: Final = ("provisioning", "subscriptions", "subscriptions_view")


class Vultr(Provider[VultrCredentials]):
    """Drives API version 2. `transport` is for tests."""

    name = "vultr"
    capabilities = Capabilities(
        listing_lag_s=60,  # not measured
        not_found_proves_absence=True,
        images="docker",
        rate_limits={"*": RateLimit(calls=30, per_s=1)},
        billing=Billing(step_s=3600, minimum_s=3600),
    )
    options_model = VultrOptions

    def __init__(self, credentials: VultrCredentials, *, transport: httpx.BaseTransport | None = None) -> None:
        super().__init__(credentials)
        way: Any = {"token": credentials.api_key, "access": credentials.api, "transport": transport}
        self._api = JsonApi("Vultr", "https://api.vultr.com/v2", meanings=MEANINGS, **way)

    def account_id(self) -> str:
        return self._api.text("/account", "account.email")

    def missing_rights(self) -> list[str]:
        granted: list[str] = self._api.row("/account", "account").get("acls") or []
        return [right for right in RIGHTS if right not in granted]

    def fetch_offers(self, requirements: Requirements) -> list[models.Offer]:
        offers = query.offers(self.name, requirements)
        return stock.with_boot_deadlines(stock.in_regions(offers, self._plans_in), BOOT_S)

    def create_instance(self, offer: models.Offer, spec: models.LaunchSpec) -> models.Instance:
        if spec.network == "private":
            raise errors.Unsupported("Vultr's machines have public addresses: leave out network=private")
        chosen = options.read(VultrOptions, self.name, spec.options, self.credentials)
        kind = "bare-metals" if offer.instance_type.startswith("vbm") else "instances"
        # Cloud GPUs get NVIDIA's driver with Ubuntu; everything else boots the application that comes with Docker.
        usual = {"os_id": UBUNTU_22_04} if offer.instance_type.startswith("vcg") else {"image_id": "docker"}
        user_data = cloud_init.user_data(spec, powers_off=False, as_root=True)
        body: dict[str, Any] = {
            **(chosen.model_dump(include={"os_id", "image_id"}, exclude_none=True) or usual),
            "region": offer.region,
            "plan": offer.instance_type,
            "label": spec.name,
            "hostname": spec.name,
            "user_data": base64.b64encode(user_data.encode()).decode(),
            "tags": [f"{name}={value}" for name, value in spec.tags.items()],
            "activation_email": False,
        }
        if kind == "instances" and chosen.firewall_group_id:
            body["firewall_group_id"] = chosen.firewall_group_id
        answer = self._api.order(f"/{kind}", body, id_at="*.id", what=f"order {offer.instance_type} in {offer.region}")
        return self._instance(kind, answers.at(answer, "*"))

    def get_instance(self, instance_id: str) -> models.Instance:
        kind, number = scopes.split(instance_id, KINDS)
        return self._instance(kind, self._api.row(f"/{kind}/{number}", "*", what=f"look at {number}"))

    def list_instances(self, prefix: str) -> models.Listing:
        return scopes.listing(scopes.read_each(KINDS, self._all), prefix)

    def terminate_instance(self, instance_id: str) -> None:
        with suppress(errors.NotFound):
            scopes.must_be_ours(self.get_instance(instance_id))
            self._api.delete(f"/{instance_id}", what=f"destroy {instance_id}")

    def provider_time(self) -> datetime:
        return self._api.now()

    def _plans_in(self, region: str) -> set[str]:
        return {str(plan) for plan in self._api.row(f"/regions/{region}/availability", "")["available_plans"]}

    def _all(self, kind: str) -> list[models.Instance]:
        rows = self._api.rows(f"/{kind}", kind.replace("-", "_"), {"per_page": 500}, next_at="meta.links.next")
        return [self._instance(kind, row) for row in rows]

    def _instance(self, kind: str, row: dict[str, Any]) -> models.Instance:
        status, server = str(row.get("status")), row.get("server_status")
        word = str(server) if status == "active" and server else status
        if word == "ok" and row.get("power_status") == "stopped":
            word = "stopped"
        address = row.get("main_ip")
        ssh = models.SshEndpoint(host=str(address)) if address not in NO_ADDRESS else None
        # A label can be given to any machine; the host's name only to one that is ordered. Bare metal does not tell it.
        name, stranger, borrowed = scopes.ours_or_not(row.get("label"), row.get("hostname"), "host name")
        return models.Instance(
            id=scopes.scoped(kind, row["id"]),
            name=name,
            provider=self.name,
            state=states.state_of(word, STATES, ssh),
            region=str(row.get("region") or ""),
            created_at=states.moment(row.get("date_created")),
            ssh=ssh,
            reason=stranger or REASONS.get(word, ""),
            raw={"status": word, **borrowed},  # never default_password
        )


tasks = TaskLibrary(Vultr, VultrCredentials)
