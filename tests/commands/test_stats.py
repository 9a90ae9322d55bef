from __future__ import annotations

import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from aucseg import cli
from aucseg.commands import stats as stats_command
from aucseg.datasets import DatasetCard, SegmentationDataset
from aucseg.datasets.shards import write_shards
from aucseg.statistics.class_statistics import ClassStatistics
from tests.datasets.conftest import MINI, save_mask
from tests.datasets.files import blocks, save_image, save_palette
from tests.datasets.trees import trees

Run = Callable[..., int]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def run(*arguments: object) -> int:
        return cli.main(["stats", *map(str, arguments), "--workers", "0"])

    return run


@pytest.fixture
def card_path(tmp_path: Path) -> Path:
    path = tmp_path / "mini.yaml"
    path.write_text(MINI)
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    rng = np.random.default_rng(0)
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for i in range(6):
        Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).save(root / f"images/{i}.png")
        mask = np.zeros((12, 16))
        mask[6:] = 7
        mask[0, 0] = 9 if i == 3 else 0
        mask[-1, -1] = 255
        save_mask(mask, root / f"masks/{i}.png")
    return root


def test_a_clean_data_set(
    run: Run, card_path: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outputs = [
        f"--{name}={tmp_path / file}" for name, file in (("json", "r.json"), ("csv", "c.csv"), ("save", "s.json"))
    ]
    assert run(card_path, "--root", root, *outputs, f"--chart={tmp_path / 'c.png'}") == 0
    out = capsys.readouterr().out
    assert "check: 6 images, no problem found" in out
    assert "bird" in out
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["check"] == {
        "errors": [],
        "unknown_ids": {},
        "advice": [],
        "unused_files": [],
        "other_splits": {},
    }
    assert [row["pixels"] for row in report["classes"]] == [6 * 96 - 1, 6 * 95, 1]
    expected = ClassStatistics.from_dataset(SegmentationDataset(DatasetCard.load(card_path), root))
    assert ClassStatistics.load(tmp_path / "s.json") == expected
    assert (tmp_path / "c.png").stat().st_size > 0
    # The second run takes everything from the cache, and says the same.
    assert run(card_path, "--root", root) == 0
    assert capsys.readouterr().out == out


def test_unknown_ids_are_listed_with_their_files(
    run: Run, card_path: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for i, pixels in ((1, 2), (4, 3)):
        mask = np.zeros((12, 16))
        mask[0, :pixels] = 66
        save_mask(mask, root / f"masks/{i}.png")
    (root / "images/5.png").write_bytes(b"no image")
    assert run(card_path, "--root", root, "--json", tmp_path / "r.json") == 1
    out = capsys.readouterr().out
    assert "check: id 66 is not in the card: 5 pixels in 2 files: masks/1.png, masks/4.png" in out
    assert "images/5.png: not a readable image" in out
    assert "3 images counted, without those named above" in out
    found = json.loads((tmp_path / "r.json").read_text())["check"]
    assert found["unknown_ids"] == {"66": {"pixels": 5, "files": ["masks/1.png", "masks/4.png"]}}
    assert run(card_path, "--root", root, "--on-error", "skip") == 0


def test_a_missing_mask_is_one_finding_among_the_others(
    run: Run, card_path: Path, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    masks = sorted((root / "masks").rglob("*.png"))
    masks[0].unlink()
    masks[1].write_bytes(b"no image")
    assert run(card_path, "--root", root, "--no-cache") == 1
    output = capsys.readouterr().out
    assert f"its mask {masks[0].relative_to(root)} is missing" in output
    assert f"{masks[1]}: not a readable image" in output
    assert run(card_path, "--root", root, "--no-cache", "--on-error", "skip") == 0


def test_truncated_images_are_found_by_decoding(
    run: Run, card_path: Path, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = root / "images/2.png"
    path.write_bytes(path.read_bytes()[:-60])
    assert run(card_path, "--root", root) == 0
    assert run(card_path, "--root", root, "--decode-images") == 1
    assert "images/2.png: truncated or damaged" in capsys.readouterr().out


def test_a_folder_without_a_card(run: Run, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "proposed.yaml"
    assert run(root, "--write-card", path) == 0
    assert "proposed card: 3 classes, gray masks" in capsys.readouterr().out
    card = DatasetCard.load(path)
    assert card.raw_ids == ((0,), (7,), (9,))
    assert card.groups == ClassStatistics.from_dataset(SegmentationDataset(card, root)).groups()
    assert run(path, "--root", root) == 0


def test_the_card_in_a_folder_is_taken(
    run: Run, card_path: Path, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    card = DatasetCard.load(card_path)
    own = root / "card.yaml"
    own.write_text(card_path.read_text())
    Image.new("RGB", (8, 8)).save(root / "contact_sheet.png")
    assert run(root) == 0
    out = capsys.readouterr().out
    assert f"card: {own}, {card.num_classes} classes" in out
    assert all(name in out for name in card.class_names)
    assert run(root, "--write-card", root / "new.yaml") == 2
    assert "holds one, card.yaml already" in capsys.readouterr().err
    # What is no card does not stand in the way, but is named.
    own.write_text("title: another card\n")
    assert run(root) == 0  # the contact sheet is nothing that a proposed card would miss
    out = capsys.readouterr().out
    assert f"note: {own} is not a data set card, so one is proposed" in out
    assert "proposed card: 3 classes" in out


def test_shards_and_merging(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tree = next(tree for tree in trees() if tree.card == "loveda")
    for i in range(4):
        type(tree)(
            "loveda", "train", tree.image.replace("0.", f"{i}."), tree.mask.replace("0.", f"{i}."), tree.table
        ).make(tmp_path / "data", seed=i)
    dataset = SegmentationDataset("loveda", tmp_path / "data")
    shards = write_shards(dataset, tmp_path / "shards", samples_per_shard=3)
    for i, shard in enumerate(shards):
        assert run("loveda", "--shards", shard, "--save", tmp_path / f"{i}.json") == 0
    merged = tmp_path / "merged.json"
    assert run("loveda", "--merge", tmp_path / "0.json", tmp_path / "1.json", "--save", merged) == 0
    assert ClassStatistics.load(merged) == ClassStatistics.from_dataset(dataset)
    assert "4 images" in capsys.readouterr().out


def test_counts_of_other_classes_are_refused(
    run: Run, card_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    card = DatasetCard.load(card_path)
    names = list(card.class_names)
    file = tmp_path / "counts.json"
    for changed, message in (
        ([*names[1:], names[0]], f"class 0 is '{names[1]}' there and '{names[0]}' in the card"),
        (names[:-1], f"class {len(names) - 1} is none there and '{names[-1]}' in the card"),
        ([*names, "new"], f"class {len(names)} is 'new' there and none in the card"),
    ):
        statistics = ClassStatistics(len(changed), ignore_index=card.ignore_index, class_names=changed)
        statistics.update(np.arange(len(changed))[None])
        statistics.save(file)
        assert run(card_path, "--merge", file) == 2
        assert f"counts of other classes than those of the card {card.name!r}: {message}" in capsys.readouterr().err
    # Renamed, they may be the same.
    renamed = ClassStatistics(len(names), ignore_index=card.ignore_index, class_names=["new", *names[1:]])
    renamed.update(np.arange(len(names))[None])
    renamed.save(file)
    assert run(card_path, "--merge", file) == 0
    assert f"its class names differ from those in the card {card.name!r}" in capsys.readouterr().err


def test_what_cannot_run(
    run: Run, card_path: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, message in (
        (["nothing"], "there is no folder or card 'nothing'"),
        ([card_path], "give its root folder"),
        ([card_path, "--root", root, "--split", "val"], "has no split 'val'"),
        ([card_path, "--root", root, "--write-card", tmp_path / "x.yaml"], "is a card already"),
        ([card_path, "--root", root, "--batch-size", "0"], "--batch-size at least 1"),
        ([card_path, "--merge", card_path], "not class statistics"),
    ):
        assert run(*arguments) == 2
        assert message in capsys.readouterr().err


def test_nothing_labelled(run: Run, card_path: Path, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(6):
        save_mask(np.full((12, 16), 255), root / f"masks/{i}.png")
    assert run(card_path, "--root", root) == 1
    assert "no labelled pixel" in capsys.readouterr().err


def test_what_is_found_and_the_card_are_written_where_nothing_can_be_counted(
    run: Run, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6  # turned by 90 degrees
    for number, image in enumerate(sorted((root / "images").iterdir())):
        Image.new("RGB", (16, 12), (40 * number, 0, 0)).save(image.with_suffix(".jpg"), exif=turned)
        image.unlink()
    written = {name: tmp_path / name for name in ("my.yaml", "all.json", "c.csv")}
    options = ("--write-card", written["my.yaml"], "--json", written["all.json"], "--csv", written["c.csv"])
    assert run(root, *options) == 1
    captured = capsys.readouterr()
    assert f"not written, as there is nothing to write: --csv {written['c.csv']}" in captured.err
    assert f"wrote {written['my.yaml']}" in captured.out
    assert [path.exists() for path in written.values()] == [True, True, False]
    assert sum("EXIF" in error for error in json.loads(written["all.json"].read_text())["check"]["errors"]) == 6
    written["my.yaml"].write_text(written["my.yaml"].read_text().replace("exif: error", "exif: ignore"))
    assert run(written["my.yaml"], "--root", root) == 0


def test_files_in_no_pair_are_named_and_are_no_success(
    run: Run, card_path: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "images/5.png").rename(root / "images/5.jpeg")
    save_image(root / "extra/1.png", 9)
    assert run(card_path, "--root", root, "--json", tmp_path / "r.json") == 1
    out = capsys.readouterr().out
    assert out.startswith("files: train 5 images\nfiles: 1 in no split: extra/1.png\n")
    assert "check: images/5.jpeg: in no pair\ncheck: masks/5.png: in no pair" in out
    assert json.loads((tmp_path / "r.json").read_text())["check"]["unused_files"] == ["extra/1.png"]
    assert run(card_path, "--root", root, "--on-error", "skip") == 0
    # A folder without a card takes all endings.
    assert run(root, "--no-cache") == 1
    assert "files: train 6 images" in capsys.readouterr().out


def test_copies_are_named(run: Run, card_path: Path, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "images/1.png").write_bytes((root / "images/3.png").read_bytes())
    assert run(card_path, "--root", root) == 1
    assert "check: the same image with different masks: images/1.png with masks/1.png, images/3.png with" in (
        capsys.readouterr().out
    )


def test_palettes_that_differ_are_found_with_a_card(
    run: Run, tmp_path: Path, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "palette.yaml"
    path.write_text(MINI.replace("gray", "palette"))
    for i in range(6):
        colors = [(i // 5, 0, j) for j in range(256)]
        save_palette(root / f"masks/{i}.png", blocks([0, 7, 9], size=(12, 16)), colors)
    assert run(path, "--root", root) == 1
    out = capsys.readouterr().out
    assert "masks/5.png: index 7 of the palette is (1, 0, 7), but (0, 0, 7) in masks/0.png" in out
    # From the cache, too.
    assert run(path, "--root", root) == 1
    assert capsys.readouterr().out == out


def test_unknown_ids_along_edges_are_explained(
    run: Run, card_path: Path, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for i in range(6):
        mask = Image.fromarray(np.kron([[0, 9], [9, 0]], np.ones((6, 8))).astype(np.uint8) * 25)
        save_mask(
            np.asarray(mask.resize((16, 12), Image.Resampling.BILINEAR).resize((64, 48), 2)), root / f"masks/{i}.png"
        )
        save_image(root / f"images/{i}.png", i, (48, 64))
    assert run(card_path, "--root", root) == 1
    assert "fill areas (0, 225): the masks were resized with interpolation" in capsys.readouterr().out


def test_without_a_place_for_the_cache_counting_goes_on(
    run: Run, card_path: Path, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert run(card_path, "--root", root) == 0
    assert "results are not kept for the next run" in caplog.text


def test_links_are_followed_unless_forbidden(
    run: Run, card_path: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "masks").rename(tmp_path / "store")
    (root / "masks").symlink_to(tmp_path / "store")
    assert run(card_path, "--root", root, "--no-cache") == 0
    assert run(card_path, "--root", root, "--no-cache", "--no-follow-symlinks") == 1
    assert "a symbolic link leads out of the root folder" in capsys.readouterr().out


def test_interrupting_is_no_traceback(
    run: Run, card_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(stats_command, "_count", interrupt)
    assert run(card_path, "--root", root) == 130
    assert "the next run goes on from there" in capsys.readouterr().err


def test_without_a_validation_split_a_part_of_the_images_is_proposed(
    run: Run, card_path: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(card_path, "--root", root) == 0
    assert "with 'held_out_share: 0.2' in the card or --data.held_out_share 0.2" in capsys.readouterr().out
    path = tmp_path / "proposed.yaml"
    assert run(root, "--write-card", path) == 0
    assert "runs hold out 0.2 of the training images: held_out_share" in capsys.readouterr().out
    assert DatasetCard.load(path).held_out_share == 0.2
    path.write_text(path.read_text().replace("held_out_share: 0.2", "held_out_share: 1.5"))
    assert run(path, "--root", root) == 2
    assert "'held_out_share' must lie between 0 and 1, got 1.5" in capsys.readouterr().err


def test_images_of_other_splits_are_named(
    run: Run, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for kind in ("images", "masks"):
        (root / kind / "train").mkdir()
        (root / kind / "val").mkdir()
        for i in range(6):
            (root / f"{kind}/{i}.png").rename(root / kind / ("val" if i > 3 else "train") / f"{i}.png")
    assert run(root, "--json", tmp_path / "r.json", "--write-card", tmp_path / "c.yaml") == 0
    out = capsys.readouterr().out
    assert "files: of val, not used here: images/val/4.png, images/val/5.png" in out
    assert "validation:" not in out
    found = json.loads((tmp_path / "r.json").read_text())["check"]["other_splits"]
    assert found == {"val": ["images/val/4.png", "images/val/5.png"]}
    assert DatasetCard.load(tmp_path / "c.yaml").held_out_share is None


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes with names")
def test_files_that_a_user_names_may_be_links_and_pipes(run: Run, card_path: Path, root: Path, tmp_path: Path) -> None:
    pipe, link = tmp_path / "pipe", tmp_path / "link.csv"
    os.mkfifo(pipe)
    link.symlink_to(tmp_path / "classes.csv")
    with ThreadPoolExecutor() as pool:
        text = pool.submit(pipe.read_text)
        assert run(card_path, "--root", root, "--json", pipe, "--csv", link) == 0
        assert json.loads(text.result(timeout=60))["num_images"] == 6
    assert pipe.is_fifo()
    assert link.is_symlink()
    assert (tmp_path / "classes.csv").read_text().startswith("id,")


def test_files_of_the_user_are_not_overwritten(
    run: Run, card_path: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    proposed = tmp_path / "proposed.yaml"
    assert run(root, "--write-card", proposed) == 0
    assert run(root, "--write-card", proposed) == 0  # once more
    named = proposed.read_text().replace("class_7", "bird")
    assert "bird" in named
    proposed.write_text(named)
    assert run(root, "--write-card", proposed) == 2
    assert f"{proposed} exists and is another card" in capsys.readouterr().err
    assert proposed.read_text() == named
    assert run(card_path, "--root", root, "--cache", card_path) == 2
    assert f"{card_path} is not a cache of 'aucseg stats'" in capsys.readouterr().err
    assert card_path.read_text() == MINI


def test_nothing_is_counted_twice(
    run: Run, card_path: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(card_path, "--root", root, "--save", tmp_path / "part.json") == 0
    assert run(card_path, "--merge", tmp_path / "part.json", tmp_path / "x/../part.json") == 2
    assert "--merge lists a file twice" in capsys.readouterr().err
    pytest.importorskip("webdataset")
    (shard,) = write_shards(SegmentationDataset(card_path, root), tmp_path / "shards")
    assert run(card_path, "--shards", shard, tmp_path / "shards/*.tar") == 2
    assert f"the shard {shard} is listed twice" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["card.yaml", "card.yml", "Card.yaml"])
def test_a_mistake_in_the_card_of_a_folder_is_not_passed_over(
    run: Run, root: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / name).write_text(MINI.replace("name: bird", "name: off"))
    assert run(root) == 2
    assert f"{root / name}:" in capsys.readouterr().err
    (root / name).write_text(MINI)
    assert run(root) == 0
    assert f"card: {root / name}" in capsys.readouterr().out
    (root / name).write_text("cards: [ace, king]\n")
    assert run(root) == 0
    assert f"note: {root / name} is not a data set card, so one is proposed" in capsys.readouterr().out


def test_lists_of_splits_are_pointed_out(run: Run, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "ImageSets").mkdir()
    for name in ("train", "val", "classes"):
        (root / "ImageSets" / f"{name}.txt").write_text("0\n1\n")
    run(root)
    assert "note: ImageSets/train.txt, ImageSets/val.txt may list the images of splits" in capsys.readouterr().out
