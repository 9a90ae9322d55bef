"""Training images that are held out to choose settings by, or to validate on: rare classes in both parts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from aucseg.datasets import DatasetCard, SegmentationDataset
from aucseg.datasets.scan import scan_samples
from aucseg.loading.sequences import sequences_and_note

# A part of whole sequences may miss its share by this factor, else images are taken one by one.
_TOLERANCE = 1.5


def share_to_hold_out(card: DatasetCard, data: Mapping[str, Any]) -> float:
    """Returns the share of the training images that a run holds out: what its options say, or else its card.

    The card's `held_out_share` stands in for a validation split, so it counts where there is none alone.

    Args:
        card: The card of the data.
        data: Options of `aucseg.SegmentationDataModule`; what is missing has its default.
    """
    share = data.get("held_out_share")
    if share is not None:
        return float(share)
    has_split = data.get("val_split", "val") in card.splits
    has_validation = has_split or any(data.get(name) for name in ("val_shards", "shards", "fold"))
    return 0.0 if card.held_out_share is None or has_validation else card.held_out_share


def validates_held_out(data: Mapping[str, Any]) -> bool:
    """Returns whether a run with these options of its data module validates on training images that it holds out."""
    if not data.get("validate_held_out", True) or data.get("val_shards"):
        return False
    return share_to_hold_out(DatasetCard.load(data["card"]), data) > 0


@dataclass(frozen=True)
class HeldOut:
    """Which training images are held out.

    Attributes:
        kept: Indices of the images to train on, in order.
        held_out: Indices of the images held out, in order.
        num_sequences: Number of sequences held out and of all, where whole ones are; else None.
        note: What else there is to say.
    """

    kept: list[int]
    held_out: list[int]
    num_sequences: tuple[int, int] | None = None
    note: str = ""

    def describe(self, what: str = "held out") -> str:
        """Returns a sentence about it."""
        text = f"{what}: {len(self.held_out):,} of {len(self.kept) + len(self.held_out):,} training images"
        if self.num_sequences is None:
            return text + self.note
        return f"{text}, {self.num_sequences[0]:,} of {self.num_sequences[1]:,} sequences that their names tell"


def stratified_split(
    image_classes: npt.NDArray[Any], share: float, groups: Sequence[int] | None = None
) -> tuple[list[int], list[int]]:
    """Splits images in those to train on and those held out, each class in its share; the same at every call.

    Classes are dealt out from the rarest to the commonest, as in Sechidis et al., *On the Stratification of Multi-label
    Data*, ECML PKDD 2011: a random split may leave a class of a few images out of either part, where it is then not
    learned, or not looked at. A class in two images or more is in both parts, unless rarer classes have dealt out all
    its images; one of a single image is trained on, where anything else can be held out.

    Args:
        image_classes: Bool (N, K), the classes in each image.
        share: Share of the images to hold out, in (0, 1).
        groups: For each image its group, which stays together: then all this holds of groups instead of images, as
            nearly as their sizes allow. None for images alone.

    Returns:
        Indices of the images to train on, and of those held out, both in order; neither is empty.

    Raises:
        ValueError: Fewer than two images, or than two groups.

    Example:
        >>> holds_rare = np.arange(40) < 2
        >>> kept, held_out = stratified_split(np.stack([np.ones(40, bool), holds_rare], 1), 0.25)
        >>> len(kept), len(held_out), int(holds_rare[kept].sum()), int(holds_rare[held_out].sum())
        (30, 10, 1, 1)
        >>> stratified_split(np.ones((6, 1), bool), 0.3, groups=[0, 0, 1, 1, 2, 2])[1]
        [4, 5]
    """
    length = len(image_classes)
    members_of = np.arange(length) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    num_groups = int(members_of.max(initial=-1)) + 1
    if num_groups < 2:
        raise ValueError(
            f"images are held out of at least 2{' groups' if groups else ''}, and there is {num_groups}: add images, "
            "or name a split to validate on (data.val_split)"
        )
    # Every image counts as one of a last class.
    classes = np.concatenate([image_classes.astype(bool), np.ones((length, 1), bool)], axis=1)
    per_class = [np.bincount(members_of, weights=column, minlength=num_groups) for column in classes.T]
    counts = np.stack(per_class, axis=1).astype(np.int32)
    order = np.random.RandomState(0).permutation(num_groups)
    counts = counts[order]
    # A group that is large itself must not be held out for the sake of a rare class in it.
    limit = math.inf if groups is None else max(_TOLERANCE * share * length, counts[:, -1].min())
    sizes, spread = counts.sum(0), (counts > 0).sum(0)
    is_held, is_dealt = np.zeros(num_groups, bool), np.zeros(num_groups, bool)
    num_held = 0
    for class_id in sorted(np.flatnonzero(sizes), key=lambda c: (spread[c], sizes[c], c)):
        in_group = counts[:, class_id]
        missing = max(round(share * int(sizes[class_id])), 1) - int(in_group[is_held].sum())
        num_left = int((in_group[~is_held] > 0).sum())
        for group in np.flatnonzero((in_group > 0) & ~is_dealt):
            is_large = num_held + counts[group, -1] > limit
            if num_left > 1 and not is_large and abs(missing - in_group[group]) < abs(missing):
                is_held[group] = True
                num_held += int(counts[group, -1])
                missing -= int(in_group[group])
                num_left -= 1
        is_dealt |= in_group > 0
    if not is_held.any():  # the group whose classes are the least rare: in the most groups, then of the most images
        rarity = spread.astype(np.int64) * (length + 1) + sizes
        is_held[np.where(counts > 0, rarity, np.iinfo(np.int64).max).min(1).argmax()] = True
    held = np.isin(members_of, order[is_held])
    return np.flatnonzero(~held).tolist(), np.flatnonzero(held).tolist()


def held_out_images(dataset: SegmentationDataset, share: float, num_workers: int = 0, by: str = "sequence") -> HeldOut:
    """`stratified_split` of a data set, whose masks are read for it.

    Args:
        dataset: A mask that cannot be read is one without classes; reading the sample later tells.
        share: Share of the images to hold out, in (0, 1).
        num_workers: Processes that read masks; 0 means this one.
        by: "sequence" holds out whole sequences, where the names tell any (`sequences_of_names`) and the share can be
            had nearly; "image" takes images one by one.
    """
    image_classes = classes_of_images(dataset, num_workers)
    sequences, note = sequences_of(dataset, by, "held out")
    if sequences is not None:
        kept, held_out = stratified_split(image_classes, share, sequences)
        if share / _TOLERANCE <= len(held_out) / len(dataset) <= share * _TOLERANCE:
            of = np.asarray(sequences)
            return HeldOut(kept, held_out, (len(np.unique(of[held_out])), len(np.unique(of))))
    return HeldOut(*stratified_split(image_classes, share, rasters_of(dataset)), note=note)


def sequences_of(dataset: SegmentationDataset, by: str, what: str) -> tuple[list[int] | None, str]:
    """The sequences that are kept whole, and what else there is to say, see `sequences_and_note`.

    Args:
        dataset: The images.
        by: "sequence", or "image" for none.
        what: What a part of the images is, in words.
    """
    if by != "sequence":
        return None, ""
    sequences, note = sequences_and_note([pair.name for pair in dataset.pairs], what)
    # Windows of a raster stay together, whatever their names.
    return sequences, note if rasters_of(dataset) is None else ""


def rasters_of(dataset: SegmentationDataset) -> list[int] | None:
    """For each window the number of its raster, which stays together as windows overlap; None for whole images."""
    if all(pair.tile is None for pair in dataset.pairs):
        return None
    numbers: list[int] = np.unique([pair.image for pair in dataset.pairs], return_inverse=True)[1].tolist()
    return numbers


def classes_of_images(dataset: SegmentationDataset, num_workers: int = 0) -> npt.NDArray[np.bool_]:
    """Returns which classes are in each image, bool (N, K), from the masks; in one that cannot be read none is.

    Args:
        dataset: Of N images.
        num_workers: Processes that read masks; 0 means this one.
    """
    image_classes = np.zeros((len(dataset), dataset.card.num_classes), bool)
    for sample in scan_samples(dataset, num_workers=num_workers, check_images=False):
        if sample.raw is not None:
            ids = dataset.label_map.map_scan(sample.raw)[0].ids
            image_classes[sample.index, ids[ids != dataset.card.ignore_index]] = True
    return image_classes
