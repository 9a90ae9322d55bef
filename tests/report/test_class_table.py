import math
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.metrics import confusion_matrix, precision_score, recall_score

from aucseg.metrics import GroupedMeanIoU
from aucseg.report.class_table import class_table
from aucseg.report.examples import Example
from aucseg.report.runs import Run, with_precision
from aucseg.report.shown_image import shown_image
from aucseg.report.validation_picture import validation_picture

GROUPS = {"head": [0], "middle": [2], "tail": [1, 3]}


def metric_of(confusion: NDArray[np.int64]) -> GroupedMeanIoU:
    metric = GroupedMeanIoU(len(confusion))
    metric.confusion.add_(torch.from_numpy(confusion))
    return metric


def a_run(confusion: NDArray[np.int64], groups: dict[str, list[int]] | None = GROUPS) -> Run:
    names = tuple(f"class {c}" for c in range(len(confusion)))
    metric = metric_of(confusion)
    iou = [None if math.isnan(value) else value for value in metric.details()["per_class"].tolist()]
    return Run(
        "a",
        Path("runs/a"),
        class_names=names,
        per_class_iou=dict(zip(names, iou, strict=True)),
        per_class=with_precision({}, names, confusion),
        groups=groups,
        metrics={"miou": 0.5, "head": 0.75, "tail": 0.25},
    )


def test_scores_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    truth, predicted = rng.integers(0, 5, 500), rng.integers(1, 6, 500)  # 0 is never predicted, 5 is not there
    names, options = [str(c) for c in range(7)], {"average": None, "labels": range(6), "zero_division": 0}
    counts = confusion_matrix(truth, predicted, labels=range(7))
    found = with_precision({}, names, counts)
    metric = metric_of(counts)
    for key, score in (("precision", precision_score), ("recall", recall_score)):
        ours = [found[name][key] for name in names[:6]]
        assert ours == pytest.approx(score(truth, predicted, **options))
        assert ours == pytest.approx(metric.details()[f"per_class_{key}"][:6].tolist())
    assert found["6"] == {}


def test_a_line_for_each_class_by_group_and_a_dash_for_one_that_is_nowhere() -> None:
    # Class 1 is never predicted, class 2 neither there nor predicted, class 3 predicted where it is not.
    confusion = np.array([[6, 0, 0, 2], [1, 0, 0, 1], [0, 0, 0, 0], [0, 0, 0, 0]])
    lines = class_table(a_run(confusion)).splitlines()
    assert [line.split() for line in lines[1:5]] == [
        ["class", "0", "head", "66.7", "85.7", "75.0"],
        ["class", "2", "middle", "–", "–", "–"],
        ["class", "1", "tail", "0.0", "0.0", "0.0"],
        ["class", "3", "tail", "0.0", "0.0", "0.0"],
    ]
    assert lines[-1] == "mean IoU in %: all 50.0, head 75.0, middle –, tail 25.0"
    assert "nan" not in "\n".join(lines)
    assert len({len(line) for line in lines[:5]}) == 1  # the columns are straight
    assert class_table(a_run(confusion, groups=None)).count("class ") == 5
    assert class_table(Run("a", Path("a"))) == ""


def test_of_many_classes_the_worst_ten_are_shown() -> None:
    confusion = np.diag(np.arange(24)) * 10 + np.ones((24, 24), np.int64)
    confusion[5] = confusion[:, 5] = 0  # neither there nor predicted: not a bad class
    lines = class_table(a_run(confusion)).splitlines()
    assert lines[0] == "the 10 worst of 24 classes (all of them: aucseg report runs/a):"
    assert [line.split()[1] for line in lines[2:12]] == [str(c) for c in (0, 1, 2, 3, 4, 6, 7, 8, 9, 10)]
    assert lines[12] == ""


def test_the_picture_has_a_row_for_each_image_with_truth_and_prediction() -> None:
    red, green, palette = (200, 0, 0), (0, 200, 0), ((200, 0, 0), (0, 200, 0), (0, 0, 200))
    image = np.zeros((24, 36, 3), np.uint8)
    truth, predicted = np.zeros((24, 36), np.int64), np.ones((24, 36), np.int64)
    truth[:, 18:] = 255  # ignored
    example = Example("a", image, truth, {"run": predicted})
    picture = np.asarray(validation_picture([example, example], "run", ("road", "Straße 街", "never"), palette))
    assert picture.shape == (18 + 2 * (240 + 4) + 18 + 4, 3 * (360 + 4) - 4, 3)
    for top in (18, 18 + 244):
        middle = top + 120
        assert picture[middle, 100].tolist() == [0, 0, 0]
        assert picture[middle, 364 + 90].tolist() == [round(0.65 * part) for part in red]
        assert picture[middle, 364 + 270].tolist() == [0, 0, 0]
        assert picture[middle, 728 + 100].tolist() == [round(0.65 * part) for part in green]
    legend = picture[-22:]
    assert (legend == red).all(-1).any()
    assert (legend == green).all(-1).any()
    assert not (legend == palette[2]).all(-1).any()  # which no image holds


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_any_image_can_be_shown(channels: int, dtype: type) -> None:
    values = np.linspace(0, 200, 12 * 10 * channels).reshape(12, 10, channels)
    shown = shown_image((values if dtype is np.uint8 else values * 50).astype(dtype))
    assert shown.shape == (12, 10, 3)
    assert shown.dtype == np.uint8
    if dtype is np.uint8:
        assert shown[..., 0].tolist() == values[..., 0].astype(np.uint8).tolist()
    else:
        assert shown.min() == 0
        assert shown.max() == 255
    if channels < 3:
        assert (shown[..., 0] == shown[..., 2]).all()
    assert shown_image(np.full((2, 2, 1), np.nan)).tolist() == np.zeros((2, 2, 3)).tolist()
