"""Counts of pixel metrics as Triton kernels, for CUDA: one launch an update, whose only memory is the state itself.

With operations of torch every score and cell of the histograms is a tensor of the size of the logits, several times
over; here a program holds all channels of a few pixels in registers and adds to the state. The counts are integers, so
that the order of the additions does not show. They are those of torch's operations, but that a score at the border of
two bins, whose last digit depends on the device anyway, may fall to the other side.
"""

import math
from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from aucseg.tensors.triton_pixels import fits_32_bits, kernels_work, label_of, logit, places

# Scores that a program holds at a time.
TILE = 4096
_MAX_CLASSES = 1024
_LEAST_PIXELS = 16


@triton.jit
def tile(
    logits, target, num_pixels, num_classes, ignore_index, height, width, full_height, full_width,
    stride_b, stride_c, stride_y, stride_x, UPSAMPLE: tl.constexpr, CHANNELS: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
    """Logits of some pixels `(CHANNELS, PIXELS)`, which of these there are, labels (`num_classes`: not counted)."""
    blocks = tl.cdiv(num_pixels, PIXELS)
    image = (tl.program_id(0) // blocks).to(tl.int64)
    pixels = (tl.program_id(0) % blocks) * PIXELS + tl.arange(0, PIXELS)
    channel = tl.arange(0, CHANNELS)
    label = label_of(target, image, pixels, num_pixels, num_classes, ignore_index)
    a, b, c, d, down, across = places(
        pixels, height, width, full_height, full_width, stride_y, stride_x, UPSAMPLE, tl.float32
    )
    inside = (channel < num_classes)[:, None] & (pixels < num_pixels)[None, :]
    first = logits + image * stride_b + channel.to(tl.int64)[:, None] * stride_c
    x = logit(
        first, inside, a[None, :], b[None, :], c[None, :], d[None, :], down[None, :], across[None, :],
        UPSAMPLE, tl.float32,
    )  # fmt: skip
    original = tl.load(target + image * num_pixels + pixels, mask=pixels < num_pixels, other=0).to(tl.int64)
    bad_label = (label == num_classes) & (original != ignore_index) & (pixels < num_pixels)
    return x, inside, channel, label, bad_label


@triton.jit
def how_many(bad, bad_label):
    """Number of invalid logits and labels of the program."""
    return (tl.sum(tl.sum(bad.to(tl.int32), 1), 0) + tl.sum(bad_label.to(tl.int32), 0)).to(tl.int64)


@triton.jit
def histogram_kernel(
    logits, target, histogram, num_invalid, num_bins, center, scale, inverse_width,
    num_pixels, num_classes, ignore_index, height, width, full_height, full_width,
    stride_b, stride_c, stride_y, stride_x,
    SCORES: tl.constexpr, BY_LABEL: tl.constexpr, CHECK: tl.constexpr,
    UPSAMPLE: tl.constexpr, CHANNELS: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
    """Adds to `histogram`: see `aucseg.metrics.score_histogram`, whose formulas these are."""
    x, inside, channel, label, bad_label = tile(
        logits, target, num_pixels, num_classes, ignore_index, height, width, full_height, full_width,
        stride_b, stride_c, stride_y, stride_x, UPSAMPLE, CHANNELS, PIXELS,
    )  # fmt: skip
    if CHECK:
        bad = (inside & (x - x != 0)).to(tl.int32)
        if SCORES == "identity":  # which are refused for this too
            bad += (inside & (((x >= 0) & (x <= 1)) == 0)).to(tl.int32)
        count = how_many(bad, bad_label)
        tl.atomic_add(num_invalid, count, mask=count > 0)
    if SCORES == "softmax":
        highest = tl.max(tl.where(inside, x, -float("inf")), 0)
        power = tl.where(inside, tl.exp(x - highest[None, :]), 0.0)
        score = power / tl.sum(power, 0)[None, :]
    elif SCORES == "sigmoid":
        score = 1.0 / (1.0 + tl.exp(-x))
    else:
        score = x
    u = tl.log(score / (1.0 - score)) - center
    position = tl.log(1.0 + tl.abs(u) * inverse_width)
    half = num_bins / 2
    position = tl.where(u < 0, -position, position) * scale + half
    # What is not a number, which the state of invalid values tells, must not lead outside of the histogram.
    counted = inside & (label < num_classes)[None, :] & (position == position)
    place = tl.minimum(tl.maximum(tl.where(counted, position, 0.0), 0.0), num_bins - 1.0).to(tl.int32)
    row = label[None, :] if BY_LABEL else (label[None, :] == channel[:, None]).to(tl.int32)
    cell = (row.to(tl.int64) * num_classes + channel[:, None]) * num_bins + place
    tl.atomic_add(histogram + cell, tl.full([CHANNELS, PIXELS], 1, tl.int64), mask=counted, sem="relaxed")


@triton.jit
def confusion_kernel(
    logits, target, confusion, num_invalid,
    num_pixels, num_classes, ignore_index, height, width, full_height, full_width,
    stride_b, stride_c, stride_y, stride_x,
    CHECK: tl.constexpr, UPSAMPLE: tl.constexpr, CHANNELS: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
    """Adds to `confusion` `(K, K)`, by label and the channel with the highest logit; of equal ones the first."""
    x, inside, channel, label, bad_label = tile(
        logits, target, num_pixels, num_classes, ignore_index, height, width, full_height, full_width,
        stride_b, stride_c, stride_y, stride_x, UPSAMPLE, CHANNELS, PIXELS,
    )  # fmt: skip
    if CHECK:
        count = how_many(inside & (x - x != 0), bad_label)
        tl.atomic_add(num_invalid, count, mask=count > 0)
    x = tl.where(inside & (x == x), x, -float("inf"))
    highest = tl.max(x, 0)
    found = tl.min(tl.where(x == highest[None, :], channel[:, None], num_classes), 0)
    counted = (label < num_classes) & (found < num_classes)
    one = tl.full([PIXELS], 1, tl.int64)
    tl.atomic_add(confusion + label.to(tl.int64) * num_classes + found, one, mask=counted, sem="relaxed")


def offered(logits: Tensor, target: Tensor) -> bool:
    """Whether there are kernels for logits (B, K, *spatial) and labels (B, *spatial)."""
    same_size = logits.shape[2:] == target.shape[1:]
    if logits.dtype == torch.float64:  # the kernels compute in float32
        return False
    return logits.shape[1] <= _MAX_CLASSES and (same_size or logits.dim() == 4) and fits_32_bits(logits, target)


@lru_cache(maxsize=64)
def works_on(device: torch.device) -> bool:
    """Whether kernels can be built for a device; says why not, once."""
    return kernels_work(lambda: _try_out(device), device, "pixel metrics fall back")


def _try_out(device: torch.device) -> None:
    logits = torch.zeros(1, 2, 2, 2, dtype=torch.float32, device=device)
    target = torch.zeros(1, 2, 2, dtype=torch.int64, device=device)
    state = torch.zeros(2, 2, 2, dtype=torch.int64, device=device)
    num_invalid = torch.zeros((), dtype=torch.int64, device=device)
    count_scores(logits, target, state, num_invalid, 255, "softmax", True, 0.0, 1.0, 1.0)
    count_confusion(logits, target, state[0], num_invalid, 255)


def count_scores(
    logits: Tensor,
    target: Tensor,
    histogram: Tensor,
    num_invalid: Tensor | None,
    ignore_index: int,
    scores: str,
    by_label: bool,
    center: float,
    bin_scale: float,
    max_logit: float,
) -> None:
    """Adds the scores of a batch to a histogram.

    Args:
        logits: (B, K, *spatial), `offered`.
        target: (B, *spatial) int64.
        histogram: (K, K, bins) or (2, K, bins) int64, contiguous.
        num_invalid: int64 scalar, to which the number of invalid values is added; None: they were counted before.
        ignore_index: Label of pixels that do not count.
        scores: `"softmax"`, `"sigmoid"` or `"identity"`.
        by_label: Whether the rows of the histogram are labels, or the rest and the own class.
        center: Logit in the middle of the bins.
        bin_scale: How far the bins are evenly spaced.
        max_logit: How far from the center the bins reach.
    """
    num_bins = histogram.shape[2]
    scale = num_bins / 2 / math.log1p(max_logit / bin_scale)
    _launch(
        histogram_kernel, logits, target, histogram, num_invalid, ignore_index, num_bins, center, scale, 1 / bin_scale,
        SCORES=scores, BY_LABEL=by_label,
    )  # fmt: skip


def count_confusion(
    logits: Tensor, target: Tensor, confusion: Tensor, num_invalid: Tensor | None, ignore_index: int
) -> None:
    """Adds a batch to a confusion matrix.

    Args:
        logits: (B, K, *spatial), `offered`.
        target: (B, *spatial) int64.
        confusion: (K, K) int64, contiguous.
        num_invalid: int64 scalar, to which the number of invalid values is added; None: they were counted before.
        ignore_index: Label of pixels that do not count.
    """
    _launch(confusion_kernel, logits, target, confusion, num_invalid, ignore_index)


def _launch(
    kernel: Any,
    logits: Tensor,
    target: Tensor,
    state: Tensor,
    num_invalid: Tensor | None,
    ignore_index: int,
    *settings: float,
    **constants: Any,
) -> None:
    num_classes, upsample = logits.shape[1], logits.shape[2:] != target.shape[1:]
    # At full size a pixel is a place in one row.
    planes = logits if upsample else logits.flatten(2).unsqueeze(2)
    full_size = (target.shape[1], target.shape[2]) if upsample else planes.shape[2:]
    channels = triton.next_power_of_2(num_classes)
    pixels = max(TILE // channels, _LEAST_PIXELS)
    num_pixels = full_size[0] * full_size[1]
    num_programs = triton.cdiv(num_pixels, pixels) * len(planes)
    if num_programs:
        with torch.cuda.device_of(planes):
            kernel[(num_programs,)](
                planes, target.contiguous(), state, state if num_invalid is None else num_invalid, *settings,
                num_pixels, num_classes, ignore_index, *planes.shape[2:], *full_size,
                planes.stride(0), planes.stride(1), planes.stride(2), planes.stride(3),
                **constants, CHECK=num_invalid is not None, UPSAMPLE=upsample, CHANNELS=channels, PIXELS=pixels,
                # One operation after the other, as in `aucseg.tensors.upsampling`.
                enable_fp_fusion=False, num_warps=8,
            )  # fmt: skip
