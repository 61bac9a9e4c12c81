"""What is known of a provider's price list before it is read, as data: its places, and what it always has.

The data stands beside the provider's driver, in `providers/x.toml` or `providers/x/facts.toml`; for those whose prices are collected and
who have no driver, in `facts/`. It is read as text: nothing of a provider is imported here.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

from prefect_gpu.providers.core.models import Trust

_HERE: Final = Path(__file__).parent
_PROVIDERS: Final = _HERE.parents[1]
_NAME: Final = re.compile(r"[a-z][a-z0-9]{0,29}")


class Expected(NamedTuple):
    """What a price list always has: gpuhunt's own integrity checks. Words are separated by spaces."""

    gpus: str = ""  # names, or how they begin
    types: str = ""  # how instance types begin
    counts: str = ""  # of GPUs
    everywhere: str = ""  # an instance type that every region has
    locations: str = ""
    spot: bool | None = None  # False: never
    without_gpu: bool = False


class Facts(NamedTuple):
    """One provider's."""

    countries: dict[str, str]  # location -> ISO 3166-1 alpha-2
    expected: Expected | None = None
    locations_begin_with_country: bool = False
    locations_are_zones: bool = False
    any_gpu_count: bool = False
    trust: Trust | None = None  # in hosts, of a marketplace whose price list does not say it of each


@cache
def of(provider: str) -> Facts:
    """The facts of a provider; of one that nobody knows, none."""
    import tomllib  # what comes out of a snapshot needs none of it, most of the time

    told = tomllib.loads(_text(provider))
    countries = {
        location: country for country, locations in told.pop("places", {}).items() for location in locations.split()
    }
    expected = told.pop("expected", None)
    return Facts(countries, Expected(**expected) if expected is not None else None, **told)


@cache
def trust_in(provider: str) -> Trust | None:
    """Trust in its hosts, where its price list does not say it of each; the rest of its facts is not read for it."""
    return of(provider).trust if "trust" in _text(provider) else None


def _text(provider: str) -> str:
    files = (
        _PROVIDERS / f"{provider}.toml",
        _PROVIDERS / provider / "facts.toml",
        _HERE / "facts" / f"{provider}.toml",
    )
    found = next((path for path in files if path.is_file()), None) if _NAME.fullmatch(provider) else None
    return found.read_text() if found is not None else ""
