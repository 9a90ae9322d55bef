"""The page in a real browser: needs /usr/bin/chromium and its driver (Debian: chromium, chromium-driver)."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from aucseg.report import build_report
from tests.report.synthetic import CLASS_NAMES, HOSTILE, class_counts, examples, pastes, write_run

pytestmark = pytest.mark.slow

TITLES = ("CE", "AUCSeg", "Focal")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
)  # fmt: skip


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("browser")
    names = (*CLASS_NAMES[:13], HOSTILE, *CLASS_NAMES[14:])
    runs = [write_run(base / t, strength=s, seed=i, class_names=names) for i, (t, s) in
            enumerate(zip(TITLES, (0.0, 1.0, 0.4), strict=True))]  # fmt: skip
    return build_report(
        runs, base / "report.html", titles=TITLES, samples=examples(TITLES, prefix=HOSTILE), pastes=pastes(),
        statistics=class_counts(),
    )  # fmt: skip


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=Service("/usr/bin/chromedriver"))
    yield browser
    browser.quit()


@pytest.fixture(params=["desktop", "phone"])
def opened(request: pytest.FixtureRequest, driver: Any, page: Path) -> Any:
    is_phone = request.param == "phone"
    size = {"width": 390, "height": 844} if is_phone else {"width": 1280, "height": 900}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {**size, "deviceScaleFactor": 1, "mobile": is_phone})
    driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": is_phone, "maxTouchPoints": 1})
    driver.get(page.as_uri())
    yield driver
    assert driver.get_log("browser") == []


def _css(driver: Any, selector: str) -> Any:
    return driver.find_element("css selector", selector)


def _scroll_to(driver: Any, element: Any) -> None:
    # The page hears of a scroll at the next frame, and hides its tip then: let that pass before the pointer moves.
    driver.execute_async_script(
        """arguments[0].scrollIntoView({block: 'center', inline: 'center'});
           requestAnimationFrame(() => requestAnimationFrame(() => arguments[1]()))""",
        element,
    )


def _picture(driver: Any, selector: str) -> np.ndarray[Any, Any]:
    element = _css(driver, selector)
    _scroll_to(driver, element)
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(element.screenshot_as_base64))).convert("RGB")).astype(int)


def test_page_opens_without_errors_and_fits_the_width(opened: Any) -> None:
    assert opened.title.startswith("CE beside AUCSeg")
    assert opened.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    # Every picture in the page could be decoded.
    assert opened.execute_script("return [...document.images].every((i) => i.complete && i.naturalWidth > 0)")
    # Nothing was asked of a network or another file.
    assert (
        opened.execute_script(
            "return performance.getEntriesByType('resource').filter((e) => !e.name.startsWith('data:')).length"
        )
        == 0
    )


def test_text_is_large_enough_to_read(opened: Any) -> None:
    smallest = opened.execute_script(
        """const hasText = (e) => [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
           return Math.min(...[...document.querySelectorAll('main *')]
             .filter((e) => e.getClientRects().length && hasText(e))
             .map((e) => parseFloat(getComputedStyle(e).fontSize) *
                         (e.ownerSVGElement ? e.getScreenCTM().a || Math.abs(e.getScreenCTM().b) : 1))
             .filter((size) => size > 0))"""
    )
    assert smallest >= 9.0


def test_table_sorts(opened: Any) -> None:
    def order() -> list[str]:
        return [row.text.strip() for row in opened.find_elements("css selector", "#results-table tbody th")]

    assert order() == list(TITLES)
    heading = next(h for h in opened.find_elements("css selector", "#results-table thead th") if "Tail" in h.text)
    _scroll_to(opened, heading)
    heading.find_element("css selector", "button").click()
    assert order() == ["AUCSeg", "Focal", "CE"]
    assert heading.get_attribute("aria-sort") == "descending"
    heading.find_element("css selector", "button").click()
    assert order() == ["CE", "Focal", "AUCSeg"]
    # By name; classes without an IoU stay last either way.
    _css(opened, "#classes summary").click()
    ce = opened.find_elements("css selector", "#class-table thead th")[4]
    for _ in range(2):
        opened.execute_script("arguments[0].querySelector('button').click()", ce)
        assert opened.find_elements("css selector", "#class-table tbody tr")[-1].text.startswith("soul sphere")


def test_slider_moves_and_shows_the_other_run(opened: Any) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    stage, divide = ".compare .stage", ".compare .divide"
    before = _picture(opened, stage)
    width = before.shape[1]
    ActionChains(opened).move_to_element(_css(opened, divide)).click_and_hold().move_by_offset(
        -width // 3, 0
    ).release().perform()
    value = float(_css(opened, divide).get_attribute("value"))
    assert value < 30
    divider = _css(opened, ".compare .divider").rect
    assert divider["x"] + 1 - _css(opened, stage).rect["x"] == pytest.approx(width * value / 100, abs=2)
    after = _picture(opened, stage)
    changed = np.abs(after - before).sum(axis=(0, 2)) > 0
    assert changed[width // 4 : width // 2].any()
    _css(opened, divide).send_keys(Keys.END)
    all_left = _picture(opened, stage)
    _css(opened, divide).send_keys(Keys.HOME)
    all_right = _picture(opened, stage)
    assert (all_left != all_right).any()
    left, right = (_css(opened, f".compare .at-{side}").text for side in ("left", "right"))
    assert (left, right) == ("CE", "AUCSeg")
    from selenium.webdriver.support.ui import Select

    Select(_css(opened, ".compare .pick-right")).select_by_visible_text("Focal")
    assert _css(opened, ".compare .at-right").text == "Focal"


def test_truth_is_shown_by_key_and_by_button(opened: Any) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    def is_truth_seen() -> bool:
        return bool(
            opened.execute_script(
                "return getComputedStyle(document.querySelector('.compare .truth')).visibility === 'visible'"
            )
        )

    prediction = _picture(opened, ".compare .stage")
    assert not is_truth_seen()
    ActionChains(opened).key_down("t").perform()
    assert is_truth_seen()
    assert (_picture(opened, ".compare .stage") != prediction).any()
    ActionChains(opened).key_up("t").perform()
    assert not is_truth_seen()
    button = _css(opened, ".compare .show-truth")
    button.click()
    assert is_truth_seen()
    assert button.get_attribute("aria-pressed") == "true"
    button.click()
    assert not is_truth_seen()


def test_pointer_shows_the_numbers_of_a_class_and_the_classes_of_a_picture(opened: Any) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    hits = opened.find_elements("css selector", "#classes .hit")
    _scroll_to(opened, hits[13])
    ActionChains(opened).move_to_element(hits[13]).perform()
    lines = _css(opened, "#tip").text.splitlines()
    assert lines[0] == HOSTILE
    assert lines[1] == "rank 14 · tail"
    assert [line.split(":")[0] for line in lines[3:]] == list(TITLES)
    stage = _css(opened, ".compare .stage")
    _scroll_to(opened, stage)
    # Half-way down the left edge.
    ActionChains(opened).move_to_element_with_offset(stage, -stage.rect["width"] // 2 + 20, 0).perform()
    lines = _css(opened, "#tip").text.splitlines()
    truth = examples(TITLES)[0].truth
    row, column = truth.shape[0] // 2, int(20 / stage.rect["width"] * truth.shape[1])
    assert lines[0] == f"truth: {CLASS_NAMES[truth[row, column]]}"
    assert [line.split(":")[0] for line in lines[1:]] == list(TITLES)


def test_strength_of_the_labels(opened: Any) -> None:
    set_value = "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input'))"
    pictures = []
    for value in (0, 100):
        opened.execute_script(set_value, _css(opened, "#strength"), value)
        pictures.append(_picture(opened, "#images .row .cells figure:nth-child(2) .stage"))
    photograph = _picture(opened, "#images .row .cells figure:nth-child(1) .stage")
    np.testing.assert_array_equal(pictures[0], photograph)
    assert (pictures[1] != photograph).mean() > 0.5


def test_dark_mode(opened: Any) -> None:
    feature = {"name": "prefers-color-scheme", "value": "dark"}
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    try:
        script = "return getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)"
        assert max(opened.execute_script(script)[:3]) < 60
    finally:
        opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
