"""Two clouds as the only providers, for runs of `provision`: what was ordered there, and what came of it."""

from __future__ import annotations

import itertools
from typing import Any

from prefect.client.orchestration import get_client

from prefect_gpu.flows.provision import provision
from prefect_gpu.flows.run.failure import RunFailed
from prefect_gpu.flows.run.record import Record
from prefect_gpu.providers.core.renting.library import TaskLibrary
from tests.fakes.reference import ReferenceCloud


class Named(str):  # noqa: SLOT000 - made twice a test
    """A provider's name as the registry's enum gives it."""

    @property
    def value(self) -> str:
        return str(self)


class Rented:
    """Two clouds as the only providers, and what came of a run on them."""

    def __init__(self, clouds: dict[str, ReferenceCloud], libraries: dict[str, TaskLibrary[Any]]) -> None:
        self.clouds = clouds
        self.libraries = libraries
        self.state: Any = None

    def __getitem__(self, name: str) -> ReferenceCloud:
        return self.clouds[name]

    def run(self, command: Any = "echo hello", **parameters: Any) -> str:
        """The message of the final state."""
        self.state = provision(command, return_state=True, **parameters)
        return self.state.message or ""

    @property
    def result(self) -> Any:
        carried = self.state.data.result
        return carried.result if isinstance(carried, RunFailed) else carried

    @property
    def run_id(self) -> Any:
        return self.state.state_details.flow_run_id

    @property
    def record(self) -> Record:
        return Record.read(self.run_id)

    def artifact(self, key: str) -> str:
        question = {"artifacts": {"key": {"any_": [key]}}, "limit": 1}
        with get_client(sync_client=True) as client:
            return client.request("POST", "/artifacts/latest/filter", json=question).json()[0]["data"]

    def assert_nothing_is_left(self) -> None:
        for name, cloud in self.clouds.items():
            assert cloud.alive() == [], name
            assert cloud.disks() == [], name
        orders = sorted(
            ((order.ordered_at, order.ended_at) for cloud in self.clouds.values() for order in cloud.orders()),
            key=lambda times: times[0],
        )
        for (_, ended), (began, _) in itertools.pairwise(orders):
            assert ended is not None
            assert ended <= began, "two instances were alive at the same time"
