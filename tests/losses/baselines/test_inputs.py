"""What the losses to compare with are given: bad numbers at ignored pixels, several batches, compiled code, counts."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from aucseg.losses.baselines import post_hoc_logit_adjustment
from aucseg.losses.build import LOSSES, build_loss
from tests.losses.baselines.oracles import COUNTS, sample

NAMES = [name for name in LOSSES if name != "aucseg"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_ignored_pixels_never_count_whatever_their_logits(name: str, bad: float) -> None:
    logits, target = sample()
    loss = build_loss(name, COUNTS.tolist())
    values = []
    for filling in (0.0, bad):
        torch.manual_seed(0)
        given = logits.masked_fill((target == 255).unsqueeze(1), filling).requires_grad_()
        value = loss(given, target)
        values.append((value, *torch.autograd.grad(value, given)))
    for clean, spoiled in zip(*values, strict=True):
        torch.testing.assert_close(clean, spoiled)


@pytest.mark.parametrize("name", ["ce", "dice", "ldam", "seesaw"])
def test_losses_are_compiled_as_a_whole(name: str) -> None:
    logits, target = sample(torch.float32)
    loss = build_loss(name, COUNTS.tolist())
    compiled: Callable[[Tensor, Tensor], Tensor] = torch.compile(loss, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(logits, target), loss(logits, target))


def test_counts_are_a_list_in_the_order_of_the_classes() -> None:
    with pytest.raises(TypeError, match=r"class_counts must be .*not a mapping"):
        build_loss("la", {0: 5, 1: 3, 2: 4})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^logits must be floating point, got torch\.int64$"):
        post_hoc_logit_adjustment(torch.zeros(1, 2, dtype=torch.long), [75, 25])


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("name", ["ce", "dice", "la"])
def test_losses_of_several_batches_by_vmap(name: str) -> None:
    logits, target = sample(torch.float32)
    loss = build_loss(name, COUNTS.tolist())
    mapped = torch.vmap(lambda one: loss(one, target))(torch.stack([logits, 2 * logits]))
    torch.testing.assert_close(mapped, torch.stack([loss(logits, target), loss(2 * logits, target)]))


def test_the_logits_that_are_given_stay_as_they_are() -> None:
    logits, target = sample(torch.float32)
    logits[:, :, 1, 1] = math.nan
    for given in (logits, logits.double(), logits.half()):
        before = given.clone()
        build_loss("ce")(given, target)
        assert torch.equal(given.nan_to_num(), before.nan_to_num())


def test_logits_without_a_value_are_named() -> None:
    with pytest.raises(ValueError, match=r"\(2, 3, 0, 8\) hold no value for the target of shape \(2, 4, 8\)"):
        build_loss("ce")(torch.randn(2, 3, 0, 8), torch.zeros(2, 4, 8, dtype=torch.int64))
