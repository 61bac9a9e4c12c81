"""The realm that this process may act for: it is bound to its Prefect server, and a copy of the server's database acts on nothing.

A server that is known by a place (`blocks/server.py`) must not be refused because its worker's container was made anew. Such a
worker takes over where the server knew another one when a reap last completed, and that one lived until this one came. On a copy
nobody did: whoever worked there works for the original.
"""

from __future__ import annotations

import os
import re
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any, Final, cast

from prefect.context import FlowRunContext, SyncClientContext

from prefect_gpu.blocks.realm import GpuRealm
from prefect_gpu.blocks.server import given_name, this_server, unnamed_server
from prefect_gpu.flows.report import last_reap
from prefect_gpu.flows.run.record import PAGE

HANDED_OVER: Final = timedelta(seconds=90)  # a worker tells every 30 s that it lives
_POOL: Final = "gpu-flows"
# As Prefect names a worker that nobody named: a name that a person gave stands on a copy too.
_BY_ITSELF: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")


def own_realm(*, trust_server: bool = False, with_home: bool = True) -> GpuRealm:
    """This server's realm. Raises NotItsServer where it is another's."""
    own, server = GpuRealm.current(), this_server(with_home=with_home)
    if trust_server or not own.servers:
        return own.trust(this_server())
    if own.is_of(server):
        return own
    if given_name() and not own.is_named and own.is_of(unnamed_server(with_home=with_home)):
        return own.trust(server)  # it was given its name since
    if own.may_be_of(server) and is_handed_over():
        return own.trust(this_server())
    own.must_be_of(server)
    return own


def is_handed_over() -> bool:
    """Whether a worker that was there when a reap last completed lived until the worker of this process came."""
    last = last_reap.completed_at()
    if last is None:
        return False
    workers, now = _workers()
    mine = os.environ.get("PREFECT__WORKER_NAME", "")
    came = next((worker["created"] for worker in workers if worker["name"] == mine and _BY_ITSELF.search(mine)), now)
    return any(
        worker["created"] <= last and worker["last"] >= came - HANDED_OVER
        for worker in workers
        if _BY_ITSELF.search(worker["name"])
    )


def _workers() -> tuple[list[dict[str, Any]], datetime]:
    """All workers of the pool, and the time, by the Prefect server's clock."""
    context = FlowRunContext.get()
    run = context.flow_run if context else None
    pool = (run.work_pool_name if run else None) or _POOL
    rows: list[dict[str, Any]] = []
    with SyncClientContext.get_or_create() as prefect:
        while True:
            answer = prefect.client.request(
                "POST",
                "/work_pools/{work_pool_name}/workers/filter",
                path_params={"work_pool_name": pool},
                json={"limit": PAGE, "offset": len(rows)},
            )
            page = cast("list[dict[str, Any]]", answer.json())
            rows += page
            if len(page) < PAGE:
                break
    workers = [
        {
            "name": str(row["name"]),
            "created": datetime.fromisoformat(row["created"]),
            "last": datetime.fromisoformat(row["last_heartbeat_time"]),
        }
        for row in rows
        if row.get("created") and row.get("last_heartbeat_time")
    ]
    return workers, parsedate_to_datetime(answer.headers["date"])
