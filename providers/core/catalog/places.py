"""Where a provider's locations are: region, zone and country, by the names that price lists use.

Countries are ISO 3166-1 alpha-2. Sources: the providers' own lists of regions, 2026-11 (aws.amazon.com/about-aws/global-infrastructure,
learn.microsoft.com/azure/reliability/regions-list, cloud.google.com/compute/docs/regions-zones,
docs.oracle.com/iaas/Content/General/Concepts/regions.htm, docs.vultr.com). A location that is not here is an offer like any other,
without a country, and named in the refresh report.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Final

from prefect_gpu.providers.core.catalog import facts
from prefect_gpu.providers.core.catalog.kinds import Place

_CONTINENTS: Final = frozenset({"af", "ap", "as", "eu", "eur", "me", "na", "oc", "sa", "sea"})
_COUNTRY = re.compile(r"[a-z]{2}")
_ZONE = re.compile(r"(.+\d)-[a-z]")


@cache
def place(provider: str, location: str) -> Place:
    """The place that a provider's price list calls `location`."""
    region, zone = location, None
    if facts.of(provider).locations_are_zones and (match := _ZONE.fullmatch(location)):
        region, zone = match[1], location
    return Place(region, zone, _country(provider, region))


def known(provider: str) -> frozenset[str]:
    """The regions of a provider that are known here; empty where its locations explain themselves."""
    return frozenset(facts.of(provider).countries)


def is_known(provider: str, found: Place) -> bool:
    """Whether it is a place that this provider is known to have."""
    explain_themselves = facts.of(provider).locations_begin_with_country
    return found.country is not None if explain_themselves else found.region in known(provider)


def _country(provider: str, region: str) -> str | None:
    known_facts = facts.of(provider)
    if not known_facts.locations_begin_with_country:
        return known_facts.countries.get(region)
    # US-KS-2, FR, us-east-nc-nr-1, se-stockholm. RunPod's may begin with a continent (EUR-IS-1), which elsewhere is a country.
    first, *rest = region.lower().split("-")
    code = rest[0] if provider == "runpod" and first in _CONTINENTS and rest else first
    return code.upper() if _COUNTRY.fullmatch(code) else None
