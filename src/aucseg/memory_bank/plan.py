"""What the memory bank needs to know of a batch's masks, taken from them on the host, ahead of the call."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import default_collate

from aucseg.memory_bank.checks import check_labels, check_masks, workable
from aucseg.memory_bank.components import (
    Bools,
    Ints,
    connected_components,
    horizontal_runs,
    number_components,
    sum_by,
)
from aucseg.tensors.dtypes import plain_tensor

_MOST_PROBES = 1024


class BatchPlan:
    """Where a batch's masks hold tail classes and protected pixels; made by a `BankPlanner`, used by one call.

    Runs are intervals of the flattened batch.

    Attributes:
        planner: What made it.
        shape: (B, H, W) or (B, D, H, W) of the masks.
        pixels_per_image: H W, or D H W.
        tail_pixels: (B, T) pixels of each tail class in each image.
        present: (B, T) whether there are any.
        start: (R,) where each run to store begins; sorted by group, then by place.
        length: (R,) its pixels.
        component: (R,) number of its component within its group.
        groups: (G,) image times number of tail classes plus position of the class, ascending.
        num_runs: (G,) runs of each group.
        num_pixels: (G,) pixels of each group.
        spared_begin: (S,) sorted; runs of tail classes and of protected classes.
        spared_end: (S,).
        spared_tail: (S,) position of the class among the tail classes, -1 for others.
        spared_protected: (S,) whether the class is protected.
        protected: Begin and end of those runs, that no paste may cover.
        probes: (P,) some of the places where they begin, at most 1024; what a device compares with its masks.
        probed: (P,) their labels.
    """

    def __init__(self, planner: BankPlanner, masks: Tensor) -> None:
        self.planner = planner
        self.shape = tuple(masks.shape)
        self.pixels_per_image = math.prod(self.shape[1:])
        num_tail = len(planner.tail_classes)
        if masks.numel():
            start, length, label = horizontal_runs(masks)
            check_labels(label, start, self.shape, planner.num_classes, planner.ignore_index)
        else:
            start = length = label = np.zeros(0, dtype=np.int64)
        tail, protected = planner.look_up(label)
        spared = np.flatnonzero((tail >= 0) | protected)
        self.spared_begin, self.spared_end = start[spared], start[spared] + length[spared]
        self.spared_tail, self.spared_protected = tail[spared], protected[spared]
        self.protected = self.spared_begin[self.spared_protected], self.spared_end[self.spared_protected]
        probed = spared[:: max(1, -(-len(spared) // _MOST_PROBES))]
        self.probes, self.probed = start[probed], label[probed].astype(np.int64)

        kept = np.flatnonzero(tail >= 0)
        start, length, tail = start[kept], length[kept], tail[kept]
        group = start // max(self.pixels_per_image, 1) * num_tail + tail
        self.tail_pixels = sum_by(group, length, len(masks) * num_tail).reshape(len(masks), num_tail)
        self.present: Bools = self.tail_pixels > 0
        root = connected_components(start, length, tail, self.shape[1:])
        component = number_components(root, length, group, planner.min_pixels, planner.max_components)
        order = np.argsort(group, kind="stable")
        order = order[component[order] >= 0]
        self.start, self.length, self.component = start[order], length[order], component[order]
        self.groups, index, self.num_runs = np.unique(group[order], return_inverse=True, return_counts=True)
        self.num_pixels = sum_by(index, self.length, len(self.groups))

    def __repr__(self) -> str:
        return f"BatchPlan of masks {self.shape}, {len(self.groups)} samples to store"


@dataclass(frozen=True)
class BankPlanner:
    """Makes plans: the settings of a bank that they depend on, and nothing that changes.

    It is small and can be pickled, so that the worker processes of a loader can plan; `TailMemoryBank.planner` is that
    of a bank.

    Attributes:
        tail_classes: Ids of the tail classes, ascending.
        protected: Ids of the classes that are not pasted over.
        num_classes: Number of classes K.
        ignore_index: Label of pixels without a class.
        min_pixels: Smallest component to store.
        max_components: Components stored per class and image.
    """

    tail_classes: tuple[int, ...]
    protected: tuple[int, ...]
    num_classes: int
    ignore_index: int
    min_pixels: int
    max_components: int

    @property
    def protects_tail(self) -> bool:
        """Whether no tail class is pasted over."""
        return set(self.tail_classes) <= set(self.protected)

    def __call__(self, masks: Tensor) -> BatchPlan:
        """Looks at a batch of masks.

        Args:
            masks: (B, H, W) or (B, D, H, W), as the bank takes them. On an accelerator this waits for the device.

        Raises:
            TypeError: A dtype that does not hold labels.
            ValueError: Another shape, or a label outside 0..K-1 that is not `ignore_index`.
        """
        check_masks(masks, self.tail_classes)
        return BatchPlan(self, workable(plain_tensor(masks)).contiguous())

    def collate(self, samples: Sequence[Any]) -> Any:
        """A `collate_fn` for a `DataLoader`: the usual batch, and its plan.

        Args:
            samples: Pairs `(image, mask)`, or mappings with the key `"mask"`.

        Returns:
            `(images, masks, plan)`, or the mapping with the plan under `"plan"`.

        Raises:
            TypeError: Samples of another kind.

        Example:
            >>> import torch
            >>> planner = BankPlanner((1,), (1,), num_classes=2, ignore_index=255, min_pixels=1, max_components=32)
            >>> images, masks, plan = planner.collate([(torch.zeros(3, 4, 4), torch.ones(4, 4, dtype=torch.uint8))] * 2)
            >>> masks.shape, plan
            (torch.Size([2, 4, 4]), BatchPlan of masks (2, 4, 4), 2 samples to store)
        """
        batch = default_collate(list(samples))
        if isinstance(batch, Mapping) and "mask" in batch:
            return {**batch, "plan": self(batch["mask"])}
        if isinstance(batch, list | tuple) and len(batch) == 2:
            return batch[0], batch[1], self(batch[1])
        raise TypeError(
            "collate takes samples (image, mask), or mappings with the key 'mask': from others make the batch yourself "
            "and call the planner with its masks"
        )

    def look_up(self, labels: Any) -> tuple[Ints, Bools]:
        """Position of each label (N,) among the tail classes, -1 for others, and whether its class is protected."""
        # The last entry serves every label outside 0..K-1.
        position = np.full(self.num_classes + 1, -1)
        position[list(self.tail_classes)] = np.arange(len(self.tail_classes))
        is_protected = np.zeros(self.num_classes + 1, dtype=bool)
        is_protected[list(self.protected)] = True
        labels = labels.astype(np.int64)
        labels = np.where((labels >= 0) & (labels < self.num_classes), labels, self.num_classes)
        return position[labels], is_protected[labels]
