"""The head of DisAlign's second stage."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from aucseg.losses import build_loss
from aucseg.models import DisAlignModel

COUNTS = [900.0, 60.0, 30.0, 10.0]
NUM_CLASSES = 4


def small_model() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, stride=2),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 4, 1),
        nn.Upsample(scale_factor=2),
    )


def test_disalign_starts_as_the_model_and_trains_only_its_head() -> None:
    model = small_model()
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    target = torch.randint(NUM_CLASSES, (2, 8, 8), generator=torch.Generator().manual_seed(0))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    aligned = DisAlignModel(model, NUM_CLASSES).train()
    torch.testing.assert_close(aligned(images), model(images))
    loss = build_loss("disalign", COUNTS, rho=1.0)
    optimizer = torch.optim.Adam([p for p in aligned.parameters() if p.requires_grad], lr=0.1)
    values = []
    for _ in range(10):
        optimizer.zero_grad()
        values.append(loss(aligned(images), target))
        values[-1].backward()
        optimizer.step()
    assert values[-1] < values[0]
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert {name for name, p in aligned.named_parameters() if p.grad is not None} == {
        "scale",
        "offset",
        "confidence.weight",
        "confidence.bias",
    }


def test_disalign_equals_the_formula() -> None:
    model = small_model().eval()
    aligned = DisAlignModel(model, NUM_CLASSES, classifier="3")
    with torch.no_grad():
        aligned.scale.add_(torch.arange(4.0).view(4, 1, 1))
        aligned.offset.sub_(torch.arange(4.0).view(4, 1, 1))
    images = torch.randn(1, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    logits, features = model(images), model[:3](images)
    share = aligned.confidence(features)
    share = torch.sigmoid(F.interpolate(share, size=(6, 6), mode="bilinear", align_corners=False))
    changed = torch.stack([(1 + c) * logits[:, c] - c for c in range(4)], dim=1)
    torch.testing.assert_close(aligned(images), share * changed + (1 - share) * logits)


def test_disalign_needs_a_classifier() -> None:
    with pytest.raises(ValueError, match="is not a Conv2d with 9 outputs"):
        DisAlignModel(small_model(), 9)
    with pytest.raises(ValueError, match="no submodule 'head'"):
        DisAlignModel(small_model(), 4, classifier="head")
