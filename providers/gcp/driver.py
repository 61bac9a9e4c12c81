"""The driver: one project's credentials, what is offered there, one order, and its end."""

from __future__ import annotations

from datetime import datetime
from typing import Any, cast

import httpx
from typing_extensions import override

from prefect_gpu.blocks.gcp import GcpCredentials, GcpOptions
from prefect_gpu.providers.core.contract import Billing, Capabilities, Connection, Provider, RateLimit
from prefect_gpu.providers.core.errors import InstanceFailed, InvalidRequest, NotFound, ProviderError, Unconfirmed
from prefect_gpu.providers.core.models import Instance, InstanceState, LaunchSpec, Listing, Offer
from prefect_gpu.providers.core.requests import Requirements
from prefect_gpu.providers.core.toolkit import notice
from prefect_gpu.providers.core.toolkit import options as driver_options
from prefect_gpu.providers.core.toolkit.network import jump_of
from prefect_gpu.providers.gcp import (
    errors,
    firewall,
    give_back,
    instances,
    listing,
    network,
    offers,
    operations,
    order,
    reservations,
    rights,
)
from prefect_gpu.providers.gcp.api import Api
from prefect_gpu.providers.gcp.images import Images


class Gcp(Provider[GcpCredentials]):
    """Drives Compute Engine v1. `transport` and `priced_offers` are for tests: another network, another catalog."""

    name = "gcp"
    capabilities = Capabilities(
        create_repeatable="zone",
        listing_lag_s=60,  # not measured
        not_found_proves_absence=True,
        self_ends="server",
        spot=True,
        images="docker",
        host_key="placed",
        boot_deadline_s=600,
        # 1,500 calls a minute and project: https://cloud.google.com/compute/api-quota
        rate_limits={"*": RateLimit(calls=20, per_s=1)},
        # 100 GB of pd-balanced at $0.10 a month and an IPv4 address at $0.005 an hour
        billing=Billing(starts="running", step_s=1, minimum_s=60, hourly_extras=0.019),
    )
    options_model = GcpOptions

    def __init__(
        self,
        credentials: GcpCredentials,
        *,
        transport: httpx.BaseTransport | None = None,
        priced_offers: offers.Priced | None = None,
    ) -> None:
        super().__init__(credentials)
        self.api = Api(credentials, transport)
        self._images = Images(self.api)
        self._priced_offers = priced_offers or _catalog_offers

    @override
    def account_id(self) -> str:
        return self.api.http.text(self.api.path(), "name", what="look at the project")

    @override
    def fetch_offers(self, requirements: Requirements) -> list[Offer]:
        return offers.offers(self.api, self._images, self._priced_offers, requirements)

    @override
    def create_instance(self, offer: Offer, spec: LaunchSpec) -> Instance:
        if offer.zone is None:
            raise InvalidRequest(f"{offer.instance_type} needs a zone: a name is one order only within a zone")
        options = driver_options.read(GcpOptions, self.name, spec.options, self.credentials)
        order.user_data(offer, spec)
        jump_of(self.credentials.network)
        doing = f"order {offer.instance_type} in {offer.zone}"
        try:
            image = self._images.of(offer, options.image)
            order.disk_gb(offer, spec, image)
            reservation = None if offer.spot else reservations.ready(self.api, options)
            if reservation is not None and not reservation.covers(offer):
                reservation = None
            subnet = network.subnet_in(self.api, offer.region)
            tags = firewall.tags(self.api, subnet, spec.name, image.port)
            body = order.request(
                self.credentials, offer, spec, options, image=image, subnet=subnet, tags=tags, reservation=reservation
            )
            path = self.api.path("zones", offer.zone, "instances")
            try:
                answer = self.api.http.order(
                    path, body, id_at="name", params={"requestId": order.request_id(spec.name, offer.zone)}, what=doing
                )
            except InvalidRequest as error:
                if error.code not in errors.EXISTS:
                    raise
                return self._ordered_before(offer, spec.name, error)
            done = operations.waited(
                self.api, "zones", offer.zone, "operations", str(cast("dict[str, Any]", answer)["name"]), doing=doing
            )
            if (refused := errors.in_operation(done, doing)) is not None:
                if refused.code in errors.EXISTS:
                    return self._ordered_before(offer, spec.name, refused)
                raise refused
        except ProviderError as error:
            raise errors.as_of_an_order(error) from None
        # Accepted, and perhaps carried out: what it is now the next look says.
        return instances.described(
            {**body, "status": "PROVISIONING", "networkInterfaces": []}, self.credentials, offer.zone
        )

    def _ordered_before(self, offer: Offer, name: str, error: ProviderError) -> Instance:
        """What was ordered under this name in this zone, when Google's answer proves that something was."""
        try:
            found = self.get_instance(instances.instance_id(offer.zone or "", name))
        except NotFound:
            raise Unconfirmed(f"Google Cloud knows the name {name} and does not show it yet", code=error.code) from None
        if found.state is InstanceState.TERMINATED:
            raise InstanceFailed(f"the machine that was ordered under {name} has ended: {found.reason}")
        if found.raw["machine_type"] != offer.instance_type:
            raise error
        return found

    @override
    def get_instance(self, instance_id: str) -> Instance:
        zone, kind, name = instances.split(instance_id)
        if kind != "instances":
            raise NotFound(f"{instance_id} is a disk")
        what = f"look at {instance_id}"
        try:
            return instances.described(
                self.api.http.row(self.api.path("zones", zone, kind, name), "", what=what), self.credentials
            )
        except NotFound:
            if (ended := operations.ended(self.api, zone, name)) is not None:
                return ended
            raise

    @override
    def provider_time(self) -> datetime | None:
        return self.api.now()

    @override
    def list_instances(self, prefix: str) -> Listing:
        return listing.everywhere(self.api, prefix)

    @override
    def terminate_instance(self, instance_id: str) -> None:
        give_back.terminate(self.api, instance_id)

    @override
    def missing_rights(self) -> list[str]:
        return rights.missing(self.api)

    @override
    def settle_in(self, instance: Instance) -> None:
        give_back.without_user_data(self.api, instance.id, order.USER_DATA)

    @override
    def check(self, instance: Instance, connection: Connection) -> str | None:
        return "Google is about to take this spot machine back" if notice.heard(connection) else None

    @override
    def interruption_reason(self, instance: Instance) -> str | None:
        if (told := instance.raw.get("taken_back")) is not None:
            return str(told) or None
        try:
            zone, _, name = instances.split(instance.id)
            return operations.taken_back(operations.told(self.api, zone, name)) or None
        except ProviderError:
            return None


def _catalog_offers(provider: str, requirements: Requirements) -> list[Offer]:
    # gpuhunt takes its time to import, and orders need no prices
    from prefect_gpu.providers.core.catalog import query

    return query.offers(provider, requirements, allowed_flags=offers.FLAGS)
