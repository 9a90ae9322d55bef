"""Against the long tail without a bank: rare-class images, class-aware crops. Class weights: `aucseg.class_weights`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Sampler

from aucseg.datasets.counting import count_ids

if TYPE_CHECKING:
    from aucseg.statistics.class_statistics import ClassStatistics

_MIX = 0x9E3779B97F4A7C15


class DrawnIndex(int):
    """An index into a data set that knows which draw of the run it is, so that transforms can draw the same again."""

    draw: int

    def __new__(cls, index: int, draw: int = 0) -> DrawnIndex:
        """Make the index."""
        drawn = super().__new__(cls, index)
        drawn.draw = draw
        return drawn


class RareClassSampler(Sampler[int]):
    """Draws a class, rare ones more often, then an image that holds it (DAFormer, Hoyer et al., CVPR 2022).

    ``P(c) ~ exp((1 - q_c) / T)`` over the classes that occur, with q_c the class's presence (share of the images) or
    frequency (share of the pixels; DAFormer's choice); then an image uniformly among those with the class. Images are
    drawn with replacement.

    Each epoch is one sequence of draws that depends on seed and epoch alone; rank r of R takes the draws r, r + R, r +
    2R, ..., so the sequence does not depend on the number of ranks, nor on that of the loader's workers.

    Args:
        statistics: Counts of the data set, image i being its sample i.
        num_samples: Draws an epoch over all ranks; the number of images by default. Rounded up to a multiple of
            ``num_replicas``.
        temperature: T > 0; smaller means rarer classes more often.
        by: ``presence`` or ``frequency``.
        seed: Seed of the draws.
        num_replicas: Number of ranks.
        rank: This rank.

    Raises:
        ValueError: An argument out of its range, or statistics without a class.

    Example:
        >>> import numpy as np
        >>> from aucseg.statistics.class_statistics import ClassStatistics
        >>> statistics = ClassStatistics(2)
        >>> for labels in ([[0, 0]], [[0, 0]], [[0, 1]]):
        ...     statistics.update(np.array(labels))
        >>> sampler = RareClassSampler(statistics, num_samples=1000, temperature=0.05)
        >>> sum(index == 2 for index in sampler) > 900
        True
    """

    def __init__(
        self,
        statistics: ClassStatistics,
        *,
        num_samples: int | None = None,
        temperature: float = 0.1,
        by: str = "presence",
        seed: int = 0,
        num_replicas: int = 1,
        rank: int = 0,
    ) -> None:
        if by not in ("presence", "frequency"):
            raise ValueError(f"by must be 'presence' or 'frequency', not {by!r}")
        if not (math.isfinite(temperature) and temperature > 0):
            raise ValueError(f"temperature must be positive, not {temperature}")
        if num_replicas < 1 or not 0 <= rank < num_replicas:
            raise ValueError(f"rank must lie in 0..num_replicas-1, not rank={rank} with num_replicas={num_replicas}")
        if num_samples is not None and num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, not {num_samples}")
        image_classes = torch.from_numpy(statistics.image_classes)
        occurs = image_classes.any(0)
        if not occurs.any():
            raise ValueError("no class occurs in these statistics; count the training set first")
        share = torch.from_numpy(statistics.presence if by == "presence" else statistics.frequency)
        self.class_probabilities = torch.softmax(((1 - share) / temperature).masked_fill(~occurs, -math.inf), 0)
        # Images grouped by class, one after the other: class c has the places start[c] .. start[c] + count[c] - 1.
        self._images = image_classes.T.nonzero()[:, 1]
        self._count = image_classes.sum(0)
        self._start = self._count.cumsum(0) - self._count
        self.num_samples = math.ceil((num_samples or statistics.num_images) / num_replicas)
        self.seed, self.num_replicas, self.rank = seed, num_replicas, rank
        self.epoch = 0
        self._first = 0

    def __len__(self) -> int:
        """Draws that this rank still makes in the epoch."""
        return self.num_samples - self._first

    def __iter__(self) -> Iterator[int]:
        total = self.num_samples * self.num_replicas
        generator = _generator(self.seed, self.epoch)
        classes = torch.multinomial(self.class_probabilities, total, replacement=True, generator=generator)
        place = (torch.rand(total, generator=generator, dtype=torch.float64) * self._count[classes]).long()
        images = self._images[self._start[classes] + place].tolist()
        first, self._first = self._first, 0
        for i in range(self.rank + first * self.num_replicas, total, self.num_replicas):
            yield DrawnIndex(images[i], self.epoch * total + i)

    def set_epoch(self, epoch: int) -> None:
        """Choose the sequence of draws; call it before each epoch."""
        self.epoch = epoch

    def state_dict(self, num_consumed: int = 0) -> dict[str, int]:
        """Return what :meth:`load_state_dict` needs to go on in the middle of an epoch.

        Args:
            num_consumed: Samples of this epoch that this rank has trained on. The sampler cannot know: a loader's
                workers are ahead.
        """
        return {"epoch": self.epoch, "num_consumed": num_consumed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken: the next epoch's iteration begins after the consumed samples."""
        if not 0 <= state["num_consumed"] <= self.num_samples:
            raise ValueError(f"num_consumed must lie in 0..{self.num_samples}, not {state['num_consumed']}")
        self.epoch, self._first = state["epoch"], state["num_consumed"]


class ClassAwareCrop:
    """Crops around a random pixel of a rare class that the image holds.

    With ``probability`` one of the given classes that the mask holds is drawn, then one of its pixels; the crop is a
    random one that contains this pixel. Otherwise, and where the mask holds none of them, the crop is anywhere. A
    smaller image is padded with 0, its mask with the ignore label.

    The draw depends on the seed and ``sample["draw"]``, which the samplers of this module hand on: the same on any
    number of ranks and workers, and after a resume. A sample without it uses torch's global generator.

    Args:
        size: (height, width) of the crop.
        classes: Ids of the classes to look for, for example the tail.
        probability: How often to look for one.
        ignore_index: Label of the padding.
        seed: Seed of the draws.

    Raises:
        ValueError: An argument out of its range.

    Example:
        >>> mask = torch.zeros(8, 8, dtype=torch.uint8)
        >>> mask[6, 1] = 3
        >>> sample = {"image": torch.zeros(3, 8, 8, dtype=torch.uint8), "mask": mask, "name": "a", "draw": 5}
        >>> crop = ClassAwareCrop((4, 4), classes=[3], probability=1.0)(sample)
        >>> tuple(crop["image"].shape), bool((crop["mask"] == 3).any())
        ((3, 4, 4), True)
    """

    def __init__(
        self,
        size: tuple[int, int],
        classes: Sequence[int],
        *,
        probability: float = 0.5,
        ignore_index: int = 255,
        seed: int = 0,
    ) -> None:
        if len(size) != 2 or min(size) < 1:
            raise ValueError(f"size must be (height, width), both at least 1, not {size}")
        if not 0 <= probability <= 1:
            raise ValueError(f"probability must lie in 0..1, not {probability}")
        if ignore_index in classes:
            raise ValueError(f"classes {list(classes)} hold the ignore label {ignore_index}; leave it out")
        self.size = size
        self.classes = tuple(classes)
        self.probability = probability
        self.ignore_index = ignore_index
        self.seed = seed

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        """Return a new sample with the cropped image (C, h, w) and mask (h, w)."""
        generator = _generator(self.seed, sample["draw"]) if "draw" in sample else torch.default_generator
        image, mask = sample["image"], sample["mask"]
        height, width = self.size
        below, right = max(height - mask.shape[0], 0), max(width - mask.shape[1], 0)
        if below or right:
            image = F.pad(image, (0, right, 0, below))
            mask = pad_mask(mask, right, below, self.ignore_index)
        center = self._pixel_of_rare_class(mask, generator)
        top = draw_start(height, mask.shape[0], None if center is None else center[0], generator)
        left = draw_start(width, mask.shape[1], None if center is None else center[1], generator)
        rows, columns = slice(top, top + height), slice(left, left + width)
        return {**sample, "image": image[..., rows, columns], "mask": mask[rows, columns]}

    def _pixel_of_rare_class(self, mask: Tensor, generator: torch.Generator) -> tuple[int, int] | None:
        if float(torch.rand((), generator=generator)) >= self.probability:
            return None
        return draw_pixel(mask, self.classes, generator)


def _generator(seed: int, number: int) -> torch.Generator:
    return torch.Generator().manual_seed((seed * _MIX + number) % 2**63)


def draw_pixel(mask: Tensor, classes: Sequence[int], generator: torch.Generator) -> tuple[int, int] | None:
    """Draw one of the classes that the mask (H, W) holds, then the (row, column) of one of its pixels; or None."""
    ids, counts = count_ids(mask.numpy())
    present = [i for i, class_id in enumerate(ids.tolist()) if class_id in classes]
    if not present:
        return None
    drawn = present[int(torch.randint(len(present), (), generator=generator))]
    place = int(torch.randint(int(counts[drawn]), (), generator=generator))
    return divmod(int((mask == int(ids[drawn])).flatten().nonzero()[place]), mask.shape[1])


def draw_start(size: int, length: int, inside: int | None, generator: torch.Generator) -> int:
    """Draw the start of an interval of ``size`` within ``length`` that contains the position ``inside``."""
    low = 0 if inside is None else max(inside - size + 1, 0)
    high = length - size if inside is None else min(inside, length - size)
    return int(torch.randint(low, high + 1, (), generator=generator))


def pad_mask(mask: Tensor, right: int, below: int, ignore_index: int) -> Tensor:
    """Pad a mask (H, W) with the ignore label.

    Raises:
        ValueError: The mask's dtype cannot hold the ignore label, which would become that of a class.
    """
    if mask.dtype == torch.bool or not torch.iinfo(mask.dtype).min <= ignore_index <= torch.iinfo(mask.dtype).max:
        raise ValueError(
            f"a mask of {mask.dtype} cannot be padded with the ignore label {ignore_index}: "
            "give masks of a dtype that holds it, such as int64"
        )
    return F.pad(mask, (0, right, 0, below), value=ignore_index)
