from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from aucseg.commands.report import add_arguments, run
from tests.report.synthetic import write_run


def _run(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return run(parser.parse_args(arguments))


def test_report_and_figure_are_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [str(write_run(tmp_path / name)) for name in ("ce", "ours")]
    out, figure = tmp_path / "x" / "r.html", tmp_path / "f.svg"
    assert _run(*runs, "--out", str(out), "--titles", "A", "B", "--baseline", "B", "--figure", str(figure)) == 0
    assert "B beside A" in out.read_text()
    assert figure.is_file()
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("B: 800 steps, miou ")
    assert printed[-2].startswith(f"{out}: ")


def test_pictures_that_cannot_be_made_are_told_and_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_run(tmp_path / "a")
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "last.ckpt").touch()
    (folder / "config.yaml").write_text("trainer: {max_steps: 3}\n")
    out = tmp_path / "r.html"
    with pytest.raises(ValueError, match="--device nowhere: "):
        _run(str(folder), "--out", str(out), "--device", "nowhere")
    assert _run(str(folder), "--out", str(out)) == 1
    assert "pictures are left out" in capsys.readouterr().err
    assert out.is_file()
    assert _run(str(folder), "--out", str(out), "--no-images") == 0


def test_runs_on_different_images_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = {"held": ("train/1", "train/2"), "ce": ("val/1", "val/2", "val/3"), "ours": ("val/1", "val/2", "val/3")}
    runs = [str(write_run(tmp_path / name, image_names=names)) for name, names in images.items()]
    out = str(tmp_path / "r.html")
    assert _run(*runs, "--out", out, "--baseline", "ce") == 0
    said = capsys.readouterr().err
    assert said.count("validated on different images") == 1
    assert "held and ce were validated on different images, 2 and 3 with 0 in common" in said
    assert _run(*runs[1:], "--out", out) == 0
    assert "different images" not in capsys.readouterr().err


def test_wrong_arguments(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no run folder"):
        _run(str(tmp_path / "missing"))
    with pytest.raises(ValueError, match="--num-images"):
        _run(str(tmp_path), "--num-images", "-1")
