"""The way to the clouds' process: what a vendor's API is to a driver, with the same calls as the cloud itself."""

from __future__ import annotations

import http.client
import json
import os
from collections.abc import Callable
from typing import Any

from tests.fakes.reference import AnswerLost, NeverSent, Terms, VendorError

CALLS = {
    "whoami": "account",
    "catalog": "offers",
    "order": "create",
    "describe": "get",
    "page": "list",
    "orphaned_disks": "list",
    "end": "terminate",
}
NEVER_SENT = 421


def nowhere(_point: str, _side: str) -> None:
    pass


class RemoteCloud:
    """One cloud, as its drivers see it. `passing` is told before each call and after it."""

    passing: Callable[[str, str], None] = staticmethod(nowhere)

    def __init__(self, port: int, provider: str, terms: Terms) -> None:
        self._port = port
        self._provider = provider
        self.terms = terms
        self.path = None

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name not in CALLS:
            raise AttributeError(name)
        return lambda *arguments: self._ask(name, arguments)

    def _ask(self, call: str, arguments: tuple[Any, ...]) -> Any:
        point = f"cloud {CALLS[call]}"
        RemoteCloud.passing(point, "before")
        body = json.dumps([self._provider, call, *arguments])
        connection = http.client.HTTPConnection(os.environ["CHAOS_HOST"], self._port, timeout=60)
        try:
            try:
                connection.connect()
            except OSError as refused:
                raise NeverSent(str(refused)) from None
            try:
                connection.request("POST", "/", body)
                answer = connection.getresponse()
                said = json.loads(answer.read())
            except (OSError, http.client.HTTPException, ValueError) as broken:
                raise AnswerLost(type(broken).__name__) from None
        finally:
            connection.close()
        RemoteCloud.passing(point, "after")
        if answer.status == NEVER_SENT:
            raise NeverSent(said["text"])
        if answer.status != 200:
            raise VendorError(answer.status, said["code"], said["text"], said["retry_after_s"])
        return said
