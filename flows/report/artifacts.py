"""Artifacts, written through the flow's own client (10 ms, where Prefect's helpers open one of their own for each): one card a question."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any, Final, NamedTuple, cast
from uuid import UUID

from httpx import HTTPStatusError
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.context import SyncClientContext

_PIECE: Final = (
    500  # characters: of a longer value in an artifact's metadata the server keeps so many, and says nothing
)


class Card(NamedTuple):
    """An artifact that a person reads: its key, which is its title in the UI, and the question that it answers."""

    key: str
    question: str


def publish(
    key: str,
    kind: str,
    data: str,
    run_id: UUID | None,
    description: str | None = None,
    *,
    over: UUID | None = None,
    metadata: dict[str, str] | None = None,
) -> UUID:
    """Write the artifact `key`, over the one of the id `over` where it is still there; its id.

    `kind` is markdown or table, a table's data a JSON list of rows. `metadata` may be of any length: `noted` reads it back.
    """
    metadata = _in_pieces(metadata) if metadata is not None else None
    with SyncClientContext.get_or_create() as prefect:
        if over is not None:
            update = ArtifactUpdate(data=data, description=description, metadata_=metadata)
            try:  # not by `update_artifact`, which puts all of it into an event too
                prefect.client.request(
                    "PATCH", "/artifacts/{id}", json=update.model_dump(mode="json"), path_params={"id": over}
                )
            except HTTPStatusError as failure:
                if failure.response.status_code != HTTPStatus.NOT_FOUND:
                    raise
            else:
                return over
        made = ArtifactCreate(
            key=key, type=kind, data=data, description=description, flow_run_id=run_id, metadata_=metadata
        )
        return prefect.client.create_artifact(made).id


def newest(key: str, run_id: UUID | None = None) -> dict[str, Any] | None:
    """The artifact as it was last written, of this run where one is named; None where there is none."""
    question: dict[str, Any] = {"artifacts": {"key": {"any_": [key]}}, "sort": "UPDATED_DESC", "limit": 1}
    if run_id is not None:
        question["artifacts"]["flow_run_id"] = {"any_": [str(run_id)]}
    with SyncClientContext.get_or_create() as prefect:
        rows = cast("list[dict[str, Any]]", prefect.client.request("POST", "/artifacts/filter", json=question).json())
    return rows[0] if rows else None


def noted(row: dict[str, Any]) -> dict[str, str]:
    """The metadata of an artifact, as `publish` was given it. KeyError and the like where somebody else wrote it."""
    pieces: dict[str, dict[int, str]] = {}
    for key, value in cast("dict[str, str]", row["metadata_"] or {}).items():
        name, _, number = key.partition("#")
        pieces.setdefault(name, {})[int(number or 0)] = value
    return {name: "".join(found[number] for number in sorted(found)) for name, found in pieces.items()}


def _in_pieces(metadata: dict[str, str]) -> dict[str, str]:
    return {
        f"{name}#{start // _PIECE}" if start else name: value[start : start + _PIECE]
        for name, value in metadata.items()
        for start in range(0, max(1, len(value)), _PIECE)
    }
