"""Training images in folds for cross-validation: classes spread evenly, groups whole, the same at every call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from aucseg.datasets import SegmentationDataset
from aucseg.loading.held_out import HeldOut, classes_of_images, rasters_of, sequences_of


def stratified_folds(
    image_classes: npt.NDArray[Any], num_folds: int, groups: Sequence[int] | None = None
) -> npt.NDArray[np.int64]:
    """Deals images out to folds, each class as evenly as can be; the same at every call.

    Iterative stratification (Sechidis et al., *On the Stratification of Multi-label Data*, ECML PKDD 2011): from the
    rarest class to the commonest, each image goes to the fold that lacks the class most, among equals to the one that
    lacks images most. No fold is empty. Without groups none has more than `ceil(N / num_folds)` images.

    Args:
        image_classes: Bool (N, K), the classes in each image.
        num_folds: Number of folds, at least 2.
        groups: For each image its group, which stays together; None for images alone.

    Returns:
        int64 (N,), the fold of each image in 0..num_folds-1.

    Raises:
        ValueError: Fewer than two folds, or fewer images or groups than folds.

    Example:
        >>> holds_rare = np.arange(9) < 3
        >>> folds = stratified_folds(np.stack([np.ones(9, bool), holds_rare], 1), 3)
        >>> np.bincount(folds).tolist(), np.bincount(folds[holds_rare]).tolist()
        ([3, 3, 3], [1, 1, 1])
    """
    if num_folds < 2:
        raise ValueError(f"cross-validation needs at least 2 folds, got {num_folds}")
    length = len(image_classes)
    unit_of = np.arange(length) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    num_units = int(unit_of.max(initial=-1)) + 1
    if num_units < num_folds:
        raise ValueError(f"{num_folds} folds of {num_units} {'images' if groups is None else 'groups'}: give fewer")
    # Every image counts as one of a last class.
    classes = np.concatenate([image_classes.astype(bool), np.ones((length, 1), bool)], axis=1)
    counts = np.stack([np.bincount(unit_of, weights=column, minlength=num_units) for column in classes.T], axis=1)
    sizes, spread = counts.sum(0), (counts > 0).sum(0)
    lacking = np.tile(sizes / num_folds, (num_folds, 1))
    fold_of_unit = np.full(num_units, -1)
    units_in_fold = np.zeros(num_folds, np.int64)
    most_units = -(-num_units // num_folds) if groups is None else num_units
    shuffled = np.random.RandomState(0).permutation(num_units)
    for class_id in sorted(np.flatnonzero(sizes), key=lambda c: (spread[c], sizes[c], c)):
        # Large groups first: the small ones can make up for them.
        for unit in sorted(shuffled, key=lambda unit: -counts[unit, class_id]):
            if fold_of_unit[unit] >= 0 or not counts[unit, class_id]:
                continue
            is_open = units_in_fold < most_units
            if (fold_of_unit < 0).sum() <= (units_in_fold == 0).sum():
                is_open = units_in_fold == 0
            fold = max(np.flatnonzero(is_open), key=lambda f: (lacking[f, class_id], lacking[f, -1], -f))
            fold_of_unit[unit] = fold
            units_in_fold[fold] += 1
            lacking[fold] -= counts[unit]
    return fold_of_unit[unit_of]


def fold_of_images(
    dataset: SegmentationDataset, fold: tuple[int, int], num_workers: int = 0, by: str = "sequence"
) -> HeldOut:
    """`stratified_folds` of a data set, whose masks are read for it.

    Args:
        dataset: A mask that cannot be read is one without classes; reading the sample later tells.
        fold: Number of the fold, from 0, and how many there are.
        num_workers: Processes that read masks; 0 means this one.
        by: "sequence" keeps sequences whole where the names tell four or more, "image" takes images one by one.

    Returns:
        The images of the fold as those held out.

    Raises:
        ValueError: There are fewer images or sequences than folds.
    """
    number, num_folds = fold
    sequences, note = sequences_of(dataset, by, "in a fold")
    if sequences is not None and len(set(sequences)) < num_folds:
        raise ValueError(
            f"{num_folds} folds of {len(set(sequences))} sequences, which the names of the images tell and which stay "
            "whole: give fewer folds, or set data.held_out_by to image (frames of one video are then on both sides)"
        )
    groups = rasters_of(dataset) if sequences is None else sequences
    folds = stratified_folds(classes_of_images(dataset, num_workers), num_folds, groups)
    rest, own = (np.flatnonzero(is_in).tolist() for is_in in (folds != number, folds == number))
    if sequences is None:
        return HeldOut(rest, own, note=note)
    of = np.asarray(sequences)
    return HeldOut(rest, own, (len(np.unique(of[own])), len(np.unique(of))))
