"""AWS: virtual machines of EC2, on-demand or spot, in every region that the account has enabled.

Rented is an instance type in one availability zone, billed by the second from `running` to `shutting-down`, 60 s at least;
disk, public address and traffic come on top. Ids are `region/i-...`. API: https://docs.aws.amazon.com/AWSEC2/latest/APIReference/
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from typing_extensions import override

from prefect_gpu.blocks.aws import AwsCredentials
from prefect_gpu.providers.aws import give_back, listing, network, offers, order, reservations, rights
from prefect_gpu.providers.aws.api import Api
from prefect_gpu.providers.aws.errors import ORDERED_BEFORE
from prefect_gpu.providers.aws.images import Images
from prefect_gpu.providers.aws.instances import TAKEN_BACK, described, split
from prefect_gpu.providers.aws.order import AwsOptions
from prefect_gpu.providers.core.contract import Billing, Capabilities, Connection, Provider, RateLimit
from prefect_gpu.providers.core.errors import (
    InstanceFailed,
    InvalidRequest,
    NotFound,
    ProviderError,
    Transient,
    Unconfirmed,
)
from prefect_gpu.providers.core.models import Instance, LaunchSpec, Listing, Offer
from prefect_gpu.providers.core.requests import Requirements
from prefect_gpu.providers.core.toolkit import notice
from prefect_gpu.providers.core.toolkit import options as driver_options
from prefect_gpu.providers.core.toolkit.network import jump_of


class Aws(Provider[AwsCredentials]):
    """Drives EC2. `endpoint_url` and `priced_offers` are for tests: another API address, another catalog."""

    name = "aws"
    capabilities = Capabilities(
        create_repeatable="zone",
        listing_lag_s=300,
        not_found_proves_absence=False,  # AWS says so itself: the instance may still be running
        self_ends="guest",
        spot=True,
        images="docker",
        host_key="placed",
        boot_deadline_s=600,
        # EC2's default refill per second, not measured: https://docs.aws.amazon.com/ec2/latest/devguide/ec2-api-throttling.html
        rate_limits={
            "create_instance": RateLimit(calls=2, per_s=1),
            "terminate_instance": RateLimit(calls=5, per_s=1),
        },
        # 100 GB of gp3 at $0.08 a month and an IPv4 address at $0.005 an hour
        billing=Billing(starts="running", step_s=1, minimum_s=60, hourly_extras=0.016),
    )
    options_model = AwsOptions

    def __init__(
        self,
        credentials: AwsCredentials,
        *,
        endpoint_url: str | None = None,
        priced_offers: offers.Priced | None = None,
    ) -> None:
        super().__init__(credentials)
        self.api = Api(credentials, endpoint_url)
        self._images = Images(self.api)
        self._priced_offers = priced_offers or _catalog_offers

    @override
    def account_id(self) -> str:
        return self.api.account_id()

    @override
    def fetch_offers(self, requirements: Requirements) -> list[Offer]:
        return offers.offers(self.api, self._images, self._priced_offers, requirements)

    @override
    def create_instance(self, offer: Offer, spec: LaunchSpec) -> Instance:
        if offer.zone is None:
            raise InvalidRequest(f"{offer.instance_type} needs a zone: a name is one order only within a zone")
        region = offer.region
        options = driver_options.read(AwsOptions, self.name, spec.options, self.credentials)
        order.user_data(offer, spec)
        jump_of(self.credentials.network)
        image = self._images.of(offer, options.image_id, options.image_user)
        order.disk_gb(offer, spec, image)
        subnet = network.subnet_in(self.api, region, offer.zone)
        group = network.security_group(self.api, region, subnet.vpc, spec.name, image.port)
        reservation = None if offer.spot else reservations.active(self.api, region, options.capacity_reservation)
        sent = order.request(
            self.credentials, offer, spec, options, image=image, subnet=subnet, group=group, reservation=reservation
        )
        try:
            with self.api.asks(f"order {offer.instance_type} in {offer.zone}", region=region, is_order=True):
                machines = self.api.client("ec2", region, repeats=False).run_instances(**sent).get("Instances")
                if not machines or not machines[0].get("InstanceId"):
                    raise Unconfirmed("AWS took the order and named no instance")
                seen = described(region, machines[0], self.credentials).instance
        except ProviderError as error:
            if error.code in ORDERED_BEFORE:
                return self._ordered_before(region, spec.name, offer, error)
            if error.code == "InvalidGroup.NotFound" and group.is_ours:
                # The group was made a moment ago and is not everywhere yet; nothing was bought.
                raise Transient(
                    "AWS does not know the new security group yet", code=error.code, reach="region"
                ) from None
            raise
        return seen.model_copy(update={"name": spec.name})

    def _ordered_before(self, region: str, name: str, offer: Offer, error: ProviderError) -> Instance:
        """What was ordered under this name, when EC2's answer proves that something was: also if it has ended by now.

        The newest image may be another one by the time an order is repeated, which makes it a different order.
        """
        found = [one.instance for one in listing.machines_of(self.api, region, name)]
        here = [instance for instance in found if instance.zone == offer.zone]
        if not here:
            if isinstance(error, InstanceFailed):
                raise error
            raise Unconfirmed(f"AWS has an order under the name {name} and does not show it yet", code=error.code)
        if here[0].raw["instance_type"] != offer.instance_type:
            raise error
        return here[0]

    @override
    def get_instance(self, instance_id: str) -> Instance:
        region, machine_id = split(instance_id)
        code = None
        try:
            with self.api.asks(f"look at {instance_id}", region=region):
                for row in self.api.pages(region, "describe_instances", "Reservations", InstanceIds=[machine_id]):
                    return described(region, row["Instances"][0], self.credentials).instance
        except NotFound as error:
            code = error.code
        raise NotFound(f"AWS does not show {instance_id}; it may run all the same", code=code)

    @override
    def provider_time(self) -> datetime | None:
        return self.api.now()

    @override
    def list_instances(self, prefix: str) -> Listing:
        return listing.everywhere(self.api, prefix)

    @override
    def terminate_instance(self, instance_id: str) -> None:
        give_back.terminate(self.api, [instance_id])

    @override
    def terminate_instances(self, instance_ids: Sequence[str]) -> None:
        give_back.terminate(self.api, instance_ids)

    @override
    def missing_rights(self) -> list[str]:
        return rights.missing(self.api, self._images)

    @override
    def check(self, instance: Instance, connection: Connection) -> str | None:
        said = notice.heard(connection)
        return f"AWS is about to take this spot instance back: {said}" if said else None

    @override
    def interruption_reason(self, instance: Instance) -> str | None:
        # Also when it is `terminated` by now: that state proves absence, so it is told as it is.
        return instance.reason if instance.raw.get("state_reason") in TAKEN_BACK else None


def _catalog_offers(provider: str, requirements: Requirements) -> list[Offer]:
    # gpuhunt takes its time to import, and orders need no prices
    from prefect_gpu.providers.core.catalog import query

    return query.offers(provider, requirements)
