"""SegmentationTask(micro_batches=N): the step of the whole batch in the memory of a part of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from aucseg import AUCSegLoss, PairwiseAUCLoss, SegmentationTask
from aucseg.losses import build_loss
from aucseg.training.step_guard import StepGuard
from tests.small_runs import make_trainer
from tests.training.tiny_tasks import make_data


class TwoHeads(nn.Module):
    """Logits and auxiliary logits, without batch normalization; remembers the largest training batch."""

    auxiliary_weight = 0.4

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.encoder = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.head, self.auxiliary = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 3, stride=2, padding=1)
        self.largest = 0

    def forward_with_auxiliary(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        if self.training:
            self.largest = max(self.largest, len(images))
        features = self.encoder(images.double()).relu()
        return self.head(features), self.auxiliary(features)

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_with_auxiliary(images)[0]


class OneHead(TwoHeads):
    def forward_with_auxiliary(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        return super().forward_with_auxiliary(images)[0], None


def trained(card: Path, folder: Path, model: nn.Module, micro_batches: int) -> list[Tensor]:
    torch.manual_seed(0)
    task = SegmentationTask(
        str(card), model.double(), loss=AUCSegLoss(), learning_rate=0.01, warmup_steps=0, micro_batches=micro_batches
    )
    make_trainer(folder, 3, gradient_clip_val=0.5).fit(task, make_data(card))
    return [parameter.detach().clone() for parameter in model.parameters()]


@pytest.mark.parametrize("network", [OneHead, TwoHeads])
@pytest.mark.parametrize("micro_batches", [2, 3])
def test_parameters_after_some_steps_are_those_of_the_whole_batch(
    tiny_card: Path, tmp_path: Path, network: type[TwoHeads], micro_batches: int
) -> None:
    whole, parts = network(), network()
    before = [parameter.detach().clone() for parameter in whole.double().parameters()]
    expected = trained(tiny_card, tmp_path, whole, 1)
    found = trained(tiny_card, tmp_path, parts, micro_batches)
    assert (whole.largest, parts.largest) == (4, 2)
    used = slice(None) if network is TwoHeads else slice(0, 4)
    for a, b, start in zip(found[used], expected[used], before[used], strict=True):
        assert (b - start).abs().max() > 1e-3
        assert (a - b).abs().max() <= 1e-9


@pytest.mark.parametrize(
    ("loss", "trainer", "message"),
    [
        (PairwiseAUCLoss("hinge", margin=0.5), {}, "not for one that is computed by sorting"),
        (build_loss("focal"), {}, "not for other losses"),
        (AUCSegLoss(), {"accumulate_grad_batches": 2}, "leave one of them at 1"),
    ],
)
def test_what_does_not_fit_is_refused_before_training(
    tiny_card: Path, tmp_path: Path, loss: nn.Module, trainer: dict[str, Any], message: str
) -> None:
    task = SegmentationTask(str(tiny_card), OneHead(), loss=loss, micro_batches=2)
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, 1, **trainer).fit(task, make_data(tiny_card))


@pytest.mark.filterwarnings(r"ignore:step \d+ was skipped:UserWarning")
def test_a_bad_step_is_skipped_as_a_whole(tiny_card: Path, tmp_path: Path) -> None:
    """The NaN of one micro-batch of the second step; the first micro-batch of that step has gone backward before."""

    class Spoiled(OneHead):
        calls = 0

        def forward_with_auxiliary(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
            logits, _ = super().forward_with_auxiliary(images)
            self.calls += self.training
            # Two micro-batches a step, each seen twice: calls 5 to 8 are the second step, 8 is its last backward pass.
            return logits * (float("nan") if self.training and self.calls == 8 else 1.0), None

    class Weights(Callback):
        def __init__(self) -> None:
            self.after: list[Tensor] = []

        def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
            self.after.append(torch.cat([parameter.detach().flatten().clone() for parameter in pl_module.parameters()]))

    guard, weights, network = StepGuard(), Weights(), Spoiled().double()
    task = SegmentationTask(
        str(tiny_card), network, loss=AUCSegLoss(), learning_rate=0.01, warmup_steps=0, micro_batches=2
    )
    make_trainer(tmp_path, 3, callbacks=[weights, guard]).fit(task, make_data(tiny_card))
    assert network.calls == 12
    assert guard.num_skipped == 1
    first, second, third = weights.after
    assert torch.equal(first, second)
    assert not torch.equal(second, third)
    assert bool(third.isfinite().all())


def test_a_number_below_one_is_refused(tiny_card: Path) -> None:
    with pytest.raises(ValueError, match=r"model\.micro_batches must be at least 1, got 0"):
        SegmentationTask(str(tiny_card), OneHead(), micro_batches=0)
