"""docs/kubernetes-rbac.yaml grants each call that the driver makes, and no other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

pytest.importorskip("kubernetes", reason="needs the extra kubernetes")

from pydantic import SecretStr

from prefect_gpu.providers.core.gpu.request import parse_gpu
from prefect_gpu.providers.core.models import RegistryAuth
from prefect_gpu.providers.core.requests import Requirements
from prefect_gpu.providers.kubernetes import rights
from prefect_gpu.providers.kubernetes.driver import Kubernetes
from tests.conformance import launch_spec, lease_name
from tests.fakes.kubernetes import MANIFEST, status
from tests.fakes.kubernetes_api import node

Grant = tuple[str, str, str]  # verb, resource, name or namespace ("" for the whole cluster)


def granted() -> set[Grant]:
    found: set[Grant] = set()
    for one in yaml.safe_load_all(MANIFEST.read_text()):
        for rule in (one or {}).get("rules", []):
            assert rule["apiGroups"] == [""]
            for resource in rule["resources"]:
                for verb in rule["verbs"]:
                    places = rule.get("resourceNames") or [one["metadata"].get("namespace", "")]
                    found |= {(verb, resource, place) for place in places}
    return found


class Recorder:
    """A cluster that has one pod in each state that the driver asks further about, and writes down what it is asked."""

    def __init__(self) -> None:
        self.asked: set[Grant] = set()
        self.pods: dict[str, Any] = {}

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.url.path.startswith("/apis/authorization") or request.url.path == "/version":
            return httpx.Response(201, json={"status": {"allowed": True}})  # every account may ask that
        _, _, _, *parts = request.url.path.split("/")
        place = ""
        if parts[0] == "namespaces" and len(parts) > 2:
            _, place, *parts = parts
        kind, *name = parts
        one = {"POST": "create", "PATCH": "patch", "DELETE": "delete"}
        verb = one.get(request.method) or ("get" if name else "list")
        self.asked.add((verb, kind, name[0] if kind == "namespaces" else place))
        return self.answer(verb, kind, name[0] if name else "", request)

    def answer(self, verb: str, kind: str, name: str, request: httpx.Request) -> httpx.Response:
        if kind == "pods" and verb == "list" and "/namespaces/" not in request.url.path:
            self.asked.discard(("list", "pods", ""))  # worth having, not needed: commented out
            return status(403, 'User "x" cannot list resource "pods"', "Forbidden")(request)
        if verb == "create":
            body = json.loads(request.content)
            body["metadata"] |= {"uid": "u", "namespace": "prefect-gpu"}
            if kind == "pods":
                self.pods[body["metadata"]["name"]] = body | {"status": {"phase": "Pending"}}
            return httpx.Response(201, json=body)
        if verb == "list":
            items = [node({"nvidia.com/gpu": "8"}, {"nvidia.com/gpu.product": "NVIDIA-L4"})] if kind == "nodes" else []
            return httpx.Response(200, json={"items": list(self.pods.values()) if kind == "pods" else items})
        if kind == "pods":
            return httpx.Response(200, json=self.pods[name])
        return httpx.Response(200, json={"metadata": {"uid": "u", "name": name}})


def test_it_grants_each_call_that_the_driver_makes_and_no_other(faked: Kubernetes, tmp_path: Path) -> None:
    cluster = Recorder()
    block = faked.credentials.model_copy(update={"namespace": "prefect-gpu"})
    driver = Kubernetes(block, transport=lambda _: httpx.MockTransport(cluster))
    registry = RegistryAuth(server="ghcr.io", username="u", password=SecretStr("p"))
    driver.account_id()
    assert driver.missing_rights() == []
    (offer,) = driver.fetch_offers(Requirements(gpu=parse_gpu("L4")))
    made = driver.create_instance(offer, launch_spec(driver, lease_name(), registry=registry))
    pod = cluster.pods[made.name]
    pod["status"]["conditions"] = [{"type": "PodScheduled", "status": "True"}]
    driver.get_instance(made.id)  # it waits: its events are asked
    pod["spec"]["nodeName"], pod["status"] = "n1", {"phase": "Unknown"}
    driver.get_instance(made.id)  # its node is asked
    driver.list_instances("pg-")
    driver.terminate_instance(made.id)
    by_websocket = {
        (verb, "pods/exec", "prefect-gpu") for verb in ("get", "create")
    }  # one or the other, by the cluster's version
    assert cluster.asked | by_websocket == granted()


def test_the_rights_that_are_looked_for_are_those() -> None:
    needed = rights.needed("prefect-gpu")
    assert {(one.verb, one.resource, one.name or one.namespace) for one in needed} == granted()
