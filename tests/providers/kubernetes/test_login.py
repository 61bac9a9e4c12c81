"""The account's credentials: proxies, certificates, tokens that are renewed, kubeconfigs that are not there."""

from __future__ import annotations

import base64
import json
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

pytest.importorskip("kubernetes", reason="needs the extra kubernetes")

from prefect_gpu.blocks.kubernetes import KubernetesCredentials, KubernetesMount
from prefect_gpu.providers.core.errors import (
    AuthFailed,
    InvalidRequest,
    LinkLost,
    NotReady,
    ProviderError,
    Transient,
)
from prefect_gpu.providers.core.requests import Requirements
from prefect_gpu.providers.kubernetes.connection import PodConnection
from prefect_gpu.providers.kubernetes.driver import Kubernetes
from tests.conformance import lease_name
from tests.fakes.kubernetes_api import (
    READY,
    FakeApi,
    certificate,
    pod_status,
    write_kubeconfig,
)


class TestProxies:
    def test_a_proxys_user_and_password_are_sent_for_commands_too(self, api: FakeApi, tmp_path: Path) -> None:
        asked: list[str] = []

        class Proxy(BaseHTTPRequestHandler):
            def do_CONNECT(self) -> None:
                asked.append(self.headers.get("proxy-authorization", ""))
                self.send_error(502)

            def log_message(self, *_: object) -> None: ...

        with ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as proxy:
            threading.Thread(target=proxy.serve_forever, args=(0.05,), daemon=True).start()
            url = f"http://us%40er:p%3Ass@127.0.0.1:{proxy.server_port}"
            cluster = {"server": "https://api.example:6443", "proxy-url": url}
            driver = Kubernetes(write_kubeconfig(tmp_path / "kubeconfig", cluster, {}))
            with pytest.raises(Transient) as by_request:
                driver.account_id()
            link = PodConnection(driver._logins.endpoint, "ns", "p", "job", lambda: True)
            with pytest.raises(LinkLost) as by_command:
                link.open("true")
            proxy.shutdown()
        assert [base64.b64decode(one.removeprefix("Basic ")) for one in asked] == [
            b"us@er:p:ss"
        ] * 4  # a GET is asked three times
        assert "p:ss" not in f"{by_request.value}{by_command.value}"

    @pytest.mark.parametrize(
        "url", ["socks5://user:hunter2@proxy.example:1080", "https://user:hunter2@proxy.example:443"]
    )
    def test_a_proxy_that_commands_cannot_go_through_is_refused_before_anything_is_bought(
        self, api: FakeApi, tmp_path: Path, url: str
    ) -> None:
        block = write_kubeconfig(tmp_path / "kubeconfig", {"server": api.url, "proxy-url": url}, {})
        with pytest.raises(InvalidRequest, match="http://") as raised:
            Kubernetes(block).fetch_offers(Requirements())
        assert "hunter2" not in str(raised.value)
        assert api.seen == []


class TestCredentialsThatChange:
    UID = (200, {"metadata": {"uid": "the-uid"}}, {"connection": "close"})

    @pytest.fixture
    def tls(self, tmp_path: Path) -> Iterator[FakeApi]:
        """Asks for a client's certificate and refuses as the API server does: not by TLS, but by 401."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate(tmp_path, "server"))
        context.verify_mode = ssl.CERT_OPTIONAL
        for name in ("old", "new"):
            context.load_verify_locations(certificate(tmp_path, name)[0])
        fake = FakeApi(context)
        fake.answers["GET", "/api/v1/namespaces/kube-system"] = self.UID
        yield fake
        fake.close()

    @pytest.mark.parametrize("how", ["files", "data", "plugin"])
    def test_a_client_certificate_that_was_renewed_is_taken_up_without_a_failed_call(
        self, tls: FakeApi, tmp_path: Path, how: str
    ) -> None:
        path, ca = tmp_path / "kubeconfig", {"server": tls.url, "certificate-authority": str(tmp_path / "server.crt")}

        def issue(name: str) -> KubernetesCredentials:
            texts = [(tmp_path / f"{name}.{kind}").read_text() for kind in ("crt", "key")]
            if how == "files":
                for kind, text in zip(("crt", "key"), texts, strict=True):
                    (tmp_path / f"client.{kind}").write_text(text)
                user: dict[str, Any] = {
                    "client-certificate": str(tmp_path / "client.crt"),
                    "client-key": str(tmp_path / "client.key"),
                }
            elif how == "data":
                data = [base64.b64encode(text.encode()).decode() for text in texts]
                user = dict(zip(("client-certificate-data", "client-key-data"), data, strict=True))
            else:
                version = "client.authentication.k8s.io/v1"
                status = dict(zip(("clientCertificateData", "clientKeyData"), texts, strict=True))
                answer = {"apiVersion": version, "kind": "ExecCredential", "status": status}
                (tmp_path / "answer.json").write_text(json.dumps(answer))
                plugin = {"command": "cat", "args": [str(tmp_path / "answer.json")], "apiVersion": version}
                user = {"exec": {**plugin, "interactiveMode": "Never"}}
            return write_kubeconfig(path, ca, user)

        driver = Kubernetes(issue("old"))
        tls.knows = lambda _, name: name == "old"
        assert driver.account_id() == "the-uid"
        issue("new")
        tls.knows = lambda _, name: name == "new"
        assert driver.account_id() == "the-uid"
        assert len(tls.seen) == 3

    def test_a_cluster_with_a_new_certificate_is_believed_when_the_kubeconfig_says_so(
        self, tls: FakeApi, tmp_path: Path
    ) -> None:
        path, server = tmp_path / "kubeconfig", tmp_path / "server.crt"
        driver = Kubernetes(write_kubeconfig(path, {"server": tls.url, "certificate-authority": str(server)}, {}))
        assert driver.account_id() == "the-uid"
        old = server.read_text()
        assert isinstance(tls.server.socket, ssl.SSLSocket)
        tls.server.socket.context.load_cert_chain(*certificate(tmp_path, "server"))
        assert driver.account_id() == "the-uid"
        server.write_text(old)
        with pytest.raises(InvalidRequest, match="certificate is not trusted"):
            Kubernetes(driver.credentials).account_id()

    def test_credentials_that_are_refused_and_the_same_as_before_are_sent_once(
        self, api: FakeApi, faked: Kubernetes
    ) -> None:
        api.answers["GET", "/api/v1/namespaces/kube-system"] = self.UID
        api.knows = lambda *_: False
        with pytest.raises(AuthFailed):
            faked.account_id()
        assert len(api.seen) == 1

    def test_a_kubeconfig_that_is_half_written_is_an_error_of_ours_and_read_again_by_the_next_call(
        self, tls: FakeApi, tmp_path: Path
    ) -> None:
        paths = {
            f"client-{kind}": str(tmp_path / f"old.{end}") for kind, end in (("certificate", "crt"), ("key", "key"))
        }
        ca = {"server": tls.url, "certificate-authority": str(tmp_path / "server.crt")}
        block = write_kubeconfig(tmp_path / "kubeconfig", ca, paths)
        driver = Kubernetes(block)
        tls.knows = lambda _, name: name == "old"
        assert driver.account_id() == "the-uid"
        tls.knows = lambda _, name: name == "new"
        (tmp_path / "old.crt").write_text((tmp_path / "new.crt").read_text())  # its key is still to come
        with pytest.raises(AuthFailed, match="Unauthorized"):
            driver.account_id()
        with pytest.raises(AuthFailed, match="cannot be used on this worker"):
            Kubernetes(block).account_id()
        (tmp_path / "old.key").write_text((tmp_path / "new.key").read_text())
        assert driver.account_id() == "the-uid"

    def test_commands_on_a_pod_use_the_new_credentials_too(
        self, api: FakeApi, faked: Kubernetes, tmp_path: Path
    ) -> None:
        name = lease_name()
        pod = pod_status(
            phase="Running",
            containerStatuses=[{"name": "job", **READY}],
            conditions=[{"type": "Ready", "status": "True"}],
        )
        pod["metadata"] = {"name": name, "namespace": "ns"}
        path = f"/api/v1/namespaces/ns/pods/{name}"
        api.answers = {("GET", path): (200, pod, {}), ("GET", f"{path}/exec"): (500, {"message": "not yet"}, {})}
        link = faked.open_channel(faked.get_instance(f"ns/{name}"))
        write_kubeconfig(tmp_path / "kubeconfig", {"server": api.url}, {"token": "renewed"})
        api.knows = lambda authorization, _: authorization == "Bearer renewed"
        assert link.is_alive()
        with pytest.raises(NotReady, match="not yet"):
            link.open("true")


class TestBlock:
    def test_a_mount_is_exactly_one_thing(self) -> None:
        with pytest.raises(ValidationError, match="exactly one"):
            KubernetesMount(path="/x")
        with pytest.raises(ValidationError, match="exactly one"):
            KubernetesMount(path="/x", claim="a", secret="b")

    def test_the_blocks_of_prefect_kubernetes_are_used_as_they_are(self, api: FakeApi) -> None:
        from prefect_kubernetes.credentials import KubernetesClusterConfig
        from prefect_kubernetes.credentials import KubernetesCredentials as Theirs

        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "c", "cluster": {"server": api.url}}],
            "users": [{"name": "u", "user": {"token": "t"}}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        }
        saved = KubernetesClusterConfig(config=config, context_name="x")
        api.answers[("GET", "/api/v1/namespaces/kube-system")] = (200, {"metadata": {"uid": "the-uid"}}, {})
        for block in (
            KubernetesCredentials(cluster_config=saved),
            KubernetesCredentials(kubernetes=Theirs(cluster_config=saved)),
        ):
            assert Kubernetes(block).account_id() == "the-uid"


class TestWhatIsNotThere:
    """Each is one sentence that says where it was looked for and what to write."""

    @pytest.fixture(autouse=True)
    def _a_home_without_a_kubeconfig(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.delenv("KUBECONFIG", raising=False)

    def test_no_kubeconfig_at_all(self, tmp_path: Path) -> None:
        with pytest.raises(AuthFailed) as raised:
            Kubernetes(KubernetesCredentials()).account_id()
        assert f"{tmp_path}/.kube/config is not on this worker" in raised.value.message
        assert "not in a cluster" in raised.value.message
        assert "the field kubeconfig" in raised.value.message

    def test_one_that_only_the_environment_names_is_not_read_and_that_is_said(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("KUBECONFIG", "/etc/kube/admin.conf")
        with pytest.raises(AuthFailed, match=r"KUBECONFIG is not read: write /etc/kube/admin\.conf"):
            Kubernetes(KubernetesCredentials()).account_id()

    def test_a_context_that_is_not_in_it_is_answered_by_those_that_are(self, tmp_path: Path) -> None:
        block = write_kubeconfig(tmp_path / "kubeconfig", {"server": "https://127.0.0.1:1"}, {})
        with pytest.raises(AuthFailed, match="its contexts are x"):
            Kubernetes(block.model_copy(update={"context": "prod"})).account_id()
        assert block.contexts() == ["x"]

    @pytest.mark.parametrize("text", ["", "[", "just words", "- a list", "\x00", "clusters: 5", "a: &a [*a]"])
    def test_a_file_that_is_no_kubeconfig(self, tmp_path: Path, text: str) -> None:
        path = tmp_path / "kubeconfig"
        path.write_text(text)
        with pytest.raises(AuthFailed, match="cannot be used on this worker") as raised:
            Kubernetes(KubernetesCredentials(kubeconfig=str(path))).account_id()
        assert "\n" not in raised.value.message
        assert len(raised.value.message) < 700

    def test_a_credential_plugin_that_is_not_installed_is_named(self, tmp_path: Path) -> None:
        plugin = {
            "command": "no-such-plugin",
            "apiVersion": "client.authentication.k8s.io/v1",
            "interactiveMode": "Never",
        }
        block = write_kubeconfig(tmp_path / "kubeconfig", {"server": "https://127.0.0.1:1"}, {"exec": plugin})
        with pytest.raises(ProviderError) as raised:
            Kubernetes(block).account_id()
        assert isinstance(raised.value, AuthFailed | Transient)
