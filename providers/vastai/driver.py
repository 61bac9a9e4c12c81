"""The driver: asks that are searched for, one order for a container that tells its own key, and its end."""

from __future__ import annotations

import json
from contextlib import suppress
from datetime import datetime
from typing import Any, Final

import httpx

from prefect_gpu.blocks.vastai import VastaiCredentials, VastaiOptions
from prefect_gpu.providers.core import errors, models
from prefect_gpu.providers.core.contract import Billing, Capabilities, Provider, RateLimit
from prefect_gpu.providers.core.requests import Requirements
from prefect_gpu.providers.core.toolkit import answers, log_file, options, scopes
from prefect_gpu.providers.core.toolkit.http import JsonApi
from prefect_gpu.providers.vastai import offers, words
from prefect_gpu.providers.vastai.order import NAME, body_of, without_password

# Vast.ai counts calls for each endpoint. https://docs.vast.ai/api-reference/rate-limits-and-errors
PAGE_S: Final = 1.0  # between two pages of a list
END_S: Final = 3.0  # between two ends


class Vastai(Provider[VastaiCredentials]):
    """Drives the API of console.vast.ai. `transport` is for tests."""

    name = "vastai"
    capabilities = Capabilities(
        listing_lag_s=60,  # not measured
        not_found_proves_absence=True,  # two of its calls must say so, see `get_instance`
        self_ends="scoped_key",
        spot=True,
        images="native",
        host_key="by_logs",
        needs_catalog=False,
        boot_deadline_s=20 * 60,  # a host loads the image before anything runs
        rate_limits={
            "fetch_offers": RateLimit(calls=4, per_s=60),  # of 10 searches
            "create_instance": RateLimit(calls=1, per_s=4.5),
            "get_instance": RateLimit(calls=1, per_s=2),
            "list_instances": RateLimit(calls=1, per_s=1),
        },
        billing=Billing(starts="running", step_s=1, minimum_s=1, traffic=True),
    )
    options_model = VastaiOptions

    def __init__(self, credentials: VastaiCredentials, *, transport: httpx.BaseTransport | None = None) -> None:
        super().__init__(credentials)
        way: Any = {"token": credentials.api_key, "access": credentials.api, "transport": transport}
        apis = [
            JsonApi("Vast.ai", "https://console.vast.ai/api", meanings=words.MEANINGS, every_s=every_s, **way)
            for every_s in (0.0, PAGE_S, END_S)
        ]
        self._api, self._lists, self._ends = apis
        self._transport = transport

    def account_id(self) -> str:
        return self._api.text("/v0/users/current/", "id")

    def fetch_offers(self, requirements: Requirements) -> list[models.Offer]:
        if not requirements.wants_gpu and not requirements.gpu_vendor:
            return []  # a machine without GPUs is not rented here
        chosen = options.read(VastaiOptions, self.name, {}, self.credentials)
        return offers.found(lambda body: self._api.post("/v0/bundles/", body, what="search"), requirements, chosen)

    def create_instance(self, offer: models.Offer, spec: models.LaunchSpec) -> models.Instance:
        chosen = options.read(VastaiOptions, self.name, spec.options, self.credentials)
        body = body_of(offer, spec, chosen)
        what = f"rent {offer.instance_type} of machine {offer.zone}"
        try:
            answer = self._api.order(
                f"/v0/asks/{offer.raw['ask_id']}/", body, id_at="new_contract", method="PUT", what=what
            )
        except errors.ProviderError as refused:
            return self._made_all_the_same(spec.name, without_password(refused, spec))
        return self._instance({"id": answers.at(answer, "new_contract"), "label": spec.name, "is_bid": offer.spot})

    def _made_all_the_same(self, name: str, refused: errors.ProviderError) -> models.Instance:
        """What stands there though the order was refused: a bid that is too low may leave a stopped contract, and an ask may be taken by us.

        Raises the refusal where nothing stands there; Unconfirmed where that is not known.
        """
        code = refused.code or ""
        if code.startswith(words.MADE):
            told = {"label": name, "cur_state": "stopped", "is_bid": True, "status_msg": refused.message}
            return self._instance({"id": code.removeprefix(words.MADE), **told})
        if isinstance(refused, errors.NotFound):  # the ask is gone
            refused = errors.NoCapacity(refused.message, code=refused.code)
        if isinstance(refused, errors.NoCapacity):
            try:
                listed = self.list_instances(name)
            except errors.ProviderError as unread:
                listed = models.Listing(incomplete=(models.Unread(scope="instances", reason=unread.message),))
            if listed.instances:
                return listed.instances[0]
            if not listed.is_complete:
                unread = listed.incomplete[0].reason
                raise errors.Unconfirmed(f"{refused.message}; whether we have it is not known: {unread}")
        raise refused

    def get_instance(self, instance_id: str) -> models.Instance:
        number = words.number_of(instance_id)
        row = answers.at(self._api.get(f"/v0/instances/{number}/", what=f"look at {number}"), "instances")
        if not isinstance(row, dict):  # null: of what is gone, and perhaps of what is another's: a list must say so too
            rows = self._rows({"id": {"eq": int(number)}})
            row = next((one for one in rows if str(one.get("id")) == number), None)
        if row is None:
            raise errors.NotFound(f"Vast.ai knows no contract {number}")
        return self._instance({**row, "id": number})

    def list_instances(self, prefix: str) -> models.Listing:
        # How labels are ordered is not documented: z ends what begins so by bytes and in a dictionary, and it is looked at again.
        asked = {"label": {"gte": prefix, "lte": f"{prefix}{'z' * 40}"}} if prefix else {}
        read = scopes.read_each(["instances"], lambda _: [self._instance(row) for row in self._rows(asked)])
        return scopes.listing(read, prefix)

    def _rows(self, asked: dict[str, Any]) -> list[dict[str, Any]]:
        question = {"limit": 25, "select_filters": json.dumps(asked)}
        return list(
            self._lists.rows("/v1/instances/", "instances", question, cursor="after_token", next_at="next_token")
        )

    def terminate_instance(self, instance_id: str) -> None:
        with suppress(errors.NotFound):
            number = words.number_of(instance_id)
            scopes.must_be_ours(self.get_instance(instance_id))
            self._ends.delete(f"/v0/instances/{number}/", what=f"destroy {number}")

    def provider_time(self) -> datetime:
        return self._lists.now()

    def read_log(self, instance: models.Instance) -> str:
        number = words.number_of(instance.id)
        # Our own lines alone: what its sshd says of strangers who knock would fill any number of lines in between.
        wanted = {"tail": "1000000", "filter": "prefect-gpu"}
        answer = self._api.put(f"/v0/instances/request_logs/{number}/", wanted, what=f"read the log of {number}")
        address = str(answers.at(answer, "result_url") or "")
        return log_file.fetched("Vast.ai", address, self.credentials.api, self._transport)

    def traffic_cost(self, instance_id: str, since: datetime) -> float | None:
        number = words.number_of(instance_id)
        days = {"gte": int(since.timestamp()) // 86400 * 86400, "lte": int(self._api.now().timestamp()) + 86400}
        question = {"limit": 500, "select_filters": json.dumps({"day": days, "type": {"in": ["instance"]}})}
        rows = self._api.rows("/v0/charges/", "results", question, cursor="after_token", next_at="next_token")
        booked = [words.traffic_of(row) for row in rows if row.get("source") == f"instance-{number}"]
        return sum(booked) if booked else None

    def _instance(self, row: dict[str, Any]) -> models.Instance:
        variables = words.environment_of(row)
        proof = variables.get(NAME, "") if variables else None
        name, stranger, borrowed = scopes.ours_or_not(row.get("label"), proof, "order's own name")
        ssh = words.way_in(row)
        state, reason = words.state_of(row, ssh)
        return models.Instance(
            id=scopes.scoped("instances", row["id"]),
            name=name,
            provider=self.name,
            state=state,
            region=str(row.get("geolocation") or "vastai"),
            zone=str(row["machine_id"]) if row.get("machine_id") else None,
            created_at=words.moment(row.get("start_date")),
            ssh=ssh,
            reason=stranger or reason,
            price=words.price_of(row),
            spot=row.get("is_bid") is True,
            raw={"status": row.get("actual_status"), **borrowed},
        )
