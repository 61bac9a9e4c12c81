"""`Where are my files?` is answered as soon as the job has ended, and once."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest

from prefect_gpu.flows.report.artifacts import newest, publish
from prefect_gpu.flows.run import cards, execution
from tests.flows.rented import Rented
from tests.stack import wait_until


def files_card(run_id: UUID) -> dict[str, Any] | None:
    return newest(cards.FILES.key, run_id)


def test_it_is_answered_while_the_machine_is_still_there(rented: Rented, monkeypatch: pytest.MonkeyPatch) -> None:
    there: list[int] = []
    end = execution.end

    def watched(run_id: UUID, *args: Any, **options: Any) -> Any:
        wait_until(lambda: files_card(run_id) is not None, 20, "the card")
        there.append(len(rented["alpha"].alive()))
        return end(run_id, *args, **options)

    monkeypatch.setattr(execution, "end", watched)
    rented.run("echo 1; exit 3")
    assert there == [1]
    card = files_card(rented.run_id)
    assert card is not None
    assert "exit 3 in " in card["data"]
    assert "| output | 2 bytes |" in card["data"]


def test_where_the_api_took_none_as_the_job_ended_it_is_written_at_the_end(
    rented: Rented, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[str] = []

    def away_once(key: str, *args: Any, **options: Any) -> UUID:
        if key == cards.FILES.key:
            asked.append(key)
            if len(asked) == 1:
                raise ConnectionError("the API is away")
        return publish(key, *args, **options)

    monkeypatch.setattr(cards, "publish", away_once)
    rented.run()
    assert len(asked) == 2
    assert files_card(rented.run_id) is not None
    assert "could not be written" not in caplog.text
