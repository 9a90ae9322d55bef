"""Runs whose held-out images, or fold, stay what they were when files are added to or taken from the folder."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from aucseg import SegmentationDataModule
from aucseg.cli import main
from aucseg.report.examples import collect_examples
from tests.conftest import write_tiny_dataset
from tests.small_runs import SMALL_RUN

OPTIONS = {
    **SMALL_RUN,
    "trainer.num_sanity_val_steps": 0,
    "model.loss": "ce",
    "model.bank": "null",
    "data.batch_size": 2,
    "data.num_workers": 0,
    "data.crop_size": "[32, 40]",
}
HELD_OUT: dict[str, object] = {"data.held_out_share": 0.25}
FOLD: dict[str, object] = {"data.fold": "[1, 3]"}


def fit(card: Path, out: Path, **more: object) -> int:
    options = {**OPTIONS, "data.card": card, "data.root": card.parent, "out": out, "trainer.max_steps": 2, **more}
    return main(["fit", *(text for name, value in options.items() for text in (f"--{name}", str(value)))])


def validated(folder: Path) -> set[str]:
    return set(json.loads((folder / "images.json").read_text()))


def add_images(card: Path, number: int = 4) -> None:
    """More images, before all others in the order of the names."""
    for folder in ("images", "masks"):
        for index in range(number):
            place = card.parent / folder / "train"
            shutil.copy(place / f"frame_{index + 3:02d}.png", place / f"added_{index:02d}.png")


@pytest.fixture
def card(tmp_path: Path) -> Path:
    """Twelve images in a training split, and no other."""
    path = write_tiny_dataset(tmp_path / "data", num_train=12, num_val=1)
    content = yaml.safe_load(path.read_text())
    content["splits"].pop("val")
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.mark.parametrize("part", [HELD_OUT, FOLD], ids=["held out", "fold"])
def test_images_that_were_trained_on_are_not_validated_after_files_were_added(
    part: dict[str, object], card: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert fit(card, run, **part) == 0
    before = validated(run)
    add_images(card)
    option = ["--held-out"] if part is HELD_OUT else []
    # Drawn anew they would be others.
    options = {"held_out_share": 0.25} if part is HELD_OUT else {"fold": (1, 3)}
    module = SegmentationDataModule(str(card), str(card.parent), num_workers=0, **options)
    assert {pair.name for pair in module.validation_dataset(None).pairs} - before
    capsys.readouterr()
    assert main(["validate", str(run), *option, "--device", "cpu", "--out", str(tmp_path / "v")]) == 0
    said = capsys.readouterr().err
    assert f"{len(before)} of 16 training images, those of the checkpoint; there were 12 " in said
    assert validated(tmp_path / "v") == before
    assert main(["validate", "--config", str(run / "config.yaml"), "--out", str(tmp_path / "w")]) == 0
    assert validated(tmp_path / "w") == before
    assert {example.name for example in collect_examples([run], num_samples=9)} == before
    capsys.readouterr()
    assert main(["adjust", str(run), "--device", "cpu", "--folds", "2"]) in (0, 1)
    said = capsys.readouterr().out
    assert f"{len(before)} of 16 training images, those of the checkpoint" in said
    assert f"fitting one offset a class on {len(before)} " in said
    assert fit(card, run, **part, **{"resume": "auto", "trainer.max_steps": 3}) == 0
    assert validated(run) == before
    stored = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["SegmentationDataModule"]
    assert set(stored["images"]["held_out" if part is HELD_OUT else "fold"]) == before
    assert stored["num_images"] == 16


def test_a_run_that_goes_on_with_other_images_says_so(
    card: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, image = tmp_path / "run", card.parent / "images" / "train" / "frame_01.png"
    mask = card.parent / "masks" / "train" / "frame_01.png"
    no_validation = {"trainer.limit_val_batches": 0, "data.held_out_share": 0, "resume": "auto"}
    said = []
    for step in range(1, 5):
        assert fit(card, run, **no_validation, **{"trainer.max_steps": step}) == 0
        said.append(capsys.readouterr().err)
        if step == 2:
            add_images(card, 3)
        if step == 3:
            for path in (image, mask):
                path.rename(path.with_name("other.png"))
    told = "the run goes on with other training files than before"
    assert [told in text for text in said] == [False, False, True, True]
    assert f"{told} (12 files then, 15 now)" in said[2]
    assert f"{told} (as many, with other names)" in said[3]
    assert fit(card, run, **no_validation, **{"trainer.max_steps": 4}) == 0
    assert told not in capsys.readouterr().err


def test_other_settings_are_not_resumed_and_not_validated(
    card: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert fit(card, run, **HELD_OUT) == 0
    before = (run / "checkpoints" / "last.ckpt").read_bytes()
    other = {"data.held_out_share": 0.5, "resume": "auto", "trainer.max_steps": 3}
    assert fit(card, run, **other) == 2
    said = capsys.readouterr().err
    assert (
        "trained with data.held_out_share 0.25 and data.held_out_by sequence, not with data.held_out_share 0.5" in said
    )
    assert "train again in another folder" in said
    assert (run / "checkpoints" / "last.ckpt").read_bytes() == before
    config = run / "config.yaml"
    fold = ["--data.fold", "[0, 3]", "--data.validate_held_out", "false"]
    assert main(["validate", "--config", str(config), "--out", str(tmp_path / "v"), *fold]) == 2
    assert "the run was trained with no data.fold, not with data.fold [0, 3]" in capsys.readouterr().err


def test_a_checkpoint_without_the_names_is_validated_as_before(card: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert fit(card, run, **HELD_OUT) == 0
    path = run / "checkpoints" / "last.ckpt"
    content = torch.load(path, weights_only=True)
    del content["SegmentationDataModule"]
    torch.save(content, path)
    assert main(["validate", str(run), "--device", "cpu", "--out", str(tmp_path / "v")]) == 0
    assert validated(tmp_path / "v") == validated(run)


def test_a_damaged_state_is_told(card: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert fit(card, run, **HELD_OUT) == 0
    path = run / "checkpoints" / "last.ckpt"
    content = torch.load(path, weights_only=True)
    states: list[Any] = [[1], {}, {**content["SegmentationDataModule"], "images": {"held_out": 3}}]
    for state in states:
        torch.save(content | {"SegmentationDataModule": state}, path)
        assert main(["validate", str(run), "--device", "cpu", "--out", str(tmp_path / "v")]) == 2
        assert "does not say which training images were held out" in capsys.readouterr().err
