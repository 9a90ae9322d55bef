"""`aucseg validate` and `aucseg test`: a trained run on splits of its data, and runs without a validation split."""

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
from aucseg.report.runs import read_run
from aucseg.training.second_stage import POSTHOC_MODEL
from aucseg.training.stored_task import load_task
from tests.conftest import write_tiny_dataset
from tests.small_runs import SMALL_RUN

FILES = ("result", "confusion", "images")


def fit_arguments(card: Path, out: Path, **more: object) -> list[str]:
    options = {
        **SMALL_RUN,
        "trainer.max_steps": 2,
        "trainer.num_sanity_val_steps": 0,
        "model.loss": "ce",
        "model.bank": "null",
        "data.card": card,
        "data.root": card.parent,
        "data.batch_size": 2,
        "data.num_workers": 0,
        "data.crop_size": "[32, 40]",
        "out": out,
        **more,
    }
    return [text for name, value in options.items() for text in (f"--{name}", str(value))]


def contents(folder: Path) -> dict[str, Any]:
    found = {name: json.loads((folder / f"{name}.json").read_text()) for name in FILES}
    for name in ("run", "checkpoint", "split"):
        found["result"].pop(name, None)
    return found


def edited(card: Path, name: str, **changes: object) -> Path:
    """Another card beside a card; None takes a key away."""
    content = yaml.safe_load(card.read_text()) | changes
    path = card.with_name(f"{name}.yaml")
    path.write_text(yaml.safe_dump({key: value for key, value in content.items() if value is not None}))
    return path


@pytest.fixture(scope="module")
def card(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a test split of three of the training images, and one without masks."""
    path = write_tiny_dataset(tmp_path_factory.mktemp("data"))
    for folder in ("images", "masks"):
        (path.parent / folder / "test").mkdir()
        for index in range(3):
            name = f"frame_{index:02d}.png"
            shutil.copy(path.parent / folder / "train" / name, path.parent / folder / "test" / f"t_{name}")
    splits = yaml.safe_load(path.read_text())["splits"]
    splits["test"] = {key: text.replace("train", "test") for key, text in splits["train"].items()}
    splits["bare"] = {"images": splits["test"]["images"]}
    return edited(path, "with_test", splits=splits)


@pytest.fixture(scope="module")
def run(card: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "a"
    assert main(["fit", *fit_arguments(card, out)]) == 0
    return out


def test_validating_a_run_gives_what_fit_gave(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert main(["validate", str(run), "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert "split 'val': miou 0." in said
    assert contents(run / "evaluation-val") == contents(run)
    checkpoint = run / "checkpoints" / "last.ckpt"
    assert (
        main(["validate", str(checkpoint), "--device", "cpu", "--out", str(tmp_path / "b"), "--batch-size", "3"]) == 0
    )
    found, expected = contents(tmp_path / "b"), contents(run)
    assert found["confusion"] == expected["confusion"]
    assert json.loads((tmp_path / "b" / "result.json").read_text())["split"] == "val"
    assert before == {path: path.read_bytes() for path in before}


def test_a_configuration_takes_the_last_checkpoint_of_its_run(
    run: Path, card: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = run / "config.yaml"
    assert main(["validate", "--config", str(config), "--out", str(tmp_path / "c")]) == 0
    assert f"validating {run / 'checkpoints' / 'last.ckpt'}, of step 2" in capsys.readouterr().err
    assert contents(tmp_path / "c") == contents(run)
    # Into the folder of the run itself: its configuration stays as it was.
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    assert (
        main(["validate", "--config", str(copy / "config.yaml"), "--out", str(copy), "--data.eval_batch_size", "2"])
        == 0
    )
    assert (copy / "config.yaml").read_bytes() == config.read_bytes()
    capsys.readouterr()
    assert main(["validate", "--config", str(config), "--out", str(copy)]) == 2
    assert "may both be meant" in capsys.readouterr().err


def test_a_second_stage_that_trains_nothing_has_the_steps_of_the_first(run: Path, tmp_path: Path) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    options = {"checkpoint": str(run / "checkpoints" / "last.ckpt"), "class_counts": [1, 1, 1, 1]}
    config["model"] |= {"model": POSTHOC_MODEL, "model_options": options}
    path = tmp_path / "posthoc.yaml"
    path.write_text(yaml.safe_dump(config))
    assert main(["validate", "--config", str(path), "--out", str(tmp_path / "b")]) == 0
    assert contents(tmp_path / "b")["confusion"] == contents(run)["confusion"]  # of equal counts
    assert read_run(tmp_path / "b").status == "2 steps"


def test_random_weights_are_not_validated(card: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", *fit_arguments(card, tmp_path / "new")]) == 2
    assert "without a checkpoint random weights would be validated" in capsys.readouterr().err
    assert not (tmp_path / "new" / "result.json").exists()
    for argument, message in ((tmp_path, "there is no checkpoint at"), (card, "is a configuration: give the folder")):
        assert main(["validate", str(argument)]) == 2
        assert message in capsys.readouterr().err


def test_the_test_split(run: Path, card: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["test", str(run), "--device", "cpu"]) == 0
    assert "split 'test': miou 0." in capsys.readouterr().out
    images = json.loads((run / "evaluation-test" / "images.json").read_text())
    assert sorted(images) == [f"images/test/t_frame_{i:02d}" for i in range(3)]
    assert json.loads((run / "evaluation-test" / "result.json").read_text())["step"] == 2
    # The same images under another name, on which the run was trained.
    assert main(["validate", str(run), "--split", "train", "--device", "cpu", "--out", str(tmp_path / "t")]) == 0
    assert "where it looks better than it is" in capsys.readouterr().out
    trained = json.loads((tmp_path / "t" / "images.json").read_text())
    assert images == {name.replace("train/", "test/t_"): trained[name] for name in sorted(trained)[:3]}
    moved = tmp_path / "moved"
    shutil.copytree(card.parent, moved)
    at_root = ["--root", str(moved), "--card", str(moved / card.name), "--out", str(tmp_path / "m")]
    assert main(["test", str(run), "--device", "cpu", *at_root]) == 0
    assert contents(tmp_path / "m") == contents(run / "evaluation-test")


def test_what_cannot_be_evaluated(run: Path, card: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    classes = yaml.safe_load(card.read_text())["classes"]
    swapped = edited(card, "swapped", classes=[classes[0], classes[2], classes[1], classes[3]])
    for options, message in (
        (["--split", "night"], "has no split 'night'; it has bare, test, train, val"),
        (["--split", "bare"], "split 'bare' of data set 'tiny' has no masks"),
        (["--held-out"], "was trained without data.held_out_share"),
        (["--out", str(run)], "the folder of this run, with the results of its training"),
        (["--card", str(swapped)], "class 1 is 'box' in the checkpoint and 'crate' in the card"),
        (["--root", str(tmp_path / "none")], "there is no such folder"),
        (["--device", "nowhere"], "--device nowhere"),
    ):
        assert main(["validate", str(run), "--device", "cpu", *options]) == 2, options
        assert message in capsys.readouterr().err


def test_the_groups_are_those_of_the_card_as_it_is_now(
    run: Path, card: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    groups = yaml.safe_load(card.read_text())["groups"]
    other = edited(card, "regrouped", groups=groups | {"head": groups["tail"], "tail": groups["head"]})
    assert main(["validate", str(run), "--card", str(other), "--device", "cpu", "--out", str(tmp_path / "b")]) == 0
    assert "the card 'tiny' has changed since the checkpoint: groups" in capsys.readouterr().err
    before, after = contents(run)["result"], contents(tmp_path / "b")["result"]
    assert after["groups"] == {"head": [3], "middle": [1, 2], "tail": [0]}
    for group, earlier in (("head", "tail"), ("middle", "middle"), ("tail", "head")):
        assert after["metrics"][group] == before["metrics"][earlier]
    assert after["per_class_iou"] == before["per_class_iou"]


def test_pictures_of_a_report_are_of_the_classes_and_the_evaluation_of_the_run(
    run: Path, card: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy, page = tmp_path / "run", str(tmp_path / "report.html")
    shutil.copytree(run, copy)
    checkpoint = copy / "checkpoints" / "last.ckpt"
    content = torch.load(checkpoint, weights_only=True)
    content["hyper_parameters"]["evaluation"] = {"scales": [1.0, 2.0], "flip": True}
    torch.save(content, checkpoint)
    task, data = load_task(copy), SegmentationDataModule(str(card), str(card.parent), num_workers=0)
    dataset = data.validation_dataset(data.evaluation_transform)
    shown = {example.name: example.predictions["run"] for example in collect_examples([copy])}
    for sample in (dataset[index] for index in range(len(dataset))):
        with torch.inference_mode():
            expected = task.predict_step(sample["image"][None], 0)[0]
        assert (shown[sample["name"]] == expected.numpy()).all()
    config = yaml.safe_load((copy / "config.yaml").read_text())
    classes = yaml.safe_load(card.read_text())["classes"]
    swapped = [{"ids": [i], **classes[i]} for i in (0, 2, 1, 3)]
    config["data"]["card"] = str(edited(card, "swapped_since", classes=swapped))
    (copy / "config.yaml").write_text(yaml.safe_dump(config))
    capsys.readouterr()
    assert main(["report", str(copy), "--out", page]) == 1
    said = capsys.readouterr().err
    assert "pictures are left out: the checkpoint is of 4 classes" in said
    assert "class 1 is 'box' in the checkpoint and 'crate' in the card" in said


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        (("train",), "has no split 'val' to validate on (its splits: train). Hold out a part of the training images: "),
        (("train", "bare"), "--data.held_out_share 0.2, or 'held_out_share: 0.2' in the card"),
    ],
)
def test_without_a_validation_split_no_model_is_built(
    card: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], splits: tuple[str, ...], message: str
) -> None:
    layouts = yaml.safe_load(card.read_text())["splits"]
    other = edited(card, "-".join(splits), splits={name: layouts[name] for name in splits})
    arguments = fit_arguments(other, tmp_path / "run", **{"model.model": "no_such_module:Net"})
    assert main(["fit", *arguments]) == 2
    assert message in capsys.readouterr().err
    # Nor where files are missing, or masks.
    for option, name, message in (
        ("val_split", "bare", "has no masks"),
        ("root", tmp_path, "no image of split 'train'"),
    ):
        assert (
            main(["fit", *fit_arguments(card, tmp_path / "run", **{"model.model": "no:Net", f"data.{option}": name})])
            == 2
        )
        assert message in capsys.readouterr().err


def test_images_held_out_are_validated_reported_and_exported(
    card: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The card says that a part of the training images is held out, since there is no validation split."""
    layouts = yaml.safe_load(card.read_text())["splits"]
    other = edited(card, "held_out", splits={"train": layouts["train"]}, held_out_share=0.25)
    out = tmp_path / "run"
    assert main(["fit", *fit_arguments(other, out)]) == 0
    assert "held out: 2 of 8 training images" in capsys.readouterr().err
    module = SegmentationDataModule(str(other), str(other.parent), num_workers=0)
    names = [pair.name for pair in module.validation_dataset(None).pairs]
    assert sorted(json.loads((out / "images.json").read_text())) == sorted(names)
    assert main(["validate", str(out), "--device", "cpu"]) == 0
    assert "held-out training images: miou 0." in capsys.readouterr().out
    assert contents(out / "evaluation-held-out") == contents(out)
    assert {example.name for example in collect_examples([out])} == set(names)
    assert main(["export", str(out), "--to", str(tmp_path / "model.pt2")]) == 0
    assert capsys.readouterr().out.startswith("checked on ")
    # Settings of the run go first, and a validation split makes the card's share void.
    assert SegmentationDataModule(str(other), held_out_share=0).held_out_share == 0
    both = edited(card, "both", held_out_share=0.25)
    assert not SegmentationDataModule(str(both)).validates_held_out
