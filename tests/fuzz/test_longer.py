"""The fuzz suite for longer, and the coverage-guided runner for a moment."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    return done.stdout + done.stderr


@pytest.mark.slow
def test_eight_times_as_many_examples() -> None:
    report = run("-m", "pytest", "-q", "tests/fuzz", "-m", "not slow", AUCSEG_FUZZ="8", AUCSEG_FUZZ_FIXED="1")
    assert "passed" in report


@pytest.mark.slow
@pytest.mark.skipif(find_spec("atheris") is None, reason="needs the extra fuzz (atheris)")
@pytest.mark.parametrize("target", ["cards_with_damaged_bytes", "checkpoints"])
def test_coverage_guided(target: str) -> None:
    report = run("fuzz/run.py", target, "--seconds", "10")
    assert "DONE" in report or "Done" in report
