"""Losses that are made on the device `meta` and filled elsewhere, as `from_pretrained` of transformers makes models."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from aucseg import AUCSegLoss, TailMemoryBank
from aucseg.losses import PairwiseAUCLoss
from aucseg.losses.build import LOSSES, build_loss

COUNTS = [100.0, 10.0, 1.0]
WEIGHTS = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]])
MAKERS: dict[str, Callable[[], nn.Module]] = {
    **{name: lambda name=name: build_loss(name, COUNTS) for name in sorted(LOSSES)},  # type: ignore[misc]
    "listed": lambda: AUCSegLoss(class_weight=[1.0, 2.0, 3.0], pair_weight=WEIGHTS),
    "tensor": lambda: AUCSegLoss(class_weight=WEIGHTS[0]),
    "rule": lambda: build_loss("aucseg", COUNTS, class_weight={"rule": "inverse", "power": 0.25}),
    "pairs": lambda: PairwiseAUCLoss(pair_weight=WEIGHTS),
}


def to_empty(module: nn.Module) -> nn.Module:
    return module.to_empty(device="cpu")


def set_empty(module: nn.Module) -> nn.Module:
    """As transformers does, which looks at no `_apply`."""
    for name, buffer in dict(module.named_buffers()).items():
        parent, _, own = name.rpartition(".")
        setattr(module.get_submodule(parent), own, torch.full_like(buffer, 77, device="cpu"))
    return module


def by_way_of_meta(module: nn.Module) -> nn.Module:
    return module.to("meta").to_empty(device="cpu")


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("fill", [to_empty, set_empty, by_way_of_meta])
def test_values_are_those_that_were_given(name: str, fill: Callable[[nn.Module], nn.Module]) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 6, 6, generator=generator)
    target = torch.randint(3, (2, 6, 6), generator=generator)
    expected = MAKERS[name]().eval()(logits, target)
    with torch.device("cpu" if fill is by_way_of_meta else "meta"):
        made = MAKERS[name]().eval()
    loss = fill(copy.deepcopy(made))
    for _ in range(2):
        assert torch.equal(loss(logits, target), expected)
    assert torch.equal(loss.double()(logits, target), expected)


def test_buffers_that_are_elsewhere_are_kept() -> None:
    loss = AUCSegLoss(class_weight=[1.0, 2.0, 3.0]).to_empty(device="cpu")
    assert loss.class_weight is not None
    assert loss.class_weight.tolist() == [1.0, 2.0, 3.0]


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: AUCSegLoss(class_weight=torch.ones(3)), "class_weight"),
        (lambda: PairwiseAUCLoss(pair_weight=torch.ones(3, 3)), "pair_weight"),
    ],
)
def test_weights_without_values_are_named(make: Callable[[], nn.Module], name: str) -> None:
    logits, target = torch.zeros(1, 3, 4, 4), torch.zeros(1, 4, 4, dtype=torch.int64)
    with torch.device("meta"):
        loss = make()
        value: Tensor = loss(logits.to("meta"), target.to("meta"))
    assert value.shape == ()
    with pytest.raises(ValueError, match=rf"{name} was given on the device 'meta' and has no values: pass a list"):
        loss.to_empty(device="cpu")(logits, target)


def test_a_bank_is_made() -> None:
    with torch.device("meta"):
        bank = TailMemoryBank([1], 2, min_pixels=1)
    images, masks = torch.rand(2, 3, 8, 8), torch.zeros(2, 8, 8, dtype=torch.int64)
    masks[0, :2, :2] = 1
    bank(images, masks)
    assert bank.num_samples == {1: 1}
