"""What is typed after `prefect-gpu run` becomes the flow's parameters, or one sentence says what to write instead."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

import pytest

from prefect_gpu.flows.terminal import asked, jobs
from prefect_gpu.flows.terminal.line import carry_out
from prefect_gpu.flows.terminal.messages import Wrong
from prefect_gpu.flows.terminal.options import of_flow


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The parameters that a line of `run` would start."""
    found: list[dict[str, Any]] = []

    def job(words: Any, parameters: dict[str, Any]) -> dict[str, Any]:
        found.append(kept(words, parameters))
        return found[-1]

    kept = asked.job
    monkeypatch.setattr(asked, "job", job)
    monkeypatch.setattr(jobs, "at_server", lambda *_, **__: 0)

    def line(*words: str) -> dict[str, Any]:
        assert carry_out(["run", *words]) == 0
        return found[-1]

    return line


@pytest.mark.parametrize("flow", ["provision", "plan"])
def test_every_parameter_of_the_flow_is_an_option_of_its_name(flow: str) -> None:
    function = getattr(importlib.import_module(f"prefect_gpu.flows.{flow}"), flow)
    parameters = set(inspect.signature(function.fn).parameters) - {"command"}
    options = of_flow(flow)
    assert {one.inside or one.name for one in options} == parameters
    assert len({one.name for one in options}) == len(options), "two of one name"
    assert all(one.help.strip(" .") for one in options)


def test_without_anything_a_small_job_runs_here_for_nothing(typed: Any) -> None:
    assert typed() == {"command": 'python3 -c "print(6*7)"', "providers": ["local"]}


def test_the_flags_are_the_flows_parameters(typed: Any) -> None:
    assert typed(
        *(
            "--gpu",
            "H100:8",
            "--max-price",
            "$20",
            "--providers",
            "aws",
            "--provider",
            "k8s",
            "--account",
            "team",
            "--order",
            "given",
        ),
        *("--spot", "either", "--regions", "eu-west-1", "--regions", "eu-west-2", "--min-cuda", "12.4", "--cpu", "8"),
        *("--files", "train.py", "--file", "my data", "--outputs", "*.pt", "--env", "MODE=fast", "--env", "A=b=c"),
        *(
            "--secret",
            "HF_TOKEN=hf",
            "--timeout-s",
            "60",
            "--options",
            "aws.volume_type=gp3",
            "--options",
            "aws.volume_gb=100",
        ),
        *("--", "python", "train.py", "--gpu", "0"),
    ) == {
        "command": ["python", "train.py", "--gpu", "0"],
        "gpu": "H100:8",
        "max_price": 20.0,
        "providers": ["aws", "kubernetes"],
        "account": "team",
        "order": "given",
        "requirements": {"spot": "either", "regions": ["eu-west-1", "eu-west-2"], "min_cuda": 12.4, "cpu": 8},
        "job": {
            "files": ["train.py", "my data"],
            "outputs": ["*.pt"],
            "env": {"MODE": "fast", "A": "b=c"},
            "secrets": {"HF_TOKEN": "hf"},
            "timeout_s": 60,
        },
        "options": {"aws": {"volume_type": "gp3", "volume_gb": 100}},
    }


def test_one_word_is_a_shell_line_and_options_may_stand_behind_it(typed: Any) -> None:
    assert typed("cd src && make", "--gpu", "H100") == {"command": "cd src && make", "gpu": "H100"}
    assert typed("--gpu", "H100", "nvidia-smi") == {"command": "nvidia-smi", "gpu": "H100"}


def test_a_job_of_ones_own_goes_wherever_it_is_cheapest(typed: Any) -> None:
    assert "providers" not in typed("--gpu", "H100", "nvidia-smi")


def test_a_variable_without_a_value_is_ones_own(typed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert typed("--env", "WANDB_MODE", "x")["job"]["env"] == {"WANDB_MODE": "offline"}


def test_an_account_for_each_provider(typed: Any) -> None:
    assert typed("--account", "aws=team", "--account", "k8s=lab", "x")["account"] == {
        "aws": "team",
        "kubernetes": "lab",
    }


@pytest.mark.parametrize("price", ["cheap", "nan", "inf", "-inf", "-1"])
def test_a_price_that_limits_nothing_is_refused(typed: Any, price: str) -> None:
    with pytest.raises(
        Wrong, match=rf"^--max-price {price} is not a price: write USD per hour, for example --max-price 20\.$"
    ):
        typed("--max-price", price, "x")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--max-price=", "x"], "--max-price  is empty, which would be no limit: write USD per hour"),
        (["--gpus", "H100", "x"], "Unknown option: --gpus. Did you mean --gpu?"),
        (["--provider", "gpc", "x"], "There is no provider 'gpc': write one or some of local, ssh, aws"),
        (["--gpu", "H100"], "Say what to run on H100: prefect-gpu run --gpu H100 -- nvidia-smi. "),
        (["python", "train.py", "--lr", "3"], "Is --lr for the job or for prefect-gpu? Write what is for prefect-gpu first, and"),
        (["train.sh", "--gpu", "H100"], "Is --gpu for the job or for prefect-gpu?"),
        (["--spot", "maybe", "x"], 'Invalid value "maybe" for --spot. Choose from'),
        (["--cpu", "many", "x"], 'Invalid value for --cpu: unable to convert "many" into int.'),
        (["--env", "=x", "x"], "--env =x: write NAME=value."),
        (["--options", "volume=3", "x"], "--options volume=3: write PROVIDER.NAME=VALUE"),
        (["--gpu"], 'Command "run" parameter --gpu requires an argument.'),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_one_sentence(typed: Any, words: list[str], says: str) -> None:
    with pytest.raises(Wrong) as said:
        typed(*words)
    assert str(said.value).startswith(says)
    assert "\n" not in str(said.value)


def test_a_command_that_there_is_none_of() -> None:
    with pytest.raises(Wrong, match=r'^Unknown command "rum"\. Did you mean "run"\?'):
        carry_out(["rum"])
