"""memory="ema": classes that a batch lacks are stood in for by earlier batches."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from aucseg.losses import AUCSegLoss, PairwiseAUCLoss, accumulate, pairwise_auc_loss
from tests.oracles import auc_loss_oracle, value_and_grad


def example(classes: list[int], seed: int, size: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 5, size, size, generator=generator, dtype=torch.float64)
    target = torch.tensor(classes)[torch.randint(0, len(classes), (2, size, size), generator=generator)]
    return logits.requires_grad_(), target


@pytest.mark.parametrize("surrogate", ["square", "exponential", "logistic", "hinge"])
@pytest.mark.parametrize("scores", ["sigmoid", "softmax"])
@pytest.mark.parametrize("strategy", ["ovo", "ova"])
def test_absent_class_is_its_last_pixels_as_constants(surrogate: str, scores: str, strategy: str) -> None:
    loss_fn = PairwiseAUCLoss(surrogate, scores=scores, strategy=strategy, memory="ema", memory_momentum=0.0)
    earlier, earlier_target = example([0, 1, 3], 0)
    loss_fn(earlier, earlier_target)
    logits, target = example([0, 1, 2], 1)
    value, (gradient,) = value_and_grad(loss_fn(logits, target), logits)
    # With momentum 0 the memory is the earlier batch: its pixels of class 3 join this batch, without gradient.
    remembered = earlier.detach().movedim(1, -1)[earlier_target == 3]
    pixels = torch.cat([logits.movedim(1, -1).reshape(-1, 5), remembered])
    labels = torch.cat([target.flatten(), torch.full((len(remembered),), 3)])
    plain = auc_loss_oracle(pixels, labels, surrogate, scores=scores, strategy=strategy)
    expected, (slope,) = value_and_grad(plain, logits)
    tolerance = 1e-5 if surrogate == "logistic" else 1e-10
    assert torch.allclose(value, expected, rtol=tolerance)
    assert (gradient - slope).abs().max() <= tolerance * slope.abs().max()


def test_moving_average_of_means() -> None:
    loss_fn = PairwiseAUCLoss("hinge", memory="ema", memory_momentum=0.75)
    means = []
    for seed in range(2):
        logits, target = example([1, 2], seed)
        loss_fn(logits, target)
        means.append(float((1 - logits.detach().sigmoid()[:, 1][target == 1]).mean()))
    assert loss_fn.memory is not None
    assert float(loss_fn.memory.positive[0, 1]) == pytest.approx(0.75 * means[0] + 0.25 * means[1])
    assert float(loss_fn.memory.counts[0]) == 0


def test_nothing_remembered_is_the_plain_loss() -> None:
    logits, target = example([0, 1, 2], 0)
    assert torch.allclose(PairwiseAUCLoss(memory="ema")(logits, target), pairwise_auc_loss(logits, target), rtol=1e-12)


def test_evaluation_does_not_remember() -> None:
    loss_fn = AUCSegLoss(memory="ema").eval()
    logits, target = example([0, 1, 2], 0)
    loss_fn(logits, target)
    memory = loss_fn.auc.memory
    assert memory is not None
    assert not memory.counts.any()


def test_saved_with_the_checkpoint(tmp_path: pytest.TempPathFactory) -> None:
    loss_fn = AUCSegLoss(memory="ema")
    loss_fn(*example([0, 1, 3], 0))
    torch.save(loss_fn.state_dict(), f"{tmp_path}/loss.pt")
    restored = AUCSegLoss(memory="ema")
    restored.load_state_dict(torch.load(f"{tmp_path}/loss.pt", weights_only=True))
    later = example([0, 2], 1)
    assert torch.equal(restored(*later), loss_fn(*later))
    assert not AUCSegLoss().state_dict()


def test_checkpoint_of_another_loss_is_named() -> None:
    loss_fn = PairwiseAUCLoss(memory="ema")
    loss_fn(*example([0, 1], 0))
    other = PairwiseAUCLoss("exponential", memory="ema")
    other.load_state_dict(loss_fn.state_dict())
    with pytest.raises(ValueError, match="5 classes with 2 features, the batch has 5 with 1"):
        other(*example([0, 1], 1))


def test_micro_batches_remember_once() -> None:
    once, parts = PairwiseAUCLoss(memory="ema"), PairwiseAUCLoss(memory="ema")
    logits, target = example([0, 1, 2], 0)
    expected = once(logits, target)
    model = torch.nn.Identity()
    value = accumulate(
        parts, model, list(zip(logits.split(1), target.split(1), strict=True)), backward=lambda loss: None
    )
    assert value.item() == pytest.approx(expected.item(), rel=1e-10)
    assert once.memory is not None
    assert parts.memory is not None
    for a, b in zip(once.memory.buffers(), parts.memory.buffers(), strict=True):
        assert torch.allclose(a, b, rtol=1e-10)
