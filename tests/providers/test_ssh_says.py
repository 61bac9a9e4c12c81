"""Whatever one own machine says is read, or is an error of that machine alone: in bounded time, never anything else."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from prefect_gpu.blocks.ssh import SshHost, SshMachines
from prefect_gpu.providers.core.errors import LinkLost, NotFound, ProviderError, Transient, Unconfirmed
from prefect_gpu.providers.core.machine.keys import derive
from prefect_gpu.providers.core.machine.shell import Finished, run_script
from prefect_gpu.providers.core.models import Availability, LaunchSpec, Offer, utc_now
from prefect_gpu.providers.core.requests import Requirements
from prefect_gpu.providers.ssh.driver import Ssh
from prefect_gpu.providers.ssh.errors import InUse
from prefect_gpu.providers.ssh.reach import Hosts
from prefect_gpu.providers.ssh.silence import Listening
from tests.conformance import launch_spec, lease_name

NAME = lease_name()
EPOCH = int(time.time())
SOUND = f"""claim {NAME} {EPOCH + 60} {EPOCH} 0,1
ending {lease_name(attempt=1)}
left key {lease_name(attempt=2)}
left directory {lease_name(attempt=3)}
left container {lease_name(attempt=4)}
other {lease_name(attempt=5)} all
booted {EPOCH - 10}
now {EPOCH}
cores 8
memory 16000000
disk 400000000
arch x86_64
nvidia 0, GPU-aaaa1111, NVIDIA H100 80GB HBM3, 81559 MiB, 550.54.15, 00000000:3B:00.0, 0
nvidia-exit 0
"""

DIGITS = ["9" * 400, "-1", "0", "1e308", "nan", "inf", "٣", "00", str(2**63), "9" * 5000, "", "0x10"]
words = st.one_of(
    st.sampled_from(DIGITS),
    st.sampled_from(SOUND.split()),
    st.text(max_size=30),
    st.sampled_from(["pg-", NAME + "x", NAME.upper(), "../..", "\x1b[2J", "a" * 5000]),
)


@st.composite
def almost_sound(draw: Any) -> bytes:
    """What a sound machine says, with some words, lines or bytes that are not."""
    lines = [line.split(" ") for line in SOUND.splitlines()]
    for _ in range(draw(st.integers(0, 4))):
        line = draw(st.integers(0, len(lines) - 1))
        word = draw(st.integers(0, len(lines[line]) - 1))
        lines[line][word] = draw(words)
    if draw(st.booleans()):
        lines.insert(draw(st.integers(0, len(lines))), draw(st.lists(words, max_size=8)))
    data = "\n".join(" ".join(line) for line in lines).encode("utf-8", "surrogatepass")
    cut = draw(st.integers(0, len(data)))
    return data[:cut] + draw(st.binary(max_size=20)) if draw(st.booleans()) else data


class Told(Hosts):
    """Machines that say what they are told to, whatever they are asked."""

    def __init__(self, credentials: SshMachines, says: dict[str, Finished]) -> None:
        super().__init__(credentials)
        self.says = says

    def connect(self, host: SshHost, key: Any = None) -> Any:
        return type("Line", (), {"close": lambda self: None})()

    def execute_over(self, connection: Any, host: SshHost, script: str, *, timeout_s: float = 40.0) -> Finished:
        return self.says[host.name]


def driver_of(**says: bytes | Finished) -> Ssh:
    hosts = [SshHost(address="127.0.0.1", name=name, host_key="ssh-ed25519 AAAA") for name in says]
    driver = Ssh(SshMachines(hosts=hosts, private_key=SecretStr("none")))
    told = {name: Finished(0, said, "") if isinstance(said, bytes) else said for name, said in says.items()}
    driver.hosts = Told(driver.credentials, told)
    return driver


@settings(max_examples=300, deadline=None)
@given(almost_sound())
def test_a_machine_that_says_anything_breaks_nobody_else(said: bytes) -> None:
    driver = driver_of(odd=said, sound=SOUND.encode())
    began = time.monotonic()
    offers = {offer.instance_type: offer for offer in driver.fetch_offers(Requirements())}
    listing = driver.list_instances("pg-")
    assert time.monotonic() - began < 5
    assert offers["sound"].gpu == "H100:1"
    assert [found.id for found in listing.instances if found.zone == "sound"] == [f"sound/{NAME}"]
    assert {unread.scope for unread in listing.incomplete} <= {"odd"}
    for offer in offers.values():
        assert str(offer.unavailable_because).isprintable()
        assert len(offer.model_dump_json()) < 20_000
    for unread in listing.incomplete:
        assert unread.reason.isprintable()
        assert len(unread.reason) < 500
    for found in listing.instances:
        assert found.created_at is not None
    with suppress(NotFound, Transient):
        driver.get_instance(f"odd/{NAME}")


@pytest.mark.parametrize(
    "line",
    [
        f"disk {'9' * 400}",
        f"memory {'9' * 5000}",
        "cores -1",
        "cores ٣",
        f"claim {NAME} {'9' * 400} 1 all",
        f"claim {NAME}x 1 1 all",
        f"now {'9' * 40}",
        "arch \x1b[2J",
        *(f"claim {NAME} 1 1 {gpus}" for gpus in ("$(x)", "a;b")),
    ],
    ids=lambda line: ascii(line.replace(NAME, "NAME")[:30]),  # the same in every process, which xdist wants
)
def test_what_cannot_be_is_an_error_of_that_machine_in_a_sentence(line: str) -> None:
    driver = driver_of(odd=(SOUND + line + "\n").encode(), sound=SOUND.encode())
    offers = {offer.zone: offer for offer in driver.fetch_offers(Requirements())}
    because = str(offers["odd"].unavailable_because)
    assert offers["odd"].availability is Availability.UNAVAILABLE
    assert "odd says what cannot be read" in because
    assert len(because) < 300
    assert offers["sound"].gpu == "H100:1"


@pytest.mark.parametrize("flood", ["claim {name} 1 1 all", "left key {name}", "x"])
def test_a_machine_that_lists_without_end_is_unread(flood: str) -> None:
    lines = "\n".join(flood.format(name=lease_name(attempt=number % 1000)) for number in range(25_000))
    driver = driver_of(odd=f"{lines}\n{SOUND}".encode(), sound=SOUND.encode())
    listing = driver.list_instances("pg-")
    assert [unread.scope for unread in listing.incomplete] == ["odd"]
    assert len(listing.instances) == 1


def test_a_script_that_was_cut_off_is_not_an_empty_machine() -> None:
    driver = driver_of(odd=Finished(137, b"", "Killed\n\x1b[2J"), sound=SOUND.encode())
    (unread,) = driver.list_instances("pg-").incomplete
    assert unread.reason == "odd did not tell its claims: Killed  [2J"


def test_what_a_login_shell_said_before_it_took_no_input_is_heard() -> None:
    """`nologin` says its words and ends; whether our script arrives before that is chance."""

    class Ended:
        def __init__(self) -> None:
            self.said = [b"This account is ", b"currently not available.\n"]

        def sendall(self, data: bytes) -> None:
            raise LinkLost("the machine takes no more input")

        def recv(self, size: int) -> bytes:
            return self.said.pop(0) if self.said else b""

        def error_text(self) -> str:
            return ""

        def close(self) -> None:
            pass

    connection: Any = type("Line", (), {"open": lambda self, command: Ended()})()
    listening = Listening(connection, 5.0)
    with pytest.raises(LinkLost):
        run_script(listening, "true")
    assert listening.end == "This account is currently not available."


def order_of(driver: Ssh) -> tuple[Offer, LaunchSpec]:
    offer = Offer(provider="ssh", instance_type="odd", region="own", zone="odd", price=0, raw={"gpus": "all"})
    return offer, launch_spec(driver, NAME)


@settings(max_examples=200, deadline=None)
@given(
    st.one_of(
        st.binary(max_size=200), st.lists(words, max_size=6).map(lambda said: " ".join(said).encode("utf-8", "replace"))
    )
)
def test_any_answer_to_a_claim_is_an_instance_or_an_error_of_its_own(answer: bytes) -> None:
    driver = driver_of(odd=answer, sound=b"")
    told = NAME
    try:
        told = driver.create_instance(*order_of(driver)).name
    except ProviderError as error:
        told = error.message
    assert told.isprintable()
    assert len(told) < 500


@pytest.mark.parametrize(
    "answer",
    [f"claimed {'9' * 400} 1 all", "claimed 1 1 $(x)", f"taken {NAME}x", f"taken {NAME} soon"],
    ids=lambda answer: answer.replace(NAME, "NAME")[:30],
)
def test_an_answer_to_a_claim_that_cannot_be_read_is_unconfirmed(answer: str) -> None:
    driver = driver_of(odd=answer.encode(), sound=b"")
    with pytest.raises(Unconfirmed, match="cannot be read"):
        driver.create_instance(*order_of(driver))


def test_answers_to_a_claim_that_can_be_read_are_what_they_say() -> None:
    made = driver_of(odd=f"ended x\nclaimed {EPOCH + 60} {EPOCH} 0,1\n".encode(), sound=b"")
    held = made.create_instance(*order_of(made))
    assert held.env == {"CUDA_VISIBLE_DEVICES": "0,1"}
    other = lease_name(attempt=7)
    for answer, words_ in ((f"taken {other}", "of another user"), (f"taken {other} {EPOCH}", "UTC")):
        taken = driver_of(odd=answer.encode(), sound=b"")
        with pytest.raises(InUse, match=f"in use by {other}.*{words_}"):
            taken.create_instance(*order_of(taken))


def test_a_machine_that_was_started_again_says_so_of_what_ran_there() -> None:
    restarted = SOUND.replace(f"booted {EPOCH - 10}", f"booted {EPOCH + 5}")
    driver = driver_of(odd=restarted.encode(), sound=SOUND.encode())
    assert "odd was started again at" in driver.get_instance(f"odd/{NAME}").reason
    assert driver.get_instance(f"sound/{NAME}").reason == ""


def test_a_key_that_is_not_one_line_never_reaches_a_machine() -> None:
    driver = driver_of(odd=b"", sound=b"")
    offer, spec = order_of(driver)
    for key in (
        "ssh-rsa AAAA",
        "ssh-ed25519 AAAA\nssh-ed25519 BBBB",
        f"{derive(b's', 'n', 'client').public} a comment",
    ):
        with pytest.raises(ProviderError, match="the key of a lease is one line"):
            driver.create_instance(offer, spec.model_copy(update={"client_public_key": key}))
    with pytest.raises(ProviderError, match="over already"):
        driver.create_instance(offer, spec.model_copy(update={"deadline": utc_now()}))
