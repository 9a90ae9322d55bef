"""Losses to try, by name: parts with weights, joined by `+`.

======================  ===============================================================================================
`ce`                  cross-entropy
`wceP`                cross-entropy whose classes are weighted by frequency to the power `-P`
`aucW`                square AUC loss of the sigmoid scores, weight W
`aucsoftmaxW`         the same of the softmax scores
`auctailW`            the same as `aucW`, over the pairs with a class below 0.5 % of the pixels
`aucconfW`            the same as `aucW`, pairs weighted by how far the two classes are confused in the batch
`lateF:W`             the same as `aucW`, from the share F of the steps on
`fadeW`               the same as `aucW`, with a weight that falls from W to 0 over the training
`expG:W`              exponential AUC loss of the softmax scores with rate G, weight W
`klT:W`               partial AUC by tilting: the log of one plus the exponential AUC loss of the log-odds divided by
                        T, a class (KL-constrained distributionally robust one-way partial AUC; Zhu et al., "When AUC
                        meets DRO", ICML 2022), weight W
`klovaT:W`            the same against all other pixels at once
`topR:W`              square AUC loss of each class against its R times as many highest negatives, softmax scores
`jmlW`                soft Jaccard (Wang et al., "Jaccard Metric Losses", NeurIPS 2023), over the classes of the batch
`diceW`               soft Dice, likewise
`lovaszW`             Lovász softmax
======================  ===============================================================================================
"""

from __future__ import annotations

import re
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aucseg import PairwiseAUCLoss
from aucseg.losses.baselines import LovaszSoftmaxLoss

# Of logits (N, K) and labels (N,), the ignored pixels left out.
FlatLoss = Callable[[Tensor, Tensor], Tensor]
# Log-odds beyond this are no more told apart; exp stays finite.
_MAX_LOG_ODDS = 15.0
_TAIL_SHARE = 0.005


class Candidate(nn.Module):
    """The sum of the parts of a name.

    Args:
        name: See above.
        pixel_counts: (K,) pixels of each class in the training images.
        steps: Of the training.
        ignore_index: Label of pixels that do not count.
    """

    def __init__(self, name: str, pixel_counts: Tensor, steps: int = 0, ignore_index: int = 255) -> None:
        super().__init__()
        self.ignore_index = ignore_index
        share = pixel_counts.double().clamp(min=1)
        self.parts = [flat_loss(part, share / share.sum(), steps) for part in name.split("+")]

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """The loss of logits (B, K, h, w), upsampled where they are smaller than the labels (B, H, W)."""
        scores, labels = flattened(logits, target, self.ignore_index)
        return torch.stack([part(scores, labels) for part in self.parts]).sum()


def flattened(logits: Tensor, target: Tensor, ignore_index: int = 255) -> tuple[Tensor, Tensor]:
    """Logits (N, K) in float32 and labels (N,) of the pixels that count."""
    logits = logits.float()
    if logits.shape[-2:] != target.shape[-2:]:
        logits = F.interpolate(logits, target.shape[-2:], mode="bilinear")
    counts = (target != ignore_index).flatten()
    return logits.movedim(1, -1).flatten(0, 2)[counts], target.flatten()[counts].long()


def flat_loss(part: str, share: Tensor, steps: int = 0) -> FlatLoss:
    """One part of a name.

    Args:
        part: Such as `"auc1"`.
        share: (K,) share of the pixels, by class.
        steps: Of the training.

    Raises:
        ValueError: Nothing is called so.
    """
    found = re.fullmatch(r"([a-z]+?)(?:([\d.]+):)?([\d.]+)?", part)
    kind, first, last = found.groups() if found else ("", None, None)
    number, weight = float(first or 0), float(last or 1)
    class_weight = (share**-weight / (share ** (1 - weight)).sum()).float()
    is_tail = share < _TAIL_SHARE
    losses: dict[str, FlatLoss] = {
        "ce": F.cross_entropy,
        "wce": lambda z, y: (F.cross_entropy(z, y, reduction="none") * class_weight[y]).mean(),
        "auc": lambda z, y: weight * _as_map(PairwiseAUCLoss(), z, y),
        "aucsoftmax": lambda z, y: weight * _as_map(PairwiseAUCLoss(scores="softmax"), z, y),
        "auctail": lambda z, y: weight * _as_map(PairwiseAUCLoss(pair_weight=_pairs_with(is_tail)), z, y),
        "aucconf": lambda z, y: weight * _as_map(PairwiseAUCLoss(pair_weight=_confusion(z, y)), z, y),
        "late": _Late(lambda z, y: weight * _as_map(PairwiseAUCLoss(), z, y), int(number * steps)),
        "fade": _Fading(lambda z, y: weight * _as_map(PairwiseAUCLoss(), z, y), steps),
        "exp": lambda z, y: weight * _exponential(number * z.softmax(1), y).mean(),
        "kl": lambda z, y: weight * number * _exponential(log_odds(z) / number, y).log1p().mean(),
        "klova": lambda z, y: weight * number * _exponential(log_odds(z) / number, y, all_at_once=True).log1p().mean(),
        "top": lambda z, y: weight * _against_highest(z.softmax(1), y, number),
        "jml": lambda z, y: weight * _overlap(z, y, jaccard=True),
        "dice": lambda z, y: weight * _overlap(z, y, jaccard=False),
        "lovasz": lambda z, y: weight * _as_map(LovaszSoftmaxLoss(None), z, y),
    }
    if kind not in losses:
        raise ValueError(f"no loss is called {part!r}; there are {', '.join(losses)}")
    return losses[kind]


class _Late:
    """A loss that is zero in the first steps."""

    def __init__(self, loss: FlatLoss, start: int) -> None:
        self._loss, self._start, self._step = loss, start, 0

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        self._step += 1
        return self._loss(logits, labels) if self._step > self._start else logits.sum() * 0


class _Fading:
    """A loss whose weight falls to zero over the steps."""

    def __init__(self, loss: FlatLoss, steps: int) -> None:
        self._loss, self._steps, self._step = loss, steps, 0

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        self._step += 1
        return (1 - self._step / self._steps) * self._loss(logits, labels)


def _pairs_with(classes: Tensor) -> Tensor:
    """(K, K) 1 for the pairs with one of the classes (K,)."""
    return (classes[:, None] | classes[None]).float()


def _confusion(logits: Tensor, labels: Tensor) -> Tensor:
    """(K, K) mean probability of one class where the other is true, both ways added."""
    num_classes = logits.shape[1]
    sums = logits.new_zeros(num_classes, num_classes).index_add(0, labels, logits.detach().softmax(1))
    means = sums / torch.bincount(labels, minlength=num_classes).clamp(min=1)[:, None]
    return means + means.T


def log_odds(logits: Tensor) -> Tensor:
    """`log(p / (1 - p))` of the softmax probabilities, clamped."""
    log_p = logits.log_softmax(1)
    return (log_p - torch.log1p(-log_p.exp().clamp(max=1 - 1e-6))).clamp(-_MAX_LOG_ODDS, _MAX_LOG_ODDS)


def _as_map(loss: nn.Module, logits: Tensor, labels: Tensor) -> Tensor:
    value: Tensor = loss(logits.T[None, :, None].contiguous(), labels[None, None])
    return value


def _exponential(scores: Tensor, labels: Tensor, *, all_at_once: bool = False) -> Tensor:
    """Mean of `exp(negative - positive)`, a class that is there: over its pairs with each other class, then these."""
    num_classes = scores.shape[1]
    counts = torch.bincount(labels, minlength=num_classes).float()
    sums = scores.new_zeros(num_classes, num_classes).index_add(0, labels, scores.exp())
    own = scores.new_zeros(num_classes).index_add(0, labels, (-scores.gather(1, labels[:, None])[:, 0]).exp())
    others = ~torch.eye(num_classes, dtype=torch.bool, device=scores.device) & (counts > 0)[:, None]
    weight = others * (counts[:, None] if all_at_once else torch.ones_like(counts)[:, None])
    means = sums / counts.clamp(min=1)[:, None]
    negatives = (means * weight).sum(0) / weight.sum(0).clamp(min=1)
    return (own / counts.clamp(min=1) * negatives)[counts > 0]


def _against_highest(scores: Tensor, labels: Tensor, ratio: float) -> Tensor:
    terms = []
    for class_id in torch.unique(labels).tolist():
        is_own = labels == class_id
        positives, others = scores[is_own, class_id], scores[~is_own, class_id]
        highest = others.topk(min(len(others), max(int(ratio * len(positives)), 50))).values
        difference = positives.mean() - highest.mean()
        terms.append(((1 - difference) ** 2 + positives.var(correction=0) + highest.var(correction=0)) / 2)
    return torch.stack(terms).mean()


def _overlap(logits: Tensor, labels: Tensor, *, jaccard: bool) -> Tensor:
    probabilities, truth = logits.softmax(1), F.one_hot(labels, logits.shape[1]).float()
    both = probabilities.sum(0) + truth.sum(0)
    if jaccard:
        difference = (probabilities - truth).abs().sum(0)
        overlap = (both - difference) / (both + difference)
    else:
        overlap = 2 * (probabilities * truth).sum(0) / both
    return (1 - overlap)[truth.sum(0) > 0].mean()
