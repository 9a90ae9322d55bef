"""`aucseg fit`, resume and `validate` in two processes under torchrun, against one process."""

import json
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from aucseg.commands import fit as lightning_cli
from aucseg.models.recipes import recipe_of
from tests.conftest import write_uneven_dataset
from tests.interruptions import compare
from tests.two_processes import STEPS, arguments, train_plain, uneven_arguments


def torchrun(*command: object, processes: int = 2) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return subprocess.run([*launcher, *map(str, command)], capture_output=True, text=True, env=environment, check=False)


@pytest.fixture(scope="module")
def folder(tiny_card: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    write_uneven_dataset(folder / "data")
    result = torchrun("-m", "tests.two_processes", tiny_card, folder)
    assert result.returncode == 0, result.stderr
    (folder / "stderr.txt").write_text(result.stderr)
    return folder


@pytest.fixture(scope="module")
def results(folder: Path) -> list[dict[str, Any]]:
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def test_two_processes_learn_what_one_learns_from_twice_the_batch(
    tiny_card: Path, tmp_path: Path, results: list[dict[str, Any]]
) -> None:
    alone = train_plain(tiny_card, tmp_path, 4)
    for found in results:
        torch.testing.assert_close(found["plain"], alone, rtol=2e-5, atol=2e-6)
        torch.testing.assert_close(found["micro-batches"], alone, rtol=2e-5, atol=2e-6)


def test_a_step_that_is_bad_on_one_process_is_skipped_on_both(folder: Path, results: list[dict[str, Any]]) -> None:
    assert [found["num_skipped"] for found in results] == [1, 1]
    first, second = (found["guarded"] for found in results)
    assert all(torch.equal(value, second[name]) and value.isfinite().all() for name, value in first.items())
    names = sorted(path.name for path in (folder / "guarded" / "skipped").iterdir())
    assert names == ["step-0000002-rank-0.pt", "step-0000002-rank-1.pt"]


def test_the_loss_that_is_logged_is_that_of_both_processes(results: list[dict[str, Any]]) -> None:
    first, second = (found["losses"] for found in results)
    assert first == second
    assert len(first) == STEPS
    assert [step for step, loss in enumerate(first) if loss == float("inf")] == [2]


def test_the_rate_is_that_of_all_images_of_a_step(results: list[dict[str, Any]]) -> None:
    recipe = recipe_of("smp/fpn", {}, batch_size=2 * 2 * 2)  # processes, accumulated batches, images in each
    for found in results:
        rates = [recipe.learning_rate, recipe.learning_rate * recipe.head_rate_factor]
        assert sorted(set(found["rates"])) == pytest.approx(rates)


def test_processes_hold_the_same_weights_and_banks_of_their_own(results: list[dict[str, Any]]) -> None:
    first, second = results
    for name, value in first["weights"].items():
        if "running" not in name:  # statistics of batch normalization are each process's own on the CPU
            assert torch.equal(value, second["weights"][name]), name
    assert not torch.equal(first["bank"]["generator"], second["bank"]["generator"])
    assert all(any(found["bank"]["samples"]) for found in results)


def test_stopped_on_one_process_and_resumed_ends_like_the_undisturbed_run(
    folder: Path, results: list[dict[str, Any]]
) -> None:
    for found in results:
        assert found["status"] == [128 + signal.SIGTERM, 0]
        assert found["again"] == 0
    checkpoint = torch.load(folder / "whole" / "checkpoints" / "last.ckpt", weights_only=True)
    assert len(checkpoint["processes"]) == 2
    assert "bank" in checkpoint["processes"][1]
    assert compare(folder / "half", folder / "whole") == []
    assert "is finished" in (folder / "stderr.txt").read_text()


def test_validation_gives_the_metrics_of_one_process(folder: Path, tiny_card: Path, tmp_path: Path) -> None:
    checkpoint = folder / "whole" / "checkpoints" / "last.ckpt"
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        assert lightning_cli.run("validate", arguments(tiny_card, tmp_path / "one", ckpt_path=checkpoint)) == 0
    one, two = (
        {name: json.loads((run / f"{name}.json").read_text()) for name in ("result", "confusion", "images", "curves")}
        for run in (tmp_path / "one", folder / "validate")
    )
    assert two["result"]["metrics"].pop("loss") == pytest.approx(one["result"]["metrics"].pop("loss"), rel=1e-6)
    assert two == one
    assert len(two["images"]) == 4


def test_unequal_images_in_batches_on_two_processes_give_the_metrics_of_one_by_one(folder: Path) -> None:
    assert lightning_cli.run("validate", uneven_arguments(folder, "one by one", 1)) == 0
    one, two = (
        {name: json.loads((folder / run / f"{name}.json").read_text()) for name in ("result", "confusion", "images")}
        for run in ("one by one", "uneven")
    )
    assert two["result"].pop("metrics") == pytest.approx(one["result"].pop("metrics"), rel=1e-5)
    assert two == one
    assert len(two["images"]) == 5


def test_parameters_without_a_part_in_the_loss_are_named(results: list[dict[str, Any]]) -> None:
    for found in results:
        refused, done = found["unused"]
        assert "no part in the loss (2: model.spare.bias, model.spare.weight)" in refused.replace(
            "model.spare.weight, model.spare.bias", "model.spare.bias, model.spare.weight"
        )
        assert "--trainer.strategy ddp_find_unused_parameters_true" in refused
        assert done == ""


def test_the_first_process_alone_speaks_and_writes(folder: Path) -> None:
    text = (folder / "stderr.txt").read_text()
    assert text.count("stopping after this step") <= 1  # told on process 1, which is silent
    assert "sync_dist" not in text
    lines = (folder / "whole" / "metrics.csv").read_text().splitlines()
    steps = [line for line in lines[1:] if line.split(",")[lines[0].split(",").index("train/loss")]]
    assert len(steps) == STEPS


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_accelerators_synchronize_batch_norm_and_shard(tiny_card: Path, tmp_path: Path, strategy: str) -> None:
    """On all GPUs of the machine: fit, stop half way, go on."""
    more = {"trainer.accelerator": "gpu", "trainer.strategy": strategy, "resume": "auto"}
    processes = torch.cuda.device_count()
    for out, steps in (("whole", STEPS), ("half", STEPS // 2), ("half", STEPS)):
        options = arguments(tiny_card, tmp_path / out, **more)
        options += ["--trainer.max_steps", str(steps), "--data.eval_batch_size", "1"]
        options += ["--trainer.callbacks", '[{"class_path": "tests.two_processes.ExpectSyncBatchNorm"}]']
        result = torchrun("-m", "aucseg", "fit", *options, processes=processes)
        assert result.returncode == 0, result.stderr
    results = [json.loads((tmp_path / out / "result.json").read_text()) for out in ("whole", "half")]
    assert results[0]["step"] == results[1]["step"] == STEPS


@pytest.mark.slow
def test_killed_process_and_resume(tiny_card: Path, tmp_path: Path) -> None:
    """torchrun ends the others; the command itself, given again, goes on."""
    whole = torchrun("-m", "aucseg", "fit", *arguments(tiny_card, tmp_path / "whole"))
    assert whole.returncode == 0, whole.stderr
    half = arguments(tiny_card, tmp_path / "half", resume="auto")
    kill = ["--trainer.callbacks", '[{"class_path": "tests.two_processes.Kill"}]']
    killed = torchrun("-m", "aucseg", "fit", *half, *kill)
    assert killed.returncode != 0
    resumed = torchrun("-m", "aucseg", "fit", *half)
    assert resumed.returncode == 0, resumed.stderr
    assert compare(tmp_path / "half", tmp_path / "whole") == []
