"""The clouds that runs of `provision` are tried on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

if TYPE_CHECKING:
    from tests.flows.rented import Rented


@pytest.fixture
def rented(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Rented]:
    """`alpha` is dearer in the south, `beta` is dearer than alpha throughout."""
    from prefect_gpu import providers as registry
    from prefect_gpu.providers.core.renting.library import TaskLibrary
    from tests.fakes.reference import Reference, ReferenceCloud, Terms, reference
    from tests.flows.rented import Named, Rented

    clouds, libraries = {}, {}
    for name, factor in (("alpha", 1.0), ("beta", 2.0)):
        terms = Terms(has_ssh=True, account=f"ref-{uuid4().hex[:6]}")  # what is sold out there is no other test's
        terms = terms.model_copy(
            update={"types": tuple(kind.model_copy(update={"price": kind.price * factor}) for kind in terms.types)}
        )
        cloud = ReferenceCloud(tmp_path / f"{name}.db", terms)
        driver = type(name.title(), (Reference,), {"name": name})
        library: TaskLibrary[Any] = TaskLibrary(driver)
        library.connections.drivers["default"] = reference(cloud, driver)
        clouds[name], libraries[name] = cloud, library

    def library(name: object) -> TaskLibrary[Any]:
        """As the registry's own: records of other tests name others."""
        if str(name) not in libraries:
            raise ValueError(f"{name} is not a provider")
        return libraries[str(name)]

    monkeypatch.setattr(registry, "library", library)
    monkeypatch.setattr(registry, "enabled", lambda *_: [Named(name) for name in libraries])
    monkeypatch.chdir(tmp_path)
    yield Rented(clouds, libraries)
    for cloud in clouds.values():
        cloud.close()


@pytest.fixture
def dear(rented: Rented, monkeypatch: pytest.MonkeyPatch) -> Rented:
    """Alpha's smallest machine costs a dollar a second, beta's two."""
    from prefect_gpu.flows.run import budget

    monkeypatch.setattr(budget, "RESERVE_S", 2.0)
    monkeypatch.setattr(budget, "LEAST_S", 1.0)
    for cloud, price in zip(rented.clouds.values(), (3600.0, 7200.0), strict=True):
        types = [cloud.terms.types[0].model_copy(update={"price": price})]
        cloud.change(types=[one.model_dump() for one in types])
    return rented
