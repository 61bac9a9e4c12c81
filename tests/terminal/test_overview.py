"""All providers at a glance."""

from __future__ import annotations

from prefect_gpu.flows.terminal import overview
from prefect_gpu.flows.terminal.overview import Row
from tests.terminal.test_follow import display

# --- providers --------------------------------------------------------------------------------------------------------


def test_the_overview_tells_prices_answers_troubles_and_what_to_type() -> None:
    shown, out = display(width=100)
    overview.show(
        [
            Row(provider="local", account="default", answered_in_s=0.04, cheapest={}),
            Row(provider="aws", account="team", cheapest={}, trouble="the key is no longer valid"),
            Row(provider="vultr", account="", cheapest={"H100": "$2.30"}),
        ],
        shown,
    )
    lines = out.getvalue().splitlines()
    assert lines[0].split("  ")[0] == "provider"
    assert lines[1].split() == ["local", "none", "needed", "0.0", "s", "-", "-"]
    assert lines[2].split() == ["aws", "team", "did", "not", "-", "-"]
    assert lines[3].split() == ["vultr", "none", "$2.30", "-"]
    assert "aws (team): the key is no longer valid" in lines
    assert lines[-1] == "Next: prefect-gpu connect vultr"
