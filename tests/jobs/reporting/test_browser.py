"""The page of a real sweep in a real browser, with the network off: it works, by mouse and by keyboard, in light and
dark, on a phone and on paper, and axe-core finds nothing serious."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from jobs import report, sweep
from petseg.inference.point_files import write_points
from shards.command import FAILED, OK, run_command
from tests.browsers import chromium, require_browser
from tests.jobs.reporting.sections.test_pareto import POINTS

DESK, PHONE, WIDE, TABLET = (1280, 900), (390, 844), (1400, 900), (800, 1000)
SETTINGS = {
    "data.image_size_px": 32,
    "model.width": 4,
    "train.epochs": 2,
    "train.batch_size": 16,
    "train.mixed_precision": "no",
    "tracking.overlays": 2,
}
TOO_FAST = 1e18  # its loss is not finite after a step

pytestmark = pytest.mark.slow
Open = Callable[..., Any]


@pytest.fixture(scope="module")
def page_path(pet_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """report.html of eight trials that were really trained, and of one that failed."""
    require_browser()
    runs = tmp_path_factory.mktemp("browser") / "runs"
    # as if two trials ran at once: each on one thread, as two would wait for each other on a busy machine
    flags = ["--name", "real", "--cluster", "debug", "--max-parallel", "2", "--runs-dir", str(runs)]
    flags += ["--set", f"data.shards={pet_shards}"]
    for name, value in SETTINGS.items():
        flags += ["--set", f"{name}={value}"]
    flags += ["--axis", "model.arch=unet", "--axis", "train.seed=0"]
    cells = ["--axis", "augment.policy=none,elastic", "--axis", "optim.lr=0.003,0.01", "--axis", "train.loss=ce,dice"]
    assert run_command(sweep.main, [*flags, *cells]) == OK
    failing = ["--axis", "augment.policy=none", "--axis", f"optim.lr={TOO_FAST}", "--axis", "train.loss=ce"]
    assert run_command(sweep.main, [*flags, *failing]) == FAILED
    write_points(POINTS, runs / "real" / "points" / "measured.json")
    assert run_command(report.main, [str(runs / "real")]) == OK
    return runs / "real" / "report.html"


@pytest.fixture(scope="module")
def browser(page_path: Path) -> Iterator[Any]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def open_page(browser: Any, page_path: Path) -> Iterator[Open]:
    """open_page(size, scheme): the page in a tab of its own; at the end it must have asked for nothing and said
    nothing."""
    requests: list[str] = []
    troubles: list[str] = []
    contexts = []

    def open_one(size: tuple[int, int] = DESK, scheme: str = "light") -> Any:
        context = browser.new_context(
            viewport={"width": size[0], "height": size[1]}, color_scheme=scheme, offline=True, reduced_motion="reduce"
        )
        contexts.append(context)
        tab = context.new_page()
        tab.on("request", lambda request: requests.append(request.url))
        tab.on("console", lambda message: troubles.append(message.text))
        tab.on("pageerror", lambda error: troubles.append(str(error)))
        tab.goto(page_path.as_uri())
        return tab

    yield open_one
    for context in contexts:
        context.close()
    assert troubles == []
    assert {url for url in requests if not url.startswith("data:")} == {page_path.as_uri()}


def values(table: Any, column: int) -> list[str]:
    """The values of a column, as the page sorts them."""
    cell = "row.cells[i].dataset.value ?? row.cells[i].textContent.trim()"
    return table.evaluate(f"(table, i) => [...table.tBodies[0].rows].map(row => {cell})", column)


def shown_rows(table: Any) -> int:
    return table.locator("tbody tr:visible").count()


def test_a_real_sweep_has_all_sections(open_page: Open) -> None:
    """Its runs have kept their curves, and the one that failed is told of once."""
    tab = open_page()
    names = "dice leaderboard axes curves gap calibration pareto pictures operation trials"
    for name in names.split():
        assert tab.locator(f"#{name}").is_visible()
    assert tab.locator(".reliability").count() == 6
    assert tab.locator("section[aria-labelledby=operation] dl").inner_text().endswith("1 NaN")


def test_every_column_sorts_both_ways(open_page: Open) -> None:
    tab = open_page()
    tab.get_by_label("All columns").check()
    tab.locator("details").evaluate_all("all => all.forEach(one => one.open = true)")
    tables = tab.locator("table[data-sortable]").all()
    assert len(tables) >= 5
    for table in tables:
        for button in table.locator("thead button").all():
            head = button.locator("..")
            column = head.evaluate("head => head.cellIndex")
            button.click()
            assert head.get_attribute("aria-sort") == "ascending"
            rising = values(table, column)
            button.click()
            assert head.get_attribute("aria-sort") == "descending"
            assert table.locator("th[aria-sort]").count() == 1
            for found, turn in ((rising, False), (values(table, column), True)):
                known = [text for text in found if text]
                assert found == known + [""] * (len(found) - len(known))  # what is not known stays last
                if known and all(re.fullmatch(r"-?[\d.]+(e-?\d+)?", text) for text in known):
                    numbers = [float(text) for text in known]
                    assert numbers == sorted(numbers, reverse=turn)


def test_filter_shows_and_says_what_is_left(open_page: Open) -> None:
    tab = open_page()
    section = tab.locator("section[aria-labelledby=trials]")
    table, status = section.locator("table"), section.get_by_role("status")
    assert (shown_rows(table), status.inner_text()) == (9, "9 trials")
    section.get_by_label("Filter").fill("Elastic  dice")
    assert (shown_rows(table), status.inner_text()) == (2, "2 of 9 trials shown")
    section.get_by_role("button", name="lowest val loss").click()  # rows that are hidden stay so
    assert shown_rows(table) == 2
    section.get_by_label("Filter").fill("no such trial")
    assert (shown_rows(table), status.inner_text()) == (0, "0 of 9 trials shown")
    section.get_by_label("Filter").press("Escape")
    assert (shown_rows(table), status.inner_text()) == (9, "9 trials")
    section.get_by_label("Filter").fill("failed")
    assert shown_rows(table) == 1


def test_a_long_table_shows_its_first_rows_until_all_are_asked_for(
    browser: Any, page_path: Path, tmp_path: Path
) -> None:
    """270 trials: a filter and a sort work on all of them, and paper shows all."""
    start, section = page_path.read_text().split('aria-labelledby="trials"')
    head, rows, rest = re.split(r"<tbody>|</tbody>", section, maxsplit=2)
    long = tmp_path / "long.html"
    long.write_text(f'{start}aria-labelledby="trials"{head}<tbody>{30 * rows}</tbody>{rest}')
    with browser.new_context(offline=True) as context:
        tab = context.new_page()
        tab.goto(long.as_uri())
        section = tab.locator("section[aria-labelledby=trials]")
        table, status = section.locator("table"), section.get_by_role("status")
        assert (shown_rows(table), status.inner_text()) == (200, "200 of 270 trials shown")
        section.get_by_role("button", name="state").click()
        section.get_by_role("button", name="state").click()
        assert {row.split(":")[0] for row in values(table, 2)[:30]} == {"failed"}  # of all rows, not of the first
        section.get_by_label("Filter").fill("done")
        assert (shown_rows(table), status.inner_text()) == (200, "200 of 240 matching trials shown")
        section.get_by_label("All rows").check()
        assert (shown_rows(table), status.inner_text()) == (240, "240 of 270 trials shown")
        section.get_by_label("All rows").uncheck()
        section.get_by_label("Filter").fill("failed")
        assert (shown_rows(table), status.inner_text()) == (30, "30 of 270 trials shown")
        section.get_by_label("Filter").fill("")
        tab.emulate_media(media="print")
        assert shown_rows(table) == 270


def test_keyboard_alone(open_page: Open) -> None:
    """Tab reaches filter, columns, sort buttons and a command; each shows that it has the focus."""
    tab = open_page()
    board = tab.locator("section[aria-labelledby=leaderboard]")
    board.get_by_label("Filter").first.focus()
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.type") == "checkbox"
    assert not board.get_by_role("columnheader", name="train time").is_visible()
    tab.keyboard.press("Space")
    assert board.get_by_role("columnheader", name="train time").is_visible()
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.getAttribute('role')") == "region"
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.textContent") == "#"
    tab.keyboard.press("Enter")
    assert tab.evaluate("document.activeElement.parentElement.ariaSort") == "ascending"
    tab.keyboard.press("Space")
    assert tab.evaluate("document.activeElement.parentElement.ariaSort") == "descending"
    assert tab.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
    tab.locator("section[aria-labelledby=trials] summary").first.focus()
    tab.keyboard.press("Enter")
    assert tab.locator("section[aria-labelledby=trials] .command").first.is_visible()


def test_slider_leaves_the_best_lines(open_page: Open) -> None:
    tab = open_page()
    section = tab.locator("section[aria-labelledby=axes]")
    assert section.get_by_role("status").inner_text() == "8 of 8 trials"
    section.get_by_role("slider").focus()
    tab.keyboard.press("End")
    dice = section.locator("polyline").evaluate_all("all => all.map(line => line.dataset.dice)")
    left = section.locator("polyline:not(.dim)").evaluate_all("all => all.map(line => line.dataset.dice)")
    assert left == [one for one in dice if one == max(dice, key=float)]
    assert section.get_by_role("status").inner_text() == f"{len(left)} of 8 trials"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESK, PHONE, WIDE, TABLET])
def test_nothing_scrolls_sideways_and_axe_is_content(open_page: Open, size: tuple[int, int], scheme: str) -> None:
    tab = open_page(size, scheme)
    assert tab.evaluate("document.documentElement.scrollWidth") == size[0]
    brightness = tab.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert (max(brightness) < 64) == (scheme == "dark")
    if size in (DESK, WIDE):
        box = tab.locator("section[aria-labelledby=leaderboard] > .box")
        assert box.evaluate("box => box.scrollWidth - box.clientWidth") == 0
    tab.evaluate(files("axe_playwright_python").joinpath("axe.min.js").read_text())
    found = tab.evaluate("axe.run({resultTypes: ['violations']})")["violations"]
    grave = [
        (one["id"], node["target"], node["failureSummary"])
        for one in found
        if one["impact"] in ("serious", "critical")
        for node in one["nodes"]
    ]
    assert grave == []


def test_contents_stay_in_sight_on_a_wide_screen(open_page: Open) -> None:
    """And lead to their sections, and say which one is read."""
    tab = open_page(WIDE)
    contents = tab.get_by_role("navigation", name="Contents")
    top = contents.bounding_box()["y"]
    contents.get_by_role("link", name="Calibration").click()
    assert tab.evaluate("scrollY") > 1000
    assert tab.locator("#calibration").bounding_box()["y"] == pytest.approx(19, abs=3)
    assert 0 <= contents.bounding_box()["y"] <= top
    tab.wait_for_function("document.querySelector('nav [aria-current]').textContent === 'Calibration'")
    tab.evaluate("scrollTo(0, document.documentElement.scrollHeight)")
    tab.wait_for_function("document.querySelector('nav [aria-current]').textContent === 'Trials'")
    assert contents.locator("[aria-current]").count() == 1
    narrow = open_page(PHONE).get_by_role("navigation", name="Contents")
    assert narrow.bounding_box()["height"] < 200
    assert narrow.evaluate("nav => getComputedStyle(nav).position") == "static"


def test_val_dice_is_seen_on_a_phone_wherever_the_table_is_scrolled(open_page: Open) -> None:
    tab = open_page(PHONE)
    tab.get_by_label("All columns").check()
    box = tab.locator("section[aria-labelledby=leaderboard] > .box")
    for share in (0, 0.5, 1):
        box.evaluate("(box, share) => { box.scrollLeft = share * (box.scrollWidth - box.clientWidth); }", share)
        for cell in box.locator("tbody td.val").all():
            at = cell.bounding_box()
            assert at["x"] >= 0
            assert at["x"] + at["width"] <= PHONE[0]


def test_headers_show_that_they_sort(open_page: Open) -> None:
    tab = open_page()
    head = tab.locator("section[aria-labelledby=trials] thead th").first
    shape = "head => getComputedStyle(head.querySelector('button'), '::after').clipPath"
    shapes = [head.evaluate(shape)]
    for _ in range(2):
        head.get_by_role("button").click()
        shapes.append(head.evaluate(shape))
    assert len(set(shapes)) == 3
    assert all(one.startswith("polygon") for one in shapes)


def test_paper(open_page: Open) -> None:
    """Pages, light even where the screen is dark, without what can only be clicked, and with nothing cut off."""
    tab = open_page(DESK, "dark")
    pdf = tab.pdf(prefer_css_page_size=True)
    assert len(re.findall(rb"/Type\s*/Page\b", pdf)) >= 5
    tab.emulate_media(media="print")
    tab.set_viewport_size({"width": 1032, "height": 700})  # A4 across, without its margins, at 96 px an inch
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert tab.locator(".tools, .columns, .brush").evaluate_all(
        "all => all.every(one => getComputedStyle(one).display === 'none')"
    )
    parted = tab.locator(".keep, .heats, figure").evaluate_all(
        "all => all.filter(one => getComputedStyle(one).breakInside !== 'avoid').length"
    )
    assert parted == 0
    leading = tab.locator("main :is(h2, h3, h4)").evaluate_all(
        "all => all.every(one => getComputedStyle(one).breakAfter === 'avoid')"
    )
    assert leading
    assert tab.locator(".keep > h4 + .shots").count() == tab.locator(".shots").count()
    assert tab.get_by_role("navigation").count() == 0
    wide = tab.locator(".box").evaluate_all(
        "all => all.filter(box => box.scrollWidth > innerWidth).map(box => box.ariaLabel)"
    )
    assert wide == []
