"""Who is driven, and what it offers."""

from __future__ import annotations

import math

import pytest

from prefect_gpu.providers.core.contract import Capabilities
from prefect_gpu.providers.core.gpu.matching import why_not
from prefect_gpu.providers.core.requests import GpuRequest, Requirements, Spot
from tests.contract.driving import Driving
from tests.contract.subject import (
    Subject,
    refuse_secrets,
)


class Offers(Driving):
    def test_the_driver_has_a_name_and_declares_capabilities(self, subject: Subject) -> None:
        provider = subject.provider
        assert provider.name
        assert provider.name == provider.name.lower()
        assert isinstance(provider.capabilities, Capabilities)
        assert provider.capabilities.listing_lag_s >= 0
        assert provider.capabilities.boot_deadline_s > 0

    def test_the_account_id_is_stable_and_holds_no_secret(self, subject: Subject) -> None:
        first = subject.provider.account_id()
        assert first
        assert first == first.strip()
        assert subject.provider.account_id() == first
        refuse_secrets(first, subject)

    def test_complete_credentials_lack_no_rights(self, subject: Subject) -> None:
        assert subject.provider.missing_rights() == []

    def test_offers_fit_what_was_asked_and_have_a_price(self, subject: Subject) -> None:
        offers = subject.provider.fetch_offers(subject.requirements)
        assert offers, "give requirements that an offer meets"
        for offer in offers:
            assert offer.provider == subject.provider.name
            assert offer.instance_type
            assert offer.region
            assert math.isfinite(offer.price)
            assert offer.price >= 0
            assert why_not(offer, subject.requirements) is None
            refuse_secrets(repr(offer), subject)

    def test_no_offer_is_an_empty_list_and_not_an_error(self, subject: Subject) -> None:
        nothing = Requirements(gpu=(GpuRequest(names=("NOSUCHGPU9000",), count_min=7),))
        assert subject.provider.fetch_offers(nothing) == []

    def test_where_nothing_fits_it_tells_what_there_is(self, subject: Subject) -> None:
        if subject.provider.capabilities.needs_catalog:
            pytest.skip("the price list tells")
        more = tuple(one.model_copy(update={"count_min": 1000, "count_max": None}) for one in subject.requirements.gpu)
        for asked in (
            subject.requirements.model_copy(update={"cpu": 100_000}),
            subject.requirements.model_copy(update={"memory_gb": 1e6, "regions": ("no-such-region",), "gpu": more}),
        ):
            assert subject.provider.fetch_offers(asked) == []
            nearest = subject.provider.fetch_offers(asked.to_nearest())
            assert nearest
            assert all(why_not(offer, asked) for offer in nearest)
            counts = [offer.gpu_count for offer in subject.provider.fetch_offers(subject.requirements)]
            assert max(offer.gpu_count for offer in nearest) >= max(counts), "the most that one machine has"

    def test_a_price_cap_and_a_region_are_obeyed(self, subject: Subject) -> None:
        offers = subject.provider.fetch_offers(subject.requirements)
        cheapest = min(offers, key=lambda offer: offer.price)
        asked = subject.requirements.model_copy(update={"max_price": cheapest.price, "regions": (cheapest.region,)})
        found = subject.provider.fetch_offers(asked)
        assert found
        assert all(offer.price <= cheapest.price and offer.region == cheapest.region for offer in found)
        elsewhere = subject.requirements.model_copy(update={"regions": ("no-such-region",)})
        assert subject.provider.fetch_offers(elsewhere) == []

    def test_spot_offers_come_only_where_spot_is_declared(self, subject: Subject) -> None:
        asked = subject.requirements.model_copy(update={"spot": Spot.EITHER})
        spot = [offer for offer in subject.provider.fetch_offers(asked) if offer.spot]
        if subject.provider.capabilities.spot:
            only = subject.requirements.model_copy(update={"spot": Spot.SPOT})
            assert all(offer.spot for offer in subject.provider.fetch_offers(only))
            on_demand = subject.requirements.model_copy(update={"spot": Spot.ON_DEMAND})
            assert not any(offer.spot for offer in subject.provider.fetch_offers(on_demand))
        else:
            assert spot == []
