"""What the API server refuses, as errors of ours."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("kubernetes", reason="needs the extra kubernetes")

from prefect_gpu.blocks.kubernetes import KubernetesCredentials
from prefect_gpu.providers.core.errors import (
    AuthFailed,
    InvalidRequest,
    NotFound,
    ProviderError,
    QuotaExceeded,
    RateLimited,
    Transient,
    Unconfirmed,
)
from prefect_gpu.providers.kubernetes.driver import Kubernetes
from tests.conformance import launch_spec, lease_name
from tests.fakes.kubernetes_api import (
    FORBIDDEN,
    OFFER,
    FakeApi,
)


class TestErrors:
    @pytest.mark.parametrize(
        ("code", "reason", "words", "at_create", "at_get"),
        [
            (400, "BadRequest", "bad", InvalidRequest, InvalidRequest),
            (401, "Unauthorized", "Unauthorized", AuthFailed, AuthFailed),
            (403, "Forbidden", FORBIDDEN, AuthFailed, AuthFailed),
            (
                403,
                "Forbidden",
                'pods "p" is forbidden: exceeded quota: q, requested: pods=1',
                QuotaExceeded,
                QuotaExceeded,
            ),
            (403, "Forbidden", "maximum cpu usage per Container is 2, but limit is 4", QuotaExceeded, QuotaExceeded),
            (
                403,
                "Forbidden",
                'pods "p" is forbidden: violates PodSecurity "restricted"',
                InvalidRequest,
                InvalidRequest,
            ),
            (
                403,
                "Forbidden",
                "unable to create new content because it is being terminated",
                InvalidRequest,
                InvalidRequest,
            ),
            (404, "NotFound", 'namespaces "ns" not found', InvalidRequest, NotFound),
            (405, "MethodNotAllowed", "no", InvalidRequest, InvalidRequest),
            (409, "Conflict", "the object has been modified", RateLimited, RateLimited),
            (410, "Expired", "too old resource version", InvalidRequest, Transient),
            (422, "Invalid", 'Pod "p" is invalid: spec: nope', InvalidRequest, InvalidRequest),
            (429, "TooManyRequests", "slow down", RateLimited, RateLimited),
            (500, "InternalError", "etcdserver: request timed out", Unconfirmed, Transient),
            (503, "ServiceUnavailable", "apiserver not ready", Unconfirmed, Transient),
            # Before a pod is stored: a definite no, whatever the status.
            (500, "InternalError", 'failed calling webhook "w.example.com": Post: EOF', InvalidRequest, InvalidRequest),
            (
                500,
                "InternalError",
                'failed calling webhook "w": failed to call webhook: x',
                InvalidRequest,
                InvalidRequest,
            ),
            (500, "", 'admission webhook "w.example.com" denied the request: no owner', InvalidRequest, InvalidRequest),
            (504, "Timeout", 'admission plugin "X" failed to complete mutation in 13s', InvalidRequest, InvalidRequest),
            (504, "Timeout", "request did not complete", Unconfirmed, Transient),
        ],
    )
    def test_each_answer_is_an_error_of_ours_in_the_clusters_words(
        self,
        api: FakeApi,
        faked: Kubernetes,
        code: int,
        reason: str,
        words: str,
        at_create: type[ProviderError],
        at_get: type[ProviderError],
    ) -> None:
        name = lease_name()
        body = {"kind": "Status", "message": words, "reason": reason, "code": code}
        answer = (code, body, {"retry-after": "3"} if code == 429 else {})
        api.answers = {
            ("POST", "/api/v1/namespaces/ns/pods"): answer,
            ("GET", f"/api/v1/namespaces/ns/pods/{name}"): answer,
            ("GET", "/api/v1/namespaces/ns"): (200, {"metadata": {"uid": "1"}}, {}),
        }
        for kind, call in (
            (at_create, lambda: faked.create_instance(OFFER, launch_spec(faked, name))),
            (at_get, lambda: faked.get_instance(f"ns/{name}")),
        ):
            with pytest.raises(ProviderError) as raised:
                call()
            if code == 410:
                continue  # only listings get it
            assert type(raised.value) is kind
            assert words in raised.value.message
            assert "s3cret" not in str(raised.value)
            if code == 429:
                assert raised.value.retry_after_s == 3

    @pytest.mark.parametrize(
        ("answer", "at_create", "at_get"),
        [
            ("hang up", Unconfirmed, Transient),
            ("silence", Unconfirmed, Transient),
            ((201, b"{half", {}), Unconfirmed, Transient),
            ((201, b"[]", {}), Unconfirmed, Transient),
            ((200, {"metadata": {}}, {}), Unconfirmed, None),
            ((502, b"<html>bad gateway</html>", {}), Unconfirmed, Transient),
            ((302, b"", {"location": "http://127.0.0.1:9/"}), InvalidRequest, InvalidRequest),
        ],
        ids=["hangs up", "silent", "half a body", "no object", "no id", "a proxy's page", "redirect"],
    )
    def test_an_answer_that_is_none_is_unconfirmed_only_at_create(
        self, api: FakeApi, faked: Kubernetes, answer: Any, at_create: type[ProviderError], at_get: type[ProviderError]
    ) -> None:
        name = lease_name()
        api.answers = {
            ("POST", "/api/v1/namespaces/ns/pods"): answer,
            ("GET", f"/api/v1/namespaces/ns/pods/{name}"): answer,
        }
        with pytest.raises(ProviderError) as raised:
            faked.create_instance(OFFER, launch_spec(faked, name))
        assert type(raised.value) is at_create
        if at_get is not None:
            with pytest.raises(ProviderError) as raised:
                faked.get_instance(f"ns/{name}")
            assert type(raised.value) is at_get

    def test_a_server_that_cannot_be_reached_is_transient_also_at_create(self, api: FakeApi, faked: Kubernetes) -> None:
        api.close()
        with pytest.raises(Transient, match="cannot be reached"):
            faked.create_instance(OFFER, launch_spec(faked, lease_name()))
        api.server = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)  # for the fixture to close
        threading.Thread(target=api.server.serve_forever, args=(0.05,), daemon=True).start()

    def test_a_page_that_expired_makes_the_listing_incomplete_and_not_short(
        self, api: FakeApi, faked: Kubernetes
    ) -> None:
        api.answers = {
            ("GET", "/api/v1/namespaces/ns"): (200, {"metadata": {"uid": "1"}}, {}),
            ("GET", "/api/v1/namespaces/ns/secrets"): (200, {"items": []}, {}),
            ("GET", "/api/v1/namespaces/ns/pods"): (410, {"message": "expired", "reason": "Expired"}, {}),
        }
        listing = faked.list_instances("pg-")
        assert [unread.scope for unread in listing.incomplete] == ["ns"]

    def test_a_kubeconfig_that_is_not_there_is_said_in_one_sentence(self, tmp_path: Path) -> None:
        driver = Kubernetes(KubernetesCredentials(kubeconfig=str(tmp_path / "none")))
        with pytest.raises(AuthFailed, match="which the account's block names, is not on this worker"):
            driver.account_id()

    def test_an_id_that_is_none_is_not_found(self, faked: Kubernetes) -> None:
        for wrong in ("", "pod", "../../x", "a/b/c", "ns/../x"):
            with pytest.raises(NotFound):
                faked.get_instance(wrong)
