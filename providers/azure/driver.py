"""Azure: virtual machines of a subscription, on demand or spot, in every region, in one resource group.

Rented is a type in a region, billed by the second while it is allocated: a machine that is switched off from within goes on costing
money, so only a delete ends the bill, and `reap` is the last net. Disk, address and traffic come on top. Ids are `group/name`.
API: https://learn.microsoft.com/rest/api/compute/
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, Final

from typing_extensions import override

from prefect_gpu.blocks.azure import AzureCredentials
from prefect_gpu.providers.azure import (
    give_back,
    images,
    instances,
    listing,
    network,
    offers,
    order,
    reservations,
    rights,
)
from prefect_gpu.providers.azure.api import Arm, at
from prefect_gpu.providers.azure.errors import NOT_THERE_YET, ORDERED_BEFORE
from prefect_gpu.providers.azure.order import AzureOptions
from prefect_gpu.providers.core.contract import Billing, Capabilities, Connection, Provider
from prefect_gpu.providers.core.errors import NotFound, ProviderError, Transient
from prefect_gpu.providers.core.models import Instance, InstanceState, LaunchSpec, Listing, Offer
from prefect_gpu.providers.core.requests import Requirements
from prefect_gpu.providers.core.toolkit import notice
from prefect_gpu.providers.core.toolkit import options as driver_options
from prefect_gpu.providers.core.toolkit.network import jump_of
from prefect_gpu.providers.core.toolkit.wire import Transport

EVENTS: Final = "/providers/Microsoft.Insights/eventtypes/management/values"
_LOOKED_BACK: Final = timedelta(days=7)  # Azure keeps 90


class Azure(Provider[AzureCredentials]):
    """Drives the Resource Manager. `transport`, `credential` and `priced_offers` are for tests."""

    name = "azure"
    capabilities = Capabilities(
        create_repeatable="account",
        listing_lag_s=60,  # not measured
        not_found_proves_absence=True,
        self_ends="none",  # switched off from within it is billed in full
        spot=True,
        images="docker",
        host_key="placed",
        boot_deadline_s=900,  # large machines take their time
        # 128 GB of Standard SSD at 9.60 USD a month and an IPv4 address at 0.005 USD an hour
        billing=Billing(starts="running", step_s=1, minimum_s=60, hourly_extras=0.018),
    )
    options_model = AzureOptions

    def __init__(
        self,
        credentials: AzureCredentials,
        *,
        transport: Transport | None = None,
        credential: Any = None,
        priced_offers: offers.Priced | None = None,
    ) -> None:
        super().__init__(credentials)
        self.arm = Arm(credentials, transport, credential)
        self._types = offers.Types(self.arm)
        self._priced_offers = priced_offers or _catalog_offers

    @override
    def account_id(self) -> str:
        subscription = self.arm.get(self.arm.subscription, what="look at the subscription")
        return at(subscription, "subscriptionId", self.credentials.subscription_id).lower()

    @override
    def fetch_offers(self, requirements: Requirements) -> list[Offer]:
        return offers.offers(self.arm, self._types, self._priced_offers, requirements)

    @override
    def create_instance(self, offer: Offer, spec: LaunchSpec) -> Instance:
        chosen = driver_options.read(AzureOptions, self.name, spec.options, self.credentials)
        order.user_data(offer, spec)
        order.disk_gb(offer, spec)
        jump_of(self.credentials.network)
        network.check(self.arm, spec)
        image = images.of(self.credentials, offer, chosen.image)
        group = chosen.capacity_reservation_group or self.credentials.capacity_reservation_group
        reserved = [] if offer.spot else reservations.of(self.arm, group)
        network.make_resource_group(self.arm, offer.region)
        body = order.request(
            self.credentials,
            offer,
            spec,
            chosen,
            image=image,
            place=network.place(self.arm, offer.region, spec.name, image.port),
            reservation=next((one for one in reserved if one.covers(offer)), None),
            is_private=network.is_private(self.arm, spec),
        )
        path = f"{self.arm.group}{instances.MACHINES}/{spec.name}"
        where = offer.zone or offer.region
        try:
            row = self.arm.order(path, body, what=f"order {offer.instance_type} in {where}")
        except ProviderError as error:
            if error.code in ORDERED_BEFORE:
                return self._ordered_before(spec.name, error)
            if error.code in NOT_THERE_YET:
                raise Transient(error.message, code=error.code, reach="region") from None
            raise
        seen = {"location": offer.region, **row, "name": spec.name}
        return instances.described(seen, self.credentials.resource_group, {}, {}, self.credentials)

    def _ordered_before(self, name: str, error: ProviderError) -> Instance:
        """What stands under this name, when Azure says that something does."""
        try:
            return instances.look(self.arm, self.credentials.resource_group, name)
        except NotFound:
            raise error from None

    @override
    def get_instance(self, instance_id: str) -> Instance:
        group, kind, name = instances.split(instance_id)
        if kind is not None:
            raise NotFound(f"{instance_id} is not a machine")
        try:
            return instances.look(self.arm, group, name)
        except NotFound as gone:
            if (taken := self._taken_back(group, name)) is None:
                raise gone from None
            return taken

    @override
    def list_instances(self, prefix: str) -> Listing:
        return listing.everything(self.arm, prefix)

    @override
    def terminate_instance(self, instance_id: str) -> None:
        give_back.terminate(self.arm, instance_id)

    @override
    def provider_time(self) -> datetime | None:
        return self.arm.now()

    @override
    def missing_rights(self) -> list[str]:
        return rights.missing(self.arm)

    @override
    def check(self, instance: Instance, connection: Connection) -> str | None:
        said = notice.heard(connection)
        return f"Azure is about to take this spot machine back: {said}" if said else None

    @override
    def interruption_reason(self, instance: Instance) -> str | None:
        return instance.reason if instance.raw.get("state") == "evicted" else None

    def _taken_back(self, group: str, name: str) -> Instance | None:
        """A spot machine that is gone because Azure took it, by the subscription's activity log, some minutes later."""
        path = f"{self.arm.group_named(group)}{instances.MACHINES}/{name}"
        since, until = (one.strftime("%Y-%m-%dT%H:%M:%SZ") for one in (self.arm.now() - _LOOKED_BACK, self.arm.now()))
        asked = f"eventTimestamp ge '{since}' and eventTimestamp le '{until}' and resourceUri eq '{path}'"
        try:
            events = list(self.arm.rows(f"{self.arm.subscription}{EVENTS}", what="ask why it is gone", filter=asked))
        except ProviderError:
            return None  # why it is gone is not worth an error; that it is gone was answered
        for event in events:
            is_its_own = at(event, "resourceId", "").lower() == path.lower()
            if is_its_own and "evictspotvm" in at(event, "operationName.value", "").lower():
                return Instance(
                    id=instances.id_of(group, name),
                    name=instances.proved_name(name),
                    provider=self.name,
                    state=InstanceState.TERMINATED,
                    reason=f"Azure took this spot machine back at {at(event, 'eventTimestamp', 'a time it does not tell')[:40]}",
                    spot=True,
                    raw={"state": "evicted"},
                )
        return None


def _catalog_offers(provider: str, requirements: Requirements) -> list[Offer]:
    # gpuhunt takes its time to import, and orders need no prices
    from prefect_gpu.providers.core.catalog import query

    return query.offers(provider, requirements)
