"""The two passes of `aucseg.losses.pixel_sums` as Triton kernels, for CUDA: each reads the logits once.

With operations of torch every score, feature and weight is a tensor that travels to the memory and back; here it stays
in registers. A program takes a block of pixels and walks through their channels. What it sums it writes to a row of its
own, so nothing is added up in an order that changes from run to run.

Logits smaller than the target are upsampled on the way, each pixel from its four neighbours. Their gradient is made at
full size, a piece at a time, and folded back, first rows, then columns.
"""

import warnings
from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from aucseg.losses.pieces import ACCELERATOR_PIECE
from aucseg.losses.views import CrossEntropyWeights, PassOptions, wide_dtype

# Features of a positive and of a negative; the other forms are left to operations of torch.
_NUM_FEATURES = {"": 0, "linear": 1, "square": 2, "exponential": 1}
# Pixels of a program. Fewer where the channels of a pixel lie together: then they are in the cache for the next one.
_BLOCK, _BLOCK_CHANNELS_LAST = 1024, 256


def offered(logits: Tensor, weight: Tensor | None, options: PassOptions) -> bool:
    """Whether `sums` and `gradient` can do these logits, label weights and options."""
    return (
        options.form in _NUM_FEATURES
        and (weight is not None or not options.form)
        and options.dtype(logits) == torch.float32
    )


@lru_cache(maxsize=64)
def works_on(device: torch.device) -> bool:
    """Whether kernels can be built for a device; says why not, once."""
    try:
        counts(torch.zeros(1, dtype=torch.uint8, device=device), 1, 255)
    except Exception as error:  # no compiler, an old device, a driver that does not fit: Triton has no error for these
        warnings.warn(
            f"the AUC loss falls back to slower operations of torch: Triton does not work on {device} ({error})",
            stacklevel=2,
        )
        return False
    return True


@triton.jit
def _label(target, image, pixels, num_pixels, num_classes, ignore_index):
    """Labels of a block of pixels, ``num_classes`` for those that do not count."""
    inside = pixels < num_pixels
    label = tl.load(target + image.to(tl.int64) * num_pixels + pixels, mask=inside, other=0).to(tl.int64)
    counts = inside & (label != ignore_index) & (label >= 0) & (label < num_classes)
    return tl.where(counts, label, num_classes).to(tl.int32)


@triton.jit
def _count_kernel(target, partial, num_pixels, num_classes, ignore_index, BLOCK: tl.constexpr):
    block = tl.program_id(0)
    pixels = block * BLOCK + tl.arange(0, BLOCK)
    label = _label(target, block * 0, pixels, num_pixels, num_classes, ignore_index)
    row = partial + block.to(tl.int64) * (num_classes + 1)
    for channel in range(num_classes):
        tl.store(row + channel, tl.sum((label == channel).to(tl.int32), 0))
    # The last column: labels that are neither of a class nor to be ignored.
    original = tl.load(target + pixels, mask=pixels < num_pixels, other=ignore_index).to(tl.int64)
    bad = (label == num_classes) & (original != ignore_index) & (pixels < num_pixels)
    tl.store(row + num_classes, tl.sum(bad.to(tl.int32), 0))


def counts(target: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    """See `aucseg.losses.pixel_sums.class_counts`; a label that is neither a class nor ignored is a device's error."""
    target = _plain(target).flatten()
    blocks = triton.cdiv(target.numel(), _BLOCK)
    partial = torch.empty(blocks, num_classes + 1, dtype=torch.int32, device=target.device)
    if blocks:
        _count_kernel[(blocks,)](target, partial, target.numel(), num_classes, ignore_index, BLOCK=_BLOCK)
    total = partial.sum(0)
    message = f"a label is neither in 0..{num_classes - 1} nor the ignore label {ignore_index}"
    torch._assert_async(total[num_classes] == 0, message)
    return total[:num_classes].to(wide_dtype(target.device))


def _plain(target: Tensor) -> Tensor:
    return (target.view(torch.uint8) if target.dtype == torch.bool else target).contiguous()


@triton.jit
def _neighbours(position, size, full):
    """Source places of upsampled positions (bilinear, align_corners=False), and the share of the second; exact."""
    numerator = tl.maximum((2 * position + 1) * size - full, 0)
    low = numerator // (2 * full)
    share = (numerator - low * (2 * full)).to(tl.float32) / (2 * full)
    return low, tl.minimum(low + 1, size - 1), share


@triton.jit
def _places(pixels, height, width, full_height, full_width, stride_y, stride_x, UPSAMPLE: tl.constexpr):
    """Offsets of each pixel's four neighbours within a channel, and two shares; of the pixel itself at full size."""
    if UPSAMPLE:
        top, bottom, down = _neighbours(pixels // full_width, height, full_height)
        left, right, across = _neighbours(pixels % full_width, width, full_width)
        top, bottom, left, right = top * stride_y, bottom * stride_y, left * stride_x, right * stride_x
        return top + left, top + right, bottom + left, bottom + right, down, across
    else:
        place, share = pixels.to(tl.int64) * stride_x, pixels.to(tl.float32)
        return place, place, place, place, share, share


@triton.jit
def _logit(channel, valid, a, b, c, d, down, across, UPSAMPLE: tl.constexpr):
    """Logits of one channel, see `_places`; 0 where a pixel does not count, whatever is there."""
    value = tl.load(channel + a, mask=valid, other=0.0).to(tl.float32)
    if UPSAMPLE:
        value += across * (tl.load(channel + b, mask=valid, other=0.0).to(tl.float32) - value)
        below = tl.load(channel + c, mask=valid, other=0.0).to(tl.float32)
        below += across * (tl.load(channel + d, mask=valid, other=0.0).to(tl.float32) - below)
        value += down * (below - value)
    return value


@triton.jit
def _scores(x, lse, SCORES: tl.constexpr):
    """Scores ``f`` and what they lack of 1, both to full precision."""
    if SCORES == "sigmoid":
        small = tl.exp(-tl.abs(x))
        large = 1.0 / (1.0 + small)
        small *= large
        score = tl.where(x >= 0, large, small)
        shortfall = tl.where(x >= 0, small, large)
        # Comparisons with NaN are false: without this it would be lost.
        return tl.where(x == x, score, x), tl.where(x == x, shortfall, x)
    else:
        score = tl.exp(x - lse)
        return score, 1.0 - score


@triton.jit
def _sums_kernel(
    logits, target, weight_table, by_softmax, by_own, by_channel, lse_map, partial,
    num_pixels, num_classes, ignore_index, margin, height, width, full_height, full_width,
    stride_b, stride_c, stride_y, stride_x,
    FORM: tl.constexpr, SCORES: tl.constexpr, CROSS_ENTROPY: tl.constexpr, SMOOTH: tl.constexpr,
    UPSAMPLE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A row of ``partial`` ``(programs, ROWS, K)``: features of positives, features of negatives, cross-entropy."""
    block, image = tl.program_id(0), tl.program_id(1)
    pixels = block * BLOCK + tl.arange(0, BLOCK)
    label = _label(target, image, pixels, num_pixels, num_classes, ignore_index)
    valid = label < num_classes
    a, b, c, d, down, across = _places(pixels, height, width, full_height, full_width, stride_y, stride_x, UPSAMPLE)
    first = logits + image.to(tl.int64) * stride_b
    row = partial + (image.to(tl.int64) * tl.num_programs(0) + block) * (ROWS * num_classes)
    lse = tl.zeros([BLOCK], tl.float32)
    if CROSS_ENTROPY or SCORES == "softmax":
        highest = tl.full([BLOCK], -3.0e38, tl.float32)
        total = tl.zeros([BLOCK], tl.float32)
        own_logit = tl.zeros([BLOCK], tl.float32)
        smooth = tl.zeros([BLOCK], tl.float32)
        channel_logits = first
        for channel in range(num_classes):
            x = _logit(channel_logits, valid, a, b, c, d, down, across, UPSAMPLE)
            before = highest
            highest = tl.maximum(highest, x)
            total = total * tl.exp(before - highest) + tl.exp(x - highest)
            own_logit = tl.where(label == channel, x, own_logit)
            if SMOOTH:
                smooth += tl.load(by_channel + channel) * x
            channel_logits += stride_c
        lse = highest + tl.log(total)
        tl.store(lse_map + image.to(tl.int64) * num_pixels + pixels, lse, mask=pixels < num_pixels)
        if CROSS_ENTROPY:
            entropy = tl.load(by_softmax + label) * lse - tl.load(by_own + label) * own_logit - smooth
            tl.store(row + (ROWS - 1) * num_classes, tl.sum(tl.where(valid, entropy, 0.0), 0))
    if FORM != "":
        weight = tl.load(weight_table + label)
        channel_logits = first
        for channel in range(num_classes):
            x = _logit(channel_logits, valid, a, b, c, d, down, across, UPSAMPLE)
            own = label == channel
            score, shortfall = _scores(x, lse, SCORES)
            if FORM == "exponential":
                positive = tl.exp(margin * (shortfall - 1.0))
                score = tl.exp(margin * score)
            else:
                positive = shortfall + (margin - 1.0)
            positive = tl.where(own, positive, 0.0)
            score = tl.where(own, 0.0, score)
            tl.store(row + channel, tl.sum(positive, 0))
            if FORM == "square":
                tl.store(row + num_classes + channel, tl.sum(positive * positive, 0))
                tl.store(row + 2 * num_classes + channel, tl.sum(score * weight, 0))
                tl.store(row + 3 * num_classes + channel, tl.sum(score * score * weight, 0))
            else:
                tl.store(row + num_classes + channel, tl.sum(score * weight, 0))
            channel_logits += stride_c


@triton.jit
def _slope(
    x, lse, label, channel, weight, margin, by_positive, by_negative, num_classes, FORM: tl.constexpr,
    SCORES: tl.constexpr,
):  # fmt: skip
    """Scores, what they lack of 1, and the slope of the loss by them."""
    score, shortfall = _scores(x, lse, SCORES)
    own = label == channel
    p, q = tl.load(by_positive + channel), tl.load(by_negative + channel)
    if FORM == "exponential":
        positive = -margin * p * tl.exp(margin * (shortfall - 1.0))
        negative = margin * q * tl.exp(margin * score)
    elif FORM == "square":
        positive = -(p + 2.0 * tl.load(by_positive + num_classes + channel) * (shortfall + (margin - 1.0)))
        negative = q + 2.0 * tl.load(by_negative + num_classes + channel) * score
    else:
        positive, negative = -p, q
    return score, shortfall, tl.where(own, positive, negative * weight)


@triton.jit
def _gradient_kernel(
    logits, target, weight_table, by_softmax, by_own, by_channel, by_positive, by_negative, lse_map, gradient,
    num_pixels, num_classes, first_channel, last_channel, ignore_index, margin,
    height, width, full_height, full_width,
    stride_b, stride_c, stride_y, stride_x, out_b, out_c, out_x, limit,
    FORM: tl.constexpr, SCORES: tl.constexpr, CROSS_ENTROPY: tl.constexpr, SMOOTH: tl.constexpr,
    UPSAMPLE: tl.constexpr, CLAMP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The gradient of channels ``first_channel..last_channel - 1`` at the target's size."""
    block, image = tl.program_id(0), tl.program_id(1)
    pixels = block * BLOCK + tl.arange(0, BLOCK)
    label = _label(target, image, pixels, num_pixels, num_classes, ignore_index)
    valid = label < num_classes
    a, b, c, d, down, across = _places(pixels, height, width, full_height, full_width, stride_y, stride_x, UPSAMPLE)
    first = logits + image.to(tl.int64) * stride_b
    lse = tl.zeros([BLOCK], tl.float32)
    weight = lse
    if CROSS_ENTROPY or SCORES == "softmax":
        lse = tl.load(lse_map + image.to(tl.int64) * num_pixels + pixels, mask=valid, other=0.0)
    if FORM != "":
        weight = tl.load(weight_table + label)
    if CROSS_ENTROPY:
        softmax_share, own_share = tl.load(by_softmax + label), tl.load(by_own + label)
    mean = tl.zeros([BLOCK], tl.float32)
    if FORM != "" and SCORES == "softmax":
        channel_logits = first
        for channel in range(num_classes):
            x = _logit(channel_logits, valid, a, b, c, d, down, across, UPSAMPLE)
            score, _, slope = _slope(
                x, lse, label, channel, weight, margin, by_positive, by_negative, num_classes, FORM, SCORES
            )
            mean += score * slope
            channel_logits += stride_c
    channel_logits = first + (image * 0 + first_channel).to(tl.int64) * stride_c
    out = gradient + image.to(tl.int64) * out_b + pixels.to(tl.int64) * out_x
    for channel in range(first_channel, last_channel):
        x = _logit(channel_logits, valid, a, b, c, d, down, across, UPSAMPLE)
        value = tl.zeros([BLOCK], tl.float32)
        if FORM != "":
            score, shortfall, slope = _slope(
                x, lse, label, channel, weight, margin, by_positive, by_negative, num_classes, FORM, SCORES
            )
            value = (slope - mean) * score
            if SCORES == "sigmoid":
                value *= shortfall
        if CROSS_ENTROPY:
            value += tl.exp(x - lse) * softmax_share - tl.where(label == channel, own_share, 0.0)
            if SMOOTH:
                value -= tl.load(by_channel + channel)
        value = tl.where(valid, value, 0.0)
        if CLAMP:
            value = tl.minimum(tl.maximum(value, -limit), limit)
        tl.store(out, value.to(gradient.dtype.element_ty), mask=pixels < num_pixels)
        channel_logits += stride_c
        out += out_c


@triton.jit
def _fold_kernel(full, folded, num_elements, size, full_size, num_inner, num_taps, BLOCK: tl.constexpr):
    """The transpose of upsampling the middle of three dimensions: ``(n, full_size, inner) -> (n, size, inner)``."""
    element = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = element < num_elements
    inner = element % num_inner
    place = ((element // num_inner) % size).to(tl.int32)
    source = full + (element // num_inner // size) * full_size * num_inner + inner
    # Every position that has `place` among its two neighbours lies in a window of `num_taps`.
    start = tl.maximum(((2 * place - 1) * full_size - size) // (2 * size), 0)
    total = tl.zeros([BLOCK], tl.float32)
    for tap in range(num_taps):
        position = start + tap
        low, high, share = _neighbours(position, size, full_size)
        weight = tl.where(low == place, 1.0 - share, 0.0) + tl.where(high == place, share, 0.0)
        used = inside & (position < full_size) & (weight > 0)
        total += weight * tl.load(source + position.to(tl.int64) * num_inner, mask=used, other=0.0)
    tl.store(folded + element, total, mask=inside)


def _fold(full: Tensor, dim: int, size: int) -> Tensor:
    """The gradient of upsampling ``full`` along a dimension, float32, contiguous."""
    shape = list(full.shape)
    full_size, shape[dim] = shape[dim], size
    folded = torch.empty(shape, dtype=torch.float32, device=full.device)
    num_inner = full.stride(dim)
    num_taps = 2 * triton.cdiv(full_size, size) + 3
    grid = (triton.cdiv(folded.numel(), _BLOCK),)
    _fold_kernel[grid](full, folded, folded.numel(), size, full_size, num_inner, num_taps, BLOCK=_BLOCK)
    return folded


class _Setting:
    """What both passes hand to their kernels."""

    def __init__(
        self, logits: Tensor, target: Tensor, weight: Tensor | None, class_weight: Tensor | None, options: PassOptions
    ) -> None:
        device, self.options = logits.device, options
        self.upsample = logits.shape[2:] != target.shape[1:]
        planes = logits if self.upsample else _as_planes(logits)
        self.num_images, self.num_classes = planes.shape[:2]
        # At full size a pixel is a place in one row.
        self.size = (planes.shape[2], planes.shape[3]) if self.upsample else (1, planes.shape[2])
        self.full_size = (target.shape[1], target.shape[2]) if self.upsample else self.size
        self.num_pixels = self.full_size[0] * self.full_size[1]
        stride_y = planes.stride(2) if self.upsample else 0
        self.strides = (planes.stride(0), planes.stride(1), stride_y, planes.stride(-1))
        self.block = _BLOCK_CHANNELS_LAST if planes.stride(1) == 1 and self.num_classes > 1 else _BLOCK
        self.grid = (triton.cdiv(self.num_pixels, self.block), self.num_images)
        self.ce = CrossEntropyWeights(class_weight, logits, torch.float32, options)
        self.planes, self.target = planes, _plain(target)
        table = torch.zeros(self.num_classes + 1, device=device) if weight is None else weight
        self.weight_table = table.to(torch.float32).contiguous()
        self.constants: dict[str, Any] = {
            "FORM": options.form,
            "SCORES": options.scores,
            "CROSS_ENTROPY": options.cross_entropy,
            "SMOOTH": self.ce.smooth,
            "UPSAMPLE": self.upsample,
            "BLOCK": self.block,
        }


def _as_planes(logits: Tensor) -> Tensor:
    return logits.t().unsqueeze(0) if logits.dim() == 2 else logits.flatten(2)


def sums(
    logits: Tensor, target: Tensor, weight: Tensor | None, class_weight: Tensor | None, options: PassOptions
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `aucseg.losses.pixel_sums.pixel_sums`."""
    setting = _Setting(logits, target, weight, class_weight, options)
    device, num_features = logits.device, _NUM_FEATURES[options.form]
    shape = target.shape if options.needs_lse else (0,)
    lse = torch.empty(shape, dtype=torch.float32, device=device)
    num_rows = 2 * num_features + 1
    partial = torch.zeros(setting.grid[0] * setting.grid[1], num_rows, setting.num_classes, device=device)
    if partial.numel():
        _sums_kernel[setting.grid](
            setting.planes, setting.target, setting.weight_table,
            setting.ce.by_softmax, setting.ce.by_own, setting.ce.by_channel, lse, partial,
            setting.num_pixels, setting.num_classes, options.ignore_index, options.margin,
            *setting.size, *setting.full_size, *setting.strides,
            **setting.constants, ROWS=num_rows,
        )  # fmt: skip
    total = partial.sum(0, dtype=wide_dtype(device))
    # Copies: an operator may not return views of one tensor.
    positive, negative = total[:num_features].clone(), total[num_features : 2 * num_features].clone()
    return positive, negative, total[-1, 0].clone(), lse


def gradient(
    positive: Tensor,
    negative: Tensor,
    entropy: Tensor,
    lse: Tensor,
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    class_weight: Tensor | None,
    options: PassOptions,
) -> Tensor:
    """See `aucseg.losses.pixel_sums.pixel_gradient`."""
    setting = _Setting(logits, target, weight, class_weight, options)
    tables = [
        *(entropy * table for table in (setting.ce.by_softmax, setting.ce.by_own, setting.ce.by_channel)),
        *(positive, negative),
    ]
    tables = [table.to(torch.float32).contiguous() for table in tables]

    def fill(images: slice, first: int, last: int, planes: Tensor) -> None:
        num_images = planes.shape[0]
        _gradient_kernel[(setting.grid[0], num_images)](
            setting.planes[images], setting.target[images] if setting.upsample else setting.target,
            setting.weight_table, *tables, lse[images] if setting.upsample else lse, planes,
            setting.num_pixels, setting.num_classes, first, last, options.ignore_index, options.margin,
            *setting.size, *setting.full_size, *setting.strides,
            planes.stride(0), planes.stride(1), planes.stride(-1), torch.finfo(planes.dtype).max,
            **setting.constants, CLAMP=options.may_overflow(planes),
        )  # fmt: skip

    if not target.numel():
        return torch.zeros_like(logits)
    if not setting.upsample:
        result = torch.empty_like(setting.planes)
        fill(slice(None), 0, setting.num_classes, result)
        return result.squeeze(0).t() if logits.dim() == 2 else result.view(logits.shape)
    result = torch.empty_like(logits)
    height, width = setting.full_size
    images = max(1, min(setting.num_images, ACCELERATOR_PIECE // (setting.num_classes * height * width)))
    channels = max(1, min(setting.num_classes, ACCELERATOR_PIECE // (images * height * width)))
    for image in range(0, setting.num_images, images):
        part = slice(image, image + images)
        for first in range(0, setting.num_classes, channels):
            last = min(first + channels, setting.num_classes)
            shape = (len(logits[part]), last - first, height, width)
            full = torch.empty(shape, dtype=torch.float32, device=logits.device)
            fill(part, first, last, full.flatten(2))
            result[part, first:last] = _fold(_fold(full, 2, setting.size[0]), 3, setting.size[1])
    return result


__all__ = ["counts", "gradient", "offered", "sums", "works_on"]
