"""`aucseg stats`: check a data set, count its classes, say what the long tail asks for."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from aucseg.commands.data_source import Source, card_and_root, default_cache
from aucseg.commands.option_parser import output_file
from aucseg.commands.plan_options import add_plan_arguments, request_of
from aucseg.datasets.bands import band_statistics
from aucseg.datasets.card import DatasetCard
from aucseg.datasets.duplicates import find_duplicates
from aucseg.datasets.file_report import report_files
from aucseg.datasets.hub_folder import unpack_hub_dataset
from aucseg.datasets.naming import split_of_path
from aucseg.datasets.propose import HELD_OUT_SHARE
from aucseg.datasets.scan_cache import ScanCache
from aucseg.datasets.split import SplitOfFiles
from aucseg.hints import add_note, counted
from aucseg.loading.sequences import sequences_of_names
from aucseg.run_files import CARD_FILE
from aucseg.runtime.plots import check_picture
from aucseg.runtime.resources import num_cores
from aucseg.safe_files import json_bytes, write_named
from aucseg.statistics.check import Check, count_and_check
from aucseg.statistics.class_statistics import ClassStatistics
from aucseg.statistics.summary import format_report, make_report, write_chart, write_csv

_EXAMPLES = """examples:
  aucseg stats cityscapes --root data/cityscapes --workers 8
  aucseg stats my_folder --write-card my.yaml        propose a card for a folder of images and masks
  aucseg stats --hf my_dataset --mask-column label --write-card my.yaml
  aucseg stats my_folder --write-config run.yaml     the plan of 'aucseg fit my_folder', to be edited
  aucseg stats my.yaml --root my_folder --json stats.json --csv classes.csv --chart classes.png
  aucseg stats my.yaml --shards 'train-{000..099}.tar' --save part1.json
  aucseg stats my.yaml --merge part1.json part2.json

exit status: 0 all is well, 1 the check found problems, 2 the command could not run
"""
_MAX_SHOWN = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `aucseg stats` to a parser."""
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
    parser.add_argument("--workers", type=int, default=num_cores(), help="processes (default: one for each core)")
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
    parser.add_argument("--cache", type=output_file, help="file of results (default: in the user's cache folder)")
    parser.add_argument("--no-cache", action="store_true", help="read every file again")
    parser.add_argument("--batch-size", type=int, default=8, help="batch that the advice is about (default: 8)")
    parser.add_argument(
        "--delta", type=float, default=0.01, help="all classes with probability 1 - DELTA (default: 0.01)"
    )
    parser.add_argument("--write-card", type=output_file, metavar="YAML", help="write the proposed card of a folder")
    parser.add_argument(
        "--write-config",
        type=output_file,
        metavar="YAML",
        help="write the plan of 'aucseg fit FOLDER' as a configuration",
    )
    add_plan_arguments(parser)
    parser.add_argument(
        "--save", type=output_file, metavar="JSON", help="write the counts, for --merge and the samplers"
    )
    parser.add_argument("--json", type=output_file, help="write the report as JSON")
    parser.add_argument("--csv", type=output_file, help="write the class table as CSV")
    parser.add_argument("--chart", type=output_file, help="draw the class table (.png, .svg, .pdf)")


def run(args: argparse.Namespace) -> int:
    """Runs `aucseg stats`; returns the exit status."""
    try:
        return _run(args)
    except BrokenPipeError:
        # The reader of our output, `head` for example, has seen enough; Python would complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt as interrupt:
        add_note(interrupt, "what was read is in the cache, the next run goes on from there")
        raise


def _run(args: argparse.Namespace) -> int:
    if args.workers < 0 or args.batch_size < 1:
        raise ValueError("--workers must be at least 0 and --batch-size at least 1")
    if args.write_config is not None and (args.merge or args.shards):
        raise ValueError("--write-config plans for a folder of images and masks, not for --merge or --shards")
    if args.write_config is None and (args.time or args.weights):
        raise ValueError("--time and --weights belong to --write-config, which plans a training")
    if args.chart is not None:
        check_picture(args.chart)
    if args.hf is not None:
        _unpack(args)
    elif args.card is None:
        raise ValueError("what is to be counted? Give a card, a folder, or --hf DATASET")
    cache = None if args.no_cache or args.merge or args.shards else ScanCache.open(args.cache or default_cache())
    try:
        source = card_and_root(args.card, args.root, num_workers=args.workers, cache=cache, tile=args.tile)
        if not source.is_proposed and args.write_card is not None:
            already = f"holds one, {CARD_FILE}" if source.is_folder else "is a card"
            raise ValueError(f"--write-card proposes a card for a folder; {args.card} {already} already")
        card = source.card
        statistics, check = _count(args, source, cache)
    finally:
        if cache is not None:
            cache.close()
    _print_check(check, statistics, card)
    if statistics.num_labelled == 0:
        print("no labelled pixel could be counted", file=sys.stderr)
        _write_without_counts(args, check, card)
        return 1
    report = make_report(statistics, card, batch_size=args.batch_size, delta=args.delta)
    print(format_report(report))
    _write(args, statistics, report | {"check": _check_as_json(check)})
    if args.write_card is not None:
        groups = statistics.groups()
        card = replace(card, groups=groups, tail_classes=tuple(groups["tail"]))
        _write_card(args.write_card, card, Path(args.card))
    if not check.is_clean and args.on_error != "skip":
        if args.write_config is not None:
            print(
                f"\n{args.write_config} was not written, since a training would stop at the files above: fix them, or "
                "leave them out with --on-error skip",
                file=sys.stderr,
            )
        return 1
    if args.write_config is not None:
        write_config(args)
    return 0


def _unpack(args: argparse.Namespace) -> None:
    """Puts the folder of a data set of the library `datasets` in the place of the folder that is not given."""
    if args.root is not None:
        raise ValueError("--root and --hf both say where the data is: leave one of them out")
    folder = unpack_hub_dataset(args.hf, image_column=args.image_column, mask_column=args.mask_column)
    print(f"{args.hf}: its images and masks are in {folder}")
    if args.card is None:
        args.card = str(folder)
    else:
        args.root = folder


def _count(args: argparse.Namespace, source: Source, cache: ScanCache | None) -> tuple[ClassStatistics, Check]:
    card, root = source.card, source.root
    if args.merge:
        if len({path.resolve() for path in args.merge}) < len(args.merge):
            raise ValueError("--merge lists a file twice, whose images would count twice")
        parts = [ClassStatistics.load(path) for path in args.merge]
        for path, part in zip(args.merge, parts, strict=True):
            if notice := part.check_classes(card, path):
                print(notice, file=sys.stderr)
        return sum(parts[1:], parts[0]), Check()
    if args.shards:
        from aucseg.datasets.shards import StreamedSegmentationDataset

        stream = StreamedSegmentationDataset(card, args.shards, on_error=args.on_error)
        statistics = ClassStatistics.from_dataset(stream, progress=True)
        return statistics, Check(errors=["samples left out, see the log"] * stream.num_skipped)
    split = args.split if args.split in card.splits or args.split != "train" else next(iter(card.splits))
    # Missing files are findings of the check like all others: they are listed, and the exit status tells.
    dataset = SplitOfFiles(card, root, split, on_error="skip", follow_symlinks=args.follow_symlinks, tile=args.tile)
    files = report_files(card, dataset.root, is_proposed=source.is_proposed)
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
        held_out=not _has_validation(card),
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
    return [f"tiles: {num_tiles:,} of {counted(num_images, 'large image')}, each counted as one"] if num_tiles else []


def _has_validation(card: DatasetCard) -> bool:
    return any(split_of_path(split) == "val" for split in card.splits)


def _describe_validation(card: DatasetCard, dataset: SplitOfFiles) -> list[str]:
    """What runs validate on where the card has no split for it."""
    if _has_validation(card):
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
        print(f"check: {counted(statistics.num_images, 'image')}, no problem found")
        return
    for line in _shorten(check.errors):
        print(f"check: {line}")
    for raw, (pixels, files) in sorted(check.unknown.items()):
        shown = ", ".join(_shorten(files, 5))
        print(f"check: id {raw} is not in the card: {pixels:,} pixels in {counted(len(files), 'file')}: {shown}")
    for line in check.advice:
        print(f"check: {line}")
    if check.unknown and card.hint:
        print(f"check: {card.hint}")
    print(f"check: {counted(statistics.num_images, 'image')} counted, without those named above")


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
        write_named(args.json, json_bytes(report, indent=1))
    if args.csv is not None:
        write_csv(report, args.csv)
    if args.chart is not None:
        write_chart(report, args.chart)


def _write_without_counts(args: argparse.Namespace, check: Check, card: DatasetCard) -> None:
    """Where nothing could be counted: what was found all the same, and what is not written."""
    if args.json is not None:
        write_named(args.json, json_bytes({"check": _check_as_json(check)}, indent=1))
    if args.write_card is not None:
        _write_card(args.write_card, card, Path(args.card))
    counts = {"--save": args.save, "--csv": args.csv, "--chart": args.chart, "--write-config": args.write_config}
    if unwritten := [f"{option} {path}" for option, path in counts.items() if path is not None]:
        print(f"not written, as there is nothing to write: {', '.join(unwritten)}", file=sys.stderr)


def write_config(args: argparse.Namespace) -> None:
    """Writes the plan as a configuration, and beside it the card of a folder that has none."""
    from aucseg.commands.plan import write_plan_of

    options = {"--data.train_split": args.split, "--data.on_error": args.on_error}
    defaults = {"--data.train_split": "train", "--data.on_error": "raise"}
    given = {name: value for name, value in options.items() if value != defaults[name]}
    request = request_of(args.card, args, given)
    if args.write_card is not None:  # with the names that it may be given there
        request.source, request.root = str(args.write_card), args.card
    print()
    write_plan_of(request, args.write_config)


def _write_card(path: Path, card: DatasetCard, root: Path) -> None:
    comment = (
        f"# Proposed by `aucseg stats` from what it found in {root.resolve().name}: give the classes their names, also "
        "in the\n# groups (by share of the labelled pixels), and check the rest.\n"
    )
    data = (comment + card.to_yaml()).encode()
    if path.is_file() and path.read_bytes() != data:
        raise ValueError(
            f"{path} exists and is another card, perhaps with names of yours: move it, or name another file"
        )
    write_named(path, data)
    print(
        f"\nwrote {path}: give the classes their names, then run "
        f"aucseg stats {shlex.quote(str(path))} --root {shlex.quote(str(root))}"
    )
