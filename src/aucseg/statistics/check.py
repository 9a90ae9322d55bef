"""Counts a data set and checks every file of it, in one pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from aucseg.datasets.counting import MaskScan
from aucseg.datasets.mask_checks import Palettes, describe_soft_edges, find_soft_edges
from aucseg.datasets.pairing import Pair
from aucseg.datasets.scan import scan_samples
from aucseg.datasets.scan_cache import ScanCache
from aucseg.datasets.split import SplitOfFiles
from aucseg.statistics.class_statistics import ClassStatistics

# From this number of unknown ids on they are not forgotten classes: soft edges are looked for, in a few of the files.
_MANY_UNKNOWN = 6
_NUM_LOOKED_AT = 16


@dataclass
class Check:
    """What the check of a data set found.

    Attributes:
        errors: For each sample that cannot be used, its messages.
        unknown: For each raw id outside the card: its pixels, and the files that hold it.
        advice: What the findings together say.
        unused: Image files that no split names; they are not a fault.
        other_splits: For each other split its images.
    """

    errors: list[str] = field(default_factory=list)
    unknown: dict[int, tuple[int, list[str]]] = field(default_factory=dict)
    advice: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    other_splits: dict[str, list[str]] = field(default_factory=dict)

    @property
    def is_clean(self) -> bool:
        """Whether nothing was found."""
        return not self.errors and not self.unknown


def count_and_check(
    dataset: SplitOfFiles,
    *,
    num_workers: int = 0,
    progress: bool = False,
    decode_images: bool = False,
    cache: ScanCache | None = None,
    note: Callable[[MaskScan, int], None] | None = None,
) -> tuple[ClassStatistics, Check]:
    """Counts a data set and checks every file of it; samples that cannot be used go to the check, not the counts.

    Args:
        dataset: The images and masks of a split.
        num_workers: Processes; 0 means this one.
        progress: Whether to show a progress bar.
        decode_images: Whether to decode every image.
        cache: Results of earlier calls.
        note: Called with the scan of each mask that is counted, in train ids, and its place.
    """
    card = dataset.card
    palettes = Palettes()
    statistics = ClassStatistics(card.num_classes, ignore_index=card.ignore_index, class_names=card.class_names)
    check = Check([_missing_message(dataset, pair) for pair in dataset.missing])
    unknown_in: list[int] = []
    scans = scan_samples(dataset, num_workers=num_workers, progress=progress, decode_images=decode_images, cache=cache)
    for sample in scans:
        unknown: dict[int, int] = {}
        if sample.raw is not None:
            scan, unknown = dataset.label_map.map_scan(sample.raw)
            palettes.add(sample.raw, dataset.pairs[sample.index].mask or "")
            for raw, count in unknown.items():
                pixels, files = check.unknown.get(raw, (0, []))
                file = dataset.pairs[sample.index].mask or ""
                # The tiles of a file follow each other.
                check.unknown[raw] = pixels + count, files if files[-1:] == [file] else [*files, file]
            if unknown and len(unknown_in) < _NUM_LOOKED_AT:
                unknown_in.append(sample.index)
            if not sample.errors and not unknown:
                statistics.add_scan(scan)
                if note is not None:
                    note(scan, sample.index)
        check.errors += sample.errors
    # Of a file in tiles each says the same.
    check.errors = list(dict.fromkeys(check.errors))
    check.errors += palettes.describe(raw for ids in card.raw_ids for raw in ids)
    if len(check.unknown) >= _MANY_UNKNOWN:
        edges = find_soft_edges(dataset.read_raw(index) for index in unknown_in)
        check.advice += [] if edges is None else [describe_soft_edges(edges, card.mask_encoding == "rgb")]
    return statistics, check


def _missing_message(dataset: SplitOfFiles, pair: Pair) -> str:
    if not (dataset.root / pair.image).is_file():
        return f"{dataset.root / pair.image}: the split's list names this image, but there is no such file"
    return f"{dataset.root / pair.image}: its mask {pair.mask} is missing; add it, or move the image away"
