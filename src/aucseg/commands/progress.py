"""How far a training is: a bar in a terminal, else a line a minute and one at each validation."""

from __future__ import annotations

import math
import os
import sys
import time
from contextlib import suppress
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from tqdm import tqdm

from aucseg.runtime.announce import LONG_PATIENCE, Announcement
from aucseg.runtime.durations import format_duration

# Between two lines without a terminal, and between two looks at the loss, which waits for the device, with one.
SECONDS_BETWEEN_LINES = 60.0
_SECONDS_BETWEEN_LOOKS = 1.0
_BAR = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} steps [{elapsed}<{remaining}, {rate_fmt}{postfix}]"


class RunProgress(ProgressBar):
    """Shows loss, speed, time left and what the last validation found of the tail, on the standard error.

    Args:
        is_terminal: Whether there is somebody to see a bar; None asks the standard error.
    """

    def __init__(self, is_terminal: bool | None = None) -> None:
        super().__init__()
        self._is_terminal = sys.stderr.isatty() if is_terminal is None else is_terminal
        self._is_enabled = True
        self._bar: Any = None
        self._validation_bar: Any = None
        self._announcement: Announcement | None = None
        self._found: dict[str, float] = {}
        self._start = (0, 0.0)
        self._last_look = 0.0

    def enable(self) -> None:
        """Shows it."""
        self._is_enabled = True

    def disable(self) -> None:
        """Shows nothing, on the processes but the first."""
        self._is_enabled = False

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Announces the trial validation."""
        self._announce("trying the validation")

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ends the announcement."""
        self._quiet()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Opens the bar."""
        self._start = trainer.global_step, time.monotonic()
        self._last_look = self._start[1]
        self._announce("the first step")
        if self._is_terminal and self._is_enabled:
            options = {"initial": trainer.global_step, "bar_format": _BAR, "unit": "step", **_size()}
            self._bar = tqdm(total=trainer.max_steps, file=sys.stderr, **options)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Goes on; the loss, which waits for the device, is looked at once a second, or once a line."""
        self._quiet()
        now = time.monotonic()
        if self._bar is not None:
            if now - self._last_look >= _SECONDS_BETWEEN_LOOKS:
                self._last_look = now
                self._bar.set_postfix_str(self._numbers(trainer), refresh=False)
            self._bar.update(trainer.global_step - self._bar.n)
        elif now - self._last_look >= SECONDS_BETWEEN_LINES:
            self._last_look = now
            self._say(self._line(trainer, now))

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Opens the bar of a validation."""
        if trainer.sanity_checking:
            return
        if self._is_terminal and self._is_enabled:
            is_inner = self._bar is not None
            total = int(sum(trainer.num_val_batches)) if trainer.num_val_batches else None
            self._validation_bar = tqdm(
                total=total, desc="validation", file=sys.stderr, leave=False, position=int(is_inner), **_size()
            )
        else:
            self._announce("validation", LONG_PATIENCE)

    def on_validation_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Goes on."""
        if self._validation_bar is not None:
            self._validation_bar.update()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Says what was found."""
        self._quiet()
        if self._validation_bar is not None:
            self._validation_bar.close()
            self._validation_bar = None
        if trainer.sanity_checking:
            return
        found = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
        self._found = {name.removeprefix("val/"): value for name, value in found.items() if not math.isnan(value)}
        if trainer.state.fn == "fit":
            shown = [f"{name} {100 * self._found[name]:.1f}" for name in _SHOWN if name in self._found]
            self._say(f"step {trainer.global_step}, validation: {', '.join(['mean IoU in %', *shown])}")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Closes the bar."""
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Closes what is open, so that the error stands on a line of its own."""
        self._quiet()
        self._close()

    def _numbers(self, trainer: Trainer) -> str:
        loss = trainer.callback_metrics.get("train/loss")
        numbers = [] if loss is None else [f"loss {float(loss):.3f}"]
        name = "tail" if "tail" in self._found else "miou"
        if name in self._found:
            numbers.append(f"last validation {name} {100 * self._found[name]:.1f} %")
        return ", ".join(numbers)

    def _line(self, trainer: Trainer, now: float) -> str:
        step, total = trainer.global_step, trainer.max_steps
        text = f"step {step} of {total}"
        numbers = self._numbers(trainer)
        done, seconds = step - self._start[0], now - self._start[1]
        if done > 0:
            rate = done / seconds
            speed = f"{rate:.1f} steps/s" if rate >= 1 else f"{1 / rate:.1f} s/step"
            numbers += f"{', ' if numbers else ''}{speed}, {format_duration((total - step) / rate)} left"
        return f"{text}: {numbers}"

    def _say(self, text: str) -> None:
        if self._is_enabled:
            # Above the bar, where there is one.
            tqdm.write(f"aucseg: {text}", file=sys.stderr)

    def _announce(self, what: str, patience: float | None = None) -> None:
        self._quiet()
        self._announcement = Announcement(what, patience, enabled=self._is_enabled)
        self._announcement.start()

    def _quiet(self) -> None:
        if self._announcement is not None:
            self._announcement.stop()
            self._announcement = None

    def _close(self) -> None:
        for bar in (self._validation_bar, self._bar):
            if bar is not None:
                bar.close()
        self._validation_bar = self._bar = None


def _size() -> dict[str, Any]:
    """What tells a bar its size; in a terminal that does not know its own, such as a container's, it would vanish."""
    with suppress(OSError, ValueError):
        if os.get_terminal_size(sys.stderr.fileno()).columns > 0:
            return {"dynamic_ncols": True}
    return {"ncols": _DEFAULT_COLUMNS, "nrows": _DEFAULT_ROWS}


_DEFAULT_COLUMNS, _DEFAULT_ROWS = 100, 24
_SHOWN = ("miou", "head", "middle", "tail")
