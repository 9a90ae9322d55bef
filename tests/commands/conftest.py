import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from aucseg.commands.compare import add_arguments, run
from aucseg.compare import runner

Compare = Callable[..., int]
Launches = Callable[[], list[str]]


@pytest.fixture
def base_config(tmp_path: Path, tiny_card: Path) -> Path:
    """A base configuration over the tiny data set, for AUCSegLoss with a bank."""
    config = {
        "trainer": {"max_steps": 4, "val_check_interval": 4, "accelerator": "cpu"},
        "model": {
            "loss": "aucseg",
            "loss_options": {"auc_weight": 2.0},
            "bank": {"capacity": 2, "sample_ratio": 1.0, "min_pixels": 4},
            "warmup_steps": 1,
        },
        "data": {"card": str(tiny_card), "root": str(tiny_card.parent), "batch_size": 2, "num_workers": 0},
    }
    path = tmp_path / "base.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.fixture
def launches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Launches:
    """Replaces training by a stand-in; returns what was started since the last call."""
    log = tmp_path / "launched.txt"
    log.touch()
    monkeypatch.setenv("STAND_IN_LOG", str(log))
    script = Path(__file__).with_name("stand_in.py")
    monkeypatch.setattr(runner, "COMMAND", (sys.executable, str(script)))

    def since() -> list[str]:
        lines = [line.partition(f"{tmp_path}/")[2] for line in log.read_text().splitlines()]
        log.write_text("")
        return lines

    return since


@pytest.fixture
def compare(base_config: Path, tmp_path: Path) -> Compare:
    """Calls the command on the base configuration and the folder `out`."""

    def call(*options: str) -> int:
        parser = argparse.ArgumentParser()
        add_arguments(parser)
        arguments = ["--config", str(base_config), "--out", str(tmp_path / "out"), "--no-report", *options]
        return run(parser.parse_args(arguments))

    return call
