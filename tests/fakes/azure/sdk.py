"""Microsoft's own SDK as a judge: clients whose requests the fake answers, and models that bodies of ours are held to."""

from __future__ import annotations

import io
import re
from typing import Any

import httpx
import pytest

from tests.fakes.azure import facts
from tests.fakes.azure.cloud import FakeAzure


def clients(cloud: FakeAzure) -> tuple[Any, Any]:
    """`azure-mgmt-compute`'s and `azure-mgmt-network`'s."""
    compute = pytest.importorskip("azure.mgmt.compute", reason="pip install azure-mgmt-compute")
    network = pytest.importorskip("azure.mgmt.network", reason="pip install azure-mgmt-network")
    how: Any = {"credential": facts.FakeCredential(), "subscription_id": facts.SUBSCRIPTION, "polling_interval": 0}
    return (
        compute.ComputeManagementClient(**how, transport=_transport(cloud)),
        network.NetworkManagementClient(**how, transport=_transport(cloud)),
    )


def strange_to(model: Any, body: Any, path: str = "") -> list[str]:
    """What in a body this model of the SDK does not know, or knows as something else."""
    if not isinstance(body, dict):
        return [f"{path}: {body!r} is not an object"]
    fields = {rest._rest_name: name for name, rest in model._attr_to_rest_field.items()}
    model()  # its fields get their types with the first of it
    found: list[str] = []
    for key, value in body.items():
        here = f"{path}.{key}".lstrip(".")
        if key not in fields:
            found.append(f"{here}: {model.__name__} has no such field")
            continue
        kind = str(_annotation(model, fields[key]))
        nested = re.search(r"_models\.(\w+)", kind)
        inner = getattr(_models_of(model), nested[1]) if nested else None
        if inner is not None and hasattr(inner, "_attr_to_rest_field"):
            many = [value] if not isinstance(value, list) else value
            if "dict[str" in kind:
                many = list(value.values())
            for one in many:
                found += strange_to(inner, one, here)
        elif inner is not None and "Union[str" in kind and key != "vmSize":  # of sizes the SDK lists only old ones
            allowed = {one.value for one in inner}
            found += [f"{here}: {value!r} is none of {sorted(allowed)}"] if value not in allowed else []
        else:
            plain = {"bool": bool, "int": int, "float": (int, float), "str": str}
            wants = next(
                (python for name, python in plain.items() if re.search(rf"\b{name}\b", kind) and "[str]" not in kind),
                None,
            )
            if wants and "dict" not in kind and "list" not in kind and not isinstance(value, wants):
                found.append(f"{here}: {value!r} is not {kind}")
    return found


def _annotation(model: Any, name: str) -> Any:
    return next(one.__annotations__[name] for one in model.__mro__ if name in getattr(one, "__annotations__", {}))


def _models_of(model: Any) -> Any:
    return __import__(model.__module__.rpartition(".")[0], fromlist=["models"])


def _transport(cloud: FakeAzure) -> Any:
    import requests
    import urllib3
    from azure.core.pipeline.transport import RequestsTransport

    class Answered(requests.adapters.HTTPAdapter):
        def send(self, request: Any, **_: Any) -> Any:
            headers = {
                key: value if isinstance(value, str) else value.decode() for key, value in request.headers.items()
            }
            body = request.body.encode() if isinstance(request.body, str) else request.body
            answer = cloud.answer(httpx.Request(request.method, request.url, headers=headers, content=body))
            raw = urllib3.HTTPResponse(
                io.BytesIO(answer.content),
                headers=dict(answer.headers),
                status=answer.status_code,
                preload_content=False,
            )
            return self.build_response(request, raw)

    session = requests.Session()
    session.mount("https://", Answered())
    return RequestsTransport(session=session, session_owner=False)
