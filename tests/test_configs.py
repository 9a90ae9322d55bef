import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch.utils.data import DataLoader

from aucseg import DatasetCard, SegmentationTask
from aucseg.commands.fit import AUCSegCLI, run_lightning
from aucseg.configs import CONFIGS, find_config
from aucseg.training.task_parts import build_bank

PAPER = sorted(path.stem for path in CONFIGS.glob("*.yaml") if not path.stem.startswith("freedoom"))
TINY_MODEL: dict[str, dict[str, Any]] = {
    "segnext/large": {
        "embed_dims": [8, 8, 16, 16],
        "depths": [1, 1, 1, 1],
        "head_channels": 32,
        "num_bases": 4,
        "encoder_weights": None,
    },
    "smp/deeplabv3plus": {"encoder": "resnet18", "encoder_weights": None, "decoder_channels": 16},
}


def config_path(name: str) -> Path:
    return CONFIGS / f"{name}.yaml"


def fit_two_steps(name: str, card: Path, out: Path, *options: str) -> AUCSegCLI:
    model = yaml.safe_load(config_path(name).read_text())["model"]["model"]
    tiny = {"card": str(card), "root": str(card.parent), "crop_size": "[32, 48]", "num_workers": "0"}
    arguments = ["--config", str(config_path(name)), "--out", str(out), "--trainer.accelerator", "cpu"]
    arguments += [f"--data.{key}={value}" for key, value in tiny.items()]
    arguments += ["--data.base_size=null", "--data.eval_base_size=null", "--trainer.enable_progress_bar=false"]
    arguments += ["--trainer.max_steps=2", "--trainer.val_check_interval=2"]
    arguments += [f"--model.model_options={json.dumps(TINY_MODEL[model])}", *options]
    return run_lightning("fit", arguments)


def test_the_runs_of_the_paper_are_there() -> None:
    assert PAPER == [
        "ade20k_deeplabv3plus_aucseg",
        "ade20k_deeplabv3plus_ce",
        "ade20k_segnext-l_aucseg",
        "cityscapes_segnext-l_aucseg",
        "coco_stuff164k_segnext-l_aucseg",
    ]


@pytest.mark.parametrize("name", ["cityscapes_segnext-l_aucseg", "ade20k_deeplabv3plus_ce"])
def test_print_config_shows_every_setting(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        run_lightning("fit", ["--config", str(config_path(name)), "--print_config"])
    assert exit_info.value.code == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    asked = yaml.safe_load(config_path(name).read_text())
    assert printed["seed_everything"] == asked["seed_everything"]
    for section in ("trainer", "model", "data"):
        for key, value in asked[section].items():
            assert printed[section][key] == value, f"{section}.{key}"


@pytest.mark.parametrize(
    ("name", "crop", "batch", "iterations", "base_size", "auc_weight", "sample_ratio", "resize_ratio", "sliding"),
    [
        ("ade20k_segnext-l_aucseg", 512, 4, 160_000, [2048, 512], 4, 0.05, 0.4, False),
        ("cityscapes_segnext-l_aucseg", 1024, 2, 160_000, [2048, 1024], 1, 1, 1, True),
        ("coco_stuff164k_segnext-l_aucseg", 512, 4, 80_000, [2048, 512], 1, 0.05, 0.1, False),
    ],
)
def test_settings_are_those_of_the_paper(
    name: str,
    crop: int,
    batch: int,
    iterations: int,
    base_size: list[int],
    auc_weight: float,
    sample_ratio: float,
    resize_ratio: float,
    sliding: bool,
) -> None:
    config = yaml.safe_load(config_path(name).read_text())
    model, data = config["model"], config["data"]
    assert (data["crop_size"], data["batch_size"], data["base_size"]) == ([crop, crop], batch, base_size)
    assert config["trainer"]["max_steps"] == iterations
    assert model["loss_options"] == {"auc_weight": auc_weight}
    card = DatasetCard.load(data["card"])
    bank = build_bank(model["bank"], card, torch.Generator())
    assert (bank.capacity, bank.sample_ratio, bank.resize_ratio) == (5, sample_ratio, resize_ratio)
    assert (bank.scope, bank.placement, bank.presence_target) == ("image", "canvas", None)
    assert bank.tail_classes == card.tail_classes
    assert ("evaluation" in model) == sliding


def test_the_baseline_differs_in_loss_and_bank_alone() -> None:
    baseline, other = (
        yaml.safe_load(config_path(f"ade20k_deeplabv3plus_{name}").read_text()) for name in ("ce", "aucseg")
    )
    for key in ("loss", "loss_options", "bank"):
        other["model"].pop(key)
    assert baseline["model"].pop("loss") == "ce"
    assert baseline == other


@pytest.mark.parametrize("form", ["configs/{}.yaml", "{}.yaml", "{}"])
@pytest.mark.parametrize("option", [["--config", "{}"], ["-c", "{}"], ["--config={}"]])
def test_configurations_of_the_package_go_by_their_names(
    form: str, option: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    name = form.format("ade20k_deeplabv3plus_ce")
    with pytest.raises(SystemExit) as exit_info:
        run_lightning("fit", [*(part.format(name) for part in option), "--print_config"])
    assert exit_info.value.code == 0
    assert yaml.safe_load(capsys.readouterr().out)["model"]["model"] == "smp/deeplabv3plus"


def test_a_file_of_the_user_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("ade20k_deeplabv3plus_ce.yaml").touch()
    assert find_config("ade20k_deeplabv3plus_ce.yaml") == Path("ade20k_deeplabv3plus_ce.yaml")
    with pytest.raises(ValueError, match=r"no file 'mine.yaml'.* known: ade20k"):
        find_config("mine.yaml")


@pytest.mark.parametrize("name", PAPER)
def test_two_training_steps(name: str, tiny_card: Path, tmp_path: Path) -> None:
    run = fit_two_steps(name, tiny_card, tmp_path / "run")
    assert run.trainer.global_step == 2
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert 0 <= result["metrics"]["miou"] <= 1
    assert all(torch.isfinite(parameter).all() for parameter in run.model.parameters())
    assert (run.model.bank is not None) == name.endswith("_aucseg")


def test_validation_slides_where_the_configuration_says_so(tiny_card: Path, tmp_path: Path) -> None:
    options = ["--model.evaluation.window=[32,32]", "--model.evaluation.stride=[16,24]"]
    task = fit_two_steps("cityscapes_segnext-l_aucseg", tiny_card, tmp_path / "run", *options).model.eval()
    seen: list[tuple[int, ...]] = []
    task.model.register_forward_pre_hook(lambda _module, inputs: seen.append(tuple(inputs[0].shape)))
    batch = {
        "name": ["frame"],
        "image": torch.randint(256, (1, 3, 48, 64), dtype=torch.uint8),
        "mask": torch.zeros(1, 48, 64, dtype=torch.uint8),
    }
    batches: Any = DataLoader([batch], batch_size=None)  # type: ignore[arg-type]
    task.trainer.validate(task, batches, verbose=False)
    assert seen == [(1, 3, 32, 32)] * 6


def test_unknown_evaluation_option_is_named(tiny_card: Path) -> None:
    with pytest.raises(TypeError, match=r"model\.evaluation has no option 'windw'; did you mean window\?"):
        SegmentationTask(str(tiny_card), torch.nn.Conv2d(3, 4, 1), evaluation={"windw": [32, 32]})


def test_a_card_that_names_its_tail_alone_serves_bank_and_metric() -> None:
    task = SegmentationTask("coco_stuff164k", torch.nn.Conv2d(3, 171, 1), bank={})
    assert task.bank is not None
    assert len(task.bank.tail_classes) == 123
    assert task.validation_metrics.iou.groups.keys() == {"tail"}
