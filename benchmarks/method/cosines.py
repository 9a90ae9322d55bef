"""How far the gradient of a loss is from that of a reweighting: `python -m benchmarks.method.cosines RUN`.

For one batch of a trained network, the cosine between the gradient of each loss with respect to all logits and that of
a pointwise loss whose classes count alike (the mean over each class's pixels, then over the classes), and with the
nearest of all pointwise losses with one weight a class. A cosine of 1 says that the loss does nothing that weights
cannot.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from benchmarks.method.candidates import FlatLoss, flat_loss
from benchmarks.method.features import features_of
from benchmarks.method.screen import DATA, RESULTS
from torch import Tensor
from torch.nn import functional as F

from aucseg import PairwiseAUCLoss


def _mean_a_class(per_pixel: Callable[[Tensor, Tensor], Tensor]) -> FlatLoss:
    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        counts = torch.bincount(labels, minlength=logits.shape[1])
        sums = logits.new_zeros(logits.shape[1]).index_add(0, labels, per_pixel(logits, labels))
        return (sums / counts.clamp(min=1))[counts > 0].mean()

    return loss


def _one_hot(logits: Tensor, labels: Tensor) -> Tensor:
    return F.one_hot(labels, logits.shape[1]).float()


POINTWISE: dict[str, FlatLoss] = {
    "cross-entropy": _mean_a_class(lambda z, y: F.cross_entropy(z, y, reduction="none")),
    "binary cross-entropy": _mean_a_class(
        lambda z, y: F.binary_cross_entropy_with_logits(z, _one_hot(z, y), reduction="none").sum(1)
    ),
    "Brier, sigmoid": _mean_a_class(lambda z, y: ((z.sigmoid() - _one_hot(z, y)) ** 2).sum(1)),
    "Brier, softmax": _mean_a_class(lambda z, y: ((z.softmax(1) - _one_hot(z, y)) ** 2).sum(1)),
}


def _auc(surrogate: str = "square", **options: Any) -> FlatLoss:
    loss = PairwiseAUCLoss(surrogate, **options)
    return lambda z, y: loss(z.T[None, :, None].contiguous(), y[None, None])


def losses(share: Tensor) -> dict[str, FlatLoss]:
    """The losses by name."""
    named = ("exp4:1", "exp8:1", "kl1:1", "kl2:1", "klova1:1", "top3:1", "top1:1", "jml1", "dice1", "lovasz1")
    return {
        "square": _auc(),
        "square, softmax": _auc(scores="softmax"),
        "exponential": _auc("exponential"),
        "logistic": _auc("logistic"),
        "logistic, margin 8": _auc("logistic", margin=8.0),
        "squared hinge, max_fpr 0.05": _auc("squared_hinge", max_fpr=0.05),
        "squared hinge, max_fpr 0.01": _auc("squared_hinge", max_fpr=0.01),
        **{name: flat_loss(name, share) for name in named},
    }


def gradient(loss: FlatLoss, logits: Tensor, labels: Tensor) -> Tensor:
    """(N, K) gradient with respect to the logits."""
    logits = logits.clone().requires_grad_()
    (result,) = torch.autograd.grad(loss(logits, labels), [logits])
    return result


def nearest_reweighting(found: Tensor, pointwise: Tensor, labels: Tensor) -> float:
    """Cosine of a gradient with the nearest one of a pointwise loss that has a weight a class of the pixel."""
    products = found.new_zeros(found.shape[1]).index_add(0, labels, (found * pointwise).sum(1))
    squares = found.new_zeros(found.shape[1]).index_add(0, labels, (pointwise**2).sum(1))
    weights = products / squares.clamp(min=1e-30)
    return cosine(found, weights[labels][:, None] * pointwise)


def cosine(a: Tensor, b: Tensor) -> float:
    """Of two gradients."""
    return float(F.cosine_similarity(a.flatten().double(), b.flatten().double(), 0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", choices=DATA, default="cityscapes_256")
    parser.add_argument("--root")
    parser.add_argument("--name", default="trained", help="of the model, for the name of the file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    features = features_of(args.run, args.data, args.root)
    chosen = torch.randperm(len(features.train[0]), generator=torch.Generator().manual_seed(0))[:12]
    logits = F.conv2d(features.train[0][chosen].float(), features.weight, features.bias).movedim(1, -1).flatten(0, 2)
    labels = features.train[1][chosen].flatten()
    logits, labels = logits[labels != 255], labels[labels != 255].long()
    pointwise = {name: gradient(loss, logits, labels) for name, loss in POINTWISE.items()}
    share = features.pixel_counts.double().clamp(min=1)
    results = {}
    for name, loss in losses(share / share.sum()).items():
        found = gradient(loss, logits, labels)
        results[name] = {
            "classes alike": {other: round(cosine(found, one), 3) for other, one in pointwise.items()},
            "nearest": {o: round(nearest_reweighting(found, one, labels), 3) for o, one in pointwise.items()},
        }
        print(name, results[name], flush=True)
    (RESULTS / f"cosines_{args.data}_{args.name}.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
