"""Requests and answers held to Google's own discovery document of Compute Engine, which google-api-python-client brings."""

from __future__ import annotations

import json
import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any


@cache
def document() -> dict[str, Any] | None:
    """The document; None where the package that brings it is not installed."""
    found = find_spec("googleapiclient")
    if found is None or found.origin is None:
        return None
    path = Path(found.origin).parent / "discovery_cache" / "documents" / "compute.v1.json"
    return json.loads(path.read_text())


@cache
def methods() -> dict[str, list[tuple[re.Pattern[str], dict[str, Any]]]]:
    """By HTTP method: what each path is."""
    found: dict[str, list[tuple[re.Pattern[str], dict[str, Any]]]] = {}
    for resource in (document() or {"resources": {}})["resources"].values():
        for method in resource.get("methods", {}).values():
            pattern = re.sub(r"\{[^}]+\}", "[^/]+", method["path"])
            found.setdefault(method["httpMethod"], []).append((re.compile(pattern), method))
    return found


def check_request(verb: str, path: str, params: dict[str, str], body: Any) -> dict[str, Any] | None:
    """The method of the document that this request is. AssertionError where it is none, or not as the document has it."""
    if document() is None:
        return None
    # A fixed word is meant before a name: images/family/x, aggregated/instances.
    fits = [method for pattern, method in methods()[verb] if pattern.fullmatch(path)]
    assert fits, f"Compute Engine has no {verb} {path}"
    method = min(fits, key=lambda one: one["path"].count("{"))
    common = {"alt", "fields", "key", "prettyPrint", "quotaUser", "userIp", "$alt", "$.xgafv"}
    unknown = params.keys() - method.get("parameters", {}).keys() - common
    assert not unknown, f"{method['id']} takes no {', '.join(unknown)}"
    if "request" in method:
        check(body, method["request"]["$ref"], "body")
    else:
        assert body in (None, {}), f"{method['id']} takes no body"
    return method


def check_answer(method: dict[str, Any] | None, body: Any) -> None:
    """AssertionError where an answer is not what the document says of it."""
    if method is not None and "response" in method:
        check(body, method["response"]["$ref"], "answer")


def check(value: Any, schema: str, where: str) -> None:
    _check(value, {"$ref": schema}, where)


def _check(value: Any, schema: dict[str, Any], where: str) -> None:
    if "$ref" in schema:
        name = schema["$ref"]
        schema = document()["schemas"][name]  # type: ignore[index]
    kind = schema.get("type")
    if kind == "object":
        assert isinstance(value, dict), f"{where} is no object"
        properties, others = schema.get("properties", {}), schema.get("additionalProperties")
        for key, inner in value.items():
            assert key in properties or others is not None, f"{where} has no field {key}"
            _check(inner, properties.get(key, others), f"{where}.{key}")
    elif kind == "array":
        assert isinstance(value, list), f"{where} is no list"
        for number, inner in enumerate(value):
            _check(inner, schema["items"], f"{where}[{number}]")
    elif kind == "string":
        assert isinstance(value, str), f"{where} is no string: {value!r}"
        assert not schema.get("enum") or value in schema["enum"], f"{where} is none of the known: {value}"
    elif kind == "integer":
        assert isinstance(value, int), f"{where} is no integer: {value!r}"
        assert not isinstance(value, bool), where
    elif kind == "number":
        assert isinstance(value, int | float), f"{where} is no number: {value!r}"
    elif kind == "boolean":
        assert isinstance(value, bool), f"{where} is no boolean: {value!r}"
