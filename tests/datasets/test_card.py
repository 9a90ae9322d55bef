from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aucseg.datasets import DatasetCard
from aucseg.datasets.colors import default_color
from tests.datasets.conftest import MINI
from tests.datasets.trees import COCO_GAPS, cityscapes_table, coco_table, trees, voc_color

WriteCard = Callable[..., DatasetCard]


@pytest.mark.parametrize("name", DatasetCard.available())
def test_shipped_cards_say_where_the_data_is_and_survive_a_round_trip(name: str, tmp_path: Path) -> None:
    card = DatasetCard.load(name)
    assert card.name == name
    assert card.source
    assert card.licence
    assert len(set(card.palette)) == card.num_classes or card.num_classes > 100
    path = tmp_path / "copy.yaml"
    path.write_text(card.to_yaml())
    assert DatasetCard.load(path) == card


@pytest.mark.parametrize("tree", trees(), ids=lambda tree: tree.card)
def test_shipped_cards_map_the_ids_of_the_official_tables(tree: object) -> None:
    from tests.datasets.trees import Tree

    assert isinstance(tree, Tree)
    card = DatasetCard.load(tree.card)
    table = {raw: class_id for class_id, ids in enumerate(card.raw_ids) for raw in ids}
    assert table | dict.fromkeys(card.ignore_ids, 255) == tree.table
    assert sorted(table.values()) == list(range(card.num_classes))


def test_cityscapes_names_and_colours_are_those_of_the_official_tool() -> None:
    from cityscapesscripts.helpers.labels import labels

    card = DatasetCard.load("cityscapes")
    official = sorted((label for label in labels if 0 <= label.trainId < 255), key=lambda label: label.trainId)
    assert card.class_names == tuple(label.name for label in official)
    assert card.palette == tuple(label.color for label in official)
    assert sum(train_id == 255 for train_id in cityscapes_table().values()) == len(card.ignore_ids)


def test_cityscapes_groups_are_those_of_the_paper() -> None:
    groups = DatasetCard.load("cityscapes").groups
    assert groups is not None
    assert [len(ids) for ids in groups.values()] == [6, 6, 7]
    assert groups["tail"] == [6, 12, 14, 15, 16, 17, 18]


def test_ade20k_groups_are_those_of_the_paper() -> None:
    groups = DatasetCard.load("ade20k").groups
    assert groups is not None
    assert [len(ids) for ids in groups.values()] == [9, 17, 124]
    assert groups["tail"] == list(range(26, 150))


def test_coco_stuff_names_its_tail_alone() -> None:
    card = DatasetCard.load("coco_stuff164k")
    assert card.groups is None
    assert card.tail_classes is not None
    assert len(card.tail_classes) == 123
    assert card.tail_classes[:6] == (1, 3, 4, 8, 9, 10)
    assert card.tail_classes[-3:] == (167, 168, 170)


def test_coco_stuff_versions_differ_by_one_in_the_files() -> None:
    large, small = DatasetCard.load("coco_stuff164k"), DatasetCard.load("coco_stuff10k")
    assert large.class_names == small.class_names
    assert [ids[0] + 1 for ids in large.raw_ids] == [ids[0] for ids in small.raw_ids]
    assert len(coco_table(0, 0)) == 183 - len(COCO_GAPS)
    # Spot checks against the published label list: the last thing before, and the first stuff after, a gap.
    names = dict(zip((ids[0] for ids in small.raw_ids), small.class_names, strict=True))
    expected = {
        1: "person",
        13: "stop sign",
        90: "toothbrush",
        92: "banner",
        149: "road",
        157: "sky-other",
        182: "wood",
    }
    assert {raw: names[raw] for raw in expected} == expected


def test_ade20k_names_stand_at_their_places() -> None:
    names = DatasetCard.load("ade20k").class_names
    expected = {0: "wall", 12: "person", 20: "car", 26: "sea", 82: "light", 136: "traffic light", 149: "flag"}
    assert {class_id: names[class_id] for class_id in expected} == expected


@pytest.mark.parametrize(
    ("name", "digest"),
    [
        ("ade20k", "4087070b2dc5adc2"),
        ("coco_stuff164k", "838b84e014d6ce69"),
        ("loveda", "3c6c7e4d54f541b8"),
        ("pascal_context59", "8307874b0d9c6c45"),
    ],
)
def test_names_stand_in_the_published_order(name: str, digest: str) -> None:
    # The digests were taken of the label lists that others publish for these files, not of the cards.
    names = ",".join(re.sub("[ -]", "", class_name) for class_name in DatasetCard.load(name).class_names)
    assert hashlib.sha256(names.encode()).hexdigest().startswith(digest)


def test_voc_palette_is_the_colour_map() -> None:
    card = DatasetCard.load("pascal_voc2012")
    assert card.palette == tuple(voc_color(index) for index in range(21))
    assert [default_color(index) for index in range(256)] == [voc_color(index) for index in range(256)]


def test_defaults(write_card: WriteCard) -> None:
    card = write_card()
    assert (card.title, card.ignore_index, card.unmapped, card.exif) == ("mini", 255, "error", "error")
    assert card.raw_ids == ((0,), (7, 8), (9,))
    assert card.groups is None
    assert card.tail_classes is None


def test_unknown_name_lists_the_cards() -> None:
    with pytest.raises(ValueError, match=r"no data set card is called 'cityscape'; did you mean cityscapes"):
        DatasetCard.load("cityscape")
    with pytest.raises(ValueError, match=re.escape("there is no data set card at nowhere/my.yaml")):
        DatasetCard.load("nowhere/my.yaml")


# What is replaced by what, the line of the message, and the message.
BAD = [
    ("name: mini", "name: mini\ncolour: red", 2, "unknown key 'colour' in the card; known are name"),
    ("name: mini", "name: mini\nname: maxi", 2, "'name' occurs twice in the card"),
    ("name: mini\n", "", 1, "the card lacks the key 'name'"),
    ("name: mini", "name: [mini]", 1, "'name' must be text, got a list"),
    ("name: mini", "name: 12", 1, "'name' must be text, got '12'; put it in quotes"),
    ("name: road", "name: yes", 5, "'name' must be text, got 'yes'; put it in quotes"),
    ("name: road", "name: car", 6, "two classes are called 'car'"),
    ("mask_encoding: gray", "mask_encoding: grey", 2, "must be one of gray, palette, gray16, rgb, mat, got 'grey'"),
    ("ignore_ids: [255]", "ignore_ids: [9]", 3, "raw id 9 is ignored and stands for class 'bird'"),
    ("ignore_ids: [255]", "ignore_ids: [300]", 3, "must lie in 0..255, got 300"),
    ("ignore_ids: [255]", "ignore_ids: 255", 3, "'ignore_ids' must be a list, got '255'"),
    ("ignore_ids: [255]", "ignore_ids: [1.5]", 3, "must be an integer, got '1.5'"),
    ("ignore_ids: [255]", "ignore_index: 2", 3, "ignore_index 2 is the train id of class 'bird'"),
    ("ids: [9]", "ids: [8]", 7, "raw id 8 stands for 'car' and for 'bird'"),
    ("ids: [9]", "mask_colors: [[1, 2, 3]]", 7, "'mask_colors' does not go with mask_encoding gray"),
    ("[220, 20, 60]", "[220, 20]", 7, "must be three numbers [red, green, blue], got 2"),
    ("[220, 20, 60]", "[220, 20, 600]", 7, "must lie in 0..255, got 600"),
    ("images/*.png", "/images/*.png", 9, "must stay below the root folder"),
    ("images/*.png", "../images/*.png", 9, "must stay below the root folder"),
    ("masks/{stem}.png", "a/../../{stem}.png", 9, "must stay below the root folder"),
    ("masks/{stem}.png", "~/{stem}.png", 9, "must stay below the root folder"),
    ("images/*.png", "C:/images/*.png", 9, "must stay below the root folder"),
    ('images: "images/*.png"', 'list: a.txt, images: "images/*.png"', 9, "images must hold {stem}"),
    ("images/*.png", ".//etc/*.png", 9, "must stay below the root folder"),
    ("{stem}", "{name}", 9, "masks 'masks/{name}.png': {name} is unknown; known are {stem}, {1}; braces in names"),
    ("{stem}", "{2}", 9, "{2} is unknown; known are {stem}, {1};"),
    ('images: "images/*.png"', 'list: a.txt, images: "{split}/{stem}.png"', 9, "images '{split}/{stem}.png': {split}"),
    ('images: "images/*.png", masks: "masks/{stem}', 'list: a, images: "{stem}", masks: "{1}', 9, "known are {stem};"),
    ('.png"}', '.png", stems: ["2", "1"]}', 9, "stems ['2', '1'] is not a range"),
    ('.png"}', '.png", stems: ["1"]}', 9, "give the first and the last file name"),
    (
        'images: "images/*.png"',
        'list: a.txt, stems: ["1", "2"], images: "{stem}.png"',
        9,
        "leave lines out of the list",
    ),
    ("  train: {", "  train: [", 9, "not valid YAML"),
    (
        "splits:",
        "groups: {tail: [road, tram]}\nsplits:",
        8,
        "group 'tail' names 'tram', which is not a class of this card",
    ),
    ("splits:", "groups: {head: [road]}\nsplits:", 8, "'groups' needs head, middle and tail, or tail alone"),
    (
        "splits:",
        "groups: {head: [road], middle: [road], tail: []}\nsplits:",
        8,
        "'road' is in group 'head' and in 'middle'",
    ),
    ("splits:", "groups: {head: [road], middle: [], tail: [car]}\nsplits:", 8, "class 'bird' is in no group"),
]


@pytest.mark.parametrize(("old", "new", "line", "message"), BAD, ids=[message[:40] for *_, message in BAD])
def test_schema_errors_name_file_and_line(old: str, new: str, line: int, message: str, write_card: WriteCard) -> None:
    with pytest.raises(ValueError, match=rf"mini\.yaml:{line}: .*{re.escape(message)}"):
        write_card(**{old: new})


def test_files_that_are_no_cards(tmp_path: Path) -> None:
    path = tmp_path / "card.yaml"
    for content, message in (
        (b"", "empty"),
        (b"\xff\xfe\x00", "not a UTF-8 text file"),
        (b"- a\n- b\n", "must be a mapping"),
        (b"[" * 2_000, "not valid YAML"),
        (b"name: !!python/object/apply:os.system [echo]\nclasses: []\nsplits: {}\n", "must be text"),
        (b"name: a\nclasses: []\nsplits: {}\n", "'classes' is empty"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            DatasetCard.load(path)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, len(MINI)), st.integers(0, 12), st.text("{}[]:,-*&!#\n 0aé", max_size=6))
def test_damaged_cards_give_a_value_error_or_a_card(start: int, length: int, inserted: str) -> None:
    message, card = "card:", None
    try:
        card = DatasetCard.from_yaml(MINI[:start] + inserted + MINI[start + length :])
    except ValueError as error:
        message = str(error)
    assert message.startswith("card:")
    assert card is None or card.num_classes == len(card.palette) == len(card.raw_ids)


def test_more_than_255_classes_need_another_ignore_label(write_card: WriteCard) -> None:
    classes = "".join(f"  - {{name: c{i}}}\n" for i in range(300))
    text = f"name: many\nmask_encoding: gray16\nclasses:\n{classes}splits:\n  train: {{images: a/*.png}}\n"
    with pytest.raises(ValueError, match="with 300 classes 255 is a train id; set ignore_index"):
        write_card(text)
    assert write_card("ignore_index: -1\n" + text).num_classes == 300


def test_rgb_cards_name_colours(write_card: WriteCard, tmp_path: Path) -> None:
    text = MINI.replace("gray", "rgb").replace("ignore_ids: [255]", "ignore_colors: [[0, 0, 0]]")
    text = text.replace(", ids: [7, 8]", ", mask_colors: [[0, 0, 142], [0, 0, 143]]").replace(", ids: [9]", "")
    card = write_card(text)
    assert card.raw_ids[1] == (142, 143)
    path = tmp_path / "copy.yaml"
    path.write_text(card.to_yaml())
    assert DatasetCard.load(path) == card
    with pytest.raises(ValueError, match="'ignore_ids' does not go with mask_encoding rgb; use 'ignore_colors'"):
        write_card(text.replace("ignore_colors: [[0, 0, 0]]", "ignore_ids: [0]"))
    with pytest.raises(ValueError, match=r"raw id \(220, 20, 60\) is ignored and stands for class 'bird'"):
        write_card(text.replace("[[0, 0, 0]]", "[[220, 20, 60]]"))
