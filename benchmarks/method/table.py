"""Writes `docs/results/screening.md` from the results: `python -m benchmarks.method.table`."""

from __future__ import annotations

import itertools
import json
import statistics
from pathlib import Path
from typing import Any

from benchmarks.method.screen import RESULTS

_PAGE = Path(__file__).parents[2] / "docs" / "results" / "screening.md"
_GROUPS = ("overall", "head", "middle", "tail")
_NAMES = {
    "cityscapes_256": "Cityscapes at 256 x 256, held-out cities",
    "ccp": "Clothing Co-Parsing, held-out photographs",
    "freedoom_lt": "Freedoom-LT, held-out maps",
    "camvid": "CamVid, held-out parts of the training sequences",
}
# What a tag of the file names stands for.
_TAGS = {
    "bounded": "bank, target 0.082, without the classes that would rise more than five times",
    "factor5": "bank as `aucseg stats` sets it: target 0.082, factor 5",
    "factor5_repeat0.3": "the same bank, and repeat factors",
    "factor5_0.14": "bank, target 0.14, factor 5",
    "paper_capacity50": "bank as in the paper, capacity 50",
    "old_default": "bank that makes the tail as frequent as the middle",
    "rate0.002": "learning rate 0.002",
    "rate0.008": "learning rate 0.008",
    "rare_class": "rare images, T 0.1",
    "rare_class0.3": "rare images, T 0.3",
    "rare_class0.5": "rare images, T 0.5",
    "rare_crop0.5": "half of the crops at the tail",
    "repeat0.3": "repeat factors",
    "rare_both0.5": "rare images, T 0.1, half of the crops at the tail",
}
_NETWORKS = {"trained": "Trained with cross-entropy:", "auc_trained": "Trained with the square AUC loss as well:"}
_TEXT = """# The search for a method: every trial

Mean IoU in %, on images of the training split that were held out; [What was tried](../trials.md) says what
follows. Every number comes from a file in `benchmarks/method/results`; the commands are in
`benchmarks/method/README.md`, the names of the losses in `benchmarks/method/candidates.py`. "Offsets" is the mean IoU
with one offset a class, fitted on half of these images and judged on the other half; "AP" the mean over the classes of
the average precision, which does not depend on where the line between two classes is drawn.

Network: FPN on EfficientNet-lite0, pretrained, batches of 8 crops. "Rare images": images with rare classes are drawn
more often, with the temperature T; "repeat factors" draw them as the plan does ([how](../data.md#samplers)). Bank,
sampler and crops stand in the files.

{older}
{runs}
## The last layer alone

The last layer of a network that was trained with cross-entropy (Cityscapes, 1,500 steps), retrained by each loss.

{probe}
## Gradients beside those of a reweighting

Cosine between the gradient of each loss with respect to the logits and that of a pointwise loss whose classes count
alike; in brackets the nearest of all that have one weight a class. One batch of 12 images; networks
that were trained for 1,500 steps on Cityscapes.

{cosines}"""


def main() -> None:
    _PAGE.write_text(page(RESULTS), encoding="utf-8")
    print(f"wrote {_PAGE}")


def page(folder: Path) -> str:
    """The whole page."""
    all_runs = [json.loads(file.read_text()) for file in sorted(folder.glob("*_s[0-9]_*.json"))]
    sections = []
    for data, title in _NAMES.items():
        runs = [run for run in all_runs if run["data"] == data]
        for steps in sorted({run["steps"] for run in runs}):
            chosen = [run for run in runs if run["steps"] == steps]
            sections.append(f"\n## {title}, {steps:,} steps\n\n{table(_with_means(sorted(chosen, key=_order)))}")
    probe = json.loads((folder / "probe_cityscapes_256.json").read_text())
    named = [{"loss": name, "tag": "", **figures} for name, figures in probe.items()]
    older = sum("note" in run for run in all_runs)
    note = (
        f"{older} of the {len(all_runs)} trainings and the table of the last layer come from an earlier version of the "
        "script,\nwith the same settings (`note` in their files)."
    )
    return _TEXT.format(older=note, runs="".join(sections), probe=table(named), cosines=_cosines(folder))


def table(runs: list[dict[str, Any]]) -> str:
    """A row a run."""
    head = [
        "method",
        *(["seed"] if "seed" in runs[0] else []),
        *_GROUPS,
        "offsets: overall",
        "head",
        "tail",
        "AP: overall",
        "tail",
    ]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for run in runs:
        method = f"`{run['loss']}`" + (f", {_TAGS[run['tag']]}" if run["tag"] else "")
        figures = [
            *(run["plain"][group] for group in _GROUPS),
            *(run["offsets"][group] for group in ("overall", "head", "tail")),
            *(run["ap"][group] for group in ("overall", "tail")),
        ]
        cells = [method, *([str(run["seed"])] if "seed" in run else []), *(f"{value:.1f}" for value in figures)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _with_means(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The runs, and after those of one method their mean over the seeds."""
    rows = []
    for _, group in itertools.groupby(runs, key=lambda run: (run["loss"], run["tag"])):
        same = list(group)
        rows += same
        if len(same) > 1:
            means = {
                key: {name: statistics.mean(run[key][name] for run in same) for name in _GROUPS}
                for key in ("plain", "offsets", "ap")
            }
            rows.append(same[0] | means | {"seed": f"mean of {len(same)}"})
    return rows


def _order(run: dict[str, Any]) -> tuple[Any, ...]:
    return run["bank"] is not None or bool(run["data_options"]), run["loss"], run["tag"], run["seed"]


def _cosines(folder: Path) -> str:
    tables = []
    for name, title in _NETWORKS.items():
        found = json.loads((folder / f"cosines_cityscapes_256_{name}.json").read_text())
        others = list(next(iter(found.values()))["nearest"])
        lines = [title, "", "| loss | " + " | ".join(others) + " |", "|---" * (len(others) + 1) + "|"]
        for loss, values in found.items():
            cells = [f"{values['classes alike'][other]:.2f} ({values['nearest'][other]:.2f})" for other in others]
            lines.append(f"| {loss} | " + " | ".join(cells) + " |")
        tables.append("\n".join(lines) + "\n")
    return "\n".join(tables)


if __name__ == "__main__":
    main()
