"""The flow `report`: what all runs cost, by every question that a team asks, on one page with a chart."""

from __future__ import annotations

import base64
import re
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4
from xml.etree import ElementTree as ET

import pytest
from prefect import flow, tags
from prefect.client.orchestration import get_client

from prefect_gpu.flows import report_costs
from prefect_gpu.flows.report import charts, costs
from prefect_gpu.flows.report.costs import Share
from prefect_gpu.flows.run.attempt import Attempt
from prefect_gpu.flows.run.record import Record

TODAY = date(2026, 3, 3)


def share(bound: float, **changes: Any) -> Share:
    whole = {
        "day": TODAY, "run": "r", "provider": "aws", "account": "default", "flow": "provision", "deployment": "default",
        "tags": (), "machine": "p5", "bound": bound, "estimate": bound / 2,
    }  # fmt: skip
    return Share(**(whole | changes))


SHARES = [
    share(4.0, run="a", tags=("team-x", "nightly")),
    share(6.0, run="a", day=date(2026, 3, 2), tags=("team-x", "nightly")),
    share(2.5, run="b", provider="vultr", account="research", flow="train", deployment=""),
]


class TestThePage:
    def test_sums_by_each_question_the_dearest_first(self) -> None:
        by_provider = costs.totals(SHARES, lambda one: (one.provider,))
        assert [(one.name, one.bound, one.estimate, one.runs) for one in by_provider] == [
            ("aws", 10.0, 5.0, 1),
            ("vultr", 2.5, 1.25, 1),
        ]
        by_tag = costs.totals(SHARES, lambda one: one.tags or ("(none)",))
        assert [(one.name, one.bound) for one in by_tag] == [("nightly", 10.0), ("team-x", 10.0), ("(none)", 2.5)]

    def test_says_it_in_a_sentence(self) -> None:
        said = costs.sentence(SHARES, date(2026, 3, 1), TODAY)
        assert said == "$12.50 at most in 3 days (probably $6.25), $6.50 of it today: aws $10.00, vultr $2.50"
        assert costs.sentence([], TODAY, TODAY) == "nothing was rented in 1 day"

    def test_has_a_table_for_each_question_and_a_chart(self) -> None:
        page = costs.markdown(SHARES, date(2026, 3, 1), TODAY)
        for row in (
            "| aws | $10.00 | $5.00 | 1 |",
            "| vultr (research) | $2.50 | $1.25 | 1 |",
            "| provision/default | $10.00 | $5.00 | 1 |",
            "| train | $2.50 | $1.25 | 1 |",
            "| team-x | $10.00 | $5.00 | 1 |",
            "| 2026-03-02 | $6.00 | $3.00 | 1 |",
        ):
            assert row in page.splitlines(), row
        svg = base64.b64decode(re.findall(r"base64,([A-Za-z0-9+/=]+)", page)[0]).decode()
        bars = [one for one in ET.fromstring(svg).iter() if one.tag.endswith("rect")]
        assert len(bars) == 3
        tall = sorted(float(one.attrib["height"]) for one in bars)
        assert tall[1] / tall[0] == pytest.approx(4.0 / 2.5, rel=0.01)

    def test_is_bounded_however_many_runs_there_are(self) -> None:
        many = [share(1.0, run=f"r{n}", provider=f"p{n % 20}", tags=(f"t{n}",)) for n in range(5000)]
        page = costs.markdown(many, date(2025, 3, 1), TODAY)
        assert "| and 4980 more | $4,980.00 | $2,490.00 |  |" in page
        assert len(page) < 100_000

    def test_holds_what_a_name_may_hold(self) -> None:
        page = costs.markdown([share(1.0, tags=("a|b\nc",), provider='"><script>')], TODAY, TODAY)
        assert "| a\\|b c |" in page
        assert charts.stacked("x", ["1"], [("<b>", [1.0])]).count("<b>") == 0

    def test_has_no_chart_where_all_was_free(self) -> None:
        assert "base64" not in costs.markdown([share(0.0)], TODAY, TODAY)


@pytest.mark.usefixtures("prefect_api")
class TestTheFlow:
    def test_finds_the_runs_of_the_days_whose_flow_called_them_and_their_tags(self) -> None:
        ids: list[UUID] = []
        marker = f"m{uuid4().hex[:8]}"

        @flow(name="rents")
        def rents() -> None:
            from prefect.runtime import flow_run

            ids.append(UUID(flow_run.get_id()))

        @flow(name=f"nightly-{marker}")
        def nightly() -> None:
            rents()

        with tags(marker):
            nightly()
        began = datetime.now(UTC) - timedelta(hours=1)
        line = Attempt(
            attempt=0, name="n", provider=marker, account="a", account_id="i", scope="s", machine="m", gpu="none",
            spot=False, price=1.0, ordered_at=began, gone_at=began + timedelta(minutes=30), outcome="gone",
            instance_id="i", cost=3.0, estimate=2.0,
        )  # fmt: skip
        Record(ids[0], [line]).write()
        Record(uuid4(), [line.model_copy(update={"name": "d", "cost": 4.0})]).write()  # its run was deleted
        state = report_costs.report(days=2, return_state=True)
        assert state.is_completed()
        page = self.page()
        assert f"| {marker} | $7.00 | $4.00 | 2 |" in page
        assert f"| nightly-{marker} | $3.00 | $2.00 | 1 |" in page
        assert "| (deleted) | $" in page

    def test_writes_its_page_over_the_last_one(self) -> None:
        for _ in range(2):
            report_costs.report(days=1)
        with get_client(sync_client=True) as client:
            rows = client.request("POST", "/artifacts/filter", json={"artifacts": {"key": {"any_": ["costs"]}}}).json()
        assert len(rows) == 1

    def test_refuses_days_that_are_none(self) -> None:
        state = report_costs.report(days=0, return_state=True)
        assert state.message == "days is 0: write how far back, from 1 to 400"

    def page(self) -> str:
        with get_client(sync_client=True) as client:
            rows = client.request("POST", "/artifacts/filter", json={"artifacts": {"key": {"any_": ["costs"]}}}).json()
        return rows[0]["data"]
