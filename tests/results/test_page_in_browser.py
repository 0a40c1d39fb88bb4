"""The HTML report as Chromium shows it: complete, alone, legible in both schemes, on wide and narrow screens."""

from __future__ import annotations

import base64
import dataclasses
import itertools
from pathlib import Path

import pytest

from homojl.results.page import write_page
from homojl.results.records import RunRecord
from tests.browser import browser, open_page, show_scheme, show_width
from tests.results.test_page import HOSTILE, reported

pytestmark = pytest.mark.needs("browser")


@pytest.fixture(scope="module")
def driver():
    with browser() as driven:
        yield driven


@pytest.fixture(scope="module")
def pages(record: RunRecord, make, tmp_path_factory) -> dict[str, Path]:
    """One run; several, of which one has 100 classes; and one whose names all try to be more than text."""
    folder = tmp_path_factory.mktemp("pages")
    many = make(class_names=tuple(f"class {number}" for number in range(100)), images=500, epochs=9, seed=1)
    config = {**record.config, "model": {"name": HOSTILE[0]}, "data": {"dataset": HOSTILE[1]}}
    hostile = dataclasses.replace(record, class_names=HOSTILE, config=config, environment={"a": HOSTILE[2]})
    contents = {
        "one": [reported("one", record)],
        "several": [reported("first", record), reported("second-of-a-rather-long-name-20260101-120000", many)],
        "hostile": [reported(HOSTILE[0], hostile), reported(HOSTILE[1], hostile)],
    }
    for name, runs in contents.items():
        write_page(folder / f"{name}.html", runs)
    return {name: folder / f"{name}.html" for name in contents}


KINDS = ("one", "several", "hostile")


@pytest.mark.parametrize("kind", KINDS)
def test_it_opens_clean_alone_and_complete(driver, pages, kind):
    driver.get_log("browser")  # empties it
    assert open_page(driver, pages[kind]) == [pages[kind].as_uri()]
    assert driver.get_log("browser") == []
    images = driver.execute_script("return [...document.images].map(i => [i.complete, i.naturalWidth, i.alt])")
    assert len(images) >= 6
    assert all(complete and width > 0 and alt for complete, width, alt in images)
    drawn = driver.execute_script(
        "return [...document.querySelectorAll('svg[role=img]')].map(s => {const b = s.getBoundingClientRect();"
        "return [b.width, b.height, s.ariaLabel]})"
    )
    assert len(drawn) >= 8
    assert all(width > 100 and height > 10 and label for width, height, label in drawn)
    assert driver.execute_script("return typeof hacked") == "undefined"


def test_the_browser_is_told_to_run_and_to_fetch_nothing_else(driver, pages, tmp_path):
    """A page with a hole in it: what came through would not run, and would not reach anything."""
    text = pages["one"].read_text("utf-8").replace(
        "</main>", "</main><script>hacked = 1</script><img src='https://example.invalid/x.png' onerror='hacked = 1'>"
    )  # fmt: skip
    (tmp_path / "holed.html").write_text(text, "utf-8")
    driver.get_log("browser")
    assert [url for url in open_page(driver, tmp_path / "holed.html") if url.startswith("http")] == []
    assert driver.execute_script("return typeof hacked") == "undefined"
    assert sum("Content Security Policy" in entry["message"] for entry in driver.get_log("browser")) >= 2


def test_names_are_shown_as_they_are(driver, pages):
    open_page(driver, pages["hostile"])
    names = "return [...document.querySelectorAll('table.confusion tbody th')].map(cell => cell.innerText)"
    assert driver.execute_script(names)[:10] == [name.replace("\udc80", "?") for name in HOSTILE]
    assert driver.execute_script("return document.querySelectorAll('script').length") == 1
    assert HOSTILE[0] in driver.execute_script("return document.querySelector('h1').innerText")


@pytest.mark.parametrize("width", [320, 768, 1440])
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_sticks_out(driver, pages, kind, width):
    show_width(driver, width)
    open_page(driver, pages[kind])
    beyond = driver.execute_script(
        "return [...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll, .skip, pre')"
        " && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 100))"
    )
    assert beyond == []
    assert driver.execute_script("return document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("kind", ["one", "several"])
def test_text_and_lines_stand_out(driver, pages, kind, scheme):
    """WCAG 2.2, 1.4.3 and 1.4.11: 4.5:1 for text, 3:1 for what a chart is read by."""
    show_width(driver, 1280)
    show_scheme(driver, scheme)
    open_page(driver, pages[kind])
    driver.execute_script("for (const d of document.querySelectorAll('details')) d.open = true")
    script = (Path(__file__).parent / "contrast.js").read_text("utf-8")
    texts, marks = driver.execute_script(script)
    assert len(texts) > 200
    assert len(marks) > 20
    assert [text for text in texts if text[0] < 4.5] == []
    assert [mark for mark in marks if mark[0] < 3] == []
    page_colour = driver.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (max(map(int, page_colour[4:-1].split(","))) < 100) == (scheme == "dark")


@pytest.mark.parametrize("kind", KINDS)
def test_it_can_be_read_aloud(driver, pages, kind):
    """One main heading, no level left out, every heading cell knows its direction, every anchor leads somewhere."""
    open_page(driver, pages[kind])
    levels = driver.execute_script("return [...document.querySelectorAll('h1, h2, h3, h4')].map(h => +h.tagName[1])")
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    broken = driver.execute_script(
        "return [...document.querySelectorAll('th:not([scope])'),"
        " ...[...document.querySelectorAll('a')].filter(a => !document.getElementById(a.hash.slice(1))),"
        " ...[...document.querySelectorAll('table')].filter(t => !t.caption && !t.parentElement.ariaLabel),"
        " ...[...document.querySelectorAll('[id]')].filter((e, i, all) => all.findIndex(o => o.id === e.id) !== i)]"
        ".map(e => e.outerHTML.slice(0, 100))"
    )
    assert broken == []
    places = driver.execute_script(
        "return [...document.querySelectorAll('section, [role=region]')].map(e => e.ariaLabel ||"
        " document.getElementById(e.getAttribute('aria-labelledby')).innerText)"
    )
    assert len(set(places)) == len(places) > 10
    assert driver.execute_script("return document.documentElement.lang") == "en"


def test_tables_are_sorted_by_a_click(driver, pages):
    open_page(driver, pages["several"])
    heading, order = "document.querySelector('.results thead th:nth-child(2)')", (
        "return [...document.querySelectorAll('.results tbody td:nth-child(2)')].map(c => +c.dataset.order)"
    )  # fmt: skip
    for direction, falling in (("descending", True), ("ascending", False)):
        driver.execute_script(f"{heading}.querySelector('button').click()")
        values = driver.execute_script(order)
        assert values == sorted(values, reverse=falling)
        assert len(set(values)) == 2
        assert driver.execute_script(f"return {heading}.ariaSort") == direction


def test_it_is_printed_whole(driver, pages):
    """What is folded on the screen is on paper."""
    open_page(driver, pages["one"])
    count = "document.querySelectorAll('[open]').length"
    driver.execute_script(f"addEventListener('beforeprint', () => document.title = {count})")
    assert base64.b64decode(driver.print_page()).startswith(b"%PDF")
    assert int(driver.title) == driver.execute_script("return document.querySelectorAll('details').length") > 0
    assert driver.execute_script(f"return {count}") == 0
