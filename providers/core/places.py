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

from providers.core.snapshot import Place

# country: the locations in it
_LOCATIONS: Final[dict[str, dict[str, str]]] = {
    "aws": {
        "AE": "me-central-1",
        "AU": "ap-southeast-2 ap-southeast-4",
        "BH": "me-south-1",
        "BR": "sa-east-1",
        "CA": "ca-central-1 ca-west-1",
        "CH": "eu-central-2",
        "DE": "eu-central-1 eusc-de-east-1",
        "ES": "eu-south-2",
        "FR": "eu-west-3",
        "GB": "eu-west-2",
        "HK": "ap-east-1",
        "ID": "ap-southeast-3",
        "IE": "eu-west-1",
        "IL": "il-central-1",
        "IN": "ap-south-1 ap-south-2",
        "IT": "eu-south-1",
        "JP": "ap-northeast-1 ap-northeast-3",
        "KR": "ap-northeast-2",
        "MX": "mx-central-1",
        "MY": "ap-southeast-5",
        "NZ": "ap-southeast-6",
        "SE": "eu-north-1",
        "SG": "ap-southeast-1",
        "TH": "ap-southeast-7",
        "TW": "ap-east-2",
        "US": "us-east-1 us-east-2 us-west-1 us-west-2 us-west-2-lax-1 us-gov-east-1 us-gov-west-1",
        "ZA": "af-south-1",
    },
    "azure": {
        "AE": "uaecentral uaenorth",
        "AT": "austriaeast",
        "AU": "australiacentral australiacentral2 australiaeast australiasoutheast",
        "BE": "belgiumcentral",
        "BR": "brazilsouth brazilsoutheast",
        "CA": "canadacentral canadaeast",
        "CH": "switzerlandnorth switzerlandwest",
        "CL": "chilecentral",
        "DE": "germanynorth germanywestcentral",
        "DK": "denmarkeast",
        "ES": "spaincentral",
        "FR": "francecentral francesouth",
        "GB": "uksouth ukwest",
        "HK": "eastasia",
        "ID": "indonesiacentral",
        "IE": "northeurope",
        "IL": "israelcentral",
        "IN": "centralindia southindia westindia jioindiacentral jioindiawest",
        "IT": "italynorth",
        "JP": "japaneast japanwest",
        "KR": "koreacentral koreasouth",
        "MX": "mexicocentral",
        "MY": "malaysiawest malaysiasouth",
        "NL": "westeurope",
        "NO": "norwayeast norwaywest",
        "NZ": "newzealandnorth",
        "PL": "polandcentral",
        "QA": "qatarcentral",
        "SE": "swedencentral swedensouth",
        "SG": "southeastasia",
        "US": "centralus eastus eastus2 eastus3 northcentralus southcentralus westcentralus"
        " westus westus2 westus3 usgovarizona usgovtexas usgovvirginia",
        "ZA": "southafricanorth southafricawest",
    },
    "gcp": {  # regions: the locations are their zones
        "AU": "australia-southeast1 australia-southeast2",
        "BE": "europe-west1",
        "BR": "southamerica-east1",
        "CA": "northamerica-northeast1 northamerica-northeast2",
        "CH": "europe-west6",
        "CL": "southamerica-west1",
        "DE": "europe-west10 europe-west3",
        "ES": "europe-southwest1",
        "FI": "europe-north1",
        "FR": "europe-west9",
        "GB": "europe-west2",
        "HK": "asia-east2",
        "ID": "asia-southeast2",
        "IL": "me-west1",
        "IN": "asia-south1 asia-south2",
        "IT": "europe-west12 europe-west8",
        "JP": "asia-northeast1 asia-northeast2",
        "KR": "asia-northeast3",
        "MX": "northamerica-south1",
        "NL": "europe-west4",
        "PL": "europe-central2",
        "QA": "me-central1",
        "SA": "me-central2",
        "SE": "europe-north2",
        "SG": "asia-southeast1",
        "TH": "asia-southeast3",
        "TW": "asia-east1",
        "US": "us-central1 us-central2 us-east1 us-east4 us-east5 us-east7 us-south1 us-west1 us-west2 us-west3 us-west4 us-west8",
        "ZA": "africa-south1",
    },
    "oci": {
        "AE": "me-abudhabi-1 me-dubai-1",
        "AU": "ap-melbourne-1 ap-sydney-1",
        "BR": "sa-saopaulo-1 sa-vinhedo-1",
        "CA": "ca-montreal-1 ca-toronto-1",
        "CH": "eu-zurich-1",
        "CL": "sa-santiago-1 sa-valparaiso-1",
        "CO": "sa-bogota-1",
        "DE": "eu-frankfurt-1",
        "ES": "eu-madrid-1 eu-madrid-3",
        "FR": "eu-marseille-1 eu-paris-1",
        "GB": "uk-cardiff-1 uk-london-1",
        "ID": "ap-batam-1",
        "IL": "il-jerusalem-1",
        "IN": "ap-hyderabad-1 ap-mumbai-1",
        "IT": "eu-milan-1 eu-turin-1",
        "JP": "ap-osaka-1 ap-tokyo-1",
        "KR": "ap-chuncheon-1 ap-seoul-1",
        "MX": "mx-monterrey-1 mx-queretaro-1",
        "MY": "ap-kulai-2",
        "NL": "eu-amsterdam-1",
        "SA": "me-jeddah-1 me-riyadh-1",
        "SE": "eu-stockholm-1",
        "SG": "ap-singapore-1 ap-singapore-2",
        "US": "us-ashburn-1 us-chicago-1 us-phoenix-1 us-sanjose-1",
        "ZA": "af-johannesburg-1",
    },
    "lambdalabs": {
        "AU": "australia-east-1",
        "DE": "europe-central-1",
        "IL": "me-west-1",
        "IN": "asia-south-1",
        "JP": "asia-northeast-1 asia-northeast-2",
        "US": "us-east-1 us-east-2 us-east-3 us-midwest-1 us-midwest-2 us-south-1 us-south-2 us-south-3 us-west-1 us-west-2 us-west-3",
    },
    "nebius": {
        "FI": "eu-north1",
        "FR": "eu-west1",
        "GB": "uk-south1",
        "IL": "me-west1",
        "US": "us-central1",
    },
    "verda": {"FI": "FIN-01 FIN-02 FIN-03", "IS": "ICE-01"},
    "vultr": {
        "AU": "mel syd",
        "BR": "sao",
        "CA": "yto",
        "CL": "scl",
        "DE": "fra",
        "ES": "mad",
        "FR": "cdg",
        "GB": "lhr man",
        "IL": "tlv",
        "IN": "blr bom del",
        "JP": "itm nrt",
        "KR": "icn",
        "MX": "mex",
        "NL": "ams",
        "PL": "waw",
        "SE": "sto",
        "SG": "sgp",
        "US": "atl dfw ewr hnl lax mia ord sea sjc",
        "ZA": "jnb",
    },
}
_COUNTRIES: Final = {
    provider: {location: country for country, text in by_country.items() for location in text.split()}
    for provider, by_country in _LOCATIONS.items()
}
# Providers whose locations begin with a country (US-KS-2, FR, us-east-nc-nr-1, se-stockholm); RunPod's may begin with a
# continent instead (EUR-IS-1), which elsewhere would be taken for a country (SA, AF, NA, AS, ME).
_SELF_EXPLAINING: Final = frozenset({"runpod", "cloudrift", "vastai"})
_CONTINENTS: Final = frozenset({"af", "ap", "as", "eu", "eur", "me", "na", "oc", "sa", "sea"})
_COUNTRY = re.compile(r"[a-z]{2}")
_ZONE = re.compile(r"(.+\d)-[a-z]")


@cache
def place(provider: str, location: str) -> Place:
    """The place that a provider's price list calls `location`."""
    region, zone = location, None
    if provider == "gcp" and (match := _ZONE.fullmatch(location)):
        region, zone = match[1], location
    return Place(region, zone, _country(provider, region))


def known(provider: str) -> frozenset[str]:
    """The regions of a provider that are known here; empty where its locations explain themselves."""
    return frozenset(_COUNTRIES.get(provider, {}))


def is_known(provider: str, found: Place) -> bool:
    """Whether it is a place that this provider is known to have."""
    return found.country is not None if provider in _SELF_EXPLAINING else found.region in known(provider)


def _country(provider: str, region: str) -> str | None:
    if provider not in _SELF_EXPLAINING:
        return _COUNTRIES.get(provider, {}).get(region)
    first, *rest = region.lower().split("-")
    code = rest[0] if provider == "runpod" and first in _CONTINENTS and rest else first
    return code.upper() if _COUNTRY.fullmatch(code) else None
