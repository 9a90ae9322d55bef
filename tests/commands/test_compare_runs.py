"""`aucseg compare` with trainings that are real, of a tiny network."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from aucseg.cli import main
from tests.commands.comparisons import change_config, rows_of

NETWORK = """
from torch import nn


class Net(nn.Sequential):
    def __init__(self, num_classes: int) -> None:
        super().__init__(
            nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU(),
            nn.Conv2d(8, num_classes, 1),
        )
"""


@pytest.fixture
def real_config(base_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A few steps of a tiny network of the user's own, through the real command line."""
    (tmp_path / "tiny_network.py").write_text(NETWORK)
    monkeypatch.delitem(sys.modules, "tiny_network", raising=False)  # that of another test's folder
    monkeypatch.syspath_prepend(str(tmp_path))
    package = Path(sys.modules["aucseg"].__file__ or "").parents[1]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(package)]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    change_config(base_config, "model", model="tiny_network:Net", model_options={"stride": 4})
    change_config(base_config, "data", crop_size=[32, 32], eval_batch_size=4)
    return base_config


def test_end_to_end(real_config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    command = ["compare", "--config", str(real_config), "--out", str(out), "--methods", "ce,aucseg", "--seeds", "0"]
    assert main([*command, "--no-report"]) == 0
    rows = {row["method"]: row for row in rows_of(out)}
    assert list(rows) == ["ce", "aucseg"]
    for row in rows.values():
        assert all(0 <= float(row[key]) <= 1 for key in ("miou", "head", "middle", "tail", "auroc", "tail_ap"))
        assert 0 < float(row["seconds_per_step"]) < 60
        assert 1e7 < float(row["peak_memory"]) < 1e11
    curves = json.loads((out / "tiny_network-Net" / "ce" / "seed0" / "curves.json").read_text())
    assert list(curves) == ["gem"]
    records = {path: path.read_text() for path in out.glob("*/*/*/compare.json")}
    assert main([*command, "--no-report"]) == 0
    assert {path: path.read_text() for path in records} == records
    capsys.readouterr()
    change_config(real_config, "data", batch_size=3)
    assert main([*command, "--no-report"]) == 2
    assert "data.batch_size: 2 then, 3 now" in capsys.readouterr().err


@pytest.mark.slow
def test_all_kinds_of_methods_with_search_and_report(real_config: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    methods = "ce,la+rcs,ce+posthoc-la,ce+disalign,aucseg,aucseg+offsets"
    command = ["compare", "--config", str(real_config), "--out", str(out), "--methods", methods, "--seeds", "0,1"]
    # Of eight images two are needed to judge offsets.
    search = ["--search", "auc_weight=1,4", "--search-limit", "2"]
    assert main([*command, *search, "--discard-checkpoints", "--offsets-share", "0.25"]) == 0
    rows = rows_of(out)
    assert len(rows) == 12
    # The second stages start from what the first has learned: logits shift, the model stays.
    by_key = {(row["method"], row["seed"]): row for row in rows}
    # Post-hoc adjustment trains nothing; DisAlign's one step here is too few to time, but it does train.
    assert by_key["ce+posthoc-la", "0"]["peak_memory"] == ""
    assert float(by_key["ce+disalign", "0"]["peak_memory"]) > 1e7
    assert (out / "report-tiny_network-Net-seed0.html").stat().st_size > 10_000
    assert "report-tiny_network-Net-seed0.html" in (out / "table.md").read_text()


@pytest.mark.slow
def test_a_search_goes_on_beyond_the_edge_of_its_grid(real_config: Path, tmp_path: Path) -> None:
    """Of two values the best is always at the edge: a third is tried, as many as there may be."""
    out = tmp_path / "out"
    command = ["compare", "--config", str(real_config), "--out", str(out), "--methods", "ce-jml", "--seeds", "0"]
    command += ["--search", "ce_weight=0.5,2", "--search-limit", "3", "--no-report"]
    assert main(command) == 0
    (choice,) = json.loads((out / "search.json").read_text())
    ((setting, tried),) = choice["tried"].items()
    assert setting == "model.loss_options.ce_weight"
    assert tried in ([0.125, 0.5, 2], [0.5, 2, 8])
    assert sorted(choice["scores"]) == sorted(f"ce_weight={value}" for value in tried)
    assert all(0 <= score <= 1 for score in choice["scores"].values())
    chosen = choice["settings"][setting]
    assert choice["scores"][f"ce_weight={chosen}"] == max(choice["scores"].values())
    mark = "‡" if chosen in (tried[0], tried[-1]) else ""
    assert choice["at_edge"] == ([setting] if mark else [])
    assert f"| ce_weight {chosen}{mark} of {', '.join(map(str, tried))} |" in (out / "table.md").read_text()
    records = {path: path.read_text() for path in out.rglob("compare.json")}
    assert len(records) == 4
    assert main(command) == 0
    assert {path: path.read_text() for path in out.rglob("compare.json")} == records


@pytest.mark.slow
def test_folds_end_to_end(
    real_config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    command = ["compare", "--config", str(real_config), "--out", str(out), "--methods", "ce", "--folds", "2"]
    assert main(command) == 0
    assert [row["fold"] for row in rows_of(out)] == ["0", "1"]
    runs = [out / "tiny_network-Net" / "ce" / f"fold{number}" for number in (0, 1)]
    validated = [set(json.loads((run / "images.json").read_text())) for run in runs]
    assert [len(names) for names in validated] == [4, 4]
    assert not validated[0] & validated[1]
    assert (out / "report-tiny_network-Net-fold0.html").stat().st_size > 10_000
    capsys.readouterr()
    monkeypatch.setenv("AUCSEG_TRUST_FILES", "1")  # for the network in tiny_network.py
    assert main(["validate", str(runs[1])]) == 0
    assert "fold 1 of 2: miou" in capsys.readouterr().out
    again, first = (json.loads((runs[1] / name / "result.json").read_text()) for name in ("evaluation-fold1", "."))
    assert again["metrics"]["miou"] == pytest.approx(first["metrics"]["miou"])
    assert main(["validate", str(runs[1]), "--split", "val"]) == 0
    assert "split 'val': miou" in capsys.readouterr().out


@pytest.mark.slow
def test_kill_and_resume_of_real_runs(real_config: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "aucseg", "compare", "--config", str(real_config), "--out", str(out)]
    command += ["--methods", "ce,la,aucseg", "--seeds", "0", "--no-report"]
    first, second = (out / "tiny_network-Net" / method / "seed0" for method in ("ce", "la"))
    process = subprocess.Popen(command)
    deadline = time.monotonic() + 400
    while not (second / "log.txt").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    record = (first / "compare.json").read_text()
    assert not (second / "compare.json").exists()
    # Two that share what is left; the run that was left behind goes on, and is waited for.
    others = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    told = [other.communicate(timeout=400)[0] for other in others]
    assert [other.returncode for other in others] == [0, 0], told
    assert (first / "compare.json").read_text() == record
    assert len(list(out.glob("*/*/*/compare.json"))) == 3


@pytest.mark.slow
def test_a_run_that_was_cut_off_goes_on_and_ends_as_if_it_had_not_been(real_config: Path, tmp_path: Path) -> None:
    change_config(real_config, "trainer", max_steps=80, val_check_interval=80)
    command = [sys.executable, "-m", "aucseg", "compare", "--config", str(real_config), "--methods", "aucseg"]
    command += ["--seeds", "0", "--no-report", "--out"]
    folder = tmp_path / "cut" / "tiny_network-Net" / "aucseg" / "seed0"
    process = subprocess.Popen([*command, str(tmp_path / "cut")])
    log, deadline = folder / "metrics.csv", time.monotonic() + 300
    while not (log.is_file() and log.read_text().count("\n") > 2) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) == 130
    assert (folder / "checkpoints" / "last.ckpt").is_file()
    assert not (folder / "compare.json").exists()
    for out in ("cut", "whole"):
        assert subprocess.run([*command, str(tmp_path / out)], check=False).returncode == 0
    whole = json.loads((tmp_path / "whole" / "tiny_network-Net" / "aucseg" / "seed0" / "compare.json").read_text())
    assert json.loads((folder / "compare.json").read_text())["metrics"] == whole["metrics"]
