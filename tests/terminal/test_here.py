"""`reap` and `refresh` for programs: one JSON document with all that was found, whatever came of it."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from prefect.states import Completed, Crashed

from prefect_gpu.flows.reaping.found import Found
from prefect_gpu.flows.reaping.sweep import Reaped
from prefect_gpu.flows.report import refreshed
from prefect_gpu.flows.run.failure import failed
from prefect_gpu.flows.terminal import here
from prefect_gpu.providers.core.catalog.refresh import Refreshed

NAME = "pg-g2k22o3uvkkad2pv9h74kun732ikqhtktg100"
REAPED = Reaped(
    message="0 terminated and confirmed gone, 1 still to confirm, 0 in use",
    dry_run=False,
    found=(
        Found(
            provider="aws",
            account="team",
            ids=("i-1",),
            name=NAME,
            price=2.5,
            end_because="its lease is over",
            came_of_it="owed: still listed",
        ),
    ),
    unread=("gcp (default): 503",),
    missing=(),
    remarks=(),
)


def written(state: Any, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any]]:
    code = here.finished(state, as_json=True)
    return code, json.loads(capsys.readouterr().out)


def test_a_reap_is_told_machine_by_machine(capsys: pytest.CaptureFixture[str]) -> None:
    code, said = written(Completed(message=REAPED.message, data=REAPED), capsys)
    assert (code, said["failed"], said["message"]) == (0, False, REAPED.message)
    (one,) = said["found"]
    assert (one["name"], one["provider"], one["account"], one["price"]) == (NAME, "aws", "team", 2.5)
    assert (one["end_because"], one["came_of_it"]) == ("its lease is over", "owed: still listed")
    assert said["unread"] == ["gcp (default): 503"]


def test_a_reap_that_failed_tells_no_less(capsys: pytest.CaptureFixture[str]) -> None:
    code, said = written(failed("end it by hand: aws ec2 ...", found=REAPED), capsys)
    assert (code, said["failed"], said["message"]) == (1, True, "end it by hand: aws ec2 ...")
    assert [one["name"] for one in said["found"]] == [NAME]


def test_a_flow_that_broke_is_told_by_its_message(capsys: pytest.CaptureFixture[str]) -> None:
    code, said = written(Crashed(message="the server is gone", data=ValueError("x")), capsys)
    assert (code, said) == (1, {"message": "the server is gone", "failed": True})


def test_a_refresh_is_told_provider_by_provider(capsys: pytest.CaptureFixture[str]) -> None:
    at = datetime(2026, 11, 24, tzinfo=UTC)
    found = refreshed.catalog(
        [Refreshed("aws", "published", 100, at), Refreshed("gcp", "kept", trouble="ConnectError from example.org")]
    )
    code, said = written(Completed(message=found.message, data=found), capsys)
    assert (code, said["failed"]) == (0, False)
    assert said["message"] == "1 of 2 providers refreshed: gcp: there is no snapshot yet: ConnectError from example.org"
    aws, gcp = said["providers"]
    assert (aws["provider"], aws["outcome"], aws["offers"], aws["new"]) == ("aws", "published", 100, None)
    assert aws["collected_at"] == "2026-11-24T00:00:00Z"
    assert (gcp["provider"], gcp["outcome"], gcp["trouble"]) == ("gcp", "kept", "ConnectError from example.org")
