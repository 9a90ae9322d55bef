"""Skips training steps whose loss or gradient is not finite, keeps their batches, stops the run; counts loss jumps."""

from __future__ import annotations

import math
import warnings
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from aucseg.models.checkpoint import file_content
from aucseg.run_files import SKIPPED_FOLDER
from aucseg.safe_files import replace_file
from aucseg.tensors.buffers import is_expanded
from aucseg.training.precision import unscales
from aucseg.training.processes import cpu_state, print_note

# Steps that an accelerator may be ahead of what the host has looked at: the host never waits for the newest.
_LAG = 2
_MOMENTUM = 0.98
# A loss that is this many times its running mean is a jump, where the user gives no factor.
_JUMP_FACTOR = 10.0


class TrainingStopped(RuntimeError):  # noqa: N818 - it names what happened
    """Training was stopped since too many steps had to be skipped; the message says where to look."""


@dataclass
class _Watched:
    """One step and what was found of it, on its way to the host."""

    step: int
    verdict: Tensor  # (6,): skip, jump, loss of all processes, loss of this one, running mean before, gradient norm
    arrived: Any
    blamed: _Blamed


class _Blamed:
    """Of the batches that a step accumulates the one to blame: the first whose loss is not finite, or the largest loss.

    One batch is kept, chosen on its device: nothing waits, and the others need no memory.
    """

    def __init__(self, loss: Tensor, batch: dict[str, Any]) -> None:
        self._loss = loss
        self._tensors = {name: value for name, value in batch.items() if isinstance(value, Tensor)}
        self._others = [{name: value for name, value in batch.items() if not isinstance(value, Tensor)}]
        self._index: Tensor | int = 0

    def add(self, loss: Tensor, batch: dict[str, Any]) -> None:
        """Takes the next batch of the step."""
        new = _Blamed(loss, batch)
        worse = self._loss.isfinite() & (~loss.isfinite() | (loss > self._loss))
        shapes = [{name: value.shape for name, value in one._tensors.items()} for one in (self, new)]
        if shapes[0] == shapes[1]:
            self._tensors = {name: torch.where(worse, new._tensors[name], old) for name, old in self._tensors.items()}
        elif bool(worse):
            self._tensors = new._tensors
        self._index = torch.where(worse, len(self._others), self._index)
        self._loss = torch.where(worse, loss, self._loss)
        self._others += new._others

    def batch(self) -> dict[str, Any]:
        """The batch; waits for the device."""
        return {**self._others[int(self._index)], **self._tensors}


class StepGuard(Callback):
    r"""Watches every optimizer step and leaves out those whose loss or gradient is not finite.

    Of a step that is left out weights, optimizer and floating-point buffers (running statistics of batch normalization)
    stay as they were, the step is counted, and its batch is written to `skipped/step-N-rank-R.pt` in the run's
    folder: images and masks as the model saw them, names, loss and gradient norm, as tensors and plain containers
    (`torch.load(..., weights_only=True)`). All processes skip together (one message of 8 bytes a step). Schedule and
    data order go on as if the step had been taken.

    A loss jump is a finite loss that is more than 10 (or `spike_factor`) times its running mean
    :math:`m \leftarrow 0.98\, m + 0.02\, L` over the steps taken, after `warmup` of them. It is counted and reported
    (`train/loss_jumps`, and a message at the end), and the step is taken: where most batches hold nothing but
    background, each batch with a rare class is a jump.

    The decision is made on the device: with a fused optimizer (`aucseg.SegmentationTask` has one) nothing waits for it,
    and the host learns of it two steps later. Other optimizers wait at each step. In `16-mixed` precision gradients
    that overflow are the business of the gradient scaler and are not counted. The gradient norm is that before clipping
    and without the scale.

    Args:
        max_skipped: The run is stopped with `TrainingStopped` when more steps than this were skipped.
        spike_factor: Factor of a loss jump, larger than 1; steps with a jump are then left out as well, the batches
            with rare classes first among them. None, the default, takes every finite step.
        warmup: Steps taken before loss jumps are looked for.
        max_saved: Batches that are written, on each process; a process writes those that its own loss points to, the
            first process every one.

    Raises:
        ValueError: A value out of its range.

    Attributes:
        num_skipped: Steps left out so far.
        num_jumps: Loss jumps so far, taken or not.
    """

    def __init__(
        self, max_skipped: int = 20, spike_factor: float | None = None, warmup: int = 100, max_saved: int = 5
    ) -> None:
        for name, value in (("max_skipped", max_skipped), ("warmup", warmup), ("max_saved", max_saved)):
            if value < 0:
                raise ValueError(f"guard.{name} must not be negative, got {value}")
        if spike_factor is not None and not spike_factor > 1:
            raise ValueError(f"guard.spike_factor must be above 1, or null for no limit, got {spike_factor}")
        self.max_skipped = max_skipped
        self.spike_factor = spike_factor
        self.warmup = warmup
        self.max_saved = max_saved
        self.num_skipped = 0
        self.num_jumps = 0
        self._num_saved = 0
        self._mean = torch.zeros(2, dtype=torch.float32)  # running mean of the loss, and steps in it up to `warmup`
        self._loss: Tensor | None = None
        self._batch: dict[str, Any] = {}
        self._blamed: _Blamed | None = None
        self._buffers: _Buffers | None = None
        self._watched: deque[_Watched] = deque()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Moves the running mean to the device and remembers the buffers."""
        self._mean = self._mean.to(pl_module.device)
        self._buffers = _Buffers(pl_module)
        self._loss = None
        self._blamed = None
        self._watched.clear()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Keeps hold of the batch."""
        self._batch = batch if isinstance(batch, dict) else {"batch": batch}

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Adds up the loss of the step; Lightning has divided it by the number of accumulated batches."""
        loss = loss.detach().float()
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        if scaler is not None:
            loss = loss / scaler._get_scale_async()
        self._loss = loss if self._loss is None else self._loss + loss
        images, masks = getattr(pl_module, "last_input", None) or (None, None)
        batch = self._batch if images is None else {**self._batch, "image": images, "mask": masks}
        if self._blamed is None:
            self._blamed = _Blamed(loss, batch)
        else:
            self._blamed.add(loss, batch)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Decides, and makes the optimizer leave the step out if it is bad."""
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if self._loss is None or not gradients:
            return
        own_loss, self._loss = self._loss, None
        # In the gradients' own dtype the norm of many float16 numbers would overflow.
        wide = torch.float64 if any(gradient.dtype == torch.float64 for gradient in gradients) else torch.float32
        norm = torch.stack(torch._foreach_norm(gradients, 2, wide)).norm().float()
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        if scaler is not None and unscales(optimizer):
            norm = norm / scaler._get_scale_async()
        is_bad = ~norm.isfinite() if scaler is None else torch.zeros_like(norm, dtype=torch.bool)
        loss = own_loss
        if trainer.world_size > 1:
            sums = torch.stack([own_loss, is_bad.float()])
            dist.all_reduce(sums)
            loss, is_bad = sums[0] / trainer.world_size, sums[1] > 0
        mean, jump = self._mean[0], self._is_jump(loss)
        skip = is_bad | ~loss.isfinite()
        if self.spike_factor is not None:
            skip = skip | jump
        self._update_mean(loss, skip)
        _leave_out(optimizer, gradients, skip, scaled=scaler is not None)
        assert self._buffers is not None
        self._buffers.keep_or_restore(skip)
        self._watch(trainer, pl_module, torch.stack([skip.float(), jump.float(), loss, own_loss, mean, norm]))

    @property
    def _jump_factor(self) -> float:
        return _JUMP_FACTOR if self.spike_factor is None else self.spike_factor

    def _is_jump(self, loss: Tensor) -> Tensor:
        mean, count = self._mean
        jump: Tensor = loss.isfinite() & (count >= self.warmup) & (loss > self._jump_factor * mean) & (mean > 0)
        return jump

    def _update_mean(self, loss: Tensor, skip: Tensor) -> None:
        mean, count = self._mean
        mean = torch.where(count > 0, _MOMENTUM * mean + (1 - _MOMENTUM) * loss, loss)
        taken = torch.stack([mean, (count + 1).clamp(max=max(self.warmup, 1))])
        self._mean = torch.where(skip, self._mean, taken)

    def _watch(self, trainer: Trainer, pl_module: LightningModule, verdict: Tensor) -> None:
        arrived = None
        if verdict.device.type == "cuda":
            verdict = torch.empty(verdict.shape, pin_memory=True).copy_(verdict, non_blocking=True)
            arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            arrived.record()
        assert self._blamed is not None
        self._watched.append(_Watched(trainer.global_step, verdict, arrived, self._blamed))
        self._blamed = None
        self._look(trainer, 0 if pl_module.device.type == "cpu" else _LAG)
        if self.num_skipped:
            pl_module.log("train/skipped_steps", float(self.num_skipped))
        if self.num_jumps:
            pl_module.log("train/loss_jumps", float(self.num_jumps))

    def _look(self, trainer: Trainer, lag: int) -> None:
        """Looks at the steps that are at least `lag` behind, the same ones on all processes."""
        while len(self._watched) > lag:
            watched = self._watched.popleft()
            if watched.arrived is not None:
                watched.arrived.synchronize()
            skip, jump, *values = watched.verdict.tolist()
            self.num_jumps += bool(jump)
            if skip:
                self._note(trainer, watched, *values)

    def _note(
        self, trainer: Trainer, watched: _Watched, loss: float, own_loss: float, mean: float, norm: float
    ) -> None:
        self.num_skipped += 1
        if not math.isfinite(loss):
            reason = f"the loss is {loss}"
        elif not math.isfinite(norm):
            reason = f"the norm of the gradient is {norm}"
        else:
            reason = f"the loss is {loss:.4g}, more than {self._jump_factor:g} times its running mean {mean:.4g}"
        is_culprit = not math.isfinite(own_loss) or own_loss > self._jump_factor * mean
        folder = Path(trainer.default_root_dir) / SKIPPED_FOLDER
        if (is_culprit or trainer.is_global_zero) and self._num_saved < self.max_saved:
            self._num_saved += 1
            self._save(
                folder / f"step-{watched.step:07d}-rank-{trainer.global_rank}.pt", watched, reason, own_loss, norm
            )
        if trainer.is_global_zero:
            warnings.warn(f"step {watched.step} was skipped: {reason}; its batch is in {folder}", stacklevel=2)
        if self.num_skipped > self.max_skipped:
            raise TrainingStopped(
                f"{self.num_skipped} steps were skipped, more than guard.max_skipped = {self.max_skipped}; the last "
                f"one, {watched.step}, since {reason}. Look at the batches in {folder} (torch.load(file, "
                "weights_only=True): images, masks, names, loss, gradient norm) and at the learning rate "
                "(model.learning_rate, model.warmup_steps). The last checkpoint is from before: '--resume auto' goes "
                "on from it"
            )

    def _save(self, path: Path, watched: _Watched, reason: str, loss: float, norm: float) -> None:
        content = {"step": watched.step, "reason": reason, "loss": loss, "gradient_norm": norm}
        try:
            replace_file(path, file_content({**content, **cpu_state(watched.blamed.batch())}))
        except OSError as error:
            warnings.warn(f"the batch of step {watched.step} could not be written: {error}", stacklevel=2)

    def state_dict(self) -> dict[str, Any]:
        """Counts and running mean; they go into the checkpoint."""
        counts = {"num_skipped": self.num_skipped, "num_saved": self._num_saved, "num_jumps": self.num_jumps}
        return {**counts, "mean": self._mean.cpu()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores them."""
        self.num_skipped, self._num_saved = state_dict["num_skipped"], state_dict["num_saved"]
        self.num_jumps = state_dict["num_jumps"]
        self._mean = state_dict["mean"].clone()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Brings the counts up to date first: a checkpoint waits for the device anyway."""
        self._look(trainer, 0)
        if self.state_key in checkpoint.get("callbacks", {}):
            checkpoint["callbacks"][self.state_key] = self.state_dict()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Looks at the last steps and reports loss jumps."""
        self._look(trainer, 0)
        self._batch, self._blamed = {}, None
        if self.num_jumps and self.spike_factor is None:
            print_note(
                f"in {self.num_jumps} of {trainer.global_step} steps the loss was more than {_JUMP_FACTOR:g} times its "
                "running mean, as batches with a rare class have it; every one of them was taken (train/loss_jumps "
                "in the metrics)"
            )


class _Buffers:
    """The floating-point buffers of a module after the last good step, without waiting for the device."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._good: dict[torch.dtype, Tensor] = {}
        for dtype, buffers in self._by_dtype().items():
            self._good[dtype] = _flat(buffers)

    def _by_dtype(self) -> dict[torch.dtype, list[Tensor]]:
        groups: dict[torch.dtype, list[Tensor]] = {}
        for buffer in self._module.buffers():
            if buffer.is_floating_point() and buffer.numel() and not is_expanded(buffer):
                groups.setdefault(buffer.dtype, []).append(buffer)
        return groups

    @torch.no_grad()
    def keep_or_restore(self, restore: Tensor) -> None:
        """Where `restore` (a boolean scalar) is true the buffers become what they were."""
        for dtype, buffers in self._by_dtype().items():
            new = _flat(buffers)
            good = self._good.get(dtype)
            if good is None or good.shape != new.shape:  # sized by the first batch
                good = new.nan_to_num(0.0, 0.0, 0.0)
            chosen = torch.where(restore, good, new)
            parts = torch.split(chosen, [buffer.numel() for buffer in buffers])
            torch._foreach_copy_(buffers, [part.view_as(b) for part, b in zip(parts, buffers, strict=True)])
            self._good[dtype] = chosen


def _flat(buffers: list[Tensor]) -> Tensor:
    return torch.cat([buffer.detach().reshape(-1) for buffer in buffers])


def _leave_out(optimizer: torch.optim.Optimizer, gradients: list[Tensor], skip: Tensor, *, scaled: bool) -> None:
    if not unscales(optimizer):
        # A scaler has looked at these gradients already and waits for the device as well.
        if bool(skip):
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    parameter.grad = None
    elif scaled:  # the scaler looks at the gradients later, and leaves out steps where one is not finite
        gradients[0].mul_(torch.where(skip, math.nan, 1.0))
    else:
        optimizer.found_inf = skip.float()  # type: ignore[attr-defined] # read by torch's fused optimizers
