"""Keys are derived: the same for the same name, different for any other, and readable by everybody's SSH."""

from __future__ import annotations

import io
import shutil
import subprocess

import asyncssh
import paramiko
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_ssh_private_key
from hypothesis import given, settings
from hypothesis import strategies as st

from prefect_gpu.providers.core.machine.keys import derive, fingerprint

SECRET = b"a master secret"
names = st.text(min_size=1, max_size=60)
purposes = st.sampled_from(["client", "host"])


@given(st.binary(min_size=1, max_size=64), names, purposes)
@settings(max_examples=50)
def test_the_same_name_gives_the_same_bytes_again(secret, name, purpose):
    one, other = derive(secret, name, purpose), derive(secret, name, purpose)
    assert one == other
    assert one.private.get_secret_value() == other.private.get_secret_value()


@given(names, names)
@settings(max_examples=50)
def test_another_name_purpose_or_secret_gives_another_key(one, other):
    keys = {derive(SECRET, name, purpose).public for name in {one, other} for purpose in ("client", "host")}
    assert len(keys) == 2 * len({one, other})
    assert derive(b"another secret", one, "client").public not in keys


def test_names_and_purposes_do_not_run_into_each_other():
    assert derive(SECRET, "host/x", "client").public != derive(SECRET, "x", "host").public


@given(names, purposes)
@settings(max_examples=30)
def test_cryptography_reads_the_private_key_and_finds_the_public_one(name, purpose):
    pair = derive(SECRET, name, purpose)
    key = load_ssh_private_key(pair.private.get_secret_value().encode(), password=None)
    assert key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode() == pair.public


def test_asyncssh_and_paramiko_read_it_too():
    pair = derive(SECRET, "a name", "client")
    text = pair.private.get_secret_value()
    assert asyncssh.import_private_key(text).export_public_key().decode().strip() == pair.public
    assert paramiko.Ed25519Key(file_obj=io.StringIO(text)).get_base64() == pair.public.split()[1]


@pytest.mark.openssh
@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="needs ssh-keygen")
def test_openssh_reads_it_and_prints_the_same_fingerprint(tmp_path):
    pair = derive(SECRET, "a name", "host")
    path = tmp_path / "key"
    path.write_text(pair.private.get_secret_value())
    path.chmod(0o600)
    public = subprocess.run(["ssh-keygen", "-y", "-f", path], capture_output=True, text=True, check=True).stdout
    assert public.split()[:2] == pair.public.split()
    (tmp_path / "key.pub").write_text(pair.public)
    shown = subprocess.run(
        ["ssh-keygen", "-l", "-f", tmp_path / "key.pub"], capture_output=True, text=True, check=True
    ).stdout
    assert fingerprint(pair.public) in shown


def test_the_private_half_shows_in_no_repr():
    pair = derive(SECRET, "a name", "host")
    body = pair.private.get_secret_value().splitlines()[1]
    assert body not in repr(pair)
    assert body not in str(pair.model_dump())
    assert body not in pair.model_dump_json()


def test_a_fingerprint_is_of_the_key_and_not_of_its_comment():
    public = derive(SECRET, "a name", "host").public
    assert fingerprint(public) == fingerprint(public + " somebody@somewhere")
    assert fingerprint(public).startswith("SHA256:")
    assert len(fingerprint(public)) == len("SHA256:") + 43


def test_keys_made_by_earlier_versions_stay_what_they_were():
    """A resume after an upgrade must log in to the machine that was ordered before it."""
    assert fingerprint(derive(b"secret", "pg-" + "0" * 37, "client").public) == FINGERPRINTS["client"]
    assert fingerprint(derive(b"secret", "pg-" + "0" * 37, "host").public) == FINGERPRINTS["host"]


FINGERPRINTS = {
    "client": "SHA256:1j0WxGgLZOWVdJh9NQg71eG+ZvJaLzjbkL2kEvmygBI",
    "host": "SHA256:bZBNpzoSyHItjDMZvAuUcsYbEmh0kaRBm1jAsXKjQB0",
}
