"""The optimizer of `aucseg.SegmentationTask`: which parameters decay and how fast each learns, the schedule."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.types import LRSchedulerConfigType, OptimizerLRSchedulerConfig
from torch import nn

from aucseg.models import split_parameters
from aucseg.models.recipes import BATCH_SIZE, recipe_of
from aucseg.runtime.import_paths import build_by_path, init_args_of
from aucseg.training.processes import print_note

# A word of a dotted name: pos_embed, position_embeddings, relative_position_bias_table, rel_pos_h, ...
_POSITION = re.compile(r"(^|[._])pos(ition(al)?)?s?\d*($|[._])")
_WEIGHTED_SUMS = (nn.Linear, nn.Bilinear, nn.modules.conv._ConvNd)


def decays(module: nn.Module, name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay suits a parameter: one that is a weight, neither a scale, a shift nor a position.

    Args:
        module: The module that the parameter belongs to.
        name: Dotted name of the parameter in the whole model.
        parameter: Norm weights, biases, layer scales and offsets are vectors, whatever ones surround their only size;
            of convolutions and linear layers only the bias is, even with a single output.

    Example:
        >>> [decays(nn.Conv2d(3, 1, 1), f"head.{name}", p) for name, p in nn.Conv2d(3, 1, 1).named_parameters()]
        [True, False]
        >>> decays(nn.Module(), "encoder.pos_embed", nn.Parameter(torch.zeros(1, 16, 8)))
        False
        >>> decays(nn.Module(), "scale", nn.Parameter(torch.ones(5, 1, 1)))
        False
    """
    if _POSITION.search(name):
        return False
    return parameter.ndim > 1 and (isinstance(module, _WEIGHTED_SUMS) or parameter.squeeze().ndim > 1)


def undecayed(model: nn.Module) -> set[int]:
    """Identities of the parameters without weight decay, see `decays`.

    Modules may name more of them with a method `no_weight_decay()`, as those of timm do: names of parameters,
    relative to the module.
    """
    result = set()
    for prefix, module in model.named_modules():
        own = module.named_parameters(prefix, recurse=False)
        result |= {id(parameter) for name, parameter in own if not decays(module, name, parameter)}
        if callable(method := getattr(module, "no_weight_decay", None)):
            named = set(method())
            result |= {id(parameter) for name, parameter in module.named_parameters() if name in named}
    return result


def build_optimizer(
    model: nn.Module,
    learning_rate: float,
    head_rate_factor: float,
    weight_decay: float,
    betas: Sequence[float],
    optimizer: str | Mapping[str, Any] | None = None,
    loss: nn.Module | None = None,
) -> torch.optim.Optimizer:
    """AdamW, or another optimizer, over the parameters that learn.

    Args:
        model: Its encoder is what `aucseg.models.split_parameters` finds.
        learning_rate: Rate of the encoder.
        head_rate_factor: The rate of everything else is this many times higher.
        weight_decay: Decay of the parameters that `undecayed` leaves.
        betas: Decay rates of AdamW's two moments.
        optimizer: Import path (a bare name is one of `torch.optim`), or a mapping of `class_path` and
            `init_args`; `lr` and `weight_decay` in these take precedence over `learning_rate` and `weight_decay`.
        loss: Its parameters, if it has some, learn at the rate of the head and do not decay.

    Raises:
        ImportError: The import path leads nowhere.
        TypeError: An option that the optimizer does not have.
    """
    options = {} if optimizer is None or isinstance(optimizer, str) else init_args_of(optimizer, "model.optimizer")
    learning_rate = options.pop("lr", learning_rate)
    weight_decay = options.pop("weight_decay", weight_decay)
    without = undecayed(model)
    groups: list[dict[str, Any]] = []
    encoder, head = split_parameters(model)
    of_model = {id(parameter) for parameter in model.parameters()}
    # Some losses hold the model, or a part of it.
    of_loss = [] if loss is None else [parameter for parameter in loss.parameters() if id(parameter) not in of_model]
    without |= set(map(id, of_loss))
    for parameters, factor in ((encoder, 1.0), (head, head_rate_factor), (of_loss, head_rate_factor)):
        trainable = [parameter for parameter in parameters if parameter.requires_grad]
        for decay, is_without in ((weight_decay, False), (0.0, True)):
            chosen = [parameter for parameter in trainable if (id(parameter) in without) == is_without]
            if chosen:
                groups.append({"params": chosen, "lr": learning_rate * factor, "weight_decay": decay})
    learning = [parameter for group in groups for parameter in group["params"]]
    narrow = {parameter.dtype for parameter in learning} & {torch.float16, torch.bfloat16}
    if narrow:
        print_note(
            f"the weights are {', '.join(sorted(map(str, narrow)))}: a step that is small beside a weight is rounded "
            "away, and most are; mixed precision (trainer.precision bf16-mixed or 16-mixed) keeps float32 weights"
        )
    if optimizer is not None:
        spec = optimizer if isinstance(optimizer, str) else {**optimizer, "init_args": options}
        built: torch.optim.Optimizer = build_by_path(spec, "model.optimizer", "torch.optim", groups, lr=learning_rate)
        return built
    # One kernel for all parameters: on two CPU cores a step of AdamW takes a quarter of the time of the default.
    fused = all(parameter.device.type in ("cpu", "cuda", "mps", "xpu") for parameter in learning)
    # In float16 the usual 1e-8 is 0, and the second moments of small gradients are 0 as well.
    eps = max([1e-8, *(torch.finfo(parameter.dtype).tiny for parameter in learning)])
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(betas[0], betas[1]), eps=eps, fused=fused)


def build_schedule(
    optimizer: torch.optim.Optimizer, max_steps: float, warmup_steps: int, warmup_factor: float, poly_power: float
) -> torch.optim.lr_scheduler.LambdaLR:
    """Linear warm-up from `warmup_factor`, and polynomial decay to zero over `max_steps`, a step at a time."""

    def factor(step: int) -> float:
        decayed = max(0.0, 1.0 - step / max_steps) ** poly_power
        if step < warmup_steps:
            decayed *= warmup_factor + (1.0 - warmup_factor) * step / warmup_steps
        return float(decayed)

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def steps_of_training(trainer: Trainer) -> float:
    """Optimizer steps of a training: `max_steps`, or those of its epochs; infinite where no end is known."""
    steps = trainer.max_steps if trainer.max_steps > 0 else trainer.estimated_stepping_batches
    return steps if steps > 0 else math.inf


def optimizer_and_schedule(
    model: nn.Module, loss: nn.Module | None, settings: Mapping[str, Any], trainer: Trainer
) -> OptimizerLRSchedulerConfig:
    """What Lightning's `configure_optimizers` returns, from the hyperparameters of `aucseg.SegmentationTask`.

    Raises:
        ValueError: The rate is to fall to zero over a training without a known end.
    """
    num_steps = steps_of_training(trainer)
    if math.isinf(num_steps) and settings["schedule"] is None:
        raise ValueError(
            "the training has no known end, which the schedule needs: give the trainer max_steps, or max_epochs where "
            "the loader has a length"
        )
    settings = _with_recipe(settings, trainer, num_steps)
    names = ("learning_rate", "head_rate_factor", "weight_decay", "betas", "optimizer")
    optimizer = build_optimizer(model, **{name: settings[name] for name in names}, loss=loss)
    decay = {name: settings[name] for name in ("warmup_steps", "warmup_factor", "poly_power")}
    schedule = schedule_of(optimizer, trainer, settings["schedule"], max_steps=num_steps, **decay)
    return {"optimizer": optimizer, "lr_scheduler": schedule}


Groups = Sequence[Mapping[str, Any]]


def group_settings(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """What the groups of an optimizer were built with, beside their parameters."""
    return [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]


def check_parameter_groups(optimizer: torch.optim.Optimizer, stored: Groups) -> None:
    """Refuses an optimizer that the state in a checkpoint is not of, before torch does so in the middle of it.

    Args:
        optimizer: As built.
        stored: The groups in the checkpoint's state.

    Raises:
        ValueError: Other groups of parameters, or another kind of optimizer.
    """
    own = optimizer.param_groups
    sizes = [[len(group["params"]) for group in groups] for groups in (stored, own)]
    missing = sorted({key for group in own for key in group} - {key for group in stored for key in group})
    if sizes[0] != sizes[1]:
        what = f"it trains groups of {sizes[0]} tensors, this one of {sizes[1]}"
    elif missing:
        what = f"it knows nothing of {', '.join(missing)}"
    else:
        return
    raise ValueError(
        f"the checkpoint's optimizer is another than {type(optimizer).__name__} as set up here ({what}): resume with "
        "model.optimizer, model.freeze, model.loss and model.model as in the config.yaml of the run; with others start "
        "a new run with model.init_from, which takes over the weights"
    )


def take_over_changes(
    optimizer: torch.optim.Optimizer, schedule: Any, then: Groups | None, now: Groups, *, is_own_schedule: bool
) -> None:
    """Puts changed settings in force in a resumed training, whose optimizer and schedule have their old ones again.

    Args:
        optimizer: With its state restored.
        schedule: With its state restored.
        then: `group_settings` of the training that wrote the checkpoint; None where it did not say.
        now: Those of this one.
        is_own_schedule: Whether the schedule is that of `build_schedule`, whose rates follow from the step alone.
    """
    rates = ("lr", "initial_lr")
    changes = [
        {key: value for key, value in new.items() if old.get(key) != value}
        for old, new in zip(then or now, now, strict=True)
    ]
    if not is_own_schedule and any(rate in change for change in changes for rate in rates):
        print_note("the learning rates stay those that model.schedule has come to: it cannot be given others midway")
    for group, change in zip(optimizer.param_groups, changes, strict=True):
        group.update({key: value for key, value in change.items() if key not in rates})
        if is_own_schedule and "initial_lr" in change:
            group["initial_lr"] = change["initial_lr"]
    if is_own_schedule:
        # Of another number of steps the rate is another one from the first step on.
        schedule.base_lrs = [group["initial_lr"] for group in optimizer.param_groups]
        factors = [factor(schedule.last_epoch) for factor in schedule.lr_lambdas]
        schedule._last_lr = [base * factor for base, factor in zip(schedule.base_lrs, factors, strict=True)]
        for group, rate in zip(optimizer.param_groups, schedule._last_lr, strict=True):
            group["lr"] = rate


def _with_recipe(settings: Mapping[str, Any], trainer: Trainer, num_steps: float) -> dict[str, Any]:
    """The settings with those rates filled in that are left open; a note says which."""
    batch_size = int(getattr(getattr(trainer, "datamodule", None), "batch_size", None) or BATCH_SIZE)
    images = batch_size * trainer.accumulate_grad_batches * trainer.world_size
    recipe = recipe_of(settings["model"], settings["model_options"], batch_size=images)
    chosen = {
        "learning_rate": recipe.learning_rate,
        "head_rate_factor": recipe.head_rate_factor,
        "warmup_steps": recipe.warmup_steps(num_steps),
    }
    chosen = {name: value for name, value in chosen.items() if settings[name] is None}
    if "learning_rate" in chosen and settings["optimizer"] is None:
        listed = ", ".join(f"model.{name} {value:g}" for name, value in chosen.items())
        print_note(f"{listed}: {recipe.reason}, as none is given")
    return {**settings, **chosen}


def schedule_of(
    optimizer: torch.optim.Optimizer, trainer: Trainer, spec: str | Mapping[str, Any] | None, **warmup_and_decay: Any
) -> LRSchedulerConfigType:
    """The schedule of a training, as Lightning takes it; it moves on after each optimizer step.

    Args:
        optimizer: What it sets the rates of.
        trainer: Knows when it validates.
        spec: Import path (a bare name is one of `torch.optim.lr_scheduler`), or a mapping of `class_path`,
            `init_args` and, for `ReduceLROnPlateau`, the logged value that is its `monitor`: it moves on after
            each validation. It takes the place of warm-up and decay. None for these, see `build_schedule`.
        **warmup_and_decay: Arguments of `build_schedule`.

    Raises:
        ImportError: The import path leads nowhere.
        TypeError: An option that the schedule does not have.
        ValueError: There is a plateau to be found, and no `monitor`, or it would miss validations.
    """
    if spec is None:
        return {"scheduler": build_schedule(optimizer, **warmup_and_decay), "interval": "step"}
    spec = {"class_path": spec} if isinstance(spec, str) else dict(spec)
    monitor = spec.pop("monitor", None)
    schedule = build_by_path(spec, "model.schedule", "torch.optim.lr_scheduler", optimizer)
    if not isinstance(schedule, torch.optim.lr_scheduler.ReduceLROnPlateau):
        return {"scheduler": schedule, "interval": "step"}
    if monitor is None:
        raise ValueError("model.schedule: ReduceLROnPlateau needs a monitor beside class_path, such as val/miou")
    # After each validation, which is counted in batches or else in epochs.
    in_batches = isinstance(trainer.val_check_interval, int)
    if in_batches and trainer.val_check_interval % trainer.accumulate_grad_batches:
        raise ValueError(
            "model.schedule: ReduceLROnPlateau moves on after a validation, but not in the midst of a step: make "
            f"trainer.val_check_interval ({trainer.val_check_interval} batches) a multiple of "
            f"trainer.accumulate_grad_batches ({trainer.accumulate_grad_batches})"
        )
    return {
        "scheduler": schedule,
        "interval": "step" if in_batches else "epoch",
        "monitor": monitor,
        "frequency": int(trainer.val_check_interval) if in_batches else trainer.check_val_every_n_epoch or 1,
        "reduce_on_plateau": True,
    }
