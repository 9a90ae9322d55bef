"""Networks and losses that go wrong in some steps, and what a run held before each."""

import copy
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from tests.training.tiny_tasks import TinyNetwork

FAULTY_STEP = 3
SKIPPED = r"ignore:step \d+ was skipped:UserWarning"


class Faulty(nn.Module):
    """Multiplies what passes in the given steps (calls in training mode)."""

    def __init__(self, inner: nn.Module, factor: float, steps: set[int]) -> None:
        super().__init__()
        self.inner, self.factor, self.steps, self.calls = inner, factor, steps, 0

    def forward(self, value: Tensor, *others: Tensor) -> Tensor:
        if self.training:
            self.calls += 1
            if self.calls - 1 in self.steps:
                value = value * self.factor
        result: Tensor = self.inner(value, *others)
        return result


class Scaled(Faulty):
    """A loss that is too large in the given steps."""

    def forward(self, value: Tensor, *others: Tensor) -> Tensor:
        is_faulty = self.training and self.calls in self.steps
        self.calls += self.training
        result: Tensor = self.inner(value, *others)
        return result * self.factor if is_faulty else result


class States(Callback):
    """Copies of weights, buffers and optimizer before each step."""

    def __init__(self) -> None:
        self.before: list[dict[str, Any]] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        assert isinstance(pl_module.model, nn.Module)
        model: dict[str, Tensor] = dict(pl_module.model.named_parameters())
        model |= {n: b for n, b in pl_module.model.named_buffers() if b.is_floating_point()}
        self.before.append(copy.deepcopy({"model": model, "optimizer": trainer.optimizers[0].state_dict()["state"]}))


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return bool(one == other)


def faulty_network(factor: float, steps: set[int]) -> Faulty:
    torch.manual_seed(0)
    return Faulty(TinyNetwork(), factor, steps)
