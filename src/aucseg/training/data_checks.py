"""What is wrong with a run's data, reported before the model is built."""

from __future__ import annotations

from aucseg.datasets.data_report import check_has_masks
from aucseg.datasets.propose import HELD_OUT_SHARE
from aucseg.training.datamodule import SegmentationDataModule


def check_data(data: SegmentationDataModule, *, trains: bool = True, validates: bool = True) -> None:
    """Looks for the files of the splits that a run uses; none of them is read.

    Args:
        data: Of the run.
        trains: Whether it trains.
        validates: Whether it validates.

    Raises:
        ValueError: There is nothing to validate on, no such split or folder, files are missing, or a split has no
            masks; the message says the way out.
    """
    if trains and data.shards is None:
        check_has_masks(data.dataset(data.train_split, None))
    if not validates or data.validates_training_images or data.val_shards is not None:
        return
    if data.val_split not in data.card.splits:
        splits = ", ".join(data.card.splits)
        raise ValueError(
            f"the card {data.card.name!r} has no split {data.val_split!r} to validate on (its splits: {splits}). Hold "
            f"out a part of the training images: --data.held_out_share {HELD_OUT_SHARE}, or 'held_out_share: "
            f"{HELD_OUT_SHARE}' in the card; or name a split with --data.val_split"
        )
    check_has_masks(data.dataset(data.val_split, None))
