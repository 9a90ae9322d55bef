"""Masks, links to the images, a card and a contact sheet made of annotations."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from aucseg.datasets.annotations.contact_sheet import SheetEntry, choose, draw_sheet
from aucseg.datasets.annotations.images import ImageFiles, size_drawn_on
from aucseg.datasets.annotations.made_folders import CARD_COMMENT
from aucseg.datasets.annotations.model import BACKGROUND, IGNORED, AnnotatedImage, AnnotationError, Annotations
from aucseg.datasets.annotations.painting import Painted, PaintOptions, paint
from aucseg.datasets.card import DatasetCard
from aucseg.datasets.card_layout import Layout
from aucseg.datasets.colors import default_color
from aucseg.datasets.files import SampleError
from aucseg.datasets.naming import split_of_path
from aucseg.datasets.propose import HELD_OUT_SHARE
from aucseg.datasets.tree import normalized
from aucseg.hints import check_choice, closest, shorten
from aucseg.run_files import CONTACT_SHEET_FILE

SHEET_IMAGES = 24


@dataclass
class MaskReport:
    """What became of annotations.

    Attributes:
        card: The card that was written, or None where problems forbade it.
        num_masks: Masks by split.
        num_regions: Regions that were painted.
        problems: What is wrong, each with file and entry.
        notes: What the user should know.
    """

    card: DatasetCard | None = None
    num_masks: dict[str, int] = field(default_factory=dict)
    num_regions: int = 0
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass
class _Job:
    image: AnnotatedImage
    file: str
    split: str
    stem: str = ""


@dataclass
class _Done:
    job: _Job
    problems: list[str]
    painted: Painted | None = None
    exif: str = "error"
    classes: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class _Classes:
    names: tuple[str, ...]
    id_of: dict[str, int]
    unlabelled_id: int
    ignored_id: int


def write_masks(
    annotations: Annotations,
    out: str | Path,
    options: PaintOptions | None = None,
    *,
    on_error: str = "raise",
    empty: str = "keep",
    copy_images: bool = False,
    num_threads: int = 1,
    progress: bool = False,
) -> MaskReport:
    """Writes a folder that trains: `images`, `masks`, `card.yaml` and `contact_sheet.png`.

    All is written into a folder beside `out` first, so that `out` is whole or not there.

    Args:
        annotations: What `read_annotations` gave.
        out: A folder that is not there yet, or is empty.
        options: How regions become pixels.
        on_error: `raise`: with a problem nothing is written; `skip`: the images with problems are left out, and nothing
            is written with problems that are of no single image.
        empty: `keep` or `drop` images without a region; where unlabelled pixels are ignored they are dropped.
        copy_images: Whether images are copied; else symbolic links lead to them, where the system allows.
        num_threads: Threads that paint and write.
        progress: Whether to show a progress bar.

    Returns:
        The report; without a card where nothing was written.

    Raises:
        ValueError: Unknown option or label, no image, no two classes, `out` holds files.
        ImportError: `pycocotools` is missing.
    """
    options = options or PaintOptions()
    check_choice("on_error", on_error, ("raise", "skip"))
    check_choice("empty", empty, ("keep", "drop"))
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out}: is there already; name another folder, or remove it")
    classes = _classes(annotations, options)
    report = MaskReport(problems=list(annotations.problems), notes=list(annotations.notes))
    jobs = _jobs(annotations, report)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        done = _paint_all(jobs, annotations, classes, options, partial, num_threads, progress)
        kept = _collect(done, report, drop_empty=empty == "drop" or classes.unlabelled_id == classes.ignored_id)
        blocking = _blocking(annotations, done, kept)
        report.problems = [*blocking, *report.problems]
        if blocking or (report.problems and on_error == "raise"):
            return report
        if not kept:
            raise ValueError(f"{annotations.root}: no image with annotations is left; {' '.join(report.problems[:3])}")
        wanted = {id(entry) for entry in kept}
        for entry in done:
            if id(entry) not in wanted:
                _mask_path(partial, entry.job).unlink(missing_ok=True)
        for entry in kept:
            _put_image(annotations.root / entry.job.file, _image_path(partial, entry.job), copy_images)
        report.card = _card(out.name, annotations, classes, kept)
        (partial / "card.yaml").write_text(CARD_COMMENT + report.card.to_yaml(), encoding="utf-8")
        _write_sheet(partial, kept, report.card, classes)
        if out.exists():
            out.rmdir()
        # A folder made by mkdtemp is its owner's alone.
        partial.chmod(0o777 & ~_umask())
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return report


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _classes(annotations: Annotations, options: PaintOptions) -> _Classes:
    for label in (*options.ignored, *options.dropped):
        if label not in annotations.labels:
            raise ValueError(f"no class is called {label!r}; {closest(label, annotations.labels)}")
    apart = {*options.ignored, *options.dropped, *IGNORED}
    names = [label for label in annotations.labels if label not in apart]
    is_ignored = (options.unlabelled or ("ignore" if annotations.void else "background")) == "ignore"
    own = next((label for label in names if label.lower() in BACKGROUND), None)
    if not is_ignored:
        names = [own or "background", *(label for label in names if label != own)]
    if len(names) < 2:
        raise ValueError(
            f"{annotations.root}: {', '.join(names) or 'nothing'} is the only class, so there is nothing to tell it "
            "from; make the other pixels a class of their own (--unlabelled background)"
        )
    ignored_id = 255 if len(names) <= 255 else 65535
    id_of = {name: i for i, name in enumerate(names)}
    return _Classes(tuple(names), id_of, ignored_id if is_ignored else 0, ignored_id)


def _place_of(image: AnnotatedImage, files: ImageFiles, report: MaskReport) -> tuple[str, int] | None:
    """As `ImageFiles.find`; None, and a problem in the report, where that finds nothing."""
    try:
        return files.find(image.file_name, image.split)
    except AnnotationError as error:
        # A file that cannot be read does not say which image it means.
        report.problems += image.problems or [f"{image.where}: {error}"]
        return None


def _folder_of(image: AnnotatedImage) -> PurePosixPath:
    return PurePosixPath(image.file_name).parent


def _jobs(annotations: Annotations, report: MaskReport) -> list[_Job]:
    files = ImageFiles(annotations)
    if files.made_folders:
        report.notes.append(f"folders that 'aucseg masks' made are left out: {shorten(files.made_folders, 5)}")
    jobs: list[_Job] = []
    taken: dict[str, _Job] = {}
    twice: set[str] = set()
    found = [(image, *place) for image in annotations.images if (place := _place_of(image, files, report)) is not None]
    # Where images lie as one folder of annotations says, one of the same name elsewhere is not meant.
    as_said = {_folder_of(image) for image, _, shared in found if shared}
    for image, file, shared in found:
        if not shared and _folder_of(image) in as_said:
            report.problems += image.problems or [
                f"{image.where}: there is no image {image.file_name} below {annotations.root}, but {file}, elsewhere"
            ]
            continue
        if file in taken:
            report.problems += image.problems or [
                f"{image.where}: {file} is annotated already, in {taken[file].image.where}"
            ]
            twice.add(file)
            continue
        jobs.append(_Job(image, file, image.split or _split_of(file) or "train"))
        taken[file] = jobs[-1]
    report.problems += [problem for file in sorted(twice) for problem in taken[file].image.problems]
    jobs = [job for job in jobs if job.file not in twice]
    unused = [path for path in files.paths if path not in taken]
    if unused:
        report.notes.append(f"{len(unused)} images are in no annotation and are left out: {shorten(unused, 5)}")
    stems: set[tuple[str, str]] = set()
    for job in sorted(jobs, key=lambda job: job.file):
        path = PurePosixPath(job.file)
        joined = re.sub(r"[/\\]+", "_", str(path.with_suffix("")))
        stem = next(
            stem
            for stem in (path.stem, joined, *(f"{joined}_{path.suffix[1:]}{'_' * i}" for i in range(len(jobs) + 1)))
            if (job.split, normalized(stem)) not in stems
        )
        stems.add((job.split, normalized(stem)))
        job.stem = stem
    return jobs


def _split_of(file: str) -> str | None:
    return split_of_path(str(PurePosixPath(file).parent))


def _mask_path(root: Path, job: _Job) -> Path:
    return root / "masks" / job.split / f"{job.stem}.png"


def _image_path(root: Path, job: _Job) -> Path:
    return root / "images" / job.split / (job.stem + PurePosixPath(job.file).suffix)


def _paint_all(
    jobs: Sequence[_Job],
    annotations: Annotations,
    classes: _Classes,
    options: PaintOptions,
    root: Path,
    num_threads: int,
    progress: bool,
) -> list[_Done]:
    from tqdm import tqdm

    for job in jobs:
        _mask_path(root, job).parent.mkdir(parents=True, exist_ok=True)

    def run(job: _Job) -> _Done:
        done = _Done(job, list(job.image.problems))
        try:
            size, done.exif = size_drawn_on(annotations.root / job.file, job.image.size, relative_to_shown=True)
        except (SampleError, AnnotationError) as error:
            done.problems.append(f"{job.image.where}: {error}")
            return done
        painted = paint(
            job.image,
            size,
            classes.id_of,
            unlabelled_id=classes.unlabelled_id,
            ignored_id=classes.ignored_id,
            options=options,
        )
        done.problems += painted.problems
        done.classes = np.flatnonzero(np.bincount(painted.mask.ravel())).tolist()
        Image.fromarray(painted.mask).save(_mask_path(root, job))
        # The pixels are on disk now.
        painted.mask = painted.mask[:0]
        done.painted = painted
        return done

    with ThreadPoolExecutor(max(1, num_threads)) as pool:
        return list(tqdm(pool.map(run, jobs), total=len(jobs), desc="painting", unit="image", disable=not progress))


def _collect(done: Sequence[_Done], report: MaskReport, drop_empty: bool) -> list[_Done]:
    """Adds up what was painted, and returns the images to keep."""
    report.problems += [problem for entry in done for problem in entry.problems]
    good = [entry for entry in done if not entry.problems and entry.painted is not None]
    without = [entry for entry in good if entry.painted is not None and entry.painted.num_regions == 0]
    empty_splits = {entry.job.split for entry in good}.difference(
        entry.job.split for entry in good if entry.painted is not None and entry.painted.num_regions
    )
    if without:
        what = "are left out" if drop_empty else "are background as a whole (--empty drop leaves them out)"
        report.notes.append(
            f"images without a region {what}: {len(without)}: {shorten([entry.job.file for entry in without], 5)}"
        )
    report.notes += [
        f"no image of {split} has a region: look whether its annotations are missing" for split in sorted(empty_splits)
    ]
    dropped = {id(entry) for entry in without} if drop_empty else set()
    kept = [entry for entry in good if id(entry) not in dropped]
    paintings = [entry.painted for entry in kept if entry.painted is not None]
    report.num_regions = sum(painting.num_regions for painting in paintings)
    contested, vanished = (
        sum(getattr(painting, name) for painting in paintings) for name in ("num_contested", "num_vanished")
    )
    if contested:
        report.notes.append(f"{contested:,} pixels lie in regions of several classes")
    if vanished:
        report.notes.append(f"{vanished:,} regions are smaller than a pixel and leave no trace")
    for entry in kept:
        report.num_masks[entry.job.split] = report.num_masks.get(entry.job.split, 0) + 1
    return kept


def _blocking(annotations: Annotations, done: Sequence[_Done], kept: Sequence[_Done]) -> list[str]:
    """The problems that are of no single image, so that it does not help to leave out images."""
    problems = list(annotations.unplaced)
    paintings = [entry.painted for entry in done if entry.painted is not None and not entry.problems]
    vanished = sum(painting.num_vanished for painting in paintings)
    if vanished and not any(painting.num_regions for painting in paintings):
        problems.append(
            f"{annotations.root}: all regions ({vanished:,}) are smaller than a pixel, so all masks would be empty: "
            "check whether the coordinates are pixels or fractions of the width and height"
        )
    turned = {entry.exif: entry.job.file for entry in kept if entry.exif != "error"}
    if len(turned) > 1:
        problems.append(
            f"{turned['apply']} is annotated as it is shown, {turned['ignore']} as its pixels are stored: turn the "
            "images and remove their orientation tags"
        )
    return problems


def _put_image(source: Path, target: Path, copy: bool) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if not copy:
        try:
            target.symlink_to(source.resolve())
        except OSError:  # Windows allows links to few users, some disks to nobody.
            copy = True
    if copy:
        shutil.copy2(source, target)


def _card(name: str, annotations: Annotations, classes: _Classes, kept: Sequence[_Done]) -> DatasetCard:
    splits = [split for split in ("train", "val", "test") if any(entry.job.split == split for entry in kept)]
    first_is_background = classes.unlabelled_id == 0
    card = DatasetCard(
        name=re.sub(r"\W+", "_", name).strip("_").lower() or "my_data",
        title=name,
        class_names=classes.names,
        palette=tuple(default_color(i if first_is_background else i + 1) for i in range(len(classes.names))),
        splits={split: (Layout(f"images/{split}/*.*", f"masks/{split}/{{stem}}.png"),) for split in splits},
        raw_ids=tuple((i,) for i in range(len(classes.names))),
        ignore_ids=(classes.ignored_id,),
        ignore_index=255 if len(classes.names) <= 255 else -1,
        mask_encoding="gray" if classes.ignored_id == 255 else "gray16",
        exif=next((entry.exif for entry in kept if entry.exif != "error"), "error"),
        source=f"Made from {annotations.format}.",
        held_out_share=None if "val" in splits else HELD_OUT_SHARE,
    )
    return DatasetCard.from_yaml(card.to_yaml(), "the card")


def _write_sheet(root: Path, kept: Sequence[_Done], card: DatasetCard, classes: _Classes) -> None:
    chosen = choose([entry.classes for entry in kept], SHEET_IMAGES)
    entries = [
        SheetEntry(_image_path(root, job), _mask_path(root, job), f"{job.split} {job.file}")
        for job in (kept[i].job for i in chosen)
    ]
    sheet = draw_sheet(
        entries,
        card.class_names,
        dict(enumerate(card.palette)),
        exif=card.exif,
        plain_id=0 if classes.unlabelled_id == 0 else None,
    )
    sheet.save(root / CONTACT_SHEET_FILE)
