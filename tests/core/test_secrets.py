"""Values of Secret blocks as a job gets them."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from prefect_gpu.providers.core.renting import accounts


@pytest.mark.parametrize(
    ("saved", "given"),
    [("text", "text"), ({"user": "ü", "port": 1}, '{"user": "ü", "port": 1}'), ([1, None], "[1, null]"), (7, "7")],
)
def test_what_is_not_a_string_is_json(monkeypatch: pytest.MonkeyPatch, saved: object, given: str) -> None:
    """Python's repr is read by no job."""
    monkeypatch.setattr(accounts.Secret, "load", lambda name, _sync: SimpleNamespace(get=lambda: saved))
    value = accounts.secrets({"TOKEN": "team-token"})["TOKEN"].get_secret_value()
    assert value == given
    assert isinstance(saved, str) or json.loads(value) == saved
