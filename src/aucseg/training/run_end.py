"""Where a training ends: whether a checkpoint leaves anything to train, and why a training was stopped early."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EarlyStopping, Timer

from aucseg.models.checkpoint import load_plain
from aucseg.training.checkpoints import checkpoint_step


def nothing_to_train(checkpoint: Path, trainer: Trainer) -> str | None:
    """Why a training that goes on from a checkpoint would take no step; None if it takes some.

    Args:
        checkpoint: Of a training.
        trainer: With its number of steps and its callbacks.
    """
    step = checkpoint_step(checkpoint)
    if 0 <= trainer.max_steps <= step:
        return (
            f"{checkpoint} is of step {step}, and trainer.max_steps is {trainer.max_steps}: there is nothing to train"
        )
    stopping = _early_stopping(trainer)
    states = load_plain(checkpoint).get("callbacks", {}) if stopping else {}
    for callback in stopping:
        state = states.get(callback.state_key) or {}
        if state.get("stopping_reason_message") and state["patience"] >= callback.patience:
            reason = _in_short(state["stopping_reason_message"])
            return f"{checkpoint} was stopped early at step {step} ({reason}): there is nothing to train"
    return None


def early_stop(trainer: Trainer) -> str | None:
    """When and why a training was stopped before its last step; None if it was not."""
    for callback in _early_stopping(trainer):
        if trainer.should_stop and callback.stopping_reason_message:
            reason = _in_short(callback.stopping_reason_message)
            return f"stopped early, after step {trainer.global_step} of {trainer.max_steps}: {reason}"
    left = [callback.time_remaining() for callback in _callbacks(trainer) if isinstance(callback, Timer)]
    if trainer.global_step < trainer.max_steps and any(time is not None and time <= 0 for time in left):
        return f"stopped by trainer.max_time, after step {trainer.global_step} of {trainer.max_steps}"
    return None


def _early_stopping(trainer: Trainer) -> list[EarlyStopping]:
    return [callback for callback in _callbacks(trainer) if isinstance(callback, EarlyStopping)]


def _callbacks(trainer: Trainer) -> list[Callback]:
    callbacks: list[Callback] = getattr(trainer, "callbacks")  # noqa: B009 - Lightning does not declare it
    return callbacks


def _in_short(message: str) -> str:
    """Lightning's reason without what it tells itself.

    Example:
        >>> _in_short("Monitored metric val/miou did not improve in the last 3 records. Signaling Trainer to stop.")
        'Monitored metric val/miou did not improve in the last 3 validations'
    """
    return message.removesuffix(" Signaling Trainer to stop.").removesuffix(".").replace(" records", " validations")
