"""What the clean-up tests of a provider share: however a run on a real server and worker ends, nothing of it stays there.

A provider's module gives three fixtures: `provision` (the id of its deployment, with the provider's block saved as `default`),
`asked` (parameters of its runs) and `left`, which reads from the provider's own books what stands there. Its class derives from
`CleanUp`.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Any, ClassVar
from uuid import UUID

import pytest

from tests.stack import Stack, wait_until

AFTER_END_S = 15.0  # after a normal end or a cancel
AFTER_KILL_S = 60.0

Left = Callable[[], list[str]]
Asked = dict[str, Any]


def gone_within(left: Left, seconds: float, since: float) -> None:
    remaining = max(1.0, seconds - (time.monotonic() - since))
    wait_until(lambda: left() == [], remaining, "nothing left there", lambda: ", ".join(left()))


def start_long_job(stack: Stack, provision: UUID, asked: Asked, left: Left) -> UUID:
    run_id = stack.run(provision, command="echo started; sleep 300", **asked)
    stack.wait_for_line(run_id, "started")
    assert left() != []
    return run_id


# What follows from them is the flow's doing, and the same at each provider.
SAME_EVERYWHERE = ("test_after_exit_3", "test_after_a_cancel", "test_reap_gives_back")
ALL = "ALL_CLEAN_UPS"


class CleanUp:
    """The ends of a run that every provider must survive without leaving anything."""

    is_short: ClassVar[bool] = False  # those that are the same everywhere: only where all are asked for

    @pytest.fixture(autouse=True)
    def _time_is_spent_where_it_differs(self, request: pytest.FixtureRequest) -> None:
        if self.is_short and request.node.name.startswith(SAME_EVERYWHERE) and not os.environ.get(ALL):
            pytest.skip(f"the same at each provider; gone through here with {ALL}=1")

    def test_after_exit_3_the_run_is_failed_and_nothing_is_left(
        self, stack: Stack, provision: UUID, asked: Asked, left: Left
    ) -> None:
        run_id = stack.run(provision, command="exit 3", **asked)
        stack.wait_for_state(run_id, "Failed")
        assert left() == []
        assert stack.message(run_id).startswith("exit 3 in ")

    def test_after_a_cancel_nothing_is_left_within_15_s(
        self, stack: Stack, provision: UUID, asked: Asked, left: Left
    ) -> None:
        run_id = start_long_job(stack, provision, asked, left)
        stack.cancel(run_id)
        gone_within(left, AFTER_END_S, time.monotonic())
        stack.wait_for_state(run_id, "Cancelled")

    def test_after_kill_9_of_a_flow_process_that_is_not_to_go_on_nothing_is_left_within_60_s(
        self, stack: Stack, provision: UUID, asked: Asked, left: Left
    ) -> None:
        run_id = start_long_job(stack, provision, {**asked, "resume": False}, left)
        os.kill(stack.flow_process(run_id), signal.SIGKILL)
        gone_within(left, AFTER_KILL_S, time.monotonic())
        stack.wait_for_state(run_id, "Crashed")

    def test_reap_gives_back_what_a_deleted_run_holds_whose_process_does_nothing(
        self, stack: Stack, provision: UUID, asked: Asked, left: Left
    ) -> None:
        run_id = start_long_job(stack, provision, asked, left)
        process = stack.flow_process(run_id)
        os.kill(process, signal.SIGSTOP)
        try:
            assert stack.client.delete(f"/flow_runs/{run_id}").status_code in {204, 404}
            reaping = stack.run(stack.deploy("prefect_gpu.flows.reap.reap", "reap"))
            stack.wait_for_state(reaping, "Completed")
            gone_within(left, AFTER_END_S, time.monotonic())
        finally:
            os.kill(process, signal.SIGKILL)
