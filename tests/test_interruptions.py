"""Runs that are killed, interrupted or out of disk go on with `--resume auto` and end like undisturbed ones."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


def run_scenarios(folder: Path, *names: str, before: tuple[str, ...] = ()) -> dict[str, dict[str, Any]]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [*before, sys.executable, "-m", "tests.interruptions", str(folder), *names]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stderr
    return {found["name"]: found for found in map(json.loads, result.stdout.splitlines())}


def test_killed_run_with_a_damaged_checkpoint_ends_like_the_undisturbed_one(tmp_path: Path) -> None:
    found = run_scenarios(tmp_path, "damaged")["damaged"]
    assert found["deaths"] == 1
    assert found["differs"] == []
    assert "last.ckpt is not a readable checkpoint: it is cut off" in found["log"]
    assert "other settings" not in found["log"]


@pytest.mark.slow
def test_terminated_interrupted_and_full_disk(tmp_path: Path) -> None:
    found = run_scenarios(tmp_path, "kill", "terminate", "interrupt", "full_disk")
    assert {name: (entry["deaths"], entry["differs"]) for name, entry in found.items()} == {
        name: (1, []) for name in ("kill", "terminate", "interrupt", "full_disk")
    }
    assert "stopped by SIGTERM after step 6" in found["terminate"]["log"]
    assert "--resume auto' goes on from there" in found["terminate"]["log"]
    assert "the disk is full" in found["full_disk"]["log"]


@pytest.mark.slow
def test_dead_loader_process_and_vanished_file_are_named_and_the_run_goes_on(tmp_path: Path) -> None:
    for name, entry in run_scenarios(tmp_path, "worker", "vanished").items():
        assert (entry["deaths"], entry["differs"]) == (1, []), (name, entry["log"])


@pytest.mark.slow
def test_full_shared_memory_is_named_and_the_run_goes_on(tmp_path: Path) -> None:
    own_memory = ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs -o size=300k tmpfs /dev/shm && exec "$@"', "sh")
    if subprocess.run([*own_memory, "true"], check=False, capture_output=True).returncode:
        pytest.skip("a /dev/shm of our own needs the right to mount")
    found = run_scenarios(tmp_path, "shared_memory", before=own_memory)["shared_memory"]
    assert (found["deaths"], found["differs"]) == (1, []), found["log"]


@pytest.mark.slow
def test_twenty_kills_at_random_moments(tmp_path: Path) -> None:
    found = run_scenarios(tmp_path, *(f"kills:{number}" for number in range(8)))
    assert sum(entry["deaths"] for entry in found.values()) >= 20
    assert all(entry["differs"] == [] for entry in found.values()), found
