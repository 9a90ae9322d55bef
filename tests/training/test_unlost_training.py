"""Whatever fails in a validation costs no training; what would fail at the end fails before the first step."""

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from aucseg import cli
from aucseg.training.task import SegmentationTask
from tests.interruptions import compare
from tests.two_processes import STEPS, arguments

SMALL: dict[str, object] = {"trainer.max_steps": STEPS, "trainer.val_check_interval": 3, "data.eval_batch_size": 2}


def fit(card: Path, out: Path, *more: str, **options: object) -> int:
    return cli.main(["fit", *arguments(card, out, **{**SMALL, **options}), *more])


def step_of(run: Path) -> int:
    return int(torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"])


@pytest.fixture
def failing(monkeypatch: Any) -> Iterator[Callable[[BaseException, Callable[[SegmentationTask], bool]], None]]:
    """Lets the second batch of a validation fail when a condition holds; `monkeypatch.undo` mends it."""
    step = SegmentationTask.validation_step

    def fail(error: BaseException, when: Callable[[SegmentationTask], bool]) -> None:
        def validation_step(self: SegmentationTask, batch: dict[str, Any], batch_index: int) -> Any:
            if batch_index == 1 and when(self):
                raise error
            return step(self, batch, batch_index)

        monkeypatch.setattr(SegmentationTask, "validation_step", validation_step)

    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield fail
    for number, handler in handlers.items():  # Lightning ignores Ctrl-C after the first one
        signal.signal(number, handler)


def in_training(step: int) -> Callable[[SegmentationTask], bool]:
    return lambda task: not task.trainer.sanity_checking and task.global_step >= step


@pytest.mark.parametrize(
    ("options", "step", "saved"),
    [
        ({"checkpoint_every": 500}, 3, 3),
        # The validation after three batches is in the middle of the second step.
        ({"checkpoint_every": 500, "trainer.accumulate_grad_batches": 2}, 1, 1),
    ],
)
def test_a_validation_that_fails_leaves_all_steps_and_the_run_ends_like_an_undisturbed_one(
    uneven_card: Path,
    tmp_path: Path,
    failing: Any,
    monkeypatch: Any,
    capsys: Any,
    options: dict[str, object],
    step: int,
    saved: int,
) -> None:
    assert fit(uneven_card, tmp_path / "whole", **options) == 0
    failing(torch.OutOfMemoryError("CUDA out of memory. Tried much"), in_training(step))
    half = tmp_path / "half"
    assert fit(uneven_card, half, **options) == 3
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert "lower data.eval_batch_size" in message
    assert f"in the validation after step {step}; {half}/checkpoints/last.ckpt holds step {saved}" in message
    assert f"'aucseg fit --config {half}/config.yaml --out {half} --resume auto'" in message
    assert step_of(half) == saved
    monkeypatch.undo()
    # The command that the message gives.
    assert cli.main(["fit", "--config", str(half / "config.yaml"), "--out", str(half), "--resume", "auto"]) == 0
    assert compare(half, tmp_path / "whole") == []


def test_a_validation_that_fails_again_and_a_checkpoint_in_another_folder(
    uneven_card: Path, tmp_path: Path, failing: Any, monkeypatch: Any
) -> None:
    whole, half, other = (tmp_path / name for name in ("whole", "half", "other"))
    assert fit(uneven_card, whole) == 0
    failing(RuntimeError("of unknown cause"), in_training(3))
    for out, more in ((half, ()), (half, ("--resume", "auto")), (other, ("--resume", f"{half}/checkpoints/last.ckpt"))):
        with pytest.raises(RuntimeError, match="of unknown cause") as error:
            fit(uneven_card, out, *more)
        assert f"{out}/checkpoints/last.ckpt holds step 3" in "".join(error.value.__notes__)  # type: ignore[attr-defined, unused-ignore]
        assert step_of(out) == 3
    monkeypatch.undo()
    assert fit(uneven_card, half, "--resume", "auto") == 0
    assert compare(half, whole) == []


def test_the_last_validation_fails(
    uneven_card: Path, tmp_path: Path, failing: Any, monkeypatch: Any, capsys: Any
) -> None:
    """Whether in the training's last step or after its end; Ctrl-C there ends the command, not more."""
    failing(KeyboardInterrupt(), in_training(STEPS))
    options: dict[str, object] = {"trainer.val_check_interval": 4}
    assert fit(uneven_card, tmp_path / "run", **options) == 130
    assert f"in the validation after step {STEPS}; " in capsys.readouterr().err
    assert step_of(tmp_path / "run") == STEPS
    monkeypatch.undo()
    assert fit(uneven_card, tmp_path / "run", "--resume", "auto", **options) == 0
    assert f"step {STEPS}, miou 0." in capsys.readouterr().err


def test_fit_rehearses_the_validation_with_the_largest_image_and_leaves_no_trace(
    uneven_card: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    seen: list[list[str]] = []
    step = SegmentationTask.validation_step

    def validation_step(self: SegmentationTask, batch: dict[str, Any], batch_index: int) -> Any:
        if self.trainer.sanity_checking:
            seen.append([Path(name).name for name in batch["name"]])
            torch.rand(3)  # an evaluation that draws random numbers
        return step(self, batch, batch_index)

    monkeypatch.setattr(SegmentationTask, "validation_step", validation_step)
    assert fit(uneven_card, tmp_path / "with") == 0
    assert seen == [["frame_02", "frame_03"], ["frame_00", "frame_01"]]
    assert fit(uneven_card, tmp_path / "without", **{"trainer.num_sanity_val_steps": 0}) == 0
    assert len(seen) == 2
    assert compare(tmp_path / "with", tmp_path / "without") == []
    # A run that goes on has a checkpoint to fall back on.
    assert fit(uneven_card, tmp_path / "with", "--resume", "auto", **{"trainer.max_steps": STEPS + 1}) == 0
    assert len(seen) == 2


@pytest.mark.parametrize(("error", "status"), [(ValueError("it does not fit"), 2), (KeyboardInterrupt(), 130)])
def test_what_fails_in_the_rehearsal_leaves_no_folder(
    uneven_card: Path, tmp_path: Path, failing: Any, capsys: Any, error: BaseException, status: int
) -> None:
    failing(error, lambda task: task.trainer.sanity_checking)
    assert fit(uneven_card, tmp_path / "runs" / "a") == status
    message = capsys.readouterr().err
    assert "in the trial validation before the first step" in message
    assert "Traceback" not in message
    assert (f"--out {tmp_path}/runs/a' starts again\n" in message) == (status == 130)
    assert list(tmp_path.iterdir()) == []
    # A folder that was there stays, and is as it was.
    assert fit(uneven_card, tmp_path) == status
    assert list(tmp_path.iterdir()) == []
