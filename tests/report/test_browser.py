"""The page in a real browser: at a laptop's and a telephone's width, in light and dark, checked by axe-core."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from saukit.core.workspace import Workspace
from saukit.report.config import ReportConfig
from saukit.report.page import report

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.browser

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SIZES = {"laptop": (1280, 800), "telephone": (390, 844)}
PAGES = ("full", "odd", "split")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no chromium, chromium-browser or google-chrome on the PATH")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as running:
        opened = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def files(
    report_work: Path, odd_work: Path, shared_work: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """A page of everything, one of odd names and many classes, and one of only a split."""
    folder = tmp_path_factory.mktemp("pages")
    shutil.copytree(shared_work / "split", folder / "work" / "split")
    found = {}
    for name, work in zip(PAGES, (report_work, odd_work, folder / "work"), strict=True):
        found[name] = folder / f"{name}.html"
        report(ReportConfig(), Workspace(work), out=found[name], force=False)
    return found


def opened(browser: Browser, file: Path, size: str, scheme: Any, problems: list[str], **context: Any) -> Page:
    """The page, with all details open; errors, warnings and requests that fail or leave the file go to `problems`."""
    width, height = SIZES[size]
    page = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=scheme, offline=True, **context
    ).new_page()
    page.on("console", lambda message: problems.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: problems.append(f"error: {error}"))
    page.on("requestfailed", lambda request: problems.append(f"failed: {request.url[:80]}"))
    page.on("request", lambda request: problems.extend(
        [] if request.url.startswith(("file:", "data:")) else [request.url[:80]]))  # fmt: skip
    page.goto(file.as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(details => { details.open = true })")
    return page


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", PAGES)
def test_it_opens_fits_and_passes_axe(
    browser: Browser, files: dict[str, Path], name: str, size: str, scheme: str
) -> None:
    from axe_playwright_python.sync_playwright import Axe

    problems: list[str] = []
    page = opened(browser, files[name], size, scheme, problems)
    assert page.evaluate("document.documentElement.scrollWidth") <= SIZES[size][0]
    widths = page.evaluate("Array.from(document.images, image => [image.naturalWidth, image.clientWidth])")
    assert widths and all(natural > 0 and shown > 0 for natural, shown in widths)
    found = Axe().run(page).response["violations"]
    serious = [
        f"{violation['id']}: {node['html'][:160]} {node.get('failureSummary', '')}"
        for violation in found
        if violation["impact"] in ("serious", "critical")
        for node in violation["nodes"][:3]
    ]
    assert serious == []
    assert problems == []
    page.context.close()


def test_figures_follow_the_colour_scheme_and_the_font_of_the_page(browser: Browser, files: dict[str, Path]) -> None:
    body = "getComputedStyle(document.body)"
    inks = []
    for scheme in ("light", "dark"):
        page = opened(browser, files["full"], "telephone", scheme, [])
        figures = page.locator("svg.plot text")
        styles = figures.evaluate_all(
            "all => all.map(one => [getComputedStyle(one).fill, getComputedStyle(one).fontFamily])"
        )
        inks.append(page.evaluate(f"{body}.color"))
        assert inks[-1] in [fill for fill, _ in styles]
        assert {family for _, family in styles} == {page.evaluate(f"{body}.fontFamily")}
        heights = figures.evaluate_all("all => all.map(one => one.getBoundingClientRect().height)")
        assert min(height for height in heights if height) > 6
        page.context.close()
    assert inks[0] != inks[1]


def test_without_a_script_nothing_offers_what_it_would_do(browser: Browser, files: dict[str, Path]) -> None:
    page = browser.new_context(java_script_enabled=False).new_page()
    page.goto(files["full"].as_uri())
    assert page.locator(".command").count() == 1 and page.locator(".command button").count() == 0
    page.context.close()


def test_the_script_marks_the_section_in_view_and_copies_commands(browser: Browser, files: dict[str, Path]) -> None:
    problems: list[str] = []
    page = opened(
        browser, files["full"], "laptop", "light", problems, permissions=["clipboard-read", "clipboard-write"]
    )
    page.locator("#limits").scroll_into_view_if_needed()
    page.locator("#repeat .command button").first.click()
    page.get_by_text("Copied").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == page.locator("#repeat pre code").first.inner_text()
    page.evaluate("document.getElementById('samples').scrollIntoView({behavior: 'instant'})")
    page.locator("nav a[aria-current][href='#samples']").wait_for()
    assert page.locator("nav a[aria-current]").count() == 1
    assert problems == []
    page.context.close()


def test_an_injected_script_does_not_run(browser: Browser, files: dict[str, Path], tmp_path: Path) -> None:
    """Escaping is the first guard, the page's policy the second: with a hole in the first, it still holds."""
    source = files["full"].read_text(encoding="utf-8")
    holed = tmp_path / "holed.html"
    holed.write_text(source.replace("<main", "<script>document.title = 'broken'</script><main", 1), encoding="utf-8")
    page = browser.new_context().new_page()
    page.goto(holed.as_uri())
    assert page.title() == "Long-tailed digits, 10 classes"
    page.context.close()
