import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from aucseg import SegmentationTask
from aucseg.cli import main
from aucseg.datasets import SegmentationDataset
from aucseg.datasets.shards import write_shards
from aucseg.models.checkpoint import TRUST_VARIABLE
from aucseg.report.examples import collect_examples
from aucseg.report.runs import read_run
from aucseg.training.adjustment import write_adjusted_checkpoint
from aucseg.training.second_stage import offsets_model
from aucseg.training.stored_task import load_task
from tests.conftest import write_tiny_dataset
from tests.inference.color_models import HELD_BACK

CLASSES = ("ground", "box", "crate", "gem")


@pytest.fixture(scope="module")
def card(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_dataset(tmp_path_factory.mktemp("data"), num_train=40, num_val=16)


def make_run(folder: Path, card: Path, model: str, **data: object) -> Path:
    """A run folder as training leaves it, without the training."""
    task = SegmentationTask(
        str(card), f"tests.inference.color_models:{model}", mean=[0.0] * 3, std=[1.0] * 3, loss="ce"
    )
    (folder / "checkpoints").mkdir(parents=True)
    content = {
        "state_dict": task.state_dict(),
        "hyper_parameters": dict(task.hparams),
        "global_step": 7,
        "pytorch-lightning_version": "2.6.0",
    }
    torch.save(content, folder / "checkpoints" / "last.ckpt")
    options = {"card": str(card), "root": str(card.parent), "eval_batch_size": 4, "num_workers": 0, **data}
    (folder / "config.yaml").write_text(yaml.safe_dump({"trainer": {"max_steps": 7}, "data": options}))
    return folder


@pytest.fixture(autouse=True)
def _trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TRUST_VARIABLE, "1")


@pytest.mark.parametrize("model", ["with_bias", "WithoutBias"])
def test_a_class_that_was_held_back_is_found(
    model: str, card: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "run", card, model)
    before = (run / "checkpoints" / "last.ckpt").read_bytes()
    assert main(["adjust", str(run), "--device", "cpu"]) == 0
    text = capsys.readouterr().out
    assert "16 images of split 'val'" in text
    assert ("in the bias of" in text) == (model == "with_bias")
    out = tmp_path / "run-adjusted"
    record = json.loads((out / "adjust.json").read_text())
    assert record["offsets"]["gem"] - record["offsets"]["ground"] > 0.2
    assert (record["iou_before"]["gem"], record["accepted"]) == (0.0, True)
    assert record["iou_after"]["gem"] > 0.9
    assert (run / "checkpoints" / "last.ckpt").read_bytes() == before
    # Every reader of a run sees the new decisions: those of the old logits with the offsets.
    old, new = load_task(run), load_task(out)
    images = torch.stack([SegmentationDataset(str(card), card.parent, "val")[i]["image"] for i in range(4)])
    offsets = torch.tensor([record["offsets"][name] for name in CLASSES]).view(1, -1, 1, 1)
    with torch.no_grad():
        torch.testing.assert_close(new(images), old(images) + offsets)
    adjusted = read_run(out)
    assert (adjusted.step, adjusted.is_finished) == (7, True)
    assert adjusted.metrics["tail"] == record["iou_after"]["gem"]


def test_offsets_are_those_of_logits_where_evaluation_takes_means_of_probabilities(
    card: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "run", card, "with_bias")
    found = []
    for evaluation in (None, {"flip": True, "scales": [0.5, 1.0]}):
        content = torch.load(run / "checkpoints" / "last.ckpt", weights_only=False)
        content["hyper_parameters"]["evaluation"] = evaluation
        torch.save(content, run / "checkpoints" / "last.ckpt")
        assert main(["adjust", str(run), "--device", "cpu", "--overwrite"]) == 0
        told = "without the flip and the scales" in capsys.readouterr().out
        result = json.loads((tmp_path / "run-adjusted" / "result.json").read_text())
        assert told == ("evaluation" in result) == (evaluation is not None)
        found.append(json.loads((tmp_path / "run-adjusted" / "adjust.json").read_text())["offsets"])
    assert found[0] == found[1]


class _Gated(torch.nn.Module):
    """The gate makes K outputs as well, but acts where it is above zero alone."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.colors = torch.nn.Conv2d(3, num_classes, 1)
        self.gate = torch.nn.Conv2d(3, num_classes, 1)
        # Open for a grey image, closed for a dark one.
        state = {"weight": torch.ones_like(self.gate.weight), "bias": torch.full((num_classes,), -200.0)}
        self.gate.load_state_dict(state)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.colors(images) + self.gate(images).relu()
        return logits


def gated(num_classes: int) -> torch.nn.Module:
    return _Gated(num_classes)


def test_the_bias_is_one_that_acts_on_all_images(card: Path, tmp_path: Path) -> None:
    task = SegmentationTask(
        str(card), "tests.commands.test_adjust:gated", mean=[0.0] * 3, std=[1.0] * 3, loss="ce", model_options={}
    )
    content = {"state_dict": task.state_dict(), "hyper_parameters": dict(task.hparams), "global_step": 1}
    torch.save(content | {"pytorch-lightning_version": "2.6.0"}, tmp_path / "model.ckpt")
    layer = write_adjusted_checkpoint(tmp_path / "model.ckpt", [0.5, 0.0, 0.0, -0.5], tmp_path / "out")
    assert layer.endswith("colors")


@pytest.mark.parametrize("model", ["with_bias", "WithoutBias"])
def test_exported_and_predicted_labels_are_those_of_the_adjusted_run(model: str, card: Path, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    run = make_run(tmp_path / "run", card, model)
    out, path = tmp_path / "out", tmp_path / "model.onnx"
    assert main(["adjust", str(run), "--out", str(out), "--device", "cpu"]) == 0
    assert main(["export", str(out), "--to", str(path)]) == 0
    inputs = str(card.parent / "images" / "val")
    assert main(["predict", str(out), inputs, "--out", str(tmp_path / "maps"), "--no-overlays", "--device", "cpu"]) == 0
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    old = load_task(run)
    offsets = torch.tensor(list(json.loads((out / "adjust.json").read_text())["offsets"].values())).view(1, -1, 1, 1)
    for index in range(16):
        image = SegmentationDataset(str(card), card.parent, "val")[index]["image"][None]
        with torch.no_grad():
            expected = (old(image) + offsets).argmax(1)[0].numpy()
        exported = session.run(["logits"], {"images": image.float().numpy()})[0].argmax(1)[0]
        predicted = np.array(Image.open(tmp_path / "maps" / "labels" / f"frame_{index:02d}.png"))
        np.testing.assert_array_equal(exported, expected)
        np.testing.assert_array_equal(predicted, expected)


def test_held_out_images_are_fitted_on_and_the_validation_split_judges(
    card: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "run", card, "with_bias", held_out_share=0.6)
    assert main(["adjust", str(run), "--objective", "tail", "--folds", "4", "--device", "cpu"]) == 0
    text = capsys.readouterr().out
    assert "24 held-out training images" in text
    assert "on split 'val', which chose nothing" in text
    out = tmp_path / "run-adjusted"
    result = json.loads((out / "result.json").read_text())
    assert result["step"] == 7
    assert result["metrics"]["tail"] > 0.9
    assert len(json.loads((out / "images.json").read_text())) == 16
    assert json.loads((out / "adjust.json").read_text())["num_folds"] == 4


def test_compare_judges_the_model_with_the_offsets_of_held_out_images(
    card: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "run", card, "with_bias")
    data = {"card": str(card), "root": str(card.parent), "num_workers": 0, "held_out_share": 0.6}
    model = offsets_model(4, checkpoint=str(run / "checkpoints" / "last.ckpt"), data=data).eval()
    assert "offsets on 24 held-out images" in capsys.readouterr().out
    sample = SegmentationDataset(str(card), card.parent, "val")[0]
    assert (sample["mask"] == 3).any()
    with torch.no_grad():
        predicted = model(sample["image"][None].float()).argmax(1)[0]
    valid = sample["mask"] != 255
    assert (predicted == sample["mask"])[valid].float().mean() > 0.99


def test_a_named_split_is_that_of_the_card_and_not_the_fold(
    card: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "run", card, "with_bias", fold=[0, 4])
    assert main(["adjust", str(run), "--device", "cpu"]) == 0
    assert "10 images of fold 0 of 4 ..." in capsys.readouterr().out
    assert main(["adjust", str(run), "--split", "val", "--device", "cpu", "--overwrite"]) == 0
    told = capsys.readouterr().out
    assert "16 images of split 'val' ..." in told
    assert "on fold 0 of 4, which chose nothing" in told


def test_runs_with_shards_are_validated_on_these_and_not_adjusted_by_other_images(
    card: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("webdataset")
    val = SegmentationDataset(str(card), card.parent, "val")
    val.pairs = val.pairs[:8]
    shards = [str(path) for path in write_shards(val, tmp_path / "shards", samples_per_shard=8)]
    run = make_run(tmp_path / "run", card, "with_bias", val_shards=shards)
    assert main(["validate", str(run), "--device", "cpu"]) == 0
    told = capsys.readouterr().out
    assert f"{run}, shards {shards[0]}: miou" in told
    result = json.loads((run / "evaluation-shards" / "result.json").read_text())
    assert result["split"] == "shards"
    assert main(["adjust", str(run), "--device", "cpu"]) == 2
    message = f"was validated on shards {shards[0]}, and offsets are fitted on images in a folder: name a split"
    assert message in capsys.readouterr().err
    assert main(["adjust", str(run), "--split", "val", "--device", "cpu"]) == 0
    told = capsys.readouterr().out
    assert "16 images of split 'val' ..." in told
    assert f"on shards {shards[0]}, which chose nothing" in told


def test_what_is_right_already_is_left_alone(card: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "run", card, "with_bias")
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    next(value for name, value in checkpoint["state_dict"].items() if name.endswith("1.bias"))[3] += HELD_BACK
    torch.save(checkpoint, run / "checkpoints" / "last.ckpt")
    assert main(["adjust", str(run), "--device", "cpu"]) == 1
    assert "is not above its spread" in capsys.readouterr().out
    assert not (tmp_path / "run-adjusted").exists()


def test_class_weights(card: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", card, "with_bias")
    assert main(["adjust", str(run), "--class-weight", "gem=5", "--device", "cpu"]) == 0
    record = json.loads((tmp_path / "run-adjusted" / "adjust.json").read_text())
    assert record["objective"] == "weights"
    assert record["before"] == pytest.approx(sum(list(record["iou_before"].values())[:3]) / 8)


def test_the_table_and_the_gain_are_of_the_same_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A class without a pixel counts in the IoU where it is predicted, be it before or after; in neither mean here."""
    card = write_tiny_dataset(tmp_path / "data", num_train=1, num_val=16)
    groups = {"head": ["ground", "box"], "middle": ["crate"], "tail": ["gem"]}
    card.write_text(yaml.safe_dump(yaml.safe_load(card.read_text()) | {"groups": groups}))
    for path in (card.parent / "masks" / "val").iterdir():
        mask = np.array(Image.open(path))
        Image.fromarray(np.where(mask == 2, 1, mask).astype(np.uint8)).save(path)
    run = make_run(tmp_path / "run", card, "with_bias")
    assert main(["adjust", str(run), "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    record = json.loads((tmp_path / "run-adjusted" / "adjust.json").read_text())
    assert record["iou_before"]["crate"] == 0  # it is predicted
    assert [name for name, occurs in record["occurs"].items() if not occurs] == ["crate"]
    overall = next(line for line in lines if line.startswith("overall")).split()
    expected = [f"{100 * record['before']:.1f}", f"{100 * record['after']:.1f}", f"{100 * record['gain']:+.1f}"]
    assert overall[1:] == expected
    assert next(line for line in lines if line.startswith("middle")).split()[1:] == ["–"] * 3
    assert "without the classes that have no pixel there: crate" in lines


def test_wrong_calls_are_told(card: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "run", card, "with_bias")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "notes.txt").touch()
    for options, message in (
        (["--split", "train"], "was trained on the split 'train'"),
        (["--held-out"], "no training images are held out"),
        (["--split", "tset"], "tset"),
        (["--objective", "tial"], "expected one of miou, head, middle, tail"),
        (["--class-weight", "gme=2"], "classes are ground, box, crate, gem"),
        (["--class-weight", "gem=x"], "'x' is not a number"),
        (["--class-weight", "gem=nan"], "--class-weight gem=nan: a weight must be a number of at least 0"),
        (["--folds", "1"], "at least 2"),
        (["--out", str(tmp_path / "taken")], "is not empty"),
        (["--device", "nowhere"], "--device nowhere"),
    ):
        assert main(["adjust", str(run), *options]) == 2
        assert message in capsys.readouterr().err
    assert main(["adjust", str(tmp_path / "nothing")]) == 2
    assert "is not a run folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("names", "ignore_index", "message"),
    [
        (["ground", "crate", "box", "gem"], 255, "class 1 is 'box' in the checkpoint and 'crate' in the card"),
        ([*CLASSES, "coin"], 255, "the checkpoint is of 4 classes"),
        (CLASSES, 254, "ignores train id 254"),
    ],
)
def test_offsets_are_not_fitted_to_other_classes_than_those_of_the_run(
    names: Sequence[str],
    ignore_index: int,
    message: str,
    card: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = make_run(tmp_path / "run", card, "with_bias")
    other = tmp_path / "other.yaml"
    classes = [{"name": name, "ids": [i]} for i, name in enumerate(names)]
    groups = {"head": ["ground"], "middle": ["box", "crate"], "tail": list(names[3:])}
    change = {"classes": classes, "ignore_index": ignore_index, "groups": groups}
    other.write_text(yaml.safe_dump(yaml.safe_load(card.read_text()) | change))
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["data"]["card"] = str(other)
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    assert main(["adjust", str(run), "--device", "cpu"]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run-adjusted").exists()


def test_the_groups_are_those_of_the_card_as_it_is_now(card: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", card, "with_bias")
    other = tmp_path / "regrouped.yaml"
    groups = {"head": ["gem"], "middle": ["box", "crate"], "tail": ["ground"]}
    other.write_text(yaml.safe_dump(yaml.safe_load(card.read_text()) | {"groups": groups}))
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["data"]["card"] = str(other)
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    assert main(["adjust", str(run), "--objective", "head", "--device", "cpu"]) == 0
    record, result = (json.loads((tmp_path / "run-adjusted" / f"{n}.json").read_text()) for n in ("adjust", "result"))
    assert (record["before"], result["groups"]["head"]) == (record["iou_before"]["gem"], [3]) == (0, [3])


def test_from_another_folder_the_card_is_that_of_the_checkpoint(
    card: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The configuration has the card's path as it was given, from where the training was started."""
    run = make_run(tmp_path / "run", card, "with_bias")
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["data"]["card"] = card.name
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.chdir(tmp_path)
    assert main(["adjust", str(run), "--root", str(card.parent), "--device", "cpu"]) == 0
    result = json.loads((tmp_path / "run-adjusted" / "result.json").read_text())
    (run / "result.json").write_text(json.dumps(result))
    assert collect_examples([run], root=card.parent)
    (tmp_path / card.name).write_text("name: tiny\nclases: []\n")  # a mistake is not passed over
    assert main(["adjust", str(run), "--root", str(card.parent), "--overwrite"]) == 2
    (tmp_path / card.name).unlink()
    assert main(["validate", str(run), "--root", str(card.parent), "--device", "cpu"]) == 0
    (run / "checkpoints" / "last.ckpt").unlink()
    assert main(["adjust", str(run), "--root", str(card.parent)]) == 2


def test_an_adjusted_run_is_replaced_on_request_only_and_as_a_whole(card: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", card, "with_bias", held_out_share=0.6)
    command = ["adjust", str(run), "--device", "cpu"]
    assert main([*command, "--held-out"]) == 0
    out = tmp_path / "run-adjusted"
    assert main(["validate", str(out), "--device", "cpu"]) == 0
    assert (out / "confusion.json").exists()
    assert list(out.glob("evaluation-*/*.json"))
    assert main([*command, "--split", "val"]) == 2
    assert main([*command, "--split", "val", "--overwrite"]) == 0
    assert {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()} == {
        "adjust.json",
        "config.yaml",
        "result.json",
        "checkpoints/last.ckpt",
    }
    assert not list(out.glob("evaluation-*"))


def test_offsets_are_not_fitted_to_what_judged_them(
    card: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "run", card, "with_bias")
    assert main(["adjust", str(run), "--device", "cpu"]) == 0
    assert main(["adjust", f"{run}-adjusted", "--device", "cpu"]) == 2
    assert f"has offsets already, fitted on the images that would judge them: adjust {run}" in capsys.readouterr().err
    assert main(["validate", str(run / "checkpoints")]) == 2
    assert f"give {run}, or a .ckpt file" in capsys.readouterr().err


def test_a_wrapped_model_does_not_smuggle_in_an_import(
    card: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "run", card, "WithoutBias")
    assert main(["adjust", str(run), "--device", "cpu"]) == 0
    assert load_task(tmp_path / "run-adjusted").hparams["model"].startswith("aucseg.inference")
    monkeypatch.delenv(TRUST_VARIABLE)
    with pytest.raises(ValueError, match="It is not imported"):
        load_task(tmp_path / "run-adjusted")
