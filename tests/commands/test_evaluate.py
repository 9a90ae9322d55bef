"""`aucseg evaluate` through the command line."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from aucseg.cli import main
from tests.report.predicted_folders import probabilities, write_cases, write_nnunet


@pytest.fixture(scope="module")
def card(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cases(tmp_path_factory.mktemp("cases"))


def test_two_folders_are_told_and_compared(card: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [
        write_nnunet(tmp_path / name, probabilities(card, signal)) for name, signal in (("theirs", 2.0), ("ours", 4.0))
    ]
    options = ["--card", str(card), "--root", str(card.parent)]
    assert main(["evaluate", *map(str, folders), *options]) == 0
    out = capsys.readouterr().out
    results = [json.loads((tmp_path / f"{f.name}-evaluation" / "result.json").read_text()) for f in folders]
    for folder, result in zip(folders, results, strict=True):
        assert f"{folder}, split 'val', 6 images" in out
        assert f"  overall                                {100 * result['metrics']['miou']:6.1f}" in out
        assert f"  of the tail                            {100 * result['metrics']['tail_boundary_iou']:6.1f}" in out
    assert "what the tail is mistaken for:\n  gem: " in out
    gain = 100 * (results[1]["metrics"]["tail"] - results[0]["metrics"]["tail"])
    assert f"  tail       {gain:+6.1f}   [" in out
    assert "interval over 6 images:" in out
    # And as before, in files.
    assert main(["evaluate", str(folders[0]), *options, "--out", str(tmp_path / "e")]) == 0
    for name in ("result.json", "confusion.json", "images.json", "curves.json", "config.yaml"):
        assert (tmp_path / "e" / name).read_bytes() == (tmp_path / "theirs-evaluation" / name).read_bytes()
    page = tmp_path / "r.html"
    assert main(["report", *(f"{f}-evaluation" for f in folders), "--out", str(page)]) == 0
    assert "Labels that ours-evaluation predicts for imagesTs/case_000_0000" in page.read_text()
    # Nor are there pictures where the card is of other classes now; pictures need the predictions, numbers do not.
    text = card.read_text()
    card.write_text(
        text.replace("name: box", "name: b").replace("name: crate", "name: box").replace("name: b\n", "name: crate\n")
    )
    try:
        assert main(["report", *(f"{f}-evaluation" for f in folders), "--out", str(page)]) == 1
        assert (
            "class 1 is 'box' in the evaluation and 'crate' in the card. Evaluate it again" in capsys.readouterr().err
        )
    finally:
        card.write_text(text)
    shutil.rmtree(folders[0])
    capsys.readouterr()
    assert main(["report", *(f"{f}-evaluation" for f in folders), "--out", str(page)]) == 1
    assert "pictures are left out: there is no folder of predictions" in capsys.readouterr().err


def test_folders_that_are_not_read_are_told(card: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_nnunet(tmp_path / "theirs", probabilities(card, 2.0))
    options = ["evaluate", str(folder), "--card", str(card), "--root", str(card.parent)]
    assert main(options) == 0
    assert "not read" not in capsys.readouterr().out
    shutil.copytree(folder, folder / "vis")
    assert main(options) == 0
    assert "\nnot read, as pictures for people: vis\n" in capsys.readouterr().out


def one_hot(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    highest: NDArray[np.float32] = (scores == scores.max(0)).astype(np.float32)
    return highest


@pytest.mark.parametrize(("rounded", "is_told"), [(np.float16, False), (one_hot, True)])
def test_scores_that_cannot_be_told_apart_are_told(
    rounded: Any, is_told: bool, card: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = {case: rounded(values) for case, values in probabilities(card, 2.0).items()}
    folder = write_nnunet(tmp_path / "p", scores)
    assert main(["evaluate", str(folder), "--card", str(card), "--root", str(card.parent)]) == 0
    assert ("cannot be told apart" in capsys.readouterr().out) == is_told


@pytest.mark.parametrize(
    ("array", "shape"),
    [(np.zeros((1, 4, 8, 6), np.float32), r"\(1, 4, 8, 6\)"), (np.zeros((4, 8, 6), np.uint8), r"\(4, 8, 6\)")],
)
def test_arrays_that_are_neither_labels_nor_scores_are_told_what_scores_are(
    array: NDArray[Any], shape: str, card: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "p").mkdir()
    for case in probabilities(card, 2.0):
        np.save(tmp_path / "p" / f"{case}.npy", array)
    assert main(["evaluate", str(tmp_path / "p"), "--card", str(card), "--root", str(card.parent)]) == 2
    assert re.search(rf"shape {shape} is neither scores, .* \(K, H, W\), nor a label map", capsys.readouterr().err)


def test_a_part_is_evaluated_when_asked_for(card: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_nnunet(tmp_path / "p", probabilities(card, 2.0))
    (folder / "case_003.png").rename(folder / "case_999.png")
    (folder / "case_003.npz").unlink()
    options = [str(folder), "--card", str(card), "--root", str(card.parent)]
    assert main(["evaluate", *options]) == 2
    error = capsys.readouterr().err
    problems = "no prediction for imagesTs/case_003_0000; of none of the images: case_999.png"
    assert f"1 of 6 images cannot be evaluated: {problems}" in error
    assert not (tmp_path / "p-evaluation").exists()
    assert main(["evaluate", *options, "--partial"]) == 1
    captured = capsys.readouterr()
    assert problems in captured.err
    assert "split 'val', 5 images" in captured.out
    assert main(["report", str(tmp_path / "p-evaluation"), "--out", str(tmp_path / "r.html")]) == 0


def test_damaged_scores_leave_out_their_image_alone(
    card: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_nnunet(tmp_path / "p", probabilities(card, 2.0))
    scores = folder / "case_003.npz"
    scores.write_bytes(scores.read_bytes()[:100])
    options = ["evaluate", str(folder), "--card", str(card), "--root", str(card.parent)]
    assert main(options) == 2
    assert "1 of 6 images cannot be evaluated" in capsys.readouterr().err
    assert main([*options, "--partial"]) == 1
    captured = capsys.readouterr()
    assert f"{scores}: not a readable array file" in captured.err
    assert "split 'val', 5 images" in captured.out
    assert "pixel AUC" in captured.out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["{p}", "{p}"], "the same folder of predictions is given twice"),
        (["{p}", "{q}", "--out", "e"], "--out is for one folder"),
        (["{p}", "--out", "{run}"], "is the folder of a run"),
        (["{p}", "--boundary-ratio", "2"], "--boundary-ratio must lie between 0 and 1, got 2"),
        (["{p}", "--split", "test"], "has no split 'test'; it has val"),
        (["{q}"], "there is no folder of predictions"),
    ],
)
def test_wrong_options(
    card: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    write_nnunet(tmp_path / "p", {})
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.csv").touch()
    given = [option.format(**{name: tmp_path / name for name in ("p", "q", "run")}) for option in options]
    assert main(["evaluate", *given, "--card", str(card), "--root", str(card.parent)]) == 2
    assert message in capsys.readouterr().err
