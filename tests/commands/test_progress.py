"""What is on the screen while something takes its time: announcements, the bar, a line a minute."""

import fcntl
import os
import pty
import select
import struct
import termios
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from aucseg.commands import progress
from aucseg.commands.progress import RunProgress
from aucseg.runtime import announce
from tests.announced import wait_for


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def a_trainer(steps: int) -> Any:
    return SimpleNamespace(
        global_step=0,
        max_steps=steps,
        callback_metrics={},
        sanity_checking=False,
        num_val_batches=[3],
        state=SimpleNamespace(fn="fit"),
    )


def train(shown: RunProgress, trainer: Any, clock: Clock, steps: int, seconds: float) -> None:
    """Trains some steps of so many seconds each."""
    for _ in range(steps):
        clock.now += seconds
        trainer.global_step += 1
        trainer.callback_metrics["train/loss"] = torch.tensor(2.0 / trainer.global_step)
        shown.on_train_batch_end(trainer, None, None, None, 0)  # type: ignore[arg-type]


def validate(shown: RunProgress, trainer: Any, tail: float) -> None:
    shown.on_validation_start(trainer, None)  # type: ignore[arg-type]
    for _ in range(3):
        shown.on_validation_batch_end(trainer)
    trainer.callback_metrics |= {"val/miou": torch.tensor(0.5), "val/tail": torch.tensor(tail)}
    shown.on_validation_end(trainer, None)  # type: ignore[arg-type]


def test_without_a_terminal_there_is_a_line_a_minute(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    trainer, shown = a_trainer(400), RunProgress(is_terminal=False)
    shown.on_train_start(trainer, None)  # type: ignore[arg-type]
    train(shown, trainer, clock, steps=100, seconds=2.0)
    validate(shown, trainer, tail=0.125)
    train(shown, trainer, clock, steps=30, seconds=2.0)
    shown.on_train_end(trainer, None)  # type: ignore[arg-type]
    assert capsys.readouterr().err.splitlines() == [
        "aucseg: step 30 of 400: loss 0.067, 2.0 s/step, 12 minutes left",
        "aucseg: step 60 of 400: loss 0.033, 2.0 s/step, 11 minutes left",
        "aucseg: step 90 of 400: loss 0.022, 2.0 s/step, 10 minutes left",
        "aucseg: step 100, validation: mean IoU in %, miou 50.0, tail 12.5",
        "aucseg: step 120 of 400: loss 0.017, last validation tail 12.5 %, 2.0 s/step, 9.3 minutes left",
    ]


def test_what_has_no_number_is_left_out(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    trainer, shown = a_trainer(400), RunProgress(is_terminal=False)
    shown.on_train_start(trainer, None)  # type: ignore[arg-type]
    validate(shown, trainer, tail=float("nan"))
    train(shown, trainer, clock, steps=1, seconds=90.0)
    assert capsys.readouterr().err.splitlines() == [
        "aucseg: step 0, validation: mean IoU in %, miou 50.0",
        "aucseg: step 1 of 400: loss 2.000, last validation miou 50.0 %, 90.0 s/step, 10 hours left",
    ]
    shown.disable()  # on another process than the first
    train(shown, trainer, clock, steps=1, seconds=90.0)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("size", [(24, 120), (0, 0)])  # some terminals do not know theirs
def test_in_a_terminal_there_is_a_bar(size: tuple[int, int], clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    master, slave = pty.openpty()
    with os.fdopen(slave, "w") as terminal:
        monkeypatch.setattr("sys.stderr", terminal)
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))
        trainer, shown = a_trainer(8), RunProgress()  # it finds the terminal itself
        shown.on_train_start(trainer, None)  # type: ignore[arg-type]
        train(shown, trainer, clock, steps=4, seconds=1.0)
        validate(shown, trainer, tail=0.125)
        train(shown, trainer, clock, steps=4, seconds=1.0)
        shown.on_train_end(trainer, None)  # type: ignore[arg-type]
        monkeypatch.undo()
        text = ""
        while select.select([master], [], [], 0.2)[0]:
            text += os.read(master, 100_000).decode()
    os.close(master)
    assert "\r" in text
    assert "100%|" in text
    assert "8/8 steps [" in text
    assert "loss 0.250" in text
    assert "last validation tail 12.5 %" in text
    assert "aucseg: step 4, validation: mean IoU in %, miou 50.0, tail 12.5\r\n" in text


def test_an_error_finds_the_line_of_the_bar_closed(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    trainer, shown = a_trainer(8), RunProgress(is_terminal=True)
    shown.on_train_start(trainer, None)  # type: ignore[arg-type]
    train(shown, trainer, clock, steps=1, seconds=1.0)
    shown.on_validation_start(trainer, None)  # type: ignore[arg-type]
    shown.on_exception(trainer, None, ValueError())  # type: ignore[arg-type]
    assert capsys.readouterr().err.endswith("\n")


def test_the_first_step_and_the_trial_validation_are_announced(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(announce, "PATIENCE", 0.0)
    trainer, shown = a_trainer(8), RunProgress(is_terminal=False)
    shown.on_sanity_check_start(trainer, None)  # type: ignore[arg-type]
    assert wait_for(lambda: capsys.readouterr().err) == "aucseg: trying the validation ...\n"
    shown.on_sanity_check_end(trainer, None)  # type: ignore[arg-type]
    shown.on_train_start(trainer, None)  # type: ignore[arg-type]
    assert wait_for(lambda: capsys.readouterr().err) == "aucseg: the first step ...\n"
    shown.on_exception(trainer, None, ValueError())  # type: ignore[arg-type]
