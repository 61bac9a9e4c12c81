"""The site is whole: it builds, its links lead somewhere, nothing on it is older than the code."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import pytest

from prefect_gpu import providers as registry
from prefect_gpu.blocks.collection import BLOCKS
from prefect_gpu.blocks.pages import SITE
from prefect_gpu.providers import ProviderName
from tests.docs import facts, fields, logos, pages
from tests.stack import ROOT

PROVIDER_PAGES = sorted((pages.DOCS / "providers").glob("*.md"))
OF_A_PROVIDER = [page for page in PROVIDER_PAGES if page.stem != "index"]
SECTIONS = (
    "Credentials and the least rights",
    "What is made in the account",
    "Limits",
    "Pitfalls",
    "How the bill is counted",
    "If everything of ours is dead",
    "Options of an order",
)
AT_HOME = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md"]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site as it is built, a warning being an error."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    built = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


class Links(HTMLParser):
    """What a page names: its anchors, what it links to, what a browser would fetch while it draws the page."""

    def __init__(self) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.fetched: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        of_tag = {name: value or "" for name, value in attrs}
        if "id" in of_tag:
            self.anchors.add(of_tag["id"])
        if tag == "a" and of_tag.get("href"):
            self.links.append(of_tag["href"])
        if tag in {"script", "img", "iframe", "source"} and of_tag.get("src"):
            self.fetched.append(of_tag["src"])
        if tag == "link" and of_tag.get("rel") not in {"canonical", "prev", "next"}:
            self.fetched.append(of_tag.get("href", ""))


def read(site: Path) -> dict[str, Links]:
    """Each page by its address on the site."""
    found: dict[str, Links] = {}
    for path in site.rglob("*.html"):
        links = Links()
        links.feed(path.read_text())
        address = "/" + str(path.relative_to(site)).removesuffix("index.html")
        found[address] = links
    return found


def test_each_link_and_anchor_of_the_site_leads_somewhere(site: Path) -> None:
    by_address = read(site)
    assert len(by_address) > 3
    dead: list[str] = []
    for address, page in by_address.items():
        for link in page.links:
            target = urlsplit(urljoin(f"http://site{address}", link))
            if target.netloc != "site" or address == "/404.html":
                continue
            path, anchor = unquote(target.path), unquote(target.fragment)
            if path in by_address:
                if anchor and anchor not in by_address[path].anchors:
                    dead.append(f"{address}: {link}")
            elif not (site / path.lstrip("/")).is_file():
                dead.append(f"{address}: {link}")
    assert dead == []


def test_a_browser_fetches_nothing_from_elsewhere(site: Path) -> None:
    elsewhere = [
        (address, link)
        for address, page in read(site).items()
        for link in page.fetched
        if urlsplit(link).netloc not in {"", urlsplit(SITE).netloc}
    ]
    assert elsewhere == []
    styles = "".join(path.read_text() for path in site.rglob("*.css"))
    assert re.findall(r"(?:@import|url\()\s*[\"']?https?://", styles) == []


@pytest.mark.parametrize("page", pages.pages(), ids=lambda page: str(page.relative_to(pages.DOCS)))
def test_what_the_code_knows_is_written_by_it(page: Path) -> None:
    text = page.read_text()
    if pages.filled(text, facts.write) != text:
        pytest.fail(f"{page.relative_to(ROOT)} is older than the code: run `.venv/bin/python -m tests.docs`")


@pytest.mark.parametrize("page", OF_A_PROVIDER, ids=lambda page: page.stem)
def test_a_providers_page_has_the_shape_of_all(page: Path) -> None:
    text, name = page.read_text(), page.stem
    sections = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert tuple(one for one in sections if one in SECTIONS) == SECTIONS
    needed = {("capabilities", name), ("block", name), ("options", name)} - (
        {("block", name)} if name == "local" else set()
    )
    assert needed <= {(kind, *words) for kind, words in pages.marks(text)}
    for section in SECTIONS:
        body = text.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
        assert len(body.split()) > 8, f"{section} says nothing"


@pytest.mark.parametrize("page", OF_A_PROVIDER, ids=lambda page: page.stem)
def test_a_providers_page_says_what_it_costs_when_all_of_ours_is_dead(page: Path) -> None:
    dead = page.read_text().partition("\n## If everything of ours is dead\n")[2].partition("\n## ")[0]
    if registry.library(page.stem).capabilities.self_ends == "none":
        assert "`reap`" in dead
        assert "pg-" in dead, "by what a person finds the machine in the console"


def test_each_promise_names_what_shows_it() -> None:
    tables = (pages.DOCS / "promises.md").read_text().split("| shown by |\n")[1:]
    rows = [line for table in tables for line in table.partition("\n\n")[0].splitlines() if not line.startswith("|---")]
    assert len(rows) > 30, "else nothing was tested"
    for row in rows:
        shown_by = row.rstrip(" |").rpartition("| ")[2]
        named = re.findall(r"`(tests/[\w/]+\.py)`", shown_by)
        assert named or shown_by in {"`make chaos`", "each provider's page"}, row
        assert [path for path in named if not (ROOT / path).is_file()] == [], row


def test_every_provider_has_a_page() -> None:
    assert {page.stem for page in OF_A_PROVIDER} == {name.value for name in ProviderName}


@pytest.mark.parametrize("page", AT_HOME, ids=lambda page: page.name)
def test_the_pages_beside_the_site_link_to_what_is_there(page: Path) -> None:
    for _, link in re.findall(r"\[([^\]]*)\]\(([^)\s]+)\)", page.read_text()):
        if "://" in link or link.startswith(("mailto:", "#")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve()
        assert target.exists(), link
        if anchor:
            slugs = {
                re.sub(r"[^\w -]", "", one.lower()).replace(" ", "-") for one in pages.headings(target.read_text())
            }
            assert anchor in slugs, link


@pytest.mark.parametrize("name", sorted(BLOCKS))
def test_a_block_has_a_description_a_logo_and_a_page_of_ours(name: str, site: Path) -> None:
    block = fields.block_type(name)
    assert block._description, "a sentence"
    assert block._logo_url == f"{SITE}logos/{name}.svg"
    path, _, anchor = block._documentation_url.removeprefix(SITE).partition("#")
    page = site / path / "index.html"
    assert page.is_file(), block._documentation_url
    if name in set(ProviderName):
        assert path == f"providers/{name}/"
    if anchor:
        assert f'id="{anchor}"' in page.read_text()
    drawn = pages.DOCS / "logos" / f"{name}.svg"
    if not drawn.is_file() or drawn.read_text() != logos.svg(name):
        pytest.fail(f"docs/logos/{name}.svg is older than the code: run `.venv/bin/python -m tests.docs`")


def test_blocks_link_to_the_site_that_is_built() -> None:
    assert f"\nsite_url: {SITE}  #" in (ROOT / "mkdocs.yml").read_text()
