"""The driver: what is free now, one order with what it brings along, a pod's log, and its end."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any, Final, cast

import httpx

from prefect_gpu.blocks.runpod import RunpodCredentials
from prefect_gpu.providers.core import errors, models
from prefect_gpu.providers.core.contract import Billing, Capabilities, Provider, RateLimit
from prefect_gpu.providers.core.models import InstanceState
from prefect_gpu.providers.core.requests import Requirements, Spot
from prefect_gpu.providers.core.toolkit import answers, companions, container_boot, options, scopes
from prefect_gpu.providers.core.toolkit.http import JsonApi
from prefect_gpu.providers.runpod.offers import offers_in, scopes_of
from prefect_gpu.providers.runpod.order import body_of, brought_along
from prefect_gpu.providers.runpod.pods import KINDS, Lists, instance_of
from prefect_gpu.providers.runpod.words import MEANINGS, NO_SPOT, Asked, image_trouble_in

PULLS: Final = timedelta(minutes=1)  # then the host's log is looked at
BACKFILL: Final = timedelta(minutes=1)  # of a log: its clock is the host's


class Runpod(Provider[RunpodCredentials]):
    """Drives API version 2. `transport` is for tests."""

    name = "runpod"
    capabilities = Capabilities(
        listing_lag_s=60,  # not measured; an id is unknown for a while after its order
        not_found_proves_absence=True,
        images="native",
        host_key="by_logs",
        needs_catalog=False,
        boot_deadline_s=20 * 60,  # with the pull of the image
        rate_limits={"*": RateLimit(calls=30, per_s=60)},  # a call is up to three of 60 requests
        billing=Billing(step_s=1, minimum_s=1),
    )
    options_model = Asked

    def __init__(self, credentials: RunpodCredentials, *, transport: httpx.BaseTransport | None = None) -> None:
        super().__init__(credentials)
        way: Any = {"token": credentials.api_key, "access": credentials.api, "transport": transport}
        way["headers"] = {"user-agent": "prefect-gpu"}  # some of Python's own are refused before the API
        self._api = JsonApi("RunPod", "https://api.runpod.io/v2", meanings=MEANINGS, **way)
        self._lists = Lists(self._api)

    def account_id(self) -> str:
        self._lists.rows("pods")  # RunPod tells no identity; this only proves the key
        return f"key-{hashlib.sha256(self.credentials.api_key.get_secret_value().strip().encode()).hexdigest()[:16]}"

    def missing_rights(self) -> list[str]:
        missing: list[str] = []
        for kind in KINDS:  # all are read in each listing; what may be written is shown by an order alone
            try:
                self._lists.rows(kind)
            except errors.AuthFailed as refused:
                if refused.code != "403":
                    raise
                missing.append(f"read {kind}")
        return missing

    def fetch_offers(self, requirements: Requirements) -> list[models.Offer]:
        if requirements.spot is Spot.SPOT:
            raise errors.Unsupported(NO_SPOT)
        chosen = options.read(Asked, self.name, {}, self.credentials)
        asked = scopes_of(requirements, chosen)
        seen = scopes.read_each(asked, lambda scope: list(offers_in(self._api, asked[scope], requirements, chosen)))
        if seen.unread:
            raise errors.Transient(f"what RunPod has could not be read: {seen.unread[0].reason}")
        return [offer for offers in seen.found.values() for offer in offers]

    def create_instance(self, offer: models.Offer, spec: models.LaunchSpec) -> models.Instance:
        chosen = options.read(Asked, self.name, spec.options, self.credentials)

        def order(brought: Mapping[str, str]) -> models.Instance:
            body, doing = body_of(offer, spec, chosen, brought), f"order {offer.gpu} in {offer.region}"
            answer = cast("dict[str, Any]", self._api.order("/pods", body, id_at="id", what=doing))
            return instance_of({**answer, "name": spec.name, "env": None})  # ours, whatever the answer leaves out

        things = brought_along(offer, spec, chosen, self._lists)
        try:
            return companions.with_companions(things, order)
        except (errors.InvalidRequest, errors.NotFound) as refused:
            if refused.code not in ("400", "404"):
                raise
            # Perhaps there is only no room: the next offer tells. What is wrong for all of them is said by the last one.
            raise errors.InvalidRequest(refused.message, code=refused.code, reach="offer") from None

    def get_instance(self, instance_id: str) -> models.Instance:
        seen, why = instance_of(self._pod(instance_id)), None
        is_late = seen.created_at is not None and self._api.now() - seen.created_at > PULLS
        with suppress(errors.ProviderError):  # its logs say more
            if seen.state is InstanceState.FAILED:
                why = container_boot.failure_in(self.read_log(seen))
            if not why and (
                seen.state is InstanceState.FAILED or (seen.state is InstanceState.PROVISIONING and is_late)
            ):
                why = image_trouble_in(self._told(seen, "system"))
        return seen.model_copy(update={"state": InstanceState.FAILED, "reason": why}) if why else seen

    def read_log(self, instance: models.Instance) -> str:
        return self._told(instance, "container")

    def list_instances(self, prefix: str) -> models.Listing:
        return companions.listing(tuple(KINDS), self._lists.rows, instance_of, prefix)

    def terminate_instance(self, instance_id: str) -> None:
        with suppress(errors.NotFound):
            kind, number = scopes.split(instance_id, KINDS)
            if kind != "pods":
                self._lists.remove(kind, number)
                return
            row = self._pod(instance_id)
            seen = instance_of(row)
            scopes.must_be_ours(seen)
            self._lists.remove("pods", number)
            has = {"registries": row.get("registry"), "network-volumes": answers.at(row, "mounts.network")}
            with suppress(errors.InvalidRequest):  # the pod holds them for a moment more: then they are left over
                companions.sweep({seen.name}, [kind for kind in has if has[kind]], self._lists)

    def provider_time(self) -> datetime:
        return self._api.now()

    def _pod(self, instance_id: str) -> dict[str, Any]:
        _, number = scopes.split(instance_id, ("pods",))
        return self._api.row(f"/pods/{number}", "", what=f"look at {number}")

    def _told(self, instance: models.Instance, source: str) -> str:
        """A pod's log from its beginning: what its container said, or what its host says of it."""
        _, number = scopes.split(instance.id, ("pods",))
        begun = instance.created_at
        which: dict[str, Any] = {"since": (begun - BACKFILL).isoformat()} if begun else {"tail": 5000}
        asked = {"source": source, **which}
        told = self._api.events(f"/pods/{number}/logs", asked, pause_s=2, within_s=5, what=f"read the log of {number}")
        return "\n".join(str(answers.at(one, "line")) for one in told)
