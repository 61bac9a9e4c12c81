"""The fake of Vast.ai proved by Vast.ai's own client: what it searches, rents, lists, looks at, reads and destroys there.

That is the command `vastai`, whose code is of one generation up to 0.2 and of another from 1.0 on: both go through the same here.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from prefect_gpu.providers.core.models import InstanceState
from tests.conformance import lease_name
from tests.fakes.vastai import FakeVastai
from tests.providers.test_vastai import KEY, SPOT, _quick, cloud, order, vastai

__all__ = ["_quick", "cloud"]

Client = Callable[..., str]


@pytest.fixture
def client(cloud: FakeVastai, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Client:
    """One command of `vastai` as it is typed; what it prints. Its requests go to the fake, and it writes to no home of anybody's."""
    requests = pytest.importorskip("requests", reason="Vast.ai's client sends with it")
    if importlib.util.find_spec("vastai") is None:
        pytest.skip("needs Vast.ai's client: vastai")
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(cloud, "hold_to_the_document", lambda *_: None)  # it sends more than the document says
    monkeypatch.setattr("time.sleep", lambda _: None)
    monkeypatch.setattr("builtins.input", lambda _: "y")

    def send(_: Any, prepared: Any, **__: Any) -> Any:
        headers, content = dict(prepared.headers), prepared.body or b""
        asked = httpx.Request(prepared.method, prepared.url, headers=headers, content=content)
        is_of_names = asked.url.path == "/api/v0/gpu_names/unique/"  # which the older one asks for when it is imported
        answered = httpx.Response(200, json={"gpu_names": ["H100 SXM"]}) if is_of_names else cloud.answer(asked)
        response = requests.Response()
        response.status_code, response.url, response.request = answered.status_code, prepared.url, prepared
        response.headers.update(answered.headers)
        response.raw = io.BytesIO(answered.read())
        return response

    monkeypatch.setattr("requests.adapters.HTTPAdapter.send", send)

    def typed(*arguments: str, last: tuple[str, ...] = ()) -> str:
        for name in [one for one in sys.modules if one == "vastai" or one.startswith("vastai.")]:
            monkeypatch.delitem(sys.modules, name)  # it runs one command
        is_newer = importlib.util.find_spec("vastai.cli") is not None
        main = importlib.import_module("vastai.cli.main" if is_newer else "vastai.vast").main
        monkeypatch.setattr(sys, "argv", ["vastai", *arguments, "--api-key", KEY, "--raw", *last])
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
            main()
        return printed.getvalue()

    return typed


def test_vast_ai_s_own_client_rents_lists_sees_and_destroys_what_the_fake_has(
    client: Client, cloud: FakeVastai
) -> None:
    query = "gpu_name=H100_SXM num_gpus=1 reliability>0.9"
    found = json.loads(client("search", "offers", query, "-o", "dph_total", "--storage", "20"))
    assert [one["id"] for one in found] == [102, 101]
    name, login, ports = lease_name(), "-u me -p x ghcr.io", "-e A=b -p 10022:10022"
    made = json.loads(
        client(
            "create", "instance", "102", "--image", "debian:13", "--disk", "20", "--label", name, "--env", ports, "--cancel-unavail",
            "--onstart-cmd", "sh", "--login", login, last=("--args", "-c", "true"),
        )
    )  # fmt: skip
    assert made["success"] is True
    number = made["new_contract"]
    body = cloud.named(name)["body"]
    assert (body["image"], body["disk"], body["image_login"]) == ("debian:13", 20, login)
    assert (body["runtype"], body["onstart"], body["args"]) == ("args", "sh", ["-c", "true"])
    assert (body["env"], body["cancel_unavail"]) == ({"A": "b", "-p 10022:10022": "1"}, True)
    cloud.advance(10)
    (listed,) = json.loads(client("show", "instances"))
    seen = json.loads(client("show", "instance", str(number)))
    assert (listed["id"], seen["id"], seen["label"], seen["actual_status"]) == (number, number, name, "running")
    assert (seen["extra_env"], seen["ports"]["10022/tcp"][0]["HostPort"]) == (body["env"], "41000")
    cloud.contracts[number]["log"] = "".join(f"line {n}\n" for n in range(20))
    told = client("logs", str(number), "--tail", "12", "--filter", "line 1")
    assert [f"line {n}" in told for n in (7, 8, 9, 10, 19)] == [False, False, False, True, True]
    client("destroy", "instance", str(number))
    assert (json.loads(client("show", "instances")), cloud.alive()) == ([], [])


def test_what_the_client_sees_of_our_order_is_ours_and_what_it_ends_is_gone_to_us(
    client: Client, cloud: FakeVastai
) -> None:
    driver = vastai(cloud)
    made = order(driver, SPOT)
    cloud.advance(10)
    number = made.id.partition("/")[2]
    seen = json.loads(client("show", "instance", number))
    assert (seen["label"], seen["is_bid"], seen["extra_env"]["PREFECT_GPU_NAME"]) == (made.name, True, made.name)
    client("label", "instance", number, "pg-somebody-s")
    assert [one.name for one in driver.list_instances("pg-somebody").unproved] == ["pg-somebody-s"]
    cloud.outbid(made.id)
    assert json.loads(client("show", "instance", number))["intended_status"] == "stopped"
    assert driver.get_instance(made.id).state is InstanceState.INTERRUPTED
    client("destroy", "instance", number)
    assert driver.list_instances("").instances == ()
