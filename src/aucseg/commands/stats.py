"""``aucseg stats``: check a data set, count its classes, say what the long tail asks for."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from aucseg.datasets.annotations.recognize import PANOPTIC, describe_annotations
from aucseg.datasets.bands import band_statistics
from aucseg.datasets.card import DatasetCard
from aucseg.datasets.counting import MaskScan
from aucseg.datasets.duplicates import find_duplicates
from aucseg.datasets.file_report import report_files
from aucseg.datasets.hub_folder import unpack_hub_dataset
from aucseg.datasets.mask_checks import Palettes, describe_soft_edges, find_soft_edges
from aucseg.datasets.naming import split_of_path
from aucseg.datasets.pairing import Pair
from aucseg.datasets.propose import HELD_OUT_SHARE, propose_card
from aucseg.datasets.scan import scan_samples
from aucseg.datasets.scan_cache import ScanCache
from aucseg.datasets.split import SplitOfFiles
from aucseg.loading.sequences import sequences_of_names
from aucseg.statistics.class_statistics import ClassStatistics
from aucseg.statistics.summary import format_report, make_report, write_chart, write_csv

_EXAMPLES = """examples:
  aucseg stats cityscapes --root data/cityscapes --workers 8
  aucseg stats my_folder --write-card my.yaml        propose a card for a folder of images and masks
  aucseg stats --hf my_dataset --mask-column label --write-card my.yaml
  aucseg stats my.yaml --root my_folder --json stats.json --csv classes.csv --chart classes.png
  aucseg stats my.yaml --shards 'train-{000..099}.tar' --save part1.json
  aucseg stats my.yaml --merge part1.json part2.json

exit status: 0 all is well, 1 the check found problems, 2 the command could not run
"""
_MAX_SHOWN = 20
# So many unknown ids are not forgotten classes: soft edges are looked for, in a few of the files.
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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``aucseg stats`` to a parser."""
    parser.description = "Check every file of a data set, count its classes, and say what its long tail asks for."
    parser.epilog = _EXAMPLES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "card", nargs="?", help="card that comes with the package, card file (.yaml), or a folder without a card"
    )
    parser.add_argument("--root", type=Path, help="folder of the data")
    parser.add_argument(
        "--hf",
        metavar="DATASET",
        help="data set of the library datasets in the place of a folder: what it has saved to disk, parquet files, or "
        "a name on the hub",
    )
    parser.add_argument("--image-column", default="image", metavar="NAME", help="its column of images (default: image)")
    parser.add_argument("--mask-column", metavar="NAME", help="its column of masks (default: mask, label, ...)")
    parser.add_argument("--split", default="train", help="split of the card (default: train)")
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="processes (default: one for each core)"
    )
    parser.add_argument(
        "--on-error",
        choices=("raise", "skip"),
        default="raise",
        help="skip: bad files are listed and left out, and are not counted as failures",
    )
    parser.add_argument(
        "--decode-images",
        action="store_true",
        help="decode every image, to find truncated ones and copies in other formats (slower)",
    )
    parser.add_argument(
        "--follow-symlinks",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="allow files outside the root, reached by links (default: yes)",
    )
    parser.add_argument(
        "--tile",
        type=int,
        metavar="PIXELS",
        help="read larger images and masks by windows of this side, each of their tiles counted as an image, as "
        "data.tile does in training",
    )
    parser.add_argument("--shards", nargs="+", metavar="TAR", help="count tar shards instead of a folder")
    parser.add_argument("--merge", nargs="+", type=Path, metavar="JSON", help="add up statistics written by --save")
    parser.add_argument("--cache", type=Path, help="file of results (default: in the user's cache folder)")
    parser.add_argument("--no-cache", action="store_true", help="read every file anew")
    parser.add_argument("--batch-size", type=int, default=8, help="batch that the advice is about (default: 8)")
    parser.add_argument(
        "--delta", type=float, default=0.01, help="all classes with probability 1 - DELTA (default: 0.01)"
    )
    parser.add_argument("--write-card", type=Path, metavar="YAML", help="write the proposed card of a folder")
    parser.add_argument("--save", type=Path, metavar="JSON", help="write the counts, for --merge and the samplers")
    parser.add_argument("--json", type=Path, help="write the report as JSON")
    parser.add_argument("--csv", type=Path, help="write the class table as CSV")
    parser.add_argument("--chart", type=Path, help="draw the class table (.png, .svg, .pdf)")


def run(args: argparse.Namespace) -> int:
    """Run ``aucseg stats``; returns the exit status."""
    try:
        return _run(args)
    except BrokenPipeError:
        # The reader of our output, `head` for example, has seen enough; Python would complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, ImportError, OSError, RuntimeError) as error:
        print(f"aucseg stats: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            "aucseg stats: interrupted; what was read is in the cache, the next run goes on from there", file=sys.stderr
        )
        return 130


def count_and_check(
    dataset: SplitOfFiles,
    *,
    num_workers: int = 0,
    progress: bool = False,
    decode_images: bool = False,
    cache: ScanCache | None = None,
    note: Callable[[MaskScan], None] | None = None,
) -> tuple[ClassStatistics, Check]:
    """Count a data set and check every file of it; samples that cannot be used go to the check, not the counts.

    Args:
        dataset: The images and masks of a split.
        num_workers: Processes; 0 means this one.
        progress: Whether to show a progress bar.
        decode_images: Whether to decode every image.
        cache: Results of earlier calls.
        note: Called with the scan of each mask that is counted, in train ids.
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
                    note(scan)
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


def _run(args: argparse.Namespace) -> int:
    if args.workers < 0 or args.batch_size < 1:
        raise ValueError("--workers must be at least 0 and --batch-size at least 1")
    if args.hf is not None:
        _unpack(args)
    elif args.card is None:
        raise ValueError("what is to be counted? Give a card, a folder, or --hf DATASET")
    cache = None if args.no_cache or args.merge or args.shards else ScanCache.open(args.cache or default_cache())
    try:
        card, root = card_and_root(args.card, args.root, num_workers=args.workers, cache=cache, tile=args.tile)
        if root != Path(args.card) and args.write_card is not None:
            raise ValueError(f"--write-card proposes a card for a folder; {args.card} is a card already")
        statistics, check = _count(args, card, root, cache)
    finally:
        if cache is not None:
            cache.close()
    _print_check(check, statistics, card)
    if statistics.num_labelled == 0:
        print("no labelled pixel could be counted", file=sys.stderr)
        return 1
    report = make_report(statistics, card, batch_size=args.batch_size, delta=args.delta)
    print(format_report(report))
    _write(args, statistics, report | {"check": _check_as_json(check)})
    if args.write_card is not None:
        groups = statistics.groups()
        card = replace(card, groups=groups, tail_classes=tuple(groups["tail"]))
        _write_card(args.write_card, card, Path(args.card))
    return 0 if check.is_clean or args.on_error == "skip" else 1


def _unpack(args: argparse.Namespace) -> None:
    """Puts the folder of a data set of the library ``datasets`` in the place of the folder that is not given."""
    if args.root is not None:
        raise ValueError("--root and --hf both say where the data is: leave one of them out")
    folder = unpack_hub_dataset(args.hf, image_column=args.image_column, mask_column=args.mask_column)
    print(f"{args.hf}: its images and masks are in {folder}")
    if args.card is None:
        args.card = str(folder)
    else:
        args.root = folder


def card_and_root(
    source: str, root: str | Path | None, *, num_workers: int, cache: ScanCache | None, tile: int | None = None
) -> tuple[DatasetCard, Path | None]:
    """The card and its root: a proposed one where the source is a folder, which then is the root.

    Raises:
        ValueError: No such card, or a folder of which no card can be made.
    """
    is_folder = Path(source).is_dir() and source not in DatasetCard.available()
    if not is_folder:
        _refuse_annotations(Path(source))
        return DatasetCard.load(source), None if root is None else Path(root)
    folder = Path(source)
    # Panoptic files look like masks of colours.
    annotations = describe_annotations(folder)
    if annotations is not None and PANOPTIC in annotations:
        raise ValueError(annotations)
    try:
        card = propose_card(folder, num_workers=num_workers, progress=True, cache=cache, tile=tile)
    except ValueError as error:
        raise ValueError(annotations or error) from error
    if annotations is not None:
        print(f"note: {annotations}")
    layout = next(iter(card.splits.values()))[0]
    print(
        f"proposed card: {card.num_classes} classes, {card.mask_encoding} masks, splits {', '.join(card.splits)}, "
        f"images {layout.images}, masks {layout.masks}, ignored ids {list(card.ignore_ids)}"
    )
    return card, folder


def _refuse_annotations(path: Path) -> None:
    """Raises ``ValueError`` where a card's place is taken by a file of annotations."""
    if path.suffix.lower() in (".json", ".xml") and path.is_file():
        message = describe_annotations(path)
        if message is not None:
            raise ValueError(message)


def _count(
    args: argparse.Namespace, card: DatasetCard, root: Path | None, cache: ScanCache | None
) -> tuple[ClassStatistics, Check]:
    if args.merge:
        parts = [ClassStatistics.load(path) for path in args.merge]
        return sum(parts[1:], parts[0]), Check()
    if args.shards:
        from aucseg.datasets.shards import StreamedSegmentationDataset

        stream = StreamedSegmentationDataset(card, args.shards, on_error=args.on_error)
        statistics = ClassStatistics.from_dataset(stream, progress=True)
        return statistics, Check(errors=["samples left out, see the log"] * stream.num_skipped)
    split = args.split if args.split in card.splits or args.split != "train" else next(iter(card.splits))
    # Missing files are findings of the check like all others: they are listed, and the exit status tells.
    dataset = SplitOfFiles(card, root, split, on_error="skip", follow_symlinks=args.follow_symlinks, tile=args.tile)
    files = report_files(card, dataset.root, is_proposed=root is not None and root == Path(args.card))
    lines = [*files.lines([split]), *_describe_tiles(dataset), *_describe_validation(card, dataset)]
    print("\n".join(lines), flush=True)
    statistics, check = count_and_check(
        dataset, num_workers=args.workers, progress=True, decode_images=args.decode_images, cache=cache
    )
    check.errors += files.problems(without=split)
    check.errors += find_duplicates(
        dataset.root,
        {name: found.pairs for name, found in files.splits.items()},
        card,
        decode=args.decode_images,
        cache=cache,
        num_threads=args.workers,
    )
    check.unused, check.other_splits = files.unused, files.others([split])
    if card.bands is not None and not check.errors:
        print(_describe_bands(dataset))
    return statistics, check


def _describe_bands(dataset: SplitOfFiles) -> str:
    """The settings that normalize the bands, from all pixels of all images."""
    images = (dataset.read_image(index) for index in range(len(dataset)))
    mean, std = ([round(value, 4) for value in values] for values in band_statistics(images))
    return (
        f"bands {list(dataset.card.bands or ())}: mean {mean}, std {std} of 0..255\n"
        f"  for the configuration: --model.mean '{mean}' --model.std '{std}' --data.fill '{mean}'"
    )


def _describe_tiles(dataset: SplitOfFiles) -> list[str]:
    num_tiles = sum(pair.tile is not None for pair in dataset.pairs)
    num_images = len({pair.image for pair in dataset.pairs if pair.tile is not None})
    return [f"tiles: {num_tiles:,} of {_number(num_images, 'large image')}, each counted as one"] if num_tiles else []


def _describe_validation(card: DatasetCard, dataset: SplitOfFiles) -> list[str]:
    """What runs validate on where the card has no split for it."""
    if any(split_of_path(split) == "val" for split in card.splits):
        return []
    sequences = sequences_of_names([pair.name for pair in dataset.pairs])
    whole = "" if sequences is None else f" (whole sequences, of the {max(sequences) + 1:,} that their names tell)"
    if card.held_out_share is not None:
        share = f"{card.held_out_share:g}"
        return [f"validation: no split for it, so runs hold out {share} of the training images{whole}: held_out_share"]
    return [
        "validation: no split for it, and 'aucseg fit' needs one: hold out a part of the training images"
        f"{whole}, with 'held_out_share: {HELD_OUT_SHARE}' in the card or --data.held_out_share {HELD_OUT_SHARE}"
    ]


def _print_check(check: Check, statistics: ClassStatistics, card: DatasetCard) -> None:
    if check.is_clean:
        print(f"check: {statistics.num_images} samples, no problem found")
        return
    for line in _shorten(check.errors):
        print(f"check: {line}")
    for raw, (pixels, files) in sorted(check.unknown.items()):
        shown = ", ".join(_shorten(files, 5))
        print(f"check: id {raw} is not in the card: {pixels:,} pixels in {_number(len(files), 'file')}: {shown}")
    for line in check.advice:
        print(f"check: {line}")
    if check.unknown and card.hint:
        print(f"check: {card.hint}")
    print(f"check: {statistics.num_images} samples are counted; those named above are not")


def _number(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def _shorten(items: Sequence[str], limit: int = _MAX_SHOWN) -> list[str]:
    more = [f"and {len(items) - limit} more (all of them: --json)"] if len(items) > limit else []
    return [*items[:limit], *more]


def _check_as_json(check: Check) -> dict[str, Any]:
    unknown = {str(raw): {"pixels": pixels, "files": files} for raw, (pixels, files) in check.unknown.items()}
    return {
        "errors": check.errors,
        "unknown_ids": unknown,
        "advice": check.advice,
        "unused_files": check.unused,
        "other_splits": check.other_splits,
    }


def _write(args: argparse.Namespace, statistics: ClassStatistics, report: dict[str, Any]) -> None:
    if args.save is not None:
        statistics.save(args.save)
    if args.json is not None:
        args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if args.csv is not None:
        write_csv(report, args.csv)
    if args.chart is not None:
        write_chart(report, args.chart)


def _write_card(path: Path, card: DatasetCard, root: Path) -> None:
    comment = (
        f"# Proposed by `aucseg stats` from what it found in {root.resolve().name}: give the classes their names, also "
        "in the\n# groups (by share of the labelled pixels), and check the rest.\n"
    )
    path.write_text(comment + card.to_yaml(), encoding="utf-8")
    print(f"\nwrote {path}: give the classes their names, then run aucseg stats {path} --root {root}")


def default_cache() -> Path:
    """The file of earlier results, in the user's cache folder."""
    folder = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(folder).expanduser() / "aucseg" / "stats.sqlite"
