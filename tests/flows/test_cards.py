"""What a run is called, and the three cards that it leaves for a person."""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID, uuid4

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.utilities.names import generate_slug

from prefect_gpu.flows.run import cards, naming
from prefect_gpu.flows.run.attempt import CURRENT, GONE, OWED, Attempt
from prefect_gpu.providers.core.gpu.request import parse_gpu
from prefect_gpu.providers.core.models import JobResult, utc_now
from prefect_gpu.providers.core.requests import Requirements

NOW = utc_now()


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("python train.py --epochs 3", "train"),
        ("cd work && PYTHONPATH=. python -u src/fine_tune.py", "fine-tune"),
        (("python", "-m", "pkg.train"), "train"),
        ("torchrun --nproc_per_node 8 pretrain.py", "pretrain"),
        ("bash ./run.sh", "run"),
        ("nvidia-smi -L", "nvidia-smi"),
        ("CUDA_VISIBLE_DEVICES=0 /opt/bin/serve", "serve"),
        ('python3 -c "print(6*7)"', "python3"),
        ("python3 -c 'import train.py'", "python3"),
        ("exec env A=1 ./Mixed_Case", "mixed-case"),
        ("echo 'not closed", "echo"),
        ("☃", ""),
        ("x" * 100_000, "x" * 24),
    ],
)
def test_a_command_is_called_by_what_runs(command: str | tuple[str, ...], name: str) -> None:
    assert naming.what_runs(command) == name


def test_a_run_is_called_by_what_it_does() -> None:
    assert naming.named("H100:8", "aws", "python train.py") == "h100x8-aws-train"
    assert naming.named("RTX PRO 6000:1", "verda", "nvidia-smi") == "rtx-pro-6000x1-verda-nvidia-smi"
    assert naming.named("none", "local", "☃") == "cpu-local"


def test_every_name_that_prefect_makes_up_is_known_and_a_persons_is_not() -> None:
    assert all(naming.is_made_up(generate_slug(2)) for _ in range(500))
    assert not any(
        map(naming.is_made_up, ("nightly-train", "h100x8-aws-train", "otter", "", "brave-otter-2", "brave-"))
    )


@flow(name="naming-test")
def renamed(new: str, earlier: set[str]) -> None:
    from prefect.context import FlowRunContext

    context = FlowRunContext.get()
    assert context is not None
    assert context.flow_run is not None
    naming.rename(context.flow_run.id, new, earlier)


@pytest.mark.parametrize(
    ("before", "after"),
    [(None, "h100x8-aws-train"), ("nightly-train", "nightly-train"), ("h100x8-gcp-train", "h100x8-aws-train")],
    ids=["made up", "a person's", "ours, on the provider before"],
)
@pytest.mark.usefixtures("prefect_api")
def test_only_a_name_that_nobody_gave_is_changed(before: str | None, after: str) -> None:
    named = renamed.with_options(flow_run_name=before) if before else renamed
    state = named("h100x8-aws-train", {"h100x8-gcp-train"}, return_state=True)
    with get_client(sync_client=True) as client:
        assert client.read_flow_run(state.state_details.flow_run_id).name == after


def attempt(number: int, **fields: object) -> Attempt:
    usual = {
        "attempt": number, "name": f"pg-{number}", "provider": "aws", "account": "default", "account_id": "1", "scope": "us-east-1a",
        "machine": "p5.48xlarge", "gpu": "H100:8", "spot": False, "price": 36.0, "ordered_at": NOW, "instance_id": f"i-{number}",
    }  # fmt: skip
    return Attempt.model_validate({**usual, **fields})


def test_what_it_cost_counts_failed_orders_too_and_says_what_is_still_open() -> None:
    gone = NOW + timedelta(minutes=41)
    attempts = [
        attempt(0, outcome="boot failed", why="never | answered", gone_at=gone, cost=24.6, estimate=20.0),
        attempt(1, outcome="sold out", why="none left", instance_id=None, gone_at=NOW, cost=0.0),
        attempt(2, outcome=GONE, gone_at=gone, cost=24.6),
    ]
    page = cards.cost(attempts)
    assert "**At most $49.20** for 3 orders" in page
    assert "**Probably $44.60**" in page
    assert "| 1 | aws | p5.48xlarge | us-east-1a | 36.00 |" in page
    assert "| 41 min | $24.60 | $20.00 | boot failed: never \\| answered |" in page
    assert "|  | $0.00 |  | sold out: none left |" in page
    assert "gone yet" not in page
    assert "Not confirmed gone yet" in cards.cost([attempt(3, outcome=OWED, cost=3.0)])
    assert "$0.00" in cards.cost([attempt(4, outcome=CURRENT)])


RUN = uuid4()


def result(**fields: object) -> JobResult:
    usual = {"exit_code": 0, "outcome": "exited", "started_at": NOW, "ended_at": NOW, "log_bytes": 12}
    return JobResult.model_validate({**usual, **fields})


def test_where_the_files_are_says_how_to_bring_them() -> None:
    page = cards.files(RUN, "exit 0 in 41 min", result(stored_under="prefect-gpu/x/0", outputs=("model.pt", "a|b")))
    assert f"`prefect-gpu fetch {RUN}`" in page
    assert "| file | `model.pt` |" in page
    assert "`a\\|b`" in page
    assert "asked for no files" not in page
    assert "asked for no files" in cards.files(RUN, "exit 0", result(stored_under="prefect-gpu/x/0"))
    many = cards.files(RUN, "exit 0", result(stored_under="x", outputs=tuple(f"f{n}" for n in range(60))))
    assert "and 10 more" in many
    nothing = cards.files(UUID(int=0), "lost", result(exit_code=None, outcome="lost", trouble="it went"))
    assert "fetch" not in nothing
    assert "| trouble | it went |" in nothing


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (Requirements(), "any machine"),
        (Requirements(max_price=2.0), "any machine under $2/h"),
        (Requirements(gpu=parse_gpu("H100:8")), "H100:8"),
    ],
)
def test_what_was_asked_for_is_said_as_a_person_says_it(asked: Requirements, said: str) -> None:
    assert f"none. Asked for: **{said}**." in cards.tried("none", asked, [], [], [], {})
