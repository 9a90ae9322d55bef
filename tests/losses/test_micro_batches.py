"""Two passes over micro-batches give the gradient of the whole batch."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from aucseg.losses import AUCSegLoss, MicroBatchAUC, PairwiseAUCLoss, accumulate, build_loss


def network(*extra: nn.Module) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), *extra, nn.GELU(), nn.Conv2d(6, 4, 1)).double()


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(6, 3, 5, 5, generator=generator, dtype=torch.float64)
    target = torch.randint(0, 3, (6, 10, 10), generator=generator)
    target[0], target[1], target[2] = 0, 255, 3
    return images, target


def micro(size: int) -> list[tuple[Tensor, Tensor]]:
    images, target = batch()
    return list(zip(images.split(size), target.split(size), strict=True))


def gradients(model: nn.Module) -> list[Tensor]:
    return [p.grad for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("size", [1, 4, 6])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"class_weight": torch.tensor([1.0, 2.0, 0.0, 4.0]), "label_smoothing": 0.1, "strategy": "ova"},
        {"surrogate": "exponential", "scores": "softmax"},
        {"surrogate": "logistic", "auc_weight": 3.0},
        {"pair_weight": torch.arange(16.0).view(4, 4)},
        {"surrogate": "hinge", "scores": "sigmoid", "ce_weight": 0.0},
    ],
)
def test_gradient_of_the_whole(size: int, options: dict[str, Any]) -> None:
    loss_fn = AUCSegLoss(**options)
    whole, parts = network(), network()
    images, target = batch()
    expected = loss_fn(whole(images), target)
    expected.backward()
    value = accumulate(loss_fn, parts, micro(size))
    assert value.item() == pytest.approx(expected.item(), rel=1e-10)
    for a, b in zip(gradients(parts), gradients(whole), strict=True):
        assert (a - b).abs().max() <= 1e-10 * b.abs().max()


def test_frozen_batch_norm() -> None:
    whole, parts = network(nn.BatchNorm2d(6)).eval(), network(nn.BatchNorm2d(6)).eval()
    images, target = batch()
    AUCSegLoss()(whole(images), target).backward()
    accumulate(AUCSegLoss(), parts, micro(2))
    for a, b in zip(gradients(parts), gradients(whole), strict=True):
        assert (a - b).abs().max() <= 1e-10 * b.abs().max()


def test_batch_norm_statistics_are_updated_once() -> None:
    once, twice = network(nn.BatchNorm2d(6)), network(nn.BatchNorm2d(6))
    with torch.no_grad():
        for images, _ in micro(2):
            once(images)
    accumulate(AUCSegLoss(), twice, micro(2))
    for a, b in zip(once.buffers(), twice.buffers(), strict=True):
        assert torch.equal(a, b)


class Cached(nn.Module):
    """A table of positions that is made, or made anew, for the size of the first images."""

    table: Tensor | None

    def __init__(self, table: Tensor | None) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 1, dtype=torch.float64)
        self.register_buffer("table", table)

    def forward(self, images: Tensor) -> Tensor:
        if self.table is None or self.table.shape[-2:] != images.shape[-2:]:
            self.table = torch.linspace(0, 1, images[0, 0].numel(), dtype=torch.float64).view(1, 1, *images.shape[-2:])
        return torch.as_tensor(self.layer(images + self.table))


@pytest.mark.parametrize(
    "table",
    [
        None,
        torch.zeros(1, 1, 1, 1, dtype=torch.float64),
        torch.ones(1, 1, 1, 1, dtype=torch.float64).expand(1, 1, *batch()[0].shape[-2:]),  # nothing is written there
    ],
)
def test_a_cache_that_the_first_pass_makes_is_that_of_the_second(table: Tensor | None) -> None:
    torch.manual_seed(0)
    whole = Cached(table)
    parts = Cached(table)
    parts.load_state_dict(whole.state_dict())
    images, target = batch()
    AUCSegLoss()(whole(images), target).backward()
    accumulate(AUCSegLoss(), parts, micro(2))
    for a, b in zip(gradients(parts), gradients(whole), strict=True):
        assert (a - b).abs().max() <= 1e-10 * b.abs().max()
    assert parts.table is not None
    assert whole.table is not None
    assert torch.equal(parts.table, whole.table)


def test_lazy_modules_are_refused() -> None:
    model = nn.Sequential(nn.LazyConv2d(4, 1), nn.LazyBatchNorm2d())
    with pytest.raises(ValueError, match="run it once on a sample before"):
        accumulate(AUCSegLoss(), model, micro(2))


class Recorder(nn.Module):
    """Dropout that remembers its outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.outputs: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.outputs.append(nn.functional.dropout(x, 0.5).detach())
        return nn.functional.dropout(x, 0.5)


def test_dropout_is_replayed() -> None:
    recorder = Recorder()
    model = network(recorder)
    whole = MicroBatchAUC(AUCSegLoss(), model)
    for images, target in micro(2):
        whole.collect(images, target)
        torch.rand(3)  # other users of the generator in between
    for images, target in micro(2):
        torch.rand(5)
        whole.loss(images, target).backward()
    first, second = recorder.outputs[:3], recorder.outputs[3:]
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[0], first[1])


def test_next_batch_starts_afresh() -> None:
    loss_fn, model = PairwiseAUCLoss(), network()
    images, target = batch()
    whole = MicroBatchAUC(loss_fn, model)
    values = []
    for _ in range(2):
        for part, labels in zip(images.split(2), target[:, ::2, ::2].split(2), strict=True):
            whole.collect(part, labels)
        values.append(
            [whole.loss(p, t).item() for p, t in zip(images.split(2), target[:, ::2, ::2].split(2), strict=True)]
        )
    assert values[0] == values[1]
    assert values[0] == pytest.approx([loss_fn(model(images), target[:, ::2, ::2]).item()] * 3, rel=1e-10)


def test_inside_autocast() -> None:
    # Autocast caches cast weights; the first pass casts them without gradient.
    results = []
    for by_parts in (False, True):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 4, 1))
        images, target = batch()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            if by_parts:
                accumulate(AUCSegLoss(), model, list(zip(images.float().split(2), target.split(2), strict=True)))
            else:
                AUCSegLoss()(model(images.float()), target).backward()
        results.append(gradients(model))
    assert len(results[1]) == 4
    for a, b in zip(*results, strict=True):
        assert (a - b).abs().max() <= 0.02 * b.abs().max()


def test_learns_in_a_plain_loop() -> None:
    model, loss_fn = network(), AUCSegLoss()
    optimizer = torch.optim.Adam(model.parameters(), 0.05)
    values = []
    for _ in range(15):
        optimizer.zero_grad()
        values.append(accumulate(loss_fn, model, micro(3)).item())
        optimizer.step()
    assert values[-1] < 0.9 * values[0]


def test_misuse() -> None:
    model = network()
    images, target = micro(2)[0]
    whole = MicroBatchAUC(AUCSegLoss(), model)
    with pytest.raises(RuntimeError, match="collect"):
        whole.loss(images, target)
    whole.collect(images, target)
    whole.collect(images, target)
    whole.loss(images, target)
    with pytest.raises(RuntimeError, match="after 1 of 2 calls"):
        whole.collect(images, target)
    with pytest.raises(ValueError, match="computed by sorting"):
        accumulate(AUCSegLoss(surrogate="hinge", margin=0.5), model, micro(2))
    with pytest.raises(TypeError, match="CrossEntropyLoss has no sums over micro-batches"):
        MicroBatchAUC(build_loss("ce"), network())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least one micro-batch"):
        accumulate(AUCSegLoss(), model, [])


class Failing(nn.Module):
    """A network that runs out of memory where it is told to."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.network, self.calls, self.at = network(), 0, at

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == self.at:
            raise torch.OutOfMemoryError("out of memory")
        logits: Tensor = self.network(images)
        return logits


@pytest.mark.parametrize("at", range(1, 5))
def test_a_batch_with_an_error_leaves_nothing_to_the_next_one(at: int) -> None:
    """Caught in the first pass (calls 1 and 2) or in the second."""
    whole = MicroBatchAUC(AUCSegLoss(), Failing(at))
    images, target = batch()
    lost = [(9 * images[:3], torch.zeros_like(target[:3])), (images[3:], target[3:])]
    calls = [partial(step, *part) for step in (whole.collect, whole.loss) for part in lost]
    for call in calls[: at - 1]:
        call()
    with pytest.raises(torch.OutOfMemoryError):
        calls[at - 1]()
    for part in micro(2):
        whole.collect(*part)
    expected = AUCSegLoss()(network()(images), target).item()
    assert [whole.loss(*part).item() for part in micro(2)] == pytest.approx([expected] * 3, rel=1e-10)


def test_a_loss_that_refuses_its_input_leaves_nothing_either() -> None:
    whole = MicroBatchAUC(AUCSegLoss(), network())
    images, target = micro(2)[0]
    whole.collect(images, target)
    with pytest.raises(ValueError, match="labels must lie in"):
        whole.collect(images, target + 7)
    with pytest.raises(RuntimeError, match="call collect"):
        whole.loss(images, target)


def test_a_batch_can_be_given_up_between_the_passes() -> None:
    whole = MicroBatchAUC(AUCSegLoss(), network())
    for part in micro(2):
        whole.collect(*part)
    whole.loss(*micro(2)[0])
    with pytest.raises(RuntimeError, match=r"after 1 of 3 calls.*reset\(\)"):
        whole.collect(*micro(2)[0])
    whole.reset()
    images, target = micro(3)[0]
    whole.collect(images, target)
    assert whole.loss(images, target).item() == pytest.approx(AUCSegLoss()(network()(images), target).item(), rel=1e-10)


@pytest.mark.parametrize("size", [1, 4])
def test_pair_weights_that_learn_have_the_gradient_of_the_whole(size: int) -> None:
    found = []
    for parts in (6, size):
        weight = nn.Parameter(torch.arange(1.0, 17.0, dtype=torch.float64).view(4, 4))
        accumulate(AUCSegLoss(pair_weight=weight), network(), micro(parts))
        found.append(weight.grad)
    torch.testing.assert_close(*found)
