"""What is written after `make` means what it says, or is refused with the right name; what make takes is what the command takes."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from prefect_gpu.flows.terminal import made
from prefect_gpu.flows.terminal.line import app
from prefect_gpu.flows.terminal.messages import Wrong
from tests.stack import ROOT

LINE = {"MAKELEVEL": "1"}


def given(**variables: str) -> dict[str, str]:
    """As make hands on what was written on its line."""
    return {**LINE, **variables, "MAKEFLAGS": " -- " + " ".join(f"{name}=x" for name in variables)}


def test_what_was_written_becomes_the_words_of_the_command() -> None:
    line = given(
        JOB="python train.py", GPU="H100:8", MAX_PRICE="20", PROVIDERS="aws, local", FILES="train.py data", SPOT="spot"
    )
    assert made.words("run", line) == [
        *("run", "--gpu=H100:8", "--max-price=20", "--providers=aws", "--providers=local", "--spot=spot"),
        *("--files=train.py", "--files=data", "--", "python train.py"),
    ]


def test_without_anything_nothing_is_asked_for() -> None:
    assert made.words("run", {}) == ["run"]


def test_each_option_of_each_command_is_a_variable() -> None:
    for command in ("run", "plan", "ps", "logs", "stop", "fetch", "reap", "connect", "down"):
        flags = {
            name
            for argument in app[command].assemble_argument_collection()
            for name in argument.names[:1]
            if name.startswith("--")
        }
        taken = {one.flag for one in made.of_command(command).values()}
        assert flags - taken <= {"--run", "--provider", "--command"}, "what stands by itself has a variable too"
    assert {"JOB", "GPU", "MAX_PRICE", "FILES", "SPOT", "REGIONS", "ENV", "TIMEOUT_S"} <= made.of_command("run").keys()
    assert list(made.of_command("logs")) == ["RUN", "FOLLOW", "TAIL"]
    assert list(made.of_command("ps")) == ["ALL", "JSON"]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("train.py data", ["train.py", "data"]),
        ("a,b, c", ["a", "b", "c"]),
        ("'my data' *.md", ["my data", "*.md"]),
        ("it's_here.txt", ["it's_here.txt"]),
        ("my file.txt", ["my file.txt"]),
        ("..", [".."]),
        ("a#b", ["a#b"]),
        ("", []),
    ],
)
def test_a_list_is_split_as_people_write_it(
    text: str, parts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("my file.txt", "it's_here.txt"):
        (tmp_path / name).touch()
    assert list(made.split(text)) == parts


def test_a_switch_is_on_unless_it_says_no() -> None:
    assert made.words("down", given(FORCE="1")) == ["down", "--force"]
    assert made.words("down", given(FORCE="0")) == made.words("down", given(FORCE="")) == ["down"]


def test_a_common_word_of_an_environment_is_not_taken_for_an_option() -> None:
    """IMAGE or ENV may stand in any environment; GPU and JOB always could."""
    assert made.words("run", {"GPU": "H100", "JOB": "x", "IMAGE": "build:1", "ENV": "prod"}) == [
        "run",
        "--gpu=H100",
        "--",
        "x",
    ]
    assert made.words("run", given(IMAGE="build:1")) == ["run", "--image=build:1"]


# --- through make itself ------------------------------------------------------------------------------------------------

PRINTER = """
import sys
from prefect_gpu.flows.terminal import asked, jobs, made
jobs.at_server = lambda *_, **__: 0
kept = asked.job
def shown(words, parameters):
    parameters = kept(words, parameters)
    print(parameters)
    return parameters
asked.job = shown
sys.exit(made.main(sys.argv[1:]))
"""


def make(tmp_path: Path, *words: str, **environment: str) -> str:
    """What the command behind `make` sees of its line, by the Makefile as it is."""
    script = tmp_path / "printer.py"
    script.write_text(PRINTER)
    text = re.sub(r"^prepare = .*$", "prepare = @true", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    text = re.sub(r"^console = .*$", f"console = {sys.executable} {script}", text, flags=re.MULTILINE)
    (tmp_path / "Makefile").write_text(text)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "PREFECT_GPU_DOOR"))}
    command = ["make", "-f", str(tmp_path / "Makefile"), *words]
    ran = subprocess.run(
        command, cwd=ROOT, env={**inherited, **environment}, capture_output=True, text=True, check=False
    )
    return ran.stdout + ran.stderr


@pytest.mark.parametrize("price", ["$3", "3", "3.0"])
def test_no_variable_is_expanded_by_make(tmp_path: Path, price: str) -> None:
    said = make(tmp_path, "run", f"MAX_PRICE={price}", "JOB=echo $HOME $(X) `id` '\"", "GPU=H100")
    assert "'max_price': 3.0" in said
    assert "echo $HOME $(X) `id` \\'\"" in said


def test_an_empty_limit_is_no_limit_and_refused(tmp_path: Path) -> None:
    assert make(tmp_path, "run", "JOB=x", "MAX_PRICE=").startswith(
        "MAX_PRICE= is empty, which would be no limit: write USD"
    )


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("PROVIDER=ssh", "make run does not take PROVIDER: did you mean PROVIDERS?\n"),
        ("PRICE=3", "make run does not take PRICE: did you mean MAX_PRICE?"),
        ("COMMAND=python train.py", "make run does not take COMMAND: did you mean JOB?"),
        ("job=python train.py", "make run does not take job: did you mean JOB?"),
        ("MAXPRICE=3", "make run does not take MAXPRICE: did you mean MAX_PRICE?"),
        ("max_price=$3", "make run does not take max_price: did you mean MAX_PRICE?"),
        ("XYZ=1", "make run does not take XYZ: nothing was done. It takes JOB,"),
    ],
)
def test_a_word_that_means_nothing_is_refused_with_the_right_one(tmp_path: Path, word: str, says: str) -> None:
    assert make(tmp_path, "run", "JOB=echo a=b -- c", word).startswith(says)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks /proc who called")
def test_on_a_terminal_our_sentence_is_the_last_word(tmp_path: Path) -> None:
    """Of make's own line behind it nobody learns anything; a script gets it, and make's exit code, as before."""
    assert make(tmp_path, "run", "JBO=x").endswith("Error 2\n")
    pid, terminal = pty.fork()
    if pid == 0:
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # as a shell leaves it; Python ignores it
        kept = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
        os.execvpe(
            "make",
            ["make", "-f", str(tmp_path / "Makefile"), "-C", str(ROOT), "--no-print-directory", "run", "JBO=x"],
            kept,
        )
    drawn = b""
    with contextlib.suppress(OSError):  # EIO: the terminal has no other end any more
        while part := os.read(terminal, 65536):
            drawn += part
    os.close(terminal)
    assert drawn.decode() == "make run does not take JBO: did you mean JOB?\r\n"
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGPIPE


def test_a_setting_of_prefect_may_stand_there_too(tmp_path: Path) -> None:
    assert make(tmp_path, "run", "PREFECT_API_URL=http://127.0.0.1:4200/api", "JOB=x").startswith("{'command': 'x'")


def test_what_was_written_for_an_outer_make_is_not_refused() -> None:
    line = {"JOB": "x", "EPOCHS": "3", "MAKEFLAGS": " -- EPOCHS=3 JOB=x"}
    assert made.words("run", {**line, "MAKELEVEL": "2"}) == ["run", "--", "x"]
    with pytest.raises(Wrong, match="does not take EPOCHS"):
        made.words("run", {**line, "MAKELEVEL": "1"})


def test_from_the_environment_of_make_it_means_the_same(tmp_path: Path) -> None:
    assert "'command': 'echo $HOME $(X)'" in make(tmp_path, "run", JOB="echo $HOME $(X)", GPU="H100")


def test_plan_takes_the_line_of_run_as_it_is(tmp_path: Path) -> None:
    assert make(tmp_path, "plan", "JOB=python train.py", "GPU=H100", "PROVIDERS=k8s", "FILES=.") == ""
    assert make(tmp_path, "plan", "PROVIDERS=gpc").startswith("There is no provider 'gpc': write one or some of local,")


def test_a_gpu_without_a_job_is_not_rented_to_print_42(tmp_path: Path) -> None:
    said = make(tmp_path, "run", "GPU=H100")
    assert said.startswith(
        "Say what to run on H100: make run GPU=H100 JOB=nvidia-smi. `make plan GPU=H100` only asks for"
    )
