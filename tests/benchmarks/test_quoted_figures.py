"""The table of the README says what the pages of results say, which the JSON files make."""

import json
import statistics
from pathlib import Path

import pytest
from scipy.stats import t

ROOT = Path(__file__).parents[2]
PAGES = {
    "Freedoom-LT (rendered), 400 steps": ("freedoom_lt_400_cpu", ("ce", "wce-inverse", "auc-inverse+bank")),
    "Cityscapes (256 x 256), 3,000 steps": ("cityscapes_256_cpu", ("ce", "wce-inverse", "auc-inverse+rfs")),
    "Clothing Co-Parsing, 3,000 steps": ("ccp_cpu", ("ce", "wce-inverse", "auc-inverse+rfs")),
}
CAMVID = "CamVid, 500 steps"
TRIALS = ("ce", "wce0.25", "wce0.25+auc1")


def rows(text: str) -> list[list[str]]:
    """The cells of all rows of tables."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]


def quoted() -> dict[tuple[str, bool], list[str]]:
    """By data set, and whether with offsets: nine means and an interval."""
    table = rows((ROOT / "README.md").read_text(encoding="utf-8").partition("## Does the tail")[2].partition("## ")[0])
    found = {}
    name = ""
    for first, *cells in table[2:]:
        with_offsets = first == "with offsets"
        name = name if with_offsets else first
        found[name, with_offsets] = cells
    return found


def of_page(page: str, methods: tuple[str, ...], with_offsets: bool) -> list[str]:
    text = (ROOT / "docs" / "results" / f"{page}.md").read_text(encoding="utf-8")
    section = "## Model fpn, with offsets" if with_offsets else "## Model fpn"
    means, differences = (
        {cells[0]: cells for cells in rows(text.partition(f"{title}\n")[2].partition("\n## ")[0])}
        for title in (section, f"{section}, difference to ce")
    )
    cells = [means[method][column] for method in methods for column in (2, 3, 5)]
    without_width = [f"**{cell.strip('*').split(' ')[0]}**" if "**" in cell else cell.split(" ")[0] for cell in cells]
    interval = differences[methods[-1]][1].partition("[")[2].partition("]")[0]
    # The README marks what AUCSeg leads in, not the head of plain cross-entropy.
    return [cell.strip("*") if i < 6 else cell for i, cell in enumerate(without_width)] + [
        interval.replace(", ", " to ")
    ]


def of_trials(with_offsets: bool) -> list[str]:
    key = "offsets" if with_offsets else "plain"
    folder = ROOT / "benchmarks" / "method" / "results"
    found = {
        method: [json.loads((folder / f"camvid_{method}_s{seed}_500.json").read_text())[key] for seed in range(3)]
        for method in TRIALS
    }
    cells = [
        f"{statistics.mean(run[group] for run in found[method]):.1f}"
        for method in TRIALS
        for group in ("overall", "head", "tail")
    ]
    gains = [ours["overall"] - ce["overall"] for ours, ce in zip(found[TRIALS[-1]], found["ce"], strict=True)]
    half = t.ppf(0.975, 2) * statistics.stdev(gains) / 3**0.5
    mean = statistics.mean(gains)
    return [*cells, f"{mean - half:.1f} to {mean + half:.1f}"]


@pytest.mark.parametrize("with_offsets", [False, True])
@pytest.mark.parametrize("name", [*PAGES, CAMVID])
def test_the_readme_quotes_the_pages(name: str, with_offsets: bool) -> None:
    expected = of_trials(with_offsets) if name == CAMVID else of_page(*PAGES[name], with_offsets)
    assert quoted()[name, with_offsets] == expected
