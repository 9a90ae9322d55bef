"""Augmentations of the user's choice: transforms of torchvision v2 or albumentations, or functions of a sample."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from aucseg.datasets.dataset import Sample
from aucseg.hints import import_extra
from aucseg.runtime.import_paths import build_by_path, import_object, is_class_path_entry

try:
    from torchvision import tv_tensors
except ImportError as error:  # pragma: no cover - depends on the environment
    raise ImportError('aucseg.loading.own_augmentation needs torchvision: pip install "aucseg[train]"') from error

_TORCHVISION = "torchvision.transforms.v2"
# Parameters of albumentations that say how a mask is filled, in its versions.
_MASK_FILLS = ("fill_mask", "mask_value", "mask_fill_value")
_MAX_LABEL = 2**15 - 1


class OwnAugmentation:
    """Transforms that are given in a configuration, one after the other, with a check of what they leave.

    Where a geometric transform leaves a mask empty it is filled with the ignore label.

    Args:
        entries: Each an import path, or `{class_path, init_args}`. A name without a module is one of
            `torchvision.transforms.v2`; those of albumentations get what they expect (`AlbumentationsTransform`).
            Anything else is called with the sample and returns it. `init_args` may hold more entries.
        ignore_index: The ignore label.
        fill: What else empty places of images are filled with, where a transform has a `fill`.

    Raises:
        ImportError: An import path leads nowhere.
        TypeError: An entry of another form, or an option that the transform does not have.
    """

    def __init__(self, entries: Sequence[Any], *, ignore_index: int, fill: float | Sequence[float] = 0.0) -> None:
        if isinstance(entries, (str, Mapping)):
            entries = [entries]
        self.names = [entry["class_path"] if is_class_path_entry(entry) else str(entry) for entry in entries]
        self.transforms = [
            _build(entry, ignore_index, fill if isinstance(fill, (int, float)) else tuple(fill)) for entry in entries
        ]

    def __call__(self, sample: Sample) -> Sample:
        """Returns the transformed sample.

        Args:
            sample: `image` (C, H, W) and `mask` (H, W) as `tv_tensors`, and `name`.

        Raises:
            ValueError: A transform changes the size or the dtype, or returns no sample.
        """
        image, mask = sample["image"], sample["mask"]
        for name, transform in zip(self.names, self.transforms, strict=True):
            result = transform(sample)
            if not isinstance(result, dict) or not {"image", "mask"} <= result.keys():
                raise ValueError(f"data.augmentation: {name} must return a sample with image and mask")
            if result["image"].shape[-2:] != mask.shape[-2:] or result["mask"].shape != mask.shape:
                raise ValueError(
                    f"data.augmentation: {name} changes the size of a training crop, {tuple(mask.shape)}: image "
                    f"{tuple(result['image'].shape[-2:])}, mask {tuple(result['mask'].shape)}; leave scale and crop to "
                    "data.scale and data.crop_size"
                )
            sample = result
        for key, before in (("image", image), ("mask", mask)):
            if sample[key].dtype != before.dtype:
                raise ValueError(
                    f"data.augmentation must leave the {key} {before.dtype}, as it came, not {sample[key].dtype}: "
                    "images are normalized on the device, after the last transform"
                )
        return {
            **sample,
            "image": tv_tensors.Image(torch.as_tensor(sample["image"])),
            "mask": tv_tensors.Mask(torch.as_tensor(sample["mask"])),
        }


class AlbumentationsTransform:
    """A transform or a pipeline of albumentations, for samples.

    Its random numbers follow from torch's, so that a run that goes on draws as it would have.

    Args:
        transform: Takes and returns `image` (H, W, C) and `mask` (H, W) as arrays.
    """

    def __init__(self, transform: Callable[..., dict[str, Any]]) -> None:
        self.transform = transform

    def __call__(self, sample: Sample) -> Sample:
        """Returns the transformed sample.

        Raises:
            ValueError: A label above 32767, which OpenCV has no type for.
        """
        image, mask = sample["image"].as_subclass(Tensor), sample["mask"].as_subclass(Tensor)
        if mask.dtype != torch.uint8 and int(mask.max()) > _MAX_LABEL:
            raise ValueError(f"albumentations takes labels up to {_MAX_LABEL}, got {int(mask.max())}")
        if callable(seed := getattr(self.transform, "set_random_seed", None)):
            seed(int(torch.randint(2**31, ())))
        result = self.transform(
            image=np.ascontiguousarray(image.permute(1, 2, 0).numpy()),
            mask=mask.numpy() if mask.dtype == torch.uint8 else mask.numpy().astype(np.int16),
        )
        pixels = result["image"] if result["image"].ndim == 3 else result["image"][..., None]
        return {
            **sample,
            "image": torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1),
            "mask": torch.from_numpy(np.ascontiguousarray(result["mask"])).to(mask.dtype),
        }


def _build(entry: Any, ignore_index: int, fill: float | tuple[float, ...]) -> Callable[[Sample], Sample]:
    if isinstance(entry, str) and inspect.isroutine(function := import_object(entry, _TORCHVISION)):
        own: Callable[[Sample], Sample] = function
        return own
    if isinstance(entry, str):
        entry = {"class_path": entry}
    is_albumentations = is_class_path_entry(entry) and entry["class_path"].startswith("albumentations.")
    if is_albumentations:
        os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # or importing it asks a server for its newest version
        import_extra("albumentations", "albumentations")
    transform = build_by_path(_with_fills(entry, ignore_index, fill), "data.augmentation", _TORCHVISION)
    if not callable(transform):
        raise TypeError(f"data.augmentation: {entry['class_path']} makes nothing that can be called with a sample")
    return AlbumentationsTransform(transform) if is_albumentations else transform


def _with_fills(entry: Any, ignore_index: int, fill: float | tuple[float, ...]) -> Any:
    """An entry, those inside of it included, that fills masks with the ignore label instead of class 0."""
    if isinstance(entry, list):
        return [_with_fills(item, ignore_index, fill) for item in entry]
    if not is_class_path_entry(entry):
        return entry
    options = {key: _with_fills(value, ignore_index, fill) for key, value in (entry.get("init_args") or {}).items()}
    factory = import_object(entry["class_path"], _TORCHVISION)
    parameters = inspect.signature(factory).parameters
    if factory.__module__.startswith("torchvision.") and "fill" in parameters:
        options["fill"] = {tv_tensors.Image: options.get("fill", fill), tv_tensors.Mask: ignore_index}
    elif factory.__module__.startswith("albumentations."):
        # Where the default is None the transform leaves the mask alone.
        names = [name for name in _MASK_FILLS if name in parameters and parameters[name].default is not None]
        options = dict.fromkeys(names, ignore_index) | options
    return {"class_path": entry["class_path"], "init_args": options}
