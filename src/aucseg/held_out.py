"""Training images that are held out to choose settings by, rare classes in both parts."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from aucseg.datasets import SegmentationDataset
from aucseg.datasets.scan import scan_samples


def stratified_split(image_classes: npt.NDArray[Any], share: float) -> tuple[list[int], list[int]]:
    """Splits images in those to train on and those held out, each class in its share; the same at every call.

    Classes are dealt out from the rarest to the commonest, as in Sechidis et al., *On the Stratification of Multi-label
    Data*, ECML PKDD 2011: a random split may leave a class of a few images out of either part, where it is then not
    learned, or not looked at. A class in two images or more is in both parts, unless rarer classes have dealt out all
    its images; one of a single image is trained on, where anything else can be held out.

    Args:
        image_classes: bool (N, K), the classes in each image.
        share: share of the images to hold out, in (0, 1).

    Returns:
        Indices of the images to train on, and of those held out, both in order; neither is empty.

    Raises:
        ValueError: fewer than two images.

    Example:
        >>> holds_rare = np.arange(40) < 2
        >>> kept, held_out = stratified_split(np.stack([np.ones(40, bool), holds_rare], 1), 0.25)
        >>> len(kept), len(held_out), int(holds_rare[kept].sum()), int(holds_rare[held_out].sum())
        (30, 10, 1, 1)
    """
    length = len(image_classes)
    if length < 2:
        raise ValueError(f"images can be held out of at least 2, not of {length}")
    order = np.random.RandomState(0).permutation(length)
    holds = image_classes.astype(bool)[order]
    # Every image counts as one of a last class.
    holds = np.concatenate([holds, np.ones((length, 1), bool)], axis=1)
    sizes = holds.sum(0)
    is_held, is_dealt = np.zeros(length, bool), np.zeros(length, bool)
    for class_id in sorted(np.flatnonzero(sizes), key=lambda c: (sizes[c], c)):
        members, size = holds[:, class_id], int(sizes[class_id])
        wanted = min(max(round(share * size), 1), size - 1)
        free = np.flatnonzero(members & ~is_dealt)
        is_held[free[: max(wanted - int(is_held[members].sum()), 0)]] = True
        is_dealt |= members
    if not is_held.any():  # every image has a class to itself: the one whose classes are the least rare
        is_held[np.where(holds, sizes, length + 1).min(1).argmax()] = True
    return np.sort(order[~is_held]).tolist(), np.sort(order[is_held]).tolist()


def held_out_images(dataset: SegmentationDataset, share: float, num_workers: int = 0) -> tuple[list[int], list[int]]:
    """`stratified_split` of a data set, whose masks are read for it.

    Args:
        dataset: a mask that cannot be read is one without classes; reading the sample later tells.
        share: share of the images to hold out, in (0, 1).
        num_workers: processes that read masks; 0 means this one.
    """
    image_classes = np.zeros((len(dataset), dataset.card.num_classes), bool)
    for sample in scan_samples(dataset, num_workers=num_workers, check_images=False):
        if sample.raw is not None:
            ids = dataset.label_map.map_scan(sample.raw)[0].ids
            image_classes[sample.index, ids[ids != dataset.card.ignore_index]] = True
    return stratified_split(image_classes, share)
