"""Machines as people write them, `user@host:port` and names of ~/.ssh/config, in the fields of a credentials block."""

from __future__ import annotations

import re
import subprocess
from typing import Any, Final

_WRITTEN: Final = re.compile(r"(?:(?P<user>[^@\s]+)@)?(?P<host>\[[0-9a-fA-F:]+\]|[^\s:@\[\]]+)(?::(?P<port>\d{1,5}))?")


def machines(text: str) -> list[dict[str, Any]]:
    """One for each word: what it says, and what ~/.ssh/config says of it. ValueError with a sentence."""
    return [_machine(word) for word in text.replace(",", " ").split()]


def _machine(word: str) -> dict[str, Any]:
    match = _WRITTEN.fullmatch(word.removeprefix("ssh://"))
    if match is None:
        raise ValueError(f"{word} is not an address: write host, user@host or user@host:port")
    host = match["host"].strip("[]")
    known = _configured(host)
    found: dict[str, Any] = {"address": known.get("hostname", host)}
    if found["address"] != host:
        found["name"] = host  # as its owner calls it
    if user := match["user"] or known.get("user"):
        found["user"] = user
    if port := match["port"] or known.get("port"):
        found["port"] = int(port)
    return found


def _configured(host: str) -> dict[str, str]:
    """What OpenSSH would do for this name, as far as it differs from what it does for a name that is in no file."""
    if (named := _asked(host)) is None or (plain := _asked("host.invalid")) is None:
        return {}
    return {
        key: value for key, value in named.items() if value != plain.get(key) and value not in (host, "host.invalid")
    }


def _asked(host: str) -> dict[str, str] | None:
    try:
        ran = subprocess.run(["ssh", "-G", "--", host], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None  # no OpenSSH here, or a file of its that it cannot read: the word stands for itself
    pairs = (line.split(" ", 1) for line in ran.stdout.splitlines() if " " in line)
    return {key: value for key, value in pairs if key in {"hostname", "user", "port"}}
