"""Orders, against an API server whose answers are lost and whose quotas refuse."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

pytest.importorskip("kubernetes", reason="needs the extra kubernetes")

from prefect_gpu.providers.core.errors import (
    InvalidRequest,
    QuotaExceeded,
    Unconfirmed,
)
from prefect_gpu.providers.core.models import (
    RegistryAuth,
)
from prefect_gpu.providers.kubernetes.driver import Kubernetes
from tests.conformance import launch_spec, lease_name
from tests.fakes.kubernetes import is_create, status
from tests.fakes.kubernetes_api import OFFER


class Quota:
    """An API server's pods and Secrets where a quota lets one pod stand; as there, admission comes before what stands already."""

    def __init__(self) -> None:
        self.pods: dict[str, Any] = {}
        self.secrets: dict[str, Any] = {}
        self.counts_secrets = False
        self.refused: dict[
            tuple[str, str], tuple[int, str, str]
        ] = {}  # by method and kind of object: status, words, reason
        self.lost: list[tuple[str, str]] = []  # whose answer does not come

    def __call__(self, request: httpx.Request) -> httpx.Response:
        _, _, _, _, _, kind, *name = request.url.path.split("/") if "/ns/" in request.url.path else [""] * 6
        call = (request.method, kind)
        answer = self.answer(call, name[0] if name else "", request)
        if call in self.lost:
            self.lost.remove(call)
            raise httpx.ReadTimeout("timed out", request=request)
        return answer

    def answer(self, call: tuple[str, str], name: str, request: httpx.Request) -> httpx.Response:
        if call in self.refused:
            code, words, reason = self.refused[call]
            return status(code, words, reason)(request)
        method, kind = call
        if not kind:
            return httpx.Response(200, json={"metadata": {"uid": "1"}})
        objects = self.pods if kind == "pods" else self.secrets
        if method == "POST":
            body = json.loads(request.content)
            name = body["metadata"]["name"]
            if objects and (kind == "pods" or self.counts_secrets):
                return status(403, f'{kind} "{name}" is forbidden: exceeded quota: q', "Forbidden")(request)
            if name in objects:
                return status(409, f'{kind} "{name}" already exists', "AlreadyExists")(request)
            body["metadata"] |= {"uid": f"uid-of-{kind}", "namespace": "ns"}
            objects[name] = {**body, "status": {"phase": "Pending"}}
            return httpx.Response(201, json=objects[name])
        if not name:
            return httpx.Response(200, json={"items": list(objects.values())})
        if name not in objects:
            return status(404, f'{kind} "{name}" not found', "NotFound")(request)
        one = objects.pop(name) if method == "DELETE" else objects[name]
        if method == "PATCH":
            one["metadata"] |= json.loads(request.content)["metadata"]
        return httpx.Response(200, json=one)


class TestOrders:
    REGISTRY = RegistryAuth(server="ghcr.io", username="u", password=SecretStr("hunter2"))

    @pytest.fixture
    def server(self) -> Quota:
        return Quota()

    @pytest.fixture
    def driver(self, faked: Kubernetes, server: Quota) -> Kubernetes:
        return Kubernetes(faked.credentials, transport=lambda _: httpx.MockTransport(server))

    @pytest.mark.parametrize("counts_secrets", [False, True], ids=["pods", "pods and Secrets"])
    def test_a_repeated_order_that_its_own_pod_puts_over_quota_finds_it(
        self, driver: Kubernetes, server: Quota, counts_secrets: bool
    ) -> None:
        server.counts_secrets = counts_secrets
        server.lost = [("POST", "pods")]
        spec = launch_spec(driver, lease_name(), registry=self.REGISTRY)
        with pytest.raises(Unconfirmed):
            driver.create_instance(OFFER, spec)
        assert driver.create_instance(OFFER, spec).id == f"ns/{spec.name}"
        owners = server.secrets[spec.name]["metadata"]["ownerReferences"]
        assert [owner["uid"] for owner in owners] == ["uid-of-pods"]

    def test_a_refusal_leaves_nothing_where_no_pod_stands(self, driver: Kubernetes, server: Quota) -> None:
        server.pods["other"] = {"metadata": {"name": "other"}}
        with pytest.raises(QuotaExceeded):
            driver.create_instance(OFFER, launch_spec(driver, lease_name(), registry=self.REGISTRY))
        assert server.secrets == {}

    def test_a_strangers_pod_does_not_answer_a_refused_order(self, driver: Kubernetes, server: Quota) -> None:
        name = lease_name()
        server.pods[name] = {"metadata": {"name": name, "namespace": "ns", "uid": "1"}, "spec": {}}
        with pytest.raises(QuotaExceeded):
            driver.create_instance(OFFER, launch_spec(driver, name))

    def test_a_refusal_is_told_also_where_what_it_left_cannot_be_deleted(
        self, driver: Kubernetes, server: Quota
    ) -> None:
        server.pods["other"] = {"metadata": {"name": "other"}}
        server.refused["DELETE", "secrets"] = (500, "etcdserver: leader changed", "InternalError")
        with pytest.raises(QuotaExceeded):
            driver.create_instance(OFFER, launch_spec(driver, lease_name(), registry=self.REGISTRY))

    def test_a_refusal_while_pods_cannot_be_read_settles_nothing_and_takes_no_secret(
        self, driver: Kubernetes, server: Quota
    ) -> None:
        server.pods["other"] = {"metadata": {"name": "other"}}
        server.refused["GET", "pods"] = (503, "the server is currently unable to handle the request", "")
        name = lease_name()
        with pytest.raises(Unconfirmed, match="exceeded quota"):
            driver.create_instance(OFFER, launch_spec(driver, name, registry=self.REGISTRY))
        assert list(server.secrets) == [name]

    def test_a_refusal_where_pods_may_not_be_read_is_told_and_takes_no_secret(
        self, driver: Kubernetes, server: Quota
    ) -> None:
        server.pods["other"] = {"metadata": {"name": "other"}}
        server.refused["GET", "pods"] = (403, 'User "u" cannot get resource "pods"', "Forbidden")
        name = lease_name()
        with pytest.raises(QuotaExceeded):
            driver.create_instance(OFFER, launch_spec(driver, name, registry=self.REGISTRY))
        assert list(server.secrets) == [name]

    @pytest.mark.parametrize(
        "refusal",
        [
            (403, 'secrets "x" is forbidden: User "u" cannot patch resource "secrets"', "Forbidden"),
            (404, 'secrets "x" not found', "NotFound"),
            (409, "the object has been modified", "Conflict"),
            (429, "too many requests", "TooManyRequests"),
            (500, "etcdserver: request timed out", "InternalError"),
        ],
        ids=lambda refusal: str(refusal[0]),
    )
    def test_a_pod_that_stands_is_the_answer_also_where_its_secret_cannot_be_tied_to_it(
        self, driver: Kubernetes, server: Quota, refusal: tuple[int, str, str]
    ) -> None:
        server.refused["PATCH", "secrets"] = refusal
        spec = launch_spec(driver, lease_name(), registry=self.REGISTRY)
        assert driver.create_instance(OFFER, spec).id == f"ns/{spec.name}"
        assert list(server.pods) == list(server.secrets) == [spec.name]

    def test_a_secret_that_is_not_tied_to_its_pod_goes_with_it_or_is_left_over(
        self, driver: Kubernetes, server: Quota
    ) -> None:
        server.refused["PATCH", "secrets"] = (403, 'User "u" cannot patch resource "secrets"', "Forbidden")
        ours = driver.create_instance(OFFER, launch_spec(driver, lease_name(), registry=self.REGISTRY))
        driver.terminate_instance(ours.id)
        assert server.secrets == server.pods == {}
        taken = driver.create_instance(OFFER, launch_spec(driver, lease_name(), registry=self.REGISTRY))
        assert driver.list_instances(taken.name).leftovers == ()
        server.pods.clear()  # by somebody else
        (left,) = driver.list_instances(taken.name).leftovers
        assert (left.kind, left.name) == ("pull secret", taken.name)
        driver.terminate_instance(left.id)
        assert server.secrets == {}


class TestLimits:
    """Namespaces whose quotas or limit ranges want limits of a pod."""

    @pytest.mark.parametrize(
        ("words", "limits"),
        [
            ('pods "p" is forbidden: failed quota: q: must specify limits.cpu,limits.memory', {"cpu", "memory"}),
            ('pods "p" is forbidden: failed quota: q: must specify limits.memory', {"memory"}),
            (
                (
                    'pods "p" is forbidden: [maximum cpu usage per Container is 4, but no limit is specified, '
                    "maximum memory usage per Container is 8Gi, but no limit is specified]"
                ),
                {"cpu", "memory"},
            ),
            ('pods "p" is forbidden: maximum memory usage per Pod is 8Gi.  No limit is specified', {"memory"}),
            (
                'pods "p" is forbidden: cpu max limit to request ratio per Container is 1, but provided ratio is 4.000000',
                {"cpu"},
            ),
        ],
    )
    def test_limits_equal_requests_where_the_cluster_wants_limits(
        self, faked: Kubernetes, words: str, limits: set[str]
    ) -> None:
        server = Quota()
        seen: list[Any] = []

        def admit(request: httpx.Request) -> httpx.Response:
            if is_create(request):
                resources = json.loads(request.content)["spec"]["containers"][0]["resources"]
                seen.append(resources)
                if not resources["limits"]:
                    return status(403, words, "Forbidden")(request)
            return server(request)

        driver = Kubernetes(faked.credentials, transport=lambda _: httpx.MockTransport(admit))
        spec = launch_spec(driver, lease_name())
        assert driver.create_instance(OFFER, spec).name == spec.name
        assert driver.create_instance(OFFER, spec).name == spec.name  # the same order, wherever an answer was lost
        assert len(server.pods) == 1
        assert [one["limits"].keys() for one in seen] == [set(), limits, set(), limits]
        assert all(seen[1]["limits"][key] == seen[1]["requests"][key] for key in limits)

    def test_a_quota_that_is_still_not_content_is_asked_no_third_time(self, faked: Kubernetes) -> None:
        words = "failed quota: q: must specify limits.cpu,limits.nvidia.com/gpu"
        asked: list[str] = []

        def refuse(request: httpx.Request) -> httpx.Response:
            if is_create(request):
                asked.append(request.url.path)
                return status(403, words, "Forbidden")(request)
            return status(404, "not found", "NotFound")(request)

        driver = Kubernetes(faked.credentials, transport=lambda _: httpx.MockTransport(refuse))
        with pytest.raises(InvalidRequest, match="must specify"):
            driver.create_instance(OFFER, launch_spec(driver, lease_name()))
        assert len(asked) == 2

    def test_a_quota_on_disk_wants_to_be_told_how_much(self, faked: Kubernetes) -> None:
        words = "failed quota: q: must specify limits.ephemeral-storage,requests.ephemeral-storage"
        refusal = status(403, words, "Forbidden")
        server = Quota()
        driver = Kubernetes(
            faked.credentials,
            transport=lambda _: httpx.MockTransport(lambda r: refusal(r) if is_create(r) else server(r)),
        )
        with pytest.raises(InvalidRequest, match="disk_gb"):
            driver.create_instance(OFFER, launch_spec(driver, lease_name()))


class TestOurs:
    """A pod is ours by what the order gave it for good, and by nothing that anybody may write later."""

    @pytest.fixture
    def server(self) -> Quota:
        return Quota()

    @pytest.fixture
    def driver(self, faked: Kubernetes, server: Quota) -> Kubernetes:
        return Kubernetes(faked.credentials, transport=lambda _: httpx.MockTransport(server))

    def plant(self, server: Quota, name: str, labelled: str, command: list[str]) -> None:
        labels = {"app.kubernetes.io/managed-by": "prefect-gpu", "prefect-gpu/name": labelled}
        server.pods[name] = {
            "metadata": {"name": name, "namespace": "ns", "uid": "x", "labels": labels},
            "spec": {"containers": [{"name": "job", "command": command}]},
            "status": {"phase": "Pending"},
        }

    def test_labels_and_a_name_do_not_make_a_pod_ours(self, driver: Kubernetes, server: Quota) -> None:
        name, other = lease_name(), lease_name()
        for command in (["sleep", "60"], ["sh", "-c", "x", "sh", "1", other], [], ["sh", "-c", "x", "sh", "1"]):
            self.plant(server, name, name, command)
            listing = driver.list_instances("pg-")
            assert (listing.instances, listing.leftovers) == ((), ())
            (reported,) = listing.unproved
            assert (reported.id, reported.name, reported.kind) == (f"ns/{name}", name, "pod")
            assert driver.get_instance(f"ns/{name}").name == ""
            with pytest.raises(InvalidRequest, match="not ours"):
                driver.terminate_instance(f"ns/{name}")
            assert list(server.pods) == [name]

    def test_a_pod_whose_labels_somebody_took_off_is_ours_all_the_same(self, driver: Kubernetes, server: Quota) -> None:
        made = driver.create_instance(OFFER, launch_spec(driver, lease_name()))
        server.pods[made.name]["metadata"]["labels"] = {}
        assert [one.id for one in driver.list_instances(made.name).instances] == [made.id]
        assert driver.list_instances("pg-").unproved == ()
        driver.terminate_instance(made.id)
        assert server.pods == {}

    def test_a_name_that_is_no_leases_is_never_touched(self, driver: Kubernetes, server: Quota) -> None:
        for name in ("pg-", "web", lease_name()[:-1], lease_name() + "-copy"):
            self.plant(server, name, name, ["sh", "-c", "x", "sh", "1", name])
            with pytest.raises(InvalidRequest, match="not a name that this project gives"):
                driver.terminate_instance(f"ns/{name}")
        assert len(server.pods) == 4
        assert driver.list_instances("pg-").instances == ()

    def test_only_the_pod_that_was_looked_at_is_deleted(self, driver: Kubernetes, server: Quota) -> None:
        made = driver.create_instance(OFFER, launch_spec(driver, lease_name()))
        asked: list[Any] = []

        def note(request: httpx.Request) -> httpx.Response:
            if request.method == "DELETE" and "/pods/" in request.url.path:
                asked.append(json.loads(request.content))
            return server(request)

        watched = Kubernetes(driver.credentials, transport=lambda _: httpx.MockTransport(note))
        watched.terminate_instance(made.id)
        assert [one["preconditions"] for one in asked] == [{"uid": "uid-of-pods"}]
        assert "gracePeriodSeconds" not in asked[0]
