"""The last layer of a trained network anew by each loss: `python -m benchmarks.method.probe RUN [LOSS ...]`.

A first filter that costs about a minute a loss, no verdict: the features are those of the loss that trained them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from benchmarks.method.candidates import Candidate
from benchmarks.method.features import Features, features_of
from benchmarks.method.judge import confusion_of, judge
from benchmarks.method.screen import DATA, RESULTS
from torch import Tensor, nn
from torch.nn import functional as F

LOSSES = (
    "ce", "wce0.25", "ce+auc1", "ce+auc2", "ce+aucsoftmax1", "wce0.25+auc1", "ce+jml1", "ce+dice1", "ce+lovasz1",
    "wce0.25+jml1", "ce+exp4:1", "ce+exp8:0.5", "ce+kl1:0.2", "ce+kl2:0.2", "ce+klova1:0.2", "wce0.25+kl1:0.2",
    "ce+top1:1", "ce+top3:1", "wce0.25+auctail1", "wce0.25+aucconf1", "wce0.25+late0.5:1",
)  # fmt: skip
_STEPS = 400


def train_layer(features: Features, loss: Candidate, *, steps: int = _STEPS, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Weight and bias of a new last layer, trained with Adam on batches of 12."""
    torch.manual_seed(seed)
    weight = nn.Parameter(nn.init.kaiming_uniform_(torch.empty_like(features.weight), a=5**0.5))
    bias = nn.Parameter(torch.zeros_like(features.bias))
    optimizer = torch.optim.Adam([weight, bias], lr=5e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=steps)
    inputs, labels = features.train
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        chosen = torch.randint(len(inputs), (12,), generator=generator)
        optimizer.zero_grad()
        loss(F.conv2d(inputs[chosen].float(), weight, bias), labels[chosen]).backward()
        optimizer.step()
        schedule.step()
    return weight.detach(), bias.detach()


def measure(features: Features, name: str) -> dict[str, Any]:
    """Figures of one loss on the held-out images, at the features' resolution."""
    weight, bias = train_layer(features, Candidate(name, features.pixel_counts, _STEPS))
    inputs, truth = features.held_out
    num_classes = len(bias)
    confusion = torch.zeros(num_classes, num_classes, dtype=torch.float64)
    logits, labels = [], []
    for one, mask in zip(inputs, truth, strict=True):
        counts = (mask != 255).flatten()
        scores = F.conv2d(one[None].float(), weight, bias)[0].flatten(1)[:, counts]
        small = mask.flatten()[counts].long()
        confusion += confusion_of(scores.argmax(0), small, num_classes)
        logits.append(scores)
        labels.append(small)
    return judge(confusion, logits, labels, features.groups)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("losses", nargs="*", default=LOSSES)
    parser.add_argument("--data", choices=DATA, default="cityscapes_256")
    parser.add_argument("--root")
    args = parser.parse_args()
    torch.set_num_threads(1)
    features = features_of(args.run, args.data, args.root)
    file = RESULTS / f"probe_{args.data}.json"
    results = json.loads(file.read_text()) if file.exists() else {}
    for name in args.losses:
        results[name] = measure(features, name)
        file.write_text(json.dumps(results, indent=1) + "\n")
        print(name, *(f"{key} {results[name][key]}" for key in ("plain", "offsets", "ap")), sep="  ", flush=True)


if __name__ == "__main__":
    main()
