"""The command line as a user runs it: real processes, real files."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from aucseg import cli
from tests.small_runs import TINY_RUN


def aucseg(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "aucseg", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, check=False)


@pytest.fixture(scope="module")
def finished_run(tiny_card: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    config = folder / "run.yaml"
    config.write_text(yaml.safe_dump(TINY_RUN))
    out = folder / "run"
    result = aucseg(
        "fit", "--config", config, "--data.card", tiny_card, "--data.root", tiny_card.parent, "--out", out,
        "--trainer.enable_progress_bar", "true",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    (folder / "printed.txt").write_text(result.stdout)
    return out


def test_fit_ends_with_the_classes_the_picture_and_what_comes_next(finished_run: Path) -> None:
    lines = (finished_run.parent / "printed.txt").read_text().splitlines()
    table = lines[lines.index("class   group   IoU %  precision %  recall %") :]
    assert [line.split()[:2] for line in table[1:5]] == [
        ["ground", "head"], ["box", "middle"], ["crate", "middle"], ["gem", "tail"]
    ]  # fmt: skip
    result = json.loads((finished_run / "result.json").read_text())
    assert table[1].split()[2] == f"{100 * result['per_class_iou']['ground']:.1f}"
    means = ", ".join(f"{name} {100 * result['metrics'][key]:.1f}" for name, key in
                      (("all", "miou"), ("head", "head"), ("middle", "middle"), ("tail", "tail")))  # fmt: skip
    assert table[6] == f"mean IoU in %: {means}"
    assert not any("nan" in line for line in lines)
    assert lines[lines.index(f"run:  {finished_run}") + 1].startswith("      validation.png (validation images, ")
    assert f"next: aucseg report {finished_run}" in lines
    assert f"      aucseg predict {finished_run} PHOTOS --out predictions" in lines
    with Image.open(finished_run / "validation.png") as picture:
        assert picture.size[0] == 3 * 364 - 4
        assert picture.size[1] > 4 * 270


def test_fit_leaves_a_complete_run_folder(finished_run: Path) -> None:
    result = json.loads((finished_run / "result.json").read_text())
    assert result["step"] == 4
    assert result["class_names"] == ["ground", "box", "crate", "gem"]
    assert 0 <= result["metrics"]["miou"] <= 1
    confusion = json.loads((finished_run / "confusion.json").read_text())["counts"]
    assert sum(map(sum, confusion)) == 4 * (48 * 64 - 3)
    images = json.loads((finished_run / "images.json").read_text())
    assert len(images) == 4
    # The overlaps of the images add up to the confusion matrix.
    hits = sum(overlap["0"][0] for overlap in images.values() if "0" in overlap)
    assert hits == confusion[0][0]
    assert "train/loss" in (finished_run / "metrics.csv").read_text()
    assert yaml.safe_load((finished_run / "config.yaml").read_text())["model"]["loss"] == "aucseg"
    checkpoint = torch.load(finished_run / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 4


def test_tensorboard_finds_what_was_logged(finished_run: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(finished_run)).Reload()
    with (finished_run / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for name in ("train/loss", "val/miou"):
        logged = [(int(row["step"]), float(row[name])) for row in rows if row[name]]
        found = [(event.step, event.value) for event in events.Scalars(name)]
        assert [step for step, _ in found] == [step for step, _ in logged]
        assert [value for _, value in found] == pytest.approx([value for _, value in logged])


def test_validate_gives_the_metrics_of_fit(finished_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "again"
    result = aucseg(
        "validate", "--config", finished_run / "config.yaml", "--out", out,
        "--ckpt_path", finished_run / "checkpoints" / "last.ckpt",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    first, second = (json.loads((folder / "result.json").read_text()) for folder in (finished_run, out))
    assert first["per_class_iou"] == second["per_class_iou"]


def test_predict_writes_label_maps_of_the_input_size(finished_run: Path, tiny_card: Path, tmp_path: Path) -> None:
    out = tmp_path / "predictions"
    result = aucseg("predict", finished_run, tiny_card.parent / "images" / "val", "--out", out)
    assert result.returncode == 0, result.stderr
    for name in ("labels/frame_00.png", "overlays/frame_03.png"):
        with Image.open(out / name) as picture:
            assert picture.size == (64, 48)
    assert len((out / "areas.csv").read_text().splitlines()) > 4
    result = aucseg("predict", finished_run, tiny_card.parent / "images" / "val", "--out", out, "--tau", "0.5")
    assert result.returncode == 2
    assert "--tau is the strength of the adjustment by --class-counts FILE" in result.stderr


def test_export_is_checked_on_validation_images(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["export", str(finished_run), "--to", str(tmp_path / "model.pt2")]) == 0
    # Four images, two of them also mirrored.
    assert capsys.readouterr().out.startswith("checked on 6 images: logits differ by at most")


def test_resuming_a_finished_run_with_other_settings_says_so_and_changes_nothing(finished_run: Path) -> None:
    files = {path: path.read_bytes() for path in finished_run.iterdir() if path.suffix in (".csv", ".json")}
    command = ("fit", "--config", finished_run / "config.yaml", "--out", finished_run, "--resume", "auto")
    result = aucseg(*command, "--model.learning_rate", "0.5")
    assert result.returncode == 0, result.stderr
    assert "other settings than before: model.learning_rate (None then, 0.5 now)" in result.stderr
    assert "is finished: it has the result of step 4" in result.stderr
    assert files == {path: path.read_bytes() for path in files}
    # What concerned this start alone is not part of the run: its configuration starts a run as it did before.
    assert yaml.safe_load((finished_run / "config.yaml").read_text())["resume"] == "never"


def test_fit_refuses_to_replace_a_run(finished_run: Path) -> None:
    result = aucseg("fit", "--config", finished_run / "config.yaml", "--out", finished_run)
    assert result.returncode == 2
    assert "already holds a run" in result.stderr
    assert "Traceback" not in result.stderr


def test_wrong_input_is_an_error_without_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["demo", "--iterations", "0"]) == 2
    assert "--iterations must be at least 1" in capsys.readouterr().err


def test_an_unknown_command_is_one_line_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        cli.main(["tarin"])
    assert error.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("aucseg: error: there is no command 'tarin'; known: adjust, compare, demo")
    with pytest.raises(SystemExit):
        cli.main(["predcit"])
    assert "did you mean predict?" in capsys.readouterr().err


def test_help_and_wrong_options_of_every_command_are_told_without_torch(tmp_path: Path) -> None:
    code = """
import contextlib, io, sys
from aucseg import cli
commands = ["fit", *cli._COMMANDS]
calls = [["--help"], ["--version"], ["--nosuch"], ["nosuch"], ["fit"], ["fit", "a.yaml"], ["fit", "--config", "nosuch"]]
calls += [[command, option] for command in commands for option in ("--help", "--nosuch")]
calls += [["validate", "--config", "nosuch.yaml"], ["validate", "--config", "run.yaml", "--help"]]
for call in calls:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = cli.main(call)
        except SystemExit as end:
            status = end.code
    if "--help" in call or "--version" in call:
        assert (status, err.getvalue()) == (0, ""), (call, err.getvalue())
        assert len(out.getvalue().splitlines()) <= 80, call
    else:
        assert (status, out.getvalue()) == (2, ""), (call, status)
        assert len(err.getvalue().splitlines()) == 1, err.getvalue()
        assert "--nosuch" not in call or "there is no option --nosuch; " in err.getvalue(), err.getvalue()
    heavy = {"torch", "lightning", "jsonargparse", "matplotlib", "scipy"} & set(sys.modules)
    assert not heavy, (call, heavy)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False)
    assert result.returncode == 0, result.stderr
    assert not list(tmp_path.iterdir())


def test_predictions_of_another_framework_beside_the_run(finished_run: Path, tiny_card: Path, tmp_path: Path) -> None:
    """What `predict` writes is measured like the run's own validation, and a stranger's label maps beside it."""
    root = tiny_card.parent
    done = aucseg("predict", finished_run, root / "images" / "val", "--out", tmp_path / "ours", "--scores")
    assert done.returncode == 0, done.stderr
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    for path in (root / "masks" / "val").glob("*.png"):
        mask = np.roll(np.asarray(Image.open(path)), 3, axis=1)
        Image.fromarray(np.where(mask == 255, 0, mask).astype(np.uint8)).save(theirs / path.name)
    done = aucseg("evaluate", theirs, tmp_path / "ours", "--card", tiny_card, "--root", root)
    assert done.returncode == 0, done.stderr
    assert "mean IoU in points, 95 % interval over 4 images:" in done.stdout
    ours = json.loads((tmp_path / "ours-evaluation" / "result.json").read_text())
    run = json.loads((finished_run / "result.json").read_text())
    # A pixel of two classes with nearly equal scores may go to either: images come one by one, not in batches.
    assert ours["per_class_iou"] == pytest.approx(run["per_class_iou"], abs=1e-4)
    for name in run["metrics"].keys() & ours["metrics"].keys():
        assert ours["metrics"][name] == pytest.approx(run["metrics"][name], abs=1e-4), name
    assert ours["metrics"]["auroc"] > 0
    page = tmp_path / "r.html"
    done = aucseg("report", tmp_path / "theirs-evaluation", finished_run, "--titles", "theirs", "ours", "--out", page)
    assert done.returncode == 0, done.stderr
    html = page.read_text()
    assert "ours compared with theirs: tail mIoU" in html
    for title in ("theirs", "ours"):
        assert f"Labels that {title} predicts for images/val/frame_00" in html
    done = aucseg("report", tmp_path / "theirs-evaluation", tmp_path / "ours-evaluation", "--out", page)
    assert done.returncode == 0, done.stderr
    assert "Labels that ours-evaluation predicts for images/val/frame_00" in page.read_text()
