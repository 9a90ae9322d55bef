"""Pages and tables with names of strangers: no formula and no script reaches the program that opens them."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch import nn

from aucseg.datasets import DatasetCard
from aucseg.inference.predict_files import predict_paths
from aucseg.report import build_report
from aucseg.statistics.class_statistics import ClassStatistics
from aucseg.statistics.summary import make_report, write_csv
from tests.datasets.conftest import MINI
from tests.report.synthetic import write_run

FORMULA = '=HYPERLINK("http://x","y")'


def test_tables_hold_no_formulas_of_others(tmp_path: Path) -> None:
    image = tmp_path / "=1+1.png"
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(image)
    (tmp_path / "@bad.png").write_bytes(b"x")
    predict_paths(
        nn.Conv2d(3, 2, 1).eval(), [image, tmp_path / "@bad.png"], tmp_path / "out", class_names=[FORMULA, FORMULA],
        palette=[(0, 0, 0), (9, 9, 9)], progress=False,
    )  # fmt: skip
    card = DatasetCard.from_yaml(MINI.replace("name: road", f"name: {json.dumps(FORMULA)}"))
    statistics = ClassStatistics(3, class_names=card.class_names)
    statistics.update(np.array([[0, 1, 2]]))
    write_csv(make_report(statistics, card), tmp_path / "classes.csv")
    for path in (tmp_path / "out/areas.csv", tmp_path / "out/errors.csv", tmp_path / "classes.csv"):
        with path.open(newline="") as file:
            for row in csv.reader(file):
                assert not any(cell.startswith(("=", "+", "@", "-")) for cell in row)
        if path.name != "errors.csv":
            assert "'=HYPERLINK" in path.read_text()


@pytest.mark.slow
def test_script_in_names_is_not_run_by_a_browser(tmp_path: Path) -> None:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    attacks = (
        "<script>document.title='owned'</script>",
        "</script><script>document.title='owned'</script>",
        "<img src=x onerror=\"document.title='owned'\">",
        "'\"><svg onload=\"document.title='owned'\">",
        "{{ 7 * 7 }}",
        "javascript:document.title='owned'",
    )
    names = (*attacks, *(f"class {i}" for i in range(15)))
    runs = [
        write_run(tmp_path / f"run{i}", seed=i, strength=i, class_names=names, image_names=attacks) for i in range(2)
    ]
    page = build_report(runs, tmp_path / "report.html", titles=[attacks[1], attacks[2]])
    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    for flag in ("--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service("/usr/bin/chromedriver"))
    try:
        driver.get(page.as_uri())
        driver.execute_script(
            "for (const e of document.querySelectorAll('*')) for (const kind of ['pointermove', 'click'])"
            " e.dispatchEvent(new PointerEvent(kind, {bubbles: true, clientX: 5, clientY: 5}))"
        )
        assert "owned" not in driver.title.split("<")[0]
        assert driver.execute_script("return document.title !== 'owned'")
        assert driver.execute_script("return document.querySelectorAll('script').length") == 2
        assert "{{ 7 * 7 }}" in driver.page_source
        assert driver.get_log("browser") == []
    finally:
        driver.quit()
