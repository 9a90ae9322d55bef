from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from aucseg.cli import main
from aucseg.datasets import DatasetCard, SegmentationDataset
from aucseg.datasets.annotations.contact_sheet import SheetEntry, draw_sheet
from tests.datasets.annotations.exports import (
    BIG,
    EXPORTS,
    HEIGHT,
    SMALL,
    WIDTH,
    coco,
    coco_polygons,
    cvat,
    flat,
    inside,
    label_studio,
    labelme,
    panoptic,
    save_photo,
    yolo,
)

Array = npt.NDArray[Any]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def make(tmp_path: Path, source: Path, *options: str) -> tuple[DatasetCard, dict[str, Array]]:
    """Runs the command; returns the card and the masks by class name."""
    out = tmp_path / "out"
    assert main(["masks", str(source), "--out", str(out), "--workers", "1", *options]) == 0
    card = DatasetCard.load(out / "card.yaml")
    mask = np.array(Image.open(next((out / "masks").rglob("*.png"))))
    named = {name: mask == raw for name, (raw,) in zip(card.class_names, card.raw_ids, strict=True)}
    return card, {**named, "ignored": mask == card.ignore_ids[0]}


@pytest.mark.parametrize("name", EXPORTS)
def test_every_format_gives_the_mask_drawn_by_hand(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "my export"
    EXPORTS[name](root)
    assert main(["stats", str(root), "--workers", "0"]) == 2
    told = capsys.readouterr().err
    assert f"holds {name.split(',')[0]} annotations" in told
    assert f"aucseg masks '{root}' --out my_export_masks" in told

    _, found = make(tmp_path, root)
    (big, sure_big), (small, sure_small) = inside(BIG), inside(SMALL)
    sure = sure_big & sure_small
    assert sure.mean() > 0.8
    np.testing.assert_array_equal(found["cone"][sure], small[sure])
    np.testing.assert_array_equal(found["road"][sure], (big & ~small)[sure])
    rest = found["ignored"] if name == "COCO panoptic" else found["background"]
    np.testing.assert_array_equal(rest[sure], ~(big | small)[sure])
    if "run lengths" in name or "panoptic" in name:  # no outline, so exact to the pixel
        np.testing.assert_array_equal(found["cone"], small)
        np.testing.assert_array_equal(found["road"], big & ~small)

    out = tmp_path / "out"
    assert main(["stats", str(out / "card.yaml"), "--root", str(out), "--workers", "0"]) == 0
    with Image.open(out / "contact_sheet.png") as sheet:
        assert len(sheet.convert("RGB").getcolors(1 << 24) or []) > 100
    assert len(SegmentationDataset(out / "card.yaml", out, "train")) == 1


def test_rows_of_the_contact_sheet_are_as_high_as_their_images(tmp_path: Path) -> None:
    entries = []
    for index, size in enumerate([(60, 40), (40, 60), (60, 20), (60, 20)]):
        Image.new("RGB", size, (200, 0, 0)).save(tmp_path / f"{index}.png")
        Image.new("L", size, 1).save(tmp_path / f"{index}-mask.png")
        entries.append(SheetEntry(tmp_path / f"{index}.png", tmp_path / f"{index}-mask.png", "title " * 40))
    colors = {0: (0, 0, 0), 1: (0, 0, 200)}
    sheet = np.asarray(draw_sheet(entries, ["background", "thing"], colors, plain_id=0))
    is_image = (sheet == (200, 0, 0)).all(-1)
    assert is_image.sum() == 320 * (213 + 213 + 107 + 107)
    rows = np.flatnonzero(is_image.any(1))
    first, last = rows[0], rows[-1]
    # The first row is as high as the upright image, the flat one below it follows at once.
    assert len(rows) == 320 + 107
    assert last - first < len(rows) + 40
    # Beside an upright image is the ground, as everywhere.
    assert (sheet[first + 5 : first + 200, sheet.shape[1] * 47 // 100] == sheet[0, 0]).all()


def test_splits_come_from_the_export(tmp_path: Path) -> None:
    card, _ = make(tmp_path, EXPORTS["COCO JSON, Roboflow"](tmp_path / "in"))
    assert list(card.splits) == ["train", "val"]
    assert card.class_names == ("background", "road", "cone")


def test_the_later_region_wins_where_that_is_asked(tmp_path: Path) -> None:
    _, found = make(tmp_path, coco_polygons(tmp_path / "in"), "--overlap", "last")
    assert not found["cone"].any()  # the larger one comes later


def test_layers_of_the_annotator_go_first(tmp_path: Path) -> None:
    _, found = make(tmp_path, cvat(tmp_path / "in", small_layer=-1))
    assert not found["cone"].any()


@pytest.mark.parametrize("mark", [{"iscrowd": 1}, {"ignore": 1}])
def test_crowds_are_ignored_and_compete_by_size(mark: dict[str, int], tmp_path: Path) -> None:
    regions = [
        {"category_id": 3, "segmentation": [flat(BIG)], **mark},
        {"category_id": 9, "segmentation": [flat(SMALL)]},
    ]
    _, found = make(tmp_path, coco(tmp_path / "in", regions))
    sure = inside(BIG)[1] & inside(SMALL)[1]
    np.testing.assert_array_equal(found["ignored"][sure], (inside(BIG)[0] & ~inside(SMALL)[0])[sure])
    np.testing.assert_array_equal(found["cone"][sure], inside(SMALL)[0][sure])


def test_difficult_regions_of_labelme_and_cvat_are_ignored(tmp_path: Path) -> None:
    corner = [[50, 30], [58, 30], [58, 38], [50, 38]]
    shape = {"label": "cone", "points": corner, "flags": {"difficult": True}}
    _, found = make(tmp_path, labelme(tmp_path / "in", shape))
    assert found["ignored"][32:37, 52:57].all()
    polygon = (
        '<polygon label="cone" points="50,30;58,30;58,38;50,38"><attribute name="difficult">true</attribute></polygon>'
    )
    (tmp_path / "second").mkdir()
    _, found = make(tmp_path / "second", cvat(tmp_path / "second/in", polygon))
    assert found["ignored"][32:37, 52:57].all()


def test_unlabelled_pixels_are_ignored_where_that_is_asked(tmp_path: Path) -> None:
    card, found = make(tmp_path, coco_polygons(tmp_path / "in"), "--unlabelled", "ignore")
    assert card.class_names == ("road", "cone")
    assert found["ignored"][0].all()


def test_void_of_panoptic_files_may_be_background(tmp_path: Path) -> None:
    card, found = make(tmp_path, panoptic(tmp_path / "in"), "--unlabelled", "background")
    assert card.class_names[0] == "background"
    assert found["background"][0].all()


def test_ellipses_circles_and_turned_boxes(tmp_path: Path) -> None:
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH] + 0.5
    ellipse = {"x": 50.0, "y": 50.0, "radiusX": 20.0, "radiusY": 10.0, "rotation": 0, "ellipselabels": ["dot"]}
    _, found = make(tmp_path, label_studio(tmp_path / "in", {"type": "ellipselabels", "value": ellipse}))
    radius = np.hypot((x - 30) / 12, (y - 20) / 4)
    assert found["dot"][(radius < 0.8) & ~inside(SMALL)[0] & inside(SMALL)[1]].all()
    assert not found["dot"][radius > 1.2].any()

    (tmp_path / "b").mkdir()
    circle = {"label": "dot", "points": [[50, 10], [50, 14]], "shape_type": "circle"}
    _, found = make(tmp_path / "b", labelme(tmp_path / "b/in", circle))
    radius = np.hypot(x - 50, y - 10)
    assert found["dot"][radius < 3].all()
    assert not found["dot"][radius > 5].any()

    (tmp_path / "c").mkdir()  # CVAT turns about the middle: a quarter turn swaps the sides
    box = '<box label="dot" xtl="40" ytl="10" xbr="56" ybr="14" rotation="90"/>'
    _, found = make(tmp_path / "c", cvat(tmp_path / "c/in", box.replace("dot", "cone")), "--boxes", "fill")
    assert found["cone"][6:18, 47:49].all()
    assert not found["cone"][11:13, 52:58].any()


@pytest.mark.parametrize("boxes", ["fill", "ignore"])
def test_boxes_are_filled_or_ignored_when_that_is_said(boxes: str, tmp_path: Path) -> None:
    root = yolo(tmp_path / "in")
    with (root / "train/labels/a.txt").open("a") as file:
        file.write("1 0.9 0.9 0.1 0.1\n")
    assert main(["masks", str(root), "--out", str(tmp_path / "no")]) == 1
    assert not (tmp_path / "no").exists()
    _, found = make(tmp_path, root, "--boxes", boxes)
    assert found["cone" if boxes == "fill" else "ignored"][35:37, 52:56].all()


BAD_COCO: dict[str, tuple[dict[str, Any], str]] = {
    "two points": ({"segmentation": [[1, 2, 3, 4]]}, "three points"),
    "odd numbers": ({"segmentation": [[1, 2, 3, 4, 5, 6, 7]]}, "pairs"),
    "text": ({"segmentation": [["a", 2, 3, 4, 5, 6]]}, "numbers"),
    "not a number": ({"segmentation": [[float("nan"), 2, 3, 4, 5, 6]]}, "NaN"),
    "far away": ({"segmentation": [[1, 2, 1e9, 4, 5, 6]]}, "another size"),
    "outside": ({"segmentation": [[70, 5, 80, 5, 80, 15]]}, "outside"),
    "few runs": ({"segmentation": {"size": [HEIGHT, WIDTH], "counts": [3, 4]}}, "add up to 7"),
    "negative runs": ({"segmentation": {"size": [HEIGHT, WIDTH], "counts": [-1, 2401]}}, "whole numbers"),
    "broken text": ({"segmentation": {"size": [HEIGHT, WIDTH], "counts": "o"}}, "break off"),
    "short text": ({"segmentation": {"size": [HEIGHT, WIDTH], "counts": "34"}}, "add up to"),
    "other size": ({"segmentation": {"size": [5, 5], "counts": [25]}}, "size"),
    "nothing": ({}, "neither"),
    "box alone": ({"bbox": [1, 2, 3, 4]}, "not an outline"),
    "unknown category": ({"category_id": 77, "segmentation": [flat(SMALL)]}, "category_id 77"),
    "unknown image": ({"image_id": 99, "segmentation": [flat(SMALL)]}, "image_id"),
}


@pytest.mark.parametrize("name", BAD_COCO)
def test_bad_entries_are_named_with_file_and_entry(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entry, reason = BAD_COCO[name]
    path = coco(tmp_path / "in", [{"category_id": 3, "segmentation": [flat(BIG)]}, {"category_id": 9, **entry}])
    assert main(["masks", str(path), "--out", str(tmp_path / "out")]) == 1
    problem = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("problem"))
    assert str(path) in problem
    assert "annotation 1" in problem
    assert reason in problem
    assert os.listdir(tmp_path) == ["in"] or sorted(os.listdir(tmp_path)) == ["cache", "in"]


def test_images_with_problems_are_left_out_where_that_is_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = labelme(tmp_path / "in")
    save_photo(root / "b.jpg")
    content = json.loads((root / "a.json").read_text())
    content["imagePath"] = "b.jpg"
    content["shapes"].append({"label": "road", "points": [[1, 1], [2, 2]], "shape_type": "line"})
    (root / "b.json").write_text(json.dumps(content))
    (root / "c.json").write_text('{"shapes": [], "imagePath": "c.jpg"')
    make(tmp_path, root, "--on-error", "skip")
    assert [path.name for path in (tmp_path / "out/masks/train").iterdir()] == ["a.png"]
    told = capsys.readouterr().out
    assert "b.json: shape 2 (line): a line has no area" in told
    assert "c.json: not a readable JSON file" in told


BAD_OTHERS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "yolo class": (lambda p: _append(yolo(p) / "train/labels/a.txt", "7 0.1 0.1 0.2 0.1 0.2 0.2\n"), "line 3: class 7"),
    "yolo text": (lambda p: _append(yolo(p) / "train/labels/a.txt", "1 0.1 x 0.2\n"), "line 3: not a class number"),
    "yolo pixels": (lambda p: _append(yolo(p) / "train/labels/a.txt", "1 10 10 20 10 20 20\n"), "line 3: its coord"),
    "yolo orphan": (lambda p: _append(yolo(p) / "train/labels/z.txt", "1 0 0 1 0 1 1\n"), "z.txt: no image"),
    "labelme mask": (
        lambda p: (
            labelme(p, {"label": "x", "points": [[0, 0], [1, 1]], "shape_type": "mask", "mask": "AAAA"}) / "a.json"
        ),
        "shape 2 (mask): its mask cannot be read",
    ),
    "cvat runs": (
        lambda p: cvat(p, '<mask label="cone" rle="3,4" left="0" top="0" width="5" height="5"/>') / "annotations.xml",
        "mask 2: its run lengths add up to 7",
    ),
    "cvat line": (lambda p: cvat(p, '<polyline label="cone" points="1,1;2,2"/>') / "annotations.xml", "polyline 2"),
    "brush": (
        lambda p: (
            label_studio(p, {"type": "brushlabels", "value": {"format": "rle", "rle": [0, 1, 2], "brushlabels": ["x"]}})
            / "export.json"
        ),
        "task 5: result 2 (brushlabels): its run lengths break off",
    ),
    "turned": (
        lambda p: (
            label_studio(
                p, {"type": "polygonlabels", "value": {"points": [], "polygonlabels": ["x"]}, "image_rotation": 90}
            )
            / "export.json"
        ),
        "turned image",
    ),
}


def _append(path: Path, text: str) -> Path:
    with path.open("a") as file:
        file.write(text)
    return path


@pytest.mark.parametrize("name", BAD_OTHERS)
def test_bad_entries_of_other_formats(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build, message = BAD_OTHERS[name]
    path = build(tmp_path / "in")
    assert main(["masks", str(tmp_path / "in"), "--out", str(tmp_path / "out")]) == 1
    problem = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("problem"))
    assert path.name in problem
    assert message in problem


@pytest.mark.parametrize("names", ["[road, off]", "{0: road, 1: no}", "[road, ~]"])
def test_names_that_yaml_reads_as_something_else_are_refused(
    names: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = yolo(tmp_path / "in")
    (root / "data.yaml").write_text(f"train: ../train/images\nnames: {names}\n")
    assert main(["masks", str(root), "--out", str(tmp_path / "out")]) == 2
    assert "put it in quotes" in capsys.readouterr().err


def test_entities_of_xml_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = cvat(tmp_path / "in") / "annotations.xml"
    bomb = '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;">]><annotations>'
    path.write_text(path.read_text().replace("<annotations>", bomb))
    assert main(["masks", str(path), "--out", str(tmp_path / "out")]) == 2
    assert "annotations.xml" in capsys.readouterr().err


def test_an_image_of_another_size_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "in"
    path = coco_polygons(root)
    save_photo(root / "images/a.jpg", 80, 120)
    assert main(["masks", str(path), "--out", str(tmp_path / "out")]) == 1
    assert "drawn on 60 x 40" in capsys.readouterr().out


@pytest.mark.parametrize("is_shown", [True, False])
def test_orientation_follows_what_the_annotations_were_drawn_on(is_shown: bool, tmp_path: Path) -> None:
    path = coco_polygons(tmp_path / "in")
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = (WIDTH, HEIGHT) if is_shown else (HEIGHT, WIDTH)
    save_photo(tmp_path / "in/images/a.jpg", *stored, exif=exif)
    card, _ = make(tmp_path, path)
    assert card.exif == ("apply" if is_shown else "ignore")
    assert SegmentationDataset(card, tmp_path / "out", "train")[0]["mask"].shape == (HEIGHT, WIDTH)


def test_images_of_one_name_in_two_folders_keep_their_own_masks(tmp_path: Path) -> None:
    root = tmp_path / "in"
    path = coco_polygons(root)
    (root / "images/a.jpg").unlink()
    content = json.loads(path.read_text())
    content["images"] = [
        {"id": i, "file_name": f"{folder}/a.jpg", "height": HEIGHT, "width": WIDTH}
        for i, folder in ((7, "north"), (8, "south"))
    ]
    content["annotations"][0]["image_id"] = 8
    path.write_text(json.dumps(content))
    for folder in ("north", "south"):
        save_photo(root / "images" / folder / "a.jpg")
    card, _ = make(tmp_path, path)
    dataset = SegmentationDataset(card, tmp_path / "out", "train")
    classes = {
        os.path.realpath(dataset.image_path(i)).split(os.sep)[-2]: sorted(set(dataset[i]["mask"].flatten().tolist()))
        for i in range(len(dataset))
    }
    assert classes == {"north": [0, 1], "south": [0, 2]}


def test_what_is_missing_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = yolo(tmp_path / "in")
    save_photo(root / "train/images/empty.jpg")
    make(tmp_path, root, "--empty", "drop")
    told = capsys.readouterr().out
    assert "1 of 2 images have no text file" in told
    assert len(list((tmp_path / "out/masks/train").iterdir())) == 1

    root = coco_polygons(tmp_path / "two").parents[1]
    save_photo(root / "images/b.jpg")
    (tmp_path / "x").mkdir()
    make(tmp_path / "x", root)
    assert "1 images are in no annotation and are left out: images/b.jpg" in capsys.readouterr().out
    (root / "images/a.jpg").unlink()
    assert main(["masks", str(root), "--out", str(tmp_path / "y")]) == 1
    assert "there is no image a.jpg" in capsys.readouterr().out


def test_misuse_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(coco_polygons(tmp_path / "in"))
    out = str(tmp_path / "out")
    for arguments, message in (
        ([path, "--drop", "raod", "--out", out], "did you mean road"),
        ([path, "--drop", "road", "--unlabelled", "ignore", "--out", out], "only class"),
        ([path, "--out", str(tmp_path / "in")], "is there already"),
        ([str(tmp_path / "none"), "--out", out], "no such file"),
        ([str(tmp_path / "in/images"), "--out", out], "no annotations of a known format"),
        ([path, "--images", str(tmp_path / "none"), "--out", out], "no such folder"),
    ):
        assert main(["masks", *arguments]) == 2
        assert message in capsys.readouterr().err
    labelme(tmp_path / "in")
    assert main(["masks", str(tmp_path / "in"), "--out", out]) == 2
    assert "several formats" in capsys.readouterr().err
    assert main(["stats", path]) == 2
    assert "make masks of them" in capsys.readouterr().err


def test_more_than_255_classes_become_masks_of_16_bits(tmp_path: Path) -> None:
    path = coco_polygons(tmp_path / "in")
    content = json.loads(path.read_text())
    content["categories"] = [{"id": i, "name": f"c{i}"} for i in range(300)]
    content["annotations"][0]["category_id"] = 299
    path.write_text(json.dumps(content))
    card, found = make(tmp_path, path)
    assert card.mask_encoding == "gray16"
    assert found["c299"].any()
    out = tmp_path / "out"
    assert main(["stats", str(out / "card.yaml"), "--root", str(out), "--workers", "0"]) == 0
