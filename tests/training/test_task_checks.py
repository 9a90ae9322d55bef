"""Wrong things that users do, on the command line and in Python: each is refused in one sentence."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

from aucseg import SegmentationDataModule, SegmentationTask, cli
from aucseg.datasets import DatasetCard
from aucseg.memory_bank import TailMemoryBank
from aucseg.training.checkpoint_checks import check_classes
from tests.small_runs import SMALL_RUN, make_trainer
from tests.two_processes import PlainNetwork, arguments


def fail(capsys: Any, command: str, card: Path, out: Path, **options: object) -> str:
    """The one line that a command writes that refuses its options."""
    assert cli.main([command, *arguments(card, out, **options)]) == 2
    # Before it, what the run says of its data.
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("aucseg: ")]
    assert len(lines) == 1
    return str(lines[0]).removeprefix(f"aucseg {command}: error: ")


@pytest.fixture(scope="module")
def checkpoint(tiny_card: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a run of one step."""
    out = tmp_path_factory.mktemp("run")
    assert cli.main(["fit", *arguments(tiny_card, out, **{"trainer.max_steps": 1})]) == 0
    return out / "checkpoints" / "last.ckpt"


def card_with(tiny_card: Path, folder: Path, names: list[str]) -> Path:
    """A card of the same data with other classes."""
    content = yaml.safe_load(tiny_card.read_text())
    del content["groups"]
    content["classes"] = [{"name": name} for name in names]
    path = folder / "other.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["ground", "box", "crate", "gem", "coin"],
            "of 4 classes (card 'tiny'), the card 'tiny' has 5, and they do not fit: class 4 is none in the checkpoint "
            "and 'coin' in the card",
        ),
        (["ground", "crate", "box", "gem"], "class 1 is 'box' in the checkpoint and 'crate' in the card"),
    ],
)
@pytest.mark.parametrize("command", ["fit", "validate"])
def test_checkpoint_of_other_classes(
    tiny_card: Path, checkpoint: Path, tmp_path: Path, capsys: Any, command: str, names: list[str], message: str
) -> None:
    card = card_with(tiny_card, tmp_path, names)
    options = {"data.root": tiny_card.parent, "model.bank": "null"}
    options |= {"resume": checkpoint} if command == "fit" else {"ckpt_path": checkpoint}
    found = fail(capsys, command, card, tmp_path / "out", **options)
    assert message in found
    assert "start a new run" in found


def test_other_names_of_the_same_classes_are_said_and_used(tiny_card: Path, tmp_path: Path, capsys: Any) -> None:
    card = DatasetCard.load(tiny_card)
    renamed = DatasetCard.load(card_with(tiny_card, tmp_path, ["Boden", "box", "crate", "gem"]))
    check_classes(card, renamed)
    assert "class 0 is 'ground' in the checkpoint and 'Boden' in the card" in capsys.readouterr().err
    check_classes(card, card)
    check_classes(None, card)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model.model": "smp/unet"}, "missing in the checkpoint: "),
        ({"model.bank": "null"}, "unknown to the model: 1 (bank._extra_state)"),
        ({"model.bank": '{"tail_classes": ["box"]}'}, "the saved bank has tail_classes = [3], this one [1]"),
        (
            {"model.model_options": str(SMALL_RUN["model.model_options"]).replace("32", "64")},
            "of another shape: ",
        ),
    ],
)
def test_checkpoint_of_another_model(
    tiny_card: Path, checkpoint: Path, tmp_path: Path, capsys: Any, options: dict[str, object], message: str
) -> None:
    if options.get("model.model") == "smp/unet":
        options = {**options, "model.model_options": '{"encoder": "tu-mobilenetv3_small_050", "encoder_weights": null}'}
    found = fail(capsys, "fit", tiny_card, tmp_path, resume=checkpoint, **options)
    assert message in found
    assert len(found) < 600


@pytest.mark.parametrize("command", ["fit", "validate"])
def test_files_that_are_no_checkpoints(tiny_card: Path, tmp_path: Path, capsys: Any, command: str) -> None:
    weights = tmp_path / "weights.pth"
    torch.save({"state_dict": {"weight": torch.zeros(2)}}, weights)
    key = "resume" if command == "fit" else "ckpt_path"
    assert "holds no training" in fail(capsys, command, tiny_card, tmp_path / "out", **{key: weights})
    assert "is not a readable checkpoint" in fail(capsys, command, tiny_card, tmp_path / "out", **{key: tiny_card})


def test_an_image_is_no_model(tiny_card: Path, tmp_path: Path, capsys: Any) -> None:
    image = str(tiny_card.parent / "images" / "val" / "frame_00.png")
    assert cli.main(["predict", image, image, "--out", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{image} is not a readable checkpoint: torch.save did not write this file" in line


@pytest.mark.parametrize(
    ("bank", "message"),
    [
        ({"capasity": 2}, r"model\.bank has no option 'capasity'; did you mean capacity\?"),
        ({"num_classes": 4}, r"model\.bank has no option 'num_classes'; did you mean tail_classes, protect_classes\?"),
        ({"tail_classes": ["jem"]}, r"model\.bank\.tail_classes holds 'jem', .* card 'tiny'; did you mean gem\?"),
        ({"tail_classes": [4]}, r"model\.bank\.tail_classes holds 4: the classes of the card 'tiny' are 0\.\.3"),
        ({"protect_classes": ["boxx"]}, r"model\.bank\.protect_classes holds 'boxx'"),
        ({"protect_classes": "midle"}, r"which is not a group of the card 'tiny' \(groups: head, middle, tail\)"),
    ],
)
def test_options_of_the_bank_are_named(tiny_card: Path, bank: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        SegmentationTask(str(tiny_card), PlainNetwork(), bank=bank)


@pytest.mark.parametrize("options", [{"tail_classes": ["gem"]}, {"tail_classes": [3], "protect_classes": ["box"]}])
def test_a_bank_without_a_card_asks_for_ids(options: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=r"_classes holds '(gem|box)': give class ids"):
        TailMemoryBank(num_classes=4, **options)


def test_classes_are_given_by_name_or_id(tiny_card: Path) -> None:
    for tail in ("gem", ["gem", 1], [3, "box"]):
        options = {"tail_classes": tail, "protect_classes": ["crate"]}
        bank = SegmentationTask(str(tiny_card), PlainNetwork(), bank=options).bank
        assert bank is not None
        assert bank.tail_classes == ((3,) if tail == "gem" else (1, 3))
        assert bank.protect_classes == (2,)
    given: tuple[list[int | str], ...] = (["gem", "box"], [3, 1])
    names, ids = (
        SegmentationDataModule(
            str(tiny_card), str(tiny_card.parent), rare_crop=1.0, rare_crop_classes=classes, crop_size=(8, 8)
        )
        for classes in given
    )
    batches = [next(iter(module.train_dataloader()))["mask"] for module in (names, ids)]
    assert torch.equal(*batches)
    with pytest.raises(ValueError, match=r"data\.rare_crop_classes holds 'gems'.*did you mean gem\?"):
        SegmentationDataModule(str(tiny_card), str(tiny_card.parent), rare_crop=1.0, rare_crop_classes=["gems"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data.sampler": "rare_class", "data.sampler_options": '{"temprature": 1}'}, "did you mean temperature?"),
        ({"model.evaluation": '{"windw": [32, 32]}'}, "model.evaluation has no option 'windw'; did you mean window?"),
    ],
)
def test_other_options_are_named(
    tiny_card: Path, tmp_path: Path, capsys: Any, options: dict[str, object], message: str
) -> None:
    assert message in fail(capsys, "fit", tiny_card, tmp_path, **options)


class Pooled(nn.Module):
    """Normalizes features of one pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(4))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.layers(images)
        return logits.expand(-1, -1, 4, 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 1}, r"the batch is 1, .* Raise data\.batch_size so that it is 2 or more"),
        ({"batch_size": 2, "micro_batches": 2}, r"the batch is 2 in 2 parts \(model\.micro_batches\), .* each part is"),
    ],
)
def test_batch_of_one_with_batch_normalization(
    tiny_card: Path, tmp_path: Path, options: dict[str, int], message: str
) -> None:
    batch_size = options.pop("batch_size")
    task = SegmentationTask(str(tiny_card), Pooled(), **options)  # type: ignore[arg-type]
    data = SegmentationDataModule(str(tiny_card), str(tiny_card.parent), batch_size=batch_size, num_workers=0)
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, 1).fit(task, data)


def test_other_errors_of_a_model_pass(tiny_card: Path, tmp_path: Path) -> None:
    class Odd(PlainNetwork):
        def forward(self, images: Tensor) -> Tensor:
            raise ValueError("odd " + os.linesep)

    data = SegmentationDataModule(str(tiny_card), str(tiny_card.parent), num_workers=0)
    with pytest.raises(ValueError, match=r"^odd"):
        make_trainer(tmp_path, 1).fit(SegmentationTask(str(tiny_card), Odd()), data)
