"""How a vendor's API is reached from inside a company, in the one shape that every credentials block of a REST provider has.

A block holds it as `api`:

    api: ApiAccess = api_field()
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
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

    def client(self, base_url: str, token: SecretStr | str | None = None) -> httpx.Client:
        """An httpx client that goes this way, with a token as `Authorization: Bearer` where one is given.

        Raises OSError where the CA cannot be read on this worker, ssl.SSLError where it is not PEM.
        """
        trusted = httpx.create_ssl_context()
        if self.ca:
            trusted.load_verify_locations(cadata=pem(self.ca))
        secret = token.get_secret_value() if isinstance(token, SecretStr) else token
        headers = {"authorization": f"Bearer {secret}"} if secret else {}
        proxy = self.proxy.get_secret_value() if self.proxy else None
        return httpx.Client(base_url=base_url, headers=headers, timeout=30, proxy=proxy, verify=trusted)


def pem(ca: str) -> str:
    """The text of a CA that is given as text or as the path of a file of it."""
    return ca if "-----BEGIN" in ca else Path(ca).expanduser().read_text()


def api_field() -> Any:
    """The field of a credentials block that holds it."""
    return Field(
        default_factory=ApiAccess, title="API access", description="A proxy and a company's CA on the way to the API."
    )
