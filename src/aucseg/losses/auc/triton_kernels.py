"""The two passes of `aucseg.losses.auc.torch_passes` as Triton kernels, for CUDA: each reads the logits once.

With operations of torch every score, feature and weight is a tensor that travels to the memory and back; here it stays
in registers. A program takes a block of pixels and walks through their channels. What it sums it writes to a row of its
own, so nothing is added up in an order that changes from run to run. `objective` does all of an ordinary loss with a
handful of launches; `counts`, `sums` and `gradient` are its parts for losses of several batches or processes.

Logits smaller than the target are upsampled on the way, each pixel from its four neighbours. Their gradient is made at
full size, a piece at a time, and folded back, first rows, then columns.
"""

import warnings
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from aucseg.dtypes import wide_dtype
from aucseg.losses.auc.pieces import ACCELERATOR_PIECE, as_planes
from aucseg.losses.auc.pixels import ONCE, CrossEntropyWeights, PassOptions

# Features of a positive and of a negative; the other forms are left to operations of torch.
_NUM_FEATURES = {"": 0, "linear": 1, "square": 2, "exponential": 1}
_MAX_CLASSES = 4095  # what is computed by class takes one program
_MAX_IMAGES = 65535  # of CUDA, in the second direction of a grid
_MAX_INT32 = 2**31
# Pixels of a program. Fewer where the channels of a pixel lie together: then they are in the cache for the next one.
_BLOCK, _BLOCK_CHANNELS_LAST = 1024, 256
# More channels than that are copied plane by plane first: a cache does not hold them until their turn comes. With 150
# of them at full size the walk took 5.5 times as long as cross-entropy on an H100.
_MOST_CHANNELS_LAST = 32


def offered(logits: Tensor, target: Tensor, options: PassOptions) -> bool:
    """Whether there are kernels for these logits, labels and options."""
    return (
        options.form in _NUM_FEATURES
        and options.dtype(logits) == torch.float32
        and logits.shape[1] <= _MAX_CLASSES
        and (logits.dim() == 2 or len(logits) <= _MAX_IMAGES)
        and _fits_32_bits(logits, target)
    )


def _fits_32_bits(logits: Tensor, target: Tensor) -> bool:
    """Whether the places of pixels do, with which the kernels count."""
    sizes, full_sizes = logits.shape[2:], target.shape[1:]
    if logits.dim() == 2 or sizes == full_sizes:
        return target.numel() < _MAX_INT32 * max(len(logits) if logits.dim() > 2 else 1, 1)
    last = sum((size - 1) * logits.stride(dim) for dim, size in enumerate(sizes, 2))
    steps = max(2 * size * full_size for size, full_size in zip(sizes, full_sizes, strict=True))
    return max(last, steps, full_sizes.numel()) < _MAX_INT32


@lru_cache(maxsize=64)
def works_on(device: torch.device) -> bool:
    """Whether kernels can be built for a device; says why not, once."""
    try:
        _try_out(device)
    except Exception as error:  # no compiler, an old device, a driver that does not fit: Triton has no error for these
        if "out of memory" in str(error):  # says nothing about Triton
            raise
        warnings.warn(
            f"the AUC loss falls back to slower operations of torch: Triton does not work on {device} ({error})",
            stacklevel=2,
        )
        return False
    return True


def _try_out(device: torch.device) -> None:
    """Every kernel once."""
    options = PassOptions("square", 1.0, 0, "sigmoid", 255, cross_entropy=True)
    logits = torch.zeros(1, 2, 2, 2, dtype=torch.float32, device=device)
    target = torch.zeros(1, 4, 4, dtype=torch.int64, device=device)
    risk, entropy, tables, lse = _losses(logits, target, None, options, one_vs_all=False)
    _Passes(logits, target, options).gradient(tables, lse, risk, entropy)


@triton.jit
def _label(target, image, pixels, num_pixels, num_classes, ignore_index):
    """Labels of a block of pixels, ``num_classes`` for those that do not count."""
    inside = pixels < num_pixels
    label = tl.load(target + image.to(tl.int64) * num_pixels + pixels, mask=inside, other=0).to(tl.int64)
    counts = inside & (label != ignore_index) & (label >= 0) & (label < num_classes)
    return tl.where(counts, label, num_classes).to(tl.int32)


@triton.jit
def _count_kernel(target, partial, num_pixels, num_classes, ignore_index, BLOCK: tl.constexpr):
    block = tl.program_id(0).to(tl.int64)
    pixels = block * BLOCK + tl.arange(0, BLOCK)
    label = _label(target, block * 0, pixels, num_pixels, num_classes, ignore_index)
    row = partial + block * (num_classes + 1)
    for channel in range(num_classes):
        tl.store(row + channel, tl.sum((label == channel).to(tl.int32), 0))
    # The last column: labels that are neither of a class nor to be ignored.
    original = tl.load(target + pixels, mask=pixels < num_pixels, other=0).to(tl.int64)
    bad = (label == num_classes) & (original != ignore_index) & (pixels < num_pixels)
    tl.store(row + num_classes, tl.sum(bad.to(tl.int32), 0))


def counts(target: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    """See `aucseg.losses.auc.torch_passes.class_counts`; a label neither a class nor ignored is a device's error."""
    return _counts(target, num_classes, ignore_index)[:num_classes].to(wide_dtype(target.device))


def _counts(target: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    target = _plain(target).flatten()
    blocks = triton.cdiv(target.numel(), _BLOCK)
    partial = torch.empty(blocks, num_classes + 1, dtype=torch.int32, device=target.device)
    if blocks:
        with torch.cuda.device_of(target):
            _count_kernel[(blocks,)](target, partial, target.numel(), num_classes, ignore_index, BLOCK=_BLOCK)
    total = partial.sum(0)
    message = f"a label is neither in 0..{num_classes - 1} nor the ignore label {ignore_index}"
    torch._assert_async(total[num_classes] == 0, message)
    return total


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
def _scores(x, lse, lack, SCORES: tl.constexpr):
    """Scores ``f`` and what they lack of 1, both to full precision; with softmax that is ``lack`` of the own channel.

    There it is the sum of the other channels: 1 - f has lost its digits where f is close to 1.
    """
    if SCORES == "sigmoid":
        small = tl.exp(-tl.abs(x))
        large = 1.0 / (1.0 + small)
        small *= large
        score = tl.where(x >= 0, large, small)
        shortfall = tl.where(x >= 0, small, large)
        # Comparisons with NaN are false: without this it would be lost.
        return tl.where(x == x, score, x), tl.where(x == x, shortfall, x)
    else:
        return tl.exp(x - lse), lack


# Rows of the tables by class, ``(4 + 2 J, K + 1)``, float32; the last column is that of ignored pixels: weight of a
# negative by its label; of the cross-entropy the weights of the log-sum-exp, of the own logit, of every logit (label
# smoothing); then the gradient by the sums of the J features of positives, and of those of negatives.
_WEIGHT, _BY_SOFTMAX, _BY_OWN, _BY_CHANNEL, _BY_SUMS = (tl.constexpr(row) for row in range(5))


@triton.jit
def _weights_kernel(
    counts, class_weight, tables, wide, num_classes, smoothing, ONE_VS_ALL: tl.constexpr, BLOCK: tl.constexpr
):
    """The weights among ``tables``, and in ``wide`` ``(3, K + 1)``, float64, by channel: 1 / pixels, weight, mass.

    The formulas are those of `aucseg.losses.auc.pair_risk.PairWeights.uniform`, and the means of the cross-entropy.
    """
    channel = tl.arange(0, BLOCK)
    inside, stored, size = channel < num_classes, channel <= num_classes, num_classes + 1
    count = tl.load(counts + channel, mask=inside, other=0).to(tl.float64)
    rest = tl.sum(count, 0) - count
    label = tl.where(count > 0, 1.0, 0.0).to(tl.float64)
    weight = tl.where(rest > 0, label, 0.0)
    if ONE_VS_ALL:
        label = count
        weight /= tl.maximum(rest, 1.0)
    mass = weight * (tl.sum(label, 0) - label)
    total = tl.sum(mass, 0)
    total = tl.where(total > 0, total, 1.0)
    inverse = 1.0 / tl.maximum(count, 1.0)
    tl.store(wide + channel, inverse, mask=stored)
    tl.store(wide + size + channel, weight / total, mask=stored)
    tl.store(wide + 2 * size + channel, mass / total, mask=stored)
    tl.store(tables + _WEIGHT * size + channel, (label * inverse).to(tl.float32), mask=stored)
    share = tl.load(class_weight + channel, mask=inside, other=0.0).to(tl.float64)
    share_sum = tl.sum(share * count, 0)
    share = tl.where(share_sum > 0, share / tl.where(share_sum > 0, share_sum, 1.0), 0.0)
    own, smooth = (1.0 - smoothing) * share, smoothing / num_classes * share
    softmax = tl.where(inside, own + tl.sum(smooth, 0), 0.0)
    tl.store(tables + _BY_SOFTMAX * size + channel, softmax.to(tl.float32), mask=stored)
    tl.store(tables + _BY_OWN * size + channel, own.to(tl.float32), mask=stored)
    tl.store(tables + _BY_CHANNEL * size + channel, smooth.to(tl.float32), mask=stored)


@triton.jit
def _risk_kernel(
    sums, wide, tables, risk, entropy, num_classes, FORM: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr
):
    """Both losses from the sums, and among ``tables`` the gradient of the first by them."""
    channel = tl.arange(0, BLOCK)
    inside, size = channel < num_classes, num_classes + 1
    if FORM != "":
        inverse = tl.load(wide + channel, mask=inside, other=0.0)
        weight = tl.load(wide + size + channel, mask=inside, other=0.0)
        mass = tl.load(wide + 2 * size + channel, mask=inside, other=0.0)
        first_negative = (ROWS - 1) // 2 * num_classes
        p = tl.load(sums + channel, mask=inside, other=0.0) * inverse
        q = tl.load(sums + first_negative + channel, mask=inside, other=0.0) * weight
        out = tables + _BY_SUMS * size + channel
        if FORM == "square":
            p2 = tl.load(sums + num_classes + channel, mask=inside, other=0.0) * inverse
            q2 = tl.load(sums + first_negative + num_classes + channel, mask=inside, other=0.0) * weight
            value = 0.5 * q2 + p * q + 0.5 * p2 * mass
            tl.store(out, (q * inverse).to(tl.float32), mask=inside)
            tl.store(out + size, (0.5 * mass * inverse).to(tl.float32), mask=inside)
            tl.store(out + 2 * size, (p * weight).to(tl.float32), mask=inside)
            tl.store(out + 3 * size, (0.5 * weight).to(tl.float32), mask=inside)
        elif FORM == "linear":
            value = q + p * mass
            tl.store(out, (mass * inverse).to(tl.float32), mask=inside)
            tl.store(out + size, weight.to(tl.float32), mask=inside)
        else:
            value = p * q
            tl.store(out, (q * inverse).to(tl.float32), mask=inside)
            tl.store(out + size, (p * weight).to(tl.float32), mask=inside)
        tl.store(risk, tl.sum(value, 0).to(tl.float32))
    else:
        tl.store(risk, 0.0)
    tl.store(entropy, tl.load(sums + (ROWS - 1) * num_classes).to(tl.float32))


@triton.jit
def _store_features(
    row, x, lse, lack, label, channel, weight, margin, num_classes, FORM: tl.constexpr, SCORES: tl.constexpr
):
    """Sums the features of one channel over the block: of its positives, then of its weighted negatives."""
    own = label == channel
    score, shortfall = _scores(x, lse, lack, SCORES)
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


@triton.jit
def _sums_kernel(
    logits, target, tables, lse_map, partial,
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
    weight = tl.zeros([BLOCK], tl.float32)
    if FORM != "":
        weight = tl.load(tables + _WEIGHT * (num_classes + 1) + label)
    highest = tl.full([BLOCK], -3.0e38, tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    others = tl.zeros([BLOCK], tl.float32)
    own_logit = tl.zeros([BLOCK], tl.float32)
    smooth = tl.zeros([BLOCK], tl.float32)
    channel_logits = first
    for channel in range(num_classes):
        x = _logit(channel_logits, valid, a, b, c, d, down, across, UPSAMPLE)
        if CROSS_ENTROPY or SCORES == "softmax":
            before = highest
            highest = tl.maximum(highest, x)
            total = total * tl.exp(before - highest) + tl.exp(x - highest)
            if SCORES == "softmax":
                others = others * tl.exp(before - highest) + tl.where(label == channel, 0.0, tl.exp(x - highest))
            own_logit = tl.where(label == channel, x, own_logit)
            if SMOOTH:
                smooth += tl.load(tables + _BY_CHANNEL * (num_classes + 1) + channel) * x
        if FORM != "" and SCORES == "sigmoid":
            _store_features(row, x, x, x, label, channel, weight, margin, num_classes, FORM, SCORES)
        channel_logits += stride_c
    entropy = 0.0
    if CROSS_ENTROPY or SCORES == "softmax":
        lse = highest + tl.log(total)
        tl.store(lse_map + image.to(tl.int64) * num_pixels + pixels, lse, mask=pixels < num_pixels)
        if CROSS_ENTROPY:
            softmax_share = tl.load(tables + _BY_SOFTMAX * (num_classes + 1) + label)
            own_share = tl.load(tables + _BY_OWN * (num_classes + 1) + label)
            entropy = tl.sum(tl.where(valid, softmax_share * lse - own_share * own_logit - smooth, 0.0), 0)
        if FORM != "" and SCORES == "softmax":
            channel_logits = first
            for channel in range(num_classes):
                x = _logit(channel_logits, valid, a, b, c, d, down, across, UPSAMPLE)
                _store_features(row, x, lse, others / total, label, channel, weight, margin, num_classes, FORM, SCORES)
                channel_logits += stride_c
    tl.store(row + (ROWS - 1) * num_classes, entropy)


@triton.jit
def _slope(
    x, lse, lack, label, channel, weight, margin, by_sums, size, scale, FORM: tl.constexpr, SCORES: tl.constexpr
):
    """Scores, what they lack of 1, and the slope of the loss by them."""
    score, shortfall = _scores(x, lse, lack, SCORES)
    own = label == channel
    p = scale * tl.load(by_sums + channel)
    if FORM == "exponential":
        q = scale * tl.load(by_sums + size + channel)
        positive = -margin * p * tl.exp(margin * (shortfall - 1.0))
        negative = margin * q * tl.exp(margin * score)
    elif FORM == "square":
        p2 = scale * tl.load(by_sums + size + channel)
        q = scale * tl.load(by_sums + 2 * size + channel)
        q2 = scale * tl.load(by_sums + 3 * size + channel)
        positive = -(p + 2.0 * p2 * (shortfall + (margin - 1.0)))
        negative = q + 2.0 * q2 * score
    else:
        positive, negative = -p, scale * tl.load(by_sums + size + channel)
    return score, shortfall, tl.where(own, positive, negative * weight)


@triton.jit
def _gradient_kernel(
    logits, target, tables, risk_gradient, entropy_gradient, lse_map, gradient,
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
        weight = tl.load(tables + _WEIGHT * (num_classes + 1) + label)
    if CROSS_ENTROPY:
        entropy_scale = tl.load(entropy_gradient)
        softmax_share = entropy_scale * tl.load(tables + _BY_SOFTMAX * (num_classes + 1) + label)
        own_share = entropy_scale * tl.load(tables + _BY_OWN * (num_classes + 1) + label)
    scale = tl.load(risk_gradient)
    by_sums, size = tables + _BY_SUMS * (num_classes + 1), num_classes + 1
    mean = tl.zeros([BLOCK], tl.float32)
    lack, pivot = mean, mean
    if FORM != "" and SCORES == "softmax":
        # What the own score lacks of 1, and the mean of the slopes, from which the one of the largest score is
        # subtracted: see `aucseg.losses.auc.pixels.through_softmax`. The own channel, whose slope needs the lack, is
        # last.
        highest = tl.full([BLOCK], -3.0e38, tl.float32)
        own_logit = mean
        channel_logits = first
        for channel in range(num_classes):
            x = _logit(channel_logits, valid, a, b, c, d, down, across, UPSAMPLE)
            score, _, slope = _slope(x, lse, lack, label, channel, weight, margin, by_sums, size, scale, FORM, SCORES)
            own = label == channel
            own_logit = tl.where(own, x, own_logit)
            higher = (x > highest) & (label != channel)
            mean += tl.where(higher, lack * (pivot - slope), 0.0)
            pivot = tl.where(higher, slope, pivot)
            highest = tl.where(higher, x, highest)
            mean += tl.where(own, 0.0, score * (slope - pivot))
            lack += tl.where(own, 0.0, score)
            channel_logits += stride_c
        score, _, slope = _slope(own_logit, lse, lack, label, label, weight, margin, by_sums, size, scale, FORM, SCORES)
        higher = own_logit >= highest
        mean += tl.where(higher, lack * (pivot - slope), score * (slope - pivot))
        pivot = tl.where(higher, slope, pivot)
    channel_logits = first + (image * 0 + first_channel).to(tl.int64) * stride_c
    out = gradient + image.to(tl.int64) * out_b + pixels.to(tl.int64) * out_x
    for channel in range(first_channel, last_channel):
        x = _logit(channel_logits, valid, a, b, c, d, down, across, UPSAMPLE)
        value = tl.zeros([BLOCK], tl.float32)
        if FORM != "":
            score, shortfall, slope = _slope(
                x, lse, lack, label, channel, weight, margin, by_sums, size, scale, FORM, SCORES
            )
            value = (slope - pivot - mean) * score
            if SCORES == "sigmoid":
                value *= shortfall
        if CROSS_ENTROPY:
            value += tl.exp(x - lse) * softmax_share - tl.where(label == channel, own_share, 0.0)
            if SMOOTH:
                value -= entropy_scale * tl.load(tables + _BY_CHANNEL * size + channel)
        value = tl.where(valid, value, 0.0)
        if CLAMP:
            clamped = tl.minimum(tl.maximum(value, -limit), limit)
            value = tl.where(value == value, clamped, value)  # minimum and maximum drop a NaN
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


class _Passes:
    """The two passes over some logits and labels."""

    def __init__(self, logits: Tensor, target: Tensor, options: PassOptions) -> None:
        self._options, self._logits = options, logits
        self._upsample = logits.shape[2:] != target.shape[1:]
        planes = logits if self._upsample else as_planes(logits)
        if not self._upsample and planes.stride(1) == 1 and planes.shape[1] > _MOST_CHANNELS_LAST:
            planes = planes.contiguous()
        self._num_images, self.num_classes = planes.shape[:2]
        # At full size a pixel is a place in one row.
        size = (planes.shape[2], planes.shape[3]) if self._upsample else (1, planes.shape[2])
        full_size = (target.shape[1], target.shape[2]) if self._upsample else size
        self._size, self._full_size = size, full_size
        self._num_pixels = full_size[0] * full_size[1]
        stride_y = planes.stride(2) if self._upsample else 0
        self._strides = (planes.stride(0), planes.stride(1), stride_y, planes.stride(-1))
        self._planes, self._target = planes, _plain(target)
        block = _BLOCK_CHANNELS_LAST if planes.stride(1) == 1 and self.num_classes > 1 else _BLOCK
        self._num_blocks = triton.cdiv(self._num_pixels, block)
        self.num_rows = 2 * _NUM_FEATURES[options.form] + 1
        self._constants: dict[str, Any] = {
            "FORM": options.form,
            "SCORES": options.scores,
            "CROSS_ENTROPY": options.cross_entropy,
            "SMOOTH": options.label_smoothing > 0,
            "UPSAMPLE": self._upsample,
            "BLOCK": block,
        }

    def empty_tables(self) -> Tensor:
        """Memory for the tables by class."""
        shape = (_BY_SUMS.value + self.num_rows - 1, self.num_classes + 1)
        return torch.empty(shape, dtype=torch.float32, device=self._logits.device)

    def sums(self, tables: Tensor) -> tuple[Tensor, Tensor]:
        """Sums of features and of the cross-entropy, ``(2 J + 1, K)``, wide, and the log-sum-exp where it is needed."""
        device, options = self._logits.device, self._options
        shape = self._target.shape if options.needs_lse else (0,)
        lse = torch.empty(shape, dtype=torch.float32, device=device)
        # Of the last row only the first column is written, and used.
        num_programs = self._num_blocks * self._num_images
        partial = torch.empty(num_programs, self.num_rows, self.num_classes, dtype=torch.float32, device=device)
        if partial.numel():
            with torch.cuda.device_of(self._planes):
                _sums_kernel[self._num_blocks, self._num_images](
                    self._planes, self._target, tables, lse, partial,
                    self._num_pixels, self.num_classes, options.ignore_index, options.margin,
                    *self._size, *self._full_size, *self._strides,
                    **self._constants, ROWS=self.num_rows,
                )  # fmt: skip
        return partial.sum(0, dtype=wide_dtype(device)), lse

    def gradient(self, tables: Tensor, lse: Tensor, by_risk: Tensor, by_entropy: Tensor) -> Tensor:
        """The gradient by the logits, given those by the two losses (scalars)."""
        if not self._target.numel():
            return torch.zeros_like(self._logits)
        with torch.cuda.device_of(self._planes):
            return self._gradient(tables, lse, by_risk, by_entropy)

    def _gradient(self, *inputs: Tensor) -> Tensor:
        logits = self._logits
        if not self._upsample:
            planes = torch.empty_like(self._planes)
            self._fill(planes, slice(None), 0, self.num_classes, *inputs)
            found = planes.squeeze(0).t() if logits.dim() == 2 else planes.view(logits.shape)
            # The operators promise the layout of the logits.
            is_alike = found.stride() == torch.empty_like(logits, device="meta").stride()
            return found if is_alike else torch.empty_like(logits).copy_(found)
        result = torch.empty_like(logits)
        images = max(1, min(self._num_images, ACCELERATOR_PIECE // (self.num_classes * self._num_pixels)))
        channels = max(1, min(self.num_classes, ACCELERATOR_PIECE // (images * self._num_pixels)))
        for image in range(0, self._num_images, images):
            part = slice(image, image + images)
            for first in range(0, self.num_classes, channels):
                last = min(first + channels, self.num_classes)
                shape = (len(logits[part]), last - first, *self._full_size)
                full = torch.empty(shape, dtype=torch.float32, device=logits.device)
                self._fill(full.flatten(2), part, first, last, *inputs)
                folded = _fold(_fold(full, 2, self._size[0]), 3, self._size[1])
                if self._options.may_overflow(logits):
                    limit = torch.finfo(logits.dtype).max
                    folded.clamp_(-limit, limit)
                result[part, first:last] = folded
        return result

    def _fill(self, planes: Tensor, images: slice, first: int, last: int, *inputs: Tensor) -> None:
        tables, lse, by_risk, by_entropy = inputs
        _gradient_kernel[self._num_blocks, len(planes)](
            self._planes[images], self._target[images] if self._upsample else self._target,
            tables, by_risk, by_entropy, lse[images] if self._upsample else lse, planes,
            self._num_pixels, self.num_classes, first, last, self._options.ignore_index, self._options.margin,
            *self._size, *self._full_size, *self._strides,
            planes.stride(0), planes.stride(1), planes.stride(-1), torch.finfo(planes.dtype).max,
            **self._constants, CLAMP=self._options.may_overflow(planes),
        )  # fmt: skip


def _tables(
    logits: Tensor, weight: Tensor, class_weight: Tensor | None, options: PassOptions, *by_sums: Tensor
) -> Tensor:
    ce = CrossEntropyWeights(class_weight, logits, torch.float32, options)
    rows = torch.stack([weight.to(torch.float32), ce.by_softmax, ce.by_own, F.pad(ce.by_channel, (0, 1))])
    return torch.cat([rows, *(F.pad(table.to(torch.float32), (0, 1)) for table in by_sums)])


def sums(
    logits: Tensor, target: Tensor, weight: Tensor, class_weight: Tensor | None, options: PassOptions
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `aucseg.losses.auc.torch_passes.pixel_sums`."""
    total, lse = _Passes(logits, target, options).sums(_tables(logits, weight, class_weight, options))
    num_features = _NUM_FEATURES[options.form]
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
    weight: Tensor,
    class_weight: Tensor | None,
    options: PassOptions,
) -> Tensor:
    """See `aucseg.losses.auc.torch_passes.pixel_gradient`."""
    tables = _tables(logits, weight, class_weight, options, positive, negative)
    one = torch.ones((), dtype=torch.float32, device=logits.device)
    return _Passes(logits, target, options).gradient(tables, lse, one, entropy.to(torch.float32))


def _losses(
    logits: Tensor, target: Tensor, class_weight: Tensor | None, options: PassOptions, one_vs_all: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Both losses, and what their gradient needs: the tables and the log-sum-exp."""
    passes, device = _Passes(logits, target, options), logits.device
    num_classes = passes.num_classes
    block = triton.next_power_of_2(num_classes + 1)
    if class_weight is None:
        class_weight = torch.ones(num_classes, dtype=torch.float32, device=device)
    tables, wide = passes.empty_tables(), torch.empty(3, num_classes + 1, dtype=torch.float64, device=device)
    counts = _counts(target, num_classes, options.ignore_index)
    risk, entropy = (torch.empty((), dtype=torch.float32, device=device) for _ in range(2))
    with torch.cuda.device_of(logits):
        _weights_kernel[(1,)](
            counts, class_weight.contiguous(), tables, wide, num_classes, options.label_smoothing,
            ONE_VS_ALL=one_vs_all, BLOCK=block,
        )  # fmt: skip
        total, lse = passes.sums(tables)
        _risk_kernel[(1,)](
            total, wide, tables, risk, entropy, num_classes, FORM=options.form, ROWS=passes.num_rows, BLOCK=block
        )
    return risk, entropy, tables, lse


class _Objective(torch.autograd.Function):
    """`objective` with its gradient."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, target: Tensor, class_weight: Tensor | None, options: PassOptions, one_vs_all: bool
    ) -> tuple[Tensor, Tensor]:
        risk, entropy, tables, lse = _losses(logits, target, class_weight, options, one_vs_all)
        ctx.save_for_backward(logits, target, tables, lse)
        ctx.options = options
        return risk, entropy

    @staticmethod
    def backward(ctx: Any, by_risk: Tensor, by_entropy: Tensor) -> tuple[Tensor | None, ...]:
        return _Gradient.apply(*ctx.saved_tensors, ctx.options, by_risk, by_entropy), None, None, None, None


class _Gradient(torch.autograd.Function):
    """The gradient of `objective`, which has none of its own: ``create_graph=True`` is no error until it is used."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        target: Tensor,
        tables: Tensor,
        lse: Tensor,
        options: PassOptions,
        by_risk: Tensor,
        by_entropy: Tensor,
    ) -> Tensor:
        return _Passes(logits, target, options).gradient(tables, lse, by_risk, by_entropy)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> None:
        raise NotImplementedError(ONCE)


def objective(
    logits: Tensor, target: Tensor, class_weight: Tensor | None, options: PassOptions, one_vs_all: bool
) -> tuple[Tensor, Tensor]:
    """The AUC loss with uniform pair weights and the mean cross-entropy, 0 where not asked for; differentiable once.

    Args:
        logits: As for `sums`; at least 2 channels.
        target: As for `sums`.
        class_weight: ``(K,)``, of the cross-entropy.
        options: What to compute; `offered`.
        one_vs_all: One class against all others instead of one against one.
    """
    risk, entropy = _Objective.apply(logits, target, class_weight, options, one_vs_all)
    return risk, entropy


__all__ = ["counts", "gradient", "objective", "offered", "sums", "works_on"]
