import json
import os
import re
import shlex
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from aucseg import cli
from aucseg.commands.plan_options import split_request
from aucseg.datasets import DatasetCard
from aucseg.training import speed
from aucseg.training.speed import Speed
from tests.commands.conftest import Launches
from tests.conftest import write_tiny_dataset

MEASURED = Speed(step=0.1, image=0.05, start=1.0, steps=8)


@pytest.fixture
def tiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a folder of images and masks in it that has no card."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_tiny_dataset(tmp_path / "tiles").unlink()
    return tmp_path


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Replaces the measurement; returns the configurations that it was asked for."""
    asked: list[dict[str, Any]] = []

    def measure(configuration: dict[str, Any], **_: Any) -> Speed:
        asked.append(configuration)
        return MEASURED

    monkeypatch.setattr(speed, "measure_speed", measure)
    return asked


def run(line: str) -> int:
    return cli.main(shlex.split(line))


def test_a_folder_is_all_that_fit_needs(tiles: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = "--trainer.max_steps 3 --data.num_workers 0 --trainer.logger false --trainer.accelerator cpu"
    assert run(f"fit tiles {options} --model.warmup_steps=2") == 0
    out = capsys.readouterr().out
    assert "Plan for tiles: 4 classes, 8 images to train on and 4 to validate on, all 64 x 48" in out
    assert "  steps       3 [set by you: trainer.max_steps]\n" in out
    assert "ImageNet weights of an installed package" in out
    assert "  time        about " in out
    assert "next: aucseg report runs/tiles" in out
    folder = tiles / "runs" / "tiles"
    assert json.loads((folder / "result.json").read_text())["step"] == 3
    plan, config = (yaml.safe_load((folder / name).read_text()) for name in ("plan.yaml", "config.yaml"))
    assert plan["data"]["card"] == "runs/tiles/card.yaml"
    assert plan["model"]["warmup_steps"] == 2
    for section in ("trainer", "model", "data"):  # what was planned is what was trained
        assert {key: config[section][key] for key in plan[section]} == plan[section]
    assert config["model"]["model_options"]["encoder_weights"] == "package:efficientnet_lite0"
    # The folder of a run is not planned into again, and --resume goes on by its configuration.
    assert run("fit tiles") == 2
    assert "--resume auto" in capsys.readouterr().err
    assert run("fit tiles --resume auto --trainer.logger false") == 0
    assert "is finished" in capsys.readouterr().err


def test_a_plan_that_is_not_trained_leaves_nothing(
    tiles: Path, measured: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = "--trainer.max_steps 1 --data.num_workers 0 --trainer.logger false --trainer.accelerator cpu"
    assert run(f"fit tiles {options} --trainer.fast_dev_run true") == 0
    assert not (tiles / "runs").exists()
    assert run(f"fit tiles {options}") == 0
    before = {path: path.read_bytes() for path in (tiles / "runs").rglob("*") if path.is_file()}
    replace = f"fit tiles --overwrite true {options} --data.batch_size 3"
    for more, status in (("--trainer.fast_dev_run true", 0), ("--model.optimizer AdamWW", 2), ("--model.model x/y", 2)):
        assert run(f"{replace} {more}") == status
        assert {path: path.read_bytes() for path in (tiles / "runs").rglob("*") if path.is_file()} == before

    def fail(*_: Any, **__: Any) -> None:
        raise ValueError("the time is too short")

    monkeypatch.setattr(speed, "measure_speed", fail)
    assert run(replace) == 2
    assert {path: path.read_bytes() for path in (tiles / "runs").rglob("*") if path.is_file()} == before


def test_a_run_whose_folder_was_renamed_goes_on(
    tiles: Path, measured: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    options = "--trainer.max_steps {} --data.num_workers 0 --trainer.logger false --trainer.accelerator cpu"
    moved = tiles / "runs" / "moved"
    assert run(f"fit tiles {options.format(1)}") == 0
    (tiles / "runs" / "tiles").rename(moved)
    assert run(f"fit tiles --out runs/moved --resume auto {options.format(2)}") == 0
    assert yaml.safe_load((moved / "config.yaml").read_text())["data"]["card"] == "runs/moved/card.yaml"
    moved = moved.rename(tiles / "runs" / "again")
    assert run(f"fit --config runs/again/config.yaml --out runs/again --resume auto {options.format(3)}") == 0
    assert json.loads((moved / "result.json").read_text())["step"] == 3
    assert "starts over" not in capsys.readouterr().err
    moved.rename(tiles / "runs" / "third")
    assert run(f"fit --config runs/third/config.yaml --resume auto {options.format(1)}") == 0
    assert (
        "there is no checkpoint in runs/again: the run starts over, although runs/third, the folder of its "
        "configuration, has one; --out runs/third goes on with that"
    ) in capsys.readouterr().err
    assert run("validate --config runs/third/config.yaml --out runs/third --trainer.accelerator cpu") == 0


def test_stats_writes_the_plan_of_fit(
    tiles: Path, measured: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("stats tiles --workers 0 --write-config new/run.yaml --time 2m") == 0
    out = capsys.readouterr().out
    assert "wrote new/run.yaml and new/run_card.yaml; next: aucseg fit --config new/run.yaml --out runs/run" in out
    config = yaml.safe_load((tiles / "new" / "run.yaml").read_text())
    assert config["data"]["card"] == "new/run_card.yaml"
    assert config["data"]["root"] == "tiles"
    # 2 minutes less the start, less ten validations of four images, in steps of a tenth of a second.
    assert config["trainer"] == {"enable_model_summary": False, "max_steps": 1170, "val_check_interval": 117}
    assert "# steps: 1,170: what fits into 2 minutes" in (tiles / "new" / "run.yaml").read_text()
    assert measured[0]["data"]["card"] == "new/run_card.yaml"
    # With the card that the user may edit.
    assert run("stats tiles --workers 0 --write-card my.yaml --write-config run.yaml") == 0
    config = yaml.safe_load((tiles / "run.yaml").read_text())
    assert config["data"]["card"] == "my.yaml"
    assert not (tiles / "run_card.yaml").exists()
    # Where a training would stop at a file nothing is planned, and it is said.
    next((tiles / "tiles").rglob("*.png")).write_bytes(b"no image")
    capsys.readouterr()
    assert run("stats tiles --workers 0 --write-config other.yaml") == 1
    assert "other.yaml was not written, since a training would stop" in capsys.readouterr().err
    assert not (tiles / "other.yaml").exists()


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("fit tiles --time soon", "'soon' is not a duration: write 90s, 30m, 1h30m or 2d"),
        ("fit tiles --time 1s", "1 second is too short"),
        ("fit tiles --model.model segnext/tiny", "segnext/tiny would start from random weights: give"),
        ("fit tiles --config freedoom_lt_fpn_ce", "'tiles' is not an option"),
        ("fit --data.card x.yaml --time 3m", "--time goes with a folder or card to plan for: aucseg fit FOLDER"),
        ("fit tiles --weights none", "invalid choice: 'none'"),
        ("stats tiles --time 3m", "--time and --weights belong to --write-config"),
        ("compare tiles --config x.yaml", "give a folder or card to plan for (aucseg compare FOLDER), or --config"),
        ("compare --methods ce", "give a folder or card to plan for (aucseg compare FOLDER), or --config FILE"),
        ("compare tils", "there is no folder or card 'tils'"),
        ("compare tiles --methods ce,aucseg", "no bank can be planned for tiles"),
        ("fit tiles --data.batch_size 0", "--data.batch_size must be a whole number of at least 1, got 0"),
        ("fit tiles --model.lss ce", "there is no option --model.lss; did you mean model.loss"),
        ("fit tiles --data.sampler_option.threshold 0.2", "did you mean data.sampler_options"),
        ("fit tiles --model.loss cee", "unknown loss 'cee'; did you mean ce"),
        ("fit tiles --model.bank true", "--model.bank must be a mapping"),
        ("fit tiles --data.val_split vall", "tiles has no split 'vall' to validate on, only train, val"),
    ],
)
@pytest.mark.usefixtures("measured")
def test_what_cannot_be_planned_is_one_sentence_and_leaves_nothing(
    tiles: Path, line: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(line) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert sentence in error
    assert not (tiles / "runs").exists()


@pytest.mark.parametrize("name", [name for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)])
@pytest.mark.parametrize("line", ["fit tiles", "stats tiles --workers 0 --write-config runs/run.yaml", "compare tiles"])
def test_a_signal_while_planning_leaves_nothing(
    tiles: Path, monkeypatch: pytest.MonkeyPatch, line: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    number = getattr(signal, name)

    def measure(*_: Any, **__: Any) -> Speed:
        assert list((tiles / "runs").rglob("*card.yaml"))
        os.kill(os.getpid(), number)
        return MEASURED

    monkeypatch.setattr(speed, "measure_speed", measure)
    before = signal.signal(number, signal.SIG_DFL)  # under nohup SIGHUP is ignored, and stays so
    try:
        assert run(line) == 130
        assert signal.getsignal(number) is signal.SIG_DFL
    finally:
        signal.signal(number, before)
    assert "interrupted" in capsys.readouterr().err.splitlines()[-1]
    assert not (tiles / "runs").exists()


def test_a_broken_mask_is_named_before_anything_is_trained(tiles: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("L", (5, 5)).save(tiles / "tiles" / "masks" / "train" / "frame_03.png")
    assert run("fit tiles") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "1 of the training files cannot be used" in error
    assert "frame_03" in error
    assert not (tiles / "runs").exists()


def test_without_network_and_package_the_way_out_is_told(
    tiles: Path, measured: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_network(*_: Any, **__: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("aucseg.planning.machine.has_packaged_weights", lambda: False)
    monkeypatch.setattr("aucseg.commands.plan.build_model", no_network)
    assert run("fit tiles") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "could not be downloaded (no route to host)" in error
    assert 'pip install "aucseg[demo]"' in error
    assert "--weights random" in error
    assert not measured
    assert not (tiles / "runs").exists()
    assert run("stats tiles --workers 0 --write-config run.yaml --weights random") == 0
    assert yaml.safe_load((tiles / "run.yaml").read_text())["model"]["model_options"]["encoder_weights"] is None


def test_the_batch_is_halved_until_a_step_fits(tiles: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def measure(configuration: dict[str, Any], **_: Any) -> Speed:
        tried.append(configuration["data"]["batch_size"])
        if tried[-1] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return MEASURED

    monkeypatch.setattr(speed, "measure_speed", measure)
    assert run("stats tiles --workers 0 --write-config run.yaml") == 0
    assert tried == [8, 4, 2]
    config = yaml.safe_load((tiles / "run.yaml").read_text())
    assert config["data"]["batch_size"] == 2
    assert config["model"]["learning_rate"] == 2e-3


def test_compare_plans_once_for_all_methods(
    tiles: Path,
    measured: list[dict[str, Any]],
    launches: Launches,
    capsys: pytest.CaptureFixture[str],
) -> None:
    line = "compare tiles --no-report --time 10m"
    assert run(line) == 0
    out = capsys.readouterr().out
    # Eight images of which two have a gem: nothing to paste, so no bank.
    assert "2 trainings (ce, auc+rfs): about " in out
    assert len(launches()) == 2
    assert measured[0]["model"]["pixel_metrics"] is True
    folder = tiles / "runs" / "tiles-compare"
    plan = yaml.safe_load((folder / "plan.yaml").read_text())
    assert 2000 < plan["trainer"]["max_steps"] <= 3000  # half of ten minutes, less the imports
    runs = [folder / "smp-fpn" / name / "seed0" / "input.yaml" for name in ("ce", "auc+rfs")]
    inputs = [yaml.safe_load(path.read_text()) for path in runs]
    assert [config["model"]["loss"] for config in inputs] == ["ce", "aucseg"]
    assert all(config["trainer"].items() >= plan["trainer"].items() for config in inputs)
    assert "next: aucseg predict runs/tiles-compare/smp-fpn/auc+rfs/seed0" in out
    # It goes on by the same plan.
    assert run(f"{line} --seeds 0,1") == 0
    assert len(launches()) == 2
    assert len(measured) == 1
    # Cross-entropy has no weights of classes, and each image once a pass; what is planned has both.
    ordered = [(config["data"]["sampler"], config["data"]["sampler_options"]) for config in inputs]
    assert ordered == [("random", None), ("repeat_factor", {"threshold": 0.3, "max_factor": 5.0})]
    assert inputs[0]["model"]["loss_options"] is None
    assert inputs[1]["model"]["loss_options"] == plan["model"]["loss_options"]
    assert plan["model"]["loss_options"]["class_weight"] == {"rule": "inverse", "power": 0.25}


def test_folds_need_no_validation_split(tiles: Path, measured: list[dict[str, Any]], launches: Launches) -> None:
    for folder in ("images", "masks"):
        shutil.rmtree(tiles / "tiles" / folder / "val")
    assert run("compare tiles --methods ce --folds 2 --no-report") == 0
    assert len(launches()) == 2
    data = yaml.safe_load((tiles / "runs" / "tiles-compare" / "plan.yaml").read_text())["data"]
    assert data["fold"] == [0, 2]
    assert "held_out_share" not in data


@pytest.mark.parametrize(
    ("options", "minutes"),
    [("--search auto --search-limit 4", 50), ("--models smp/fpn,smp/unet", 20), ("--folds 2 --search auto", 180)],
)
@pytest.mark.usefixtures("measured")
def test_the_time_of_a_comparison_is_that_of_all_models_and_trials(
    tiles: Path, options: str, minutes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aucseg.commands.compare_folder.seconds_since_start", lambda: 0.0)
    assert run(f"compare tiles --methods ce,auc --time {minutes}m --dry-run {options}") == 0
    plan = yaml.safe_load((tiles / "runs" / "tiles-compare" / "plan.yaml").read_text())
    assert 2000 < plan["trainer"]["max_steps"] <= 3000  # of 0.1 s: five minutes for each


@pytest.mark.usefixtures("measured")
def test_a_folder_with_a_card_is_planned_by_it(tiles: Path) -> None:
    own = write_tiny_dataset(tiles / "other").read_text().replace("tiny", "mine")
    (tiles / "tiles" / "card.yaml").write_text(own)
    assert run("stats tiles --write-config run.yaml") == 0
    written = DatasetCard.load(tiles / "run_card.yaml")
    assert (written.name, written.class_names) == ("mine", DatasetCard.from_yaml(own).class_names)
    assert yaml.safe_load((tiles / "run.yaml").read_text())["data"]["card"] == "run_card.yaml"


@pytest.mark.usefixtures("measured")
def test_short_trials_count_as_such(
    tiles: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("aucseg.commands.compare_folder.seconds_since_start", lambda: 0.0)
    seconds = []
    for steps in ("3000", "300"):
        options = f"--steps 3000 --search auc:auc_weight=1,2,4 --search-steps {steps} --out {steps} --dry-run"
        assert run(f"compare {tiles} --methods ce,auc {options}") == 0
        found = re.search(
            r"^2 trainings and at most 12 trials \(ce, auc\): about (\d+) min", capsys.readouterr().out, re.M
        )
        assert found is not None
        seconds.append(60 * int(found[1]))
    assert seconds[0] / seconds[1] == pytest.approx((2 + 12) / (2 + 12 * 0.1), rel=0.1)


def test_what_a_request_takes_from_the_command_line() -> None:
    request, rest = split_request(["--data.fill", "-1", "tiles", "--weights=random", "--trainer.precision", "32-true"])
    assert request is not None
    assert (request.source, request.random_weights, request.seconds) == ("tiles", True, None)
    assert request.given == {"data.fill": -1, "trainer.precision": "32-true"}
    assert rest == ["--data.fill", "-1", "--trainer.precision", "32-true"]
    request, _ = split_request(["tiles", "--model.bank", "{presence_target: 5e-2}", "--data.root", "a [folder"])
    assert request is not None
    assert request.given == {"model.bank": {"presence_target": 0.05}, "data.root": "a [folder"}
    assert split_request(["--data.card", "tiles.yaml"]) == (None, ["--data.card", "tiles.yaml"])


def test_a_run_does_not_go_on_with_another_folder_of_the_same_name(
    tiles: Path, measured: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    write_tiny_dataset(tiles / "other" / "tiles").unlink()
    options = "--trainer.max_steps 1 --data.num_workers 0 --trainer.logger false --trainer.accelerator cpu"
    assert run(f"fit tiles {options}") == 0
    capsys.readouterr()
    for other in ("other/tiles", "camvid"):
        assert run(f"fit {other} --out runs/tiles --resume auto --trainer.max_steps 2") == 2
        assert "runs/tiles is of another data set" in capsys.readouterr().err
    assert run(f"fit {tiles / 'tiles'} --resume auto --trainer.logger false") == 0  # the same by another path


def test_a_comparison_keeps_its_plan_and_says_what_no_longer_counts(
    tiles: Path, measured: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    write_tiny_dataset(tiles / "other" / "tiles").unlink()
    assert run("compare tiles --dry-run --steps 5") == 0
    assert run("compare tiles --dry-run --time 10m --weights random") == 0
    assert "it was made before, and --time and --weights no longer count; another --out" in capsys.readouterr().out
    for line, message in (
        ("compare other/tiles --dry-run", "runs/tiles-compare is of another data set, root tiles, not other/tiles"),
        (
            "compare tiles --dry-run --steps 5 --time 10m",
            "--time 10m and trainer.max_steps 5 both say how long",
        ),
        (
            "fit tiles --time 10m --trainer.max_epochs 3",
            "--time 10m and trainer.max_epochs 3 both say how long",
        ),
        ("compare tiles --dry-run --steps 6", "--steps 6, but the plan runs/tiles-compare/plan.yaml has 5"),
        ("compare tiles --dry-run --folds 2", "was made without folds: ask for the same, or give another --out"),
        ("compare tiles --dry-run --search-steps 3", "--search-steps belongs to --search, which is missing"),
        ("compare tiles --dry-run --methods auc --search auc_weight=a,b", "auc_weight is a number, got ['a', 'b']"),
    ):
        assert run(line) == 2
        assert message in capsys.readouterr().err


def test_what_is_given_in_the_wrong_place_is_named(tiles: Path, capsys: pytest.CaptureFixture[str]) -> None:
    card = tiles / "mine.yaml"
    assert run(f"stats tiles --workers 0 --write-card {card}") == 0
    (tiles / "run.yaml").write_text("data: {card: mine.yaml}\nmodel: {loss: ce}\n")
    picture = next((tiles / "tiles").rglob("*.png"))
    capsys.readouterr()
    for line, message in (
        ("fit tiles --root other", "--root other is for a card: tiles is the folder of the data itself"),
        ("stats tiles --root other", "--root other is for a card"),
        (f"fit --config {card}", "is the card of a data set, not a configuration: aucseg fit"),
        ("fit run.yaml", "a configuration is given with --config"),
        ("stats nowhere", "there is no folder or card 'nowhere'"),
        ("stats citiscapes", "did you mean cityscapes?"),
        (f"stats {picture}", "is a file, not a card (.yaml): give the folder of images and masks"),
        (
            "fit --config run.yaml --data.root tiles --trainer.max_steps 1 --resume tiles",
            "--resume tiles is a folder: give a checkpoint",
        ),
    ):
        assert run(line) == 2, line
        assert message in " ".join(capsys.readouterr().err.split()), line


def test_one_image_is_told_before_anything_is_measured(
    tiles: Path, measured: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tiles / "one"
    for kind in ("images", "masks"):
        source = sorted((tiles / "tiles" / kind).rglob("*.png"))[0]
        (folder / kind).mkdir(parents=True)
        shutil.copy(source, folder / kind / source.name)
    assert run("fit one") == 2
    assert "one has 1 image and nothing to validate on: add images, or a split 'val'" in capsys.readouterr().err
    assert not measured
