"""What the long tail of a data set looks like: counts, groups, batch size, tau and the bound."""

from __future__ import annotations

import base64
import json
import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from aucseg.datasets.counting import GRID, MaskScan, scan_mask, unpack_cells
from aucseg.hints import difference_of_classes
from aucseg.safe_files import json_bytes, write_named
from aucseg.statistics.bound import bound_terms
from aucseg.statistics.groups import HEAD_SHARE, TAIL_SHARE, groups_by_share

if TYPE_CHECKING:
    from torch import Tensor

    from aucseg.datasets.card import DatasetCard
    from aucseg.datasets.dataset import SegmentationDataset

_FORMAT = "aucseg class statistics 1"
# The arrays and numbers of which statistics consist, beside the classes of each image.
_SUMMED_ARRAYS = ("pixel_counts", "image_counts", "labelled_counts", "cell_counts", "seen_counts")
_ARRAYS = (*_SUMMED_ARRAYS, "max_pixels")
_NUMBERS = ("num_images", "num_ignored", "max_image_pixels")
Counts = npt.NDArray[np.int64]
Shares = npt.NDArray[np.float64]


class ClassStatistics:
    """Pixels and images per class; everything is a sum or a maximum, so statistics of parts add up with `+`.

    Args:
        num_classes: Number of classes K.
        ignore_index: Label that is not counted.
        class_names: Names of the classes, for tables; optional.

    Raises:
        ValueError: No class, an ignore label that is a class, or another number of names.

    Attributes:
        num_images: Images counted.
        num_ignored: Ignored pixels.
        pixel_counts: int64 (K,), pixels of each class.
        image_counts: int64 (K,), images that hold each class.
        max_pixels: int64 (K,), the most pixels of each class in one image.
        labelled_counts: int64 (K,), labelled pixels of all images that hold the class.
        cell_counts: int64 (K, 8, 8), images with the class in each cell of an 8 x 8 grid laid over the image.
        seen_counts: int64 (K,), images in which the grid's sample points met the class.
        max_image_pixels: Pixels of the largest image.

    Example:
        >>> import numpy as np
        >>> statistics = ClassStatistics(3)
        >>> statistics.update(np.array([[0, 0, 0, 1], [0, 0, 255, 255]]))
        >>> statistics.update(np.array([[0, 0, 0, 0], [0, 0, 2, 2]]))
        >>> statistics.frequency.round(3).tolist(), statistics.presence.tolist()
        ([0.786, 0.071, 0.143], [1.0, 0.5, 0.5])
        >>> statistics.min_batch_size(delta=0.01), statistics.tau
        (9, 4.0)
    """

    def __init__(self, num_classes: int, *, ignore_index: int = 255, class_names: Sequence[str] | None = None) -> None:
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {num_classes}")
        if 0 <= ignore_index < num_classes:
            raise ValueError(f"ignore_index {ignore_index} is one of the {num_classes} classes; take another, e.g. -1")
        if class_names is not None and len(class_names) != num_classes:
            raise ValueError(f"class_names has {len(class_names)} names for {num_classes} classes")
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.class_names = tuple(class_names) if class_names is not None else None
        self.num_images = 0
        self.num_ignored = 0
        self.max_image_pixels = 0
        self.pixel_counts: Counts = np.zeros(num_classes, np.int64)
        self.image_counts: Counts = np.zeros(num_classes, np.int64)
        self.max_pixels: Counts = np.zeros(num_classes, np.int64)
        self.labelled_counts: Counts = np.zeros(num_classes, np.int64)
        self.cell_counts: Counts = np.zeros((num_classes, GRID, GRID), np.int64)
        self.seen_counts: Counts = np.zeros(num_classes, np.int64)
        # One row of packed bits an image: which classes it holds. Samplers and the simulation of batches need it.
        self._rows: list[bytes] = []

    @classmethod
    def from_dataset(
        cls, dataset: SegmentationDataset | Iterable[Mapping[str, Any]], *, num_workers: int = 0, progress: bool = False
    ) -> ClassStatistics:
        """Counts a `SegmentationDataset`, reading its masks only, or anything that yields samples.

        Args:
            dataset: With a `card`; samples that cannot be read raise or are left out as its `on_error` says. Image
                `i` of the statistics is sample `i` of the data set as long as none is left out.
            num_workers: Processes that read masks; 0 means this one. Not for streams, whose loader has its own.
            progress: Whether to show a progress bar.

        Raises:
            ValueError: The data set has no card, or holds labels outside 0..K-1.
            ChildProcessError: A process that reads masks died.
        """
        from tqdm import tqdm

        card = getattr(dataset, "card", None)
        if card is None:
            raise ValueError(
                "ClassStatistics.from_dataset needs a data set with a card; for any other masks make "
                "ClassStatistics(num_classes) and call update(mask) for each"
            )
        statistics = cls(card.num_classes, ignore_index=card.ignore_index, class_names=card.class_names)
        if not hasattr(dataset, "mask_path"):
            for sample in tqdm(dataset, desc="counting", unit="image", disable=not progress):
                statistics.update(sample["mask"])
            return statistics

        from aucseg.datasets.scan import scan_dataset

        for result in scan_dataset(cast("SegmentationDataset", dataset), num_workers=num_workers, progress=progress):
            statistics.add_scan(result)
        return statistics

    def update(self, mask: Tensor | npt.ArrayLike) -> None:
        """Counts one mask (H, W) of train ids, or a batch (B, H, W), as tensor or array.

        Volumes (B, D, H, W) count as images, not as slices, by `update(masks.flatten(1, 2))`.

        Raises:
            TypeError: The mask holds neither integers nor truth values.
            ValueError: Another shape, or a label outside 0..K-1 that is not the ignore label.
        """
        array = np.asarray(mask.numpy(force=True)) if hasattr(mask, "numpy") else np.asarray(mask)
        if array.dtype == bool:
            array = array.view(np.uint8)
        if not np.issubdtype(array.dtype, np.integer):
            raise TypeError(
                f"a mask holds integers (train ids), got {array.dtype}; cast it with .long() or .astype(int)"
            )
        if array.ndim not in (2, 3):
            raise ValueError(
                f"a mask has shape (H, W), a batch (B, H, W), got {array.shape}; of volumes (B, D, H, W) give "
                "masks.flatten(1, 2)"
            )
        scans = [scan_mask(np.ascontiguousarray(single)) for single in (array if array.ndim == 3 else array[None])]
        for scan in scans:  # of a batch that is refused nothing counts
            self._check_labels(scan)
        for scan in scans:
            self.add_scan(scan)

    def _check_labels(self, scan: MaskScan) -> None:
        outside = ((scan.ids < 0) | (scan.ids >= self.num_classes)) & (scan.ids != self.ignore_index)
        if outside.any():
            raise ValueError(
                f"label {scan.ids[outside][0]} ({scan.counts[outside][0]} pixels) is outside 0..{self.num_classes - 1} "
                f"and is not the ignore label {self.ignore_index}; map raw ids to train ids first (data set card), or "
                "pass the right num_classes"
            )

    def add_scan(self, scan: MaskScan) -> None:
        """Counts one image, given the scan of its mask of train ids.

        Raises:
            ValueError: A label outside 0..K-1 that is not the ignore label.
        """
        self._check_labels(scan)
        valid = scan.ids != self.ignore_index
        ids, counts = scan.ids[valid], scan.counts[valid]
        cells = unpack_cells(scan.cells[valid])
        self.num_images += 1
        self.num_ignored += int(scan.counts[~valid].sum())
        self.max_image_pixels = max(self.max_image_pixels, scan.height * scan.width)
        self.pixel_counts[ids] += counts
        self.image_counts[ids] += 1
        self.max_pixels[ids] = np.maximum(self.max_pixels[ids], counts)
        self.labelled_counts[ids] += counts.sum()
        self.cell_counts[ids] += cells
        self.seen_counts[ids] += cells.any(axis=(1, 2))
        row = np.zeros(self.num_classes, bool)
        row[ids] = True
        self._rows.append(np.packbits(row).tobytes())

    def __add__(self, other: object) -> ClassStatistics:
        """Returns the statistics of both parts together; the images of `other` come after those of `self`."""
        if not isinstance(other, ClassStatistics):
            return NotImplemented
        for name in ("num_classes", "ignore_index", "class_names"):
            if getattr(self, name) != getattr(other, name):
                raise ValueError(
                    f"statistics with {name} {getattr(self, name)} and {getattr(other, name)} do not add up; count "
                    "both with one card"
                )
        total = ClassStatistics(self.num_classes, ignore_index=self.ignore_index, class_names=self.class_names)
        for name in (*_SUMMED_ARRAYS, "num_images", "num_ignored"):
            setattr(total, name, getattr(self, name) + getattr(other, name))
        total.max_pixels = np.maximum(self.max_pixels, other.max_pixels)
        total.max_image_pixels = max(self.max_image_pixels, other.max_image_pixels)
        total._rows = self._rows + other._rows
        return total

    def __radd__(self, other: object) -> ClassStatistics:
        """Lets `sum()` of statistics work, which starts from 0."""
        return self if other == 0 else NotImplemented

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ClassStatistics) and self._state() == other._state()

    __hash__ = None  # type: ignore[assignment]

    def __str__(self) -> str:
        from aucseg.statistics.summary import format_classes  # which imports this module

        return format_classes(self)

    @property
    def num_labelled(self) -> int:
        """Labelled pixels: all but the ignored."""
        return int(self.pixel_counts.sum())

    @property
    def frequency(self) -> Shares:
        """float64 (K,): share of the labelled pixels; sums to 1 (all 0 where nothing is labelled)."""
        return self.pixel_counts / max(self.num_labelled, 1)

    @property
    def presence(self) -> Shares:
        """float64 (K,): share of the images that hold the class, the p_c of the batch-size rule."""
        return self.image_counts / max(self.num_images, 1)

    @property
    def mean_pixels(self) -> Shares:
        """float64 (K,): mean number of pixels of the class in an image, over all images."""
        return self.pixel_counts / max(self.num_images, 1)

    @property
    def mean_pixels_where_present(self) -> Shares:
        """float64 (K,): mean number of pixels of the class over the images that hold it (0 where none does)."""
        return self.pixel_counts / np.maximum(self.image_counts, 1)

    @property
    def image_classes(self) -> npt.NDArray[np.bool_]:
        """Bool (N, K): whether image i holds class c."""
        return np.unpackbits(self._packed_rows(), axis=1, count=self.num_classes).astype(bool)

    @property
    def imbalance_ratio(self) -> float:
        """Pixels of the commonest class over those of the rarest class that occurs (NaN where none does)."""
        counts = self.pixel_counts[self.pixel_counts > 0]
        return float(counts.max() / counts.min()) if len(counts) else math.nan

    @property
    def tau(self) -> float:
        """How unevenly the classes are spread over the images: `(max_c n_max(c) / n_mean(c))^2`.

        n_max is the largest and n_mean the mean number of pixels of a class in an image, the mean over all images, as
        in the bound of AUCSeg (Han et al., NeurIPS 2024). Classes that never occur are left out.
        """
        occurs = self.pixel_counts > 0
        if not occurs.any():
            return math.nan
        return float((self.max_pixels[occurs] / self.mean_pixels[occurs]).max() ** 2)

    @property
    def fixedness(self) -> Shares:
        """float64 (K,): how far a class keeps to one place: 1 always the same, 0 anywhere; NaN below 2 images.

        With p_g the share of the images with the class that show it in cell g of an 8 x 8 grid, `sum p^2 / sum p` is
        the chance that a cell of the class in one image is the class in another; it is rescaled so that chance
        agreement gives 0.
        """
        with np.errstate(divide="ignore", invalid="ignore"):
            share = self.cell_counts / self.seen_counts[:, None, None]
            area = share.sum((1, 2))
            chance = area / GRID**2
            value: Shares = ((share**2).sum((1, 2)) / area - chance) / (1 - chance)
        value[(self.seen_counts < 2) | ~np.isfinite(value)] = np.nan
        return value

    def groups(self, *, head: float = HEAD_SHARE, tail: float = TAIL_SHARE) -> dict[str, list[int]]:
        """Returns `{"head": [class ids], "middle": [...], "tail": [...]}` by share of the labelled pixels.

        Args:
            head: A class with at least this share belongs to the head.
            tail: A class with less than this share belongs to the tail; one that never occurs has the share 0.

        Raises:
            ValueError: Unless 0 <= tail <= head <= 1.
        """
        if not 0 <= tail <= head <= 1:
            raise ValueError(f"groups needs 0 <= tail <= head <= 1, not tail={tail}, head={head}")
        return groups_by_share(self.pixel_counts.tolist(), head=head, tail=tail)

    def min_batch_size(self, delta: float = 0.01) -> int:
        """Returns the batch size at which all classes occur with probability at least `1 - delta`.

        `B >= log(delta / K) / log(1 - min_c p_c)` (Han et al., NeurIPS 2024), K and the minimum over the classes that
        occur at all: a class that never occurs is in no batch.

        Raises:
            ValueError: `delta` outside (0, 1), or no class occurs.
        """
        if not 0 < delta < 1:
            raise ValueError(f"delta is a probability between 0 and 1, got {delta}")
        presence = self.presence[self.image_counts > 0]
        if len(presence) == 0:
            raise ValueError("no class occurs in these statistics; count some masks first")
        if presence.min() == 1:
            return 1
        return max(1, math.ceil(math.log(delta / len(presence)) / math.log1p(-presence.min())))

    def batch_coverage(self, batch_size: int, *, trials: int = 1000, seed: int = 0) -> float:
        """Returns the share of random batches, drawn with replacement, that hold every class that occurs at all.

        Args:
            batch_size: Images in a batch, at least 1.
            trials: Batches to draw, at least 1.
            seed: Of the draws.

        Raises:
            ValueError: `batch_size` or `trials` below 1, or statistics without an image.
        """
        if batch_size < 1 or trials < 1:
            raise ValueError(f"batch_size and trials must be at least 1, got {batch_size} and {trials}")
        if self.num_images == 0:
            raise ValueError("no image in these statistics; count some masks first")
        rng = np.random.default_rng(seed)
        packed = self._packed_rows()
        everything = np.bitwise_or.reduce(packed)
        hits = 0
        for _ in range(trials):
            batch = rng.integers(0, self.num_images, batch_size)
            hits += np.array_equal(np.bitwise_or.reduce(packed[batch]), everything)
        return hits / trials

    def generalization_bound(
        self,
        *,
        delta: float = 0.05,
        mu: float = 1.0,
        constants: tuple[float, float, float] = (1.0, 1.0, 1.0),
        pixels_per_image: int | None = None,
    ) -> dict[str, float]:
        """Returns the terms of the generalization bound of AUCSeg; the formula is in `aucseg.statistics.bound`.

        Args:
            delta: The bound holds with probability `1 - delta`.
            mu: Lipschitz constant of the risk of a sample.
            constants: A, B, C, which the paper leaves open.
            pixels_per_image: k; the largest image by default.

        Raises:
            ValueError: No labelled image, or an argument out of its range.
        """
        if self.num_images == 0 or math.isnan(self.tau):
            raise ValueError("no labelled image in these statistics; count some masks first")
        return bound_terms(
            num_images=self.num_images,
            pixels_per_image=self.max_image_pixels if pixels_per_image is None else pixels_per_image,
            num_classes=self.num_classes,
            tau=self.tau,
            delta=delta,
            mu=mu,
            constants=constants,
        )

    def _packed_rows(self) -> npt.NDArray[np.uint8]:
        return np.frombuffer(b"".join(self._rows), np.uint8).reshape(self.num_images, (self.num_classes + 7) // 8)

    def _state(self) -> dict[str, Any]:
        return {
            "format": _FORMAT,
            **{name: getattr(self, name) for name in ("num_classes", "ignore_index", *_NUMBERS)},
            "class_names": None if self.class_names is None else list(self.class_names),
            **{name: getattr(self, name).tolist() for name in _ARRAYS},
            "image_classes": base64.b64encode(zlib.compress(b"".join(self._rows))).decode(),
        }

    def save(self, path: str | Path) -> None:
        """Writes the statistics as JSON; `load` reads them back."""
        write_named(Path(path), json_bytes(self._state()))

    @classmethod
    def load(cls, path: str | Path) -> ClassStatistics:
        """Reads statistics that `save` wrote.

        Raises:
            ValueError: The file is not such a file, or its parts do not fit together.
            OSError: It cannot be read.
        """
        try:
            statistics, rows = cls._parse(json.loads(Path(path).read_text(encoding="utf-8")))
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, zlib.error) as error:
            raise ValueError(
                f"{path}: not class statistics that this version wrote: {error}; count the data again"
            ) from error
        width = (statistics.num_classes + 7) // 8
        statistics._rows = [rows[i : i + width] for i in range(0, len(rows), width)]
        return statistics

    def check_classes(self, card: DatasetCard, source: str | Path) -> str | None:
        """Refuses statistics of other classes than those of a card.

        Args:
            card: The card that they are used with.
            source: The file that they are from, for messages.

        Returns:
            A note where the class names differ, as after a renaming; None where all is alike.

        Raises:
            ValueError: Another number of classes, or the same names in another order.
        """
        if self.class_names is None:
            if self.num_classes == card.num_classes:
                return None
            difference, may_be_renamed = f"{self.num_classes} there, {card.num_classes} in the card", False
        elif (found := difference_of_classes(self.class_names, card.class_names, "there")) is None:
            return None
        else:
            difference, may_be_renamed = found
        if may_be_renamed:
            return f"{source}: its class names differ from those in the card {card.name!r}: {difference}"
        raise ValueError(
            f"{source}: counts of other classes than those of the card {card.name!r}: {difference}; count again with "
            "'aucseg stats'"
        )

    @classmethod
    def _parse(cls, state: dict[str, Any]) -> tuple[ClassStatistics, bytes]:
        """The statistics in a parsed file, without `_rows`, and these as bytes."""
        if state["format"] != _FORMAT:
            raise ValueError("another format")
        num_classes = state["num_classes"]
        # A file must not make this process allocate more than it holds.
        if type(num_classes) is not int or num_classes != len(state["pixel_counts"]):
            raise ValueError(f"pixel_counts does not hold {num_classes!r} numbers")
        statistics = cls(num_classes, ignore_index=state["ignore_index"], class_names=state["class_names"])
        for name in _ARRAYS:
            array = np.array(state[name])
            if array.shape != getattr(statistics, name).shape or array.dtype != np.int64 or array.min() < 0:
                raise ValueError(f"{name} must hold counts in the shape {getattr(statistics, name).shape}")
            setattr(statistics, name, array)
        for name in _NUMBERS:
            if type(state[name]) is not int or state[name] < 0:
                raise ValueError(f"{name} is {state[name]!r}")
            setattr(statistics, name, state[name])
        num_bytes = (num_classes + 7) // 8 * statistics.num_images
        rows = zlib.decompressobj().decompress(base64.b64decode(state["image_classes"]), num_bytes + 1)
        if len(rows) != num_bytes:
            raise ValueError(f"image_classes does not hold {num_bytes} bytes")
        return statistics, rows
