from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aucseg.report import Example, build_report
from aucseg.report.compared_runs import load_comparison
from aucseg.report.page import render
from aucseg.report.sections import class_rows, differences, headline, metric_columns, tiles
from tests.report.synthetic import CLASS_NAMES, GROUPS, HOSTILE, class_counts, example, examples, pastes, write_run

SECTIONS = ("results", "classes", "gains", "images", "confusion", "roc", "curves", "bank")
SIX = {"head": [0], "middle": [1, 2], "tail": [3, 4]}
VOID = {"meta", "link", "img", "input", "br"}
TITLES = ("CE", "AUCSeg")


class Page(HTMLParser):
    """Elements of a page, each with its attributes; checks that every element is closed in turn."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.scripts: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] == "script":
            self.scripts[-1] += data
        elif self._open and self._open[-1] != "style":
            self.texts.append(data)

    def all(self, tag: str, **attributes: str) -> list[dict[str, str | None]]:
        """Attributes of the elements of a kind."""
        found = [attrs for name, attrs in self.elements if name == tag]
        return [attrs for attrs in found if all(attrs.get(key) == v for key, v in attributes.items())]

    @property
    def sections(self) -> list[str | None]:
        return [attrs.get("id") for attrs in self.all("section")]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


@pytest.fixture(scope="module")
def full_page(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Page]:
    base = tmp_path_factory.mktemp("full")
    runs = [write_run(base / "ce"), write_run(base / "aucseg", strength=1.0, seed=1)]
    out = build_report(
        runs, base / "new" / "report.html", titles=TITLES, samples=examples(TITLES), pastes=pastes(),
        statistics=class_counts(),
    )  # fmt: skip
    return out, Page(out.read_text(encoding="utf-8"))


def test_every_section_is_there_and_nothing_comes_from_elsewhere(full_page: tuple[Path, Page]) -> None:
    path, page = full_page
    assert page.sections == list(SECTIONS)
    html = path.read_text(encoding="utf-8")
    # Only namespaces could name a host, and the page needs none.
    assert not re.search(r"https?://|@import|url\((?!data:)", html)
    for _, attributes in page.elements:
        for name in ("src", "href"):
            assert (attributes.get(name) or "data:").startswith("data:")
    assert path.stat().st_size < 3_000_000


def test_every_picture_and_chart_has_a_description(full_page: tuple[Path, Page]) -> None:
    _, page = full_page
    images = page.all("img")
    assert len(images) == 6 * 3 + 6 * 3 + 2 * 3
    assert all(image["alt"] for image in images)
    charts = [svg for svg in page.all("svg") if (svg["class"] or "").startswith("chart")]
    assert len(charts) == 1 + 8 + 6
    assert all(chart["role"] == "img" and chart["aria-label"] for chart in charts)


def test_numbers_are_in_the_table(full_page: tuple[Path, Page]) -> None:
    _, page = full_page
    runs = load_comparison([full_page[0].parent.parent / name for name in ("ce", "aucseg")], titles=TITLES).runs
    for run in runs:
        for value in run.metrics.values():
            assert [cell for cell in page.all("td") if cell.get("data-value") == str(value)]
    tail = [100 * run.metrics["tail"] for run in runs]
    assert f"tail mIoU {tail[1]:.1f} against {tail[0]:.1f} (+{tail[1] - tail[0]:.1f})" in page.text
    tips = [attrs["data-tip"] for attrs in page.all("rect") if "data-tip" in attrs]
    first = next(tip for tip in tips if tip and tip.startswith("wall\n"))
    assert first.splitlines()[1] == "rank 1 · head"
    assert "100.0 M training pixels" in first
    assert any(line.startswith("CE: ") for line in first.splitlines())
    # The last class has no pixel in the validation split.
    assert any(tip and tip.startswith("soul sphere") and "no IoU" in tip for tip in tips)


def test_data_for_the_script_is_json_in_a_script_element(full_page: tuple[Path, Page]) -> None:
    data = json.loads(full_page[1].scripts[0])
    assert data["runs"] == list(TITLES)
    assert data["classes"] == list(CLASS_NAMES)
    # Two classes share a colour on the card; on the page a colour tells its class.
    assert len({tuple(color) for color in data["palette"]}) == len(CLASS_NAMES)


def test_hostile_names_are_escaped(tmp_path: Path) -> None:
    names = (HOSTILE, "</script><b>", *CLASS_NAMES[2:-1], 'x" onload="alert(1)')
    run = write_run(tmp_path / "a", class_names=names)
    other = write_run(tmp_path / "b", class_names=names, strength=1.0)
    titles = (f"A{HOSTILE}", "B</style><script>alert(2)</script>")
    samples = [example(HOSTILE, titles, 0), example("'><img src=x onerror=alert(3)>", titles, 1, "gain")]
    html = build_report([run, other], tmp_path / "r.html", titles=titles, samples=samples, pastes=pastes()).read_text()
    page = Page(html)
    assert len(page.scripts) == 2
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert json.loads(page.scripts[0])["classes"] == list(names)
    assert "alert" not in page.scripts[1]
    assert HOSTILE in page.text


def _result_alone(folder: Path, **changes: Any) -> Path:
    write_run(folder, parts=("result",))
    result = json.loads((folder / "result.json").read_text())
    (folder / "result.json").write_text(json.dumps(result | changes))
    return folder


def test_running_runs_show_what_they_have(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name, step=400, parts=("config", "metrics")) for name in "ab"]
    page = Page(build_report(runs, tmp_path / "r.html").read_text())
    assert page.sections == ["results", "curves", "left-out"]
    assert page.text.count("running") == 2
    assert "step 400 of 800" in page.text
    assert "IoU by class frequency : no run has result.json yet" in page.text
    assert "What the tail is mistaken for : no run has confusion.json yet" in page.text


def test_run_that_has_just_begun(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", parts=("config",))
    page = Page(build_report([run], tmp_path / "r.html").read_text())
    assert page.sections == ["left-out"]
    assert "nothing logged yet" in page.text
    for reason in ("Results : no run has been validated", "it takes two runs", "no run has logged anything"):
        assert reason in page.text


def test_tiles_count_the_classes_that_have_an_iou(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "ce")
    result = json.loads((folder / "result.json").read_text())
    rarest = result["class_names"][result["groups"]["tail"][-1]]
    result["per_class_iou"][rarest] = None
    (folder / "result.json").write_text(json.dumps(result))
    count, tail = len(result["class_names"]), len(result["groups"]["tail"])
    text = Page(build_report([folder], tmp_path / "r.html").read_text()).text
    assert f"{count - 1} of {count} classes" in text
    assert f"{tail - 1} of {tail} classes" in text


def test_a_finished_run_beside_a_running_one(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / "ce"), write_run(tmp_path / "b", step=400, parts=("config", "metrics"))]
    page = Page(build_report(runs, tmp_path / "r.html").read_text())
    assert [name for name in SECTIONS if name in page.sections] == ["results", "classes", "confusion", "roc", "curves"]
    assert "b: not validated yet" in (page.all("rect", **{"class": "hit"})[0]["data-tip"] or "")


def test_one_run_alone(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a")
    page = Page(build_report([run], tmp_path / "r.html", samples=examples(("a",))[6:]).read_text())
    assert "gains" not in page.sections
    assert "images" in page.sections
    assert "it takes two runs to compare" in page.text


def test_null_everywhere(tmp_path: Path) -> None:
    nothing = dict.fromkeys(CLASS_NAMES)
    empty = {"per_class_iou": nothing, "metrics": {"miou": None, "tail": float("nan")}, "groups": None, "palette": None}
    runs = [_result_alone(tmp_path / name, **empty) for name in "ab"]
    page = Page(build_report(runs, tmp_path / "r.html").read_text())
    assert "classes" in page.sections
    assert "nan" not in page.text.lower()
    zeros = write_run(tmp_path / "c")
    (zeros / "confusion.json").write_text(json.dumps({"counts": np.zeros((21, 21), int).tolist()}))
    (zeros / "curves.json").write_text(json.dumps({"candle": {"fpr": [], "tpr": [], "auroc": None}}))
    page = Page(build_report([zeros], tmp_path / "r.html").read_text())
    assert "confusion" not in page.sections
    assert "roc" not in page.sections
    assert "the validation split holds no pixel of a tail class" in page.text


def test_card_without_a_tail(tmp_path: Path) -> None:
    groups = {"head": list(range(21)), "middle": [], "tail": []}
    page = Page(build_report([write_run(tmp_path / "a", groups=groups)], tmp_path / "r.html").read_text())
    assert "confusion" not in page.sections
    assert "no class is in the tail" in page.text


@pytest.mark.parametrize("num_classes", [1, 2, 171])
def test_any_number_of_classes(tmp_path: Path, num_classes: int) -> None:
    names = tuple(f"class {i}" for i in range(num_classes))
    runs = [write_run(tmp_path / name, class_names=names, groups=None) for name in "ab"]
    page = Page(build_report(runs, tmp_path / "r.html").read_text())
    assert len(page.all("rect", **{"class": "hit"})) >= num_classes
    assert f"All {num_classes} classes as a table" in page.text


def test_many_runs(tmp_path: Path) -> None:
    titles = tuple(f"method {i}" for i in range(9))
    runs = [write_run(tmp_path / title, strength=i / 9) for i, title in enumerate(titles)]
    page = Page(build_report(runs, tmp_path / "r.html", samples=[example("a.jpg", titles, 0, "gain")]).read_text())
    assert "and others" in page.text
    assert len(page.all("select", **{"class": "pick-left"})) == 1
    # The baseline on the left, the best other run on the right.
    assert [o["value"] for o in page.all("option") if "selected" in o] == ["0", "8"]


def test_confusion_tells_shares_and_names(tmp_path: Path) -> None:
    names = ("road", "car", "pole", "sign", "lamp", "cone")
    run = write_run(tmp_path / "a", class_names=names, groups={"head": [0], "middle": [1, 2, 3], "tail": [4, 5]})
    counts = np.diag([1000, 100, 50, 40, 0, 0])
    counts[4] = [50, 0, 10, 10, 25, 5]
    (run / "confusion.json").write_text(json.dumps({"counts": counts.tolist()}))
    page = Page(build_report([run], tmp_path / "r.html").read_text())
    label = "lamp, a: 25 % right, 50 % road, 10 % pole, 10 % sign, 5 % other classes"
    assert page.all("div", **{"class": "stack"}) == [{"class": "stack", "role": "img", "aria-label": label}]


def test_without_roles_the_extreme_samples_get_sliders(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / title) for title in TITLES]
    samples = [example(f"{seed}.jpg", TITLES, seed) for seed in range(6)]
    page = Page(build_report(runs, tmp_path / "r.html", samples=samples).read_text())
    assert "gains" in page.sections
    # All six gain something: the two that gain most are shown.
    assert len(page.all("article", **{"class": "compare card"})) == 2


def test_predictions_of_an_unknown_run_are_refused(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a")
    with pytest.raises(ValueError, match=r"predictions of \['other'\]"):
        build_report([run], tmp_path / "r.html", samples=[example("x", ("other",), 1)])


def test_headline_says_losses_too(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / "a", strength=1.0), write_run(tmp_path / "b", groups=GROUPS)]
    assert "(−" in headline(load_comparison(runs))


def test_the_headline_compares_the_method_that_was_asked_for(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / name, strength=s) for name, s in (("ce", 0.0), ("best", 1.0), ("mine", 0.5))]
    assert headline(load_comparison(folders)).startswith("best, the best of the 2 others overall, compared with ce: ")
    assert headline(load_comparison(folders, method="mine")).startswith("mine compared with ce: tail mIoU ")
    assert headline(load_comparison(folders[:2])).startswith("best compared with ce: ")
    for wrong in ("ce", "none"):
        with pytest.raises(
            ValueError, match=f"no run beside the baseline is called '{wrong}'; there are 'best', 'mine'"
        ):
            load_comparison(folders, method=wrong)


def test_ties_are_not_bold(tmp_path: Path) -> None:
    values = {"a": {"miou": 0.5, "tail": 0.3}, "b": {"miou": 0.50001, "tail": 0.2}, "c": {"miou": 0.4, "tail": 0.1}}
    folders = [_result_alone(tmp_path / name, metrics=metrics) for name, metrics in values.items()]
    page = Page(build_report(folders, tmp_path / "r.html").read_text())
    assert [cell["data-value"] for cell in page.all("td", **{"class": "best"})] == ["0.3"]


def test_what_was_measured_once_is_a_bar(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / name, parts=("result", "metrics"), step=step) for name, step in (("a", 200), ("b", 200))
    ]
    page = Page(build_report(runs, tmp_path / "r.html").read_text())
    labels = [svg["aria-label"] for svg in page.all("svg") if (svg["class"] or "") == "chart"]
    assert labels == [
        "Training loss by step",
        *(
            f"{name}, measured once"
            for name in ("Validation loss", "Overall mIoU", "Tail mIoU", "Middle mIoU", "Head mIoU")
        ),
    ]
    assert len([1 for rect in page.all("rect") if (rect["class"] or "").startswith("column")]) == 5 * 2


def test_a_class_without_a_mark_says_why_and_few_classes_do_not_grow_the_chart(tmp_path: Path) -> None:
    names = ("road", "crack")
    run = write_run(tmp_path / "a", class_names=names, groups={"head": [0], "middle": [], "tail": [1]})
    page = Page(build_report([run], tmp_path / "r.html").read_text())
    assert page.text.count("not in the validation images") == 1
    (chart,) = page.all("svg", **{"class": "chart wide"})
    width, height = map(float, (chart["viewbox"] or "").split()[2:])
    assert chart["style"] == f"--w:{width:g}px"  # as wide as drawn, however wide the page is
    assert width < 250
    assert height < 450


def test_differences_have_intervals_over_the_images(tmp_path: Path) -> None:
    names = tuple(f"{i:03}" for i in range(30))
    class_names = CLASS_NAMES[:6]
    runs = [
        write_run(tmp_path / name, strength=s, seed=seed, image_names=names, class_names=class_names, groups=SIX)
        for seed, (name, s) in enumerate((("ce", 0.0), ("ours", 1.0)))
    ]
    page = Page(build_report(runs, tmp_path / "r.html").read_text())
    found = differences(load_comparison(runs))
    assert [row["title"] for row in found] == ["ours"]
    overall, tail, _, _ = found[0]["cells"]
    assert tail.low < tail.value < tail.high
    low, high = (f"{'+' if end > 0 else '−'}{100 * abs(end):.1f}" for end in (overall.low, overall.high))
    assert f"{low} to {high}" in page.text
    assert "the images of both (30) are drawn again" in page.text
    assert "what another seed of the training would change" in page.text


def _on_images(folder: Path, names: str, **options: Any) -> Path:
    return write_run(folder, image_names=tuple(names), class_names=CLASS_NAMES[:6], groups=SIX, **options)


def test_runs_on_different_images_are_not_set_against_each_other(tmp_path: Path) -> None:
    """The best of all was validated on other images, of which it shares two with the baseline."""
    runs = [_on_images(tmp_path / "ce", "abcd"), _on_images(tmp_path / "held", "cdef", strength=1.0)]
    same = _on_images(tmp_path / "ours", "abcd", strength=0.5, seed=1)
    samples = [example("a", ("ce", "held"), 1)]
    page = Page(build_report(runs, tmp_path / "r.html", samples=samples).read_text())
    note = "held and ce were validated on different images, 4 and 4 with 2 in common: their numbers do not compare"
    assert note in page.text
    assert "held compared with ce" not in page.text
    assert "Differences to ce" not in page.text
    assert "gains" not in page.sections
    assert "Largest gains and losses : the runs were validated on different images." in page.text
    comparison = load_comparison(runs)
    assert (headline(comparison), differences(comparison), comparison.challenger) == ("", [], None)
    columns = metric_columns(comparison)
    assert [column.difference(1) for column in columns] == [""] * len(columns)
    assert {column.best for column in columns} == {None}
    assert all(tile["gain"] is None for tile in tiles(comparison))
    rows = class_rows(comparison, comparison.palette)
    assert all(row["gains"] == [None] and row["ious"][1] is not None for row in rows[:5])
    tips = [attrs["data-tip"] or "" for attrs in page.all("rect") if "data-tip" in attrs]
    assert not any("(+" in tip or "(−" in tip for tip in tips)
    # A third run on the baseline's images is compared with it.
    comparison = load_comparison([*runs, same])
    assert headline(comparison).startswith("ours compared with ce: ")
    assert [row["title"] for row in differences(comparison)] == ["ours"]
    assert metric_columns(comparison)[0].difference(2)
    assert comparison.image_notes == load_comparison(runs).image_notes
    with_both = load_comparison([*runs, same, _on_images(tmp_path / "more", "abcd", seed=2)])
    assert ", the best of the 2 others on the same images, compared with ce: " in headline(with_both)
    # What does not say on which images it was validated is taken at its word.
    unknown = load_comparison([runs[0], _on_images(tmp_path / "unknown", "", strength=1.0)])
    assert unknown.image_notes == ()
    assert headline(unknown).startswith("unknown compared with ce: ")


def test_numbers_of_each_class(tmp_path: Path) -> None:
    numbers = {"candle": {"precision": 0.25, "boundary_iou": 0.125, "objects": [[1, 4], [0, 0], [2, 2]]}}
    ours = write_run(tmp_path / "ours")
    evaluated = {"per_class": numbers, "predictions": "out", "split": "test", "step": None}
    theirs = _result_alone(tmp_path / "theirs", **evaluated)
    page = Page(build_report([ours, theirs], tmp_path / "r.html").read_text())
    table = page.text[page.text.index("Precision, recall and more of each class") :]
    assert "Class Method Group IoU Precision Recall Boundary IoU Small objects Medium objects Large objects" in table
    row = table[table.index("candle theirs") :].split()[:14]
    assert row[2:] == ["tail", row[3], "25.0", "–", "12.5", "1", "of", "4", "–", "2", "of", "2"]
    assert "predictions for 0 images, split test" in page.text


def test_page_is_deterministic(tmp_path: Path) -> None:
    comparison = load_comparison([write_run(tmp_path / title) for title in TITLES])
    samples = [example("a.jpg", TITLES, 1)]
    assert render(comparison, samples=samples) == render(comparison, samples=samples)


def test_ignored_pixels_do_not_count_in_the_gain_of_an_image() -> None:
    image = np.zeros((2, 4, 3), np.uint8)
    truth = np.array([[0, 0, 1, 1], [255, 255, 255, 255]], np.uint8)
    prediction = np.array([[0, 0, 0, 1], [1, 1, 2, 2]])
    # IoU of class 0 is 2/3, of class 1 1/2; class 2 is only where nothing counts.
    assert Example("x", image, truth, {"a": prediction}).mean_iou("a", 3) == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert Example("x", image, np.full_like(truth, 255), {"a": prediction}).mean_iou("a", 3) is None
