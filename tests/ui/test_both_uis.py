"""Both of Prefect's UIs in Chromium: the form, a run and its artifacts, blocks; a page that complains in its console fails.

`PICTURES=docs/pictures python -m pytest tests/ui` makes the pictures of the docs.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import pytest
import yaml

from prefect_gpu.blocks.pages import SITE
from prefect_gpu.flows import fields
from prefect_gpu.flows.provision import provision
from prefect_gpu.flows.run import cards
from tests.stack import ROOT, Stack

CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--font-render-hinting=none"]
PICTURES = os.environ.get("PICTURES", "")
UIS = ("v1", "v2")
JOB = "for epoch in 1 2 3; do echo epoch $epoch, loss 0.$((9 / epoch)); done; mkdir results; echo weights > results/model.pt"
# Where the flows of this test lie is nobody's business: in a picture they lie in /srv/prefect-gpu.
ELSEWHERE = """(root) => {
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) walker.currentNode.data = walker.currentNode.data.replaceAll(root, "/srv/prefect-gpu");
}"""
pytestmark = [
    pytest.mark.server,
    pytest.mark.browser,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not Path(CHROMIUM).exists(), reason="no Chromium"),
]


@dataclass
class Ui:
    """One of the UIs in a browser, and what its pages said in the console since the last was opened."""

    name: str
    page: Any
    root: str
    said: list[str] = field(default_factory=list)

    def open(self, path: str, shown: str) -> None:
        """Open a page and wait until it shows this text; again where the machine's network changed under it."""
        for _ in range(6):
            self.said.clear()
            self.page.goto(f"{self.root}{'/v2' if self.name == 'v2' else ''}{path}")
            try:
                self.page.get_by_text(shown, exact=False).first.wait_for(timeout=60_000)
            except Exception:
                if not any("ERR_NETWORK_CHANGED" in one for one in self.said):
                    raise
                continue
            self.page.wait_for_load_state("networkidle")
            if not any("ERR_NETWORK_CHANGED" in one for one in self.said):
                return

    def text(self) -> str:
        return self.page.locator("body").inner_text()

    def picture(self, what: str) -> None:
        if PICTURES:
            self.page.evaluate(ELSEWHERE, str(ROOT))
            self.page.wait_for_timeout(4000)  # graphs are drawn when all else is there
            self.page.screenshot(path=str(ROOT / PICTURES / f"{what}-{self.name}.png"))

    def assert_quiet(self) -> None:
        assert self.said == []


@dataclass(frozen=True)
class Shown:
    """What the server holds for the pages."""

    deployment: UUID
    run: UUID


@pytest.fixture(scope="module")
def shown(stack: Stack) -> Shown:
    """The deployment as set-up makes it, with one run of it."""
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from prefect_gpu.blocks.aws import AwsCredentials

    deployment = stack.deploy("prefect_gpu.flows.provision.provision", "default")
    project = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"][0]
    ours = {"description": project["description"], "parameter_openapi_schema": fields.schema(provision)}
    stack.client.patch(f"/deployments/{deployment}", json=ours).raise_for_status()
    with temporary_settings({PREFECT_API_URL: stack.api}):
        AwsCredentials.register_type_and_schema(_sync=True)  # type: ignore[call-arg]
    run = stack.run(deployment, command=JOB, providers=["local"], job={"outputs": ["results/"]})
    stack.wait_for_state(run, "Completed")
    return Shown(deployment, run)


@pytest.fixture(scope="module", params=UIS)
def ui(request: pytest.FixtureRequest, stack: Stack) -> Iterator[Ui]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
        context = browser.new_context(viewport={"width": 1280, "height": 960}, color_scheme="light")
        page = context.new_page()
        page.set_default_timeout(60_000)  # a busy machine takes its time to draw a page
        found = Ui(request.param, page, stack.api.removesuffix("/api"))
        page.on(
            "console", lambda one: found.said.append(one.text) if one.type == "error" and not is_prefects(one) else None
        )
        page.on("pageerror", lambda error: found.said.append(str(error)))
        page.route(lambda url: not url.startswith(found.root), elsewhere)
        yield found
        browser.close()


def is_prefects(message: Any) -> bool:
    """Whether Prefect's own UI asks for what its server does not have: pictures (`/ico/undefined.svg`), the task run of an artifact of a flow."""
    path = urlsplit(message.location.get("url", "")).path
    is_picture = "404" in message.text and "/api/" not in path and path.endswith((".svg", ".ico"))
    return is_picture or ("422" in message.text and path == "/api/task_runs/filter")


def elsewhere(route: Any) -> None:
    """Nothing leaves this machine: our own site is what docs/ holds, what Prefect's UI wants of others is empty."""
    url = route.request.url
    if url.startswith(SITE):
        path = ROOT / "docs" / url.removeprefix(SITE)
        route.fulfill(path=str(path)) if path.is_file() else route.fulfill(status=404)
    else:
        route.fulfill(
            status=200, body="", content_type="application/json", headers={"access-control-allow-origin": "*"}
        )


def test_the_form_explains_itself(ui: Ui, shown: Shown) -> None:
    ui.open(f"/deployments/deployment/{shown.deployment}/run", "Price limit")
    text = ui.text()
    assert "Property is type" not in text
    first = [text.index(f"\n{title}") for title in ("Command", "GPU (Optional)", "Price limit", "Providers")]
    assert first == sorted(first)
    assert all(text.index(f"\n{title}") > first[-1] for title in ("Order", "Requirements", "Job", "Account"))
    assert "USD per hour for the whole machine, for example 20. Empty: no limit." in text
    ui.picture("form")
    ui.assert_quiet()


def test_a_run_sent_by_the_form_with_nothing_but_a_command_is_taken(ui: Ui, shown: Shown, stack: Stack) -> None:
    ui.open(f"/deployments/deployment/{shown.deployment}/run", "Price limit")
    ui.page.locator("textarea").first.fill("true")
    ui.page.get_by_role("button", name="Submit").click()
    ui.page.wait_for_url(re.compile(r"/(runs/flow-run|deployments/deployment)/"))
    question = {
        "deployments": {"id": {"any_": [str(shown.deployment)]}},
        "sort": "EXPECTED_START_TIME_DESC",
        "limit": 1,
    }

    def newest() -> dict[str, Any]:
        return stack.client.post("/flow_runs/filter", json=question).json()[0]

    for _ in range(100):
        if newest()["parameters"].get("command") == "true":
            break
        ui.page.wait_for_timeout(200)
    sent = newest()
    assert sent["parameters"]["command"] == "true", ui.text()[-500:]
    stack.wait_for_state(UUID(sent["id"]), "Completed")
    assert stack.flow_run(UUID(sent["id"]))["name"] == "cpu-local-true"  # type: ignore[index]
    stack.client.delete(f"/flow_runs/{sent['id']}")


def test_a_run_is_called_by_what_it_does_and_shows_its_steps(ui: Ui, shown: Shown) -> None:
    ui.open(f"/runs/flow-run/{shown.run}", "cpu-local-echo")
    ui.page.get_by_role("tab", name="Logs").click() if ui.name == "v2" else None
    ui.page.get_by_text("6 give back").first.wait_for()
    ui.page.get_by_text("1 offers").first.scroll_into_view_if_needed()
    ui.picture("run")
    ui.assert_quiet()


def test_a_runs_artifacts_are_three_cards_that_answer_three_questions(ui: Ui, shown: Shown) -> None:
    ui.open(f"/runs/flow-run/{shown.run}", "cpu-local-echo")
    ui.page.get_by_text("Artifacts", exact=True).last.click()
    for card in (cards.TRIED, cards.COST, cards.FILES):  # the new UI draws what is markdown after all else
        ui.page.get_by_text(card.question[:20]).first.wait_for()
    text = ui.text()
    assert [text.count(card.key) for card in (cards.TRIED, cards.COST, cards.FILES)] == [1, 1, 1]
    assert "attempts-" not in text
    ui.picture("artifacts")
    ui.assert_quiet()


@pytest.mark.parametrize("card", [cards.TRIED, cards.COST, cards.FILES], ids=lambda card: card.key)
def test_a_card_is_drawn_as_a_page(ui: Ui, shown: Shown, stack: Stack, card: Any) -> None:
    question = {"artifacts": {"key": {"any_": [card.key]}, "flow_run_id": {"any_": [str(shown.run)]}}}
    (found,) = stack.client.post("/artifacts/filter", json=question).json()
    ui.open(f"/artifacts/artifact/{found['id']}", card.question.partition("?")[0])
    ui.page.get_by_role("cell", name="local").first.wait_for() if card is not cards.FILES else None
    assert "|---" not in ui.text()
    ui.picture(card.key)
    ui.assert_quiet()


def test_a_block_has_its_logo_its_description_and_a_link_to_its_page(ui: Ui, shown: Shown) -> None:
    ui.open("/blocks/catalog/gpu-aws", "GPU: AWS")
    ui.page.get_by_text("EC2 machines with GPUs").first.wait_for()
    logo = ui.page.locator(f"img[src='{SITE}logos/aws.svg']").first
    logo.wait_for()
    assert logo.evaluate("image => image.naturalWidth") > 0
    assert ui.page.locator(f"a[href='{SITE}providers/aws/']").count() > 0
    ui.assert_quiet()
