"""Images and masks of a split as tensors."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from aucseg.datasets.bands import read_card_image
from aucseg.datasets.card import DatasetCard
from aucseg.datasets.files import SampleError, size_message
from aucseg.datasets.label_map import LabelMap
from aucseg.datasets.mask_files import read_raw_mask
from aucseg.datasets.mask_windows import read_mask_window
from aucseg.datasets.memory_cache import DecodedSamples
from aucseg.datasets.pairing import Pair
from aucseg.datasets.split import SplitOfFiles
from aucseg.datasets.windows import Tile, Window

_logger = logging.getLogger(__name__)

Sample = dict[str, Any]


def decode_sample(
    name: str,
    label_map: LabelMap,
    image: tuple[Path, bytes | None],
    mask: tuple[Path | None, bytes | None],
    tile: Tile | None = None,
    window: Window | None = None,
) -> Sample:
    """Returns the sample made of an image file and a mask file, each a path and its bytes where it is not on disk.

    With a tile and a window of its image only the window is read.

    Raises:
        SampleError: A file that cannot be used, two sizes, an unknown raw id.
    """
    card = label_map.card
    pixels, holds_data = read_card_image(image[0], card, image[1], window)
    sample: Sample = {"image": torch.from_numpy(pixels).permute(2, 0, 1), "name": name}
    path = mask[0]
    if path is not None:
        if tile is None or window is None:
            raw = read_raw_mask(path, card, mask[1])
        else:
            raw = read_mask_window(path, card, window, tile.size).values
        if raw.shape != pixels.shape[:2]:
            raise SampleError(size_message(path, raw.shape, str(image[0]), pixels.shape))
        try:
            labels = label_map(raw)
        except ValueError as error:
            raise SampleError(f"{path}: {error}") from error
        if holds_data is not None:
            labels[~holds_data] = card.ignore_index
        sample["mask"] = torch.from_numpy(labels)
    return sample


class SegmentationDataset(SplitOfFiles, Dataset[Sample]):
    """The images and masks of one split of a data set that a card describes.

    A sample is `{"image": uint8 (3, H, W), "mask": (H, W) train ids, "name": str}`, where the card names `bands`
    with these as channels, float32 where it has a `value_range`; the mask is uint8 where K and the
    ignore label fit, else int64, and missing where the split has no masks. `name` is the image's path below the root
    without its ending.

    An index from a sampler of `aucseg.loading.rare_classes` carries the number of its draw; it is passed on as
    `sample["draw"]`.

    Args:
        card: A card, the name of one that comes with the package, or the path of a card file.
        root: Folder of the data; None for data embedded in the package.
        split: A split that the card names.
        transform: Called with each sample; its result is returned.
        on_error: `raise`, or `skip`: a sample that cannot be read is counted, logged, and the next readable one
            takes its place, as training wants it; `aucseg.loading.evaluation_batches.EvaluationImages` leaves it out.
        follow_symlinks: Whether files may lie outside the root, reached by symbolic links below it (DVC, git-annex, the
            cache of a hub). False where the folder is a stranger's.
        tile: Side in pixels of the windows by which larger images are read, by rasterio: each of their tiles is a
            sample, a window of this side in whose mask the pixels of other tiles are ignored, so that each pixel counts
            once. None reads images whole.
        random_windows: Whether a tile is read, for training, as any window that holds it, drawn by torch's generator
            each time, with the labels of all its pixels.

    Attributes:
        pairs: Paths of image and mask of each sample, below the root, and its tile.
        missing: Pairs of which the image or the mask does not exist; not among the samples.
        label_map: Raw ids to train ids.

    Raises:
        ValueError: Unknown card or split, missing root, no image, images without masks, a tile below 64.
        ImportError: Tiles without rasterio.

    Example:
        >>> from aucseg.datasets import SegmentationDataset
        >>> dataset = SegmentationDataset("freedoom_lt", split="val")
        >>> dataset[0]["image"].shape
        torch.Size([3, 120, 160])
    """

    def __init__(
        self,
        card: DatasetCard | str | Path,
        root: str | Path | None = None,
        split: str = "train",
        transform: Callable[[Sample], Sample] | None = None,
        on_error: str = "raise",
        *,
        follow_symlinks: bool = True,
        tile: int | None = None,
        random_windows: bool = False,
    ) -> None:
        super().__init__(card, root, split, on_error, follow_symlinks=follow_symlinks, tile=tile)
        self.random_windows = random_windows
        self.transform = transform
        self._decoded: DecodedSamples | None = None
        # Shared memory: what a loader's workers skip is counted too.
        self._num_skipped = torch.zeros((), dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]
        self._num_skipped += len(self.missing)

    @property
    def num_skipped(self) -> int:
        """How often a sample was skipped so far, in all worker processes."""
        return int(self._num_skipped)

    def keep_in_memory(self, num_threads: int = 1) -> int:
        """Reads all samples now and keeps them decoded, 4 bytes a pixel of RGB; reading one later gives a copy.

        Loader processes that are forked share the memory. Samples that cannot be read stay errors, or are skipped.

        Args:
            num_threads: Threads that read.

        Returns:
            Bytes of memory.

        Raises:
            ValueError: The samples do not fit into memory, or are tiles.
        """
        if self.tile is not None:
            raise ValueError("images that are read by windows are not kept in memory: leave out the cache, or tile")
        self._decoded = DecodedSamples(self.pairs, self._read_files, num_threads)
        return self._decoded.nbytes

    def __getitem__(self, index: int) -> Sample:
        sample = self.read(index)
        draw = getattr(index, "draw", None)
        if draw is not None:
            sample["draw"] = draw
        return sample if self.transform is None else self.transform(sample)

    def read(self, index: int) -> Sample:
        """Returns a sample without the transform.

        Raises:
            IndexError: No such sample.
            SampleError: With `on_error="raise"`, a file that cannot be used; with "skip", only when no sample can be
                read.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        for step in range(len(self)):
            if (sample := self.read_or_none((index + step) % len(self))) is not None:
                return sample
        raise SampleError(f"{self.root}: not one of the {len(self)} samples of split {self.split!r} can be read")

    def read_or_none(self, index: int) -> Sample | None:
        """Returns this very sample without the transform, None where it cannot be read and is to be skipped.

        Raises:
            SampleError: With `on_error="raise"`, a file that cannot be used.
        """
        try:
            return self._read(self.pairs[index])
        except SampleError as error:
            if self.on_error == "raise":
                raise
            _logger.warning("skipped: %s", error)
            self._num_skipped += 1
            return None

    def _read(self, pair: Pair) -> Sample:
        return self._read_files(pair) if self._decoded is None else self._decoded.sample(pair)

    def _read_files(self, pair: Pair) -> Sample:
        mask_path = None if pair.mask is None else self._inside(pair.mask)
        files = (self._inside(pair.image), None), (mask_path, None)
        if pair.tile is None:
            return decode_sample(pair.name, self.label_map, *files)
        window = pair.tile.random_window(_draw) if self.random_windows else pair.tile.window
        sample = decode_sample(pair.name, self.label_map, *files, pair.tile, window)
        if "mask" in sample and not self.random_windows:
            sample["mask"][torch.from_numpy(pair.tile.outside_core(window))] = self.card.ignore_index
        return sample


def _draw(low: int, high: int) -> int:
    return int(torch.randint(low, high + 1, ()))
