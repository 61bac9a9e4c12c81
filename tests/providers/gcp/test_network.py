"""Who reaches machines: two rules that admit SSH from where the block says and nothing else."""

from __future__ import annotations

import pytest

from prefect_gpu.blocks.network import Network
from prefect_gpu.providers.core.errors import InvalidRequest, ProviderError, QuotaExceeded, RegionClosed, Transient
from prefect_gpu.providers.gcp.driver import Gcp
from tests.conformance import launch_spec, lease_name
from tests.fakes.gcp import FakeGcp
from tests.fakes.gcp.project import PROJECT, error
from tests.providers.gcp.conftest import gcp, offer_of


def order(driver: Gcp, realm: str = "conf") -> None:
    driver.create_instance(offer_of("e2-standard-4"), launch_spec(driver, lease_name(realm)))


def test_one_rule_admits_ssh_and_the_next_denies_the_rest_before_those_of_the_network(cloud: FakeGcp) -> None:
    order(gcp(cloud, network=Network(ssh_from=["203.0.113.7", "198.51.100.0/24", "2001:db8::/32"])))
    admits, denies = (cloud.firewalls[name] for name in sorted(cloud.firewalls))
    (tag,) = cloud.vms[0].body["tags"]["items"]
    assert admits["name"] == tag
    assert tag.startswith("prefect-gpu-conf-")
    assert {key: admits[key] for key in ("direction", "priority", "sourceRanges", "allowed", "targetTags")} == {
        "direction": "INGRESS", "priority": 900, "sourceRanges": ["198.51.100.0/24", "203.0.113.7/32"], "targetTags": [tag],
        "allowed": [{"IPProtocol": "tcp", "ports": ["22"]}],
    }  # fmt: skip
    assert {key: denies[key] for key in ("direction", "priority", "sourceRanges", "denied", "targetTags")} == {
        "direction": "INGRESS", "priority": 901, "sourceRanges": ["0.0.0.0/0"], "targetTags": [tag], "denied": [{"IPProtocol": "all"}],
    }  # fmt: skip


def test_rules_are_made_once_for_a_realm_and_what_it_admits(cloud: FakeGcp) -> None:
    for _ in range(3):
        order(gcp(cloud))
    assert len(cloud.firewalls) == 2
    order(gcp(cloud, network=Network(ssh_from=["203.0.113.0/24"])))
    assert len(cloud.firewalls) == 4
    order(gcp(cloud), "cone")
    assert len(cloud.firewalls) == 6


@pytest.mark.parametrize(
    "change",
    [
        {"sourceRanges": ["0.0.0.0/0", "10.0.0.0/8"]}, {"disabled": True}, {"targetTags": ["web"]}, {"direction": "EGRESS"}, {"priority": 2000},
        {"allowed": [{"IPProtocol": "all"}]}, {"network": f"projects/{PROJECT}/global/networks/other"},
    ],
)  # fmt: skip
def test_a_rule_that_somebody_changed_or_made_first_is_not_used(cloud: FakeGcp, change: dict[str, object]) -> None:
    order(gcp(cloud))
    name = min(cloud.firewalls)
    cloud.firewalls[name] |= change
    with pytest.raises(RegionClosed, match=f"the firewall rule {name} is not as it was made") as refused:
        order(gcp(cloud))
    assert (refused.value.reach, cloud.creates) == ("provider", 1)


def test_another_worker_that_is_first_is_no_trouble(cloud: FakeGcp) -> None:
    order(gcp(cloud))
    cloud.next["other"] = error(404, "notFound", "The resource was not found")  # the image: asked again by each driver
    rules = dict(cloud.firewalls)
    served = cloud._served

    def late(verb: str, path: str, params: dict[str, str], body: object) -> tuple[int, object]:
        if verb == "GET" and "/firewalls/" in path and path.rpartition("/")[2] not in cloud.firewalls:
            answer = served(verb, path, params, body)
            cloud.firewalls.update(rules)  # made between our look and our order
            return answer
        return served(verb, path, params, body)

    cloud.next.clear()
    cloud.firewalls.clear()
    cloud._served = late  # type: ignore[method-assign]
    order(gcp(cloud))
    assert cloud.firewalls == rules


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (error(403, "quotaExceeded", "Quota 'FIREWALLS' exceeded.  Limit: 100.0 globally."), QuotaExceeded),
        (error(403, "forbidden", "Required 'compute.firewalls.create' permission"), ProviderError),
        (error(503, "backendError", "Try again"), Transient),
    ],
)
def test_a_rule_that_cannot_be_made_is_said_and_nothing_is_bought(
    cloud: FakeGcp, answer: tuple[int, dict[str, object]], kind: type[ProviderError]
) -> None:
    cloud.next["firewalls"] = answer
    with pytest.raises(kind):
        order(gcp(cloud))
    assert cloud.creates == 0


def test_a_rule_that_is_not_finished_in_time_is_waited_for_before_anything_is_bought(cloud: FakeGcp) -> None:
    cloud.next["wait"] = (200, {"name": "operation-x", "status": "RUNNING"})
    with pytest.raises(Transient, match="has not finished to make the firewall rule prefect-gpu-conf-"):
        order(gcp(cloud))
    assert cloud.creates == 0
    order(gcp(cloud))
    assert cloud.creates == 1


def test_sources_that_no_machine_of_google_s_has_are_refused(cloud: FakeGcp) -> None:
    with pytest.raises(InvalidRequest, match="the block's ssh_from needs a range"):
        order(gcp(cloud, network=Network(ssh_from=["2001:db8::/32"])))
    assert (cloud.creates, cloud.firewalls) == (0, {})
