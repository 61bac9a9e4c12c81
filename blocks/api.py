"""How a vendor's API is reached from inside a company, in the one shape that every credentials block of a REST provider has.

A block holds it as `api`:

    api: ApiAccess = api_field()
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, SecretStr


class ApiAccess(BaseModel):
    """The way to an API: a proxy, and the company's own certificate authority."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    proxy: SecretStr | None = Field(
        default=None, title="Proxy", description="For example http://user:password@proxy.example:3128. Empty: none."
    )
    ca: str | None = Field(
        default=None,
        title="Company CA",
        description="PEM text, or the path of a PEM file on the worker. It is trusted beside the public ones.",
    )


def api_field() -> Any:
    """The field of a credentials block that holds it."""
    return Field(
        default_factory=ApiAccess, title="API access", description="A proxy and a company's CA on the way to the API."
    )
