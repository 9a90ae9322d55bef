"""A short soak: what would grow with the steps does not."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks.soak import MAX_BANK_BYTES, summary

from aucseg.commands.trainer_defaults import steps_between_logs

ROOT = Path(__file__).resolve().parents[2]


def record(step: int, *, rss: float = 100.0, files: int = 9, bank: int = 10) -> dict[str, object]:
    process = {"rss_mb": rss, "own_mb": rss / 2, "files": files}
    sizes = {"bank_bytes": bank, "log_bytes": 2 * step, "csv_bytes": step}
    return {"step": step, "main": process, "loaders": [process], **sizes}


def test_summary_tells_what_grows() -> None:
    steady = summary([record(step) for step in range(10, 510, 10)])
    assert steady["main_rss_mb"] == {"early": 100, "late": 100, "growth": 0}
    assert steady["csv_bytes_per_1000_steps"] == 1000
    leaking = summary([record(step, rss=step, files=step, bank=step) for step in range(10, 510, 10)])
    assert leaking["main_rss_mb"]["growth"] == 300
    assert leaking["loader_0_files"]["growth"] == 300
    assert leaking["bank_bytes"]["largest"] == 500


def test_the_number_of_logged_steps_is_bounded() -> None:
    assert [steps_between_logs(steps) for steps in (-1, 10, 100_000, 160_000, 10**9)] == [10, 10, 10, 16, 100_000]


@pytest.mark.slow
def test_short_soak(tmp_path: Path) -> None:
    path = tmp_path / "soak.json"
    command = [sys.executable, "-m", "benchmarks.soak", "--steps", "300", "--every", "10", "--json", str(path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    result = json.loads(path.read_text())
    last = result["records"][-1]
    assert last["step"] == 300
    assert max(entry["bank_bytes"] for entry in result["records"]) <= MAX_BANK_BYTES
    # Between the second fifth and the last, validations have come and gone; their loaders and files stay the same.
    for name, values in result["summary"].items():
        if name.endswith("_files"):
            assert values["growth"] <= 2, (name, values)  # a batch on its way holds two: images and masks
        if name.endswith("_own_mb"):
            assert values["growth"] < 25, (name, values)
    assert path.with_suffix(".png").is_file()
