"""The driver: offers at today's prices, one order with its uploaded key, and the end of both."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any, Final

import httpx

from prefect_gpu.blocks.lambdalabs import LambdalabsCredentials, LambdalabsOptions
from prefect_gpu.providers.core import errors, models
from prefect_gpu.providers.core.catalog import query
from prefect_gpu.providers.core.contract import Billing, Capabilities, Provider, RateLimit
from prefect_gpu.providers.core.models import InstanceState
from prefect_gpu.providers.core.requests import Requirements
from prefect_gpu.providers.core.toolkit import answers, cloud_init, companions, options, scopes, states, stock
from prefect_gpu.providers.core.toolkit.http import JsonApi
from prefect_gpu.providers.lambdalabs.words import MEANINGS, REASONS, STATES

KINDS: Final = ("instances", "ssh-keys")  # paths of the API, and the scopes of ids
EVERY_S = 1.0  # between two requests
LAUNCH_EVERY_S: Final = 12.0


class Lambdalabs(Provider[LambdalabsCredentials]):
    """Drives API version 1. `transport` is for tests."""

    name = "lambdalabs"
    capabilities = Capabilities(
        listing_lag_s=60,  # not measured
        not_found_proves_absence=True,
        images="docker",
        boot_deadline_s=30 * 60,  # eight GPUs take 10 to 25 minutes, which are not billed
        rate_limits={"*": RateLimit(calls=1, per_s=1), "create_instance": RateLimit(calls=1, per_s=LAUNCH_EVERY_S)},
        billing=Billing(starts="boot", step_s=60, minimum_s=60),
    )
    options_model = LambdalabsOptions

    def __init__(self, credentials: LambdalabsCredentials, *, transport: httpx.BaseTransport | None = None) -> None:
        super().__init__(credentials)
        way: Any = {"token": credentials.api_key, "access": credentials.api, "transport": transport}
        self._api = JsonApi("Lambda", "https://cloud.lambda.ai/api/v1", meanings=MEANINGS, every_s=EVERY_S, **way)
        self._lists = companions.Lists(self._api, list_at="data", id_at="data.id")

    def account_id(self) -> str:
        self._api.get("/ssh-keys")  # Lambda tells no identity; this only proves the key
        return f"key-{hashlib.sha256(self.credentials.api_key.get_secret_value().strip().encode()).hexdigest()[:16]}"

    def fetch_offers(self, requirements: Requirements) -> list[models.Offer]:
        offers = query.offers(self.name, requirements)
        types = self._api.row("/instance-types", "data") if offers else {}

        def why_not(offer: models.Offer) -> str | None:
            free = answers.each(types, f"{offer.instance_type}.regions_with_capacity_available", "name")
            return None if offer.region in free else f"sold out in {offer.region}"

        now = [_priced_now(offer, types) for offer in offers]
        limit = requirements.max_price
        return stock.judged((one for one in now if limit is None or one.price <= limit), why_not)

    def create_instance(self, offer: models.Offer, spec: models.LaunchSpec) -> models.Instance:
        if spec.network == "private":
            raise errors.Unsupported("Lambda's machines have public addresses: leave out network=private")
        chosen = options.read(LambdalabsOptions, self.name, spec.options, self.credentials)
        body: dict[str, Any] = {
            "region_name": offer.region,
            "instance_type_name": offer.instance_type,
            "ssh_key_names": [spec.name],
            "name": spec.name,
            "hostname": spec.name,
            "user_data": cloud_init.user_data(spec, powers_off=False),
            "tags": [{"key": name[:55], "value": value[:128]} for name, value in spec.tags.items()],
            **chosen.of_an_order(),
        }

        def order(_: object) -> models.Instance:
            doing = f"order {offer.instance_type} in {offer.region}"
            try:
                answer = self._api.order("/instance-operations/launch", body, id_at="data.instance_ids.0", what=doing)
            except errors.NotFound as missing:  # an image or firewall ruleset that this region does not have
                raise errors.RegionClosed(missing.message, code=missing.code) from None
            except errors.RateLimited as soon:  # it says not when; its document does
                soon.retry_after_s = soon.retry_after_s or LAUNCH_EVERY_S
                raise
            number = answers.at(answer, "data.instance_ids.0")
            return self._instance({**body, "id": number, "status": "booting", "region": {"name": offer.region}})

        key = companions.named("ssh-keys", {"name": spec.name, "public_key": spec.client_public_key}, self._lists)
        return companions.with_companions([key], order)  # each order names exactly one uploaded key

    def get_instance(self, instance_id: str) -> models.Instance:
        _, number = scopes.split(instance_id, ("instances",))
        return self._instance(self._api.row(f"/instances/{number}", "data", what=f"look at {number}"))

    def list_instances(self, prefix: str) -> models.Listing:
        return companions.listing(KINDS, self._lists.rows, self._instance, prefix)

    def terminate_instance(self, instance_id: str) -> None:
        with suppress(errors.NotFound):
            kind, number = scopes.split(instance_id, KINDS)
            self._lists.remove(kind, number) if kind == "ssh-keys" else self._end([self.get_instance(instance_id)])

    def terminate_instances(self, instance_ids: Sequence[str]) -> None:
        seen = {
            one.id: one for one in map(self._instance, self._lists.rows("instances"))
        }  # one request for all of them
        self._end([seen[one] for one in instance_ids if one in seen])
        for one in instance_ids:
            if one not in seen:
                self.terminate_instance(one)

    def provider_time(self) -> datetime:
        return self._api.now()

    def _end(self, found: Sequence[models.Instance]) -> None:
        for one in found:
            scopes.must_be_ours(one)
        going = (InstanceState.TERMINATING, InstanceState.TERMINATED)
        numbers = [one.id.partition("/")[2] for one in found if one.state not in going]
        try:
            if numbers:
                answer = self._api.post("/instance-operations/terminate", {"instance_ids": numbers}, what="terminate")
                ended = answers.each(answer, "data.terminated_instances", "id")
                if missing := [one for one in numbers if one not in ended]:
                    raise errors.Transient(f"Lambda does not say that it terminates {', '.join(missing)}")
        except errors.NotFound:
            if len(numbers) > 1:  # one of them: asked for one by one it holds up no other
                raise
        companions.sweep({one.name for one in found}, KINDS[1:], self._lists)

    def _instance(self, row: dict[str, Any]) -> models.Instance:
        word, address = str(row.get("status")), row.get("ip")
        ssh = models.SshEndpoint(host=str(address), user="ubuntu") if address else None
        # The name can be given to any machine; which key may log in is told by its order alone, and ours is called like the machine.
        key = answers.at(row, "ssh_key_names.0")
        name, stranger, borrowed = scopes.ours_or_not(row.get("name"), key, "SSH key")
        return models.Instance(
            id=scopes.scoped("instances", row["id"]),
            name=name,
            provider=self.name,
            state=states.state_of(word, STATES, ssh),
            region=str(answers.at(row, "region.name") or ""),
            ssh=ssh,
            reason=stranger or REASONS.get(word, ""),
            raw={"status": word, **borrowed},  # never jupyter_token
        )


def _priced_now(offer: models.Offer, types: dict[str, Any]) -> models.Offer:
    cents = answers.at(types, f"{offer.instance_type}.instance_type.price_cents_per_hour")
    return offer.model_copy(update={"price": cents / 100, "priced_at": None}) if isinstance(cents, int) else offer
