"""EC2's API of one account: sessions, a client for each region, pages, and who the account is."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any, Final, TypeVar

from prefect_gpu.blocks.aws import AwsCredentials
from prefect_gpu.providers.aws.errors import OUT_OF_DATE, translated
from prefect_gpu.providers.core.errors import AuthFailed, Transient
from prefect_gpu.providers.core.models import utc_now
from prefect_gpu.providers.core.toolkit import answers

T = TypeVar("T")

READERS: Final = 16  # regions read at a time
_ROLE_SESSION_S: Final = 600  # an assumed role may be granted for 15 minutes
_MAX_ROWS: Final = 100_000  # of one question; an account has far fewer instances in a region


class Api:
    """Asks AWS with one block's credentials. For many threads; `endpoint_url` is for tests."""

    def __init__(self, credentials: AwsCredentials, endpoint_url: str | None = None) -> None:
        self.credentials = credentials
        self._endpoint_url = endpoint_url
        self._lock = threading.Lock()  # boto3's sessions make clients for one thread at a time
        self._session: Any = None
        self._session_ends = 0.0
        self._clients: dict[tuple[str, str, bool], Any] = {}
        self._account: str | None = None
        self._ahead: timedelta | None = None  # AWS's clock before this machine's

    @property
    def home(self) -> str:
        """The region that is asked about the account as a whole."""
        aws = self.credentials.aws
        return (aws and aws.region_name) or next(iter(self.credentials.regions), "us-east-1")

    def account_id(self) -> str:
        """The account's twelve digits; asked for once."""
        if self._account is None:
            with self.asks("tell whose credentials these are"):
                self._account = str(self.client("sts", self.home).get_caller_identity()["Account"])
        return self._account

    def regions(self) -> set[str]:
        """The regions that this account has enabled."""
        with self.asks("ask for the account's regions"):
            reply = self.client("ec2", self.home).describe_regions(AllRegions=False)
            return {str(row["RegionName"]) for row in reply["Regions"]}

    def pages(self, region: str, call: str, rows: str, **sent: Any) -> Iterator[dict[str, Any]]:
        """All rows of a question to EC2, over all its pages."""
        count = 0
        for page in self.client("ec2", region).get_paginator(call).paginate(**sent):
            for row in page.get(rows) or ():
                count += 1
                if count > _MAX_ROWS:
                    raise Transient(f"AWS answers {call} in {region} with more than {_MAX_ROWS} rows")
                yield row

    @contextmanager
    def asks(self, doing: str, *, region: str | None = None, is_order: bool = False) -> Generator[None]:
        """Tells what AWS refuses as ours; after credentials whose time is over, the next call looks for new ones.

        Args:
            doing: What is asked, as it follows "AWS could not".
            region: The region that is asked: a policy's refusal speaks of it. None: the account as a whole is asked.
            is_order: Only a definite answer is one, and a refusal speaks of the order's type and market.
        """
        try:
            with translated(doing, region=region, is_order=is_order):
                yield
        except AuthFailed as refused:
            if refused.code in OUT_OF_DATE:
                with self._lock:
                    self._session = None
            raise

    def client(self, service: str, region: str, *, repeats: bool = True) -> Any:
        """A client of one region; `repeats`: whether a call may be sent again, which an order never is."""
        with self._lock:
            aws = self.credentials.aws
            if self._session is None or (aws and aws.assume_role_arn and time.monotonic() > self._session_ends):
                with translated("use these credentials"):
                    self._session = self.credentials.get_session()
                self._session_ends = time.monotonic() + _ROLE_SESSION_S
                self._clients.clear()
            key = (service, region, repeats)
            if key not in self._clients:
                with translated(f"speak to {region}", region=region):
                    self._clients[key] = self._session.client(service, region_name=region, **self._settings(repeats))
                self._clients[key].meta.events.register("after-call", self._heard)
            return self._clients[key]

    def now(self) -> datetime | None:
        """Now by AWS's clock, as its last answer told it; None before the first."""
        return None if self._ahead is None else utc_now() + self._ahead

    def _heard(self, http_response: Any, **_: object) -> None:
        if (date := answers.date_in(str(http_response.headers.get("date", "")))) is not None:
            self._ahead = date - utc_now()

    def _settings(self, repeats: bool) -> dict[str, Any]:
        from botocore.config import Config  # pyright: ignore[reportMissingTypeStubs] - boto3 has none

        aws = self.credentials.aws
        settings: dict[str, Any] = aws.aws_client_parameters.get_params_override() if aws else {}
        ours = Config(
            connect_timeout=5,
            read_timeout=20 if repeats else 60,  # an order's answer is worth waiting for
            retries={"total_max_attempts": 3 if repeats else 1, "mode": "standard"},
            max_pool_connections=READERS,
        )
        theirs: Any = settings.pop("config", None)
        settings["config"] = theirs.merge(ours) if theirs else ours
        if self._endpoint_url:
            settings["endpoint_url"] = self._endpoint_url
        return settings


def each(read: Callable[[str], T], regions: Sequence[str]) -> list[T]:
    """`read` of all regions side by side, in their order."""
    with ThreadPoolExecutor(min(READERS, len(regions)) or 1, thread_name_prefix="aws") as pool:
        return list(pool.map(read, regions))
