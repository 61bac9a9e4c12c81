"""The pages as text: their headings, links, fenced blocks, and the parts between marks that the code writes."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.stack import ROOT

DOCS: Final = ROOT / "docs"
_MARKED: Final = re.compile(r"(<!-- generated: ([a-z-]+)((?: [a-z-]+)*) -->\n)(.*?)(<!-- /generated -->)", re.DOTALL)
_FENCE: Final = re.compile(
    r"^(?P<indent> *)```(?P<kind>[\w-]*)(?P<marks>[^\n]*)\n(?P<body>.*?)^(?P=indent)```$", re.DOTALL | re.MULTILINE
)


@dataclass(frozen=True)
class Fence:
    """A fenced block: its kind (`console`, `python`, `yaml`), its title where it has one, its text."""

    page: Path
    kind: str
    title: str
    body: str

    @property
    def id(self) -> str:
        first = self.body.strip().splitlines()[0] if self.body.strip() else ""
        return f"{self.page.relative_to(ROOT)}: {self.title or first[:50]}"


def pages() -> list[Path]:
    """All pages of the site."""
    return sorted(DOCS.rglob("*.md"))


def fences(*kinds: str) -> list[Fence]:
    """All fenced blocks of these kinds on all pages."""
    found: list[Fence] = []
    for page in pages():
        for one in _FENCE.finditer(page.read_text()):
            if one["kind"] in kinds:
                title = re.search(r'title="([^"]*)"', one["marks"])
                body = "\n".join(line.removeprefix(one["indent"]) for line in one["body"].splitlines()) + "\n"
                found.append(Fence(page, one["kind"], title[1] if title else "", body))
    return found


def filled(text: str, write: Callable[[str, list[str]], str]) -> str:
    """The page with each generated part written anew: `write` gets its kind and its words."""
    return _MARKED.sub(lambda part: f"{part[1]}\n{write(part[2], part[3].split()).strip()}\n\n{part[5]}", text)


def marks(text: str) -> list[tuple[str, list[str]]]:
    """The generated parts of a page: kind and words of each."""
    return [(part[2], part[3].split()) for part in _MARKED.finditer(text)]


def headings(text: str) -> list[str]:
    """The titles of the page's sections, `#` to `###`, without what stands in fenced blocks."""
    return re.findall(r"^#{1,3} (.+?)\s*$", _FENCE.sub("", text), re.MULTILINE)
