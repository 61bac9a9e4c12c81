"""`make connect` asks for what is needed, checks it and saves it."""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prefect.blocks.core import Block
from pydantic import BaseModel, Field, SecretStr

from prefect_gpu.flows.terminal import __main__ as main
from prefect_gpu.flows.terminal import asked, server
from prefect_gpu.flows.terminal import connect as connecting
from prefect_gpu.flows.terminal.found_here import answer_to
from prefect_gpu.flows.terminal.messages import Trouble
from prefect_gpu.providers.core.errors import AuthFailed
from tests.terminal.test_follow import display

# --- connect ----------------------------------------------------------------------------------------------------------


class Host(BaseModel):
    address: str = Field(title="Address")
    port: int = 22
    host_key: str | None = None


class Credentials(Block):
    """Of a made-up cloud."""

    _block_type_name = "GPU: made up"
    _block_type_slug = "gpu-made-up"

    api_key: SecretStr = Field(title="API key")
    hosts: list[Host] = Field(title="Host")
    region: str = Field(default="eu", title="Region")
    limit: int = Field(default=3, ge=1, title="Limit")


class Saved:
    """Stands in for saving and for the provider."""

    def __init__(self, refuses: AuthFailed | None = None, missing: tuple[str, ...] = ()) -> None:
        self.refuses, self.missing = refuses, missing
        self.credentials_class = Credentials
        self.asked_with: Credentials | None = None

    def driver_class(self, block: Credentials) -> Any:
        self.asked_with = block

        def missing_rights() -> list[str]:
            if self.refuses:
                raise self.refuses
            return list(self.missing)

        learnt = block
        if isinstance(block, Credentials):
            hosts = [host.model_copy(update={"host_key": f"of {host.address}"}) for host in block.hosts]
            learnt = block.model_copy(update={"hosts": hosts})
        return SimpleNamespace(missing_rights=missing_rights, first_contact=lambda: (learnt, ["a host key was seen"]))


class Answers:
    """Answers in order; remembers which questions hid their answer."""

    def __init__(self, *answers: str) -> None:
        self.answers = list(answers)
        self.hidden: list[str] = []

    def __call__(self, question: str, *, secret: bool = False) -> str:
        if secret:
            self.hidden.append(question)
        return self.answers.pop(0)


def connected(
    monkeypatch: pytest.MonkeyPatch, library: Saved, *answers: str
) -> tuple[str, list[tuple[str, Credentials]], Answers]:
    saved: list[tuple[str, Credentials]] = []
    monkeypatch.setattr(connecting, "library", lambda _: library)
    monkeypatch.setattr(Credentials, "save", lambda self, name, **_: saved.append((name, self)))
    shown, out = display()
    ask = Answers(*answers)
    connecting.connect(SimpleNamespace(), "aws", "team", shown, ask)
    return out.getvalue(), saved, ask


def test_connect_asks_for_what_is_needed_hides_secrets_checks_and_saves(monkeypatch: pytest.MonkeyPatch) -> None:
    library = Saved(missing=("ec2:RunInstances",))
    text, saved, ask = connected(monkeypatch, library, "s3cret", "root@a.example b.example:2222", "")
    ((name, block),) = saved
    assert name == "team"
    assert library.asked_with is not None
    assert [host.host_key for host in library.asked_with.hosts] == [None, None]
    assert [host.host_key for host in block.hosts] == ["of a.example", "of b.example"], "what was learnt is saved"
    assert block.api_key.get_secret_value() == "s3cret"
    assert [host.address for host in block.hosts] == ["a.example", "b.example"]
    assert (block.region, block.limit) == ("eu", 3)
    assert ask.hidden == ["API key (or @file): "]
    assert "missing: ec2:RunInstances" in text
    assert "  a host key was seen" in text
    assert "s3cret" not in text


def test_connect_asks_again_with_the_reason_when_an_answer_makes_no_sense(monkeypatch: pytest.MonkeyPatch) -> None:
    text, saved, _ = connected(monkeypatch, Saved(), *("k", "a", "y", "us", "0"), *("k", "a", "yes", "us", "5"))
    assert "limit: Input should be greater than or equal to 1" in text
    assert saved[0][1].limit == 5


def test_connect_saves_nothing_that_the_provider_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Trouble, match="aws refuses these credentials, and nothing was saved: wrong key"):
        connected(monkeypatch, Saved(refuses=AuthFailed("wrong key")), "k", "a", "")


def test_connect_reads_a_private_key_from_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    (tmp_path / "key").write_text("-----BEGIN\nKEY-----\n")
    _, saved, _ = connected(monkeypatch, Saved(), f"@{tmp_path / 'key'}", "a", "")
    assert saved[0][1].api_key.get_secret_value() == "-----BEGIN\nKEY-----\n"


@pytest.mark.parametrize("name", ["", "amazon"])
def test_connect_lists_the_providers_when_the_name_is_none(name: str) -> None:
    with pytest.raises(Trouble, match=r"one of ssh, aws"):
        connecting.provider_named(name)


def test_connect_tells_what_an_sdk_says_against_half_of_the_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    library = Saved(refuses=RuntimeError("Partial credentials found, missing: aws_access_key_id"))  # type: ignore[arg-type]
    with pytest.raises(Trouble, match="aws could not be asked, and nothing was saved: Partial credentials found"):
        connected(monkeypatch, library, "k", "a", "")


def test_connect_asks_the_users_of_aws_for_what_they_have_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect_gpu.blocks.aws import AwsCredentials

    library = Saved()
    library.credentials_class = AwsCredentials  # type: ignore[assignment]
    saved: list[Any] = []
    monkeypatch.setattr(connecting, "library", lambda _: library)
    monkeypatch.setattr(AwsCredentials, "save", lambda self, name, **_: saved.append(self))
    questions: list[str] = []
    answers = iter(["new", "", "AKIA1", "s3cret", "", "", ""])

    def ask(question: str, *, secret: bool = False) -> str:
        questions.append(question)
        return next(answers)

    client = SimpleNamespace(read_block_documents_by_type=lambda *_, **__: [])
    connecting.connect(client, "AWS", "team", display()[0], ask)
    assert [question.split()[0] for question in questions[1:4]] == ["Profile", "AWS", "AWS"]
    assert "ID" in questions[2]
    assert saved[0].aws.aws_access_key_id == "AKIA1"


@pytest.fixture
def at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with what people have in theirs."""
    for variable in ("AWS_PROFILE", "AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE", "KUBECONFIG", "CLOUDSDK_CONFIG"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, text in {
        ".aws/config": "[default]\nregion = eu-west-1\n[profile team]\n[sso-session x]\n",
        ".aws/credentials": "[old]\naws_access_key_id = AKIA\n",
        ".kube/config": (
            "current-context: lab\ncontexts:\n- name: lab\n  context: {cluster: a, namespace: gpus}\n- name: prod\n  context: {}\n"
        ),
        ".azure/azureProfile.json": '\ufeff{"subscriptions": [{"id": "s-1", "name": "Lab"}, {"id": "s-2", "name": "X", "isDefault": true}]}',
        ".config/gcloud/active_config": "work\n",
        ".config/gcloud/configurations/config_work": "[core]\nproject = my-project\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_what_this_computer_knows_is_offered(at_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert answer_to("aws-credentials", "profile_name", {}) == ("default", "profiles here: default, team, old")
    monkeypatch.setenv("AWS_PROFILE", "team")
    assert answer_to("aws-credentials", "profile_name", {}).answer == "team"
    assert answer_to("gpu-kubernetes", "kubeconfig", {}) == ("~/.kube/config", "")
    assert answer_to("gpu-kubernetes", "context", {}) == ("lab", "contexts here: lab, prod")
    assert answer_to("gpu-kubernetes", "namespace", {"context": "lab"}).answer == "gpus"
    assert answer_to("gpu-kubernetes", "namespace", {"context": "prod"}).answer is None
    assert answer_to("gpu-azure", "subscription_id", {}).answer == "s-2"
    assert answer_to("gpu-gcp", "project", {}).answer == "my-project"
    assert answer_to("gpu-vultr", "api_key", {}) == (None, "")


def test_where_a_kubeconfig_was_looked_for_is_said(at_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (at_home / ".kube/config").unlink()
    assert answer_to("gpu-kubernetes", "kubeconfig", {}).said.endswith(
        "looked at ~/.kube/config; KUBECONFIG names no other"
    )
    monkeypatch.setenv("KUBECONFIG", "/nowhere/config")
    assert "looked at /nowhere/config, which KUBECONFIG names" in answer_to("gpu-kubernetes", "kubeconfig", {}).said


@pytest.mark.parametrize(
    "text", ["", "[", "- a", "contexts: 3", "contexts: [1, {name: x}]", "{" * 5000, "\xff\xfe", "a: &a [*a]"]
)
def test_a_file_that_makes_no_sense_offers_nothing(at_home: Path, text: str) -> None:
    for file in (path for path in at_home.rglob("*") if path.is_file()):
        file.write_bytes(text.encode("latin-1"))
    for slug, field in (
        ("aws-credentials", "profile_name"),
        ("gpu-kubernetes", "namespace"),
        ("gpu-azure", "subscription_id"),
        ("gpu-gcp", "project"),
    ):
        assert answer_to(slug, field, {}).answer is None


def test_who_has_a_profile_is_asked_for_no_key_and_enter_is_enough(
    at_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect_gpu.blocks.aws import AwsCredentials

    library = Saved()
    library.credentials_class = AwsCredentials  # type: ignore[assignment]
    saved: list[Any] = []
    monkeypatch.setattr(connecting, "library", lambda _: library)
    monkeypatch.setattr(AwsCredentials, "save", lambda self, name, **_: saved.append(self))
    questions: list[str] = []

    def ask(question: str, *, secret: bool = False) -> str:
        questions.append(question)
        return ""

    client = SimpleNamespace(read_block_documents_by_type=lambda *_, **__: [])
    connecting.connect(client, "aws", "team", display()[0], ask)
    assert saved[0].aws.profile_name == "default"
    assert not [question for question in questions if "Key" in question]


def test_all_saved_blocks_are_offered_also_where_there_are_many() -> None:
    blocks = [SimpleNamespace(name=f"b{number}", is_anonymous=False) for number in range(450)]
    client = SimpleNamespace(read_block_documents_by_type=lambda _, offset, limit: blocks[offset : offset + limit])
    assert connecting._saved(client, Credentials) == [one.name for one in blocks]


# --- before a server is waited for ------------------------------------------------------------------------------------


@pytest.fixture
def no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    def reached(**_: Any) -> Any:
        raise AssertionError("a server was asked for")

    monkeypatch.setattr(server, "reached", reached)


@pytest.mark.usefixtures("no_server")
@pytest.mark.parametrize(
    ("provider", "code", "says"),
    [
        ("vultr", 1, "`prefect-gpu connect vultr` asks questions: type it in a terminal, or save the block in the"),
        ("local", 2, "local needs no credentials: it is this machine."),
        ("nowhere", 2, "There is no provider 'nowhere': `prefect-gpu connect NAME` with one of ssh, aws,"),
        ("", 2, "Say which: `prefect-gpu connect NAME` with one of ssh, aws,"),
    ],
)
def test_what_cannot_be_asked_is_refused_at_once(
    provider: str, code: int, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(["connect", provider]) == code
    assert capsys.readouterr().err.startswith(says)


@pytest.mark.usefixtures("no_server")
def test_an_extra_that_is_missing_is_told_by_what_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def version(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    def said(provider: str) -> str:
        assert main.main(["connect", provider]) == 1
        return capsys.readouterr().err

    monkeypatch.setattr(asked.metadata, "version", version)
    monkeypatch.setattr(sys, "prefix", str(tmp_path))  # an environment of somebody's own
    with_pip = "`pip install --no-deps -r requirements-all.lock`"
    assert said("aws") == f"aws needs boto3: {with_pip} in the checkout installs it\n"
    (tmp_path / "complete.json").touch()  # one that make made
    assert said("azure") == "azure needs azure-identity: `make install` in the checkout installs it\n"
    monkeypatch.setenv("PREFECT_GPU_DOOR", "make")
    assert said("gcp") == "gcp needs google-auth: `make connect PROVIDER=gcp` installs it\n"
