"""Commands that do not come to their end: what they say, and what they leave."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import yaml

from aucseg.cli import main
from aucseg.commands import demo
from aucseg.datasets import SegmentationDataset
from aucseg.statistics.class_statistics import ClassStatistics
from aucseg.training.run_lock import is_at_work
from tests.conftest import write_tiny_dataset
from tests.small_runs import TINY_RUN


def test_a_failed_start_leaves_no_folder(
    tmp_path: Path, tiny_card: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_tiny_dataset(tmp_path / "data", num_train=2, num_val=2)
    for kind in ("images", "masks"):  # no validation image, and one training mask that cannot be read
        for path in (tmp_path / "data" / kind / "val").iterdir():
            path.unlink()
    config = {**TINY_RUN, "data": {**TINY_RUN["data"], "card": str(tiny_card), "root": "data"}}
    Path("run.yaml").write_text(yaml.safe_dump(config))
    Path("empty").mkdir()
    before = sorted(tmp_path.rglob("*"))
    out = ("--out", "new/folder/run")
    for arguments in (
        ("fit", "--config", "run.yaml", *out),
        ("fit", "--config", "run.yaml", "--model.loss", "no-such", *out),
        ("fit", "--config", "run.yaml", "--data.root", str(tiny_card.parent), "--trainer.precision", "12", *out),
        ("fit", "empty", *out),
        ("fit", "data", "--model.nosuch", "1", *out),
        ("validate", "--config", "run.yaml", *out),
        ("validate", "run.yaml", *out),
        ("evaluate", "empty", "--card", str(tiny_card), "--root", str(tiny_card.parent), *out),
        ("compare", "--config", "run.yaml", "--methods", "ce", *out),
        ("compare", "--config", "run.yaml", "--methods", "no-such", *out),
        ("compare", "--config", "run.yaml", "--methods", "ce,aucseg", "--root", "nowhere", *out),
        ("demo", "--iterations", "0", *out),
        ("demo", "--workers", "-1", *out),
    ):
        assert main(list(arguments)) == 2, arguments
        message = capsys.readouterr().err
        assert f"aucseg {arguments[0]}: error: " in message, arguments
        assert "Traceback" not in message
        assert sorted(tmp_path.rglob("*")) == before, (arguments, message)


def test_the_demo_goes_on_where_it_was_stopped_with_the_same_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started: list[dict[str, list[str]]] = []
    is_there: list[bool] = []

    def train(runs: dict[str, list[str]]) -> dict[str, int]:
        started.append(runs)
        result = tmp_path / "demo" / "ce" / "result.json"
        is_there.append(result.exists())
        result.parent.mkdir(exist_ok=True)
        result.touch()
        return {"CE": 3, "AUCSeg": -15}

    monkeypatch.setattr(demo, "train_side_by_side", train)
    monkeypatch.setattr(ClassStatistics, "from_dataset", cache(ClassStatistics.from_dataset))
    dataset = SegmentationDataset("freedoom_lt")
    monkeypatch.setattr("aucseg.datasets.SegmentationDataset", lambda card: dataset)
    out = str(tmp_path / "demo")
    for options in ((), (), ("--seed", "1"), ("--seed", "1", "--iterations", "10")):
        assert main(["demo", "--out", out, *options]) == 3
    printed = capsys.readouterr()
    assert printed.err.count("error: CE has failed") == 4
    assert "AUCSeg has failed" not in printed.err  # it was ended with the other
    assert "keycard        tail         0.0098" in printed.out
    assert is_there == [False, True, False, False]
    assert [runs["CE"][runs["CE"].index("--trainer.max_steps") + 1] for runs in started] == ["400"] * 3 + ["10"]


def interrupted(arguments: list[str], when: Callable[[], bool]) -> tuple[int, str]:
    """Starts a command in a process of its own and presses Ctrl-C when something is the case."""

    def listen() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # what is started in the background has it ignored

    command = subprocess.Popen(
        [sys.executable, "-m", "aucseg", *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=listen,
    )
    try:
        while not when():
            assert command.poll() is None, command.communicate()[1]
            time.sleep(0.05)
        command.send_signal(signal.SIGINT)
        message = command.communicate(timeout=240)[1]
    finally:
        command.kill()
    return command.returncode, message


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_ctrl_c_ends_a_training_with_the_command_that_goes_on(tmp_path: Path, tiny_card: Path) -> None:
    config = {**TINY_RUN, "data": {**TINY_RUN["data"], "card": str(tiny_card), "root": str(tiny_card.parent)}}
    config["trainer"] = {**config["trainer"], "max_steps": 100_000, "val_check_interval": 100_000}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    run, compared = tmp_path / "a run", tmp_path / "compared"
    options = ["--config", str(tmp_path / "run.yaml")]

    status, message = interrupted(["fit", *options, "--out", str(run)], (run / "metrics.csv").is_file)
    assert status == 130
    last = message.splitlines()[-1]
    assert last.startswith("aucseg fit: stopped by SIGINT after step ")
    assert last.endswith(f"'aucseg fit --config '{run}'/config.yaml --out '{run}' --resume auto' goes on from there")
    assert "Traceback" not in message

    first = compared / "smp-fpn" / "ce" / "seed0"
    arguments = ["compare", *options, "--methods", "ce,aucseg", "--seeds", "0", "--out", str(compared)]
    status, message = interrupted(arguments, (first / "metrics.csv").is_file)
    assert status == 130
    assert message.splitlines()[-1] == f"aucseg compare: interrupted; 'aucseg {' '.join(arguments)}' goes on"
    assert "Traceback" not in message
    assert (first / "checkpoints" / "last.ckpt").is_file()
    assert not is_at_work(first)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_demo_is_interrupted_and_goes_on_to_its_report(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    arguments = ["demo", "--out", str(out), "--iterations", "12"]
    logs = [out / name / "metrics.csv" for name in ("ce", "aucseg")]
    status, message = interrupted(arguments, lambda: all(log.is_file() for log in logs))
    assert status == 130
    assert message.splitlines()[-1] == f"aucseg demo: interrupted; 'aucseg {' '.join(arguments)}' goes on"
    assert "Traceback" not in message
    assert not any(is_at_work(out / name) for name in ("ce", "aucseg"))
    done = subprocess.run(
        [sys.executable, "-m", "aucseg", *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "AUCSeg - CE" in done.stdout
    for name in ("ce", "aucseg"):
        assert json.loads((out / name / "result.json").read_text())["step"] == 12
    assert (out / "report.html").stat().st_size > 100_000
    assert (out / "report.png").is_file()
