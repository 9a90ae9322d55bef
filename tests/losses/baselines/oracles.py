"""Naive implementations of the published formulas, and the options each loss is compared with."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]
COUNTS = np.array([50_000.0, 3_000.0, 400.0, 20.0])
NUM_CLASSES = len(COUNTS)


def softmax(z: Array) -> Array:
    e = np.exp(z - z.max())
    return np.asarray(e / e.sum())


def cross_entropies(z: Array, y: NDArray[np.int64]) -> Array:
    return np.array([-math.log(softmax(row)[label]) for row, label in zip(z, y, strict=True)])


def effective(counts: Array) -> Array:
    """1 / sum of beta^i for i < n, by the geometric series itself, with beta = 1 - 1 / median."""
    beta = 1 - 1 / np.median(counts)
    weights = 1 / np.array([(beta ** np.arange(n)).sum() for n in counts])
    return np.asarray(weights * len(counts) / weights.sum())


def weighted(weights: Array) -> Callable[[Array, NDArray[np.int64]], float]:
    return lambda z, y: float((weights[y] * cross_entropies(z, y)).sum() / weights[y].sum())


def focal(z: Array, y: NDArray[np.int64]) -> float:
    p = [softmax(row)[label] for row, label in zip(z, y, strict=True)]
    return float(np.mean([-((1 - q) ** 2) * math.log(q) for q in p]))


def sigmoid_focal(z: Array, y: NDArray[np.int64]) -> float:
    total = 0.0
    for row, label in zip(z, y, strict=True):
        for c, logit in enumerate(row):
            p = 1 / (1 + math.exp(-logit))
            p = p if c == label else 1 - p
            total -= (1 - p) ** 1.5 * math.log(p)
    return total / len(y)


def class_balanced_focal(z: Array, y: NDArray[np.int64]) -> float:
    weights = effective(COUNTS)
    return float(np.mean([weights[label] * focal(row[None], label[None]) for row, label in zip(z, y, strict=True)]))


def ohem(z: Array, y: NDArray[np.int64]) -> float:
    losses = np.sort(cross_entropies(z, y))[::-1]
    hard = losses[losses >= -math.log(0.2)]
    return float(np.mean(losses[: max(len(hard), math.ceil(0.3 * len(y)))]))


def ldam(
    z: Array, y: NDArray[np.int64], weights: Array | None = None, *, largest: float = 0.5, scale: float = 2.0
) -> float:
    margin = COUNTS**-0.25
    margin *= largest / margin.max()
    shifted = z.copy()
    for row, label in enumerate(y):
        shifted[row, label] -= margin[label]
    losses = cross_entropies(scale * shifted, y)
    return float(losses.mean() if weights is None else (weights[y] * losses).sum() / weights[y].sum())


def adjusted(tau: float) -> Callable[[Array, NDArray[np.int64]], float]:
    return lambda z, y: float(cross_entropies(z + tau * np.log(COUNTS / COUNTS.sum()), y).mean())


def balanced_softmax(z: Array, y: NDArray[np.int64]) -> float:
    p = [COUNTS[c] * np.exp(row[c]) / (COUNTS * np.exp(row)).sum() for row, c in zip(z, y, strict=True)]
    return float(-np.log(p).mean())


def vs(gamma: float, tau: float) -> Callable[[Array, NDArray[np.int64]], float]:
    delta, iota = (COUNTS / COUNTS.max()) ** gamma, tau * np.log(COUNTS / COUNTS.sum())
    return lambda z, y: float(cross_entropies(delta * z + iota, y).mean())


def seesaw(z: Array, y: NDArray[np.int64], constant: Array) -> float:
    total = 0.0
    for row, constant_row, label in zip(z, constant, y, strict=True):
        p = softmax(constant_row)
        denominator = 0.0
        for c in range(NUM_CLASSES):
            mitigation = min(1.0, (COUNTS[c] / COUNTS[label]) ** 0.8)
            compensation = max(1.0, (p[c] / max(p[label], 0.01)) ** 2)
            denominator += math.exp(row[c]) * (1.0 if c == label else mitigation * compensation)
        total -= math.log(math.exp(row[label]) / denominator)
    return total / len(y)


def dice(z: Array, y: NDArray[np.int64]) -> float:
    p = np.array([softmax(row) for row in z])
    losses = []
    for c in np.unique(y):
        inside = (y == c).astype(float)
        losses.append(1 - (2 * (p[:, c] * inside).sum() + 2) / (p[:, c].sum() + inside.sum() + 2))
    return float(np.mean(losses))


def jml(z: Array, y: NDArray[np.int64]) -> float:
    """The metric of the paper, of the norms."""
    p = np.array([softmax(row) for row in z])
    losses = []
    for c in np.unique(y):
        inside = (y == c).astype(float)
        both, apart = p[:, c].sum() + inside.sum(), np.abs(p[:, c] - inside).sum()
        losses.append(1 - (both - apart + 2 * 0.5) / (both + apart + 2 * 0.5))
    return float(np.mean(losses))


def with_ce(
    weight: float, loss: Callable[[Array, NDArray[np.int64]], float]
) -> Callable[[Array, NDArray[np.int64]], float]:
    return lambda z, y: loss(z, y) + weight * float(cross_entropies(z, y).mean())


def lovasz(z: Array, y: NDArray[np.int64]) -> float:
    """The Lovász extension from the Jaccard loss of sets of mistaken pixels."""
    p = np.array([softmax(row) for row in z])
    losses = []
    for c in np.unique(y):
        truth = set(np.flatnonzero(y == c))
        errors = np.abs((y == c) - p[:, c])
        mistaken: set[int] = set()
        loss, before = 0.0, 0.0
        for pixel in np.argsort(-errors):
            mistaken.add(int(pixel))
            jaccard = len(mistaken) / len(truth | mistaken)
            loss += errors[pixel] * (jaccard - before)
            before = jaccard
        losses.append(loss)
    return float(np.mean(losses))


MEDIAN = np.median(COUNTS)
ORACLES: dict[str, tuple[str, dict[str, Any], Callable[[Array, NDArray[np.int64]], float]]] = {
    "ce": ("ce", {}, lambda z, y: float(cross_entropies(z, y).mean())),
    "wce-inverse": ("wce-inverse", {}, weighted(1 / COUNTS)),
    "wce-inverse, softened": ("wce-inverse", {"power": 0.5}, weighted(COUNTS**-0.5)),
    "wce-median": ("wce-median", {}, weighted(MEDIAN / COUNTS)),
    "wce-effective": ("wce-effective", {}, weighted(effective(COUNTS))),
    "wce-enet": ("wce-enet", {}, weighted(1 / np.log(1.02 + COUNTS / COUNTS.sum()))),
    "focal": ("focal", {}, focal),
    "focal, sigmoid": ("focal", {"activation": "sigmoid", "gamma": 1.5}, sigmoid_focal),
    "cb-focal": ("cb-focal", {}, class_balanced_focal),
    "ohem": ("ohem", {"threshold": 0.2, "min_kept": 0.3}, ohem),
    "ldam": ("ldam", {"scale": 2.0}, ldam),
    "ldam, re-weighted": ("ldam", {"scale": 2.0, "drw_start": 0.0}, lambda z, y: ldam(z, y, effective(COUNTS))),
    "ldam, margins of the paper": (
        *("ldam", {"max_margin": 15.0, "drw_start": None}),
        lambda z, y: ldam(z, y, largest=15, scale=1),
    ),
    "la": ("la", {"tau": 0.7}, adjusted(0.7)),
    "vs": ("vs", {}, vs(0.15, 1.25)),
    "vs, tuned": ("vs", {"gamma": 0.4, "tau": 0.5}, vs(0.4, 0.5)),
    "balanced-softmax": ("balanced-softmax", {}, balanced_softmax),
    "dice": ("dice", {"smooth": 1.0}, dice),
    "jml": ("jml", {"smooth": 0.5}, jml),
    "lovasz": ("lovasz", {}, lovasz),
    "ce and dice": ("ce-dice", {"smooth": 1.0}, with_ce(1, dice)),
    "ce and dice, weighted": ("dice", {"smooth": 1.0, "ce_weight": 0.5}, with_ce(0.5, dice)),
    "ce and jml": ("ce-jml", {"smooth": 0.5}, with_ce(1, jml)),
    "ce and jml, weighted": ("ce-jml", {"smooth": 0.5, "ce_weight": 0.25}, with_ce(0.25, jml)),
    "ce and lovasz": ("ce-lovasz", {}, with_ce(1, lovasz)),
    "ce and lovasz, weighted": ("lovasz", {"ce_weight": 3.0}, with_ce(3, lovasz)),
    "disalign": ("disalign", {"rho": 0.6}, weighted(COUNTS**-0.6)),
}


def sample(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Logits (2, K, 3, 2) and labels with one ignored pixel and without class 1."""
    generator = torch.Generator().manual_seed(3)
    logits = 2 * torch.randn(2, NUM_CLASSES, 3, 2, generator=generator, dtype=torch.float64)
    target = torch.tensor([[[0, 0], [2, 255], [0, 3]], [[2, 0], [3, 0], [0, 0]]])
    return logits.to(dtype), target
