"""What `aucseg fit` finds in its folder: runs that are damaged, cards that have changed, the user's own files."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from aucseg.cli import main
from aucseg.commands.changed_settings import changed_settings
from aucseg.training.task import SegmentationTask
from tests.commands.habits import RUN, current_folder, fit

LAST, PREVIOUS, BEST = (f"checkpoints/{name}.ckpt" for name in ("last", "previous", "best"))


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The current folder of the user, with a run of four steps in `run`."""
    with current_folder(tmp_path_factory.mktemp("again")) as path:
        assert fit("--out", "run", "--keep_best", "val/miou") == 0
        yield path


def copy_of_run(name: str) -> Path:
    shutil.copytree("run", name)
    return Path(name)


def test_a_run_whose_checkpoints_are_all_damaged_is_not_replaced_unasked(capsys: pytest.CaptureFixture[str]) -> None:
    run = copy_of_run("damaged")
    for name in (LAST, PREVIOUS):
        whole = (run / name).read_bytes()
        (run / name).write_bytes(whole[: len(whole) // 2])
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    options = ("--out", run, "--resume", "auto", "--trainer.max_steps", 2)
    assert fit(*options) == 2
    assert f"go on from the best one in another folder (--resume {run / BEST} --out DIR)" in capsys.readouterr().err
    # Nor is the run replaced by one that goes on from its own checkpoint.
    assert fit("--out", run, "--resume", run / BEST, "--keep_best", "val/miou", "--overwrite", "true") == 2
    assert "give another folder with --out" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    assert fit(*options, "--overwrite", "true") == 0
    assert json.loads((run / "result.json").read_text())["step"] == 2


def test_the_users_own_configuration_outlives_a_failed_start(capsys: pytest.CaptureFixture[str]) -> None:
    own = Path("own", "config.yaml")
    own.parent.mkdir()
    shutil.copytree("data", "spoiled")
    for path in Path("spoiled", "masks", "train").iterdir():
        Image.fromarray(np.full_like(np.asarray(Image.open(path)), 77)).save(path)
    own.write_text(yaml.safe_dump(RUN | {"data": RUN["data"] | {"root": "spoiled"}}))
    text = own.read_text()
    assert main(["fit", "--config", str(own), "--out", "own", "--resume", "auto"]) != 0
    assert own.read_text() == text
    assert "Where the run has a checkpoint" in capsys.readouterr().err
    assert list(own.parent.glob("[!.]*")) == [own]


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def failing_in_its_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    def training_step(*_: Any) -> None:
        raise RuntimeError("CUDA out of memory. Tried much")

    monkeypatch.setattr(SegmentationTask, "training_step", training_step)


def terminated_before_its_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SegmentationTask, "configure_optimizers", lambda _: os.kill(os.getpid(), signal.SIGTERM))


@pytest.mark.parametrize(
    ("options", "prepare", "status"),
    [
        (("--model.optimizer", "AdamWW"), lambda _: None, 2),
        ((), failing_in_its_first_step, 3),
        ((), terminated_before_its_first_step, 130),
    ],
)
def test_a_run_outlives_a_start_that_was_to_replace_it(
    options: tuple[str, ...],
    prepare: Callable[[pytest.MonkeyPatch], None],
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = copy_of_run(f"outlives{status}")
    before = contents(run)
    prepare(monkeypatch)
    assert fit("--out", run, "--overwrite", "true", *options) == status
    assert contents(run) == before
    assert sorted(path.name for path in run.iterdir()) == sorted(path.name for path in Path("run").iterdir())


def test_evaluations_of_a_replaced_run_go_with_it() -> None:
    run = copy_of_run("evaluated")
    assert main(["validate", str(run), "--device", "cpu"]) == 0
    assert main(["validate", "run", "--device", "cpu", "--out", str(run / "evaluation-other")]) == 0
    (run / "evaluation-mine").mkdir()
    (run / "evaluation-mine" / "notes.txt").touch()
    assert fit("--out", run, "--overwrite", "true", "--trainer.max_steps", 2) == 0
    assert sorted(path.name for path in run.glob("evaluation-*")) == ["evaluation-mine", "evaluation-other"]
    assert not (run / ".replaced").exists()
    assert not (run / "best").exists()


def test_a_rehearsal_in_the_folder_of_a_run_leaves_it_alone(capsys: pytest.CaptureFixture[str]) -> None:
    run = copy_of_run("rehearsed")
    before = contents(run)
    options = ("--trainer.fast_dev_run", "true", "--trainer.enable_progress_bar", "true")
    assert fit("--out", run, "--overwrite", "true", *options) == 0
    assert "next: aucseg report" not in capsys.readouterr().out
    assert contents(run) == before


def test_a_card_that_means_something_else_now_is_not_gone_on_with(capsys: pytest.CaptureFixture[str]) -> None:
    run, card = copy_of_run("recoded"), Path("data", "tiny.yaml")
    text = card.read_text()
    content = yaml.safe_load(text)
    options = ("--config", run / "config.yaml", "--out", run, "--resume", "auto", "--trainer.max_steps", 6)
    try:
        for entry, raw in zip(content["classes"], (1, 0, 2, 3), strict=True):
            entry["ids"] = [raw]
        card.write_text(yaml.safe_dump(content, sort_keys=False))
        assert main(["fit", *map(str, options)]) == 2
        printed = capsys.readouterr().err
        assert "the card 'tiny' has changed since the checkpoint: " in printed
        assert "the id 0 (class 0 then, class 1 now)" in printed
        content = yaml.safe_load(text)
        content |= {"ignore_ids": [255, 77], "unmapped": "ignore", "exif": "ignore"}  # allows more than it did
        content["groups"] = {"head": ["ground", "box"], "middle": ["crate"], "tail": ["gem"]}
        card.write_text(yaml.safe_dump(content, sort_keys=False))
        assert main(["fit", *map(str, options)]) == 0
        assert "the card 'tiny' has changed since the checkpoint: groups" in capsys.readouterr().err
    finally:
        card.write_text(text)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--trainer.limit_train_batches", 1), "trainer.limit_train_batches 1 shortens epochs"),
        (("--trainer.overfit_batches", 1, "--trainer.max_steps", 0), "trainer.max_steps must be at least 1"),
        (("--trainer.accumulate_grad_batches", 0), "trainer.accumulate_grad_batches must be at least 1, got 0"),
        (("--model.poly_power", -1), "model.poly_power must be a number of at least 0, got -1"),
        (("--model.head_rate_factor", -1), "model.head_rate_factor must be a number of at least 0"),
        (("--model.weight_decay", -0.1), "model.weight_decay must be a number of at least 0"),
        (
            ("--keep_best", "val/tail", "--trainer.enable_checkpointing", "false"),
            "--keep_best keeps a checkpoint, of which trainer.enable_checkpointing makes none",
        ),
        (
            ("--keep_best", "val/nothing", "--trainer.num_sanity_val_steps", 0, "--trainer.val_check_interval", 9),
            "--keep_best val/nothing: nothing of that name is logged",
        ),
    ],
)
def test_what_would_go_wrong_is_refused(
    options: tuple[object, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit("--out", "refused", "--overwrite", "true", *options) != 0
    assert message in capsys.readouterr().err


def test_a_training_that_its_time_has_ended_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--trainer.max_steps", 100_000, "--trainer.val_check_interval", 100_000)
    assert fit("--out", "timed", *options, "--trainer.max_time", "00:00:00:01") == 0
    assert "stopped by trainer.max_time, after step" in capsys.readouterr().err


def test_damaged_files_of_a_run_are_named_or_made_again(capsys: pytest.CaptureFixture[str]) -> None:
    run = copy_of_run("torn")
    (run / "result.json").write_text('{"step": ')
    assert fit("--out", run, "--resume", "auto", "--keep_best", "val/miou") == 0
    assert json.loads((run / "result.json").read_text())["step"] == 4
    (run / "config.yaml").write_text("")
    assert fit("--out", run, "--resume", "auto", "--keep_best", "val/miou", "--trainer.max_steps", 5) == 2
    assert str(run / "config.yaml") in capsys.readouterr().err


def test_other_settings_are_named_where_they_change_the_course_of_a_training() -> None:
    then: dict[str, Any] = {"data": {"num_workers": 1, "shards": None}, "guard": {"spike_factor": None, "max_saved": 5}}
    now: dict[str, Any] = {"data": {"num_workers": 2, "shards": None}, "guard": {"spike_factor": 3.0, "max_saved": 1}}
    assert changed_settings(then, now) == ["guard.spike_factor (None then, 3.0 now)"]
    for config in (then, now):
        config["data"]["shards"] = "shards/*.tar"  # each loader process reads shards of its own
    assert "data.num_workers (1 then, 2 now)" in changed_settings(then, now)
    then, now = ({"trainer": {"limit_train_batches": limit, "max_time": limit}} for limit in (1, 2))
    assert changed_settings(then, now) == ["trainer.limit_train_batches (1 then, 2 now)"]


def test_a_traceback_is_shown_on_demand(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--out", "traced", "--trainer.max_steps", 0)
    assert fit(*options) == 2
    assert "trainer.max_steps must be at least 1" in capsys.readouterr().err
    monkeypatch.setenv("AUCSEG_TRACEBACK", "1")
    with pytest.raises(ValueError, match="max_steps must be at least 1"):
        fit(*options)


def test_a_plan_is_not_made_anew_over_a_damaged_run(capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--model.model", "habit_parts:Net", "--trainer.max_steps", "2", "--data.crop_size", "[32, 40]")
    assert main(["fit", "data", "--out", "planned", "--trainer.accelerator", "cpu", *options]) == 0
    run = Path("planned")
    for name in (LAST, PREVIOUS):
        if (run / name).is_file():
            (run / name).write_bytes(b"torn")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert main(["fit", "data", "--out", "planned", "--resume", "auto", *options]) == 2
    printed = capsys.readouterr()
    assert "no checkpoint of the run can be read" in printed.err
    assert "measuring" not in printed.out
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_the_same_batches_may_be_repeated() -> None:
    assert fit("--out", "overfitted", "--trainer.overfit_batches", 1) == 0
