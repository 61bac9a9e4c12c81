"""SSH connections: one accepted host key, jump hosts, dead links."""

from __future__ import annotations

import hashlib
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import asyncssh
import pytest
from pydantic import SecretStr

from prefect_gpu.providers.core.errors import AuthFailed, HostKeyMismatch, LinkLost, LoginRefused, NotReady
from prefect_gpu.providers.core.machine import supervisor
from prefect_gpu.providers.core.machine.jobs import Machine
from prefect_gpu.providers.core.machine.keys import derive, fingerprint
from prefect_gpu.providers.core.machine.shell import run_script
from prefect_gpu.providers.core.machine.ssh import connect
from prefect_gpu.providers.core.models import JobSpec, KeyPair, SshEndpoint, SshJump
from tests.fakes.proxy import proxy
from tests.fakes.sshd import Server, asyncssh_server, free_port, has_openssh, openssh_server


@pytest.fixture(scope="module", params=["asyncssh", pytest.param("openssh", marks=pytest.mark.openssh)])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    if request.param == "openssh" and not has_openssh():
        pytest.skip("OpenSSH is not installed: apt-get install openssh-server")
    with asyncssh_server() if request.param == "asyncssh" else openssh_server() as running:
        yield running


def test_the_known_key_is_accepted(server: Server) -> None:
    connection = server.connect()
    assert run_script(connection, "echo hello; echo oops >&2; exit 5") == (5, b"hello\n", "oops\n")
    assert connection.is_alive()
    connection.close()
    assert not connection.is_alive()
    with pytest.raises(LinkLost):
        connection.open("true")


def test_another_host_key_is_not_ready_and_told_with_both_fingerprints(server: Server) -> None:
    wrong = derive(b"tests", "another machine", "host").public
    with pytest.raises(HostKeyMismatch) as caught:
        connect(server.endpoint, server.client_key, wrong)
    assert isinstance(caught.value, NotReady)
    assert fingerprint(wrong) in caught.value.message
    assert fingerprint(server.host_key.public) in caught.value.message


def test_the_endpoint_s_own_key_counts_where_none_is_given(server: Server) -> None:
    known = server.endpoint.model_copy(update={"host_key": server.host_key.public + " a comment"})
    connect(known, server.client_key, None).close()


@pytest.mark.openssh
@pytest.mark.skipif(not has_openssh(), reason="OpenSSH is not installed: apt-get install openssh-server")
def test_a_known_rsa_key_is_asked_for_and_accepted(tmp_path: Path) -> None:
    rsa = asyncssh.generate_private_key("ssh-rsa", key_size=2048)
    rsa.write_private_key(tmp_path / "rsa")
    (tmp_path / "rsa").chmod(0o600)
    public = rsa.export_public_key().decode().strip()
    with openssh_server("two kinds", options=(f"HostKey {tmp_path}/rsa",)) as server:
        connect(server.endpoint, server.client_key, public).close()
        another = asyncssh.generate_private_key("ssh-rsa", key_size=1024).export_public_key().decode().strip()
        with pytest.raises(HostKeyMismatch) as caught:
            connect(server.endpoint, server.client_key, another)
        assert fingerprint(public) in caught.value.message
        server.connect().close()


@pytest.mark.parametrize("kind", ["ecdsa-sha2-nistp999", "sk-ssh-ed25519@openssh.com"])
def test_a_kind_of_host_key_that_nobody_knows_is_a_mismatch(server: Server, kind: str) -> None:
    with pytest.raises(HostKeyMismatch):
        connect(server.endpoint, server.client_key, f"{kind} AAAA")


def test_an_unknown_key_is_refused_unless_first_use_is_allowed_and_told(server: Server) -> None:
    with pytest.raises(HostKeyMismatch, match="none is known"):
        connect(server.endpoint, server.client_key, None)
    told: list[str] = []
    connect(server.endpoint, server.client_key, None, on_first_use=told.append).close()
    assert told == [server.host_key.public]


def test_a_refused_key_is_not_ready_yet(server: Server) -> None:
    stranger = derive(b"tests", "stranger", "client")
    with pytest.raises(LoginRefused, match="refuses the key") as caught:
        connect(server.endpoint, stranger, server.host_key.public)
    assert isinstance(caught.value, NotReady)


def test_a_private_key_that_is_none_is_an_error_of_its_own(server: Server) -> None:
    broken = KeyPair(private=SecretStr("-----BEGIN nonsense"), public="")
    with pytest.raises(AuthFailed, match="not one that SSH knows") as caught:
        connect(server.endpoint, broken, server.host_key.public)
    assert "nonsense" not in str(caught.value)


def test_nobody_listening_is_not_ready() -> None:
    with pytest.raises(NotReady, match="does not answer"):
        connect(SshEndpoint(host="127.0.0.1", port=free_port()), derive(b"t", "n", "client"), "ssh-ed25519 AAAA")


@pytest.mark.parametrize("greeting", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", None])
def test_what_is_no_ssh_server_is_not_ready_within_the_time_given(greeting: bytes | None) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            client, _ = listener.accept()
            with client:
                if greeting is None:
                    time.sleep(3)  # accepts and is silent, as a host that is starting up
                else:
                    client.sendall(greeting)

        thread = threading.Thread(target=answer)
        thread.start()
        began = time.monotonic()
        with pytest.raises(NotReady, match="not as an SSH server"):
            connect(
                SshEndpoint(host="127.0.0.1", port=listener.getsockname()[1]),
                derive(b"t", "n", "client"),
                "ssh-ed25519 AAAA",
                timeout_s=1,
            )
        assert time.monotonic() - began < 2
        thread.join()


def test_a_jump_host_leads_to_a_machine(server: Server) -> None:
    with asyncssh_server("jump") as between:
        jump = SshJump(
            host=between.endpoint.host,
            port=between.endpoint.port,
            user=between.endpoint.user,
            private_key=between.client_key.private,
            host_key=between.host_key.public,
        )
        behind = server.endpoint.model_copy(update={"jump": jump})
        connection = connect(behind, server.client_key, server.host_key.public)
        done = run_script(connection, "head -c 3000000 /dev/zero | tr '\\0' x")
        assert done.stdout == b"x" * 3000000
        connection.close()
        wrong = jump.model_copy(update={"host_key": derive(b"t", "x", "host").public})
        with pytest.raises(HostKeyMismatch, match="jump host"):
            connect(server.endpoint.model_copy(update={"jump": wrong}), server.client_key, server.host_key.public)
        unknown = jump.model_copy(update={"host_key": None})
        told: list[str] = []
        connect(
            server.endpoint.model_copy(update={"jump": unknown}),
            server.client_key,
            server.host_key.public,
            on_first_use=told.append,
        ).close()
        assert told == [between.host_key.public]
        nowhere = behind.model_copy(update={"port": free_port()})
        with pytest.raises(NotReady, match="does not reach"):
            connect(nowhere, server.client_key, server.host_key.public)


def test_exit_status_waits_no_longer_than_asked(server: Server) -> None:
    connection = server.connect()
    channel = connection.open("exec sleep 30")
    began = time.monotonic()
    with pytest.raises(LinkLost, match="no exit status"):
        channel.exit_status(0.2)
    assert time.monotonic() - began < 1
    channel.close()
    connection.close()


def test_what_a_login_shell_prints_does_not_reach_a_script_s_output(server: Server) -> None:
    connection = server.connect()

    class Talkative:
        def open(self, command: str) -> object:
            return connection.open(f"echo 'Welcome to the machine'; echo motd >&2; {command}")

        def is_alive(self) -> bool:
            return True

        def close(self) -> None: ...

    assert run_script(Talkative(), "cat; echo err >&2", b"in\0put") == (0, b"in\0put", "err\n")
    connection.close()


def test_a_script_that_ends_before_it_took_its_input_tells_why(server: Server) -> None:
    connection = server.connect()
    assert run_script(connection, "echo full >&2; exit 3", b"x" * 5_000_000) == (3, b"", "full\n")

    class WithoutShell:
        def open(self, command: str) -> object:
            return connection.open("echo no sh >&2; exit 127")

    assert run_script(WithoutShell(), "cat", b"in").exit_code == 127
    connection.close()


def test_a_script_that_takes_too_long_is_given_up(server: Server) -> None:
    connection = server.connect()
    with pytest.raises(LinkLost, match=r"within 0\.3 s"):
        run_script(connection, "sleep 60", timeout_s=0.3)
    assert connection.is_alive()
    connection.close()


def test_a_cut_link_loses_and_doubles_nothing(server: Server, tmp_path: Path) -> None:
    with proxy(server.endpoint.host, server.endpoint.port) as between:
        machine = Machine(
            lambda: connect(_through(server, between.port), server.client_key, server.host_key.public),
            root=str(tmp_path / "root"),
        )
        spec = JobSpec(
            id=f"job-{uuid.uuid4().hex}",
            command="i=0; while [ $i -lt 600 ]; do i=$((i+1)); seq $i $((i+200)); sleep 0.005; done",
        )
        expected = "".join(f"{n}\n" for i in range(1, 601) for n in range(i, i + 201)).encode()
        has_begun = threading.Event()
        cuts = threading.Thread(target=lambda: [(has_begun.wait(10), between.cut(), time.sleep(0.9)) for _ in range(3)])
        notes: list[str] = []
        cuts.start()
        result = machine.run(spec, tmp_path / "log", lambda at, data: has_begun.set(), on_link=notes.append)
        cuts.join()
        machine.close()
    assert result is not None
    assert result.exit_code == 0
    written = (tmp_path / "log").read_bytes()
    assert (len(written), hashlib.sha256(written).digest()) == (len(expected), hashlib.sha256(expected).digest())
    assert any("again at byte" in note for note in notes)


def test_a_frozen_link_is_noticed_within_20_s_and_loses_and_doubles_nothing(server: Server, tmp_path: Path) -> None:
    with proxy(server.endpoint.host, server.endpoint.port) as between:
        machine = Machine(
            lambda: connect(_through(server, between.port), server.client_key, server.host_key.public, timeout_s=2),
            root=str(tmp_path / "root"),
        )
        spec = JobSpec(id=f"job-{uuid.uuid4().hex}", command="for i in $(seq 1 250); do echo line $i; sleep 0.1; done")
        noticed: list[float] = []
        first = threading.Event()

        def freeze() -> None:
            first.wait(10)
            between.freeze()
            frozen.append(time.monotonic())

        def note(text: str) -> None:
            noticed.append(time.monotonic())
            if len(noticed) == 1:
                between.thaw()

        frozen: list[float] = []
        threading.Thread(target=freeze, daemon=True).start()
        result = machine.run(spec, tmp_path / "log", lambda at, data: first.set(), on_link=note)
        machine.close()
    assert result is not None
    assert result.exit_code == 0
    assert noticed[0] - frozen[0] <= 20
    assert (tmp_path / "log").read_text() == "".join(f"line {n}\n" for n in range(1, 251))


def test_an_idle_link_that_answers_stays_open(server: Server) -> None:
    connection = server.connect()
    channel = connection.open("exec cat")
    time.sleep(17)
    assert connection.is_alive()
    channel.sendall(b"still here")
    assert channel.recv(100) == b"still here"
    channel.close()
    connection.close()


def test_a_follower_ends_with_its_job_when_nobody_is_on_the_other_side_any_more(server: Server, tmp_path: Path) -> None:
    root = str(tmp_path / "root")
    machine = Machine(server.connect, root=root)
    spec = JobSpec(id=f"job-{uuid.uuid4().hex}", command="sleep 1.5")
    machine.start(spec)
    # A process that never reads its channel, as good as a host that vanished.
    channel = server.connect().open(f"exec sh -c {_quoted(supervisor.follow_program(root, spec.id, 0))}")
    assert _eventually(lambda: len(_followers(root)) == 2)
    assert _eventually(lambda: not _followers(root))
    channel.close()
    machine.close()


def _eventually(is_so: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 5
    while not is_so() and time.monotonic() < deadline:
        time.sleep(0.05)
    return is_so()


def _followers(root: str) -> list[str]:
    found: list[str] = []
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = process.read_bytes().decode(errors="replace")
        except OSError:
            continue
        if words.startswith(("tail", "flock")) and root in words:
            found.append(words)
    return found


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\"'\"'") + "'"


def _through(server: Server, port: int) -> SshEndpoint:
    return server.endpoint.model_copy(update={"port": port})
