"""The parts of a training split: what is trained on, what is held out, and the fold that is validated on."""

from __future__ import annotations

from collections.abc import Sequence

from aucseg.datasets import SegmentationDataset
from aucseg.loading.folds import fold_of_images
from aucseg.loading.held_out import HeldOut, held_out_images


class TrainingParts:
    """Divides the training split; its masks are read once, when a part is asked for.

    Images are held out of those that are not in the fold.

    Args:
        held_out_share: See `aucseg.loading.held_out.held_out_images`; 0 for none.
        fold: See `aucseg.loading.folds.fold_of_images`; None for none.
        by: "sequence" or "image", for both.
        num_workers: Processes that read masks.
    """

    def __init__(self, held_out_share: float, fold: tuple[int, int] | None, by: str, num_workers: int) -> None:
        self.held_out_share = held_out_share
        self.fold = fold
        self.by = by
        self.num_workers = num_workers
        self._held: HeldOut | None = None
        self._in_fold: HeldOut | None = None

    def trained_on(self, dataset: SegmentationDataset) -> SegmentationDataset:
        """Leaves what is trained on in the data set of the whole split."""
        dataset = self._without_fold(dataset)
        return _only(dataset, self._division(dataset).kept) if self.held_out_share else dataset

    def held_out(self, dataset: SegmentationDataset) -> SegmentationDataset:
        """Leaves what is held out.

        Raises:
            ValueError: Nothing is.
        """
        if not self.held_out_share:
            raise ValueError("no training images are held out: held_out_share is 0")
        dataset = self._without_fold(dataset)
        return _only(dataset, self._division(dataset).held_out)

    def in_fold(self, dataset: SegmentationDataset) -> SegmentationDataset:
        """Leaves the images of the fold, all where there is none."""
        return dataset if self.fold is None else _only(dataset, self._division_by_fold(dataset, self.fold).held_out)

    def describe(self) -> list[str]:
        """Sentences about the parts that have been asked for."""
        lines = []
        if self.fold is not None and self._in_fold is not None:
            lines.append(self._in_fold.describe(f"fold {self.fold[0]} of {self.fold[1]}"))
        return lines if self._held is None else [*lines, self._held.describe()]

    def _without_fold(self, dataset: SegmentationDataset) -> SegmentationDataset:
        return dataset if self.fold is None else _only(dataset, self._division_by_fold(dataset, self.fold).kept)

    def _division(self, dataset: SegmentationDataset) -> HeldOut:
        if self._held is None:
            self._held = held_out_images(dataset, self.held_out_share, self.num_workers, self.by)
        return self._held

    def _division_by_fold(self, dataset: SegmentationDataset, fold: tuple[int, int]) -> HeldOut:
        if self._in_fold is None:
            self._in_fold = fold_of_images(dataset, fold, self.num_workers, self.by)
        return self._in_fold


def _only(dataset: SegmentationDataset, indices: Sequence[int]) -> SegmentationDataset:
    dataset.pairs = [dataset.pairs[index] for index in indices]
    return dataset
