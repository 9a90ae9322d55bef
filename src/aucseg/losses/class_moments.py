"""The kernel of the AUC loss: sums over pixels, and the gradient that follows from them.

Channel c scores its own class (positives) against every other class a (negatives). With pair weights ``w[c, a]`` and a
separable surrogate (see `aucseg.losses.surrogates`) the loss is

    L = sum_c sum_jk C[j, k] P_j[c] Q_k[c],
    P_j[c] = mean of p_j(f_c) over the pixels of class c,
    Q_k[c] = sum over the other pixels x of  w[c, y(x)] / n_y(x)  q_k(f_c(x)).

For one-vs-one and one-vs-all the pair weights are a product ``w[c, a] = r_c s_a``, so every pixel carries one weight
``s_y / n_y`` for all channels: two passes over the logits (sums, gradient), work independent of the labels, and a state of a few
numbers per channel. The passes go through the logits in pieces that fit the cache and keep nothing but logits and labels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from aucseg.losses.surrogates import Separable

# Elements of one piece: a few buffers of this size stay in the cache of a CPU core; an accelerator wants fewer, larger launches.
CPU_CHUNK = 1 << 18
ACCELERATOR_CHUNK = 1 << 23


def accumulation_dtype(device: torch.device) -> torch.dtype:
    """float64, or float32 on a device that has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def compute_dtype(logits: Tensor, scores: str) -> torch.dtype:
    """Per-pixel arithmetic: float32 for bounded scores, float64 for unbounded ones and for float64 logits."""
    if logits.dtype == torch.float64 or scores == "identity":
        return accumulation_dtype(logits.device)
    return torch.float32


def as_planes(logits: Tensor) -> Tensor:
    """``(B, K, *spatial)`` or ``(N, K)`` as ``(B, K, P)``: a view for contiguous and channels-last logits."""
    return logits.t().unsqueeze(0) if logits.dim() == 2 else logits.flatten(2)


def label_planes(target: Tensor) -> Tensor:
    """``(B, *spatial)`` or ``(N,)`` as ``(B, P)``."""
    return target.unsqueeze(0) if target.dim() == 1 else target.flatten(1)


@dataclass
class Chunk:
    """A piece of the batch: ``images`` x all channels x ``pixels``."""

    images: slice
    pixels: slice

    def of(self, planes: Tensor) -> Tensor:
        """The piece of ``(B, K, P)`` or ``(B, P)``."""
        return planes[self.images, ..., self.pixels]


def chunks(planes: Tensor) -> Iterator[Chunk]:
    """Cut ``(B, K, P)`` into pieces of all channels: parts of one image, or several small images."""
    num_images, num_channels, num_pixels = planes.shape
    size = CPU_CHUNK if planes.device.type == "cpu" else ACCELERATOR_CHUNK
    pixels = max(1, size // max(num_channels, 1))
    images = max(1, pixels // max(num_pixels, 1))
    for image in range(0, num_images, images):
        for pixel in range(0, num_pixels, pixels):
            yield Chunk(slice(image, image + images), slice(pixel, min(pixel + pixels, num_pixels)))


def class_labels(target: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    """Labels as int64 with the ignore label mapped to ``num_classes``."""
    labels = target.to(torch.int64, copy=True)
    return labels.masked_fill_(target == ignore_index, num_classes)


def class_counts(target: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    """Pixels per class, ``(K,)`` in the accumulation dtype; ignored pixels are left out."""
    dtype = accumulation_dtype(target.device)
    counts = torch.zeros(num_classes + 1, dtype=dtype, device=target.device)
    for part in target.flatten().split(CPU_CHUNK if target.device.type == "cpu" else ACCELERATOR_CHUNK):
        labels = class_labels(part, num_classes, ignore_index)
        if target.device.type == "cpu":
            counts += torch.bincount(labels, minlength=num_classes + 1)
        else:  # bincount waits for the device
            counts.index_add_(0, labels, torch.ones((), dtype=dtype, device=target.device).expand_as(labels))
    return counts[:num_classes]


@dataclass
class PairWeights:
    """Pair weights ``w[c, a] = channel[c] * label[a]``, zero for absent classes.

    Attributes:
        channel: ``r``, ``(K,)``.
        label: ``s``, ``(K,)``.
        counts: ``n``, ``(K,)``.
    """

    channel: Tensor
    label: Tensor
    counts: Tensor

    def per_pixel(self) -> Tensor:
        """``s_a / n_a``, ``(K + 1,)``; the last entry, of ignored pixels, is 0."""
        return torch.nn.functional.pad(self.label / self.counts.clamp(min=1), (0, 1))

    def negative_mass(self) -> Tensor:
        """``sum of w[c, a]`` over the negatives of each channel, ``(K,)``."""
        return self.channel * (self.label.sum() - self.label)


def pair_weights(counts: Tensor, strategy: str, scored: Tensor | None = None) -> PairWeights:
    """Uniform weights over ordered pairs of present classes (``"ovo"``) or over present classes (``"ova"``).

    Args:
        counts: Pixels per class, ``(K,)``.
        strategy: ``"ovo"`` or ``"ova"``.
        scored: ``(K,)``, 1 for the channels that are scored; all by default.
    """
    present = (counts > 0).to(counts.dtype)
    if strategy == "ovo":
        label = present
        per_channel = torch.ones_like(present)
    else:
        label = counts
        per_channel = 1 / (counts.sum() - counts).clamp(min=1)
    others = (present.sum() > 1).to(counts.dtype)
    channel = present * others * per_channel * (1 if scored is None else scored)
    total = (channel * (label.sum() - label)).sum()
    return PairWeights(channel / torch.where(total > 0, total, torch.ones_like(total)), label, counts)


def scores_of(logits: Tensor, scores: str, out: Tensor) -> Tensor:
    """Scores of a piece ``(b, K, p)`` into ``out``."""
    if scores == "sigmoid":
        return torch.sigmoid(logits, out=out)
    if scores == "softmax":
        return torch.softmax(logits, 1, out=out)
    return out.copy_(logits)


def shortfall_of(logits: Tensor, values: Tensor, scores: str, positives: Tensor) -> Tensor:
    """``top - f`` of each pixel's own channel, ``(b, p)``."""
    if scores == "sigmoid":
        return torch.sigmoid(-logits.gather(1, positives).squeeze(1))
    own = values.gather(1, positives).squeeze(1)
    return 1 - own if scores == "softmax" else -own


def logits_gradient(gradient: Tensor, values: Tensor, scores: str) -> Tensor:
    """From the gradient by the scores to the gradient by the logits, of a piece ``(b, K, p)``."""
    if scores == "sigmoid":
        return torch.ops.aten.sigmoid_backward(gradient, values)
    if scores == "softmax":
        return torch.ops.aten._softmax_backward_data(gradient, values, 1, values.dtype)
    return gradient


def piece_logits(planes: Tensor, labels: Tensor, chunk: Chunk, num_classes: int, dtype: torch.dtype) -> Tensor:
    """The logits of a piece in the compute dtype; zero at ignored pixels, whatever stands there."""
    logits = chunk.of(planes).to(dtype)
    ignored = labels == num_classes
    if logits.device.type != "cpu" or bool(ignored.any()):
        logits = torch.where(ignored.unsqueeze(1), 0.0, logits)
    return logits


def pair_sums(
    planes: Tensor, target: Tensor, pixel_weight: Tensor, surrogate: Separable, scores: str, ignore_index: int
) -> tuple[Tensor, Tensor]:
    """Sums of the features over positives, and weighted sums over negatives.

    Args:
        planes: Logits ``(B, K, P)``.
        target: Labels ``(B, P)``.
        pixel_weight: Weight of a negative by its label, ``(K + 1,)``.
        surrogate: A separable surrogate.
        scores: The score function.
        ignore_index: The ignore label.

    Returns:
        ``(J, K)`` and ``(J', K)`` in the accumulation dtype.
    """
    num_classes = planes.shape[1]
    dtype = compute_dtype(planes, scores)
    wide = accumulation_dtype(planes.device)
    num_positive, num_negative = len(surrogate.coefficients) - 1, len(surrogate.coefficients[0]) - 1
    positive = torch.zeros(num_positive, num_classes + 1, dtype=wide, device=planes.device)
    negative = torch.zeros(num_negative, num_classes, dtype=wide, device=planes.device)
    pixel_weight = pixel_weight.to(dtype)
    for chunk in chunks(planes):
        labels = class_labels(chunk.of(target), num_classes, ignore_index)
        positives = labels.clamp(max=num_classes - 1).unsqueeze(1)
        logits = piece_logits(planes, labels, chunk, num_classes, dtype)
        values = scores_of(logits, scores, torch.empty_like(logits))
        features = surrogate.positive_features(shortfall_of(logits, values, scores, positives))
        for j, feature in enumerate(features):
            if planes.device.type == "cpu":
                positive[j] += torch.bincount(labels.flatten(), feature.flatten(), minlength=num_classes + 1)
            else:
                positive[j].index_add_(0, labels.flatten(), feature.flatten().to(wide))
        weight = pixel_weight[labels].unsqueeze(2)
        for k, feature in enumerate(surrogate.negative_features(values, positives)):
            negative[k] += torch.matmul(feature, weight).squeeze(2).sum(0, dtype=wide)
    return positive[:, :num_classes], negative


@dataclass
class LossTables:
    """The value of the loss and what its gradient needs per channel.

    Attributes:
        value: Scalar.
        positive: ``(J, K + 1)``: weight of the slope of ``p_j`` at a positive; the last column, of ignored pixels, is 0.
        negative: ``(J', K)``: weight of the slope of ``q_k`` at a negative, to be multiplied by the pixel's weight.
    """

    value: Tensor
    positive: Tensor
    negative: Tensor


def loss_tables(positive: Tensor, negative: Tensor, weights: PairWeights, surrogate: Separable) -> LossTables:
    """Combine the sums into the loss."""
    coefficients = torch.tensor(surrogate.coefficients, dtype=positive.dtype, device=positive.device)
    counts = weights.counts.clamp(min=1)
    p = torch.cat([torch.ones_like(counts)[None], positive / counts])
    q = torch.cat([weights.negative_mass()[None], negative * weights.channel])
    by_positive = coefficients @ q
    by_negative = coefficients.t() @ p
    return LossTables(
        value=(p * by_positive).sum(),
        positive=torch.nn.functional.pad(by_positive[1:] / counts, (0, 1)),
        negative=by_negative[1:] * weights.channel,
    )


def pair_gradient(
    planes: Tensor,
    target: Tensor,
    pixel_weight: Tensor,
    tables: LossTables,
    surrogate: Separable,
    scores: str,
    ignore_index: int,
    out: Tensor,
) -> Tensor:
    """Write the gradient by the logits into ``out`` ``(B, K, P)``."""
    num_classes = planes.shape[1]
    dtype = compute_dtype(planes, scores)
    pixel_weight = pixel_weight.to(dtype)
    positive = tables.positive.to(dtype)
    negative = tables.negative.to(dtype).unsqueeze(2)
    for chunk in chunks(planes):
        labels = class_labels(chunk.of(target), num_classes, ignore_index)
        positives = labels.clamp(max=num_classes - 1).unsqueeze(1)
        logits = piece_logits(planes, labels, chunk, num_classes, dtype)
        values = scores_of(logits, scores, torch.empty_like(logits))
        slope = surrogate.positive_slope(shortfall_of(logits, values, scores, positives), positive[:, labels])
        gradient = surrogate.negative_slope(values, negative, torch.empty_like(values))
        gradient.mul_(pixel_weight[labels].unsqueeze(1)).scatter_(1, positives, slope.unsqueeze(1))
        chunk.of(out).copy_(logits_gradient(gradient, values, scores))
    return out
