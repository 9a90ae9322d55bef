"""Evaluation of predictions in files, whatever model they are from: the numbers and the files of a run's validation."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from aucseg.datasets import DatasetCard, SampleError, SegmentationDataset
from aucseg.datasets.data_report import check_has_masks
from aucseg.datasets.prediction_files import PredictionFiles, labels_of_scores
from aucseg.hints import shorten
from aucseg.metrics import GroupedMeanIoU, PixelAUROC, PixelAveragePrecision
from aucseg.metrics.boundary_iou import DILATION_RATIO, boundary_overlap, boundary_width
from aucseg.metrics.found_objects import SIZES, found_objects
from aucseg.metrics.image_iou import image_scores, per_image_overlap
from aucseg.metrics.pixel_metric import group_means
from aucseg.metrics.result_files import result_entries, write_results
from aucseg.run_files import CONFIG_FILE
from aucseg.safe_files import replace_file
from aucseg.statistics.groups import RULE, groups_by_share

ScoreKind = Literal["softmax", "sigmoid", "identity"]
# Rounding in 16 bits may lead this far out of 0..1.
_ROUNDING = 1e-3
# Error bounds of AUC and average precision from this size on are reported.
_TELLING = 0.02
_MISSING = "there is no prediction"
_MAX_UNUSABLE = 5


@dataclass
class Evaluation:
    """What was measured on the predictions for one split.

    Attributes:
        result: The entries of `result.json`.
        confusion: Pixels by true class (row) and predicted class, (K, K).
        images: For each image the overlap of each class, see `per_image_overlap`.
        roc_curves: Of each tail class; None without scores.
        left_out: Images that were not evaluated, each with the reason.
        extra: Files that belong to no image of the split.
        notes: What else there is to say, in sentences.
        config: The entries of `config.yaml`.
    """

    result: dict[str, Any]
    confusion: list[list[int]]
    images: dict[str, dict[int, list[int]]]
    roc_curves: dict[str, tuple[Tensor, Tensor]] | None
    left_out: dict[str, str]
    extra: list[str]
    config: dict[str, Any]
    notes: list[str]

    def write(self, folder: Path) -> None:
        """Writes the files of a run's validation, so that a report takes the folder like one of a run's."""
        import yaml

        replace_file(folder / CONFIG_FILE, yaml.safe_dump(self.config, sort_keys=False).encode())
        write_results(folder, self.result, confusion=self.confusion, images=self.images, roc_curves=self.roc_curves)


def evaluate_predictions(
    folder: Path,
    card: str | Path,
    root: str | Path | None = None,
    split: str = "val",
    *,
    ids: str | None = None,
    scores: ScoreKind | None = None,
    partial: bool = False,
    boundary_ratio: float = DILATION_RATIO,
    progress: Callable[[Iterable[str]], Iterable[str]] = lambda names: names,
) -> Evaluation:
    """Measures predictions against the truth of a split.

    Args:
        folder: The predictions, see `PredictionFiles`.
        card: Name or path of the data's card.
        root: Folder of the data; None for data embedded in the package.
        split: A split of the card.
        ids: What label maps hold: the card's ids, `raw`, or `train` ids; None to see from the files.
        scores: What scores are: logits, to be taken through `softmax` or `sigmoid`, or numbers in 0..1,
            `identity`. None to see from the first file: `identity` where it holds nothing outside of 0..1, else
            `softmax`.
        partial: Whether images without a usable prediction are left out instead of refused.
        boundary_ratio: Width of the bands of boundary IoU as a share of the image's diagonal.
        progress: Wraps the names of the images as they are gone through.

    Raises:
        ValueError: What the card, the split or the folder refuse; images without a usable prediction, which are named.
    """
    dataset = SegmentationDataset(card, root, split)
    check_has_masks(dataset)
    names = [pair.name for pair in dataset.pairs]
    predictions = PredictionFiles(folder, dataset.card, names, ids)
    sums = _Sums(dataset.card, scores, boundary_ratio, with_scores=bool(predictions.scores))
    left_out = dict.fromkeys(predictions.missing, _MISSING)
    for index, name in enumerate(progress(names)):
        if name not in left_out:
            try:
                sums.add(name, _truth(dataset, index), predictions)
            except SampleError as error:
                left_out[name] = str(error)
    if left_out and (not partial or len(left_out) == len(names)):
        raise ValueError(
            f"{folder}: {len(left_out)} of {len(names)} images cannot be evaluated: "
            f"{described(left_out, predictions.extra)}. Correct the files, or evaluate the others alone with --partial"
        )
    result, roc_curves, notes = sums.result()
    config = {
        "data": {
            "card": str(card) if dataset.card.path is None or _is_name(card) else str(dataset.card.path),
            "root": None if root is None else str(Path(root).resolve()),
            "val_split": split,
        },
        "predictions": {"folder": str(folder.resolve()), "ids": predictions.ids, "scores": sums.kind},
    }
    return Evaluation(
        result=result | {"predictions": folder.name, "split": split, "num_left_out": len(left_out)},
        confusion=sums.iou.confusion.tolist(),
        images=sums.images,
        roc_curves=roc_curves,
        left_out=left_out,
        extra=predictions.extra,
        config=config,
        notes=notes,
    )


def _is_name(card: str | Path) -> bool:
    return str(card) in DatasetCard.available()


def described(left_out: Mapping[str, str], extra: Sequence[str]) -> str:
    """What is wrong with the files, in words: missing, unusable, extra.

    Example:
        >>> described({"val/a": "there is no prediction", "val/b": "b.png: the prediction is too small"}, ["x.png"])
        'no prediction for val/a; b.png: the prediction is too small; of none of the images: x.png'
    """
    missing = [name for name, reason in left_out.items() if reason == _MISSING]
    unusable = [reason for reason in left_out.values() if reason != _MISSING]
    parts = [f"no prediction for {shorten(missing, 10)}"] if missing else []
    parts += unusable[:_MAX_UNUSABLE]
    if len(unusable) > _MAX_UNUSABLE:
        parts.append(f"{len(unusable) - _MAX_UNUSABLE} more like these")
    if extra:
        parts.append(f"of none of the images: {shorten(extra, 10)}")
    return "; ".join(parts)


def _truth(dataset: SegmentationDataset, index: int) -> NDArray[Any]:
    # Bands tell which pixels hold data; otherwise the image is of no use here.
    if dataset.card.bands is not None:
        truth: NDArray[Any] = dataset.read(index)["mask"].numpy()
        return truth
    return dataset.read_mask(index)


class _Sums:
    """What is summed over the images."""

    def __init__(self, card: DatasetCard, kind: ScoreKind | None, ratio: float, *, with_scores: bool) -> None:
        self.card, self.kind, self.ratio = card, kind, ratio
        self.iou = GroupedMeanIoU(card.num_classes, ignore_index=card.ignore_index)
        self.boundary = torch.zeros(2, card.num_classes, dtype=torch.int64)
        self.objects = np.zeros((card.num_classes, len(SIZES), 2), np.int64)
        self.images: dict[str, dict[int, list[int]]] = {}
        self.without_scores: list[str] = []
        self.with_scores = with_scores
        self.pixel_metrics: tuple[PixelAUROC, PixelAveragePrecision] | None = None

    def add(self, name: str, truth: NDArray[Any], predictions: PredictionFiles) -> None:
        card, scores = self.card, None
        target = torch.from_numpy(truth.astype(np.int64))
        # All is read and checked before anything is added.
        if name in predictions.scores:
            scores = self._checked(torch.from_numpy(predictions.read_scores(name, truth)), predictions, name)
        if name in predictions.labels:
            labels = torch.from_numpy(predictions.read_labels(name, truth).astype(np.int64))
        else:
            assert scores is not None
            labels = torch.from_numpy(labels_of_scores(scores.numpy(), self.kind))
        self.iou.update(labels[None], target[None])
        width = boundary_width(truth.shape, self.ratio)
        self.boundary += boundary_overlap(labels[None], target[None], card.num_classes, card.ignore_index, width)
        self.objects += found_objects(labels.numpy(), truth, card.num_classes)
        self.images[name] = per_image_overlap(labels, target, card.num_classes, card.ignore_index)
        if scores is None:
            self.without_scores.append(name)
            return
        if self.pixel_metrics is None:
            options: dict[str, Any] = {"scores": self.kind, "ignore_index": card.ignore_index}
            self.pixel_metrics = (
                PixelAUROC(card.num_classes, **options),
                PixelAveragePrecision(card.num_classes, **options),
            )
        for metric in self.pixel_metrics:
            metric.update(scores[None], target[None])

    def _checked(self, scores: Tensor, predictions: PredictionFiles, name: str) -> Tensor:
        """Scores that are what those of the other images are."""
        low, high = float(scores.min()), float(scores.max())
        are_shares = low >= -_ROUNDING and high <= 1 + _ROUNDING
        if self.kind is None:
            self.kind = "identity" if are_shares else "softmax"
        if self.kind == "identity":
            if not are_shares:
                raise SampleError(
                    f"{predictions.folder / predictions.scores[name]}: scores from {low:g} to {high:g}, but those of "
                    "other images, or --scores, say that they lie in 0..1; logits take --scores softmax (or sigmoid)"
                )
            return scores.clamp(0, 1)
        return scores

    def result(self) -> tuple[dict[str, Any], dict[str, tuple[Tensor, Tensor]] | None, list[str]]:
        """The entries of `result.json` for all images, the ROC curves of the tail, and what else there is to say."""
        card, details = self.card, self.iou.details()
        groups, notes = card.named_groups, []
        if groups is None:
            groups = groups_by_share(self.iou.confusion.sum(1).tolist())
            notes.append(f"the card names no groups; {RULE}")
        boundary = self.boundary[0].double() / self.boundary[1]
        per_class: dict[str, Tensor] = {
            "precision": details["per_class_precision"],
            "recall": details["per_class_recall"],
            "boundary_iou": boundary,
        }
        metrics = {name: float(details[name]) for name in ("miou", "precision", "recall", "f1")}
        metrics |= _floats(group_means(details["per_class"], groups))
        metrics |= image_scores(self.images)
        metrics["boundary_iou"] = float(boundary.nanmean())
        roc_curves = None
        if self.pixel_metrics is not None and not self.without_scores:
            auroc, precision = (metric.details() for metric in self.pixel_metrics)
            per_class |= {"auroc": auroc["per_class"], "average_precision": precision["per_class"]}
            metrics["auroc"] = float(auroc["auroc"])
            tail = groups.get("tail", [])
            roc_curves = {card.class_names[c]: self.pixel_metrics[0].roc_curve(c) for c in tail}
            bounds = torch.maximum(auroc["per_class_error_bound"], precision["per_class_error_bound"])
            if unsure := [card.class_names[c] for c in (bounds > _TELLING).nonzero().flatten().tolist()]:
                notes.append(
                    f"many scores of {shorten(unsure, 5)} cannot be told apart (float16 numbers, 0 and 1 alone, shares "
                    "near 0 or 1) and count as equal: with the scores that they were rounded from, AUC or average "
                    f"precision would be others, by up to {100 * float(bounds[~bounds.isnan()].max()):.0f} points; "
                    "write logits, or float32"
                )
        elif self.with_scores:
            notes.append(f"no AUC and average precision: no scores for {shorten(self.without_scores, 10)}")
        if "tail" in groups:
            for name, values in per_class.items():
                short = "ap" if name == "average_precision" else name
                if name != "auroc":
                    metrics[f"tail_{short}"] = float(group_means(values.float(), groups)["tail"])
            metrics["tail_found"] = _share(self.objects[groups["tail"]].sum((0, 1)))
        for size, counts in zip(SIZES, self.objects.sum(0), strict=True):
            metrics[f"found_{size}"] = _share(counts)
        entries = result_entries(
            card, step=None, metrics=metrics, per_class_iou=details["per_class"].tolist(), groups=groups
        )
        result = entries | {
            "num_images": len(self.images),
            "per_class": {
                class_name: {name: float(values[c]) for name, values in per_class.items()}
                | {"objects": self.objects[c].tolist()}
                for c, class_name in enumerate(card.class_names)
            },
        }
        return result, roc_curves, notes


def _floats(values: Mapping[str, Tensor]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items()}


def _share(found_and_all: NDArray[np.int64]) -> float:
    found, total = found_and_all.tolist()
    return found / total if total else math.nan
