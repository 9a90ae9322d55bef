"""Data sets of Hugging Face's library `datasets` as folders of images and masks."""

from __future__ import annotations

import hashlib
import io
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from aucseg.datasets.files import SampleError, without_pixel_limit
from aucseg.datasets.mask_files import whole_numbers
from aucseg.datasets.naming import split_of_path
from aucseg.hints import closest, import_extra
from aucseg.safe_files import cache_folder

# What people call the column of masks.
MASK_COLUMNS = ("mask", "label", "labels", "annotation", "segmentation", "segmentation_mask", "semantic_mask", "seg")
_ENDINGS = {"JPEG": "jpg", "TIFF": "tif", "MPO": "jpg"}
_NOT_IN_NAMES = re.compile(r"[^\w.-]+")


def unpack_hub_dataset(
    source: Any,
    *,
    image_column: str = "image",
    mask_column: str | None = None,
    folder: str | Path | None = None,
) -> Path:
    """Writes the images and masks of a data set of `datasets` into a folder, which cards, training and all else take.

    The bytes of the files stay as they are in the data set. What was unpacked once is found again, as long as the data
    set is the same.

    Args:
        source: A `Dataset` or `DatasetDict`; the folder of `save_to_disk`, a folder of parquet files, or one such
            file; else the name of a data set on the hub, which is downloaded.
        image_column: The column of the images.
        mask_column: The column of the masks: images, or arrays (H, W) of whole numbers. By default the column that
            there is of `mask`, `label`, `annotation`, ...
        folder: Where to; by default a folder in the user's cache.

    Returns:
        A folder with `SPLIT/images` and `SPLIT/masks` for each split, such as `train`, `val`, `test`.

    Raises:
        ValueError: No such data set or column, or a row without image or mask.
        ImportError: `datasets` is missing.
    """
    splits, name = _splits_of(source)
    columns = {split: _mask_column(rows, image_column, mask_column, split) for split, rows in splits.items()}
    key = repr([(split, rows._fingerprint, image_column, columns[split]) for split, rows in splits.items()])
    digest = hashlib.sha256(key.encode()).hexdigest()[:16]
    target = Path(folder) if folder is not None else cache_folder() / "hub" / digest / name
    mark = target / ".aucseg-unpacked"
    target.parent.mkdir(parents=True, exist_ok=True)
    # Processes of one machine write it once.
    with import_extra("filelock", "hf").FileLock(target.parent / f"{target.name}.lock"):
        if mark.is_file() and mark.read_text(encoding="utf-8") == digest:
            return target
        if target.exists():
            raise ValueError(f"{target} is there already, with other files: give another folder")
        with tempfile.TemporaryDirectory(dir=target.parent) as made:
            part = Path(made) / "data"
            usual = {split: split_of_path(split) or split for split in splits}
            for split, rows in splits.items():
                is_taken = list(usual.values()).count(usual[split]) > 1
                _write(rows, part / (split if is_taken else usual[split]), image_column, columns[split])
            (part / mark.name).write_text(digest, encoding="utf-8")
            part.rename(target)
    return target


def root_of(data: Mapping[str, Any]) -> str | None:
    """Returns the folder of a run's data, given the options of its data module: `root`, else that of `hf`."""
    if data.get("root") is not None or data.get("hf") is None:
        root: str | None = data.get("root")
        return root
    columns = {key: data[key] for key in ("image_column", "mask_column") if data.get(key) is not None}
    return str(unpack_hub_dataset(data["hf"], **columns))


def _splits_of(source: Any) -> tuple[dict[str, Any], str]:
    """The splits of a data set, and a name for it."""
    datasets = import_extra("datasets", "hf")
    name = "data"
    if isinstance(source, (str, Path)):
        path = Path(source)
        name = _NOT_IN_NAMES.sub("_", path.stem if path.is_file() else path.name) or name
        try:
            if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
                source = datasets.load_from_disk(str(path))
            elif path.is_file():
                source = datasets.load_dataset(path.suffix[1:], data_files=str(path))  # nosec B615 - a file on disk
            else:
                source = datasets.load_dataset(str(source))  # nosec B615 - the user names it; no code is run
        # The library raises many kinds of errors, of the network among them.
        except Exception as error:
            raise ValueError(
                f"data set {str(source)!r} cannot be loaded ({str(error).splitlines()[0] if str(error) else error!r}): "
                "give the folder of save_to_disk, a parquet file or a folder of them, or a name on the hub"
            ) from error
    if isinstance(source, datasets.Dataset):
        # One table has no splits; `load_dataset(..., split="test")` knows which one it is.
        return {str(source.split or "train"): source}, name
    if not isinstance(source, datasets.DatasetDict):
        raise ValueError(f"{type(source).__name__} is no Dataset or DatasetDict of the library datasets")
    return dict(source), name


def _mask_column(rows: Any, image_column: str, mask_column: str | None, split: str) -> str:
    known = rows.column_names
    if mask_column is None:
        mask_column = next((name for name in MASK_COLUMNS if name in known and name != image_column), None)
        if mask_column is None:
            raise ValueError(f"split {split!r}: which column holds the masks? Give mask_column; {', '.join(known)}")
    for option, column in (("image_column", image_column), ("mask_column", mask_column)):
        if column not in known:
            raise ValueError(f"split {split!r} has no {option} {column!r}; {closest(column, known)}")
    return mask_column


def _write(rows: Any, folder: Path, image_column: str, mask_column: str) -> None:
    datasets = import_extra("datasets", "hf")
    for column in (image_column, mask_column):
        if isinstance(rows.features[column], datasets.Image):
            rows = rows.cast_column(column, datasets.Image(decode=False))
        elif column == image_column or isinstance(rows.features[column], (datasets.Value, datasets.ClassLabel)):
            raise ValueError(f"column {column!r} holds {rows.features[column]}, not images")
    rows = rows.select_columns([image_column, mask_column])
    names = _names(rows.select_columns([image_column]), image_column)
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    for name, row in zip(names, rows, strict=True):
        for kind, column in (("images", image_column), ("masks", mask_column)):
            if row[column] is None:
                raise ValueError(f"row {name} has no {column}; leave it out of the data set (Dataset.filter)")
            _write_entry(row[column], folder / kind / name)


def _names(rows: Any, image_column: str) -> list[str]:
    """The names of the files, which tell sequences, where the data set has kept them; else numbers."""
    stems = [PurePosixPath((row[image_column] or {}).get("path") or "").stem for row in rows]
    # With a dot in front they would be hidden files, which are never data.
    names = [_NOT_IN_NAMES.sub("_", stem).lstrip(".") for stem in stems]
    if all(names) and len({name.lower() for name in names}) == len(names):
        return names
    return [f"{index:06}" for index in range(len(names))]


def _write_entry(entry: Any, path: Path) -> None:
    """Writes an image as its bytes are, or an array of ids; `path` has no ending yet."""
    if not isinstance(entry, Mapping):
        try:
            ids = whole_numbers(np.asarray(entry), Path(f"row {path.name}"), "its mask")
            np.save(path.with_name(f"{path.name}.npy"), ids)
        except SampleError:
            raise
        except (ValueError, TypeError, OverflowError) as error:
            raise ValueError(f"row {path.name}: its mask is not an array (H, W) of whole numbers: {error}") from error
        return
    content = entry.get("bytes")
    if content is None:
        content = Path(entry["path"]).read_bytes()
    try:
        with without_pixel_limit(), Image.open(io.BytesIO(content)) as image:
            kind = image.format or "png"
    except UnidentifiedImageError as error:
        raise ValueError(f"row {path.name}: not a readable image, {len(content)} bytes") from error
    except Exception as error:
        raise ValueError(f"row {path.name}: not a readable image: {error}") from error
    path.with_name(f"{path.name}.{_ENDINGS.get(kind, kind.lower())}").write_bytes(content)
