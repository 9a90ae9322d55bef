"""What a run says about its data before the first step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aucseg.datasets.card import DatasetCard
from aucseg.datasets.file_report import report_files
from aucseg.datasets.hub_folder import root_of
from aucseg.hints import shorten

if TYPE_CHECKING:
    from aucseg.datasets.dataset import SegmentationDataset


def describe_files(card: DatasetCard, root: str | Path | None, used: Sequence[str]) -> list[str]:
    """Returns how many images each split has, and which files are in no pair, in two splits or in none.

    Args:
        card: The data set card.
        root: The folder of the data; None for data embedded in the package.
        used: The splits that the run uses; the others are called so.
    """
    folder = card.embedded_root() if root is None else Path(root)
    if folder is None or not folder.is_dir():
        return []
    report = report_files(card, folder, whole_root=False)
    problems = report.problems()
    lines = report.lines(used)
    if problems:
        lines.append(
            f"files: {len(problems):,} not as they should be (all of them: aucseg stats): "
            f"{shorten(problems, separator='; ')}"
        )
    return lines


def describe_data(data: Mapping[str, Any]) -> list[str]:
    """Returns `describe_files` of the `data` section of a configuration; nothing for shards."""
    if "card" not in data or data.get("shards"):
        return []
    used = [data.get("train_split", "train")] + ([] if data.get("fold") else [data.get("val_split", "val")])
    return describe_files(DatasetCard.load(data["card"]), root_of(data), used)


def check_has_masks(dataset: SegmentationDataset) -> None:
    """Refuses a split without masks, which is for prediction alone.

    Raises:
        ValueError: An image has no mask.
    """
    if any(pair.mask is None for pair in dataset.pairs):
        raise ValueError(
            f"split {dataset.split!r} of data set {dataset.card.name!r} has no masks, so nothing can be learned from "
            "it or measured on it: name 'masks' in the card, or write label maps with 'aucseg predict'"
        )


def describe_absent_classes(dataset: SegmentationDataset, num_workers: int = 0) -> list[str]:
    """Returns which classes are in no mask of a validation split, whose metrics are then NaN.

    Args:
        dataset: The validation images; masks that cannot be read are passed over, their turn comes.
        num_workers: Processes that read masks; 0 means this one.
    """
    from aucseg.datasets.scan import scan_samples

    card = dataset.card
    present: set[int] = set()
    if any(pair.mask is None for pair in dataset.pairs):
        return []
    for sample in scan_samples(dataset, num_workers=num_workers, check_images=False):
        if sample.raw is not None:
            present.update(dataset.label_map.map_scan(sample.raw)[0].ids.tolist())
    absent = [c for c in range(card.num_classes) if c not in present]
    if not absent or len(absent) == card.num_classes:
        return []
    names = shorten([card.class_names[c] for c in absent])
    lines = [f"in no validation image: {names}; their IoU will be NaN, or 0 where they are predicted all the same"]
    groups = {group: ids for group, ids in (card.groups or {}).items() if ids and set(ids) <= set(absent)}
    if groups:
        metrics = ", ".join(f"val/{group}" for group in groups)
        lines.append(
            f"{metrics} will be NaN, so nothing may wait for it: an EarlyStopping that monitors it stops at once"
        )
    return lines
