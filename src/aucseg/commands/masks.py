"""`aucseg masks`: masks and a card from the annotations of other tools."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from aucseg.commands.option_parser import output_folder
from aucseg.run_files import CONTACT_SHEET_FILE
from aucseg.runtime.resources import num_cores

_EXAMPLES = """examples:
  aucseg masks my_export --out my_data               what `aucseg stats my_export` recognized
  aucseg masks annotations/instances_train2017.json annotations/instances_val2017.json --images images --out coco
  aucseg masks my_export --out my_data --unlabelled ignore --boxes ignore

reads: COCO JSON (polygons, run lengths, panoptic PNG), YOLO segments, LabelMe, CVAT for images 1.1, Label Studio JSON,
and what Roboflow exports as COCO or YOLO

exit status: 0 all is well, 1 problems were found and nothing was written, 2 the command could not run
"""
_MAX_SHOWN = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `aucseg masks` to a parser."""
    parser.description = "Make masks and a card from polygons, run lengths or panoptic files."
    parser.epilog = _EXAMPLES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("annotations", nargs="+", type=Path, help="annotation files, or a folder of them")
    add(
        "--out",
        type=output_folder,
        required=True,
        help="new folder: images (links), masks, card.yaml, contact_sheet.png",
    )
    add("--images", type=Path, help="folder of the images (default: that of the annotations)")
    add("--segments", type=Path, help="folder of COCO's panoptic PNG files (default: beside the JSON file)")
    add("--format", help="format to read where a folder holds several, as `aucseg stats` calls it")
    add(
        "--overlap",
        choices=("small", "last"),
        default="small",
        help="which region gets a pixel that several hold: the smaller one (default), or the later one in the file",
    )
    add(
        "--unlabelled",
        choices=("background", "ignore"),
        help="what pixels without a region are (default: background; ignore in panoptic files)",
    )
    add(
        "--boxes",
        choices=("error", "fill", "ignore"),
        default="error",
        help="boxes are not outlines: refuse (default), fill, or ignore their pixels",
    )
    add("--ignore", nargs="+", default=[], metavar="LABEL", help="labels whose pixels are ignored")
    add("--drop", nargs="+", default=[], metavar="LABEL", help="labels whose regions are left out")
    add("--empty", choices=("keep", "drop"), default="keep", help="images without a region (default: keep)")
    add("--copy-images", action="store_true", help="copy the images instead of linking to them")
    add("--on-error", choices=("raise", "skip"), default="raise", help="skip: leave out the images with problems")
    add("--workers", type=int, default=num_cores(), help="threads (default: one for each core)")


def run(args: argparse.Namespace) -> int:
    """Runs `aucseg masks`; returns the exit status."""
    from aucseg.datasets.annotations import PaintOptions, read_annotations, write_masks

    options = PaintOptions(
        overlap=args.overlap,
        unlabelled=args.unlabelled,
        boxes=args.boxes,
        ignored=tuple(args.ignore),
        dropped=tuple(args.drop),
    )
    annotations = read_annotations(args.annotations, format=args.format, images=args.images, segments=args.segments)
    report = write_masks(
        annotations,
        args.out,
        options,
        on_error=args.on_error,
        empty=args.empty,
        copy_images=args.copy_images,
        num_threads=args.workers,
        progress=True,
    )
    print(f"read: {annotations.format}, {len(annotations.images):,} images, {len(annotations.labels)} labels")
    for note in report.notes:
        print(f"note: {note}")
    for problem in report.problems[:_MAX_SHOWN]:
        print(f"problem: {problem}")
    if len(report.problems) > _MAX_SHOWN:
        print(f"problem: and {len(report.problems) - _MAX_SHOWN:,} more")
    if report.card is None:
        way_out = (
            ", or leave out the images that hold them (--on-error skip)"
            if args.on_error == "raise"
            else ": not all problems are of single images that can be left out"
        )
        print(
            f"aucseg masks: {len(report.problems):,} problems; nothing was written. Fix the annotations{way_out}",
            file=sys.stderr,
        )
        return 1
    counts = ", ".join(f"{split} {count:,}" for split, count in report.num_masks.items())
    print(
        f"wrote {args.out}: masks of {counts} images, {report.num_regions:,} regions, {report.card.num_classes} classes"
    )
    print(f"look at {args.out / CONTACT_SHEET_FILE}, then run: aucseg stats {shlex.quote(str(args.out))}")
    return 0
