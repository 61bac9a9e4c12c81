"""What drivers are built from: scopes read side by side, stock, companions of an order, words read with care."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from prefect_gpu.providers.core.errors import AuthFailed, NoCapacity, NotFound, Transient, Unconfirmed
from prefect_gpu.providers.core.models import Availability, Instance, InstanceState, Leftover, Offer, SshEndpoint
from prefect_gpu.providers.core.requests import Requirements
from prefect_gpu.providers.core.toolkit.companions import (
    Companion,
    Lists,
    left_over,
    listing,
    named,
    sweep,
    with_companions,
)
from prefect_gpu.providers.core.toolkit.http import JsonApi
from prefect_gpu.providers.core.toolkit.scopes import read_each, scoped, split
from prefect_gpu.providers.core.toolkit.states import moment, state_of
from prefect_gpu.providers.core.toolkit.stock import in_regions, in_zones, with_boot_deadlines

# --- scopes ---------------------------------------------------------------------------------------------------------------


def test_each_scope_is_read_and_one_that_fails_lies_or_hangs_hides_no_other() -> None:
    release = threading.Event()

    def read(scope: str) -> list[str]:
        if scope == "down":
            raise Transient("down does not answer")
        if scope == "odd":
            raise KeyError("id")
        if scope == "denied":
            raise AuthFailed("denied here")
        if scope == "hangs":
            release.wait(30)
        return [scope]

    found = read_each(["a", "down", "odd", "denied", "hangs", "b", "a"], read, within_s=1)
    release.set()
    assert found.found == {"a": ["a"], "b": ["b"]}
    assert {one.scope: one.reason for one in found.unread} == {
        "down": "down does not answer",
        "odd": "its answer cannot be read (KeyError)",
        "denied": "denied here",
        "hangs": "no answer in 1 s",
    }


def test_credentials_that_every_scope_refuses_are_no_good() -> None:
    def refuse(scope: str) -> None:
        raise AuthFailed(f"refused in {scope}")

    with pytest.raises(AuthFailed, match="refused in a"):
        read_each(["a", "b"], refuse)
    assert read_each([], refuse).found == {}


def test_scopes_are_read_side_by_side_and_not_all_at_once() -> None:
    lock, now, most = threading.Lock(), [0], [0]

    def read(_: str) -> None:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        time.sleep(0.02)
        with lock:
            now[0] -= 1

    assert len(read_each([str(n) for n in range(20)], read, at_once=4).found) == 20
    assert 1 < most[0] <= 4


@pytest.mark.parametrize("wrong", ["", "x", "a/", "/b", "a/b/c", "a/../b", "a/b?c", "a/b c", "a/é", "..", "c/1"])
def test_an_id_that_is_not_of_the_form_scope_and_number_is_not_found(wrong: str) -> None:
    with pytest.raises(NotFound):
        split(wrong, ("a", "b"))


def test_an_id_is_its_scope_and_its_number() -> None:
    assert split(scoped("us-east-1", "i-0a_1")) == ("us-east-1", "i-0a_1")


# --- stock ----------------------------------------------------------------------------------------------------------------


def offer(region: str = "north", kind: str = "gpu.a", **more: object) -> Offer:
    return Offer.model_validate({"provider": "x", "instance_type": kind, "region": region, "price": 1.0} | more)


def test_offers_are_judged_by_what_their_region_has_and_a_region_that_cannot_be_read_closes_only_itself() -> None:
    def types_in(region: str) -> set[str]:
        if region == "west":
            raise Transient("west does not answer")
        return {"gpu.a"}

    judged = in_regions([offer(), offer(kind="gpu.b"), offer("west")], types_in)
    assert [one.availability for one in judged] == [
        Availability.AVAILABLE,
        Availability.UNAVAILABLE,
        Availability.UNAVAILABLE,
    ]
    assert [one.unavailable_because for one in judged] == [
        None,
        "sold out in north",
        "what west has could not be read: west does not answer",
    ]


def test_an_offer_is_one_in_each_zone_that_has_it_and_is_wanted() -> None:
    zones = {"gpu.a": ["n-1", "n-2"], "gpu.b": []}

    def placed(**asked: object) -> list[tuple[str | None, str | None]]:
        offers = [offer(), offer(kind="gpu.b")]
        found = in_zones(
            offers,
            lambda one: zones[one.instance_type],
            Requirements.model_validate(asked),
            lambda one: "no subnet in n-2" if one.zone == "n-2" else None,
        )
        return [(one.zone, one.unavailable_because) for one in found]

    none = (None, "no zone of north has gpu.b")
    assert placed() == [("n-1", None), ("n-2", "no subnet in n-2"), none]
    assert placed(zones=("n-1",)) == [("n-1", None), none]
    assert placed(exclude_zones=("n-1", "n-2")) == [none]


def test_boot_deadlines_go_by_the_longest_beginning_of_the_type_s_name() -> None:
    offers = [offer(kind=kind) for kind in ("vm-1", "vbm-1", "vbm-8-h100")]
    timed = with_boot_deadlines(offers, {"vbm": 3300, "vbm-8": 4000})
    assert [one.boot_deadline_s for one in timed] == [None, 3300, 4000]


# --- companions -----------------------------------------------------------------------------------------------------------


class Vendor:
    """Scripts and keys that it keeps."""

    def __init__(self) -> None:
        self.kept: list[str] = []

    def companion(self, kind: str, *, fails: bool = False) -> Companion:
        def make() -> str:
            if fails:
                raise NoCapacity(f"no more {kind}s")
            self.kept.append(f"{kind}-1")
            return f"{kind}-1"

        return Companion(kind, make, self.kept.remove)


def test_what_an_order_brings_along_is_there_before_it_and_stays_with_it() -> None:
    vendor = Vendor()
    asked: list[Mapping[str, str]] = []
    with_companions([vendor.companion("script"), vendor.companion("key")], asked.append)
    assert asked == [{"script": "script-1", "key": "key-1"}]
    assert vendor.kept == ["script-1", "key-1"]


@pytest.mark.parametrize(("answer", "stays"), [(NoCapacity("none left"), False), (Unconfirmed("lost"), True)])
def test_it_goes_with_an_order_that_was_refused_and_stays_with_one_that_may_have_been_taken(
    answer: Exception, stays: bool
) -> None:
    vendor = Vendor()

    def order(_: object) -> None:
        raise answer

    with pytest.raises(type(answer)):
        with_companions([vendor.companion("script")], order)
    assert bool(vendor.kept) is stays
    with pytest.raises(NoCapacity, match="no more keys"):
        with_companions([vendor.companion("key", fails=True)], order)


def test_what_was_brought_along_is_left_over_once_its_instance_does_not_stand() -> None:
    standing = [Instance(id="1", name="pg-a", provider="x", state=InstanceState.RUNNING)]
    rows = [{"id": 7, "name": "pg-a"}, {"id": 8, "name": "pg-b"}, {"id": 9, "name": "other"}, {"id": 0}, {}]
    assert left_over("script", rows, "pg-", standing) == [Leftover(id="script/8", kind="script", name="pg-b")]


class Shelf:
    """A vendor that keeps named things in lists, below /keys and /scripts."""

    def __init__(self) -> None:
        self.kept: dict[str, dict[str, str]] = {}
        self.faults: list[object] = []
        self.lists = Lists(
            JsonApi("Vendor", "https://api.vendor.test", transport=httpx.MockTransport(self.answer)), list_at="data"
        )

    def answer(self, request: httpx.Request) -> httpx.Response:
        _, kind, *number = request.url.path.split("/")
        fault = self.faults.pop(0) if self.faults and request.method == "POST" else None
        if request.method == "POST" and fault != "refused":
            made = f"{kind}-{len(self.kept)}"
            self.kept[made] = {"id": made, **json.loads(request.content)}
            if fault == "lost":
                raise httpx.ReadError("reset")
            return httpx.Response(200, json=fault or {"id": made})
        if request.method == "POST":
            return httpx.Response(503)
        if request.method == "DELETE":
            return httpx.Response(204 if self.kept.pop(number[0], None) else 404)
        return httpx.Response(200, json={"data": [row for row in self.kept.values() if row["id"].startswith(kind)]})


def test_a_thing_that_is_listed_by_name_is_found_there_when_the_answer_to_making_it_is_lost() -> None:
    shelf = Shelf()
    key = named("keys", {"name": "pg-a"}, shelf.lists)
    for fault in (None, "lost", {"id": 7}, {"error": ""}, "pg"):
        shelf.kept.clear()
        shelf.faults = [fault]
        assert key.make() == ("pg" if fault == "pg" else "keys-0"), "a bare id counts too"
        key.remove("keys-0")
        key.remove("keys-0")
        assert shelf.kept == {}
    shelf.faults = ["refused"]
    with pytest.raises(Transient, match="add to keys"):
        key.make()


def test_a_sweep_removes_what_is_called_so_and_nothing_that_has_no_name() -> None:
    shelf = Shelf()
    rows = [("keys", "pg-a"), ("keys", "pg-ab"), ("scripts", "pg-a"), ("keys", "")]
    shelf.kept = {f"{kind}-{n}": {"id": f"{kind}-{n}", "name": name} for n, (kind, name) in enumerate(rows)}
    sweep({"pg-a", ""}, ["keys"], shelf.lists)
    assert [row["name"] for row in shelf.kept.values()] == ["pg-ab", "pg-a", ""]


def test_nothing_is_left_over_while_the_machines_could_not_be_read() -> None:
    def instance(row: dict[str, Any]) -> Instance:
        return Instance(id=row["id"], name=row["name"], provider="x", state=InstanceState(row["state"]))

    def rows(kind: str) -> list[dict[str, Any]]:
        if kind == unreadable:
            raise Transient("not now")
        machines = [{"id": "1", "name": "pg-a", "state": "running"}, {"id": "2", "name": "pg-b", "state": "terminated"}]
        return (
            machines
            if kind == "machines"
            else [{"id": n, "name": name} for n, name in enumerate(("pg-a", "pg-b", "c"))]
        )

    unreadable = ""
    seen = listing(["machines", "keys"], rows, instance, "pg-")
    assert ([one.id for one in seen.instances], [one.id for one in seen.leftovers]) == (["1", "2"], ["keys/1"])
    unreadable = "machines"
    seen = listing(["machines", "keys"], rows, instance, "pg-")
    assert (seen.instances, seen.leftovers, [one.scope for one in seen.incomplete]) == ((), (), ["machines"])
    unreadable = "none"
    seen = listing(["machines", "keys"], rows, lambda row: instance(row | {"state": "odd"}), "pg-")
    assert (seen.instances, seen.leftovers, [one.scope for one in seen.incomplete]) == ((), (), ["machines"])
    unreadable = "keys"
    seen = listing(["machines", "keys"], rows, instance, "pg-")
    assert (len(seen.instances), seen.leftovers, [one.scope for one in seen.incomplete]) == (2, (), ["keys"])


# --- words ----------------------------------------------------------------------------------------------------------------


def test_running_needs_an_endpoint_and_a_word_never_seen_is_unknown() -> None:
    words = {"up": InstanceState.RUNNING, "off": InstanceState.FAILED}
    here = SshEndpoint(host="192.0.2.1")
    assert state_of("up", words, here) is InstanceState.RUNNING
    assert state_of("up", words, None) is InstanceState.PROVISIONING
    assert state_of("off", words, None) is InstanceState.FAILED
    assert state_of("UP", words, here) is InstanceState.UNKNOWN


@pytest.mark.parametrize("text", ["", None, "yesterday", 7, "2026-13-01"])
def test_a_time_that_is_none_is_none(text: object) -> None:
    assert moment(text) is None


def test_a_time_is_aware_and_utc() -> None:
    noon = datetime(2026, 11, 28, 12, tzinfo=UTC)
    assert {moment(text) for text in ("2026-11-28T12:00:00", "2026-11-28T14:00:00+02:00", "2026-11-28T12:00:00Z")} == {
        noon
    }
