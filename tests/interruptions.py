"""Kills training runs in child processes, resumes them, and compares what they leave with an undisturbed run.

`python -m tests.interruptions FOLDER SCENARIO ...` imports everything once and forks a child for each run. It prints
a JSON line for each scenario: what differs from the undisturbed run (nothing, if all is well), and how often it died.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback

from aucseg import safe_files as durable_files
from aucseg.commands import fit as lightning_cli
from aucseg.loading.sample_order import SeededDataset
from aucseg.training.result_writer import ResultWriter
from tests.conftest import write_tiny_dataset
from tests.small_runs import SMALL_RUN

STEPS, CHECKPOINT_EVERY, VALIDATE_EVERY = 12, 2, 4
HOOKS = (
    "on_train_batch_start",
    "on_before_backward",
    "on_before_optimizer_step",
    "on_train_batch_end",
    "on_validation_batch_end",
    "on_validation_end",
    "on_save_checkpoint",
)
WRITES = ("fsync", "replace")
# How far loops and logs have come; all else in a checkpoint is what was learned, or what it was learned with.
PROGRESS = {"epoch", "loops", "num_metrics_rows", "is_before_validation"}


class Strike(Callback):
    """Does something once when a hook is reached in a step."""

    def __init__(self, hook: str, step: int, action: Callable[[], None]) -> None:
        self.done = False

        def strike(trainer: Any, *args: Any, **kwargs: Any) -> None:
            # Validation and checkpoints come in some steps only: the first one from there on.
            if not self.done and trainer.global_step >= step:
                self.done = True
                action()

        setattr(self, hook, strike)


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def arguments(data: Path, out: Path, workers: int) -> list[str]:
    options = {
        "trainer.max_steps": STEPS,
        "trainer.val_check_interval": VALIDATE_EVERY,
        **SMALL_RUN,
        "model.loss": "aucseg",
        "model.warmup_steps": 2,
        "model.learning_rate": 0.001,
        "data.card": data / "tiny.yaml",
        "data.root": data,
        "data.batch_size": 3,
        "data.eval_batch_size": 2,
        "data.num_workers": workers,
        "data.crop_size": "[32, 40]",
        "checkpoint_every": CHECKPOINT_EVERY,
        "out": out,
        "resume": "auto",
    }
    return [text for name, value in options.items() for text in (f"--{name}", str(value))]


def fit(data: Path, out: Path, workers: int = 0, prepare: Callable[[], Callback | None] | None = None) -> int:
    """Runs `aucseg fit` in a child; its exit status, negative for the signal that killed it."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 99
    try:
        log = os.open(out.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        callback = prepare() if prepare else None
        if callback is not None:

            class Writer(ResultWriter):
                """Carries the strike into the trainer."""

                def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
                    if callback not in trainer.callbacks:
                        trainer.callbacks.insert(1, callback)

            lightning_cli.ResultWriter = Writer  # type: ignore[attr-defined]
        code = lightning_cli.run("fit", arguments(data, out, workers))
    except BaseException:  # the child must not go on in the parent's code
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def kill_in_write(name: str, count: int) -> None:
    """Dies at the `count`-th call that brings a file to the disk."""
    original, calls = getattr(os, name), [0]

    def call(*args: Any) -> Any:
        calls[0] += 1
        if calls[0] == count:
            kill()
        return original(*args)

    setattr(os, name, call)


def full_disk(count: int) -> None:
    """No space for the `count`-th checkpoint."""
    original, calls = durable_files.replace_file, [0]

    def write(path: Path, data: Any, keep: Path | None = None) -> None:
        if path.suffix == ".ckpt":
            calls[0] += 1
            if calls[0] == count:
                path.with_name(path.name + ".tmp").write_bytes(bytes(data[: len(data) // 2]))
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        original(path, data, keep)

    from aucseg.training import checkpoints

    checkpoints.replace_file = write  # type: ignore[attr-defined]


def differences(one: Any, other: Any, path: str = "") -> list[str]:
    """Where two nested containers of tensors differ, bit by bit."""
    if isinstance(one, torch.Tensor):
        same = isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
        return [] if same else [path]
    if isinstance(one, dict):
        if not isinstance(other, dict) or list(one) != list(other):
            return [path]
        return [found for key in one for found in differences(one[key], other[key], f"{path}.{key}")]
    if isinstance(one, (list, tuple)):
        if len(one) != len(other):
            return [path]
        return [
            found for i, pair in enumerate(zip(one, other, strict=True)) for found in differences(*pair, f"{path}.{i}")
        ]
    return [] if one == other or (one != one and other != other) else [path]


def compare(out: Path, reference: Path) -> list[str]:
    """What two finished runs leave behind that is not the same."""
    states = [torch.load(run / "checkpoints" / "last.ckpt", weights_only=True) for run in (out, reference)]
    if "is_before_validation" in states[0]:
        # Killed in its last validation, which was then measured after the end: how far Lightning's loops have come
        # is that of before it, and a longer run would begin with it. All else is the same.
        states = [{key: value for key, value in state.items() if key not in PROGRESS} for state in states]
    found = differences(*states)
    for name in ("metrics.csv", "result.json", "confusion.json", "images.json"):
        if (out / name).read_bytes() != (reference / name).read_bytes():
            found.append(name)
    return found


def random_strike(rng: random.Random) -> Callable[[], Callback | None]:
    step = rng.randrange(STEPS)
    if rng.random() < 0.3:
        name, count = rng.choice(WRITES), rng.randint(1, 12)
        return lambda: kill_in_write(name, count)
    hook = rng.choice(HOOKS)
    return lambda: Strike(hook, step, kill)


def scenario_kill(data: Path, out: Path, rng: random.Random) -> int:
    return int(fit(data, out, 0, lambda: Strike("on_before_optimizer_step", 7, kill)) == -signal.SIGKILL)


def scenario_kills(data: Path, out: Path, rng: random.Random) -> int:
    """Three kills in a row, anywhere in a step, a validation or a write; loader processes now and then."""
    return sum(fit(data, out, rng.choice((0, 0, 2)), random_strike(rng)) == -signal.SIGKILL for _ in range(3))


def signal_to_group(hook: str, step: int, number: int) -> Strike:
    """Sends a signal to the run and to all that it has started, as a terminal, `timeout` and torchrun do."""
    os.setpgrp()
    return Strike(hook, step, lambda: os.killpg(0, number))


def scenario_terminate(data: Path, out: Path, rng: random.Random) -> int:
    status = fit(data, out, 2, lambda: signal_to_group("on_train_batch_start", 5, signal.SIGTERM))
    saved = torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]
    return int(status == 128 + signal.SIGTERM and saved == 6)


def scenario_interrupt(data: Path, out: Path, rng: random.Random) -> int:
    """Ctrl-C in the middle of a validation."""
    status = fit(data, out, 2, lambda: signal_to_group("on_validation_batch_end", 8, signal.SIGINT))
    return int(status == 128 + signal.SIGINT)


def scenario_full_disk(data: Path, out: Path, rng: random.Random) -> int:
    status = fit(data, out, 0, lambda: full_disk(3))
    text = out.with_suffix(".log").read_text()
    saved = torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]
    return int(status == 3 and saved == 4 and "the disk is full" in text and "--resume auto" in text)


def scenario_damaged(data: Path, out: Path, rng: random.Random) -> int:
    """The last checkpoint is cut off after the run was killed: the one before is taken, and said so."""
    died = fit(data, out, 0, lambda: Strike("on_before_backward", 9, kill)) == -signal.SIGKILL
    last = out / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:-5000])
    return int(died)


def scenario_worker(data: Path, out: Path, rng: random.Random) -> int:
    """A loader process is killed, as by the kernel when the memory runs out."""
    note = out.with_suffix(".die")

    def prepare() -> Callback:
        original = SeededDataset.__getitem__

        def get(self: SeededDataset, index: tuple[int, int]) -> dict[str, Any]:
            if note.exists():
                note.unlink()
                kill()
            return original(self, index)

        SeededDataset.__getitem__ = get  # type: ignore[method-assign]
        return Strike("on_train_batch_end", 5, note.touch)

    status = fit(data, out, 1, prepare)
    return int(status == 3 and "a loader process has died" in out.with_suffix(".log").read_text())


def scenario_vanished(data: Path, out: Path, rng: random.Random) -> int:
    """An image is gone in the middle of the training, and comes back."""
    image = data / "images" / "train" / "frame_03.png"
    content = image.read_bytes()
    status = fit(data, out, 1, lambda: Strike("on_train_batch_end", 3, image.unlink))
    image.write_bytes(content)
    text = out.with_suffix(".log").read_text()
    return int(status == 3 and f"{image}: there is no such file" in text and "--data.on_error skip" in text)


def scenario_shared_memory(data: Path, out: Path, rng: random.Random) -> int:
    """Another program fills /dev/shm (a small one of our own here) during the training."""
    filler = Path("/dev/shm/filler")

    def fill() -> None:
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(1000))

    status = fit(data, out, 1, lambda: Strike("on_train_batch_end", 3, fill))
    filler.unlink()
    return int(status == 3 and "shared memory" in out.with_suffix(".log").read_text())


def main(folder: Path, names: list[str], seed: int) -> None:
    data = write_tiny_dataset(folder / "data").parent
    reference = folder / "reference"
    status = fit(data, reference)
    assert status == 0, reference.with_suffix(".log").read_text()
    for name in names:
        start = time.perf_counter()
        scenario = globals()[f"scenario_{name.partition(':')[0]}"]
        out = folder / name.replace(":", "-")
        deaths = scenario(data, out, random.Random(f"{seed} {name}"))
        status = fit(data, out)
        found = compare(out, reference) if status == 0 else [f"exit status {status}"]
        text = out.with_suffix(".log").read_text()
        seconds = round(time.perf_counter() - start, 1)
        print(
            json.dumps({"name": name, "deaths": deaths, "differs": found, "log": text, "seconds": seconds}), flush=True
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:], seed=0)
