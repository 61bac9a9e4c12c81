"""What MkDocs asks while it builds the pages: which providers there are, so that a new one needs no line in mkdocs.yml."""

from __future__ import annotations

from pathlib import Path
from typing import Any

FIRST = ("index", "local", "ssh")  # the others by name


def on_config(config: Any) -> Any:
    """Fill the tab *Providers* with each page of docs/providers."""
    names = {path.stem for path in (Path(config["docs_dir"]) / "providers").glob("*.md")}
    ordered = [name for name in FIRST if name in names] + sorted(names - set(FIRST))
    for tab in config["nav"]:
        if "Providers" in tab:
            tab["Providers"] = [f"providers/{name}.md" for name in ordered]
    return config
