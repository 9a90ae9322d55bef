"""What differs between the configuration of a run and the one that it goes on with."""

from __future__ import annotations

from typing import Any

# What decides about the course of a training.
LEARNING = ("seed_everything", "model", "data", "trainer", "guard")
_HARMLESS = ("data.cache", "data.root", "data.eval_batch_size", "guard.max_saved")
_LEARNING_TRAINER = (
    *("max_steps", "max_epochs", "accumulate_grad_batches", "precision"),
    *("gradient_clip_val", "gradient_clip_algorithm", "limit_train_batches"),
)


def changed_settings(then: Any, now: Any, name: str = "") -> list[str]:
    """What differs between two configurations, leaving out how a trainer runs and keeping what it computes.

    Example:
        >>> changed_settings({"model": {"loss": "ce", "bank": None}}, {"model": {"loss": "aucseg", "bank": None}})
        ["model.loss ('ce' then, 'aucseg' now)"]
    """
    if not (isinstance(then, dict) and isinstance(now, dict)):
        return [] if then == now or name in _HARMLESS else [f"{name} ({then!r} then, {now!r} now)"]
    keys = [*then, *(key for key in now if key not in then)]
    if name == "trainer":
        keys = [key for key in keys if key in _LEARNING_TRAINER]
    if name == "data" and not now.get("shards"):  # of which each loader process reads its own
        keys = [key for key in keys if key != "num_workers"]
    return [
        text for key in keys for text in changed_settings(then.get(key), now.get(key), f"{name}.{key}" if name else key)
    ]
