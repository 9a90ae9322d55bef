"""What the last layer of a trained network sees: the ground on which losses are compared in a minute each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from benchmarks.method.screen import data_module
from torch import Tensor, nn

from aucseg.training.stored_task import load_task


@dataclass(frozen=True)
class Features:
    """Inputs of the last layer (B, C, h, w) in half precision and labels (B, h, w), of training and held-out images.

    Attributes:
        train: Of every fourth training image.
        held_out: Of all that were held out.
        weight: (K, C, 1, 1) of the last layer.
        bias: (K,) of the last layer.
        groups: Class ids by group.
        pixel_counts: (K,) pixels of each class in the training images.
    """

    train: tuple[Tensor, Tensor]
    held_out: tuple[Tensor, Tensor]
    weight: Tensor
    bias: Tensor
    groups: dict[str, list[int]]
    pixel_counts: Tensor


def features_of(run: Path, data_name: str, root: str | None) -> Features:
    """Those of a run whose network is one of segmentation_models_pytorch with a 1 x 1 last layer."""
    task = load_task(run).eval()
    data = data_module(data_name, root, 0)
    heads = [module for name, module in task.named_modules() if name.endswith("segmentation_head")]
    layer: Any = heads[0][0]
    seen: list[Tensor] = []
    hook = layer.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].half()))
    parts = []
    for split, every in ((data.train_split, 4), (data.val_split, 1)):
        dataset = data.dataset(split, data.evaluation_transform)
        labels = []
        for index in range(0, len(dataset), every):
            sample = dataset[index]
            with torch.inference_mode():
                task(sample["image"][None])
            height, width = seen[-1].shape[-2:]
            stride = sample["mask"].shape[0] // height, sample["mask"].shape[1] // width
            labels.append(sample["mask"][stride[0] // 2 :: stride[0], stride[1] // 2 :: stride[1]][:height, :width])
        parts.append((torch.cat(seen).clone(), torch.stack(labels).clone()))
        seen.clear()
    hook.remove()
    assert isinstance(layer, nn.Conv2d)
    assert layer.bias is not None
    assert task.card.groups is not None
    groups = {name: list(ids) for name, ids in task.card.groups.items()}
    return Features(
        parts[0], parts[1], layer.weight.detach().clone(), layer.bias.detach().clone(), groups, data.class_counts()
    )
