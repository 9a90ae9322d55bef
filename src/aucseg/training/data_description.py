"""What a data module says before the first step about the images that it uses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from aucseg.datasets.data_report import describe_absent_classes, describe_files

if TYPE_CHECKING:
    from aucseg.training.datamodule import SegmentationDataModule


def describe_run(data: SegmentationDataModule, *, trains: bool) -> Iterator[str]:
    """Yields which files are used, which are not, which images are held out, and which classes cannot be judged.

    Args:
        data: Of the run.
        trains: Whether it trains.
    """
    used = [data.train_split] if (trains and data.shards is None) or data.validates_training_images else []
    if data.val_shards is None and not data.validates_training_images:
        used.append(data.val_split)
    if data.shards is None or data.val_shards is None:
        yield from describe_files(data.card, data.root, used)
    if data.val_shards is not None:
        return
    try:
        dataset = data.validation_dataset(None)
    except ValueError:
        return  # the loader says what is wrong, where there is one
    yield from data.parts.describe()
    yield from describe_absent_classes(dataset, data.num_workers)
