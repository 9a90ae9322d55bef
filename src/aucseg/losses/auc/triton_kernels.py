"""Triton kernels of the passes over the pixels, for CUDA: each reads the logits once. `triton_passes` launches them.

With operations of torch every score, feature and weight is a tensor that travels to the memory and back; here it stays
in registers. A program takes a block of pixels and walks through their channels. What it sums it writes to a row of its
own, so nothing is added up in an order that changes from run to run.

Logits smaller than the target are upsampled on the way, each pixel from its four neighbours. Their gradient is made at
full size, a piece at a time, and folded back, first rows, then columns.
"""

import triton
import triton.language as tl

from aucseg.losses.auc.triton_features import negative_feature, scores, slope_by_score, store_features
from aucseg.losses.auc.triton_risk import (
    BY_CHANNEL,
    BY_OWN,
    BY_SOFTMAX,
    BY_SUMS,
    WEIGHT,
    set_risk,
    set_weights,
)
from aucseg.tensors.triton_pixels import label_of, logit, neighbours, places


@triton.jit
def is_last(ticket, num_programs):
    """Whether all other programs of the launch have done their work, and what they wrote is to be seen."""
    tl.debug_barrier()
    return tl.atomic_add(ticket, 1) == num_programs - 1


@triton.jit
def count_kernel(
    target, counts, fine, class_weight, tables, wide, num_pixels, num_classes, ignore_index, smoothing, scale,
    WEIGHTS: tl.constexpr, CLASS_WEIGHT: tl.constexpr, ONE_VS_ALL: tl.constexpr,
    CLASSES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Adds to `counts` `(K + 2,)` the pixels of each class, invalid labels, and programs that are done.

    The last program says in `fine` whether all labels are good; with `WEIGHTS` it goes on to `set_weights`.
    """
    block = tl.program_id(0).to(tl.int64)
    pixels = block * BLOCK + tl.arange(0, BLOCK)
    label = label_of(target, block * 0, pixels, num_pixels, num_classes, ignore_index)
    for channel in range(num_classes):
        count = tl.sum((label == channel).to(tl.int32), 0).to(tl.int64)
        tl.atomic_add(counts + channel, count, mask=count > 0)
    original = tl.load(target + pixels, mask=pixels < num_pixels, other=0).to(tl.int64)
    bad = (label == num_classes) & (original != ignore_index) & (pixels < num_pixels)
    count = tl.sum(bad.to(tl.int32), 0).to(tl.int64)
    tl.atomic_add(counts + num_classes, count, mask=count > 0)
    if is_last(counts + num_classes + 1, tl.num_programs(0)):
        tl.store(fine, (tl.load(counts + num_classes, cache_modifier=".cg") == 0).to(tl.int32))
        if WEIGHTS:
            set_weights(
                counts, class_weight, tables, wide, num_classes, smoothing, scale, CLASS_WEIGHT, ONE_VS_ALL, CLASSES
            )


@triton.jit
def risk_kernel(
    sums, num_parts, coefficients, wide, tables, loss, num_classes, scale, limit,
    FORM: tl.constexpr, DEGREE: tl.constexpr, ROWS: tl.constexpr, CLASSES: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """`set_risk` in a launch of its own."""
    set_risk(
        sums, num_parts, coefficients, wide, tables, loss, num_classes, scale, limit,
        FORM, DEGREE, ROWS, CLASSES, PARTS,
    )  # fmt: skip


@triton.jit
def sums_kernel(
    logits, target, tables, lse_map, partial, ticket, wide, loss, scale, limit,
    num_pixels, num_classes, ignore_index, height, width, full_height, full_width,
    stride_b, stride_c, stride_y, stride_x,
    FORM: tl.constexpr, DEGREE: tl.constexpr, MARGIN: tl.constexpr, SCORES: tl.constexpr, CROSS_ENTROPY: tl.constexpr,
    SMOOTH: tl.constexpr, UPSAMPLE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
    CLASSES: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """A row of `partial` `(programs, ROWS, K)`: features of positives, features of negatives, cross-entropy.

    With `PARTS` the last program goes on to `set_risk`.
    """
    kind: tl.constexpr = tables.dtype.element_ty
    block, image = tl.program_id(0), tl.program_id(1)
    pixels = block * BLOCK + tl.arange(0, BLOCK)
    label = label_of(target, image, pixels, num_pixels, num_classes, ignore_index)
    valid = label < num_classes
    a, b, c, d, down, across = places(
        pixels, height, width, full_height, full_width, stride_y, stride_x, UPSAMPLE, kind
    )
    first = logits + image.to(tl.int64) * stride_b
    row = partial + (image.to(tl.int64) * tl.num_programs(0) + block) * (ROWS * num_classes)
    weight = tl.zeros([BLOCK], kind)
    if FORM != "":
        weight = tl.load(tables + WEIGHT * (num_classes + 1) + label)
    highest = tl.full([BLOCK], -3.0e38, kind)
    total = tl.zeros([BLOCK], kind)
    others = tl.zeros([BLOCK], kind)
    own_logit = tl.zeros([BLOCK], kind)
    smooth = tl.zeros([BLOCK], kind)
    channel_logits = first
    for channel in range(num_classes):
        x = logit(channel_logits, valid, a, b, c, d, down, across, UPSAMPLE, kind)
        if CROSS_ENTROPY or SCORES == "softmax":
            before = highest
            highest = tl.maximum(highest, x)
            total = total * tl.exp(before - highest) + tl.exp(x - highest)
            if SCORES == "softmax":
                others = others * tl.exp(before - highest) + tl.where(label == channel, 0.0, tl.exp(x - highest))
            own_logit = tl.where(label == channel, x, own_logit)
            if SMOOTH:
                smooth += tl.load(tables + BY_CHANNEL * (num_classes + 1) + channel) * x
        if FORM != "" and SCORES != "softmax":
            store_features(row, x, x, x, label, channel, weight, MARGIN, num_classes, FORM, DEGREE, SCORES)
        channel_logits += stride_c
    entropy = tl.zeros([BLOCK], kind)
    if CROSS_ENTROPY or SCORES == "softmax":
        above = tl.log(total)
        lse = highest + above
        tl.store(lse_map + image.to(tl.int64) * num_pixels + pixels, lse, mask=pixels < num_pixels)
        if CROSS_ENTROPY:
            softmax_share = tl.load(tables + BY_SOFTMAX * (num_classes + 1) + label)
            own_share = tl.load(tables + BY_OWN * (num_classes + 1) + label)
            # The sum has lost digits of what the log-sum-exp is above the highest logit.
            entropy = own_share * ((highest - own_logit) + above)
            if SMOOTH:
                entropy += (softmax_share - own_share) * lse - smooth
            entropy = tl.where(valid, entropy, 0.0)
        if FORM != "" and SCORES == "softmax":
            channel_logits = first
            for channel in range(num_classes):
                x = logit(channel_logits, valid, a, b, c, d, down, across, UPSAMPLE, kind)
                store_features(
                    row, x, lse, others / total, label, channel, weight, MARGIN, num_classes, FORM, DEGREE, SCORES
                )
                channel_logits += stride_c
    tl.store(row + (ROWS - 1) * num_classes, tl.sum(entropy, 0))
    if PARTS > 0:
        num_programs = tl.num_programs(0) * tl.num_programs(1)
        if is_last(ticket, num_programs):
            set_risk(
                partial, num_programs, tables, wide, tables, loss, num_classes, scale, limit,
                FORM, DEGREE, ROWS, CLASSES, PARTS,
            )  # fmt: skip


@triton.jit
def pair_sums_kernel(
    logits, target, lse_map, partial,
    num_pixels, num_classes, ignore_index, first_run, num_runs, height, width, full_height, full_width,
    stride_b, stride_c, stride_y, stride_x,
    FORM: tl.constexpr, MARGIN: tl.constexpr, SCORES: tl.constexpr, UPSAMPLE: tl.constexpr,
    BLOCKS: tl.constexpr, BLOCK: tl.constexpr, CHANNELS: tl.constexpr, LABELS: tl.constexpr,
):  # fmt: skip
    """A row of `partial` `(programs, J, K, K)`: features of negatives by channel and label.

    They are the product of the features, channel by pixel, and the one-hot labels, pixel by label. A program takes a
    run of `BLOCKS` blocks of pixels, some channels and some labels.
    """
    kind: tl.constexpr = tl.float32
    program = tl.program_id(0).to(tl.int64)
    image, run = (first_run + program) // num_runs, (first_run + program) % num_runs
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    wanted = tl.program_id(2) * LABELS + tl.arange(0, LABELS)
    channels = logits + image * stride_b + (channel.to(tl.int64) * stride_c)[:, None]
    sums = tl.zeros([CHANNELS, LABELS], kind)
    squares = tl.zeros([CHANNELS, LABELS], kind)
    for block in range(BLOCKS):
        pixels = (run * BLOCKS + block).to(tl.int32) * BLOCK + tl.arange(0, BLOCK)
        label = label_of(target, image, pixels, num_pixels, num_classes, ignore_index)
        a, b, c, d, down, across = places(
            pixels, height, width, full_height, full_width, stride_y, stride_x, UPSAMPLE, kind
        )
        counted = (channel < num_classes)[:, None] & (label < num_classes)[None, :]
        x = logit(
            channels, counted, a[None, :], b[None, :], c[None, :], d[None, :], down[None, :], across[None, :],
            UPSAMPLE, kind,
        )  # fmt: skip
        lse = tl.zeros([BLOCK], kind)
        if SCORES == "softmax":
            lse = tl.load(lse_map + image * num_pixels + pixels, mask=label < num_classes, other=0.0)
        score, _ = scores(x, lse[None, :], x, SCORES)
        score = negative_feature(score, MARGIN, FORM)
        score = tl.where(counted & (label[None, :] != channel[:, None]), score, 0.0)
        is_label = (label[:, None] == wanted[None, :]).to(kind)
        # Not TensorFloat-32, which loses digits.
        sums += tl.dot(score, is_label, input_precision="ieee")
        if FORM == "square":
            squares += tl.dot(score * score, is_label, input_precision="ieee")
    features: tl.constexpr = 2 if FORM == "square" else 1
    out = partial + program * features * num_classes * num_classes + channel[:, None] * num_classes + wanted[None, :]
    inside = (channel < num_classes)[:, None] & (wanted < num_classes)[None, :]
    tl.store(out, sums, mask=inside)
    if FORM == "square":
        tl.store(out + num_classes * num_classes, squares, mask=inside)


@triton.jit
def gradient_kernel(
    logits, target, tables, by_pairs, risk_gradient, entropy_gradient, lse_map, gradient,
    num_pixels, num_classes, first_channel, last_channel, ignore_index,
    height, width, full_height, full_width,
    stride_b, stride_c, stride_y, stride_x, out_b, out_c, out_x, limit,
    FORM: tl.constexpr, DEGREE: tl.constexpr, MARGIN: tl.constexpr, SCORES: tl.constexpr, CROSS_ENTROPY: tl.constexpr,
    SMOOTH: tl.constexpr, UPSAMPLE: tl.constexpr, PAIRS: tl.constexpr, CLAMP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The gradient of channels `first_channel..last_channel - 1` at the target's size."""
    kind: tl.constexpr = tables.dtype.element_ty
    block, image = tl.program_id(0), tl.program_id(1)
    pixels = block * BLOCK + tl.arange(0, BLOCK)
    label = label_of(target, image, pixels, num_pixels, num_classes, ignore_index)
    valid = label < num_classes
    a, b, c, d, down, across = places(
        pixels, height, width, full_height, full_width, stride_y, stride_x, UPSAMPLE, kind
    )
    first = logits + image.to(tl.int64) * stride_b
    lse = tl.zeros([BLOCK], kind)
    weight = lse
    if CROSS_ENTROPY or SCORES == "softmax":
        lse = tl.load(lse_map + image.to(tl.int64) * num_pixels + pixels, mask=valid, other=0.0)
    if FORM != "":
        weight = tl.load(tables + WEIGHT * (num_classes + 1) + label)
    if CROSS_ENTROPY:
        entropy_scale = tl.load(entropy_gradient)
        softmax_share = entropy_scale * tl.load(tables + BY_SOFTMAX * (num_classes + 1) + label)
        own_share = entropy_scale * tl.load(tables + BY_OWN * (num_classes + 1) + label)
    scale = tl.load(risk_gradient)
    by_sums, size = tables + BY_SUMS * (num_classes + 1), num_classes + 1
    mean = tl.zeros([BLOCK], kind)
    lack, pivot = mean, mean
    if FORM != "" and SCORES == "softmax":
        # What the own score lacks of 1, and the mean of the slopes, from which the one of the largest score is
        # subtracted: see `aucseg.losses.auc.pixels.through_softmax`. The own channel, whose slope needs the lack, is
        # last.
        highest = tl.full([BLOCK], -3.0e38, kind)
        own_logit = mean
        channel_logits = first
        for channel in range(num_classes):
            x = logit(channel_logits, valid, a, b, c, d, down, across, UPSAMPLE, kind)
            score, _, slope = slope_by_score(
                x, lse, lack, label, channel, weight, MARGIN, by_sums, by_pairs, size, scale,
                FORM, DEGREE, SCORES, PAIRS,
            )  # fmt: skip
            own = label == channel
            own_logit = tl.where(own, x, own_logit)
            higher = (x > highest) & (label != channel)
            mean += tl.where(higher, lack * (pivot - slope), 0.0)
            pivot = tl.where(higher, slope, pivot)
            highest = tl.where(higher, x, highest)
            mean += tl.where(own, 0.0, score * (slope - pivot))
            lack += tl.where(own, 0.0, score)
            channel_logits += stride_c
        score, _, slope = slope_by_score(
            own_logit, lse, lack, label, label, weight, MARGIN, by_sums, by_pairs, size, scale,
            FORM, DEGREE, SCORES, PAIRS,
        )  # fmt: skip
        higher = own_logit >= highest
        mean += tl.where(higher, lack * (pivot - slope), score * (slope - pivot))
        pivot = tl.where(higher, slope, pivot)
    elif CROSS_ENTROPY:
        channel_logits = first
        for channel in range(num_classes):
            x = logit(channel_logits, valid, a, b, c, d, down, across, UPSAMPLE, kind)
            lack += tl.where(label == channel, 0.0, tl.exp(x - lse))
            channel_logits += stride_c
    channel_logits = first + (image * 0 + first_channel).to(tl.int64) * stride_c
    out = gradient + image.to(tl.int64) * out_b + pixels.to(tl.int64) * out_x
    for channel in range(first_channel, last_channel):
        x = logit(channel_logits, valid, a, b, c, d, down, across, UPSAMPLE, kind)
        value = tl.zeros([BLOCK], kind)
        if FORM != "":
            score, shortfall, value = slope_by_score(
                x, lse, lack, label, channel, weight, MARGIN, by_sums, by_pairs, size, scale,
                FORM, DEGREE, SCORES, PAIRS,
            )  # fmt: skip
            if SCORES == "sigmoid":
                value *= score * shortfall
            elif SCORES == "softmax":
                value = (value - pivot - mean) * score
        if CROSS_ENTROPY:
            # Of the own class p - 1, which has lost its digits where p is close to 1.
            value += tl.where(
                label == channel, (softmax_share - own_share) - lack * softmax_share, tl.exp(x - lse) * softmax_share
            )
            if SMOOTH:
                value -= entropy_scale * tl.load(tables + BY_CHANNEL * size + channel)
        value = tl.where(valid, value, 0.0)
        if CLAMP:
            clamped = tl.minimum(tl.maximum(value, -limit), limit)
            value = tl.where(value == value, clamped, value)  # minimum and maximum drop a NaN
        if gradient.dtype.element_ty != tl.float64:
            value = value.to(tl.float32)  # there is no direct way from float64 to half precision
        tl.store(out, value.to(gradient.dtype.element_ty), mask=pixels < num_pixels)
        channel_logits += stride_c
        out += out_c


@triton.jit
def fold_kernel(full, folded, num_elements, size, full_size, num_inner, num_taps, BLOCK: tl.constexpr):
    """The transpose of upsampling the middle of three dimensions: `(n, full_size, inner) -> (n, size, inner)`."""
    element = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = element < num_elements
    inner = element % num_inner
    place = ((element // num_inner) % size).to(tl.int32)
    source = full + (element // num_inner // size) * full_size * num_inner + inner
    # Every position that has `place` among its two neighbours lies in a window of `num_taps`.
    start = tl.maximum(((2 * place - 1) * full_size - size) // (2 * size), 0)
    total = tl.zeros([BLOCK], full.dtype.element_ty)
    for tap in range(num_taps):
        position = start + tap
        low, high, share = neighbours(position, size, full_size, full.dtype.element_ty)
        weight = tl.where(low == place, 1.0 - share, 0.0) + tl.where(high == place, share, 0.0)
        used = inside & (position < full_size) & (weight > 0)
        total += weight * tl.load(source + position.to(tl.int64) * num_inner, mask=used, other=0.0)
    tl.store(folded + element, total, mask=inside)
