"""What the Triton kernels see of a pixel's logits: its scores, their features and slopes.

Functions that `triton_kernels` builds its kernels of, on top of `aucseg.tensors.triton_pixels`.
"""

import triton
import triton.language as tl


@triton.jit
def scores(x, lse, lack, SCORES: tl.constexpr):
    """Scores `f` and what they lack of 1 (identity: of 0), both to full precision; with softmax `lack`.

    That is the sum of the channels but the own: 1 - f has lost its digits where f is close to 1.
    """
    if SCORES == "sigmoid":
        small = tl.exp(-tl.abs(x))
        large = 1.0 / (1.0 + small)
        small *= large
        score = tl.where(x >= 0, large, small)
        shortfall = tl.where(x >= 0, small, large)
        # Comparisons with NaN are false: without this it would be lost.
        return tl.where(x == x, score, x), tl.where(x == x, shortfall, x)
    elif SCORES == "identity":
        return x, -x
    else:
        return tl.exp(x - lse), lack


@triton.jit
def bounded_exp(x):
    """The exponential, within the range of the surrogate's."""
    if x.dtype == tl.float64:
        bounded = tl.minimum(tl.maximum(x, -350.0), 350.0)
        x = tl.where(x == x, bounded, x)  # minimum and maximum drop a NaN
    return tl.exp(x)


@triton.jit
def negative_feature(score, margin, FORM: tl.constexpr):
    """What a negative enters through: the exponential, or the score itself."""
    if FORM == "exponential":
        score = bounded_exp(margin * score)
    return score


@triton.jit
def positive_feature(shortfall, margin, FORM: tl.constexpr, SCORES: tl.constexpr):
    """What a positive enters through: the exponential, or the margin less the score."""
    top: tl.constexpr = 0.0 if SCORES == "identity" else 1.0
    if FORM == "exponential":
        return bounded_exp(margin * (shortfall - top))
    else:
        return shortfall + (margin - top)


@triton.jit
def twice_position(score, shortfall, own):
    """`2 (2 f - 1)`, of which Chebyshev polynomials are made; that of the own channel to full precision near 1."""
    return tl.where(own, 2.0 - 4.0 * shortfall, 4.0 * score - 2.0)


@triton.jit
def store_features(
    row, x, lse, lack, label, channel, weight, margin, num_classes,
    FORM: tl.constexpr, DEGREE: tl.constexpr, SCORES: tl.constexpr,
):  # fmt: skip
    """Sums the features of one channel over the block: of its positives, then of its weighted negatives."""
    own = label == channel
    score, shortfall = scores(x, lse, lack, SCORES)
    if FORM == "chebyshev":
        twice, before = twice_position(score, shortfall, own), tl.zeros_like(score) + 1.0
        now = 0.5 * twice
        for j in range(DEGREE):
            tl.store(row + j * num_classes + channel, tl.sum(tl.where(own, now, 0.0), 0))
            tl.store(row + (DEGREE + j) * num_classes + channel, tl.sum(tl.where(own, 0.0, now) * weight, 0))
            after = twice * now - before
            before, now = now, after
    else:
        positive = tl.where(own, positive_feature(shortfall, margin, FORM, SCORES), 0.0)
        negative = tl.where(own, 0.0, negative_feature(score, margin, FORM))
        tl.store(row + channel, tl.sum(positive, 0))
        if FORM == "square":
            tl.store(row + num_classes + channel, tl.sum(positive * positive, 0))
            tl.store(row + 2 * num_classes + channel, tl.sum(negative * weight, 0))
            tl.store(row + 3 * num_classes + channel, tl.sum(negative * negative * weight, 0))
        else:
            tl.store(row + num_classes + channel, tl.sum(negative * weight, 0))


@triton.jit
def slope_by_score(
    x, lse, lack, label, channel, weight, margin, by_sums, by_pairs, size, scale,
    FORM: tl.constexpr, DEGREE: tl.constexpr, SCORES: tl.constexpr, PAIRS: tl.constexpr,
):  # fmt: skip
    """Scores, what they lack of 1, and the slope of the loss by them.

    With `PAIRS` the slopes by the sums of negatives depend on the label too: `by_pairs` `(J, K + 1, K + 1)`.
    """
    score, shortfall = scores(x, lse, lack, SCORES)
    own = label == channel
    if FORM == "chebyshev":  # the derivative of T_j is j U_(j-1)
        twice = twice_position(score, shortfall, own)
        before, now = tl.zeros_like(score), tl.zeros_like(score) + 1.0
        slope = tl.zeros_like(score)
        for j in range(DEGREE):
            p = scale * tl.load(by_sums + j * size + channel)
            q = scale * tl.load(by_sums + (DEGREE + j) * size + channel)
            slope += (2.0 * (j + 1)) * now * tl.where(own, p, q * weight)
            after = twice * now - before
            before, now = now, after
        return score, shortfall, slope
    else:
        features: tl.constexpr = 2 if FORM == "square" else 1
        if PAIRS:
            negatives, step = by_pairs + channel * size + label, size * size
        else:
            negatives, step = by_sums + features * size + channel, size
        p, q = scale * tl.load(by_sums + channel), scale * tl.load(negatives)
        if FORM == "exponential":
            positive = -margin * p * positive_feature(shortfall, margin, FORM, SCORES)
            negative = margin * q * negative_feature(score, margin, FORM)
        elif FORM == "square":
            p2, q2 = scale * tl.load(by_sums + size + channel), scale * tl.load(negatives + step)
            positive = -(p + 2.0 * p2 * positive_feature(shortfall, margin, FORM, SCORES))
            negative = q + 2.0 * q2 * score
        else:
            positive, negative = -p, q
        if not PAIRS:
            negative = negative * weight
        return score, shortfall, tl.where(own, positive, negative)
