"""What this computer already knows of somebody's accounts, offered as the answer that Enter takes: profiles, contexts, subscriptions.

Only names are read, no secrets; files that are not there or make no sense offer nothing.
"""

from __future__ import annotations

import configparser
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple, cast

import yaml

KUBECONFIG: Final = "~/.kube/config"
MOST: Final = 20  # names shown
LARGEST: Final = 4 * 1024 * 1024  # bytes of a file that is read


class Found(NamedTuple):
    """An answer, or none, and what to say before the question."""

    answer: str | None = None
    said: str = ""


def answer_to(slug: str, field: str, values: Mapping[str, Any]) -> Found:
    """What is known here for this field of this block, with the answers so far."""
    asked = {
        ("aws-credentials", "profile_name"): _aws_profile,
        ("gpu-kubernetes", "kubeconfig"): _kubeconfig,
        ("gpu-kubernetes", "context"): _context,
        ("gpu-kubernetes", "namespace"): _namespace,
        ("gpu-azure", "subscription_id"): _subscription,
        ("gpu-gcp", "project"): _project,
    }.get((slug, field))
    return asked(values) if asked is not None else Found()


def _aws_profile(_values: Mapping[str, Any]) -> Found:
    names: list[str] = []
    for variable, path in (("AWS_CONFIG_FILE", "~/.aws/config"), ("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials")):
        file = _sections(os.environ.get(variable) or path)
        names += [
            one.removeprefix("profile ").strip() for one in file if not one.startswith(("sso-session", "services"))
        ]
    names = list(dict.fromkeys(names))
    chosen = os.environ.get("AWS_PROFILE") or "default"
    return Found(chosen if chosen in names else None, _listed("profiles", names))


def _sections(path: str) -> list[str]:
    parser = configparser.RawConfigParser(default_section="\0", strict=False)
    with suppress(configparser.Error):
        parser.read_string(_text(path) or "")
    return parser.sections()


def _kubeconfig(_values: Mapping[str, Any]) -> Found:
    named = [path for path in os.environ.get("KUBECONFIG", "").split(os.pathsep) if path]
    for path in named or [KUBECONFIG]:
        if Path(path).expanduser().is_file():
            return Found(path)
    where = f"{', '.join(named)}, which KUBECONFIG names" if named else f"{KUBECONFIG}; KUBECONFIG names no other"
    return Found(None, f"no kubeconfig found here: looked at {where}")


def _context(values: Mapping[str, Any]) -> Found:
    config = _kube(values)
    names = [name for name, _ in _contexts(config)]
    current = config.get("current-context")
    chosen = current if current in names else names[0] if len(names) == 1 else None
    return Found(chosen, _listed("contexts", names))


def _namespace(values: Mapping[str, Any]) -> Found:
    config = _kube(values)
    wanted = values.get("context") or config.get("current-context")
    for name, context in _contexts(config):
        if name == wanted and isinstance(namespace := context.get("namespace"), str):
            return Found(namespace)
    return Found()


def _kube(values: Mapping[str, Any]) -> dict[str, Any]:
    with suppress(yaml.YAMLError, RecursionError):
        config = yaml.safe_load(_text(str(values.get("kubeconfig") or KUBECONFIG)) or "")
        if isinstance(config, dict):
            return cast("dict[str, Any]", config)
    return {}


def _contexts(config: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    found: list[tuple[str, dict[str, Any]]] = []
    contexts: Any = config.get("contexts")
    for one in cast("list[Any]", contexts) if isinstance(contexts, list) else []:
        if isinstance(one, dict):
            named = cast("dict[str, Any]", one)
            inner = named.get("context")
            found.append((str(named.get("name", "")), cast("dict[str, Any]", inner) if isinstance(inner, dict) else {}))
    return [one for one in found if one[0]]


def _subscription(_values: Mapping[str, Any]) -> Found:
    """As `az login` left it."""
    with suppress(ValueError, TypeError, AttributeError, RecursionError):
        known = json.loads(_text("~/.azure/azureProfile.json") or "{}").get("subscriptions", [])
        names = [f"{one['name']} {one['id']}" for one in known if "id" in one and "name" in one]
        chosen = next((str(one["id"]) for one in known if one.get("isDefault") and "id" in one), None)
        return Found(chosen, _listed("subscriptions", names))
    return Found()


def _project(_values: Mapping[str, Any]) -> Found:
    """As `gcloud config set project` left it."""
    parser = configparser.RawConfigParser(strict=False)
    folder = os.environ.get("CLOUDSDK_CONFIG") or "~/.config/gcloud"
    name = os.environ.get("CLOUDSDK_ACTIVE_CONFIG_NAME") or (_text(f"{folder}/active_config") or "default").strip()
    with suppress(configparser.Error):
        parser.read_string(_text(f"{folder}/configurations/config_{name}") or "")
    return Found(parser.get("core", "project", fallback=None))


def _listed(what: str, names: list[str]) -> str:
    more = f" and {len(names) - MOST} more" if len(names) > MOST else ""
    return f"{what} here: {', '.join(names[:MOST])}{more}" if names else ""


def _text(path: str) -> str | None:
    try:
        with Path(path).expanduser().open("rb") as file:
            return file.read(LARGEST).decode("utf-8-sig")
    except (OSError, ValueError, RuntimeError):  # no file, no text, no home
        return None
