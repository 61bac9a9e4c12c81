"""The driver: login, offers, one order with its start-up script and key, and its end together with them and its disk."""

from __future__ import annotations

import hashlib
import math
import re
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from typing import Any, Final

import httpx

from prefect_gpu.blocks.verda import VerdaCredentials, VerdaOptions
from prefect_gpu.providers.core import errors, models
from prefect_gpu.providers.core.catalog import query
from prefect_gpu.providers.core.contract import Billing, Capabilities, Provider
from prefect_gpu.providers.core.requests import Requirements
from prefect_gpu.providers.core.toolkit import answers, companions, late_keys, options, scopes, states, stock
from prefect_gpu.providers.core.toolkit.http import JsonApi
from prefect_gpu.providers.core.toolkit.login import Login, bearer
from prefect_gpu.providers.verda.words import GONE_DISKS, MEANINGS, REASONS, STATES

URL: Final = "https://api.verda.com/v1"
KINDS: Final = ("instances", "scripts", "sshkeys", "volumes")  # paths of the API, and the scopes of ids
OLD_GPUS: Final = ("V100.", "A6000.")  # whose images are those without NVIDIA's open kernel modules


class _Lists(companions.Lists):
    """Of all disks those that machines brought along and that are still there; they go for good."""

    def rows(self, kind: str) -> list[dict[str, Any]]:
        rows = super().rows(kind)
        if kind != "volumes":
            return rows
        return [row for row in rows if row.get("is_os_volume") and row.get("status") not in GONE_DISKS]

    def remove(self, kind: str, number: str) -> None:
        body = {"is_permanent": True} if kind == "volumes" else None
        self.api.delete(f"/{kind}/{number}", body=body, missing_ok=True, what=f"remove {number} from {kind}")


class Verda(Provider[VerdaCredentials]):
    """Drives API version 1. `transport` is for tests."""

    name = "verda"
    capabilities = Capabilities(
        listing_lag_s=60,  # not measured
        spot=True,
        images="docker",
        # By the started hour from the order: not known better. 100 GB of NVMe at 0.20 USD per GB and month.
        billing=Billing(step_s=3600, minimum_s=3600, hourly_extras=0.03),
    )
    options_model = VerdaOptions

    def __init__(self, credentials: VerdaCredentials, *, transport: httpx.BaseTransport | None = None) -> None:
        super().__init__(credentials)
        how: Any = {"meanings": MEANINGS, "access": credentials.api, "transport": transport}
        # Before there is a token: no header, but the secret that no message may repeat.
        self._tokens = JsonApi(
            "Verda", URL, login=lambda: replace(bearer(credentials.client_secret), headers={}), **how
        )
        self._api = JsonApi("Verda", URL, login=self._login, **how)
        self._lists = _Lists(self._api)

    def account_id(self) -> str:
        self._api.get("/balance")  # Verda tells no identity; this only proves the credentials
        return f"client-{hashlib.sha256(self.credentials.client_id.encode()).hexdigest()[:16]}"

    def fetch_offers(self, requirements: Requirements) -> list[models.Offer]:
        offers, found = query.offers(self.name, requirements), list[models.Offer]()
        for spot in (False, True):
            of_market = [offer for offer in offers if offer.spot is spot]
            found += stock.in_regions(of_market, lambda region, spot=spot: self._types_in(region, is_spot=spot))
        return found

    def create_instance(self, offer: models.Offer, spec: models.LaunchSpec) -> models.Instance:
        if spec.network == "private":
            raise errors.Unsupported("Verda's machines have public addresses: leave out network=private")
        chosen = options.read(VerdaOptions, self.name, spec.options, self.credentials)
        body: dict[str, Any] = {
            "instance_type": offer.instance_type,
            "image": chosen.image or self._image(offer.instance_type),
            "hostname": spec.name,
            "description": spec.name,
            "location_code": offer.region,
            "os_volume": {"name": spec.name, "size": math.ceil(max(chosen.disk_gb, spec.disk_gb or 0))},
            "is_spot": offer.spot,
            "contract": "SPOT" if offer.spot else "PAY_AS_YOU_GO",
            "pricing": "FIXED_PRICE",
            "tags": [{"key": name[:63], "value": value[:127]} for name, value in [*spec.tags.items()][:10]],
        }
        if offer.spot:  # else the disk of a machine that is taken back stays, and goes on costing money
            body["os_volume"]["on_spot_discontinue"] = "delete_permanently"

        def order(made: Any) -> models.Instance:
            with_them = {**body, "startup_script_id": made["scripts"], "ssh_key_ids": [made["sshkeys"]]}
            what = f"order {offer.instance_type} in {offer.region}"
            number = self._api.order("/instances", with_them, id_at="", what=what)
            return self._instance({**body, "id": number, "status": "ordered"})

        brought = [companions.named("sshkeys", {"name": spec.name, "key": spec.client_public_key}, self._lists)]
        if spec.host_key is not None:
            script = late_keys.host_key(spec.host_key)
            brought.append(companions.named("scripts", {"name": spec.name, "script": script}, self._lists))
        return companions.with_companions(brought, order)

    def get_instance(self, instance_id: str) -> models.Instance:
        _, number = scopes.split(instance_id, ("instances",))
        return self._instance(self._api.row(f"/instances/{number}", "", what=f"look at {number}"))

    def list_instances(self, prefix: str) -> models.Listing:
        return companions.listing(KINDS, self._lists.rows, self._instance, prefix)

    def terminate_instance(self, instance_id: str) -> None:
        with suppress(errors.NotFound):
            kind, number = scopes.split(instance_id, KINDS)
            if kind != "instances":
                self._lists.remove(kind, number)
                return
            seen = self.get_instance(instance_id)
            body: dict[str, Any] = {"id": [number], "action": "delete"}
            disk = seen.raw["disk"]
            if not disk:  # it is not named yet; what cannot be read must not keep the machine
                with suppress(errors.ProviderError):
                    disk = next(
                        (row["id"] for row in self._lists.rows("volumes") if row.get("instance_id") == number), None
                    )
            if disk:  # without `volume_ids` it lies in the trash for 96 hours; an empty list would keep it
                body |= {"volume_ids": [disk], "delete_permanently": True}
            with suppress(errors.NotFound):  # what it brought along may be there still
                self._api.put("/instances", body, what=f"delete {number}")
            companions.sweep({seen.name}, ("sshkeys", "scripts"), self._lists)

    def settle_in(self, instance: models.Instance) -> None:
        companions.sweep(
            {instance.name}, ("scripts",), self._lists
        )  # every key of the account can read the host key in it

    def interruption_reason(self, instance: models.Instance) -> str | None:
        # Asked of a machine that we did not end. Verda gives no notice, and no other reason.
        taken = instance.spot and instance.state in (models.InstanceState.TERMINATING, models.InstanceState.TERMINATED)
        return "Verda took this spot machine back" if taken else None

    def provider_time(self) -> datetime | None:
        return self._api.now()

    def _login(self) -> Login:
        secret = self.credentials.client_secret.get_secret_value()
        asked = {"grant_type": "client_credentials", "client_id": self.credentials.client_id, "client_secret": secret}
        answer = self._tokens.post("/oauth2/token", asked, what="log in")
        token, good_for = answers.at(answer, "access_token"), answers.at(answer, "expires_in")
        if not isinstance(token, str):
            raise errors.Transient("Verda's answer to the login has no token")
        return bearer(token, good_for_s=float(good_for) if isinstance(good_for, int | float) else None)

    def _types_in(self, region: str, *, is_spot: bool) -> set[str]:
        rows = self._api.rows("/instance-availability", "", {"isSpot": is_spot, "location_code": region})
        return {str(one) for row in rows if row.get("location_code") == region for one in row["availabilities"]}

    def _image(self, instance_type: str) -> str:
        """The newest Ubuntu with NVIDIA's driver and Docker; names are like ubuntu-24.04-cuda-12.8-open-docker."""
        is_old = any(gpu in instance_type for gpu in OLD_GPUS)
        names = [str(row.get("image_type")) for row in self._api.rows("/images", "", {"instance_type": instance_type})]
        fit = [name for name in names if name.startswith("ubuntu") and name.endswith("docker")]
        if not fit:
            problem = f"Verda has no Ubuntu with Docker for {instance_type}: name another image by the option image"
            raise errors.Unsupported(problem, reach="type", category="image")
        return max(fit, key=lambda name: (("-open-" in name) != is_old, [int(one) for one in re.findall(r"\d+", name)]))

    def _instance(self, row: dict[str, Any]) -> models.Instance:
        word, address = str(row.get("status")), row.get("ip")
        ssh = models.SshEndpoint(host=str(address)) if address else None
        return models.Instance(
            id=scopes.scoped("instances", row["id"]),
            name=str(row.get("hostname") or ""),  # only an order can set it
            provider=self.name,
            state=states.state_of(word, STATES, ssh),
            region=str(row.get("location") or row.get("location_code") or ""),
            created_at=states.moment(row.get("created_at")),
            ssh=ssh,
            reason=REASONS.get(word, ""),
            spot=bool(row.get("is_spot")),
            raw={"status": word, "disk": row.get("os_volume_id")},  # never jupyter_token
        )
