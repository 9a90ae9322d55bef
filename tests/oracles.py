"""The definitions, written down literally in float64: O(N^2), slow, independent of the package's code."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

# ``l(t)`` elementwise, with the margin, of every surrogate that the losses offer.
SURROGATES: dict[str, Callable[[Tensor, float], Tensor]] = {
    "square": lambda t, margin: 0.5 * (margin - t) ** 2,
    "hinge": lambda t, margin: (margin - t).clamp(min=0),
    "squared_hinge": lambda t, margin: 0.5 * (margin - t).clamp(min=0) ** 2,
    "exponential": lambda t, margin: torch.exp(-margin * t),
    "logistic": lambda t, margin: torch.nn.functional.softplus(-margin * t),
    "sigmoid": lambda t, margin: 1 / (1 + torch.exp(margin * t)),
}


def surrogate_oracle(t: Tensor, name: str, margin: float = 1.0) -> Tensor:
    """`l(t)` elementwise."""
    return SURROGATES[name](t, margin)


def pixel_scores(logits: Tensor, target: Tensor, scores: str) -> tuple[Tensor, Tensor]:
    """Scores `(N, K)` in float64 and labels `(N,)`."""
    flat = logits.double().movedim(1, -1).reshape(-1, logits.shape[1])
    if scores == "sigmoid":
        flat = flat.sigmoid()
    elif scores == "softmax":
        flat = flat.softmax(1)
    return flat, target.reshape(-1).long()


def auc_loss_oracle(
    logits: Tensor,
    target: Tensor,
    surrogate: str = "square",
    *,
    margin: float = 1.0,
    scores: str = "sigmoid",
    strategy: str = "ovo",
    pair_weight: Tensor | None = None,
    ignore_index: int = 255,
) -> Tensor:
    """The double loop over class pairs with the full matrix of pixel differences; differentiable."""
    values, labels = pixel_scores(logits, target, scores)
    valid = labels != ignore_index
    binary = logits.shape[1] == 1
    channels = [1] if binary else list(range(logits.shape[1]))
    classes = [0, 1] if binary else channels
    present = [c for c in classes if bool(((labels == c) & valid).any())]
    total, weight_sum = values.sum() * 0, 0.0
    for c in channels:
        if c not in present:
            continue
        score = values[:, 0 if binary else c]
        positive = score[(labels == c) & valid]
        if strategy == "ova":
            rest = [(labels != c) & valid]
            weights = [1.0]
        else:
            others = [a for a in present if a != c]
            rest = [(labels == a) & valid for a in others]
            weights = [1.0 if pair_weight is None else float(pair_weight[c, a]) for a in others]
        for mask, weight in zip(rest, weights, strict=True):
            if not bool(mask.any()):
                continue
            difference = positive[:, None] - score[mask][None, :]
            total = total + weight * surrogate_oracle(difference, surrogate, margin).mean()
            weight_sum += weight
    return total / weight_sum if weight_sum > 0 else total


def partial_auc_oracle(
    logits: Tensor, target: Tensor, surrogate: str, max_fpr: float, *, margin: float = 1.0, strategy: str = "ovo"
) -> Tensor:
    """One-way partial AUC loss of sigmoid scores: the mean over the `ceil(max_fpr n)` hardest of n negatives."""
    values, labels = pixel_scores(logits, target, "sigmoid")
    present = [c for c in range(logits.shape[1]) if bool((labels == c).any())]
    terms = []
    for c in present:
        rest = [labels == a for a in present if a != c] if strategy == "ovo" else [(labels != c) & (labels != 255)]
        for mask in rest:
            kept = math.ceil(max_fpr * int(mask.sum()) - 1e-9)
            hardest = values[mask, c].topk(kept).values
            difference = values[labels == c, c][:, None] - hardest[None, :]
            terms.append(surrogate_oracle(difference, surrogate, margin).mean())
    return torch.stack(terms).mean()


def value_and_grad(loss: Tensor, *inputs: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The detached loss and its gradients."""
    gradients = torch.autograd.grad(loss, inputs)
    return loss.detach(), gradients
