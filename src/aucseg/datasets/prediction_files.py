"""Predictions of any framework, label maps and scores, read beside the truth that they are measured by."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from aucseg.datasets.card import DatasetCard
from aucseg.datasets.colors import pack_color
from aucseg.datasets.files import Array, SampleError, check_exists
from aucseg.datasets.label_map import LabelMap
from aucseg.datasets.mask_files import RawMask, encoding_of_mode, is_map_shape, mode_and_format, npy_header, read_mask
from aucseg.datasets.prediction_names import files_of_other_splits, match_predictions, prediction_files
from aucseg.datasets.tree import ending_of
from aucseg.hints import check_choice, shorten

# Of an NPZ file with several arrays; the first two are nnU-Net's.
_SCORE_KEYS = ("probabilities", "softmax", "scores", "logits", "arr_0")


class PredictionFiles:
    """The predictions in a folder for the images of a split.

    Label maps are images (ids, or the card's colours) or arrays (H, W); scores are floating-point arrays (K, H, W) or
    (H, W, K), with two classes also (1, H, W), in NPY or NPZ files. An image may have both: its labels are then those
    of the label map.

    Args:
        folder: The folder, with its subfolders.
        card: The card of the data.
        names: Paths of the images below their root, without ending.
        ids: Whether label maps hold the card's ids, `raw`, or `train` ids 0..K-1; None to see from the files.

    Attributes:
        labels: File of each image that has a label map, below the folder.
        scores: File of each image that has scores, or an array that cannot be read.
        missing: Images without a prediction.
        extra: Files that belong to none of the images.
        ids: `raw` or `train`.

    Raises:
        ValueError: No predictions there, names that fit twice, or label maps whose ids may be either.
    """

    def __init__(self, folder: Path, card: DatasetCard, names: Sequence[str], ids: str | None = None) -> None:
        check_choice("ids", ids, (None, "raw", "train"))
        self.folder, self.card = folder, card
        files, _ = prediction_files(folder, names)
        patterns = [layout.images for layouts in card.splits.values() for layout in layouts]
        of_other_splits = files_of_other_splits(files, names, patterns)
        kinds = {file: self._kind_of(file) for file in files if file not in of_other_splits}
        self.labels, scores, unreadable = (
            match_predictions([file for file in kinds if kinds[file] == kind], names)
            for kind in ("labels", "scores", "unreadable")
        )
        self.scores = scores | unreadable  # where they are read it is said what is wrong with them
        self.missing = [name for name in names if name not in self.labels and name not in self.scores]
        self.extra = sorted(set(files) - {*self.labels.values(), *scores.values(), *unreadable.values()})
        if len(self.missing) == len(names):
            others = f"; {len(of_other_splits)} lie in folders of other splits" if of_other_splits else ""
            raise ValueError(
                f"none of the {len(files)} predictions in {folder} ({shorten(files, 3)}) has the name of one of the "
                f"{len(names)} images ({shorten(names, 3)}){others}: name each like its image"
            )
        self._label_maps: dict[str, LabelMap] = {}
        self.ids = ids or self._ids_seen()

    def read_labels(self, name: str, truth: Array) -> Array:
        """Reads a label map as train ids.

        Args:
            name: An image in `labels`.
            truth: (H, W) train ids; what is predicted where the truth is ignored may be anything.

        Returns:
            (H, W) integers, 0..K-1 wherever the truth counts.

        Raises:
            SampleError: A file that cannot be read, of another size, or with pixels of no class.
        """
        path = self.folder / self.labels[name]
        encoding = self._encoding_of(path)
        raw = self._read_raw(path, encoding)
        values = raw.values
        _check_size(path, values.shape, truth.shape)
        label_map = self._label_map(path, raw, encoding)
        labels = label_map(values)
        no_class = (labels == label_map.card.ignore_index) & (truth != self.card.ignore_index)
        if no_class.any():
            found = np.unique(values[no_class])[:5].tolist()
            raise SampleError(
                f"{path}: {int(no_class.sum())} pixels that count are predicted as no class of the card "
                f"({self._describe(found, label_map.card.mask_encoding)}); a prediction is a class at every pixel"
            )
        return labels

    def read_scores(self, name: str, truth: Array) -> npt.NDArray[np.float32]:
        """Reads the scores of an image, (K, H, W) float32, or (1, H, W) of two classes.

        Args:
            name: An image in `scores`.
            truth: (H, W) train ids.

        Raises:
            SampleError: A file that cannot be read, of another shape, or with values that are not finite numbers.
        """
        path = self.folder / self.scores[name]
        key, shape, _ = _array_header(path)
        is_last = _is_scores(shape[::-1], self.card.num_classes) and shape[:2] == truth.shape
        if not is_last and not (_is_scores(shape, self.card.num_classes) and _plain(shape)[-2:] == truth.shape):
            height, width = truth.shape
            raise SampleError(
                f"{path}: scores of shape {shape}, but the card has {self.card.num_classes} classes and the truth is "
                f"{height} x {width}: write them as ({self.card.num_classes}, {height}, {width})"
            )
        values = _load(path, key)
        scores = values.transpose(2, 0, 1) if is_last and values.ndim == 3 else values.reshape(_plain(shape))
        scores = np.ascontiguousarray(scores, dtype=np.float32)
        if not np.isfinite(scores).all():
            raise SampleError(f"{path}: holds scores that are not finite numbers")
        return scores

    def labels_from_any(self, name: str, truth: Array, kind: str | None) -> Array:
        """The labels of an image, (H, W): those of its label map or, without one, those with the highest scores.

        Args:
            name: An image with a prediction.
            truth: (H, W) train ids.
            kind: What scores are: `identity` for numbers in 0..1, else logits.

        Raises:
            SampleError: As `read_labels` and `read_scores`.
        """
        if name in self.labels:
            return self.read_labels(name, truth)
        return labels_of_scores(self.read_scores(name, truth), kind)

    def _kind_of(self, file: str) -> str:
        """`labels`, `scores`, or `unreadable` for arrays that are damaged, or of which none is named as scores."""
        if ending_of(file) not in (".npy", ".npz"):
            return "labels"
        try:
            _, shape, dtype = _array_header(self.folder / file)
        except SampleError:
            return "unreadable"
        return "scores" if dtype.kind == "f" and len(_plain(shape)) == 3 else "labels"

    def _encoding_of(self, path: Path) -> str:
        """How a label map holds its classes, from its header."""
        if ending_of(path.name) == ".npz":
            raise SampleError(f"{path}: an NPZ file holds scores, floats of three dimensions; write labels as PNG")
        if ending_of(path.name) == ".npy":
            _check_is_map(path)
        mode, _ = mode_and_format(path)
        encoding = encoding_of_mode(mode)
        if encoding is None:
            raise SampleError(f"{path}: an image of mode {mode} is not a label map; save ids as an 8-bit grey PNG")
        return encoding

    def _read_raw(self, path: Path, encoding: str) -> RawMask:
        return read_mask(path, replace(self.card, mask_encoding=encoding, check_palette=False))

    def _label_map(self, path: Path, raw: RawMask, encoding: str) -> LabelMap:
        """What turns the values of a label map into train ids; whatever is not a class becomes the ignore label."""
        if raw.palette is not None:
            self._check_palette(path, raw)
        if encoding not in self._label_maps:
            card = replace(self.card, mask_encoding=encoding, unmapped="ignore")
            if encoding == "rgb" and self.card.mask_encoding != "rgb":
                colors = [pack_color(color) for color in card.palette]
                if len(set(colors)) < len(colors):
                    raise SampleError(f"{path}: a picture in colours, but the card has classes of one colour; save ids")
                card = replace(card, raw_ids=tuple((color,) for color in colors), ignore_ids=())
            is_train = self.ids == "train" and encoding != "rgb"
            if not is_train and encoding in ("gray", "palette"):  # ids of a 16-bit card may not fit into 8 bits
                fitting = tuple(tuple(raw_id for raw_id in ids if raw_id < 256) for ids in card.raw_ids)
                card = replace(card, raw_ids=fitting, ignore_ids=tuple(i for i in card.ignore_ids if i < 256))
            self._label_maps[encoding] = LabelMap(card, train_ids=is_train)
        return self._label_maps[encoding]

    def _check_palette(self, path: Path, raw: RawMask) -> None:
        """Refuses indices whose colours are those of other classes: a picture in colours with a palette of its own."""
        assert raw.palette is not None
        class_of = {color: class_id for class_id, color in enumerate(self.card.palette)}
        used = [index for index in np.unique(raw.values).tolist() if index < len(raw.palette)]
        meant = {index: class_of.get(tuple(raw.palette[index].tolist())) for index in used}
        ids = {raw_id: c for c, raw_ids in enumerate(self.card.raw_ids) for raw_id in raw_ids}
        wrong = [i for i, c in meant.items() if c != (i if self.ids == "train" else ids.get(i))]
        if wrong and None not in meant.values() and len(set(self.card.palette)) == self.card.num_classes:
            index = wrong[0]
            raise SampleError(
                f"{path}: index {index} has the colour of class {self.card.class_names[meant[index] or 0]!r}, so the "
                "indices of this palette are not class ids: save the ids as a grey PNG, or the colours as RGB"
            )

    def _ids_seen(self) -> str:
        """Whether label maps hold the card's ids or train ids, where their values leave no doubt."""
        card, train = self.card, set(range(self.card.num_classes))
        if card.mask_encoding == "rgb" or all(ids == (i,) for i, ids in enumerate(card.raw_ids)):
            return "train"
        raw = {raw_id for ids in card.raw_ids for raw_id in ids}
        # 255 may well be a class of the card.
        ignored = {card.ignore_index, *card.ignore_ids} - raw
        seen: set[int] = set()
        for file in self.labels.values():
            path = self.folder / file
            try:
                encoding = self._encoding_of(path)
                if encoding != "rgb":
                    values = self._read_raw(path, encoding).values
                    seen |= set(np.unique(values).tolist()) - ignored
            except SampleError:  # raised again where the image is read, which may be left out
                continue
            if not seen <= raw and seen <= train:
                return "train"
            if not seen <= train and seen <= raw:
                return "raw"
        if all(value in train and value in card.raw_ids[value] for value in seen):  # either way the same classes
            return "train"
        what = "both" if seen <= raw and seen <= train else "neither"
        raise ValueError(
            f"the label maps in {self.folder} hold {shorten([*map(str, sorted(seen))], 10)}: {what} the ids of the "
            f"card and train ids 0..{card.num_classes - 1}; say which with --ids raw or --ids train"
        )

    def _describe(self, values: Sequence[int], encoding: str) -> str:
        if encoding == "rgb":
            return "colours " + ", ".join(f"#{value:06x}" for value in values)
        return f"values {', '.join(map(str, values))}, read as {'the card’s' if self.ids == 'raw' else 'train'} ids"


def labels_of_scores(scores: Array, kind: str | None) -> Array:
    """The class with the highest score at each pixel, (H, W) int64, from (K, H, W), or (1, H, W) of two classes.

    Example:
        >>> labels_of_scores(np.array([[[0.2, 0.7]]]), "identity"), labels_of_scores(np.array([[[0.2]], [[3.0]]]), None)
        (array([[0, 1]]), array([[1]]))
    """
    threshold = 0.5 if kind == "identity" else 0.0
    labels: Array = scores.argmax(axis=0) if len(scores) > 1 else (scores[0] > threshold).astype(np.int64)
    return labels


def _check_size(path: Path, size: tuple[int, ...], truth: tuple[int, ...]) -> None:
    if size != truth:
        raise SampleError(
            f"{path}: the prediction is {size[1]} x {size[0]} (width x height), the truth {truth[1]} x {truth[0]}; "
            "predict at the size of the truth, or resize (nearest neighbour)"
        )


def _plain(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape without the depth of 1 that nnU-Net gives to images: (K, 1, H, W) as (K, H, W)."""
    return (shape[0], *shape[2:]) if len(shape) == 4 and shape[1] == 1 else shape


def _check_is_map(path: Path) -> None:
    """Refuses arrays that are neither a label map nor scores."""
    _, shape, dtype = _array_header(path)
    is_picture = len(shape) == 3 and shape[-1] == 3 and dtype == np.uint8
    if not (is_picture or is_map_shape(shape)):
        raise SampleError(
            f"{path}: an array of {dtype} with shape {shape} is neither scores, floating-point numbers (K, H, W), nor "
            "a label map, whole numbers (H, W); write one of them for each image"
        )


def _is_scores(shape: tuple[int, ...], num_classes: int) -> bool:
    plain = _plain(shape)
    return len(plain) == 3 and (plain[0] == num_classes or (plain[0], num_classes) == (1, 2))


def _array_header(path: Path) -> tuple[str | None, tuple[int, ...], np.dtype[Any]]:
    """Key (of an NPZ file), shape and type of an array, without reading it."""
    check_exists(path)
    try:
        if ending_of(path.name) == ".npz":
            with zipfile.ZipFile(path) as archive:
                keys = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
                key = keys[0] if len(keys) == 1 else next(key for key in _SCORE_KEYS if key in keys)
                with archive.open(f"{key}.npy") as file:
                    return key, *npy_header(file)
        with path.open("rb") as file:
            return None, *npy_header(file)
    except StopIteration:
        raise SampleError(
            f"{path}: holds the arrays {', '.join(keys)}; call the scores {' or '.join(_SCORE_KEYS[:3])}"
        ) from None
    except Exception as error:  # damaged archives fail in many ways
        raise SampleError(f"{path}: not a readable array file: {error}; write it again with numpy.save") from error


def _load(path: Path, key: str | None) -> Array:
    try:
        loaded = np.load(path, allow_pickle=False)
        values: Array = loaded if key is None else loaded[key]
    except Exception as error:  # damaged archives fail in many ways
        raise SampleError(f"{path}: not a readable array file: {error}; write it again with numpy.save") from error
    return values
