"""Batches of evaluation images: their order, and what becomes of unequal sizes and of images that cannot be read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler, default_collate

from aucseg.datasets import SegmentationDataset
from aucseg.datasets.files import SampleError

# In a sample the name of an image that was left out, in a batch a list of these.
LEFT_OUT = "left_out"
_PIXELS = ("image", "mask")
_READERS = 8


class EvaluationImages(Dataset[dict[str, Any]]):
    """The images of a data set, none of them twice: one that cannot be read is left out where such are skipped.

    In training the next one takes its place; in an evaluation that one would count twice.

    Args:
        dataset: The images, its transform included.
    """

    def __init__(self, dataset: SegmentationDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        """All images, those that cannot be read among them."""
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = self.dataset.read_or_none(index)
        if sample is None:
            return {LEFT_OUT: self.dataset.pairs[index].name}
        return sample if self.dataset.transform is None else self.dataset.transform(sample)

    @property
    def num_left_out(self) -> int:
        """How often an image was left out so far, in all worker processes."""
        return self.dataset.num_skipped - len(self.dataset.missing)


def collate_any_size(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Makes a batch of samples; images and masks of unequal sizes stay lists.

    Args:
        samples: Dicts with `"image"` (C, H, W) and `"mask"` (H, W), or as `EvaluationImages` gives those left out.

    Returns:
        The batch of torch's `default_collate`: images (B, C, H, W) and masks (B, H, W). Where the sizes differ, or all
        samples were left out, lists of B tensors instead. The names of those left out are under `"left_out"`.

    Example:
        >>> import torch
        >>> small, large = ({"image": torch.zeros(3, n, n), "mask": torch.zeros(n, n)} for n in (4, 6))
        >>> collate_any_size([small, small])["image"].shape
        torch.Size([2, 3, 4, 4])
        >>> [tuple(image.shape) for image in collate_any_size([small, large])["image"]]
        [(3, 4, 4), (3, 6, 6)]
    """
    left_out = [sample[LEFT_OUT] for sample in samples if LEFT_OUT in sample]
    if left_out:
        readable = [sample for sample in samples if LEFT_OUT not in sample]
        of_these = collate_any_size(readable) if readable else {key: [] for key in (*_PIXELS, "name")}
        return {**of_these, LEFT_OUT: left_out}
    if len({tuple(sample[key].shape for key in _PIXELS) for sample in samples}) == 1:
        batch: dict[str, Any] = default_collate(list(samples))
        return batch
    rest = [{key: value for key, value in sample.items() if key not in _PIXELS} for sample in samples]
    return {**default_collate(rest), **{key: [sample[key] for sample in samples] for key in _PIXELS}}


def same_size_parts(batch: dict[str, Any]) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """The parts of a batch that go through a model together: those of equal sizes of image and mask.

    Args:
        batch: `image` and `mask` as `collate_any_size` gives them.

    Yields:
        Positions in the batch, images (B, C, H, W), masks (B, H, W).

    Example:
        >>> import torch
        >>> masks = [torch.zeros(4, 4), torch.zeros(6, 6), torch.zeros(4, 4)]
        >>> batch = {"image": [mask.expand(3, -1, -1) for mask in masks], "mask": masks}
        >>> [(positions, tuple(images.shape)) for positions, images, _ in same_size_parts(batch)]
        [([0, 2], (2, 3, 4, 4)), ([1], (1, 3, 6, 6))]
    """
    images, masks = batch["image"], batch["mask"]
    if isinstance(images, Tensor) and isinstance(masks, Tensor):
        yield list(range(len(images))), images, masks
        return
    groups: dict[tuple[Any, ...], list[int]] = {}
    for position, (image, mask) in enumerate(zip(images, masks, strict=True)):
        groups.setdefault((tuple(image.shape), tuple(mask.shape)), []).append(position)
    for positions in groups.values():
        yield positions, torch.stack([images[i] for i in positions]), torch.stack([masks[i] for i in positions])


def single_images(batch: dict[str, Any]) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """The images of a batch one by one, as `same_size_parts` yields them."""
    for position, (image, mask) in enumerate(zip(batch["image"], batch["mask"], strict=True)):
        yield [position], image[None], mask[None]


class EvaluationBatches(Sampler[list[int]]):
    """Batches in order, dealt to the processes in turn, each image once; before them a rehearsal, where one is wanted.

    Args:
        length: Number of images, at least one for each process.
        batch_size: Images in a batch; fewer where a process would get none otherwise: one without a batch would miss
            the sums over all processes.
        rank: This process.
        world_size: Number of processes.
        rehearse: Asked at each start; an index means that the whole batch with this image comes first, on every
            process, and then again in its place.

    Raises:
        ValueError: Fewer images than processes.

    Example:
        >>> list(EvaluationBatches(5, 2)), list(EvaluationBatches(5, 2, rank=1, world_size=2))
        ([[0, 1], [2, 3], [4]], [[2, 3]])
        >>> list(EvaluationBatches(5, 2, rehearse=lambda: 4))
        [[4], [0, 1], [2, 3], [4]]
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        rehearse: Callable[[], int | None] | None = None,
    ) -> None:
        if length < world_size:
            raise ValueError(f"{length} images for {world_size} processes")
        size = min(batch_size, length // world_size)
        self._all = [list(range(start, min(start + size, length))) for start in range(0, length, size)]
        self._own = self._all[rank::world_size]
        self._size = size
        self._rehearse = rehearse

    def __len__(self) -> int:
        """This process's batches, without the rehearsal."""
        return len(self._own)

    def __iter__(self) -> Iterator[list[int]]:
        largest = None if self._rehearse is None else self._rehearse()
        if largest is not None:
            yield self._all[largest // self._size]
        yield from self._own


def largest_image(dataset: SegmentationDataset) -> int:
    """The index of the image with the most pixels, from the files' headers; unreadable files count as empty."""

    def pixels(index: int) -> int:
        try:
            height, width = dataset.image_size(index)
        except SampleError:  # reported where the image is read
            return 0
        return height * width

    # Threads hide the latency of a network disk.
    with ThreadPoolExecutor(_READERS) as readers:
        sizes = list(readers.map(pixels, range(len(dataset))))
    return max(range(len(sizes)), key=sizes.__getitem__)
