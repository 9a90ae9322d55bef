"""Predict image files: label maps, overlays, score maps and a table of class areas.

The work on files, for any model; `aucseg.inference.predictor` does the work on arrays.
"""

import csv
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from aucseg.datasets.bands import read_card_image
from aucseg.datasets.card import DatasetCard
from aucseg.datasets.files import (
    SampleError,
)
from aucseg.inference.georeference import georeference, write_geotiff
from aucseg.inference.image_files import ImageError, absolute_path, read_with_bits
from aucseg.inference.large_rasters import LargeRaster, label_array, open_large, small_overlay
from aucseg.inference.predictor import Predictor
from aucseg.safe_files import replacing, text_cell, text_of_cell

Array = npt.NDArray[Any]

_AREAS = "areas.csv"
# What is written of an image: folders, and endings in them.
_OUTPUTS = {"labels": (".png", ".tif"), "overlays": (".png",), "scores": (".npy",)}


@dataclass
class PredictionSummary:
    """What became of a list of files.

    Attributes:
        done: Files with a prediction.
        failures: Files without, with the reason.
        pixels: Predicted pixels of each class over all files.
        unscaled: Files of 8 bits a channel, where a `value_range` was given: it does not apply to them.
    """

    done: list[Path] = field(default_factory=list)
    failures: dict[Path, str] = field(default_factory=dict)
    pixels: Array = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    unscaled: list[Path] = field(default_factory=list)


def predict_paths(
    model: Predictor | Callable[[Tensor], Tensor],
    paths: Sequence[str | Path],
    out_dir: str | Path,
    *,
    class_names: Sequence[str],
    palette: Sequence[tuple[int, int, int]],
    overlays: bool = True,
    opacity: float = 0.5,
    scores: bool = False,
    score_dtype: Literal["float32", "float16"] = "float32",
    exif: Literal["apply", "ignore"] | None = None,
    value_range: tuple[float, float] | None = None,
    max_pixels: int = 2**30,
    progress: bool = True,
    card: DatasetCard | None = None,
) -> PredictionSummary:
    """Predicts image files and writes the results.

    A file that cannot be read or predicted is noted and passed over. Every file is written whole or not at all, and the
    tables line by line, so that an interrupted run leaves what it has finished.

    Args:
        model: A `aucseg.inference.predictor.Predictor`, or a callable from images `(B, 3, H, W)` float in
            0..255 to logits.
        paths: Image files, e.g. from `find_images`.
        out_dir: Folder to write to, made if need be:

            - `labels/NAME.png`: class ids, with the palette (16-bit grey without one above 256 classes); of a
              georeferenced raster `labels/NAME.tif`, a GeoTIFF in the same place, where rasterio is installed, and
              so of a raster of more than 128 megapixels, which is then read by windows;
            - `overlays/NAME.png`: the image under the colours of its labels, of such a raster every n-th pixel;
            - `scores/NAME.npy`: class probabilities (softmax), `(K, H, W)` of `score_dtype`;
            - `areas.csv`: image, class_id, class, pixels, share, name (NAME); one line for each class that was
              predicted, and those of earlier predictions that stay in the folder;
            - `errors.csv`: image, error; when there are any. (In tables names that a spreadsheet would take for a
              formula have an apostrophe in front.)

            NAME is the file's path without suffix below the folder that all files share; with its suffix where two
            would collide. What an earlier prediction of this NAME has written there is removed, and what one of the
            same file has, if `areas.csv` lists it (paths are below the working directory), whatever its NAME was.
        class_names: K names.
        palette: K colours `(red, green, blue)` in 0..255.
        overlays: Whether to write overlays.
        opacity: Weight of the colours in them, 0..1.
        scores: Whether to write score maps: 4 K bytes for each pixel.
        score_dtype: Their dtype. In float16, half the size, all probabilities above 0.9998 are equal, so that AUC and
            average precision of a confident model come out lower than they are.
        exif: See `read_photo`; None for what the card says, `"apply"` where it says neither.
        value_range: See `read_photo`.
        max_pixels: See `read_photo`.
        progress: Whether to show a bar.
        card: The card that the model was trained with, where its images have bands or a range of values of their own;
            `value_range` then stands for the card's. Pixels without data are predicted like others.

    Raises:
        ValueError: No paths, an invalid opacity or value range, names and palette of different lengths, or a
            folder that has other files where the predictions go.
        TypeError: The model's logits have another number of classes.
    """
    if not paths:
        raise ValueError("no images to predict")
    if len(class_names) != len(palette):
        raise ValueError(f"{len(class_names)} class names, but {len(palette)} colours")
    if value_range is not None and not value_range[0] < value_range[1]:
        raise ValueError(f"value_range must be two rising numbers, got {value_range}")
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity must be in 0..1, got {opacity}")
    if exif is None:
        exif = "ignore" if card is not None and card.exif == "ignore" else "apply"
    predictor = model if isinstance(model, Predictor) else Predictor(model)
    out_dir = Path(out_dir)
    _refuse_other_files(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    colors = np.array(palette, dtype=np.uint8).reshape(-1, 3)
    writer = _Writer(out_dir, colors, opacity if overlays else None, np.dtype(score_dtype) if scores else None)
    files = [Path(path) for path in paths]
    summary = PredictionSummary(pixels=np.zeros(len(class_names), dtype=np.int64))
    (out_dir / "errors.csv").unlink(missing_ok=True)
    names = output_names(files)
    areas = _Areas(out_dir / _AREAS, files, names)
    with areas:
        for path, name in zip(tqdm(files, unit="image", disable=not progress), names, strict=True):
            for earlier in (name, *areas.replaced_by(path, name)):
                writer.remove(earlier)
            try:
                image, bits = _read_as_trained(path, card, exif, value_range, max_pixels)
                if value_range is not None and bits <= 8:
                    summary.unscaled.append(path)
                if isinstance(image, LargeRaster) and predictor.options.window is None:
                    raise ImageError(f"{path}: too large to go through a model at once: give a window (--window)")
                pixels = writer.predict(predictor, image, path, name)
            # Some networks assert that they know the size of the image.
            except (ValueError, RuntimeError, AssertionError, OSError, MemoryError) as error:
                summary.failures[path] = (str(error) or type(error).__name__).removeprefix(f"{path}: ")
                mode: Literal["a", "w"] = "a" if len(summary.failures) > 1 else "w"
                with _Table(out_dir / "errors.csv", ["image", "error"], mode) as errors:
                    errors.write([path, summary.failures[path]])
                continue
            for class_id in np.flatnonzero(pixels).tolist():
                share = pixels[class_id] / pixels.sum()
                areas.write([path, class_id, class_names[class_id], pixels[class_id], f"{share:.6g}", name])
            summary.done.append(path)
            summary.pixels += pixels
    return summary


def _refuse_other_files(out_dir: Path) -> None:
    for name in _OUTPUTS:
        if not (out_dir / _AREAS).is_file() and (out_dir / name).is_dir() and any((out_dir / name).iterdir()):
            raise ValueError(
                f"{out_dir / name} has files that are not predictions (there is no {_AREAS} beside it), and might be "
                "overwritten: write to another folder (--out)"
            )


@dataclass
class _Writer:
    """Predicts an image and writes what is wanted of it.

    Attributes:
        out_dir: Folder of all outputs.
        colors: (K, 3) uint8.
        opacity: Weight of the colours in overlays; None for no overlays.
        score_dtype: That of score maps; None for no score maps.
    """

    out_dir: Path
    colors: npt.NDArray[np.uint8]
    opacity: float | None
    score_dtype: np.dtype[Any] | None

    def remove(self, name: str) -> None:
        """Removes what an earlier prediction has written of an image, which may be more than is wanted now."""
        for folder, endings in _OUTPUTS.items():
            for ending in endings:
                self._file(folder, name, ending).unlink(missing_ok=True)

    def predict(self, predictor: Predictor, image: Array | LargeRaster, path: Path, name: str) -> npt.NDArray[np.int64]:
        """Writes labels, overlay and scores under a name; returns the number of pixels of each class."""
        is_large = isinstance(image, LargeRaster)
        dtype = np.uint8 if len(self.colors) <= 256 else np.uint16
        with label_array(self.out_dir if is_large else None, image.shape[:2], dtype) as labels:
            pixels = self._fill(labels, predictor, image, name)
            place = georeference(path, labels.shape)
            if place is None and not is_large:
                _save(_label_image(labels, self.colors), self._file("labels", name, ".png"))
            else:
                with replacing(self._file("labels", name, ".tif")) as temporary:
                    write_geotiff(str(temporary), labels, self.colors, place or {})
            if self.opacity is not None:
                mixed = _overlay(image, labels, self.colors, self.opacity)
                _save(mixed, self._file("overlays", name, ".png"))
        return pixels

    def _file(self, folder: str, name: str, ending: str) -> Path:
        """The path of an output, which lies in its folder whatever the name is: files are removed there."""
        below = PurePath(f"{name}{ending}")
        if below.anchor or ".." in below.parts:
            raise ValueError(f"{name!r} cannot name a prediction: it leads out of {self.out_dir / folder}")
        return self.out_dir / folder / below

    def _fill(self, labels: Array, predictor: Predictor, image: Any, name: str) -> npt.NDArray[np.int64]:
        """Predicts the labels `(H, W)` and returns the number of pixels of each class, and writes the scores."""
        num_classes = len(self.colors)
        pixels = np.zeros(num_classes, dtype=np.int64)
        score_path = self._file("scores", name, ".npy")
        with _score_map(score_path, (num_classes, *image.shape[:2]), self.score_dtype) as score_map:
            for place, logits in predictor.blocks(image):
                if len(logits) != num_classes:
                    raise TypeError(f"the model has {len(logits)} classes, but there are names for {num_classes}")
                block = logits.argmax(dim=0).cpu().numpy()
                labels[place] = block
                pixels += np.bincount(block.ravel(), minlength=num_classes)
                if score_map is not None:
                    score_map[(slice(None), *place)] = logits.softmax(dim=0).cpu().numpy()
        return pixels


def _read_as_trained(
    path: Path,
    card: DatasetCard | None,
    exif: str,
    value_range: tuple[float, float] | None,
    max_pixels: int,
) -> tuple[Array | LargeRaster, int]:
    """The image as the model was trained on it: the card's bands, or RGB."""
    card = None if card is None else replace(card, exif=exif)
    if card is not None and card.bands is not None and value_range is not None:
        pairs = ((float(value_range[0]), float(value_range[1])),) * len(card.bands)
        card = replace(card, value_range=pairs)
    try:
        large = open_large(path, card, exif, max_pixels)
        if large is not None:
            return large, 8 if large.card.value_range is None else 16
        if card is None or card.bands is None:
            return read_with_bits(path, exif, value_range, max_pixels)
        pixels, _ = read_card_image(path, card)
    except SampleError as error:
        raise ImageError(str(error)) from error
    return pixels, 8 if card.value_range is None else 16


def _overlay(image: Array | LargeRaster, labels: Array, colors: npt.NDArray[np.uint8], opacity: float) -> Image.Image:
    if isinstance(image, LargeRaster):
        return small_overlay(image, labels, colors, opacity)
    # In 8 bits: floats of a large image would take eight times its memory.
    return Image.blend(Image.fromarray(as_picture(image)), Image.fromarray(colors[labels]), opacity)


def as_picture(image: Array) -> npt.NDArray[np.uint8]:
    """Bands as a picture: the first three, or the first alone in grey."""
    picture = image[..., :3] if image.shape[-1] >= 3 else np.repeat(image[..., :1], 3, axis=2)
    return np.ascontiguousarray(picture.round().astype(np.uint8) if picture.dtype != np.uint8 else picture)


def output_names(paths: Sequence[Path]) -> list[str]:
    """Names the outputs of files: the path below their common folder, without the suffix where that is unique.

    Example:
        >>> output_names([Path("a/x.png"), Path("a/b/x.png"), Path("a/y.png"), Path("a/y.jpg")])
        ['x', 'b/x', 'y.png', 'y.jpg']
        >>> output_names([Path("x.jpg"), Path("x.png"), Path("x.jpg.png")])
        ['x.jpg', 'x.png', 'x.jpg.png']
    """
    absolute = [absolute_path(path) for path in paths]
    root = os.path.commonpath([path.parent for path in absolute])
    relative = [path.relative_to(root) for path in absolute]
    stems = [path.with_suffix("") for path in relative]
    # A stem may be the whole name of another file, too: x.jpg.png beside x.jpg.
    taken = Counter([*relative, *stems])
    return [(path if taken[stem] > 1 else stem).as_posix() for path, stem in zip(relative, stems, strict=True)]


@contextmanager
def _score_map(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any] | None) -> Iterator[Array | None]:
    if dtype is None:
        yield None
        return
    with replacing(path) as temporary:
        score_map = np.lib.format.open_memmap(temporary, mode="w+", dtype=dtype, shape=shape)
        yield score_map
        score_map.flush()


def _label_image(labels: Array, colors: Array) -> Image.Image:
    image = Image.fromarray(labels)
    if labels.dtype == np.uint8:
        image.putpalette(colors.tobytes())
    return image


def _save(image: Image.Image, path: Path) -> None:
    with replacing(path) as temporary:
        image.save(temporary, format="PNG")


class _Table:
    """A CSV file whose lines are on disk as soon as they are written."""

    def __init__(self, path: Path, columns: Sequence[str], mode: Literal["a", "w"] = "w") -> None:
        self._file = path.open(mode, newline="", encoding="utf-8")
        self._writer = csv.writer(self._file)
        if mode == "w":
            self.write(columns)

    def write(self, row: Sequence[Any]) -> None:
        self._writer.writerow([value if isinstance(value, (int, float)) else text_cell(str(value)) for value in row])
        self._file.flush()

    def __enter__(self) -> "_Table":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


class _Areas(_Table):
    """The areas of all predictions in a folder: of those of earlier calls, too, until they are replaced.

    Args:
        path: The table, which an earlier call may have written.
        files: Images of this call.
        names: NAME of each.
    """

    _COLUMNS = ("image", "class_id", "class", "pixels", "share", "name")

    def __init__(self, path: Path, files: Sequence[Path], names: Sequence[str]) -> None:
        self._earlier = self._read(path)
        self._names_of: dict[Path, list[str]] = defaultdict(list)
        for name, rows in self._earlier.items():
            self._names_of[absolute_path(Path(text_of_cell(rows[0][0])))].append(name)
        super().__init__(path, self._COLUMNS)
        to_replace = {*names, *(name for file in files for name in self._names_of.get(absolute_path(file), ()))}
        self._write_earlier([name for name in self._earlier if name not in to_replace])

    def replaced_by(self, file: Path, name: str) -> list[str]:
        """Returns the earlier predictions that the one of a file replaces, whose lines are dropped."""
        names = [name, *self._names_of.get(absolute_path(file), ())]
        return [earlier for earlier in names if self._earlier.pop(earlier, None)]

    def __exit__(self, *exception: object) -> None:
        self._write_earlier(list(self._earlier))  # an interrupted call has not come to them
        super().__exit__(*exception)

    def _write_earlier(self, names: Sequence[str]) -> None:
        for name in names:
            for row in self._earlier.pop(name):
                self.write(row)

    def _read(self, path: Path) -> dict[str, list[list[str]]]:
        """The lines of each NAME; none of a table of other columns."""
        found: dict[str, list[list[str]]] = defaultdict(list)
        try:
            with path.open(newline="", encoding="utf-8") as file:
                columns, *rows = csv.reader(file)
        except (FileNotFoundError, ValueError, csv.Error):  # ValueError: empty, or no UTF-8
            return found
        for row in rows if tuple(columns) == self._COLUMNS else ():
            if len(row) == len(columns):  # the last line may have been cut off
                found[text_of_cell(row[-1])].append(row)
        return found
