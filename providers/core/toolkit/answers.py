"""What an answer means: its JSON, or the error that a vendor's codes, words and status stand for."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final, NamedTuple, TypeAlias, cast
from urllib.parse import quote

import httpx

from prefect_gpu.providers.core.errors import (
    AuthFailed,
    InsufficientFunds,
    InvalidRequest,
    NotFound,
    ProviderError,
    RateLimited,
    Transient,
    Unconfirmed,
)
from prefect_gpu.providers.core.models import utc_now

Json: TypeAlias = dict[str, Any] | list[Any] | str | int | float | bool | None
Kind: TypeAlias = type[ProviderError]

_WORDS: Final = 300  # of a vendor's explanation
_BY_STATUS: Final[Mapping[int, Kind]] = {
    401: AuthFailed,
    402: InsufficientFunds,
    403: AuthFailed,
    404: NotFound,
    408: Transient,
    410: NotFound,
    429: RateLimited,
}


class Problem(NamedTuple):
    """What a vendor says went wrong: its own code, where it has codes, and its words."""

    code: str | None
    message: str


def problem_in(body: Json) -> Problem | None:
    """The usual envelopes: `{"error": {"code": ..., "message": ...}}`, `{"error": "words"}`, `{"code": ..., "message": ...}`."""
    if not isinstance(body, dict):
        return None
    found: object = body.get("error") or body.get("errors") or body
    if isinstance(found, list) and found:
        found = cast("list[object]", found)[0]
    if not isinstance(found, dict):
        return Problem(None, str(cast("object", found))) if found else None
    fields = cast("dict[str, object]", found)
    code = fields.get("code") or fields.get("type")
    words = fields.get("message") or fields.get("detail") or fields.get("msg")
    if code is None and words is None:
        return None
    return Problem(None if code is None else str(code), str(words or code))


@dataclass(frozen=True)
class Meanings:
    """How one vendor says what went wrong. Codes count before words, words before statuses, all before what is usual.

    `words` are pieces of the vendor's sentences, in lower case, for vendors that have no codes. `problem` finds code and words in a body with
    an error status, `problem_in_success` in one with 2xx, for vendors that report errors so.
    """

    codes: Mapping[str, Kind] = field(default_factory=dict[str, Kind])
    words: Mapping[Kind, tuple[str, ...]] = field(default_factory=dict[Kind, tuple[str, ...]])
    statuses: Mapping[int, Kind] = field(default_factory=dict[int, Kind])
    problem: Callable[[Json], Problem | None] = problem_in
    problem_in_success: Callable[[Json], Problem | None] | None = None

    def kind(self, problem: Problem | None, status: int) -> Kind:
        """The error that this answer is."""
        if problem is not None:
            if problem.code is not None and problem.code in self.codes:
                return self.codes[problem.code]
            said = " ".join(problem.message.lower().split())
            for kind, pieces in self.words.items():
                if any(piece in said for piece in pieces):
                    return kind
        usual = _BY_STATUS.get(status, Transient if status >= 500 else InvalidRequest)
        return self.statuses.get(status, usual)


def read(
    response: httpx.Response,
    content: bytes,
    meanings: Meanings,
    *,
    doing: str,
    vendor: str,
    is_order: bool,
    secrets: tuple[str, ...] = (),
) -> Json:
    """The JSON of an answer, or the error that it is. `doing` names the call in messages: "GET /machines"."""
    is_readable, answer = parse(content)
    if not is_readable and response.headers.get("content-type", "").startswith("text/plain"):
        is_readable, answer = response.is_success, content.decode(errors="replace").strip()
    status = response.status_code
    find = meanings.problem_in_success if response.is_success else meanings.problem
    problem = find(answer) if find is not None and is_readable else None
    if response.is_success and problem is None:
        if is_readable and not (is_order and answer is None):
            return answer
        unclear = Unconfirmed if is_order else Transient
        raise unclear(f"{vendor}'s answer to {doing} ({status}) cannot be read")
    if problem is None and not is_readable:
        problem = Problem(None, content[: 8 * _WORDS].decode(errors="replace"))
    is_page = (
        not is_readable and status >= 500
    )  # of a gateway before the API ("load balancer"): its words are not the vendor's
    kind = meanings.kind(None if is_page else problem, status)
    if is_order and issubclass(kind, Transient) and not issubclass(kind, RateLimited):
        kind = Unconfirmed  # whatever the vendor calls it: an order is sent again only when it was certainly not carried out
    words = cleaned(problem.message, secrets) if problem is not None else ""
    message = f"{vendor} refused {doing} ({status})" + (f": {words}" if words else "")
    code = problem.code if problem is not None and problem.code is not None else str(status)
    if issubclass(kind, RateLimited):
        raise kind(message, code=code, retry_after_s=retry_after_s(response))
    # Credentials that are no good at all answer 401; a 403 denies what was asked for.
    raise kind(message, code=code, reach="provider" if status == 401 and issubclass(kind, AuthFailed) else None)


def parse(content: bytes) -> tuple[bool, Json]:
    """Whether it is JSON, and which. Nothing at all is None; numbers that are none (NaN, 1e999) are not JSON."""
    if not content.strip():
        return True, None
    try:
        return True, json.loads(content, parse_constant=_refuse, parse_float=_finite)
    except (ValueError, RecursionError):
        return False, None


def at(body: Json, path: str) -> Any:
    """What stands at a dotted path, `data.instance_ids.0`; the whole at an empty one; None where there is nothing.

    The step `*` is the only field of an object, for envelopes whose name tells nothing.
    """
    found: Any = body
    for step in path.split(".") if path else ():
        if isinstance(found, dict):
            fields = cast("dict[str, Any]", found)
            found = fields.get(step) if step != "*" else next(iter(fields.values())) if len(fields) == 1 else None
        elif isinstance(found, list) and step.isdecimal() and int(step) < len(cast("list[Any]", found)):
            found = cast("list[Any]", found)[int(step)]
        else:
            return None
    return found


def each(body: Json, path: str, field: str) -> list[Any]:
    """That field of every object in the list at a dotted path; nothing where there is no list."""
    found = at(body, path)
    return [at(row, field) for row in cast("list[Any]", found)] if isinstance(found, list) else []


def cleaned(words: str, secrets: tuple[str, ...]) -> str:
    """One line of a vendor's words, not too long, with the credentials cut out should it repeat them."""
    for secret in sorted((one for one in secrets if one), key=len, reverse=True):
        for form in {secret, quote(secret, safe=""), json.dumps(secret)[1:-1]}:
            words = words.replace(form, "***")
    line = " ".join("".join(mark if mark.isprintable() else " " for mark in words).split())
    return line if len(line) <= _WORDS else line[: _WORDS - 1] + "…"


def retry_after_s(response: httpx.Response) -> float | None:
    """Seconds to wait by the header Retry-After, which holds seconds or a date; None where it says nothing."""
    text = response.headers.get("retry-after", "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    moment = date_in(text)
    return max(0.0, (moment - utc_now()).total_seconds()) if moment is not None else None


def date_in(text: str) -> datetime | None:
    """The moment that a header's date means."""
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)  # "-0000": UTC by an unknown clock


def _refuse(word: str) -> float:
    raise ValueError(f"{word} is not JSON")


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _refuse(text)
