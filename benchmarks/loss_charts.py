"""Charts of `benchmarks/results/loss.json`: `python -m benchmarks.loss_charts`."""

import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt

RESULTS = Path(__file__).parent / "results" / "loss.json"
IMAGES = Path(__file__).parents[1] / "docs" / "images"
# Okabe and Ito's colours, told apart by every kind of colour vision; markers tell the lines apart without colour.
STYLES = {
    "cross_entropy": ("#000000", "o"),
    "PairwiseAUCLoss": ("#0072B2", "s"),
    "cross_entropy + PairwiseAUCLoss": ("#E69F00", "^"),
    "AUCSegLoss": ("#D55E00", "D"),
}


def draw(report: dict[str, Any], name: str, label: str) -> None:
    """Time and extra memory against pixels or classes."""
    cases = report[name]["cases"]
    batch, classes, height, width = zip(*(case["logits"] for case in cases), strict=True)
    x = classes if name == "classes" else [b * h * w / 1e6 for b, h, w in zip(batch, height, width, strict=True)]
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for way, (color, marker) in STYLES.items():
        rows = [case["ways"][way] for case in cases]
        axes[0].loglog(x, [1e3 * row["seconds"] for row in rows], color=color, marker=marker, label=way)
        axes[1].loglog(x, [row["extra_bytes"] / 2**20 for row in rows], color=color, marker=marker)
    axes[0].set_title("forward and backward, ms")
    axes[1].set_title("peak beyond logits and gradient, MiB")
    for axis in axes:
        axis.set_xlabel(label)
        axis.grid(True, which="major", alpha=0.3)
    axes[0].legend(fontsize=8)
    figure.savefig(IMAGES / f"loss_{name}.svg", metadata={"Date": None})
    plt.close(figure)


def main() -> None:
    """Draws what has been measured."""
    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "aucseg"
    report = json.loads(RESULTS.read_text())
    IMAGES.mkdir(parents=True, exist_ok=True)
    for name, label in (("pixels", "million pixels (K = 19)"), ("classes", "classes K (256 x 256 pixels)")):
        if name in report:
            draw(report, name, label)


if __name__ == "__main__":
    main()
