"""Drivers that are each wrong in one way, and whether a test says so.

`wrong(driver, way)` is a driver with a fault that any could have; `edited(...)` is one whose source has one line changed. A mutant that no
test fails for has survived: a test is missing. Run those of the drivers with

    .venv/bin/python -m pytest tests/providers/test_mutants.py
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from prefect_gpu.providers.core.contract import Provider
from prefect_gpu.providers.core.errors import InvalidRequest, NoCapacity, NotFound, Transient, Unconfirmed
from prefect_gpu.providers.core.models import Instance, InstanceState, LaunchSpec, Listing, Offer

Driver = Any  # a mixin's `super()` is whatever driver it is mixed into


class OrdersAgainAfterALostAnswer:
    def create_instance(self: Driver, offer: Offer, spec: LaunchSpec) -> Instance:
        try:
            return super().create_instance(offer, spec)  # type: ignore[misc]
        except Unconfirmed:
            return super().create_instance(offer, spec)  # type: ignore[misc]


class RaisesForWhatIsGone:
    def terminate_instance(self: Driver, instance_id: str) -> None:
        self.get_instance(instance_id)
        super().terminate_instance(instance_id)  # type: ignore[misc]


class CallsAFailedTerminateDone:
    def terminate_instance(self: Driver, instance_id: str) -> None:
        try:
            super().terminate_instance(instance_id)  # type: ignore[misc]
        except Transient:
            return


class TakesUnreadForEmpty:
    def list_instances(self: Driver, prefix: str) -> Listing:
        return super().list_instances(prefix).model_copy(update={"incomplete": ()})  # type: ignore[misc]


class IgnoresThePrefix:
    def list_instances(self: Driver, prefix: str) -> Listing:
        return super().list_instances("pg-")  # type: ignore[misc]


class CallsSoldOutOurFault:
    def create_instance(self: Driver, offer: Offer, spec: LaunchSpec) -> Instance:
        try:
            return super().create_instance(offer, spec)  # type: ignore[misc]
        except NoCapacity as error:
            raise InvalidRequest(error.message, code=error.code) from None


class TakesABrokenGetForGone:
    def get_instance(self: Driver, instance_id: str) -> Instance:
        try:
            return super().get_instance(instance_id)  # type: ignore[misc]
        except Transient as error:
            raise NotFound(error.message) from None


class TakesNewWordsForRunning:
    def get_instance(self: Driver, instance_id: str) -> Instance:
        seen = super().get_instance(instance_id)  # type: ignore[misc]
        is_new = seen.state is InstanceState.UNKNOWN
        return seen.model_copy(update={"state": InstanceState.RUNNING}) if is_new else seen


ANY: dict[type, str] = {  # and the contract's test that must fail
    OrdersAgainAfterALostAnswer: "test_a_create_is_never_repeated_by_the_driver",
    RaisesForWhatIsGone: "test_terminate_of_an_unknown_id_is_success",
    CallsAFailedTerminateDone: "test_a_5xx_at_terminate_is_an_error_and_never_a_success",
    TakesUnreadForEmpty: "test_a_scope_that_cannot_be_read_is_said_and_hides_nothing_else",
    IgnoresThePrefix: "test_a_prefix_finds_its_own_and_nothing_else",
    CallsSoldOutOurFault: "test_sold_out_is_no_capacity",
    TakesABrokenGetForGone: "test_a_5xx_at_get_is_transient",
    TakesNewWordsForRunning: "test_a_status_never_seen_before_is_unknown",
}


def wrong(driver: type[Provider[Any]], way: type) -> type[Provider[Any]]:
    """The driver, wrong in that way."""
    return type(way.__name__, (way, driver), {})


class _Edited(MetaPathFinder, Loader):
    """Finds one module with another source."""

    def __init__(self, module: str, path: Path, source: str) -> None:
        self._module, self._path, self._source = module, path, source

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if fullname != self._module:
            return None
        return spec_from_file_location(fullname, self._path, loader=self)

    def exec_module(self, module: ModuleType) -> None:
        exec(compile(self._source, str(self._path), "exec"), module.__dict__)


def edited(module: str, old: str, new: str, driver: str) -> type[Provider[Any]]:
    """The class `driver` as it is when that module of its package has `new` where it has `old`.

    `driver` is its module and name, `prefect_gpu.providers.vultr:Vultr`. What is imported stays as it was.
    """
    home, _, name = driver.partition(":")
    package = home.rsplit(".", 1)[0] if home.endswith(".driver") else home
    parent, leaf = package.rsplit(".", 1)
    saved = {key: one for key, one in sys.modules.items() if key == package or key.startswith(f"{package}.")}
    importlib.import_module(package)
    path = Path(str(importlib.import_module(module).__file__))
    source = path.read_text()
    assert source.count(old) == 1, f"{path.name} has {source.count(old)} times: {old}"
    before = getattr(sys.modules[parent], leaf)
    for key in [key for key in sys.modules if key == package or key.startswith(f"{package}.")]:
        del sys.modules[key]
    finder = _Edited(module, path, source.replace(old, new))
    sys.meta_path.insert(0, finder)
    try:
        found: type[Provider[Any]] = getattr(importlib.import_module(home), name)
    finally:
        sys.meta_path.remove(finder)
        for key in [key for key in sys.modules if key == package or key.startswith(f"{package}.")]:
            del sys.modules[key]
        sys.modules.update(saved)
        setattr(sys.modules[parent], leaf, before)
    return found


def fails(test: Callable[[], object]) -> bool:
    """Whether it fails, in whatever way. Skipped is not failed."""
    try:
        test()
    except pytest.skip.Exception:
        return False
    except (Exception, pytest.fail.Exception):  # noqa: BLE001 - however it fails, it fails
        return True
    return False
