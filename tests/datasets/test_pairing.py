from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Literal

import pytest

from aucseg.datasets import DatasetCard, SegmentationDataset
from aucseg.datasets.pairing import find_pairs
from aucseg.datasets.tree import Tree, is_hidden
from tests.datasets.files import make

Form = Literal["NFC", "NFD"]
CARD = """name: t
classes: [{{name: a}}, {{name: b}}, {{name: c}}]
splits: {{train: {train}}}
"""


def card_of(train: str) -> DatasetCard:
    return DatasetCard.from_yaml(CARD.format(train=train))


def images_of(train: str, root: Path) -> list[str]:
    dataset = SegmentationDataset(card_of(train), root)
    for i in range(len(dataset)):
        assert "mask" in dataset[i]
    return [pair.image for pair in dataset.pairs]


PLAIN = "{images: 'images/*.png', masks: 'masks/{stem}.png'}"


def test_endings_fit_in_upper_and_lower_case(tmp_path: Path) -> None:
    make(tmp_path, ("images/a.png", "masks/a.png"), ("images/b.PNG", "masks/b.png"), ("images/c.Png", "masks/c.PNG"))
    assert images_of(PLAIN, tmp_path) == ["images/a.png", "images/b.PNG", "images/c.Png"]


def test_any_ending(tmp_path: Path) -> None:
    endings = [(".jpg", ".png"), (".JPG", ".tif"), (".jpeg", ".npy"), (".png", ".PNG"), (".tiff", ".bmp")]
    make(tmp_path, *((f"images/{i}{a}", f"masks/{i}{b}") for i, (a, b) in enumerate(endings)))
    (tmp_path / "images/notes.txt").write_text("no image")
    (tmp_path / "masks/0.json").write_text("{}")
    assert len(images_of("{images: 'images/*.*', masks: 'masks/{1}.*'}", tmp_path)) == len(endings)
    assert len(images_of("{images: 'images/*', masks: 'masks/{stem}.*'}", tmp_path)) == len(endings)
    make(tmp_path, ("images/0.jpg", "masks/0.tif"))
    with pytest.raises(ValueError, match=r"masks/0\.\* may be 0\.png or 0\.tif; rename or move away"):
        images_of("{images: 'images/*', masks: 'masks/{stem}.*'}", tmp_path)


def test_images_that_differ_in_their_ending_alone_have_names_of_their_own(tmp_path: Path) -> None:
    make(tmp_path, *((f"images/{name}", f"masks/{name}.png") for name in ("a.jpg", "a.png", "b.jpg", "b.c.jpg")))
    dataset = SegmentationDataset(card_of("{images: 'images/*.*', masks: 'masks/{1}.{2}.png'}"), tmp_path)
    names = ["images/a.jpg", "images/a.png", "images/b.c", "images/b"]
    assert [pair.name for pair in dataset.pairs] == [sample["name"] for sample in dataset] == names  # type: ignore[attr-defined]


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC"), ("NFD", "NFD")])
def test_names_in_other_normal_forms_and_cases(forms: tuple[Form, Form], tmp_path: Path) -> None:
    image, mask = (unicodedata.normalize(form, "Café_ü") for form in forms)
    make(tmp_path, (f"Fotos_{image}/{image}.png", f"Fotos_{mask}/masks/{mask.upper()}.png"))
    folder = unicodedata.normalize("NFC", image)
    train = f"{{images: 'Fotos_{folder}/*.png', masks: 'Fotos_{folder}/masks/{{stem}}.png'}}"
    if forms[0] != forms[1]:
        # Two folders whose names look the same.
        (tmp_path / f"Fotos_{mask}/masks").rename(tmp_path / f"Fotos_{image}/masks")
    assert images_of(train, tmp_path) == [f"Fotos_{image}/{image}.png"]


def test_a_name_as_it_stands_goes_before_one_in_another_case(tmp_path: Path) -> None:
    make(tmp_path, ("images/a.png", "masks/a.png"), ("images/A.png", "masks/A.png"))
    files = find_pairs(card_of(PLAIN), tmp_path, "train")
    assert [(pair.image, pair.mask) for pair in files.pairs] == [
        ("images/A.png", "masks/A.png"), ("images/a.png", "masks/a.png"),
    ]  # fmt: skip
    (tmp_path / "masks/a.png").rename(tmp_path / "masks/x.png")
    with pytest.raises(ValueError, match=r"images/A\.png and images/a\.png share the mask masks/A\.png"):
        find_pairs(card_of(PLAIN), tmp_path, "train")


def test_layouts_add_up(tmp_path: Path) -> None:
    make(tmp_path, ("a/1.png", "am/1.png"), ("b/0.jpg", "bm/0.png"), ("a/2.png", "other/2.png"))
    train = """[{images: 'a/*.png', masks: 'am/{stem}.png'}, {images: 'b/*.jpg', masks: 'bm/{stem}.png'},
    {images: 'a/*.png', masks: 'other/{stem}.png'}, {images: 'c/*.png', masks: 'cm/{stem}.png'}]"""
    files = find_pairs(card_of(train), tmp_path, "train")
    assert [(pair.image, pair.mask) for pair in files.pairs] == [
        ("a/1.png", "am/1.png"), ("a/2.png", "other/2.png"), ("b/0.jpg", "bm/0.png"),
    ]  # fmt: skip
    assert not files.missing
    (tmp_path / "bm/0.png").unlink()
    with pytest.raises(ValueError, match=r"1 of 3 samples .* b/0\.jpg needs bm/0\.png"):
        images_of(train, tmp_path)


def test_masks_of_train_ids_do_not_mix_with_raw_ids(tmp_path: Path) -> None:
    make(tmp_path, ("a/1.png", "raw/1.png"), ("a/2.png", "train/2.png"))
    train = "[{images: 'a/*.png', masks: 'raw/{stem}.png'}, {images: 'a/*.png', masks: 'train/{stem}.png', ids: train}]"
    files = find_pairs(card_of(train), tmp_path, "train")
    assert ([pair.image for pair in files.pairs], files.train_ids) == (["a/1.png"], False)
    assert [(pair.image, pair.mask) for pair in files.missing] == [("a/2.png", "raw/2.png")]


def test_images_and_masks_in_one_folder(tmp_path: Path) -> None:
    make(tmp_path, *((f"data/{i}.png", f"data/{i}_mask.png") for i in range(3)))
    assert images_of("{images: 'data/*.png', masks: 'data/{stem}_mask.png'}", tmp_path) == [
        f"data/{i}.png" for i in range(3)
    ]


@pytest.mark.parametrize(
    "name", ["a [1]", "{b}", "50% (2)", "#3", "it's", 'say "x"', "ü é", "日本", "a,b;c", "a.b.c", "10:30", "-x", "a+b$"]
)
def test_any_name_of_a_file_or_folder(name: str, tmp_path: Path) -> None:
    make(tmp_path, (f"images/{name}/{name}.png", f"masks/{name}/{name}.png"))
    expected = [f"images/{name}/{name}.png"]
    assert images_of("{images: 'images/*/*.png', masks: 'masks/{1}/{2}.png'}", tmp_path) == expected
    assert images_of("{images: 'images/**/*.png', masks: 'masks/{1}/{2}.png'}", tmp_path) == expected
    pattern = name.replace("'", "''")
    escaped = pattern.replace("{", "{{").replace("}", "}}")
    named = f"{{images: 'images/{pattern}/*.png', masks: 'masks/{escaped}/{{stem}}.png'}}"
    assert images_of(named, tmp_path) == expected


LISTED = "{list: train.txt, images: 'images/{stem}.png', masks: 'masks/{stem}.png'}"
LISTS = {
    "stems": b"a\nmy photo 1\n",
    "byte order mark and CRLF": "\ufeffa\r\nmy photo 1\r\n".encode(),
    "old Macintosh": b"a\rmy photo 1\r",
    "UTF-16": "a\nmy photo 1\n".encode("utf-16"),
    "blank lines and blanks": b"\n  a  \n\n\tmy photo 1\n\n",
    "no end of line": b"a\nmy photo 1",
    "endings": b"a.png\nmy photo 1.png\n",
    "relative": b"./images/a.png\nimages/my photo 1.png\n",
    "relative to the list": b"../data/images/a.png\n../data/images/my photo 1.png\n",
    "of another machine": b"/home/bob/data/images/a.png\nC:\\data\\images\\my photo 1.png\n",
    "with a leading slash": b"/images/a.png\n/images/my photo 1.png\n",
    "two columns": b"a 1\nmy photo 1\n",
    "of images and masks": b"images/a.png masks/a.png\nimages/my photo 1.png\n",
    "a line twice": b"a\nmy photo 1\na\n",
}


@pytest.mark.parametrize("case", LISTS)
def test_lists(case: str, tmp_path: Path) -> None:
    make(tmp_path, ("images/a.png", "masks/a.png"), ("images/my photo 1.png", "masks/my photo 1.png"))
    (tmp_path / "train.txt").write_bytes(LISTS[case])
    assert images_of(LISTED, tmp_path) == ["images/a.png", "images/my photo 1.png"]


def test_lists_in_latin_1_and_absolute(tmp_path: Path) -> None:
    make(tmp_path, ("images/über.png", "masks/über.png"), ("images/b/c.png", "masks/b/c.png"))
    (tmp_path / "train.txt").write_bytes("über\nb/c\n".encode("latin-1"))
    assert images_of(LISTED, tmp_path) == ["images/über.png", "images/b/c.png"]
    (tmp_path / "train.txt").write_text("".join(f"{tmp_path}/images/{name}.png\n" for name in ("über", "b/c")))
    assert images_of(LISTED, tmp_path) == ["images/über.png", "images/b/c.png"]


def test_lists_that_name_what_is_not_there(tmp_path: Path) -> None:
    make(tmp_path, ("images/a.png", "masks/a.png"))
    (tmp_path / "train.txt").write_text("a\nimages/gone.png\n")
    with pytest.raises(ValueError, match=r"1 of 2 samples .*: images/gone\.png needs masks/gone\.png"):
        images_of(LISTED, tmp_path)
    (tmp_path / "train.txt").write_text("../secret\n")
    with pytest.raises(ValueError, match=r"train\.txt:1: '\.\./secret' leads out of the root folder"):
        images_of(LISTED, tmp_path)


def test_patterns_that_find_nothing_say_what_in_them_may_be_wrong(tmp_path: Path) -> None:
    make(tmp_path, ("images/a.png", "masks/a.png"))
    assert images_of("{images: './images/*.png', masks: './masks/{stem}.png'}", tmp_path) == ["images/a.png"]
    for pattern, message in (
        ("images", r"images \(without a \* it is one file; images/\*\.\* are the images in a folder\)"),
        ("images/*.{jpg,png}", r"images/\*\.\{jpg,png\} \(braces stand for themselves, and \.\* is any ending\)"),
    ):
        with pytest.raises(ValueError, match=rf"looked for {message}\. Is this the right root"):
            images_of(f"{{images: '{pattern}', masks: 'masks/{{stem}}.png'}}", tmp_path)
    with pytest.raises(
        ValueError, match=r"looked for the list train\.txt, which is not there\. Is this the right root"
    ):
        images_of(LISTED, tmp_path)


def test_lists_with_commas_are_named(tmp_path: Path) -> None:
    make(tmp_path, ("images/a.png", "masks/a.png"), ("images/b,c.png", "masks/b,c.png"))
    (tmp_path / "train.txt").write_text("images/a.png,masks/a.png\nb,c.png,masks/b,c.png\n")
    with pytest.raises(
        ValueError, match=r"train\.txt: no line .*'images/a\.png,masks/a\.png'; columns are told apart by b"
    ):
        images_of(LISTED, tmp_path)
    (tmp_path / "train.txt").write_text("b,c\n")
    assert images_of(LISTED, tmp_path) == ["images/b,c.png"]


def test_a_list_that_names_other_masks_than_the_card_is_refused(tmp_path: Path) -> None:
    make(tmp_path, ("images/a.png", "masks/a.png"), ("images/b.png", "masks/b.png"), ("depth/a.png", "depth/b.png"))
    for second in ("masks/b.png", "./masks/b.png", "masks\\b.png", "depth/a.png", f"{tmp_path}/masks/b.png"):
        (tmp_path / "train.txt").write_text(f"b\nimages/a.png {second}\n")
        expected = "depth/a.png" if "depth" in second else "masks/b.png"
        with pytest.raises(
            ValueError, match=rf"train\.txt:2: .* the mask {expected}, but by .* it is masks/a\.png; corr"
        ):
            images_of(LISTED, tmp_path)
    for others in ("1", "-1 gone.png", "/home/bob/masks/b.png", "depth/a.png masks/a.png", "masks"):
        (tmp_path / "train.txt").write_text(f"images/a.png {others}\n")
        assert images_of(LISTED, tmp_path) == ["images/a.png"]


@pytest.mark.parametrize(
    "name",
    ["._a.png", ".hidden.png", ".DS_Store", "Thumbs.db", "desktop.ini", "@eaDir", "__MACOSX", ".ipynb_checkpoints"],
)
def test_hidden_files_are_never_data(name: str, tmp_path: Path) -> None:
    make(tmp_path, ("images/a.png", "masks/a.png"))
    assert is_hidden(name)
    for folder in (tmp_path, tmp_path / "images", tmp_path / "masks"):
        if "." in name[1:]:
            (folder / name).write_bytes(b"\0\5\x16\7")
        else:
            make(folder / name, ("x.png", "y.png"))
    for pattern in ("images/*", "images/*.png", "images/**/*", "*/*.png", "**/*.png"):
        found = [path for path, _ in Tree(tmp_path).match(pattern)]
        assert [path for path in found if not path.startswith("masks/")] == ["images/a.png"]
    assert Tree(tmp_path).files() == ["images/a.png", "masks/a.png"]
