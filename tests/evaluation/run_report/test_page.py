"""The page: each number is that of the JSON, no request leaves it, and it is always the same."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from evaluation.run_report.page import LARGEST_PAGE, render, shown, value_at
from evaluation.run_report.report import build_report
from tests.evaluation.run_report.small_run import SmallRun

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def page_of(small: SmallRun, **options: Any) -> tuple[dict[str, Any], str]:
    """The JSON, read back, and the page."""
    report = json.loads(json.dumps(build_report(small.folders, ask=False, **options)))
    return report, render(report)


class Numbers(HTMLParser):
    """Collects the numbers of a page: those that name their place, and digits outside of them."""

    def __init__(self) -> None:
        super().__init__()
        self.named: list[tuple[str, str, str]] = []
        self.other: list[str] = []
        self._place: tuple[str, str] | None = None
        self._skipped = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag in ("svg", "style", "script", "title"):
            self._skipped += 1
        if "data-at" in given:
            self._place = str(given["data-at"]), given.get("data-kind") or ""

    def handle_endtag(self, tag: str) -> None:
        if tag in ("svg", "style", "script", "title"):
            self._skipped -= 1

    def handle_data(self, data: str) -> None:
        if self._place:
            self.named.append((*self._place, data))
            self._place = None
        elif not self._skipped:
            self.other.append(data)


def texts_of(value: Any) -> str:
    """All texts in the JSON, joined."""
    if isinstance(value, dict):
        return " ".join([*map(str, value), *map(texts_of, value.values())])
    return " ".join(map(texts_of, value)) if isinstance(value, list) else str(value)


FIXED = re.compile("n=|95%")
"""Digits in the page's own words."""


def check_numbers(report: dict[str, Any], html: str) -> int:
    """Compare each number of a page with the JSON. Returns: how many there are."""
    numbers = Numbers()
    numbers.feed(html)
    for at, kind, text in numbers.named:
        assert text == shown(value_at(report, at), kind), at
        # Read the other way round, without our formatting: within the digits that are shown.
        if kind in ("", "share"):
            bare = float(text.rstrip("%").replace(",", "")) / (100 if kind else 1)
            assert bare == pytest.approx(value_at(report, at), rel=2e-3, abs=6e-4), at
    known = texts_of(report)
    for text in numbers.other:
        for digits in re.findall(r"\d+", FIXED.sub("", text)):
            assert digits in known, text
    return len(numbers.named)


def test_every_number_of_the_page_is_that_of_the_json(small: SmallRun) -> None:
    report, html = page_of(small.whole())
    assert check_numbers(report, html) > 60


def test_the_same_files_give_the_same_bytes(small: SmallRun) -> None:
    assert page_of(small.whole())[1] == page_of(small)[1]


def test_no_request_leaves_the_page(small: SmallRun) -> None:
    _, html = page_of(small.whole())
    assert "default-src 'none'" in html
    assert not re.findall(r"""(?:src|href)=["'](?!data:)|url\((?!#)|@import|https?://""", html)
    assert len(html.encode()) < LARGEST_PAGE


@pytest.mark.parametrize("stage", ["pretrain", "sft", "dpo"])
def test_a_run_without_a_stage_still_gives_a_page(small: SmallRun, stage: str) -> None:
    small.whole().path(stage).unlink()
    (small.folders.out / "stages" / f"{stage}.json").unlink()
    assert check_numbers(*page_of(small)) > 20


def test_a_crash_and_a_single_evaluation_still_give_a_page(small: SmallRun) -> None:
    small.whole().note("dpo", status="running")
    small.path("dpo").unlink()
    results = small.folders.results / "eval_results.jsonl"
    results.write_text(results.read_text().splitlines(keepends=True)[0])
    report, html = page_of(small)
    assert check_numbers(report, html) > 20
    assert "dpo did not end" in html


def test_a_page_of_nothing_but_metrics_still_stands(small: SmallRun) -> None:
    small.note("pretrain", status="running")
    small.metrics("pretrain", [4.0], [])
    assert check_numbers(*page_of(small)) > 5


def test_an_earlier_run_stands_beside_this_one(small: SmallRun, tmp_path: Path) -> None:
    report, _ = page_of(small.whole())
    earlier = tmp_path / "earlier.json"
    earlier.write_text(json.dumps({**report, "run_id": "r0"}))
    both, html = page_of(small, compare=[earlier])
    assert "r0" in html
    assert 'class="past p0"' in html
    assert check_numbers(both, html) > 60


def test_what_the_model_says_can_be_no_markup(small: SmallRun) -> None:
    report, _ = page_of(small.whole())
    said = [{"text": "<script>alert(1)</script>", "ended": True}]
    report["answers"] = {"prompts": ["<b>"], "columns": {"sft": said}, "missing": {}, "heldout": {}}
    html = render(report)
    assert "<script>alert" not in html
    assert "&lt;script&gt;" in html


def test_a_change_is_bold_only_where_the_intervals_do_not_meet(small: SmallRun) -> None:
    report, html = page_of(small.whole())
    assert report["changes"]["dpo"]["accuracy_math"] == {"from": "sft", "by": -0.3, "apart": True}
    assert not report["changes"]["dpo"]["accuracy_identity"]["apart"]
    assert (html.count('class="change clear"'), html.count('class="change"')) == (1, 1)


def test_numbers_are_shown_as_people_read_them() -> None:
    assert shown(0.9127, "share") == "91.3%"
    assert shown(-0.012, "change") == "-1.2"
    assert shown(464, "time") == "7 min 44 s"
    assert shown(7261, "time") == "2 h 01 min"
    assert shown(2803648, "") == "2,803,648"
    assert shown(0.00147058, "") == "0.001471"


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here: run bash scripts/install_browser.sh")
def test_a_browser_shows_the_page_at_two_widths_without_a_request(small: SmallRun, tmp_path: Path) -> None:
    playwright = pytest.importorskip("playwright.sync_api")
    path = tmp_path / "report.html"
    path.write_text(page_of(small.whole(), prices={"rent": 3.6, "watts": 100.0})[1], encoding="utf-8")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=BROWSER)
        for width, locale in ((1280, "zh-CN"), (390, "en-US")):
            page = browser.new_page(viewport={"width": width, "height": 800}, locale=locale)
            asked: list[str] = []
            errors: list[str] = []
            page.on("request", lambda request, asked=asked: asked.append(request.url))
            page.on("pageerror", lambda error, errors=errors: errors.append(str(error)))
            page.goto(path.as_uri())
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            assert page.inner_text("h1") == ("训练报告" if locale == "zh-CN" else "Run report")
            # 61 seconds at 3.6 an hour, and at 100 watts.
            cells = page.locator(".costs tr").nth(-1).locator("td").all_inner_texts()
            assert cells[-2:] == ["0.00169", "0.0610"]
            page.click("#theme")
            assert page.evaluate("document.documentElement.dataset.theme") == "dark"
            assert [url for url in asked if not url.startswith("data:")] == [path.as_uri()]
            assert not errors
        browser.close()
