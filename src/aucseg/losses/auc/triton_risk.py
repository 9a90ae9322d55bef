"""The formula on a GPU: what `aucseg.losses.auc.pair_risk` does with tensors of K numbers, one program does at once.

Functions that `triton_kernels` builds its kernels of. They take no launch of their own: the last program of a pass goes
on with them, or one program follows it.
"""

import triton
import triton.language as tl

# Rows of the tables by class, `(4 + 2 J, K + 1)`, in the dtype of the arithmetic; the last column is that of ignored
# pixels: weight of a negative by its label; of the cross-entropy the weights of the log-sum-exp, of the own logit, of
# every logit (label smoothing); then the gradient by the sums of the J features of positives, and by those of
# negatives.
WEIGHT, BY_SOFTMAX, BY_OWN, BY_CHANNEL, BY_SUMS = (tl.constexpr(row) for row in range(5))


@triton.jit
def set_weights(
    counts, class_weight, tables, wide, num_classes, smoothing, scale,
    CLASS_WEIGHT: tl.constexpr, ONE_VS_ALL: tl.constexpr, CLASSES: tl.constexpr,
):  # fmt: skip
    """The weights among `tables`, and in `wide` `(3, K + 1)`, float64, by channel: 1 / pixels, weight, mass.

    The formulas are those of `aucseg.losses.auc.pair_risk.PairWeights.uniform`, and the means of the cross-entropy,
    which is multiplied by `scale`.
    """
    kind: tl.constexpr = tables.dtype.element_ty
    channel = tl.arange(0, CLASSES)
    inside, stored, size = channel < num_classes, channel <= num_classes, num_classes + 1
    count = tl.load(counts + channel, mask=inside, other=0, cache_modifier=".cg").to(tl.float64)
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
    tl.store(tables + WEIGHT * size + channel, (label * inverse).to(kind), mask=stored)
    share = tl.where(inside, 1.0, 0.0).to(tl.float64)
    if CLASS_WEIGHT:
        share = tl.load(class_weight + channel, mask=inside, other=0.0).to(tl.float64)
    share_sum = tl.sum(share * count, 0)
    share = tl.where(share_sum > 0, scale * share / tl.where(share_sum > 0, share_sum, 1.0), 0.0)
    own, smooth = (1.0 - smoothing) * share, smoothing / num_classes * share
    softmax = tl.where(inside, own + tl.sum(smooth, 0), 0.0)
    tl.store(tables + BY_SOFTMAX * size + channel, softmax.to(kind), mask=stored)
    tl.store(tables + BY_OWN * size + channel, own.to(kind), mask=stored)
    tl.store(tables + BY_CHANNEL * size + channel, smooth.to(kind), mask=stored)


@triton.jit
def summed(sums, row, columns, num_rows, num_parts, num_classes, CLASSES: tl.constexpr, PARTS: tl.constexpr):
    """The first columns of a row of `sums` `(parts, rows, K)`, added up over the parts, float64."""
    channel, total = tl.arange(0, CLASSES), tl.zeros([CLASSES], tl.float64)
    for first in range(0, num_parts, PARTS):
        part = first + tl.arange(0, PARTS)
        inside = (part < num_parts)[:, None] & (channel < columns)[None, :]
        place = sums + (part[:, None] * num_rows + row) * num_classes + channel[None, :]
        total += tl.sum(tl.load(place, mask=inside, other=0.0, cache_modifier=".cg").to(tl.float64), 0)
    return total


@triton.jit
def set_risk(
    sums, num_parts, coefficients, wide, tables, loss, num_classes, scale, limit,
    FORM: tl.constexpr, DEGREE: tl.constexpr, ROWS: tl.constexpr, CLASSES: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """The loss from the sums, and among `tables` its gradient by those of the features; the AUC loss `scale` fold.

    The formula is that of `aucseg.losses.auc.pair_risk.pair_risk`.
    """
    kind: tl.constexpr = tables.dtype.element_ty
    channel = tl.arange(0, CLASSES)
    # Beyond the classes, where ignored pixels look, zeros are stored.
    inside, stored, size = channel < num_classes, channel <= num_classes, num_classes + 1
    value = tl.zeros([CLASSES], tl.float64)
    if FORM != "":
        inverse = tl.load(wide + channel, mask=inside, other=0.0, cache_modifier=".cg")
        weight = scale * tl.load(wide + size + channel, mask=inside, other=0.0, cache_modifier=".cg")
        mass = scale * tl.load(wide + 2 * size + channel, mask=inside, other=0.0, cache_modifier=".cg")
        negative: tl.constexpr = (ROWS - 1) // 2
        out = tables + BY_SUMS * size + channel
        if FORM == "chebyshev":
            # Degrees 0 are 1 and the mass of the negatives.
            for j in range(DEGREE + 1):
                p = tl.full([CLASSES], 1.0, tl.float64)
                if j > 0:
                    p = inverse * summed(sums, j - 1, num_classes, ROWS, num_parts, num_classes, CLASSES, PARTS)
                by_p, by_q = tl.zeros([CLASSES], tl.float64), tl.zeros([CLASSES], tl.float64)
                for k in range(DEGREE + 1):
                    q, other = mass, tl.full([CLASSES], 1.0, tl.float64)
                    if k > 0:
                        q = weight * summed(
                            sums, negative + k - 1, num_classes, ROWS, num_parts, num_classes, CLASSES, PARTS
                        )
                        other = inverse * summed(sums, k - 1, num_classes, ROWS, num_parts, num_classes, CLASSES, PARTS)
                    by_p += tl.load(coefficients + j * (DEGREE + 1) + k) * q
                    by_q += tl.load(coefficients + k * (DEGREE + 1) + j) * other
                value += p * by_p
                if j > 0:
                    tl.store(out + (j - 1) * size, (by_p * inverse).to(kind), mask=stored)
                    tl.store(out + (negative + j - 1) * size, (by_q * weight).to(kind), mask=stored)
        else:
            p = inverse * summed(sums, 0, num_classes, ROWS, num_parts, num_classes, CLASSES, PARTS)
            q = weight * summed(sums, negative, num_classes, ROWS, num_parts, num_classes, CLASSES, PARTS)
            if FORM == "square":
                p2 = inverse * summed(sums, 1, num_classes, ROWS, num_parts, num_classes, CLASSES, PARTS)
                q2 = weight * summed(sums, negative + 1, num_classes, ROWS, num_parts, num_classes, CLASSES, PARTS)
                value = 0.5 * q2 + p * q + 0.5 * p2 * mass
                tl.store(out, (q * inverse).to(kind), mask=stored)
                tl.store(out + size, (0.5 * mass * inverse).to(kind), mask=stored)
                tl.store(out + 2 * size, (p * weight).to(kind), mask=stored)
                tl.store(out + 3 * size, (0.5 * weight).to(kind), mask=stored)
            elif FORM == "linear":
                value = q + p * mass
                tl.store(out, (mass * inverse).to(kind), mask=stored)
                tl.store(out + size, weight.to(kind), mask=stored)
            else:
                value = p * q
                tl.store(out, (q * inverse).to(kind), mask=stored)
                tl.store(out + size, (p * weight).to(kind), mask=stored)
    # The cross-entropy is in the first column.
    entropy = summed(sums, ROWS - 1, 1, ROWS, num_parts, num_classes, CLASSES, PARTS)
    total = tl.sum(value, 0) + tl.sum(entropy, 0)
    bounded = tl.minimum(total, limit)
    total = tl.where(total == total, bounded, total)  # minimum drops a NaN
    tl.store(loss, total.to(loss.dtype.element_ty))
