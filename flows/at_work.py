"""The `provision` runs at work on a Prefect server, and how they are ended before what they need is stopped.

Through the API alone: Prefect's own client takes seconds to import, and `make down` shall not.
"""

from __future__ import annotations

import base64
import json
import os
import time
import urllib.error
import urllib.request
from datetime import datetime
from http.client import HTTPException
from typing import Any, Final, cast

from flows.terminal import Trouble

TIMEOUT_S: Final = 10.0
PAGE: Final = 200  # the most that the API gives at once
BUSY_TRIES: Final = 10  # on SQLite a busy server answers 503, "database is locked"
FINAL: Final = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}


def unreachable(api_url: str, timeout_s: float = 2.0) -> str | None:
    """Why a Prefect server is not usable there, or None."""
    try:
        _ask(api_url, "/health", timeout_s=timeout_s)
    except urllib.error.HTTPError as error:
        # That the credentials are wrong is said where something is done with them.
        return None if error.code in (401, 403) else f"answers {error.code}, which is not Prefect's API"
    except json.JSONDecodeError:
        return "answers what is not Prefect's API"
    except (OSError, HTTPException, ValueError):
        return "does not answer"
    return None


def is_of(api_url: str, home: str) -> bool:
    """Whether the server that answers there keeps its data in this folder, and is not another that took the port first."""
    try:
        return _ask(api_url, "/admin/settings", timeout_s=2.0)["home"] == home
    except urllib.error.HTTPError:
        return True  # it wants a password, or is of a version that does not say: nothing speaks against it
    except (OSError, HTTPException, ValueError, KeyError, TypeError):
        return False


def runs(api_url: str, worker: str | None = None, since: datetime | None = None) -> list[dict[str, Any]]:
    """The `provision` runs that may hold a machine now: all, or those of one worker, or those whose state is not older.

    Raises Trouble when the server does not say.
    """
    question = {
        "flows": {"name": {"any_": ["provision"]}},
        "flow_runs": {"state": {"type": {"any_": ["RUNNING", "CANCELLING", "PENDING"]}}},
        "limit": PAGE,
    }
    found: list[dict[str, Any]] = []
    while True:
        answer = _answer(api_url, "/flow_runs/filter", {**question, "offset": len(found)})
        page = cast("list[dict[str, Any]]", answer or [])
        found += page
        if len(page) < PAGE:
            break
    return [run for run in found if _is_of(run, worker) and _is_since(run, since)]


def end(
    api_url: str,
    *,
    worker: str | None = None,
    since: datetime | None = None,
    run_id: str | None = None,
    within_s: float = 60.0,
) -> list[dict[str, Any]]:
    """Cancel what is at work, and a run of this id in any state, and wait until each has given its machine back.

    Those that did not in time. Raises Trouble when the server does not say.
    """
    deadline = time.monotonic() + within_s
    cancelled: set[str] = set()
    while True:
        left = {run["id"]: run for run in runs(api_url, worker, since)}
        if run_id is not None and (run := _run(api_url, run_id)) is not None:
            left[run_id] = run
        for one in left.keys() - cancelled:
            _answer(api_url, f"/flow_runs/{one}/set_state", {"state": {"type": "CANCELLING", "name": "Cancelling"}})
            cancelled.add(one)
        if not left or time.monotonic() > deadline:
            return list(left.values())
        time.sleep(0.3)


def _is_of(run: dict[str, Any], worker: str | None) -> bool:
    labels: dict[str, Any] = run.get("labels") or {}
    return worker is None or labels.get("prefect.worker.name") == worker


def _is_since(run: dict[str, Any], since: datetime | None) -> bool:
    return since is None or datetime.fromisoformat(run["state"]["timestamp"]) >= since


def _run(api_url: str, run_id: str) -> dict[str, Any] | None:
    """The run while it is not over."""
    run = _answer(api_url, f"/flow_runs/{run_id}")
    return None if run is None or run["state_type"] in FINAL else run


def _answer(api_url: str, path: str, body: object = None) -> Any:
    """What the server says, None where it does not know the run; Trouble where it says nothing of use."""
    try:
        for _ in range(BUSY_TRIES):
            try:
                return _ask(api_url, path, body)
            except urllib.error.HTTPError as error:
                if error.code not in (429, 503):
                    raise
            time.sleep(0.3)
        return _ask(api_url, path, body)
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return None
        if error.code in (401, 403):
            raise Trouble(
                f"{api_url} refuses ({error.code}): are PREFECT_API_KEY and PREFECT_API_AUTH_STRING right?"
            ) from None
        raise Trouble(f"The Prefect server at {api_url} answers {error.code}.") from None
    except (OSError, HTTPException, ValueError):
        raise Trouble(f"The Prefect server at {api_url} does not answer.") from None


def _ask(api_url: str, path: str, body: object = None, timeout_s: float = TIMEOUT_S) -> Any:
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json", **_credentials()}
    request = urllib.request.Request(f"{api_url}{path}", data, headers)  # noqa: S310 - the address is the user's own
    with urllib.request.urlopen(request, timeout=timeout_s) as response:  # noqa: S310
        return json.load(response)


def _credentials() -> dict[str, str]:
    """As Prefect's client gives them: user and password of a server of one's own, or a key of Prefect Cloud."""
    if password := os.environ.get("PREFECT_API_AUTH_STRING"):
        return {"Authorization": f"Basic {base64.b64encode(password.encode()).decode()}"}
    if key := os.environ.get("PREFECT_API_KEY"):
        return {"Authorization": f"Bearer {key}"}
    return {}
