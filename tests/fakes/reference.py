"""The reference driver and its cloud: a whole provider in one sqlite file, with every fault that a real one can have.

`ReferenceCloud(path)` is the vendor. Each process that opens the same file sees the same cloud, so it outlives whoever is killed;
without a path it lives in memory. `Reference(account)` is the driver, as plain as a real one: it maps codes and statuses, knows
nothing of faults and never repeats a call. The clock is the cloud's: `advance()` moves it for every process, and a cloud made with
`is_stopped=True` has no other time, so tests of lag do not sleep.

    cloud = ReferenceCloud(tmp_path / "cloud.db", Terms(listing_lag_s=5), is_stopped=True)
    cloud.fault("create", "sold out", region="north")
    cloud.fault("create", "lost", times=1)
    provider = reference(cloud)
    ...
    assert not cloud.alive()

Long because the vendor and its driver are read together: one is the meaning of the other.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, SecretStr

from prefect_gpu.blocks.budget import AccountBudget
from prefect_gpu.providers.core.contract import Billing, Capabilities, Provider
from prefect_gpu.providers.core.errors import (
    AuthFailed,
    InstanceFailed,
    InsufficientFunds,
    InvalidRequest,
    NoCapacity,
    NotFound,
    ProviderError,
    QuotaExceeded,
    RateLimited,
    Transient,
    Unconfirmed,
    Unsupported,
)
from prefect_gpu.providers.core.gpu.matching import fits
from prefect_gpu.providers.core.models import (
    Availability,
    Instance,
    InstanceState,
    KeyPair,
    LaunchSpec,
    Leftover,
    Listing,
    Model,
    Offer,
    SshEndpoint,
    Unproved,
    Unread,
)
from prefect_gpu.providers.core.requests import Requirements
from prefect_gpu.providers.local import give_back, listing, order

if TYPE_CHECKING:
    from collections.abc import Iterator

Call = Literal["account", "offers", "create", "get", "list", "terminate"]

Refusal = Literal[
    "sold out",
    "over quota",
    "no funds",
    "bad credentials",
    "rate limited",
    "bad request",
    "code nobody mapped",
    "server error",  # 5xx, nothing happened
    "never sent",  # could not connect, nothing happened
    "lost",  # it happened, the answer was lost
    "late",  # the answer was lost, and it happens `seconds` later
    "no id",  # it happened, the 2xx does not say what
    "unread",  # a listing of this region fails, the others do not
    "slow before",  # `seconds` of real time before it happens
    "slow after",  # `seconds` of real time between it and the answer
]
Fate = Literal[  # of an instance, injected at its create
    "never runs",
    "fails at boot",
    "interrupted",  # `seconds` after it was ordered
    "vanishes",  # the same, without a word
    "odd status",
    "twice",  # one order, two instances
    "leaves a disk",
    "never ends",  # terminate is accepted and nothing happens, until `mend()`
    "ends late",  # terminate is accepted and takes `seconds` more
]


class MachineType(Model):
    """What this cloud sells, in every zone."""

    name: str
    price: float
    cpu: int
    memory_gb: float
    disk_gb: float = 200
    gpu_name: str | None = None
    gpu_count: int = 0
    gpu_memory_gb: float | None = None


class Terms(Model):
    """How this cloud behaves on a good day."""

    account: str = "ref-4711"
    api_key: str = "ref-key-0f9d8c7b6a"
    zones: dict[str, tuple[str, ...]] = Field(
        default_factory=lambda: {"north": ("north-1", "north-2"), "south": ("south-1",)}
    )
    types: tuple[MachineType, ...] = (
        MachineType(name="cpu.small", price=0.05, cpu=4, memory_gb=16),
        MachineType(name="gpu.a100", price=1.5, cpu=16, memory_gb=120, gpu_name="A100", gpu_count=1, gpu_memory_gb=80),
        MachineType(name="gpu.h100", price=2.5, cpu=16, memory_gb=200, gpu_name="H100", gpu_count=1, gpu_memory_gb=80),
        MachineType(name="gpu.h100x8", price=20, cpu=128, memory_gb=1600, gpu_name="H100", gpu_count=8, gpu_memory_gb=80),
    )  # fmt: skip
    spot_factor: float = 0.4  # of the price
    boot_s: float = 0
    terminate_s: float = 0
    listing_lag_s: float = 0
    forgets_after_s: float | None = None  # an ended instance's id answers 404 this long after its end; None: never
    page_size: int = 2
    is_repeatable: bool = True  # the same name in the same zone is the same order
    ends_at_deadline: bool = True
    has_ssh: bool = False  # each running instance is a real SSH server on loopback


class Injected(Model):
    """A fault as it stands in the cloud's file."""

    on: Call
    what: Refusal | Fate
    times: int | None = 1  # None: for ever
    region: str | None = None
    name: str = ""  # prefix of the instance's name
    seconds: float = 0
    text: str | None = None  # the vendor's words; each kind has some of its own


@dataclass(frozen=True)
class Order:
    """An instance as the cloud itself knows it, whatever it tells its customers."""

    id: str
    name: str
    region: str
    zone: str
    type: str
    spot: bool
    price: float
    status: str
    ordered_at: float
    ended_at: float | None
    fate: str | None = None  # that a test gave it

    @property
    def is_alive(self) -> bool:
        """Whether it costs money now."""
        return self.status not in ENDED

    def cost(self, now: float) -> float:
        """USD so far, to the second."""
        return self.price * max(0.0, min(now, self.ended_at or now) - self.ordered_at) / 3600


ENDED = frozenset({"ended", "reclaimed", "unborn"})

_WORDS: dict[str, tuple[int, str | None, str]] = {  # what -> status, code, the vendor's words
    "sold out": (409, "out_of_stock", "we are out of {type} in {region}"),
    "over quota": (403, "quota", "your quota of {type} in {region} is 0"),
    "no funds": (402, "balance", "please top up: your balance is $0.12"),
    "bad credentials": (401, "unauthenticated", "this key was revoked"),
    "rate limited": (429, "slow_down", "too many requests"),
    "bad request": (422, "malformed", "the field 'disk' makes no sense"),
    "code nobody mapped": (418, "teapot", "short and stout"),
    "server error": (503, None, "upstream connect error"),
}


class VendorError(Exception):
    """An answer of this vendor that is not 2xx."""

    def __init__(self, status: int, code: str | None, text: str, retry_after_s: float | None = None) -> None:
        super().__init__(status, code, text)
        self.status = status
        self.code = code
        self.text = text
        self.retry_after_s = retry_after_s


class AnswerLost(Exception):
    """The request was sent; the connection broke before the answer."""


class NeverSent(Exception):
    """The connection was refused."""


class ReferenceCloud:
    """The vendor: instances, disks, faults and a clock in one sqlite file. Safe from threads and processes."""

    def __init__(self, path: Path | str | None = None, terms: Terms | None = None, *, is_stopped: bool = False) -> None:
        """Open the cloud at `path`, or found it with `terms`; `is_stopped`: time passes only by `advance`."""
        self.path = Path(path) if path is not None else None
        self._lock = threading.RLock()
        self._db = sqlite3.connect(path or ":memory:", timeout=60, isolation_level=None, check_same_thread=False)
        self._db.row_factory = sqlite3.Row
        self._db.executescript(_SCHEMA)
        founded = (terms or Terms()).model_dump_json()
        now = time.time()
        with self._transaction():
            self._db.execute(
                "INSERT OR IGNORE INTO cloud (one, terms, is_stopped, clock) VALUES (1, ?, ?, ?)",
                (founded, is_stopped, now if is_stopped else 0.0),
            )

    # --- the test's side ---------------------------------------------------------------------------------------------

    @property
    def terms(self) -> Terms:
        return Terms.model_validate_json(self._cloud_row()["terms"])

    def change(self, **terms: Any) -> None:
        """Change some terms, for every process."""
        changed = Terms.model_validate(self.terms.model_dump() | terms).model_dump_json()
        with self._transaction():
            self._db.execute("UPDATE cloud SET terms = ?", (changed,))

    def now(self) -> float:
        """The cloud's time, in seconds since the epoch."""
        row = self._cloud_row()
        return row["clock"] if row["is_stopped"] else time.time() + row["clock"]

    def advance(self, seconds: float) -> None:
        with self._transaction():
            self._db.execute("UPDATE cloud SET clock = clock + ?", (seconds,))
        self._settle()

    def fault(
        self,
        on: Call,
        what: Refusal | Fate,
        *,
        times: int | None = 1,
        region: str | None = None,
        name: str = "",
        seconds: float = 0,
        text: str | None = None,
    ) -> None:
        """From now on, and so many times, this happens to such calls (or to what such a create orders)."""
        injected = Injected(on=on, what=what, times=times, region=region, name=name, seconds=seconds, text=text)
        with self._transaction():
            self._db.execute("INSERT INTO faults (body) VALUES (?)", (injected.model_dump_json(),))

    def mend(self) -> None:
        """Take all faults back; instances that would not end now do."""
        with self._transaction():
            self._db.execute("DELETE FROM faults")
            self._db.execute("UPDATE orders SET fate = NULL WHERE fate = 'never ends'")

    def rename_status(self, instance_id: str, status: str) -> None:
        """The vendor's word for this instance's state from now on."""
        with self._transaction():
            self._db.execute("UPDATE orders SET word = ? WHERE id = ?", (status, instance_id))

    def order_by_hand(self, name: str) -> str:
        """Somebody's own instance, ordered on the vendor's web page, which shows as much; its id."""
        terms = self.terms
        region, zones = next(iter(terms.zones.items()))
        body = {"name": name, "region": region, "zone": zones[0], "type": terms.types[0].name}
        with self._transaction():
            return self._insert(body | {"spot": False, "deadline": None}, self.now(), terms, [])["id"]

    def orders(self, prefix: str = "") -> list[Order]:
        """Every instance that was ever ordered, oldest first."""
        now = self.now()
        rows = self._rows("SELECT * FROM orders WHERE name >= ? ORDER BY n", (prefix,))
        return [self._order(row, now) for row in rows if row["name"].startswith(prefix)]

    def alive(self, prefix: str = "") -> list[Order]:
        """What costs money now, whatever a listing says."""
        return [order for order in self.orders(prefix) if order.is_alive]

    def disks(self) -> list[str]:
        """Disks that exist without an instance."""
        alive = {order.id for order in self.orders() if order.status not in ENDED}
        return [row["id"] for row in self._rows("SELECT * FROM disks") if row["instance"] not in alive]

    def calls(self, on: Call | None = None) -> list[tuple[str, str]]:
        """All calls in their order: what was called, and about what."""
        rows = self._rows("SELECT * FROM calls ORDER BY n")
        return [(row["call"], row["about"]) for row in rows if on in (None, row["call"])]

    def cost(self) -> float:
        """USD of everything so far."""
        now = self.now()
        return sum(order.cost(now) for order in self.orders())

    def end_all(self) -> None:
        """End everything: for the end of a test."""
        with self._transaction():
            self._db.execute("UPDATE orders SET ended_at = ? WHERE ended_at IS NULL", (self.now(),))
            self._db.execute("DELETE FROM disks")
        self._settle()

    def close(self) -> None:
        self.end_all()
        self._db.close()

    # --- the vendor's API --------------------------------------------------------------------------------------------

    def whoami(self, api_key: str) -> str:
        with self._call("account", api_key, "") as _:
            return self.terms.account

    def catalog(self, api_key: str) -> list[dict[str, Any]]:
        with self._call("offers", api_key, "") as _:
            terms = self.terms
            return [
                kind.model_dump()
                | {"region": region, "zone": zone, "spot": spot}
                | {"price": kind.price * (terms.spot_factor if spot else 1)}
                for kind in terms.types
                for region, zones in terms.zones.items()
                for zone in zones
                for spot in (False, True)
            ]

    def order(self, api_key: str, body: dict[str, Any]) -> dict[str, Any]:
        """Order one instance. The body is what a vendor would get; its `name` is the key where orders can be repeated."""
        with self._call("create", api_key, body["name"], region=body["region"], what=body["type"]) as (faults, answer):
            now = self.now()
            terms = self.terms
            delay = max((fault.seconds for fault in faults if fault.what == "late"), default=0.0)
            fates = [fault for fault in faults if fault.what in _FATES or fault.what == "late"]
            with self._transaction():
                same = self._db.execute(
                    "SELECT * FROM orders WHERE name = ? AND zone = ? ORDER BY n LIMIT 1", (body["name"], body["zone"])
                ).fetchone()
                if same is not None and terms.is_repeatable:
                    answer.append(self._seen(same, now))
                else:
                    copies = 2 if any(fate.what == "twice" for fate in fates) else 1
                    for _ in range(copies):
                        row = self._insert(body, now + delay, terms, fates)
                    answer.append(self._seen(row, now + delay))
            self._settle()
            if any(fault.what == "no id" for fault in faults):
                return {"status": "ordered"}
            return self._seen(self._by_id(answer[0]["id"]), now + delay)

    def describe(self, api_key: str, instance_id: str) -> dict[str, Any]:
        with self._call("get", api_key, instance_id):
            self._settle()
            now = self.now()
            row = self._by_id(instance_id)
            if row is None or self._is_forgotten(row, now) or self._status(row, now) == "unborn":
                raise VendorError(404, "no_such_instance", f"there is no instance {instance_id}")
            return self._seen(row, now)

    def page(self, api_key: str, region: str, after: str | None) -> dict[str, Any]:
        """One page of a region's instances, as they were `listing_lag_s` ago, and the token of the next."""
        with self._call("list", api_key, region, region=region):
            self._settle()
            terms = self.terms
            then = self.now() - terms.listing_lag_s
            rows = [
                row
                for row in self._rows("SELECT * FROM orders WHERE region = ? ORDER BY n", (region,))
                if self._status(row, then) not in {"ended", "unborn"}
            ]
            start = int(after or 0)
            end = start + terms.page_size
            return {
                "items": [self._seen(row, then) for row in rows[start:end]],
                "next": str(end) if end < len(rows) else None,
            }

    def orphaned_disks(self, api_key: str) -> list[dict[str, Any]]:
        self._authenticate(api_key)
        lonely = set(self.disks())
        return [dict(row) for row in self._rows("SELECT * FROM disks") if row["id"] in lonely]

    def end(self, api_key: str, instance_id: str) -> None:
        """Ask for an instance's end, or remove a disk."""
        with self._call("terminate", api_key, instance_id):
            row = self._by_id(instance_id)
            disk = self._db.execute("SELECT * FROM disks WHERE id = ?", (instance_id,)).fetchone()
            if row is None and disk is None:
                raise VendorError(404, "no_such_instance", f"there is no instance {instance_id}")
            if row is not None and _is_by_hand(row):
                raise VendorError(409, "by_hand", f"{instance_id} was ordered on the web page: end it there")
            with self._transaction():
                if disk is not None:
                    self._db.execute("DELETE FROM disks WHERE id = ?", (instance_id,))
                else:
                    self._db.execute(
                        "UPDATE orders SET end_asked_at = ? WHERE id = ? AND end_asked_at IS NULL",
                        (self.now(), instance_id),
                    )
            self._settle()

    # --- inside ------------------------------------------------------------------------------------------------------

    @contextmanager
    def _call(
        self, call: Call, api_key: str, about: str, *, region: str | None = None, what: str = "machine"
    ) -> Iterator[tuple[list[Injected], list[dict[str, Any]]]]:
        """One request: written down, authenticated, and spoiled by the faults that apply to it."""
        with self._transaction():
            self._db.execute("INSERT INTO calls (call, about) VALUES (?, ?)", (call, about))
        faults = self._take_faults(call, about, region)
        for fault in faults:
            if fault.what == "slow before":
                time.sleep(fault.seconds)
        for fault in faults:
            if fault.what == "never sent":
                raise NeverSent("connection refused")
        self._authenticate(api_key)
        for fault in faults:
            what = "server error" if fault.what == "unread" else fault.what
            if what in _WORDS:
                status, code, words = _WORDS[what]
                text = fault.text or words.format(type=what, region=region)
                raise VendorError(status, code, text, fault.seconds or None)
        yield faults, []
        for fault in faults:
            if fault.what == "slow after":
                time.sleep(fault.seconds)
        if any(fault.what in {"lost", "late"} for fault in faults):
            raise AnswerLost("connection reset by peer")

    def _authenticate(self, api_key: str) -> None:
        if api_key != self.terms.api_key:
            raise VendorError(401, "unauthenticated", "this key is not known")

    def _take_faults(self, call: Call, about: str, region: str | None) -> list[Injected]:
        taken: list[Injected] = []
        with self._transaction():
            for row in self._db.execute("SELECT n, body FROM faults ORDER BY n").fetchall():
                fault = Injected.model_validate_json(row["body"])
                name = about
                if call in {"get", "terminate"}:
                    known = self._by_id(about)
                    name = known["name"] if known else about
                if fault.on != call or fault.region not in (None, region) or not name.startswith(fault.name):
                    continue
                if any(fault.what == other.what for other in taken):
                    continue  # two faults of a kind are for two calls
                taken.append(fault)
                if fault.times is None:
                    continue
                if fault.times <= 1:
                    self._db.execute("DELETE FROM faults WHERE n = ?", (row["n"],))
                else:
                    fewer = fault.model_copy(update={"times": fault.times - 1})
                    self._db.execute("UPDATE faults SET body = ? WHERE n = ?", (fewer.model_dump_json(), row["n"]))
        return taken

    def _insert(self, body: dict[str, Any], at: float, terms: Terms, fates: list[Injected]) -> sqlite3.Row:
        kind = next((kind for kind in terms.types if kind.name == body["type"]), None)
        if kind is None or body["zone"] not in terms.zones.get(body["region"], ()):
            raise VendorError(422, "malformed", f"we do not sell {body['type']} in {body['zone']}")
        fate = next((fate for fate in fates if fate.what not in {"twice", "leaves a disk"}), None)
        number = self._db.execute("SELECT COUNT(*) FROM orders").fetchone()[0] + 1
        instance_id = f"i-{number:06d}"
        self._db.execute(
            "INSERT INTO orders (id, name, region, zone, type, spot, price, ordered_at, boot_s, fate, fate_at, deadline,"
            " leaves_disk, body) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
            (
                instance_id, body["name"], body["region"], body["zone"], body["type"], body["spot"],
                kind.price * (terms.spot_factor if body["spot"] else 1), at, terms.boot_s,
                fate.what if fate else None, at + (fate.seconds if fate else 0),
                body["deadline"] if terms.ends_at_deadline else None,
                any(fate.what == "leaves a disk" for fate in fates), json.dumps(body),
            ),
        )  # fmt: skip
        self._db.execute(
            "INSERT INTO disks (id, instance, name, region) VALUES (?,?,?,?)",
            (f"disk-{number:06d}", instance_id, body["name"], body["region"]),
        )
        row = self._by_id(instance_id)
        assert row is not None
        return row

    def _end_of(self, row: sqlite3.Row, now: float) -> tuple[float, str] | None:
        """When and how this instance ended, seen at `now`."""
        ends: list[tuple[float, str]] = []
        if row["ended_at"] is not None:
            ends.append((row["ended_at"], "ended"))
        if row["end_asked_at"] is not None and row["fate"] != "never ends":
            late_s = row["fate_at"] - row["ordered_at"] if row["fate"] == "ends late" else 0.0
            ends.append((row["end_asked_at"] + self.terms.terminate_s + late_s, "ended"))
        if row["deadline"] is not None and row["fate"] != "never ends":
            ends.append((row["deadline"], "ended"))
        if row["fate"] == "interrupted":
            ends.append((row["fate_at"], "reclaimed"))
        if row["fate"] == "vanishes":
            ends.append((row["fate_at"], "ended"))
        first = min(ends, default=None)
        if first is None or first[0] > now:
            return None
        if first[1] == "reclaimed" and (past := [end for end in ends if end[1] == "ended" and end[0] <= now]):
            return min(past)  # what was reclaimed is still there to be given back
        return first

    def _status(self, row: sqlite3.Row, now: float) -> str:
        if now < row["ordered_at"]:
            return "unborn"
        if (end := self._end_of(row, now)) is not None:
            return end[1]
        if row["end_asked_at"] is not None and row["end_asked_at"] <= now:
            return "ending"
        if row["word"] is not None:
            return row["word"]
        if row["fate"] == "odd status":
            return "pondering"
        if row["fate"] == "never runs" or now < row["ordered_at"] + row["boot_s"]:
            return "booting"
        return "error" if row["fate"] == "fails at boot" else "up"

    def _is_forgotten(self, row: sqlite3.Row, now: float) -> bool:
        after = self.terms.forgets_after_s
        end = self._end_of(row, now)
        return end is not None and end[1] == "ended" and after is not None and now >= end[0] + after

    def _order(self, row: sqlite3.Row, now: float) -> Order:
        end = self._end_of(row, now)
        columns = ("id", "name", "region", "zone", "type", "price", "ordered_at", "fate")
        return Order(
            **{column: row[column] for column in columns},
            spot=bool(row["spot"]),
            status=self._status(row, now),
            ended_at=end[0] if end else None,
        )

    def _seen(self, row: sqlite3.Row | None, at: float) -> dict[str, Any]:
        """The vendor's JSON of an instance at a moment."""
        assert row is not None
        status = self._status(row, at)
        address = self._address(row) if status == "up" else None
        if status == "up" and address is None:
            status = "booting"  # its SSH server is not up
        return {
            "id": row["id"],
            "name": row["name"],
            "status": status,
            "why": {"error": "the image could not be read", "reclaimed": "capacity was needed elsewhere"}.get(status),
            "region": row["region"],
            "zone": row["zone"],
            "spot": bool(row["spot"]),
            "price": row["price"],
            "created": row["ordered_at"],
            "by_hand": _is_by_hand(row),
            "address": address,
        }

    def _address(self, row: sqlite3.Row) -> dict[str, Any] | None:
        if not self.terms.has_ssh:
            return {"host": "192.0.2.1", "port": 22, "user": "root"}  # TEST-NET-1: answers nobody
        machine = listing.read(self._machines, _machine_name(row))
        if machine is None or machine.state is not InstanceState.RUNNING:
            return None
        return {"host": "127.0.0.1", "port": machine.port, "user": machine.user}

    @property
    def _machines(self) -> Path:
        """Where the loopback machines of this cloud live."""
        if self.path is None:
            raise RuntimeError("a cloud with SSH needs a path")
        return self.path.with_name(self.path.name + ".machines")

    def _settle(self) -> None:
        """What the cloud does by itself: machines boot and end, disks go with their instances."""
        now = self.now()
        has_ssh = self.terms.has_ssh
        for row in self._rows("SELECT * FROM orders WHERE is_settled = 0"):
            status = self._status(row, now)
            if self._end_of(row, now) is None:
                if has_ssh and status == "up" and self._address(row) is None:
                    self._boot(row)
                continue
            if has_ssh:
                give_back.end(self._machines, _machine_name(row))
            with self._transaction():
                if status == "ended":  # what was reclaimed is still to be given back
                    self._db.execute("UPDATE orders SET is_settled = 1 WHERE id = ?", (row["id"],))
                if not row["leaves_disk"]:
                    self._db.execute("DELETE FROM disks WHERE instance = ?", (row["id"],))

    def _boot(self, row: sqlite3.Row) -> None:
        """Start its machine; the same order from every process, so that two that start it start one."""
        cloud = self._cloud_row()
        body = json.loads(row["body"])
        if body.get("host_key") is None:
            return  # ordered by hand
        end = row["deadline"] or row["ordered_at"] + 24 * 3600
        if row["fate"] in {"interrupted", "vanishes"}:
            end = min(end, row["fate_at"])
        if not cloud["is_stopped"]:
            end -= cloud["clock"]  # what the cloud's clock is ahead of the machine's
        spec = LaunchSpec(
            name=_machine_name(row),
            deadline=datetime.fromtimestamp(int(end) + 1, UTC),
            client_public_key=body["key"],
            host_key=KeyPair(private=SecretStr(body["host_key"]), public=body["host_key_public"]),
        )
        with contextlib.suppress(order.Exists):  # another process booted it in this moment
            order.start(self._machines, spec)

    def _by_id(self, instance_id: str) -> sqlite3.Row | None:
        return next(iter(self._rows("SELECT * FROM orders WHERE id = ?", (instance_id,))), None)

    def _cloud_row(self) -> sqlite3.Row:
        return self._rows("SELECT * FROM cloud")[0]

    def _rows(self, query: str, values: tuple[object, ...] = ()) -> list[sqlite3.Row]:
        with self._lock:
            return self._db.execute(query, values).fetchall()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """All or nothing, also when the process dies in it. Nests."""
        with self._lock:
            if self._db.in_transaction:
                yield
                return
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")


def _is_by_hand(row: sqlite3.Row) -> bool:
    return "key" not in json.loads(row["body"])


def _machine_name(row: sqlite3.Row) -> str:
    return f"{row['id']}-{row['name']}"


_FATES = frozenset(Fate.__args__)  # type: ignore[attr-defined]  # a Literal's values

_SCHEMA = """
PRAGMA synchronous = OFF;
CREATE TABLE IF NOT EXISTS cloud (one INTEGER PRIMARY KEY, terms TEXT, is_stopped INTEGER, clock REAL);
CREATE TABLE IF NOT EXISTS faults (n INTEGER PRIMARY KEY AUTOINCREMENT, body TEXT);
CREATE TABLE IF NOT EXISTS calls (n INTEGER PRIMARY KEY AUTOINCREMENT, call TEXT, about TEXT);
CREATE TABLE IF NOT EXISTS disks (id TEXT PRIMARY KEY, instance TEXT, name TEXT, region TEXT);
CREATE TABLE IF NOT EXISTS orders (
    n INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE, name TEXT, region TEXT, zone TEXT, type TEXT, spot INTEGER,
    price REAL, ordered_at REAL, boot_s REAL, word TEXT, fate TEXT, fate_at REAL, deadline REAL, leaves_disk INTEGER,
    end_asked_at REAL, ended_at REAL, is_settled INTEGER DEFAULT 0, body TEXT
);
"""


# --- the driver ------------------------------------------------------------------------------------------------------


class ReferenceAccount(Model):
    """What the driver logs in with; a cloud in memory is found by the object, one in a file by its path."""

    cloud: str
    api_key: SecretStr
    budget: AccountBudget = AccountBudget()


_ERRORS: dict[str, type[ProviderError]] = {
    "out_of_stock": NoCapacity,
    "quota": QuotaExceeded,
    "balance": InsufficientFunds,
    "unauthenticated": AuthFailed,
    "malformed": InvalidRequest,
    "no_such_instance": NotFound,
    "image_error": InstanceFailed,
}

_STATES = {
    "ordered": InstanceState.PROVISIONING,
    "booting": InstanceState.PROVISIONING,
    "up": InstanceState.RUNNING,
    "ending": InstanceState.TERMINATING,
    "ended": InstanceState.TERMINATED,
    "error": InstanceState.FAILED,
    "reclaimed": InstanceState.INTERRUPTED,
}


class Reference(Provider[ReferenceAccount]):
    """The driver of the reference cloud."""

    name: ClassVar[str] = "reference"
    capabilities: ClassVar[Capabilities] = Capabilities(
        create_repeatable="zone",
        listing_lag_s=0,
        not_found_proves_absence=True,
        self_ends="server",
        spot=True,
        images="none",
        host_key="placed",
        needs_catalog=False,
        boot_deadline_s=60,
        billing=Billing(step_s=1, minimum_s=0),
    )
    states: ClassVar[dict[str, InstanceState]] = _STATES

    def __init__(self, credentials: ReferenceAccount, cloud: ReferenceCloud | None = None) -> None:
        super().__init__(credentials)
        self.cloud = cloud or ReferenceCloud(credentials.cloud)

    @property
    def _key(self) -> str:
        return self.credentials.api_key.get_secret_value()

    def account_id(self) -> str:
        with _vendor_errors("whoami"):
            return self.cloud.whoami(self._key)

    def fetch_offers(self, requirements: Requirements) -> list[Offer]:
        with _vendor_errors("catalog"):
            rows = self.cloud.catalog(self._key)
        offers = [
            Offer(
                provider=self.name,
                instance_type=row["name"],
                region=row["region"],
                zone=row["zone"],
                price=row["price"],
                spot=row["spot"],
                cpu=row["cpu"],
                memory_gb=row["memory_gb"],
                disk_gb=row["disk_gb"],
                arch="x86_64",
                gpu_name=row["gpu_name"],
                gpu_count=row["gpu_count"],
                gpu_memory_gb=row["gpu_memory_gb"],
                gpu_vendor="nvidia" if row["gpu_count"] else None,
                availability=Availability.AVAILABLE,
            )
            for row in rows
            if self.capabilities.spot or not row["spot"]
        ]
        return [offer for offer in offers if fits(offer, requirements)]

    def create_instance(self, offer: Offer, spec: LaunchSpec) -> Instance:
        if spec.image is not None:
            raise Unsupported("the reference cloud boots no images: leave `image` empty")
        if offer.spot and not self.capabilities.spot:
            raise Unsupported("the reference cloud sells no spot instances: take an on-demand offer")
        body = {
            "name": spec.name,
            "region": offer.region,
            "zone": offer.zone,
            "type": offer.instance_type,
            "spot": offer.spot,
            "deadline": spec.deadline.timestamp(),
            "key": spec.client_public_key,
            "host_key": spec.host_key.private.get_secret_value() if spec.host_key else None,
            "host_key_public": spec.host_key.public if spec.host_key else None,
        }
        with _vendor_errors("create", is_order=True):
            row = self.cloud.order(self._key, body)
        if "id" not in row:
            raise Unconfirmed(f"the reference cloud took the order of {spec.name} and named no instance")
        return self._instance(row)

    def get_instance(self, instance_id: str) -> Instance:
        with _vendor_errors("get"):
            return self._instance(self.cloud.describe(self._key, instance_id))

    def list_instances(self, prefix: str) -> Listing:
        found: list[Instance] = []
        strangers: list[Unproved] = []
        unread: list[Unread] = []
        for region in self.cloud.terms.zones:
            try:
                rows = [row for row in self._region(region) if row["name"].startswith(prefix)]
                found += [self._instance(row) for row in rows if not row.get("by_hand")]
                strangers += [_unproved(row) for row in rows if row.get("by_hand")]
            except AuthFailed:
                raise
            except ProviderError as error:
                unread.append(Unread(scope=region, reason=error.message))
        with _vendor_errors("disks"):
            disks = self.cloud.orphaned_disks(self._key)
        leftovers = [
            Leftover(id=disk["id"], kind="disk", name=disk["name"], region=disk["region"])
            for disk in disks
            if disk["name"].startswith(prefix)
        ]
        return Listing(
            instances=tuple(found),
            leftovers=tuple(leftovers),
            unproved=tuple(strangers),
            incomplete=tuple(unread),
        )

    def terminate_instance(self, instance_id: str) -> None:
        try:
            with _vendor_errors("terminate"):
                self.cloud.end(self._key, instance_id)
        except NotFound:
            return

    def _region(self, region: str) -> Iterator[dict[str, Any]]:
        token: str | None = None
        for _ in range(10_000):
            with _vendor_errors("list"):
                page = self.cloud.page(self._key, region, token)
            yield from page["items"]
            token = page["next"]
            if token is None:
                return
        raise Transient(f"the listing of {region} has no end")

    def _instance(self, row: dict[str, Any]) -> Instance:
        address = row["address"]
        return Instance(
            id=row["id"],
            name="" if row.get("by_hand") else row["name"],
            provider=self.name,
            state=self.states.get(row["status"], InstanceState.UNKNOWN),
            region=row["region"],
            zone=row["zone"],
            created_at=datetime.fromtimestamp(row["created"], UTC),
            ssh=SshEndpoint(**address) if address else None,
            reason=row["why"] or "",
            price=row["price"],
            spot=row["spot"],
            raw={"status": row["status"]},
        )


def _unproved(row: dict[str, Any]) -> Unproved:
    reason = "it was ordered on the vendor's web page"
    return Unproved(id=row["id"], kind="instance", name=row["name"], region=row["region"], reason=reason)


@contextmanager
def _vendor_errors(call: str, *, is_order: bool = False) -> Iterator[None]:
    """The vendor's answers as our errors."""
    try:
        yield
    except NeverSent as error:
        raise Transient(f"the reference cloud does not answer {call}: {error}") from None
    except AnswerLost as error:
        lost = Unconfirmed if is_order else Transient
        raise lost(f"the reference cloud's answer to {call} was lost: {error}") from None
    except VendorError as error:
        said = f"the reference cloud refused {call}: {error.text}"
        if error.status == 429:
            raise RateLimited(said, code=error.code, retry_after_s=error.retry_after_s or 1) from None
        if error.status >= 500:
            raise (Unconfirmed if is_order else Transient)(said, code=str(error.status)) from None
        reach = "provider" if error.status == 401 else None
        raise _ERRORS.get(error.code or "", InvalidRequest)(said, code=error.code, reach=reach) from None


def reference(cloud: ReferenceCloud, driver: type[Reference] = Reference, **capabilities: Any) -> Reference:
    """A driver of this cloud, with the right key, and where given with other capabilities."""
    if capabilities:
        changed = driver.capabilities.model_copy(update=capabilities)
        driver = type(driver.__name__, (driver,), {"capabilities": changed})
    account = ReferenceAccount(cloud=str(cloud.path or ":memory:"), api_key=SecretStr(cloud.terms.api_key))
    return driver(account, cloud)
