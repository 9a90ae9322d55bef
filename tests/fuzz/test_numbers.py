"""Losses, bank and metrics on any shapes, values and options: a documented error, or the value of the definition."""

from __future__ import annotations

import io
import math
import re
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import Tensor
from torch.nn import functional as F

from aucseg.losses import AUCSegLoss, PairwiseAUCLoss
from aucseg.losses.build import LOSSES, build_loss
from aucseg.memory_bank import TailMemoryBank
from aucseg.metrics import GroupedMeanIoU, PixelAUROC, PixelAveragePrecision
from tests.fuzz.strategies import JUNK, damaged_tree, fuzzed
from tests.oracles import auc_loss_oracle, partial_auc_oracle

DTYPES = st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16])
LABEL_DTYPES = st.sampled_from([torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
SCALES = st.sampled_from([0.0, 1e-4, 1.0, 10.0, 300.0, 3e4])


@st.composite
def batches(draw: st.DrawFn, min_classes: int = 1, dims: tuple[int, ...] = (0, 1, 2, 3)) -> tuple[Tensor, Tensor, int]:
    """Logits, labels that fit them, and the ignore label; any number of classes, dimensions, labels that occur."""
    num_classes = draw(st.integers(min_classes, 6))
    spatial = [draw(st.integers(0, 5)) for _ in range(draw(st.sampled_from(dims)))]
    batch = draw(st.integers(0, 3)) if spatial else draw(st.integers(0, 40))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    logits = torch.randn(batch, num_classes, *spatial, generator=generator, dtype=torch.float64) * draw(SCALES)
    float_dtype = draw(DTYPES)
    limit = torch.finfo(float_dtype).max
    logits = (logits + draw(st.sampled_from([0.0, 0.0, 50.0]))).clamp(-limit, limit).to(float_dtype)
    ignore_index = draw(st.sampled_from([255, -1, 100]))
    count = max(num_classes, 2)
    labels = torch.tensor([*range(count), ignore_index])
    shares = torch.tensor([draw(st.sampled_from([0.0, 0.01, 1.0])) for _ in labels])
    assume(float(shares.sum()) > 0)
    shape = (batch, *spatial)
    index = torch.multinomial(shares, max(math.prod(shape), 1), replacement=True, generator=generator)
    target = labels[index][: math.prod(shape)].view(shape)
    dtype = draw(LABEL_DTYPES)
    info = torch.iinfo(dtype)
    assume(info.min <= ignore_index <= info.max)
    return logits, target.to(dtype), ignore_index


AUC_OPTIONS = st.fixed_dictionaries(
    {
        "surrogate": st.sampled_from(["square", "hinge", "squared_hinge", "exponential", "logistic"]),
        "margin": st.sampled_from([1.0, 0.3, 2.0]),
        "scores": st.sampled_from(["sigmoid", "softmax", "identity"]),
        "strategy": st.sampled_from(["ovo", "ova"]),
    },
    optional={"max_fpr": st.sampled_from([0.1, 0.5, 1.0])},
)


# Options that do not go together; whatever else is drawn must be taken.
REFUSED = (
    "max_fpr .* is offered for surrogate=|of a single channel is constant|scores='identity' is not offered for them"
)


def check_against_oracle(
    loss: Tensor, logits: Tensor, target: Tensor, ignore_index: int, options: dict[str, Any]
) -> None:
    options = dict(options)
    if options["surrogate"] == "exponential" and options["scores"] == "identity" and bool((logits.abs() > 100).any()):
        return  # it saturates there
    share = options.pop("max_fpr", None)
    if share is None:
        expected = auc_loss_oracle(logits.detach(), target.long(), ignore_index=ignore_index, **options)
    elif options["scores"] == "sigmoid" and len(target.unique()) > 1 and logits.shape[1] > 1 and ignore_index == 255:
        surrogate, margin, strategy = (options[name] for name in ("surrogate", "margin", "strategy"))
        present = [c for c in target.unique().tolist() if c != ignore_index]
        if len(present) < 2:
            return
        expected = partial_auc_oracle(
            logits.detach(), target.long(), surrogate, share, margin=margin, strategy=strategy
        )
    else:
        return
    # The logistic surrogate is a polynomial in place of the function.
    rtol, atol = (2e-3, 2e-3) if options["surrogate"] == "logistic" else (1e-4, 1e-5)
    expected = expected.clamp(max=torch.finfo(loss.dtype).max)
    torch.testing.assert_close(loss.detach().double(), expected.double(), rtol=rtol, atol=atol)


@fuzzed(60, batches(), AUC_OPTIONS)
def test_auc_loss(batch: tuple[Tensor, Tensor, int], options: dict[str, Any]) -> None:
    logits, target, ignore_index = batch
    logits = logits.requires_grad_()
    try:
        loss_function = PairwiseAUCLoss(ignore_index=ignore_index, **options)
        loss = loss_function(logits, target)
    except ValueError as error:
        assert re.search(REFUSED, str(error))
        return
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.dtype == (torch.float64 if logits.dtype == torch.float64 else torch.float32)
    assert bool(torch.isfinite(loss))
    assert loss.item() >= 0
    assert gradient.shape == logits.shape
    if options["scores"] != "identity" or options["surrogate"] != "exponential":  # there the gradient may be too large
        assert bool(torch.isfinite(gradient).all())
    ignored = (target.long() == ignore_index).unsqueeze(1).expand_as(gradient)
    assert not bool(gradient[ignored].any())
    check_against_oracle(loss, logits, target, ignore_index, options)


@fuzzed(30, batches(dims=(1, 2, 3)), AUC_OPTIONS, st.integers(1, 3), st.sampled_from([0.0, 0.2, 1.0]))
def test_aucseg_loss(batch: tuple[Tensor, Tensor, int], options: dict[str, Any], factor: int, smoothing: float) -> None:
    logits, target, ignore_index = batch
    for dim in range(1, target.dim()):
        target = target.repeat_interleave(factor, dim=dim)
    logits = logits.requires_grad_()
    try:
        loss = AUCSegLoss(ignore_index=ignore_index, label_smoothing=smoothing, **options)(logits, target)
    except ValueError as error:
        assert re.search(REFUSED, str(error))
        return
    (gradient,) = torch.autograd.grad(loss, logits)
    assert bool(torch.isfinite(loss))
    if options["scores"] != "identity" or options["surrogate"] != "exponential":
        assert bool(torch.isfinite(gradient).all())
    valid = target.long() != ignore_index
    if factor > 1 or not bool(valid.any()) or "max_fpr" in options or logits.shape[1] == 1:
        return
    if options["surrogate"] == "exponential" and options["scores"] == "identity":
        return  # it may saturate
    auc = auc_loss_oracle(
        logits.detach(), target.long(), ignore_index=ignore_index,
        **options,
    )  # fmt: skip
    cross_entropy = F.cross_entropy(
        logits.detach().double(), target.long(), ignore_index=ignore_index, label_smoothing=smoothing
    )
    tolerance = 2e-3 if options["surrogate"] == "logistic" else 1e-4
    expected = auc.clamp(max=torch.finfo(loss.dtype).max) + cross_entropy
    torch.testing.assert_close(loss.detach().double(), expected.double(), rtol=tolerance, atol=tolerance)


@fuzzed(40, st.sampled_from(sorted(LOSSES)), batches(min_classes=2, dims=(2,)))
def test_rival_losses(name: str, batch: tuple[Tensor, Tensor, int]) -> None:
    logits, target, ignore_index = batch
    logits = logits.requires_grad_()
    counts = torch.bincount(target[target.long() != ignore_index].long(), minlength=logits.shape[1])
    assume(bool(counts.any()))
    loss = build_loss(name, counts[: logits.shape[1]], ignore_index=ignore_index)(logits, target.long())
    assert bool(torch.isfinite(loss)), name
    (gradient,) = torch.autograd.grad(loss, logits, allow_unused=True)
    assert gradient is None or bool(torch.isfinite(gradient).all()), name


@fuzzed(40, st.sampled_from([PairwiseAUCLoss, AUCSegLoss]), st.data())
def test_strange_options_of_losses(kind: Any, data: st.DataObject) -> None:
    names: tuple[str, ...] = (
        "surrogate",
        "margin",
        "scores",
        "strategy",
        "pair_weight",
        "ignore_index",
        "max_fpr",
    )
    names += ("auc_weight", "ce_weight", "label_smoothing", "class_weight") if kind is AUCSegLoss else ()
    options = {data.draw(st.sampled_from(names)): data.draw(JUNK)}
    try:
        loss = kind(**options)(torch.randn(2, 3, 4, 4), torch.arange(32).view(2, 4, 4) % 3)
    except (ValueError, TypeError):
        return
    assert bool(torch.isfinite(loss)), options


# ---- bank

BANK_OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "capacity": st.integers(1, 3),
        "sample_ratio": st.sampled_from([0.0, 0.4, 1.0]),
        "resize_ratio": st.sampled_from([1e-3, 0.4, 1.0, 3.7, 1e6]),
        "scope": st.sampled_from(["image", "batch"]),
        "placement": st.sampled_from(["canvas", "uniform"]),
        "protect_tail": st.booleans(),
        "min_pixels": st.sampled_from([1, 5]),
        "max_bytes": st.sampled_from([None, 1, 200, 10**9]),
        "presence_target": st.sampled_from([None, 0.0, 0.5, 1.0]),
        "max_components": st.sampled_from([1, 3]),
    },
).map(lambda o: {k: v for k, v in o.items() if k != "sample_ratio" or o.get("presence_target") is None})


def stored_batch(draw: Any, dtype: torch.dtype, channels: int) -> tuple[Tensor, Tensor]:
    batch, height, width = (draw(st.integers(0, high)) for high in (3, 9, 9))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    masks = torch.randint(0, 4, (batch, height, width), generator=generator)
    masks[torch.rand(masks.shape, generator=generator) < 0.5] = 0
    masks[torch.rand(masks.shape, generator=generator) < 0.1] = 255
    images = (masks.unsqueeze(1) % 250).expand(-1, channels, -1, -1).to(dtype)  # the colour says the label
    return images, masks.to(draw(st.sampled_from([torch.uint8, torch.int16, torch.int32, torch.int64])))


@pytest.mark.filterwarnings("ignore:the memory bank has stored nothing")
@fuzzed(30, BANK_OPTIONS, st.data())
def test_bank(options: dict[str, Any], data: st.DataObject) -> None:
    seed = data.draw(st.integers(0, 100))
    options = {"min_pixels": 1, **options}

    def make() -> TailMemoryBank:
        return TailMemoryBank([2, 3], 4, generator=torch.Generator().manual_seed(seed), **options)

    bank, other = make(), make()
    dtype = data.draw(st.sampled_from([torch.uint8, torch.float16, torch.float32, torch.float64, torch.bfloat16]))
    channels = data.draw(st.integers(1, 4))
    for _ in range(data.draw(st.integers(1, 4))):
        images, masks = stored_batch(data.draw, dtype, channels)
        before = images.clone(), masks.clone()
        pasted, labels = bank(images, masks)
        assert torch.equal(images, before[0])
        assert torch.equal(masks, before[1])
        assert (pasted.shape, pasted.dtype, labels.dtype) == (images.shape, images.dtype, masks.dtype)
        # Every pixel has the colour of its label, and what changed became a tail class.
        assert torch.equal(pasted.long(), (labels.long() % 250).unsqueeze(1).expand_as(pasted))
        assert set(labels[labels != masks].tolist()) <= {2, 3}
        assert bank.max_bytes is None or bank.nbytes <= bank.max_bytes
        # Through a file into another bank and on: the same as going on.
        file = io.BytesIO()
        torch.save(bank.state_dict(), file)
        file.seek(0)
        other.load_state_dict(torch.load(file, weights_only=True))
        assert other.num_samples == bank.num_samples
        check = images.flip(0), masks.flip(0)
        assert all(torch.equal(a, b) for a, b in zip(bank(*check), other(*check), strict=True))


@fuzzed(40, st.data())
def test_bank_from_a_damaged_state(data: st.DataObject) -> None:
    bank = TailMemoryBank([2, 3], 4, min_pixels=1, sample_ratio=1.0, scope="image")
    masks = torch.zeros(2, 6, 6, dtype=torch.int64)
    masks[0, 1:3, 2:5] = 2
    masks[1, 0, :] = 3
    bank(masks.unsqueeze(1).float(), masks)
    state = bank.get_extra_state()
    for samples in state["samples"]:
        for sample in samples:
            sample["runs"] = sample["runs"].tolist()
    damaged = data.draw(damaged_tree(state))
    try:
        for samples in damaged["samples"]:
            for sample in samples:
                if isinstance(sample["runs"], list):
                    sample["runs"] = torch.tensor(sample["runs"]).to(torch.int32)
    except (TypeError, KeyError, ValueError, RuntimeError, OverflowError, AttributeError, IndexError):
        pass  # what was damaged is no longer a list of samples, or its runs are not numbers
    with suppress(ValueError):
        bank.set_extra_state(damaged)
    empty = torch.zeros(2, 8, 8, dtype=torch.int64)
    images, labels = bank(empty.unsqueeze(1).float(), empty)
    assert set(labels.unique().tolist()) <= {0, 2, 3}
    assert not bool(images[:, 0][labels == 0].any())


# ---- metrics


@fuzzed(30, batches(min_classes=2), st.booleans())
def test_mean_iou(batch: tuple[Tensor, Tensor, int], as_labels: bool) -> None:
    logits, target, ignore_index = batch
    num_classes = logits.shape[1]
    metric = GroupedMeanIoU(num_classes, groups={"tail": [num_classes - 1]}, ignore_index=ignore_index)
    predicted = logits.float().argmax(1) if logits.numel() else target.long().clamp(0, num_classes - 1)
    metric.update(predicted if as_labels else logits, target)
    result = metric.details()
    truth, guess = target.flatten().numpy().astype(int), predicted.flatten().numpy()
    truth, guess = truth[target.flatten().numpy() != ignore_index], guess[target.flatten().numpy() != ignore_index]
    for class_id in range(num_classes):
        true, predicted = truth == class_id, guess == class_id
        hits = np.sum(true & predicted)
        totals = {
            "": np.sum(true | predicted),
            "_precision": np.sum(predicted),
            "_recall": np.sum(true),
            "_f1": (np.sum(predicted) + np.sum(true)) / 2,
        }
        for score, total in totals.items():
            expected = hits / max(total, 1) if totals[""] else math.nan
            np.testing.assert_allclose(result[f"per_class{score}"][class_id].item(), expected, rtol=1e-6)


@fuzzed(30, batches(min_classes=2), st.sampled_from(["softmax", "sigmoid"]), st.sampled_from([2, 64, 4096]))
def test_auroc_and_average_precision(batch: tuple[Tensor, Tensor, int], scores: Any, bins: int) -> None:
    logits, target, ignore_index = batch
    num_classes = logits.shape[1]
    auroc = PixelAUROC(num_classes, "ovr", scores=scores, bins=bins, ignore_index=ignore_index)
    precision = PixelAveragePrecision(num_classes, scores=scores, bins=bins, ignore_index=ignore_index)
    for metric in (auroc, precision):
        metric.update(logits, target)
    flat = logits.double().movedim(1, -1).reshape(-1, num_classes)
    labels = target.flatten().long()
    values = (flat.softmax(1) if scores == "softmax" else flat.sigmoid())[labels != ignore_index].numpy()
    truth = labels[labels != ignore_index].numpy()
    for metric, oracle in ((auroc, roc_auc_score), (precision, average_precision_score)):
        result = metric.details()
        for class_id in range(num_classes):
            value, bound = (result[name][class_id].item() for name in ("per_class", "per_class_error_bound"))
            positives = (truth == class_id).sum()
            if positives == 0 or (metric is auroc and positives == len(truth)):
                assert math.isnan(value)
                continue
            # Scores that float32 cannot tell apart may fall on either side of an edge between bins.
            expected = oracle(truth == class_id, values[:, class_id].astype(np.float32))
            assert abs(value - expected) <= bound + 2e-3, (metric, class_id)


@fuzzed(30, st.sampled_from([GroupedMeanIoU, PixelAUROC, PixelAveragePrecision]), st.data())
def test_strange_inputs_of_metrics(kind: Any, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(["num_classes", "groups", "ignore_index", "bins", "scores", "average"]))
    value = data.draw(JUNK)
    assume(not (isinstance(value, (int, float)) and 500 < value < 2**40))  # gigabytes, filled slowly
    options: dict[str, Any] = {"num_classes": 3, name: value}
    shape = data.draw(st.sampled_from([(2, 3, 4, 4), (2, 4, 4, 4), (2, 3), (32, 3), (2, 3, 4), (0, 3, 4, 4)]))
    logits = torch.full(shape, data.draw(st.sampled_from([0.0, math.nan, math.inf, 1e38])))
    target = torch.full((2, 4, 4), data.draw(st.sampled_from([0, 2, 3, -1, 255])))
    try:
        metric = kind(**options)
        metric.update(logits, target)
        result = metric.details()
    except (ValueError, TypeError):
        return
    except RuntimeError as error:  # so many classes or bins that the sums do not fit into memory
        assert "allocate memory" in str(error)
        return
    assert all(not bool(torch.isinf(value).any()) for value in result.values())
