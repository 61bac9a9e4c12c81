"""Where a block's page and logo stand: on our own site, which Prefect's UI links to.

Prefect takes no logo but one with an http address: no file of the server, no data URI. Until the site is published its address is one
that nobody can register (RFC 2606): what stands here is opened by everybody's browser.
"""

from __future__ import annotations

from typing import Any, Final

SITE: Final = "https://prefect-gpu.example/"


def page(path: str) -> Any:  # Prefect wants an address of pydantic's, and parses it from a string
    """The address of a page, `providers/aws/`."""
    return f"{SITE}{path}"


def logo(name: str) -> Any:
    """The address of a block's logo, by the block's module."""
    return f"{SITE}logos/{name}.svg"
