"""Triton kernels of the passes over the pixels, for CUDA: each reads the logits once. `triton_passes` launches them.

With operations of torch every score, feature and weight is a tensor that travels to the memory and back; here it stays
in registers. A program takes a block of pixels and walks through their channels. What it sums it writes to a row of its
own, so nothing is added up in an order that changes from run to run.

Logits smaller than the target are upsampled on the way, each pixel from its four neighbours. Their gradient is made at
full size, a piece at a time, and folded back, first rows, then columns.
"""

import triton
import triton.language as tl


@triton.jit
def _label(target, image, pixels, num_pixels, num_classes, ignore_index):
    """Labels of a block of pixels, ``num_classes`` for those that do not count."""
    inside = pixels < num_pixels
    label = tl.load(target + image.to(tl.int64) * num_pixels + pixels, mask=inside, other=0).to(tl.int64)
    valid = inside & (label != ignore_index) & (label >= 0) & (label < num_classes)
    return tl.where(valid, label, num_classes).to(tl.int32)


@triton.jit
def count_kernel(target, partial, num_pixels, num_classes, ignore_index, BLOCK: tl.constexpr):
    """A row of ``partial`` ``(programs, K + 1)``: pixels of each class, and labels that are none."""
    block = tl.program_id(0).to(tl.int64)
    pixels = block * BLOCK + tl.arange(0, BLOCK)
    label = _label(target, block * 0, pixels, num_pixels, num_classes, ignore_index)
    row = partial + block * (num_classes + 1)
    for channel in range(num_classes):
        tl.store(row + channel, tl.sum((label == channel).to(tl.int32), 0))
    original = tl.load(target + pixels, mask=pixels < num_pixels, other=0).to(tl.int64)
    bad = (label == num_classes) & (original != ignore_index) & (pixels < num_pixels)
    tl.store(row + num_classes, tl.sum(bad.to(tl.int32), 0))


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
_WEIGHT, _BY_SOFTMAX, _BY_OWN, _BY_CHANNEL, BY_SUMS = (tl.constexpr(row) for row in range(5))


@triton.jit
def weights_kernel(
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
def risk_kernel(
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
        out = tables + BY_SUMS * size + channel
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
def sums_kernel(
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
def gradient_kernel(
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
    by_sums, size = tables + BY_SUMS * (num_classes + 1), num_classes + 1
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
def fold_kernel(full, folded, num_elements, size, full_size, num_inner, num_taps, BLOCK: tl.constexpr):
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
