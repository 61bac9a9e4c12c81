"""A vendor's own OpenAPI document, where it is at hand: requests and answers are held to it, unknown fields included."""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import yaml

SPECS = Path(__file__).parents[3] / "shared" / "specs"


class Document:
    """One document."""

    def __init__(self, found: dict[str, Any]) -> None:
        self.found = _closed(_whole(found, found))
        self._checks: dict[str, Any] = {}

    def hold(self, request: httpx.Request, response: httpx.Response | None) -> None:
        """AssertionError where a request, or its answer, has a path, a field or a value that is not documented."""
        path, method = request.url.path, request.method.lower()
        template = next(
            (one for one in self.found["paths"] if re.fullmatch(re.sub(r"\{[^}]*\}", "[^/]+", one), path)), None
        )
        assert template is not None, f"there is no {path}"
        call = self.found["paths"][template].get(method)
        assert call is not None, f"there is no {request.method} {path}"
        known = {one["name"] for one in call.get("parameters", []) if one.get("in") == "query"}
        assert set(request.url.params) <= known, f"{request.method} {path} takes {known}"
        if request.content:
            body = call.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
            assert body is not None, f"{request.method} {path} takes no body"
            self._check(f"{method} {template}", body, json.loads(request.content))
        if response is None:
            return
        answers = call["responses"]
        content = answers.get(str(response.status_code), answers.get("default", {})).get("content", {})
        said = content.get(response.headers.get("content-type", "").partition(";")[0])
        if said and _is_json(response):
            self._check(f"{method} {template} {response.status_code}", said["schema"], response.json())

    def _check(self, name: str, schema: dict[str, Any], value: Any) -> None:
        if name not in self._checks:
            whole = {**schema, "components": self.found.get("components", {})}
            self._checks[name] = jsonschema.Draft202012Validator(whole)
        trouble = next(iter(self._checks[name].iter_errors(value)), None)
        assert trouble is None, f"{name}: {trouble.json_path} {trouble.message}"


@functools.cache
def document(name: str) -> Document | None:
    """The document of that name, or None where it is not at hand."""
    path = SPECS / name
    if not path.exists():
        return None
    text = path.read_text()
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return Document(json.loads(text) if path.suffix == ".json" else yaml.load(text, loader))


def _is_json(response: httpx.Response) -> bool:
    try:
        response.json()
    except ValueError:
        return False
    return True


def _whole(node: Any, document: dict[str, Any]) -> Any:
    """The same document without references to parameters and answers, and with objects that are put together made one.

    (A part of an object would refuse the fields of its other parts, once it is closed.)
    """
    if isinstance(node, list):
        return [_whole(one, document) for one in node]
    if not isinstance(node, dict):
        return node
    if str(node.get("$ref", "")).startswith(("#/components/parameters/", "#/components/responses/")):
        return _whole(_referred(node["$ref"], document), document)
    whole = {key: _whole(value, document) for key, value in node.items()}
    parts = [
        _whole(_referred(one["$ref"], document) if "$ref" in one else one, document) for one in node.get("allOf", ())
    ]
    if len(parts) < 2 or not all(isinstance(one.get("properties"), dict) for one in parts):
        return whole
    fields = {name: value for one in [*parts, whole] for name, value in one.get("properties", {}).items()}
    needed = sorted({name for one in [*parts, whole] for name in one.get("required", ())})
    rest = {key: value for key, value in whole.items() if key != "allOf"}
    return {**rest, "type": "object", "properties": fields, "required": needed}


def _referred(reference: str, document: dict[str, Any]) -> dict[str, Any]:
    found: Any = document
    for step in reference.removeprefix("#/").split("/"):
        found = found[step.replace("~1", "/")]
    return found


def _closed(node: Any) -> Any:
    """The same document, in which an object has no field but those that are named."""
    if isinstance(node, list):
        return [_closed(one) for one in node]
    if not isinstance(node, dict):
        return node
    inner = {key: _closed(value) for key, value in node.items()}
    if isinstance(inner.get("properties"), dict) and inner["properties"] and inner.get("type") == "object":
        inner.setdefault("additionalProperties", False)
    return inner
