"""Predictions of other programs: which file belongs to which image, and what its values mean."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from aucseg.datasets import DatasetCard, SampleError
from aucseg.datasets.prediction_files import PredictionFiles
from aucseg.datasets.prediction_names import files_of_other_splits, match_predictions, prediction_files

TRUTH = np.array([[0, 1, 2], [2, 1, 255]], np.uint8)


def card() -> DatasetCard:
    """Three classes whose ids in the masks are 7, 11 and 1."""
    classes = "[{name: a, color: [9, 0, 0], ids: [7]}, {name: b, color: [0, 9, 0], ids: [11, 12]}, {name: c, ids: [1]}]"
    splits = "{val: {images: 'i/*.png', masks: 'm/{stem}.png'}}"
    return DatasetCard.from_yaml(f"name: x\nclasses: {classes}\nignore_ids: [0]\nsplits: {splits}")


def one(folder: Path, values: Any, name: str = "a.png", ids: str | None = None) -> PredictionFiles:
    Image.fromarray(np.asarray(values, np.uint8)).save(folder / name)
    return PredictionFiles(folder, card(), ["i/a"], ids)


@pytest.mark.parametrize(
    ("files", "names", "expected"),
    [
        (["A.PNG"], ["val/a"], ["A.PNG"]),
        (["a.png", "a_pred.png"], ["val/a"], ["a.png"]),
        (["munich_01_leftImg8bit_pred.png"], ["munich/munich_01_leftImg8bit"], ["munich_01_leftImg8bit_pred.png"]),
        (["mask_007.tif"], ["img_007"], ["mask_007.tif"]),
        (["case_1.png", "case_2.png"], ["case_1_0000", "case_2_0000"], ["case_1.png", "case_2.png"]),
        (["0000.png", "0001.png"], ["v/0000", "v/0001"], ["0000.png", "0001.png"]),
        (["b/1.png", "a/1.png"], ["x/a/1", "x/b/1"], ["a/1.png", "b/1.png"]),
        (["road_pred.npy"], ["sky"], [None]),
        (["v1.5.png", "v1.7.png"], ["x/v1.5", "x/v1.7"], ["v1.5.png", "v1.7.png"]),
        (["a/1.png"], ["x/a/1", "x/b/1"], ["a/1.png", None]),
        (["a/1.png", "a/1_pred.png"], ["x/a/1", "x/b/1"], ["a/1.png", None]),
        (["out/r1/b/1.png", "out/r1/a/1.png"], ["x/a/1", "x/b/1"], ["out/r1/a/1.png", "out/r1/b/1.png"]),
        (["IMG.png", "img.png"], ["x/img", "x/IMG"], ["img.png", "IMG.png"]),
        (["IMG.png"], ["x/img", "x/IMG"], [None, "IMG.png"]),
    ],
)
def test_names(files: list[str], names: list[str], expected: list[str | None]) -> None:
    assert match_predictions(files, names) == {n: f for n, f in zip(names, expected, strict=True) if f is not None}


@pytest.mark.parametrize(
    ("files", "names", "message"),
    [
        (["a.png", "a.tif"], ["a"], r"the prediction for a may be a\.png or a\.tif"),
        (["1.png"], ["x/1", "y/1"], r"1\.png may be the prediction for x/1 or for y/1"),
    ],
)
def test_names_that_fit_twice(files: list[str], names: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        match_predictions(files, names)


SPLITS = ["images/train/*/*.png", "images/val/*/*.png"]


@pytest.mark.parametrize(
    ("file", "name", "patterns", "is_other"),
    [
        ("train/a/1.png", "images/val/a/1", SPLITS, True),
        ("labels/train/1.png", "images/val/a/1", SPLITS, True),
        ("images/Train/1.png", "images/val/a/1", SPLITS, True),
        ("train/val/1.png", "images/val/a/1", SPLITS, False),
        ("test/run/images/1.png", "images/val/a/1", SPLITS, False),
        ("1.png", "images/val/a/1", SPLITS, False),
        ("day/images/1.png", "night/images/1", ["day/images/*.png", "night/images/*.png", "old/*.png"], True),
        ("train/1.png", "images/1", ["images/*.png", "images/{stem}.png"], False),
        ("train/1.png", "train/images/1", ["train/images/*.png", "**/*.png"], False),
    ],
)
def test_files_in_folders_of_other_splits(file: str, name: str, patterns: list[str], is_other: bool) -> None:
    assert files_of_other_splits([file], [name], patterns) == ({file} if is_other else set())


def test_predictions_of_another_split_are_extra(tmp_path: Path) -> None:
    splits = "{train: {images: 'i/train/*.png'}, val: {images: 'i/val/*.png'}}"
    two = DatasetCard.from_yaml(f"name: x\nclasses: [{{name: a}}, {{name: b}}]\nsplits: {splits}")
    (tmp_path / "train").mkdir()
    Image.fromarray(np.zeros((2, 3), np.uint8)).save(tmp_path / "train/1.png")
    with pytest.raises(ValueError, match=r"none of the 1 predictions .*; 1 lie in folders of other splits"):
        PredictionFiles(tmp_path, two, ["i/val/1"])
    Image.fromarray(np.zeros((2, 3), np.uint8)).save(tmp_path / "2.png")
    predictions = PredictionFiles(tmp_path, two, ["i/val/1", "i/val/2"])
    assert (predictions.missing, predictions.extra) == (["i/val/1"], ["train/1.png"])


def test_pictures_for_people_are_skipped_unless_images_have_their_folder(tmp_path: Path) -> None:
    for file in ("vis/a.png", "ir/a.png", "run/Overlays/old/a.png"):
        (tmp_path / file).parent.mkdir(parents=True)
        (tmp_path / file).touch()
    assert prediction_files(tmp_path, ["i/a"]) == (["ir/a.png"], ["run/Overlays", "vis"])
    assert prediction_files(tmp_path, ["i/VIS/a"]) == (["ir/a.png", "vis/a.png"], ["run/Overlays"])
    with pytest.raises(ValueError, match=r"end in \.png, Overlays being skipped as pictures"):
        prediction_files(tmp_path / "run", ["i/a"])


@pytest.mark.parametrize(("values", "ids"), [([[7, 12, 1], [1, 11, 11]], "raw"), ([[0, 1, 2], [2, 1, 1]], "train")])
def test_ids_are_seen_from_the_values(tmp_path: Path, values: Any, ids: str) -> None:
    predictions = one(tmp_path, values)
    assert predictions.ids == ids
    assert predictions.read_labels("i/a", TRUTH).tolist() == [[0, 1, 2], [2, 1, 1]]


@pytest.mark.parametrize("raw", [[0, 255], [0, 1, 255]])
def test_255_tells_ids_where_it_is_a_class(tmp_path: Path, raw: list[int]) -> None:
    classes = [{"name": f"c{value}", "ids": [value]} for value in raw]
    binary = DatasetCard.from_yaml(f"name: x\nclasses: {classes}\nsplits: {{val: {{images: 'i/*.png'}}}}")
    for values, expected, ids in (
        (raw, list(range(len(raw))), "raw"),
        (list(range(len(raw))), list(range(len(raw))), "train"),
        ([0] * len(raw), [0] * len(raw), "train"),
    ):
        Image.fromarray(np.array([values], np.uint8)).save(tmp_path / "a.png")
        predictions = PredictionFiles(tmp_path, binary, ["i/a"])
        assert predictions.ids == ids
        assert predictions.read_labels("i/a", np.zeros((1, len(raw)), np.uint8)).tolist() == [expected]


@pytest.mark.parametrize(("values", "what"), [([[1, 1, 1], [1, 1, 1]], "both"), ([[7, 2, 1], [1, 1, 1]], "neither")])
def test_ids_that_may_be_either_are_asked_for(tmp_path: Path, values: Any, what: str) -> None:
    with pytest.raises(ValueError, match=f"{what} the ids of the card and train ids"):
        one(tmp_path, values)
    assert one(tmp_path, np.ones((2, 3)), ids="raw").read_labels("i/a", TRUTH).tolist() == [[2, 2, 2]] * 2
    assert one(tmp_path, np.ones((2, 3)), ids="train").read_labels("i/a", TRUTH).tolist() == [[1, 1, 1]] * 2


def test_no_class_where_the_truth_is_ignored_is_no_matter(tmp_path: Path) -> None:
    values = np.array([[0, 1, 2], [2, 1, 255]])
    assert one(tmp_path, values, ids="train").read_labels("i/a", TRUTH)[0].tolist() == [0, 1, 2]
    values[0, 0] = 255
    with pytest.raises(SampleError, match=r"a\.png: 1 pixels that count are predicted as no class"):
        one(tmp_path, values, ids="train").read_labels("i/a", TRUTH)


def test_colours_are_those_of_the_card_and_a_palette_of_its_own_is_refused(tmp_path: Path) -> None:
    colors = np.array([(9, 0, 0), (0, 9, 0), card().palette[2]], np.uint8)
    labels = np.where(TRUTH == 255, 1, TRUTH)
    predictions = one(tmp_path, colors[labels])
    np.testing.assert_array_equal(predictions.read_labels("i/a", TRUTH), labels)
    with pytest.raises(SampleError, match=r"predicted as no class of the card .colours #0a0000"):
        one(tmp_path, np.broadcast_to((10, 0, 0), (2, 3, 3))).read_labels("i/a", TRUTH)
    for order, is_refused in (((0, 1, 2), False), ((2, 0, 1), True)):
        image = Image.fromarray(labels.astype(np.uint8))
        image.putpalette(colors[list(order)].tobytes())
        image.save(tmp_path / "a.png")
        predictions = PredictionFiles(tmp_path, card(), ["i/a"], "train")
        if is_refused:
            with pytest.raises(SampleError, match="index 0 has the colour of class 'c'"):
                predictions.read_labels("i/a", TRUTH)
        else:
            np.testing.assert_array_equal(predictions.read_labels("i/a", TRUTH), labels)


def test_files_that_cannot_be_predictions(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no folder of predictions"):
        PredictionFiles(tmp_path / "none", card(), ["i/a"])
    (tmp_path / "case.nii.gz").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"holds no prediction; there are files that end in \.gz"):
        PredictionFiles(tmp_path, card(), ["i/a"])
    with pytest.raises(ValueError, match=r"none of the 1 predictions .*b\.png.* has the name of one of the 1 images"):
        one(tmp_path, TRUTH, "b.png", "train")
    Image.fromarray(TRUTH).save(tmp_path / "a.jpg")
    with pytest.raises(SampleError, match="JPEG file, whose compression changes ids"):
        PredictionFiles(tmp_path, card(), ["i/a"], "train").read_labels("i/a", TRUTH)


def test_array_files_of_strangers(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", one=np.zeros((3, 2, 3)), two=np.zeros(2))
    with pytest.raises(SampleError, match="holds the arrays one, two; call the scores probabilities"):
        PredictionFiles(tmp_path, card(), ["i/a"]).read_scores("i/a", TRUTH)
    np.savez(tmp_path / "a.npz", one=np.zeros(2), scores=np.zeros((3, 2, 3)))
    assert PredictionFiles(tmp_path, card(), ["i/a"]).read_scores("i/a", TRUTH).shape == (3, 2, 3)
    # A header that promises more than there is room for is refused by its shape, before anything is read.
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive, archive.open("scores.npy", "w") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (3, 10**6, 10**6)})
    with pytest.raises(SampleError, match=r"scores of shape \(3, 1000000, 1000000\)"):
        PredictionFiles(tmp_path, card(), ["i/a"]).read_scores("i/a", TRUTH)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive, archive.open("scores.npy", "w") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (3, 2, 3)})
    with pytest.raises(SampleError, match="not a readable array file"):
        PredictionFiles(tmp_path, card(), ["i/a"]).read_scores("i/a", TRUTH)
    (tmp_path / "a.npz").write_bytes(b"PK")
    with pytest.raises(SampleError, match="not a readable array file"):
        PredictionFiles(tmp_path, card(), ["i/a"]).read_scores("i/a", TRUTH)
    np.savez_compressed(tmp_path / "a.npz", scores=np.random.default_rng(0).random((3, 2, 3)))
    data = bytearray((tmp_path / "a.npz").read_bytes())
    data[150:200] = bytes(50)
    (tmp_path / "a.npz").write_bytes(data)
    with pytest.raises(SampleError, match="not a readable array file"):
        PredictionFiles(tmp_path, card(), ["i/a"]).read_scores("i/a", TRUTH)


def test_files_that_cannot_be_read_are_no_matter_for_the_others(tmp_path: Path) -> None:
    for name in "bc":
        Image.fromarray(np.array([[7, 12, 1], [1, 11, 11]], np.uint8)).save(tmp_path / f"{name}.png")
    (tmp_path / "a.png").write_bytes((tmp_path / "b.png").read_bytes()[:40])
    np.save(tmp_path / "b.npy", np.zeros((3, 2, 3)))
    (tmp_path / "b.npy").write_bytes((tmp_path / "b.npy").read_bytes()[:30])
    np.savez(tmp_path / "stats.npz", mean=np.zeros(2), std=np.zeros(2))
    predictions = PredictionFiles(tmp_path, card(), ["i/a", "i/b", "i/c"])
    assert (predictions.ids, predictions.missing, predictions.extra) == ("raw", [], ["stats.npz"])
    assert predictions.read_labels("i/c", TRUTH).tolist() == [[0, 1, 2], [2, 1, 1]]
    with pytest.raises(SampleError, match=r"a\.png"):
        predictions.read_labels("i/a", TRUTH)
    with pytest.raises(SampleError, match=r"b\.npy: not a readable array file"):
        predictions.read_scores("i/b", TRUTH)
