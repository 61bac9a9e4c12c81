"""The rights that docs/kubernetes-rbac.yaml grants, on the real cluster."""

from __future__ import annotations

import os
from pathlib import Path

import httpx
import pytest
import yaml

pytest.importorskip("kubernetes", reason="needs the extra kubernetes")

from prefect_gpu.blocks.kubernetes import KubernetesCredentials
from prefect_gpu.providers.core.errors import (
    AuthFailed,
    InvalidRequest,
)
from prefect_gpu.providers.core.models import (
    InstanceState,
)
from prefect_gpu.providers.kubernetes.driver import Kubernetes
from tests.conformance import launch_spec, lease_name
from tests.fakes.kubernetes import Cluster
from tests.providers.kubernetes.on_cluster import H100, create, until


@pytest.mark.kubernetes
class TestRights:
    def test_the_manifest_grants_all_that_is_needed_and_the_identity(
        self, cluster: Cluster, driver: Kubernetes
    ) -> None:
        assert driver.missing_rights() == []
        uid = cluster.get("/api/v1/namespaces/kube-system")["metadata"]["uid"]
        assert driver.account_id() == uid

    def test_the_manifest_grants_nothing_beyond_its_namespace_but_reading_nodes(
        self, cluster: Cluster, tmp_path: Path
    ) -> None:
        path = Path(cluster.credentials(tmp_path).kubeconfig or "")
        token = yaml.safe_load(path.read_text())["users"][0]["user"]["token"]
        with httpx.Client(
            base_url=cluster.url, verify=False, headers={"authorization": f"Bearer {token}"}, trust_env=False
        ) as http:
            for forbidden in (
                "/api/v1/pods",
                "/api/v1/namespaces/default/pods",
                "/api/v1/namespaces/kube-system/secrets",
                "/api/v1/namespaces",
                "/api/v1/namespaces/default",
                "/api/v1/secrets",
            ):
                assert http.get(forbidden).status_code == 403, forbidden
            assert http.get("/api/v1/nodes").status_code == 200

    def test_a_missing_right_is_named_as_rbac_names_it(self, cluster: Cluster, tmp_path: Path) -> None:
        path = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{cluster.namespace}/roles/{cluster.namespace}"
        rules = cluster.get(path)["rules"]
        cluster.patch(path, {"rules": [rule for rule in rules if rule["resources"] != ["pods/exec"]]})
        try:
            driver = Kubernetes(cluster.credentials(tmp_path))
            assert driver.missing_rights() == [
                f"get pods/exec in {cluster.namespace}",
                f"create pods/exec in {cluster.namespace}",
            ]
            instance = until(driver, create(driver), InstanceState.RUNNING)
            with pytest.raises(AuthFailed, match="pods/exec"):
                driver.open_channel(instance).open("true")
            driver.terminate_instance(instance.id)
        finally:
            cluster.patch(path, {"rules": rules})

    def test_another_namespace_is_refused_with_the_right_that_is_missing(
        self, cluster: Cluster, tmp_path: Path
    ) -> None:
        driver = Kubernetes(cluster.credentials(tmp_path, namespace="default"))
        assert "create pods in default" in driver.missing_rights()
        offer = Kubernetes(cluster.credentials(tmp_path)).fetch_offers(H100)[0]
        with pytest.raises(AuthFailed, match='cannot create resource "pods"'):
            driver.create_instance(offer, launch_spec(driver, lease_name()))

    def test_a_namespace_that_is_gone_proves_no_absence(self) -> None:
        path = os.environ.get("PREFECT_GPU_TEST_KUBECONFIG")
        if not path:
            pytest.skip("no cluster: set PREFECT_GPU_TEST_KUBECONFIG to an administrator's kubeconfig")
        driver = Kubernetes(KubernetesCredentials(kubeconfig=path, namespace="no-such-namespace"))
        with pytest.raises(InvalidRequest, match="does not exist"):
            driver.get_instance(f"no-such-namespace/{lease_name()}")
        listing = driver.list_instances("pg-")
        assert [unread.scope for unread in listing.incomplete] == ["no-such-namespace"]
        with pytest.raises(InvalidRequest, match="namespace"):
            driver.create_instance(driver.fetch_offers(H100)[0], launch_spec(driver, lease_name()))
        assert "the namespace no-such-namespace does not exist" in " ".join(driver.missing_rights())

    def test_a_wrong_token_is_auth_failed(self, cluster: Cluster, tmp_path: Path) -> None:
        credentials = cluster.credentials(tmp_path)
        path = Path(credentials.kubeconfig or "")
        path.write_text(path.read_text().replace(cluster.token, "wrong"))
        with pytest.raises(AuthFailed, match="Unauthorized"):
            Kubernetes(credentials).missing_rights()
