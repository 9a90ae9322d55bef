"""Annotations and the image that each of them means, where names repeat and files are missing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from aucseg.cli import main
from aucseg.datasets.annotations.recognize import read_annotations
from aucseg.datasets.annotations.write import MaskReport, write_masks
from aucseg.datasets.card import DatasetCard
from aucseg.datasets.file_report import report_files

SQUARE = "0 0.25 0.25 0.75 0.25 0.75 0.75 0.25 0.75\n"


def photos(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 20)).save(path)


def labels(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(SQUARE)


def write(root: Path) -> MaskReport:
    return write_masks(read_annotations([root]), root.with_name("out"), on_error="skip")


def labelled(root: Path) -> dict[str, bool]:
    """Whether each mask has anything but background."""
    masks = root.with_name("out") / "masks"
    return {p.relative_to(masks).as_posix(): bool(np.array(Image.open(p)).any()) for p in sorted(masks.rglob("*.png"))}


def test_yolo_image_without_text_file_is_empty_though_another_split_has_its_name(tmp_path: Path) -> None:
    root = tmp_path / "yolo"
    photos(root, *(f"images/{split}/{i}.jpg" for split in ("train", "val") for i in range(2)))
    labels(root, "labels/train/0.txt", "labels/val/0.txt", "labels/val/1.txt")
    assert not write(root).problems
    assert labelled(root) == {"train/0.png": True, "train/1.png": False, "val/0.png": True, "val/1.png": True}


def test_yolo_text_file_of_a_missing_image_goes_to_no_other_split(tmp_path: Path) -> None:
    root = tmp_path / "yolo"
    photos(root, "images/train/0.jpg", "images/train/1.jpg")
    labels(root, "labels/train/0.txt", "labels/val/1.txt")
    report = write(root)
    assert [problem.partition(": ")[0] for problem in report.problems] == [str(root / "labels/val/1.txt")]
    assert labelled(root) == {"train/0.png": True, "train/1.png": False}


def test_yolo_folders_of_other_names_are_paired_by_name(tmp_path: Path) -> None:
    root = tmp_path / "yolo"
    photos(root, "photos/a.jpg", "photos/b.jpg")
    labels(root, "drawn/a.txt", "drawn/b.txt")
    assert write(root).num_masks == {"train": 2}


def test_yolo_lists_tell_images_of_one_name_apart(tmp_path: Path) -> None:
    root = tmp_path / "yolo"
    for split, number in (("train", 3), ("val", 2)):
        names = [f"{split}/{i}" for i in range(number)]
        photos(root, *(f"images/{name}.jpg" for name in names))
        labels(root, *(f"labels/{name}.txt" for name in names))
        lines = [f"/home/test/data/images/{name}.jpg" for name in [*names, *(["train/9"] if split == "train" else [])]]
        (root / f"{split}.txt").write_text("\n".join(lines))
    (root / "data.yaml").write_text("names: [cat]\ntrain: train.txt\nval: val.txt\n")
    report = write(root)
    assert report.problems == [f"{root / 'train.txt'}: /home/test/data/images/train/9.jpg: there is no such image"]
    assert report.num_masks == {"train": 3, "val": 2}


def test_yolo_images_of_no_listed_split_are_left_out(tmp_path: Path) -> None:
    root = tmp_path / "yolo"
    photos(root, "images/train/0.jpg", "images/val/1.jpg", "logo.png", "runs/segment/batch.jpg")
    labels(root, "labels/train/0.txt")
    (root / "data.yaml").write_text("names: [cat]\ntrain: images/train\nval: images/val\n")
    report = write(root)
    assert any("2 images are in no annotation and are left out: logo.png" in note for note in report.notes)
    assert labelled(root) == {"train/0.png": True, "val/1.png": False}


def test_yolo_folder_of_two_splits_is_taken_for_the_first(tmp_path: Path) -> None:
    root = tmp_path / "yolo"
    photos(root, "images/train/0.jpg", "images/train/1.jpg")
    labels(root, "labels/train/0.txt", "labels/train/1.txt")
    (root / "data.yaml").write_text("names: [cat]\ntrain: images/train\nval: images/train\n")
    report = write(root)
    assert not report.problems
    assert any("val names images/train, as train does: its images are taken for train alone" in n for n in report.notes)
    assert labelled(root) == {"train/0.png": True, "train/1.png": True}


def test_coco_image_whose_path_is_whole_is_not_one_of_a_folder_below(tmp_path: Path) -> None:
    root = tmp_path / "coco"
    photos(root / "images", "0.jpg", "small/0.jpg")
    content = {
        "images": [{"id": 0, "file_name": "0.jpg", "height": 20, "width": 20}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [{"id": 0, "image_id": 0, "category_id": 1, "segmentation": [[5, 5, 15, 5, 15, 15]]}],
    }
    (root / "instances.json").write_text(json.dumps(content))
    report = write_masks(read_annotations([root], images=root / "images"), tmp_path / "out", on_error="skip")
    assert report.problems == []
    assert labelled(root) == {"train/0.png": True}
    assert [path.name for path in (tmp_path / "out" / "images").rglob("*.jpg")] == ["0.jpg"]
    assert (tmp_path / "out" / "contact_sheet.png").is_file()
    assert report_files(DatasetCard.load(tmp_path / "out" / "card.yaml"), tmp_path / "out").unused == []


@pytest.mark.parametrize("name", ["train/1.jpg", "1.jpg"])
def test_coco_image_of_another_split_is_not_meant(name: str, tmp_path: Path) -> None:
    root = tmp_path / "coco"
    photos(root, "train/0.jpg", "test/1.jpg")
    content = {
        "images": [{"id": i, "file_name": n, "height": 20, "width": 20} for i, n in enumerate(("train/0.jpg", name))],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 1, "segmentation": [[5, 5, 15, 5, 15, 15]], "iscrowd": 0}
            for i in range(2)
        ],
    }
    (root / "instances_train.json").write_text(json.dumps(content))
    (problem,) = write(root).problems
    assert f"there is no image {name} of split train below {root}, but test/1.jpg, of another one" in problem
    assert labelled(root) == {"train/0.png": True}


def test_labelme_file_of_a_missing_image_means_none_of_another_folder(tmp_path: Path) -> None:
    root = tmp_path / "labelme"
    photos(root, "a/0.jpg", "b/1.jpg")
    shape = {"label": "cat", "shape_type": "polygon", "points": [[5, 5], [15, 5], [15, 15]]}
    for i in range(2):
        (root / f"a/{i}.json").write_text(json.dumps({"imagePath": f"{i}.jpg", "shapes": [shape]}))
    options = read_annotations([root])
    (problem,) = write_masks(options, tmp_path / "out", on_error="raise").problems
    assert problem == f"{root / 'a/1.json'}: there is no image a/1.jpg below {root}, but b/1.jpg, elsewhere"
    # With all images elsewhere the names alone tell.
    (root / "a/0.jpg").rename(root / "b/0.jpg")
    assert not write_masks(options, tmp_path / "out", on_error="raise").problems


def test_tags_of_cvat_are_of_whole_images(tmp_path: Path) -> None:
    root = tmp_path / "cvat"
    photos(root, "a.png")
    polygon = '<polygon label="cat" points="5,5;15,5;15,15" z_order="0"/>'
    image = f'<image id="0" name="a.png" width="20" height="20"><tag label="sunny"/>{polygon}</image>'
    (root / "annotations.xml").write_text(f"<annotations><version>1.1</version>{image}</annotations>")
    report = write(root)
    assert not report.problems
    assert report.card is not None
    assert report.card.class_names == ("background", "cat")


def test_label_studio_tasks_that_nobody_has_looked_at_are_left_out(tmp_path: Path) -> None:
    root = tmp_path / "studio"
    photos(root, *(f"{name}.png" for name in "abcde"))
    place = {"original_width": 20, "original_height": 20}
    points = [[25, 25], [75, 25], [75, 75], [25, 75]]
    together: list[dict[str, Any]] = [
        {**place, "type": "polygonlabels", "value": {"points": points, "polygonlabels": ["cat"]}}
    ]
    apart = [
        {**place, "id": "1", "type": "polygon", "value": {"points": points}},
        {**place, "id": "1", "type": "labels", "value": {"points": points, "labels": ["cat"]}},
        {"id": "2", "type": "choices", "value": {"choices": ["sunny"]}},
    ]
    annotations: dict[str, list[dict[str, Any]]] = {
        "a": [{"result": together}],
        "b": [{"result": apart}],
        "c": [{"result": [], "was_cancelled": True}],
        "d": [],
        "e": [{"result": []}],  # looked at, and found empty
    }
    tasks = [
        {"id": i, "data": {"image": f"{name}.png"}, "annotations": of}
        for i, (name, of) in enumerate(annotations.items())
    ]
    (root / "export.json").write_text(json.dumps(tasks))
    report = write(root)
    assert not report.problems
    assert "2 tasks have no annotation, or were skipped, and are left out: c.png, d.png" in report.notes
    assert labelled(root) == {"train/a.png": True, "train/b.png": True, "train/e.png": False}
    # A shape that is not read is no background.
    annotations["a"][0]["result"] = [
        {**place, "type": "vectorlabels", "value": {"vertices": [], "vectorlabels": ["cat"]}}
    ]
    tasks[0]["annotations"] = annotations["a"]
    (root / "export.json").write_text(json.dumps(tasks))
    (problem,) = write_masks(read_annotations([root]), tmp_path / "other").problems
    assert "a vectorlabels is not read; draw a polygon or a brush" in problem


@pytest.mark.parametrize("copy_images", [False, True])
def test_masks_made_inside_the_source_are_no_source(copy_images: bool, tmp_path: Path) -> None:
    root = tmp_path / "yolo"
    photos(root, "images/a.jpg", "images/b.jpg")
    labels(root, "labels/a.txt", "labels/b.txt")
    for name in ("first", "second"):
        report = write_masks(read_annotations([root]), root / name, copy_images=copy_images)
        assert report.num_masks == {"train": 2}
    assert "folders that 'aucseg masks' made are left out: first" in report.notes

    content = {
        "images": [{"id": 0, "file_name": "a.jpg", "height": 20, "width": 20}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [{"id": 0, "image_id": 0, "category_id": 1, "segmentation": [[5, 5, 15, 5, 15, 15]]}],
    }
    (root / "instances.json").write_text(json.dumps(content))
    assert not write_masks(read_annotations([root / "instances.json"]), root / "third").problems
    # What was named is taken, made or not.
    (root / "instances.json").rename(root / "first/instances.json")
    assert not write_masks(read_annotations([root / "first/instances.json"]), root / "fourth").problems


def test_yolo_files_of_names_that_differ_are_refused(tmp_path: Path) -> None:
    root = tmp_path / "yolo"
    photos(root, "images/a.jpg", "images/b.jpg")
    labels(root, "labels/a.txt", "labels/b.txt")
    assert any("made of the numbers: class_0" in note for note in read_annotations([root]).notes)
    (root / "labels/classes.txt").write_text("cow\n")
    annotations = read_annotations([root])
    assert (annotations.labels, annotations.notes) == (["cow"], [])
    (root / "classes.txt").write_text("horse\n")
    with pytest.raises(ValueError, match=r"classes.txt hold different names of the classes; move away"):
        read_annotations([root])
    # A YAML file goes first; a second one must say the same.
    for name in ("coco", "data"):
        (root / f"{name}.yaml").write_text("names: [cat]\ntrain: images\n")
    assert read_annotations([root]).labels == ["cat"]
    (root / "coco.yaml").write_text("names: [person]\ntrain: images\n")
    with pytest.raises(ValueError, match=r"coco.yaml and .*data.yaml differ in the names.*\(aucseg masks .*coco.yaml"):
        read_annotations([root])
    assert read_annotations([root / "data.yaml"]).labels == ["cat"]


def test_yolo_labels_are_read_from_one_folder(tmp_path: Path) -> None:
    for name in ("one", "two"):
        photos(tmp_path / name, "images/a.jpg")
        labels(tmp_path / name, "labels/a.txt")
    with pytest.raises(ValueError, match=r"one and .*two: YOLO labels are read from one folder"):
        read_annotations([tmp_path / "one", tmp_path / "two"])


def coco(root: Path, regions: list[dict[str, Any]], number: int = 2) -> Path:
    """Images 0.jpg, ... of the ids 0, ..., and regions of the category 1."""
    photos(root, *(f"{i}.jpg" for i in range(number)))
    content = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "height": 20, "width": 20} for i in range(number)],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [{"id": i, "category_id": 1, **region} for i, region in enumerate(regions)],
    }
    (root / "instances.json").write_text(json.dumps(content))
    return root


TRIANGLE = [[5, 5, 15, 5, 15, 15]]


@pytest.mark.parametrize(("image_id", "category_id"), [("0", 1), (0.0, "1"), ("0", 1.0)])
def test_coco_ids_are_alike_by_their_text(image_id: Any, category_id: Any, tmp_path: Path) -> None:
    region = {"image_id": image_id, "category_id": category_id, "segmentation": TRIANGLE}
    root = coco(tmp_path / "coco", [region])
    assert not write(root).problems
    assert labelled(root) == {"train/0.png": True, "train/1.png": False}


@pytest.mark.parametrize("image_id", [7, None, [0]])
def test_coco_region_of_an_unknown_image_is_not_skipped(
    image_id: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = coco(tmp_path / "coco", [{"image_id": 0, "segmentation": TRIANGLE}, {"image_id": image_id}])
    report = write(root)
    assert (report.card, root.with_name("out").exists()) == (None, False)
    assert "annotation 1: its image_id" in report.problems[0]
    assert main(["masks", str(root), "--out", str(tmp_path / "out"), "--on-error", "skip"]) == 1
    assert "not all problems are of single images" in capsys.readouterr().err


def test_yolo_text_file_that_may_be_of_an_image_without_one_is_not_skipped(tmp_path: Path) -> None:
    root = tmp_path / "yolo"
    photos(root, "images/a.jpg", "images/b.jpg")
    labels(root, "labels/a.txt", "labels/B-1.txt")
    report = write(root)
    assert report.card is None
    assert "B-1.txt: no image below" in report.problems[0]
    assert "while images/b.jpg has no text file" in report.problems[0]
    (root / "labels/B-1.txt").write_text("")  # nothing is lost
    assert write(root).card is not None


def test_yolo_image_of_two_lists_is_left_out(tmp_path: Path) -> None:
    root = tmp_path / "yolo"
    photos(root, "images/a.jpg", "images/b.jpg")
    labels(root, "labels/a.txt", "labels/b.txt")
    (root / "train.txt").write_text("images/a.jpg\nimages/b.jpg\n")
    (root / "val.txt").write_text("images/b.jpg\n")
    (root / "data.yaml").write_text("names: [cat]\ntrain: train.txt\nval: val.txt\n")
    report = write(root)
    assert report.problems == [f"{root / 'val.txt'}: images/b.jpg is listed for train, too"]
    assert labelled(root) == {"train/a.png": True}


def test_coco_image_that_is_annotated_twice_is_left_out(tmp_path: Path) -> None:
    root = coco(tmp_path / "coco", [{"image_id": i, "segmentation": TRIANGLE} for i in (1, 2)], number=3)
    content = json.loads((root / "instances.json").read_text())
    content["images"][0]["file_name"] = "2.jpg"
    (root / "instances.json").write_text(json.dumps(content))
    (problem,) = write(root).problems
    assert "2.jpg is annotated already" in problem
    assert labelled(root) == {"train/1.png": True}


def test_pictures_annotated_as_shown_and_as_stored_are_not_skipped(tmp_path: Path) -> None:
    root = coco(tmp_path / "coco", [{"image_id": i, "segmentation": TRIANGLE} for i in (0, 1)])
    exif = Image.Exif()
    exif[0x0112] = 6
    for i, size in enumerate([(30, 20), (20, 30)]):
        Image.new("RGB", size).save(root / f"{i}.jpg", exif=exif)
    content = json.loads((root / "instances.json").read_text())
    for image in content["images"]:
        image.update(height=20, width=30)
    (root / "instances.json").write_text(json.dumps(content))
    report = write(root)
    assert report.card is None
    assert "turn the images" in report.problems[0]


def test_regions_that_all_leave_no_pixel_are_a_problem(tmp_path: Path) -> None:
    root = coco(tmp_path / "coco", [{"image_id": 0, "segmentation": [[5.1, 5.1, 5.2, 5.1, 5.2, 5.2]]}])
    report = write(root)
    assert report.card is None
    assert "all regions (1) are smaller than a pixel" in report.problems[0]
    for fractions in ({"segmentation": [[0, 0, 1, 0, 1, 1, 0, 1]]}, {"bbox": [0.1, 0.1, 0.5, 0.5]}):
        coco(root, [{"image_id": 0, **fractions}])
        with pytest.raises(ValueError, match="they seem to be fractions of the width and height"):
            read_annotations([root])


def test_splits_without_a_region_are_told(tmp_path: Path) -> None:
    report = write(coco(tmp_path / "coco", []))
    assert (report.problems, report.num_masks) == ([], {"train": 2})
    assert "no image of train has a region: look whether its annotations are missing" in report.notes


@pytest.mark.parametrize("damaged", [b"", b'{"shapes": [', b"[]", b"{}"])
def test_damaged_labelme_files_are_problems_of_their_images(damaged: bytes, tmp_path: Path) -> None:
    root = tmp_path / "labelme"
    photos(root, "a/0.jpg", "a/1.jpg", "b/0.jpg", "b/1.jpg")
    shape = {"label": "cat", "shape_type": "polygon", "points": TRIANGLE[0]}
    for folder, good in (("a", 0), ("b", 1)):
        (root / f"{folder}/{good}.json").write_text(json.dumps({"imagePath": f"{good}.jpg", "shapes": [shape]}))
        (root / f"{folder}/{1 - good}.json").write_bytes(damaged)
    report = write(root)
    assert [problem.partition(": ")[0] for problem in report.problems] == [
        str(root / "a/1.json"), str(root / "b/0.json")
    ]  # fmt: skip
    assert len(labelled(root)) == 2


@pytest.mark.parametrize("label", ["", " "])
def test_empty_labels_are_named_with_file_and_entry(label: str, tmp_path: Path) -> None:
    photos(tmp_path, "a.png", "cvat/a.png")
    shapes = [
        {"label": name, "shape_type": "polygon", "points": [[5, 5], [15, 5], [15, 15]]} for name in ("cat", label)
    ]
    (tmp_path / "a.json").write_text(json.dumps({"imagePath": "a.png", "shapes": shapes}))
    (problem,) = write_masks(read_annotations([tmp_path / "a.json"]), tmp_path / "out").problems
    assert problem == f"{tmp_path / 'a.json'}: shape 1: it has no label"

    polygons = "".join(f'<polygon label="{name}" points="5,5;15,5;15,15"/>' for name in ("cat", label))
    image = f'<image id="0" name="a.png" width="20" height="20">{polygons}</image>'
    (tmp_path / "cvat/a.xml").write_text(f"<annotations><version>1.1</version>{image}</annotations>")
    (problem,) = write_masks(read_annotations([tmp_path / "cvat"]), tmp_path / "out").problems
    assert "polygon 1: it has no label" in problem

    place = {"original_width": 20, "original_height": 20, "type": "polygonlabels"}
    points = [[25, 25], [75, 25], [75, 75]]
    results = [{**place, "value": {"points": points, "polygonlabels": [name]}} for name in ("cat", label)]
    (tmp_path / "b.json").write_text(json.dumps([{"data": {"image": "a.png"}, "annotations": [{"result": results}]}]))
    (problem,) = write_masks(read_annotations([tmp_path / "b.json"]), tmp_path / "out").problems
    assert "result 1: its label is empty" in problem

    path = coco(tmp_path / "coco", []) / "instances.json"
    path.write_text(path.read_text().replace('"cat"', f'"{label}"'))
    with pytest.raises(ValueError, match="category 0: its name is empty"):
        read_annotations([path])

    photos(tmp_path / "yolo", "a.png")
    labels(tmp_path / "yolo", "a.txt")
    (tmp_path / "yolo/data.yaml").write_text(f"names: ['{label}']\ntrain: .\n")
    with pytest.raises(ValueError, match="'names' holds an empty name"):
        read_annotations([tmp_path / "yolo"])
