"""What people expect of a training command, through the command line; the table is in docs/recipes.md."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch import LightningModule, Trainer
from PIL import Image

from aucseg.cli import main
from aucseg.training.result_writer import ResultWriter
from tests.commands.habits import current_folder, fit

Fit = Callable[..., int]
# Each row of the table in docs/recipes.md with the tests that hold it.
OWN = "test_everything_of_the_users_own_is_found_in_the_current_folder"
EARLY = "test_early_stopping_says_why_and_when_and_a_finished_run_that_nothing_is_left"
WEIGHTS = "test_weights_of_other_classes_and_a_frozen_encoder"
TESTS = {
    "best checkpoint": ("commands/test_fit_habits.py", "test_the_best_checkpoint_is_kept_and_every_command_takes_it"),
    "early stopping": ("commands/test_fit_habits.py", EARLY),
    "epochs": ("commands/test_fit_habits.py", OWN),
    "own loss": ("commands/test_fit_habits.py", OWN),
    "own augmentation": ("commands/test_fit_habits.py", OWN),
    "optimizer and schedule": ("commands/test_fit_habits.py", OWN),
    "frozen parts": ("commands/test_fit_habits.py", WEIGHTS),
    "start from another run": ("commands/test_fit_habits.py", WEIGHTS),
    "loggers": ("commands/test_fit_habits.py", "test_loggers_are_added_to_the_runs_own"),
    "rehearsal": ("commands/test_fit_habits.py", "test_a_rehearsal_leaves_nothing_behind"),
    "finished runs": ("commands/test_fit_habits.py", EARLY),
    "one comparison, several processes": ("commands/test_compare.py", "test_processes_share_a_comparison"),
    "a traceback": ("commands/test_fit_again.py", "test_a_traceback_is_shown_on_demand"),
    "cross-validation": ("commands/test_compare_runs.py", "test_folds_end_to_end"),
}


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The current folder of the user: data, a module of their own, a configuration."""
    with current_folder(tmp_path_factory.mktemp("habits")) as path:
        yield path


def test_every_row_of_the_table_has_a_test() -> None:
    tests = Path(__file__).parents[1]
    section = (tests.parent / "docs" / "recipes.md").read_text().split("\n## ")[1]
    rows = [line.split("|")[1].strip() for line in section.splitlines() if line.startswith("| ")]
    assert rows[1:] == list(TESTS)
    for file, name in TESTS.values():
        assert f"def {name}(" in (tests / file).read_text()


def rows(run: str, column: str) -> dict[int, float]:
    with open(f"{run}/metrics.csv", newline="") as file:
        return {int(row["step"]): float(row[column]) for row in csv.DictReader(file) if row[column]}


def state(path: str) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = torch.load(path, weights_only=True)["state_dict"]
    return found


@pytest.fixture(scope="module")
def run(folder: Path) -> str:
    """One training of three epochs with everything that is the user's own."""
    albumentations = [
        {
            "class_path": "albumentations.Compose",
            "init_args": {
                "transforms": [{"class_path": "albumentations.Rotate", "init_args": {"limit": 45, "p": 1.0}}]
            },
        }
    ]
    more = {
        "keep_best": "val/miou",
        "trainer": {
            "max_steps": -1,
            "max_epochs": 3,
            "val_check_interval": None,
            "callbacks": [{"class_path": "habit_parts.Marker"}],
            "logger": {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "logs"}},
        },
        "model": {
            "loss": "habit_parts:Backwards",
            "loss_options": {"weight": 3.0},
            "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"momentum": 0.5, "lr": 0.02}},
            "schedule": {"class_path": "StepLR", "init_args": {"step_size": 2}},
        },
        "data": {
            "augmentation": [
                {"class_path": "RandomRotation", "init_args": {"degrees": 20}},
                *(albumentations if find_spec("albumentations") else []),
                "habit_parts:upside_down",
            ]
        },
    }
    Path("more.yaml").write_text(yaml.safe_dump(more))
    assert fit("--config", "more.yaml", "--out", "own") == 0
    return "own"


def test_everything_of_the_users_own_is_found_in_the_current_folder(run: str) -> None:
    assert Path("marked").exists()
    assert json.loads(Path(run, "result.json").read_text())["step"] == 6  # three epochs of four images, two at a time
    assert list(rows(run, "val/miou")) == [1, 3, 5]  # one validation an epoch
    # The rate of the encoder is that of the optimizer, the head's ten times that, a tenth of it every two steps.
    encoder = rows(run, "lr-SGD/pg1")
    assert [encoder[step] for step in (0, 1, 2, 4)] == pytest.approx([0.02, 0.02, 0.002, 0.0002])
    assert rows(run, "lr-SGD/pg3")[0] == pytest.approx(0.2)


def test_one_callback_needs_no_list_and_an_epoch_is_what_the_sampler_draws(folder: Path) -> None:
    Path("marked").unlink(missing_ok=True)
    options = ("--trainer.max_epochs", "2", "--trainer.max_steps", "-1", "--trainer.val_check_interval", "null")
    sampler = ("--data.sampler", "repeat_factor", "--data.sampler_options.num_samples", "2")
    assert fit(*options, *sampler, "--trainer.callbacks", "habit_parts.Marker", "--out", "one") == 0
    assert Path("marked").exists()
    assert json.loads(Path("one", "result.json").read_text())["step"] == 2  # of two images, two at a time


def test_loggers_are_added_to_the_runs_own(run: str) -> None:
    assert {"config.yaml", "metrics.csv", "checkpoints"} <= set(os.listdir(run))
    assert list(Path(run).glob("events.out.tfevents.*"))
    assert list(Path("logs").rglob("metrics.csv"))
    assert not list(Path("logs").rglob("config.yaml"))


def test_the_best_checkpoint_is_kept_and_every_command_takes_it(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    scores = rows(run, "val/miou")
    step = 1 + max(scores, key=lambda logged: scores[logged])
    assert step < 6  # it is another one than the last
    best = json.loads(Path(run, "best", "result.json").read_text())
    assert (best["step"], best["metrics"]["miou"]) == (step, pytest.approx(max(scores.values())))
    kept, last = (state(f"{run}/checkpoints/{name}.ckpt") for name in ("best", "last"))
    assert not torch.equal(kept["model.network.head.weight"], last["model.network.head.weight"])

    assert main(["validate", run, "--best", "--out", "again"]) == 0
    again = json.loads(Path("again", "result.json").read_text())
    assert (again["step"], again["metrics"]["miou"]) == (step, pytest.approx(max(scores.values())))
    assert main(["export", run, "--best", "--to", "best.safetensors"]) == 0
    from safetensors.torch import load_file

    assert torch.equal(load_file("best.safetensors")["network.head.weight"], kept["model.network.head.weight"])
    for out, model in (("by_name", [f"{run}/checkpoints/best.ckpt"]), ("by_option", [run, "--best"])):
        assert main(["predict", *model, "data/images/val", "--out", out, "--no-overlays"]) == 0
    first, second = (np.asarray(Image.open(Path(o, "labels", "frame_00.png"))) for o in ("by_name", "by_option"))
    np.testing.assert_array_equal(first, second)
    capsys.readouterr()
    assert main(["report", run, "--best", "--out", "best.html", "--no-images"]) == 0
    assert f"own: {step} steps, miou" in capsys.readouterr().out
    assert main(["adjust", run, "--best", "--folds", "2", "--out", "adjusted"]) in (0, 1)
    before = next(line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("overall"))
    assert float(before[1]) == pytest.approx(100 * max(scores.values()), abs=0.051)


def test_a_run_without_a_best_checkpoint_says_how_to_have_one(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", f"{run}/checkpoints/last.ckpt", "--best"]) == 2
    assert "--best needs the folder of a run" in capsys.readouterr().err
    assert main(["predict", "data", "data/images/val", "--best"]) == 2
    assert "'aucseg fit --keep_best val/tail'" in capsys.readouterr().err


def test_early_stopping_says_why_and_when_and_a_finished_run_that_nothing_is_left(
    capsys: pytest.CaptureFixture[str],
) -> None:
    stop = {"monitor": "val/miou", "mode": "max", "patience": 1, "min_delta": 5.0}
    callbacks = [{"class_path": "lightning.pytorch.callbacks.EarlyStopping", "init_args": stop}]
    Path("early.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": callbacks, "max_steps": 20}}))
    assert fit("--config", "early.yaml", "--out", "early", "--trainer.logger", "false") == 0
    printed = capsys.readouterr().err
    assert "stopped early, after step 4 of 20: Monitored metric val/miou did not improve in the last 1 valid" in printed
    assert Path("early", "metrics.csv").is_file()
    assert Path("early", "config.yaml").is_file()
    assert not list(Path("early").glob("events*"))  # the option is: no TensorBoard
    # What is finished stays finished: by its early stop, by its steps, in its folder and elsewhere.
    assert main(["fit", "--config", "early/config.yaml", "--out", "early", "--resume", "auto"]) == 0
    assert "was stopped early at step 4" in (printed := capsys.readouterr().err)
    assert "there is nothing to train" in printed
    assert json.loads(Path("early", "result.json").read_text())["step"] == 4
    assert fit("--out", "elsewhere", "--resume", "early/checkpoints/last.ckpt", "--trainer.max_steps", 4) == 2
    printed = capsys.readouterr().err
    assert "last.ckpt is of step 4, and trainer.max_steps is 4: there is nothing to train; give more steps" in printed
    assert not list(Path("elsewhere").glob("[!.]*"))


def test_the_best_may_be_the_validation_that_was_cut_off(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = ResultWriter.on_validation_end

    def cut_off(self: ResultWriter, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step == 4:
            raise OSError("no space left on device")
        whole(self, trainer, pl_module)

    options = ("--out", "cut", "--keep_best", "val/miou")
    with monkeypatch.context() as patch:
        patch.setattr(ResultWriter, "on_validation_end", cut_off)
        assert fit(*options) != 0
    value, _ = _best("cut")
    # Whatever came before is worse.
    result = json.loads(Path("cut", "best", "result.json").read_text())
    result["metrics"]["miou"] = -1.0
    Path("cut", "best", "result.json").write_text(json.dumps(result))
    capsys.readouterr()
    assert fit(*options, "--resume", "auto") == 0
    assert "of step 4, kept in" in capsys.readouterr().err
    assert _best("cut")[1] == 4
    assert _best("cut")[0] == json.loads(Path("cut", "result.json").read_text())["metrics"]["miou"] != value


def test_a_finished_run_keeps_its_last_validation_and_the_best_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    """The validation after the last step comes after the last checkpoint."""
    # The loss falls: the last validation is the best.
    options = ("--out", "late", "--keep_best", "val/loss", "--trainer.max_steps", 5, "--trainer.val_check_interval", 2)
    assert fit(*options) == 0
    best = json.loads(Path("late", "best", "result.json").read_text())
    assert (best["step"], list(rows("late", "val/miou"))) == (5, [1, 3, 5])
    before = {path: path.read_bytes() for path in Path("late").rglob("*") if path.suffix in (".csv", ".json", ".ckpt")}
    for resumed in (("auto",), ("auto", "--trainer.max_steps", 3)):
        capsys.readouterr()
        assert fit(*options, "--resume", *resumed) == 0
        said = capsys.readouterr().err
        assert "late is finished: it has the result of step 5" in said
        assert "of step 5, kept in" in said
        assert {path: path.read_bytes() for path in before} == before
    # What comes next is worse, and the row after the last step is not there in a run that was longer from the start.
    worse = ("--model.learning_rate", 1e3, "--resume", "auto", "--trainer.max_steps", 7)
    assert fit(*options, *worse) == 0
    assert json.loads(Path("late", "best", "result.json").read_text()) == best
    assert list(rows("late", "val/miou")) == [1, 3, 5, 7]


def test_a_last_validation_that_was_cut_off_is_logged_once(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = ResultWriter.on_validation_end

    def cut_off(self: ResultWriter, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "validate":
            raise OSError("no space left on device")
        whole(self, trainer, pl_module)

    options = ("--out", "twice", "--trainer.max_steps", 3)
    with monkeypatch.context() as patch:
        patch.setattr(ResultWriter, "on_validation_end", cut_off)
        assert fit(*options) != 0
    assert fit(*options, "--resume", "auto") == 0
    with Path("twice", "metrics.csv").open() as file:
        assert sum(bool(row["val/miou"]) for row in csv.DictReader(file)) == 2


def _best(run: str) -> tuple[float, int]:
    result = json.loads(Path(run, "best", "result.json").read_text())
    return result["metrics"]["miou"], result["step"]


def test_a_limited_epoch_is_as_long_as_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--trainer.max_steps", -1, "--trainer.max_epochs", 2, "--overwrite", "true")
    for limit, images in ((1, 2), (0.5, 2), (1.0, 4), (9, 4)):
        assert fit("--out", "limited", *options, "--trainer.limit_train_batches", limit) == 0
        assert f"trainer.max_epochs 2 of {images} images is {images} steps" in capsys.readouterr().err


def _optimizer_of(run: str) -> tuple[list[float], list[float]]:
    """Base rates and weight decays of the groups in the last checkpoint."""
    state = torch.load(Path(run, "checkpoints", "last.ckpt"), weights_only=False)["optimizer_states"][0]
    groups = state["param_groups"]
    return sorted({g["initial_lr"] for g in groups}), sorted({g["weight_decay"] for g in groups})


def test_a_resumed_run_takes_other_rates_and_more_steps(capsys: pytest.CaptureFixture[str]) -> None:
    assert fit("--out", "more", "--model.head_rate_factor", 10) == 0
    assert _optimizer_of("more") == ([0.01, 0.1], [0.0, 0.01])
    changes = ("--model.learning_rate", 0.02, "--model.head_rate_factor", 1, "--model.weight_decay", 0.3)
    assert fit("--out", "more", "--resume", "auto", "--trainer.max_steps", 8, *changes) == 0
    assert _optimizer_of("more") == ([0.02], [0.0, 0.3])
    with Path("more", "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row.get("lr-AdamW/pg1")]
    rates = {int(row["step"]): float(row["lr-AdamW/pg1"]) for row in rows}
    assert [rates[step] for step in range(4, 8)] == pytest.approx([0.02 * (1 - step / 8) for step in range(4, 8)])
    # What the state does not fit is refused before anything of the run is changed.
    before = Path("more", "config.yaml").read_bytes()
    for other, told in (
        (("--model.optimizer", "SGD"), "it knows nothing of"),
        (("--model.freeze", "network.backbone"), "it trains"),
    ):
        capsys.readouterr()
        assert fit("--out", "more", "--resume", "auto", "--trainer.max_steps", 12, *changes, *other) == 2
        assert told in capsys.readouterr().err
        assert Path("more", "config.yaml").read_bytes() == before


def test_a_rehearsal_leaves_nothing_behind(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    before = sorted(folder.rglob("*"))
    assert fit("--out", "rehearsed", "--trainer.fast_dev_run", "true", "--keep_best", "val/miou") == 0
    assert "fast_dev_run: 1 steps and their validation went through; nothing was written" in capsys.readouterr().err
    assert sorted(path for path in folder.rglob("*") if "__pycache__" not in path.parts) == [
        path for path in before if "__pycache__" not in path.parts
    ]


def test_weights_of_other_classes_and_a_frozen_encoder(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    card = yaml.safe_load(Path("data", "tiny.yaml").read_text())
    ids = {"gem": 3, "ground": 0, "cave": 9, "box": 1, "crate": 2}
    card["classes"] = [{"name": name, "ids": [number]} for name, number in ids.items()]
    card["groups"] = {"head": ["ground"], "middle": ["box", "crate", "cave"], "tail": ["gem"]}
    Path("data", "five.yaml").write_text(yaml.safe_dump(card))
    options = ("--data.card", "data/five.yaml", "--model.freeze", "encoder", "--model.init_from", run)
    assert fit("--out", "five", *options, "--trainer.max_steps", 2) == 0
    assert (
        f"model.init_from {run}/checkpoints/last.ckpt: 9 of 9 tensors taken; of network.head.bias, network.head.weight "
        "the rows of 4 of 5 classes (gem, ground, box, crate)\n"
    ) in capsys.readouterr().err
    old, new = state(f"{run}/checkpoints/last.ckpt"), state("five/checkpoints/last.ckpt")
    encoder = [name for name in old if "backbone" in name]
    assert len(encoder) == 7  # statistics of the normalization among them
    assert all(torch.equal(old[name], new[name]) for name in encoder)
    assert not torch.equal(old["model.network.head.weight"][3], new["model.network.head.weight"][0])
    # The weights come with the checkpoint: a run that goes on needs no source.
    os.rename(run, "moved")
    try:
        again = ("--config", "five/config.yaml", "--out", "five", "--resume", "auto", "--trainer.max_steps", "3")
        assert main(["fit", *again]) == 0
    finally:
        os.rename("moved", run)
    assert "init_from" not in capsys.readouterr().err.replace("model.init_from (", "")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--keep_best", "val/mou"], "--keep_best val/mou: nothing of that name is logged; did you mean val/miou"),
        (["--model.freeze", "encodr"], "model.freeze: the model has no part 'encodr'; did you mean encoder?"),
        (["--model.init_from", "none.pth"], "no checkpoint at none.pth"),
        (["--model.loss", "habit_parts:Bckwards"], "habit_parts has no class or function 'Bckwards'; did you mean Bac"),
        (
            ["--model.loss", "habit_parts:Backwards", "--model.loss_options", "{wight: 1}"],
            "loss 'habit_parts:Backwards' has no option 'wight'; did you mean weight?",
        ),
        (["--model.optimizer", "SDG"], "torch.optim has no class or function 'SDG'; did you mean SGD"),
        (
            ["--model.optimizer", "{class_path: SGD, init_args: {momntum: 1}}"],
            "model.optimizer: SGD has no option 'momntum'; did you mean momentum?",
        ),
        (["--model.schedule", "ReduceLROnPlateau"], "model.schedule: ReduceLROnPlateau needs a monitor"),
        (["--trainer.strategy", "ddp_spawn"], "trainer.strategy ddp_spawn starts processes within this one"),
        (["--trainer.strategy", "ddp_fork"], "take ddp, or start the processes with torchrun"),
        (["--optimizer", "SGD"], "there is no option --optimizer; did you mean --model.optimizer?"),
        (
            ["--data.augmentation", "[{class_path: Resize, init_args: {size: 8}}]"],
            "data.augmentation: Resize changes the size of a training crop, (32, 40)",
        ),
        pytest.param(
            ["--trainer.logger", "WandbLogger"],
            "WandbLogger needs a package that is not installed: pip install 'wandb",
            marks=pytest.mark.skipif(find_spec("wandb") is not None, reason="it is installed"),
        ),
        (["--data.augmentation", "[RandomRotaton]"], "'RandomRotaton'; did you mean RandomRotation"),
        (
            ["--trainer.callbacks", "[{class_path: GradientAccumulationScheduler, init_args: {scheduling: {2: 4}}}]"],
            "GradientAccumulationScheduler waits for epochs of Lightning's, and a training here is a single one; set",
        ),
        (
            [
                *("--model.schedule", "{class_path: ReduceLROnPlateau, monitor: val/miou}"),
                *("--trainer.accumulate_grad_batches", "3"),
            ],
            "make trainer.val_check_interval (2 batches) a multiple of trainer.accumulate_grad_batches (3)",
        ),
        (["--trainer.max_epochs", "0"], "trainer.max_epochs must be at least 1, got 0"),
        (["--trainer.max_steps", "0"], "trainer.max_steps must be at least 1, got 0"),
        (["--trainer.val_check_interval", "-0.5"], "trainer.val_check_interval must be above 0, got -0.5"),
        (["--trainer.val_check_interval", "0.0"], "trainer.val_check_interval must be above 0, got 0.0"),
        (
            ["--model.optimizer.class_path", "SGD", "--model.optimizer.init_args", "{momentum:0.9}"],
            "model.optimizer: init_args must be a mapping such as '{lr: 0.1}', spaces included, got '{momentum:0.9}'",
        ),
        (
            ["--model.schedule.class_path", "CosineAnnealingLR", "--model.schedule.init_args", "{T_max:6}"],
            "model.schedule: init_args must be a mapping",
        ),
    ],
)
def test_what_is_wrong_is_told_with_the_nearest_name(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit("--out", "wrong", *options) != 0
    assert message in capsys.readouterr().err
