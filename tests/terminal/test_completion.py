"""Completion: what `prefect-gpu --install-completion` writes offers commands and options, in each of the three shells."""

from __future__ import annotations

import os
import pty
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Literal

import pytest

from prefect_gpu.flows.terminal import __main__ as main

# Begun with what the shell loads, and asked as its Tab key would; zsh can be asked only at a prompt.
BASH = 'cd; . ~/.bashrc; COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)); _prefect_gpu; printf "%s\\n" "${COMPREPLY[@]}"'
FISH = 'source ~/.config/fish/completions/prefect-gpu.fish; complete -C "$argv"'
PATIENCE_S = 30.0

Shell = Literal["bash", "zsh", "fish"]
SHELLS: tuple[Shell, ...] = ("bash", "zsh", "fish")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.delenv("ZDOTDIR", raising=False)
    for name in ("XDG_CONFIG_HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def offered(shell: Shell, words: list[str], home: Path) -> set[str]:
    """What the shell offers where the last of these words is being typed, after the command has set it up."""
    if not (program := shutil.which(shell)):
        pytest.skip(f"{shell} is not installed")
    assert main.main(["--install-completion", "--shell", shell]) == 0
    if shell == "zsh":
        return set(_at_a_prompt(program, " ".join(words), home).split())
    command = [program, "--norc", "-c", BASH, shell] if shell == "bash" else [program, "--no-config", "-c", FISH]
    done = subprocess.run(
        [*command, *words], capture_output=True, text=True, timeout=60, check=True, stdin=subprocess.DEVNULL
    )
    return {line.split("\t")[0].strip() for line in done.stdout.splitlines()}


def _at_a_prompt(program: str, line: str, home: Path) -> str:
    """All that zsh draws after the line and two Tabs, until it is done with a last command."""
    with (home / ".zshrc").open("a") as file:
        file.write("PS1='READY '; autoload -Uz compinit; compinit -u -D; setopt no_beep\n")
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(program, [program, "-i"])
    drawn = ""

    def until(what: str) -> None:
        nonlocal drawn
        end = time.monotonic() + PATIENCE_S
        while what not in drawn and time.monotonic() < end:
            if select.select([terminal], [], [], 0.1)[0]:
                drawn += os.read(terminal, 65536).decode(errors="replace")
        assert what in drawn, drawn

    try:
        until("READY ")
        os.write(terminal, line.encode() + b"\t\t")
        until("\n")
        time.sleep(0.5)  # the rest of the list
        os.write(terminal, b"\x15echo OV''ER\n")
        until("OVER")
        return drawn
    finally:
        os.close(terminal)
        os.waitpid(pid, 0)


@pytest.mark.parametrize("shell", SHELLS)
def test_commands_are_offered(shell: Shell, home: Path) -> None:
    said = offered(shell, ["prefect-gpu", "p"], home)
    assert {"plan", "providers", "ps"} <= said
    assert "run" not in said


@pytest.mark.parametrize("shell", SHELLS)
def test_options_of_a_command_are_offered(shell: Shell, home: Path) -> None:
    said = offered(shell, ["prefect-gpu", "run", "--max"], home)
    assert {"--max-cost", "--max-price", "--max-wait"} <= said
    assert "--gpu" not in said
