"""A team's Prefect server with a password, CSRF protection and a certificate of its own behind a TLS proxy, named by a profile alone."""

from __future__ import annotations

import datetime as dt
import ipaddress
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.stack import ROOT, wait_until

pytestmark = pytest.mark.server
PASSWORD = "admin:s3cret"
MADE = ("-m", "prefect_gpu.flows.terminal.made")


def certificate(folder: Path) -> Path:
    """A self-signed one for 127.0.0.1, with its key in the same file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "team")])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = folder / "team.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(made.public_bytes(serialization.Encoding.PEM) + private)
    return path


def pump(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    for one in (source, sink):
        with suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)


def serve(raw: socket.socket, context: ssl.SSLContext, port: int) -> None:
    """What comes in over TLS goes on in clear to the server."""
    with (
        raw,
        suppress(OSError),
        context.wrap_socket(raw, server_side=True) as outside,
        socket.create_connection(("127.0.0.1", port)) as inside,
    ):
        back = threading.Thread(target=pump, args=(inside, outside), daemon=True)
        back.start()
        pump(outside, inside)
        back.join()


def proxied(listener: socket.socket, context: ssl.SSLContext, port: int) -> None:
    with suppress(OSError):
        while True:
            raw, _ = listener.accept()
            threading.Thread(target=serve, args=(raw, context, port), daemon=True).start()


# Lines typed one after the other in one process; only who answers for the provider and its user's terminal is made up.
TYPED = """
import json, sys
from types import SimpleNamespace
from prefect_gpu.flows.terminal import __main__ as terminal, asked, connect, setting_up
from prefect_gpu.blocks.vultr import VultrCredentials
asked.connectable = lambda _: None
connect.ask_terminal = lambda question, *, secret=False: "k3y" if secret else ""
driver = lambda block: SimpleNamespace(missing_rights=list, first_contact=lambda: (block, []))
connect.library = lambda _: SimpleNamespace(credentials_class=VultrCredentials, driver_class=driver)
for words in json.loads(sys.argv[1]):
    print("$", *words, flush=True)
    print("->", terminal.main(words), flush=True)
"""


class Team:
    """The address, and the environment of a user who has only a profile."""

    def __init__(self, folder: Path, url: str, pem: Path) -> None:
        self.folder, self.url, self.pem = folder, url, pem
        (folder / "user" / ".prefect").mkdir(parents=True)
        (folder / "user" / ".prefect" / "profiles.toml").write_text(
            'active = "team"\n[profiles.team]\n'
            f'PREFECT_API_URL = "{url}"\nPREFECT_API_AUTH_STRING = "{PASSWORD}"\nPREFECT_API_SSL_CERT_FILE = "{pem}"\n'
        )

    def type(self, *words: str, program: tuple[str, ...] = MADE, **variables: str) -> subprocess.Popen[str]:
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(("PREFECT_", "MAKE"))}
        return subprocess.Popen(
            [sys.executable, *program, *words],
            cwd=self.folder / "user",
            env={
                **inherited,
                "HOME": str(self.folder / "user"),
                "PREFECT_GPU_HOME": str(self.folder / "home"),
                **variables,
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def say(self, *words: str, program: tuple[str, ...] = MADE, **variables: str) -> str:
        process = self.type(*words, program=program, **variables)
        shown, told = process.communicate(timeout=280)
        assert process.returncode == 0, shown + told
        assert "Traceback" not in shown + told
        return shown

    def states(self) -> list[str]:
        return [run["state_type"] for run in self.runs()]

    def runs(self) -> list[dict[str, Any]]:
        with httpx.Client(auth=("admin", "s3cret"), verify=ssl.create_default_context(cafile=self.pem)) as client:
            token = client.get(f"{self.url}/csrf-token?client=tests").raise_for_status().json()["token"]
            headers = {"Prefect-Csrf-Token": token, "Prefect-Csrf-Client": "tests"}
            wanted = {"flows": {"name": {"any_": ["provision"]}}}
            answer = client.post(f"{self.url}/flow_runs/filter", json=wanted, headers=headers)
            return answer.raise_for_status().json()


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    folder = tmp_path_factory.mktemp("team")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PREFECT_")} | {
        "PREFECT_HOME": str(folder / "server"),
        "PREFECT_SERVER_API_AUTH_STRING": PASSWORD,
        "PREFECT_SERVER_CSRF_PROTECTION_ENABLED": "true",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    }
    with (folder / "server.log").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    pem = certificate(folder)
    context.load_cert_chain(pem)
    listener = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=proxied, args=(listener, context, port), daemon=True).start()
    try:
        found = Team(folder, f"https://127.0.0.1:{listener.getsockname()[1]}/api", pem)
        wait_until(lambda: is_healthy(port), 180, "the server's health")
        yield found
    finally:
        down = found.type("down", FORCE="1")
        down.communicate(timeout=100)
        listener.close()
        server.send_signal(signal.SIGTERM)
        server.wait(30)


def is_healthy(port: int) -> bool:
    with suppress(httpx.HTTPError):
        return httpx.get(f"http://127.0.0.1:{port}/api/health", timeout=5).status_code == 200
    return False


@pytest.mark.timeout(900)
def test_every_command_works_there_from_run_to_down(team: Team) -> None:
    assert team.say("deploy").startswith(f"Deployed to {team.url}: ")
    shown = team.say("up")
    assert "The worker runs until `make down`." in shown
    assert "  | 42\n" in team.say("run")
    assert team.states() == ["COMPLETED"]
    assert "local" in team.say("providers")
    assert "local" in team.say("plan", PROVIDERS="local")
    team.say("reap", DRY_RUN="1")

    cancelled = team.type("run", JOB="echo here; sleep 300", PROVIDERS="local")
    assert cancelled.stdout is not None
    for line in cancelled.stdout:
        if "here" in line:
            break
    cancelled.send_signal(signal.SIGINT)
    shown, told = cancelled.communicate(timeout=150)
    assert cancelled.returncode == 130, shown + told
    assert "instances left behind: 0" in shown

    left = team.type("run", JOB="echo here; sleep 300", PROVIDERS="local")
    assert left.stdout is not None
    for line in left.stdout:
        if "here" in line:
            break
    refused = team.type("down")
    _, told = refused.communicate(timeout=100)
    assert "1 job is at work" in told
    shown = team.say("down", FORCE="1")
    assert shown == f"The worker for {team.url} is stopped.\n"
    left.communicate(timeout=100)
    assert sorted(set(team.states())) == ["CANCELLED", "COMPLETED"]

    (run,) = [run for run in team.runs() if run["state_type"] == "COMPLETED"]
    lines = [
        ["ps", "--all"],
        *([word, run["id"]] for word in ("logs", "stop", "fetch")),
        ["refresh"],
        ["connect", "vultr"],
    ]
    (team.folder / "no prices").mkdir()
    said = team.say(json.dumps(lines), program=("-c", TYPED), GPUHUNT_CATALOG_DIR=str(team.folder / "no prices"))
    said_by = {part.partition("\n")[0].split()[0]: part for part in said.split("\n$ ")}
    said_by["ps"] = said_by.pop("$")
    for word, part, code in [
        ("ps", f"{run['name']}  Completed", 0),
        ("logs", "  | 42\n", 0),
        ("stop", f"{run['name']} had ended already (Completed): its machine is gone", 0),
        ("fetch", f"fetched/{run['name']}/0/job.log", 0),
        ("refresh", "there is no each.csv in GPUHUNT_CATALOG_DIR", 1),
        ("connect", "Saved as 'default'. vultr accepts them.", 0),
    ]:
        assert part in said_by[word], said
        assert f"-> {code}\n" in said_by[word] + "\n", said


def test_a_certificate_that_is_not_trusted_is_told_with_the_setting_that_helps(team: Team) -> None:
    process = team.type("plan", PREFECT_API_URL=team.url, PREFECT_API_SSL_CERT_FILE="")
    shown, told = process.communicate(timeout=100)
    assert process.returncode == 1
    assert "does not answer with a certificate that is trusted here" in told, shown + told
    assert "PREFECT_API_SSL_CERT_FILE" in told
