"""A stateful fake of Compute Engine v1. Reading order: project, discovery, life, orders, fake, cloud.

`FakeGcp` is the vendor in this process, for drivers: real paths, error envelopes, operations, pages, zones that cannot be reached, a clock
that only the test moves. `GcpCloud` is the same in a process of its own, by HTTP and with machines that answer SSH, for whole flows.
Each request is held to Google's own discovery document where google-api-python-client is installed, and so is each answer.
"""

from __future__ import annotations

from tests.fakes.gcp.cloud import GcpCloud
from tests.fakes.gcp.fake import FakeGcp

__all__ = ["FakeGcp", "GcpCloud"]
