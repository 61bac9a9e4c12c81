"""The form that set-up stores: what it shows may be left empty, and what it sends back as it was drawn is taken."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
from prefect.flows import Flow
from prefect.utilities.schema_tools.validation import validate

from prefect_gpu.flows import fields
from prefect_gpu.flows.plan import plan
from prefect_gpu.flows.provision import provision
from prefect_gpu.flows.reap import reap
from prefect_gpu.flows.refresh_catalog import refresh_catalog

FLOWS: list[Flow[..., Any]] = [provision, plan, reap, refresh_catalog]


def every_field(form: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    yield from form["properties"].items()
    for one in form.get("definitions", {}).values():
        yield from one.get("properties", {}).items()


@pytest.mark.parametrize("flow", FLOWS, ids=lambda flow: flow.name)
def test_what_the_form_draws_is_taken_when_it_is_sent_back(flow: Flow[..., Any]) -> None:
    form = fields.schema(flow)
    sent = {name: copy.deepcopy(field["default"]) for name, field in form["properties"].items() if "default" in field}
    if "command" in form["properties"]:
        sent["command"] = "true"
    assert [error.message for error in validate(sent, form)] == []
    flow.validate_parameters(sent)


@pytest.mark.parametrize("flow", FLOWS, ids=lambda flow: flow.name)
def test_no_field_is_answered_by_none(flow: Flow[..., Any]) -> None:
    for name, field in every_field(fields.schema(flow)):
        assert field.get("default", 0) is not None, name
        assert not (isinstance(field.get("default"), dict) and None in field["default"].values()), name


@pytest.mark.parametrize("flow", FLOWS, ids=lambda flow: flow.name)
def test_each_field_has_a_title_and_a_description_for_people(flow: Flow[..., Any]) -> None:
    for name, field in fields.schema(flow)["properties"].items():
        assert field["title"] != name, "Prefect's own title is the parameter's name"
        assert field.get("description"), name
        assert "`" not in field["description"], "one of the two UIs shows it as it is"


def test_null_is_still_taken_where_nothing_is_set() -> None:
    form = fields.schema(provision)
    empty = {"command": "true", "max_price": None, "requirements": {"cpu": None, "arch": None}, "job": {"image": None}}
    assert [error.message for error in validate(empty, form)] == []
    assert validate({"command": "true", "max_price": "cheap"}, form)
    assert validate({"command": "true", "requirements": {"arch": "vax"}}, form)


def test_the_four_fields_that_matter_come_first() -> None:
    form = fields.schema(provision)
    ordered = sorted(form["properties"], key=lambda name: form["properties"][name]["position"])
    assert ordered[:4] == ["command", "gpu", "max_price", "providers"]
