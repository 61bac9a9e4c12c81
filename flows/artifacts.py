"""Artifacts of a run, written through the flow's own client: 10 ms, where Prefect's helpers open one of their own for each."""

from __future__ import annotations

from uuid import UUID

from prefect.client.schemas.actions import ArtifactCreate
from prefect.context import SyncClientContext


def publish(key: str, kind: str, data: str, run_id: UUID, description: str | None = None) -> None:
    """A new version of the artifact `key`; `kind` is markdown or table, a table's data a JSON list of rows."""
    artifact = ArtifactCreate(key=key, type=kind, data=data, description=description, flow_run_id=run_id)
    with SyncClientContext.get_or_create() as prefect:
        prefect.client.create_artifact(artifact)
