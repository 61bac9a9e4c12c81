"""The driver: asks that are searched for, one order for a container that tells its own key, and its end."""

from __future__ import annotations

import json
import shlex
from contextlib import suppress
from datetime import datetime
from typing import Any, Final

import httpx

from prefect_gpu.blocks.vastai import VastaiCredentials, VastaiOptions
from prefect_gpu.providers.core import errors, models
from prefect_gpu.providers.core.contract import Billing, Capabilities, Provider, RateLimit
from prefect_gpu.providers.core.requests import Requirements
from prefect_gpu.providers.core.toolkit import answers, container_boot, log_file, options, scopes
from prefect_gpu.providers.core.toolkit.http import JsonApi
from prefect_gpu.providers.vastai import offers, words

# Vast.ai counts calls for each endpoint. https://docs.vast.ai/api-reference/rate-limits-and-errors
PAGE_S: Final = 1.0  # between two pages of a list
END_S: Final = 3.0  # between two ends
NAME: Final = "PREFECT_GPU_NAME"  # only an order sets a variable; anybody may set a label
# With the key that Vast.ai puts into each container, for this one alone. A value of a variable has at most 256 characters.
GIVE_BACK: Final = (
    "u=https://console.vast.ai/api/v0/instances/$CONTAINER_ID/;k=$CONTAINER_API_KEY;"
    'curl -sfXDELETE -H "Authorization: Bearer $k" $u||python3 -c '
    "\"from urllib.request import*;urlopen(Request('$u',None,{'Authorization':'Bearer $k'},None,False,'DELETE'))\""
)


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
        if spec.network == "private":
            raise errors.Unsupported("Vast.ai's containers have public ports: leave out network=private")
        chosen = options.read(VastaiOptions, self.name, spec.options, self.credentials)
        variables = {NAME: spec.name, **container_boot.environment(spec, give_back=GIVE_BACK)}
        shell, *arguments = container_boot.command()
        body: dict[str, Any] = {
            "label": spec.name,
            "image": spec.image or chosen.image,
            "disk": offer.disk_gb,
            "env": {f"-p {container_boot.PORT}:{container_boot.PORT}": "1", **variables},
            "runtype": "args",
            "onstart": shell,  # in this way of running: the entrypoint
            "args": arguments,
            "target_state": "running",
            "cancel_unavail": True,  # else what cannot start now waits, stopped, and costs its disk; the default for bids
        }
        if offer.spot:
            body["price"] = offer.raw["bid"]
        if (login := spec.registry) is not None:
            given = ("-u", login.username, "-p", login.password.get_secret_value(), login.server)
            body["image_login"] = shlex.join(given)
        what = f"rent {offer.instance_type} of machine {offer.zone}"
        try:
            answer = self._api.order(
                f"/v0/asks/{offer.raw['ask_id']}/", body, id_at="new_contract", method="PUT", what=what
            )
        except errors.ProviderError as refused:
            return self._made_all_the_same(spec.name, refused)
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
            listed = self.list_instances(name)
            if listed.instances:
                return listed.instances[0]
            if not listed.is_complete:
                unread = listed.incomplete[0].reason
                raise errors.Unconfirmed(f"{refused.message}; whether we have it is not known: {unread}")
        raise refused

    def get_instance(self, instance_id: str) -> models.Instance:
        _, number = scopes.split(instance_id, ("instances",))
        row = answers.at(self._api.get(f"/v0/instances/{number}/", what=f"look at {number}"), "instances")
        if not isinstance(row, dict):  # null: of what is gone, and perhaps of what is another's: a list must say so too
            row = next(iter(self._rows({"id": {"eq": int(number)}})), None)
        if row is None:
            raise errors.NotFound(f"Vast.ai knows no contract {number}")
        return self._instance(row)  # pyright: ignore[reportUnknownArgumentType]

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
        _, number = scopes.split(instance_id, ("instances",))
        with suppress(errors.NotFound):
            scopes.must_be_ours(self.get_instance(instance_id))
            self._ends.delete(f"/v0/instances/{number}/", what=f"destroy {number}")

    def provider_time(self) -> datetime:
        return self._lists.now()

    def read_log(self, instance: models.Instance) -> str:
        _, number = scopes.split(instance.id, ("instances",))
        answer = self._api.put(
            f"/v0/instances/request_logs/{number}/", {"tail": "1000"}, what=f"read the log of {number}"
        )
        address = str(answers.at(answer, "result_url") or "")
        return log_file.fetched("Vast.ai", address, self.credentials.api, self._transport)

    def traffic_cost(self, instance_id: str, since: datetime) -> float | None:
        _, number = scopes.split(instance_id, ("instances",))
        days = {"gte": int(since.timestamp()) // 86400 * 86400, "lte": int(self._api.now().timestamp()) + 86400}
        question = {"limit": 500, "select_filters": json.dumps({"day": days, "type": {"in": ["instance"]}})}
        rows = self._api.rows("/v0/charges/", "results", question, cursor="after_token", next_at="next_token")
        booked = [words.traffic_of(row) for row in rows if row.get("source") == f"instance-{number}"]
        return sum(booked) if booked else None

    def _instance(self, row: dict[str, Any]) -> models.Instance:
        variables = words.environment_of(row)
        proof = variables.get(NAME, "") if variables else None
        name, stranger, borrowed = scopes.ours_or_not(row.get("label"), proof, "order's own name")
        address = str(row.get("public_ipaddr") or "").strip()
        port = str(answers.at(row, f"ports.{container_boot.PORT}/tcp.0.HostPort") or "")
        ssh = models.SshEndpoint(host=address, port=int(port)) if address and port.isdecimal() else None
        state, reason = words.state_of(row, ssh)
        price = row.get("dph_total")
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
            price=float(price) if isinstance(price, int | float) else None,
            spot=row.get("is_bid") is True,
            raw={"status": row.get("actual_status"), **borrowed},
        )
