"""Whatever a node, a pod or an event says, nothing comes of it but an offer, a state or a sentence within bounds."""

from __future__ import annotations

import math
from datetime import datetime
from typing import Any

import pytest

pytest.importorskip("kubernetes", reason="needs the extra kubernetes")

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prefect_gpu.blocks.kubernetes import KubernetesCredentials
from prefect_gpu.providers.core.gpu.request import parse_gpu
from prefect_gpu.providers.core.models import InstanceState, Offer, utc_now
from prefect_gpu.providers.core.requests import Requirements
from prefect_gpu.providers.kubernetes import events, listing, offers
from prefect_gpu.providers.kubernetes.objects import as_number, as_text, instant, quantity, requests
from prefect_gpu.providers.kubernetes.order import why_not_ours
from prefect_gpu.providers.kubernetes.pod_state import state_of, wants_events, with_cause
from tests.conformance import lease_name
from tests.fakes.kubernetes_api import node

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=40) | st.just("9" * 400),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=6,
)
SPOILED = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def of(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """An object with some of these fields, each as it should be or anything at all."""
    return st.fixed_dictionaries({}, optional={name: one | ANYTHING for name, one in fields.items()})


WORDS = st.sampled_from(
    ["job", "True", "False", "Ready", "PodScheduled", "Running", "Pending", "Failed", "ErrImagePull", "2030-01-01"]
)
STATE = of(waiting=of(reason=WORDS, message=WORDS), running=of(), terminated=of(exitCode=st.integers(), reason=WORDS))
CONTAINER = of(name=WORDS, image=WORDS, ready=st.booleans(), state=STATE)
RESOURCES = st.dictionaries(
    st.sampled_from(["cpu", "memory", "pods", "nvidia.com/gpu", "nvidia.com/mig-1g.5gb", "amd.com/gpu"]),
    st.sampled_from(["1", "8", "1e9", "64Gi", "-5", "1e99", "NaN", "9" * 400]) | ANYTHING,
)
NODE = of(
    metadata=of(
        name=WORDS,
        labels=st.dictionaries(st.sampled_from(["nvidia.com/gpu.product", "nvidia.com/gpu.memory"]), WORDS | ANYTHING),
    ),
    spec=of(taints=st.lists(of(key=WORDS, effect=WORDS), max_size=2), unschedulable=st.booleans()),
    status=of(
        allocatable=RESOURCES, conditions=st.lists(of(type=WORDS, status=WORDS, lastTransitionTime=WORDS), max_size=2)
    ),
)
POD = of(
    metadata=of(name=WORDS, namespace=WORDS, annotations=st.dictionaries(st.sampled_from(["prefect-gpu/price"]), WORDS | ANYTHING)),
    spec=of(nodeName=WORDS, containers=st.lists(of(name=WORDS, command=st.lists(WORDS), resources=of(requests=RESOURCES)), max_size=2)),
    status=of(
        phase=WORDS,
        conditions=st.lists(of(type=WORDS, status=WORDS, lastTransitionTime=WORDS), max_size=2),
        containerStatuses=st.lists(CONTAINER, max_size=2),
        initContainerStatuses=st.lists(CONTAINER, max_size=2),
    ),
)  # fmt: skip


class OneCluster:
    """What `offers.fetch` asks of the API."""

    def __init__(self, nodes: list[Any], pods: list[Any]) -> None:
        self.answers = {"/api/v1/nodes": nodes, "/api/v1/pods": pods}

    def rows(self, path: str, *_: object, **__: object) -> list[Any]:
        return [one for one in self.answers[path] if isinstance(one, dict)]


@SPOILED
@given(NODE, POD, st.sampled_from(["", "..", "..:1..", "24GB.."]))
def test_a_node_of_any_shape_spoils_no_offer_of_another(raw: Any, pod: Any, gpu: str) -> None:
    good = node(
        {"nvidia.com/gpu": "8"},
        {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3", "nvidia.com/gpu.memory": "81559"},
        name="good",
    )
    asked = Requirements(gpu=parse_gpu(gpu))
    found = offers.fetch(OneCluster([raw, good], [pod]), KubernetesCredentials(), asked, 500)  # type: ignore[arg-type]
    assert any(offer.cpu == 8 for offer in found)
    assert len(found) <= 12
    for offer in found:
        Offer.model_validate_json(offer.model_dump_json())
        assert 0 <= offer.gpu_count <= 1024
        assert all(math.isfinite(one) for one in (offer.cpu or 0, offer.memory_gb or 0, offer.gpu_memory_gb or 0))


@SPOILED
@given(POD, st.floats(0, 600))
def test_a_pod_of_any_shape_is_a_state_and_a_sentence(pod: Any, patience_s: float) -> None:
    pod = pod if isinstance(pod, dict) else {}
    now = utc_now()
    state, reason = state_of(pod, now, patience_s)
    assert isinstance(state, InstanceState)
    assert "\n" not in reason
    assert len(reason) < 1500
    if (waiting := wants_events(pod, state)) is not None:
        assert len(with_cause(state, "x" * 900, waiting, now)[1]) <= 500
    seen = listing.instance_of(pod, now, "kubernetes", patience_s)
    assert seen.price is not None
    assert 0 <= seen.price <= 1e6
    assert why_not_ours(pod, lease_name()) is not None
    assert all(amount >= 0 for amount in requests(pod["spec"] if isinstance(pod.get("spec"), dict) else {}).values())


@SPOILED
@given(
    st.lists(
        of(type=WORDS, reason=WORDS, message=WORDS, lastTimestamp=WORDS, series=of(lastObservedTime=WORDS)), max_size=4
    )
)
def test_events_of_any_shape_are_a_sentence_or_nothing(told: list[Any]) -> None:
    assert len(events.cause([one for one in told if isinstance(one, dict)])) <= 500


@given(ANYTHING)
def test_anything_is_text_a_number_and_a_time_or_none(value: Any) -> None:
    assert len(as_text(value)) <= 500
    assert isinstance(as_number(value), int)
    assert 0 <= quantity(value) <= 2.0**63
    moment = instant(value)
    assert moment is None or (isinstance(moment, datetime) and moment.tzinfo is not None)
