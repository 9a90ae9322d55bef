"""Metrics as people use them: logged by Lightning, in collections and trackers, drawn."""

import math
import warnings
from collections.abc import Iterator
from typing import Any

import lightning.pytorch as pl
import matplotlib as mpl
import pytest
import torch
from matplotlib import pyplot
from torch import Tensor
from torchmetrics import Metric, MetricCollection, MetricTracker

from aucseg.metrics import GroupedMeanIoU, PixelAUROC, PixelAveragePrecision

K = 4
GROUPS = {"head": [0], "middle": [1], "tail": [2, 3]}
NAMES = ["road", "car", "sign", "bird"]
QUIET: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}


def batch(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Class 3 does not occur."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, K, 8, 8, generator=generator), torch.randint(K - 1, (2, 8, 8), generator=generator)


def collection() -> MetricCollection:
    metrics: dict[str, Metric | MetricCollection] = {
        "iou": GroupedMeanIoU(K, GROUPS),
        "auc": PixelAUROC(K, bins=64),
        "ap": PixelAveragePrecision(K, GROUPS, bins=64),
    }
    return MetricCollection(metrics, prefix="val/")


class Logging(pl.LightningModule):
    """Logs a collection by its values, and a metric as an object."""

    def __init__(self) -> None:
        super().__init__()
        self.metrics = collection()
        self.auc = PixelAUROC(K, bins=64)
        self.by_step = PixelAveragePrecision(K, bins=64)

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        logits, target = batch[0][0], batch[1][0]
        self.metrics.update(logits, target)
        self.auc.update(logits, target)
        self.log("auc", self.auc)
        self.log("ap of batches", self.by_step(logits, target))

    def on_validation_epoch_end(self) -> None:
        self.log_dict(self.metrics.compute())
        self.metrics.reset()


@pytest.mark.filterwarnings("ignore")
def test_lightning_logs_metrics_and_their_values() -> None:
    loader: Any = torch.utils.data.DataLoader([batch(seed) for seed in range(2)])  # type: ignore[arg-type]
    trainer = pl.Trainer(accelerator="cpu", enable_model_summary=False, **QUIET)
    trainer.validate(Logging(), loader, verbose=False)
    expected = collection()
    for seed in range(2):
        expected.update(*batch(seed))
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    values = {name: float(value) for name, value in expected.compute().items()}
    assert "val/tail" in values
    assert {name: logged[name] for name in values} == pytest.approx(values)
    assert logged["auc"] == pytest.approx(values["val/auc"])
    steps = [PixelAveragePrecision(K, bins=64)(*batch(seed)).item() for seed in range(2)]
    assert logged["ap of batches"] == pytest.approx(sum(steps) / 2)


def test_everything_that_is_logged_is_a_scalar() -> None:
    metrics = collection()
    metrics.update(*batch())
    assert all(value.shape == () and value.dtype == torch.float32 for value in metrics.compute().values())


@pytest.mark.parametrize("kind", [PixelAUROC, PixelAveragePrecision])
def test_a_tracker_finds_the_best_epoch(kind: type[PixelAUROC | PixelAveragePrecision]) -> None:
    tracker = MetricTracker(kind(K, bins=64))
    values = []
    for seed in range(3):
        tracker.increment()
        tracker.update(*batch(seed))
        values.append(tracker.compute().item())
    best, epoch = tracker.best_metric(return_step=True)  # type: ignore[misc]
    assert best == max(values)
    assert epoch == values.index(max(values))


def test_a_tracker_of_a_collection_finds_the_best_epoch_of_each_value() -> None:
    tracker = MetricTracker(collection(), maximize=True)
    values = []
    for seed in range(3):
        tracker.increment()
        tracker.update(*batch(seed))
        values.append(tracker.compute())
    best: Any = tracker.best_metric()
    for name in ("val/miou", "val/f1", "val/auc", "val/ap"):
        assert best[name] == max(value[name].item() for value in values), name


@pytest.fixture
def _no_screen() -> Iterator[None]:
    backend = mpl.get_backend()
    pyplot.switch_backend("agg")
    yield
    pyplot.close("all")
    pyplot.switch_backend(backend)


@pytest.mark.usefixtures("_no_screen")
@pytest.mark.parametrize(
    "metric",
    [
        GroupedMeanIoU(K, GROUPS, class_names=NAMES),
        PixelAUROC(K, bins=64, class_names=NAMES),
        PixelAveragePrecision(K, GROUPS, bins=64, class_names=NAMES),
    ],
    ids=lambda metric: type(metric).__name__,
)
def test_plot_draws_a_bar_for_each_class(metric: Any) -> None:
    metric.update(*batch())
    details = metric.details()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure, axes = metric.plot()
        figure.canvas.draw()
    bars = axes.patches[:K]
    expected = [0.0 if math.isnan(value) else value for value in details["per_class"].tolist()]
    assert [bar.get_width() for bar in bars] == pytest.approx(expected)
    assert [label.get_text() for label in axes.get_yticklabels()] == NAMES
    absent = details["per_class"].isnan().sum()
    assert [text.get_text() for text in axes.texts] == ["does not occur"] * absent
    colors = {bar.get_facecolor() for bar in bars}
    assert len(colors) == (3 if getattr(metric, "groups", {}) else 1)
    mean = metric.compute()["miou"] if isinstance(metric, GroupedMeanIoU) else metric.compute()
    assert axes.get_legend_handles_labels()[1][0] == f"mean {mean:.3f}"
    _, own = pyplot.subplots()
    assert metric.plot(ax=own) == (None, own)


@pytest.mark.usefixtures("_no_screen")
def test_plot_draws_values_over_epochs_as_other_metrics_do() -> None:
    metric, tracker = PixelAUROC(K, bins=64), MetricTracker(PixelAUROC(K, bins=64))
    values = []
    for seed in range(3):
        tracker.increment()
        tracker.update(*batch(seed))
        values.append(metric(*batch(seed)))
    for _, axes in (metric.plot(values), tracker.plot()):
        drawn: Any = axes
        points = [float(y) for line in drawn.lines for y in line.get_ydata()]
        assert [y for y in points if 0 < y < 1] == pytest.approx([value.item() for value in values])
    both = MetricCollection({"auc": PixelAUROC(K, bins=64), "ap": PixelAveragePrecision(K, bins=64)})
    both.update(*batch())
    assert len(both.plot()) == 2
    iou = GroupedMeanIoU(K, GROUPS)
    _, axes = iou.plot([iou(*batch(seed)) for seed in range(3)])
    assert len(axes.get_legend_handles_labels()[1]) == len(iou.compute())


@pytest.mark.usefixtures("_no_screen")
def test_nothing_counted_is_drawn_too() -> None:
    metric = GroupedMeanIoU(2)
    metric.update(torch.zeros(3, dtype=torch.long), torch.full((3,), 255))
    _, axes = metric.plot()
    assert [text.get_text() for text in axes.texts] == ["does not occur"] * 2
    assert [label.get_text() for label in axes.get_yticklabels()] == ["0", "1"]


def test_metrics_that_were_reset_in_inference_mode_are_updated_outside_of_it() -> None:
    metrics, logits = collection(), batch()
    expected = collection()
    expected.update(*logits)
    with torch.inference_mode():
        metrics.update(*logits)
        metrics.reset()
    metrics.update(*logits)
    torch.testing.assert_close(metrics.compute(), expected.compute(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_counts_stay_integers_where_the_dtype_is_set(dtype: torch.dtype) -> None:
    metrics, expected = collection(), collection()
    metrics.set_dtype(dtype)
    for one in (metrics, expected):
        one.update(*batch())
    torch.testing.assert_close(metrics.compute(), expected.compute(), rtol=0, atol=0, equal_nan=True)


def test_tensors_of_monai_are_taken() -> None:
    meta = pytest.importorskip("monai.data").MetaTensor
    metrics, expected = collection(), collection()
    expected.update(*batch())
    logits, target = (meta(part) for part in batch())
    logits.is_batch = target.is_batch = True
    metrics.update(logits, target)
    torch.testing.assert_close(metrics.compute(), expected.compute(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    ("saved", "other"),
    [
        (PixelAUROC(3, bins=64), PixelAUROC(3, bins=32)),
        (PixelAveragePrecision(3), PixelAveragePrecision(4)),
        (GroupedMeanIoU(3), GroupedMeanIoU(4)),
    ],
)
def test_states_of_other_settings_are_refused(saved: Any, other: Any) -> None:
    saved.persistent(True)
    other.persistent(True)
    state = saved.state_dict()
    with pytest.raises(RuntimeError, match=r"is of other settings: its shape is .*, that of this metric"):
        other.load_state_dict(state)
    saved.load_state_dict(state)
