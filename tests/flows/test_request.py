"""What a user may ask for: nonsense is refused in one sentence, before anything is bought."""

from __future__ import annotations

import pytest
from pydantic import SecretStr

from prefect_gpu.flows.run import request
from prefect_gpu.flows.run.request import Refused
from prefect_gpu.providers.core.requests import Requirements


@pytest.mark.parametrize("command", ["-n hello", "--version"])
def test_a_command_may_begin_with_a_dash_and_a_program_may_not(command: str) -> None:
    assert request.checked_command(command) == command
    with pytest.raises(Refused, match="is not a program: a command that is a list begins with one"):
        request.checked_command(command.split())


MANY = {f"BIG_{number}": "x" * 100_000 for number in range(105)}


@pytest.mark.parametrize(
    ("command", "env", "secrets"),
    [
        ("true", MANY, {}),
        ("true", {}, {name: SecretStr(value) for name, value in MANY.items()}),
        (("true", *MANY.values()), {}, {}),
    ],
    ids=["variables", "secrets", "words"],
)
def test_more_than_linux_starts_a_program_with_is_refused_with_the_limit(command, env, secrets) -> None:
    with pytest.raises(Refused, match=r"10\.0 MB together, .* more than 2 MB: keep them below 1 MB, and upload a file"):
        request.refuse_too_long(command, env, secrets)


def test_halves_that_are_too_much_together_are_refused() -> None:
    half = dict(list(MANY.items())[:6])
    with pytest.raises(Refused, match=r"1\.1 MB together"):
        request.refuse_too_long("true", half, {f"{name}_S": SecretStr(value) for name, value in half.items()})
    request.refuse_too_long("true", half, {})


@pytest.mark.parametrize(("value", "said"), [("x" * 131_072, "more than 128 KB"), ("a\0b", "NUL byte")])
def test_a_secret_that_no_environment_takes_is_refused_without_being_shown(value: str, said: str) -> None:
    with pytest.raises(Refused, match=f"TOKEN holds .*{said}") as refused:
        request.refuse_too_long("true", {}, {"TOKEN": SecretStr(value)})
    assert value not in str(refused.value)


@pytest.mark.parametrize(
    ("asked", "saved", "is_told"),
    [(["local"], {}, True), (["local"], {"aws": ["team"]}, False), (["local", "aws"], {}, False), (["aws"], {}, False)],
)
def test_who_has_no_account_is_told_what_to_type_next(
    asked: list[str], saved: dict[str, list[str]], is_told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request, "saved_accounts", lambda: saved)
    said = request.nothing_saved(asked)
    assert said == (
        " No account of a provider is saved: `prefect-gpu providers` shows what each asks, `prefect-gpu connect aws` saves one."
        if is_told
        else ""
    )


def test_a_hint_that_cannot_be_had_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks() -> None:
        raise ConnectionError("no API")

    monkeypatch.setattr(request, "saved_accounts", breaks)
    assert request.nothing_saved(["local"]) == ""


def test_what_the_library_asks_for_by_itself_is_no_request() -> None:
    with pytest.raises(Refused, match="nearest finds what does not fit"):
        request.checked_requirements("", None, Requirements(nearest=True))
