"""Models that begin with the trained model of another run: post-hoc logit adjustment, offsets and DisAlign.

They are named in a configuration by import path, as `model.model: aucseg.training.second_stage:posthoc_model`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from aucseg.inference.offset_model import with_offsets
from aucseg.losses.baselines import post_hoc_logit_adjustment
from aucseg.models.disalign import DisAlignModel
from aucseg.models.segmentation_model import SegmentationModel, WrappedNetwork

# Import paths of the functions below, as a configuration and a checkpoint name them.
POSTHOC_MODEL = f"{__name__}:posthoc_model"
OFFSETS_MODEL = f"{__name__}:offsets_model"
DISALIGN_MODEL = f"{__name__}:disalign_model"
SECOND_STAGE_MODELS = (POSTHOC_MODEL, OFFSETS_MODEL, DISALIGN_MODEL)


class AdjustedModel(nn.Module):
    """A trained model whose logits are adjusted by the class frequencies, see `post_hoc_logit_adjustment`.

    Args:
        model: From images (B, C, H, W) to logits (B, K, h, w).
        class_counts: Training pixels of each class (K,).
        tau: Strength.
    """

    def __init__(self, model: nn.Module, class_counts: Sequence[float], tau: float = 1.0) -> None:
        super().__init__()
        self.model = model
        self.tau = tau
        self.class_counts = list(class_counts)

    def forward(self, images: Tensor) -> Tensor:
        """Adjusted logits (B, K, h, w) of normalized images (B, C, H, W)."""
        return post_hoc_logit_adjustment(self.model(images), self.class_counts, self.tau)


def posthoc_model(
    num_classes: int, *, checkpoint: str, class_counts: Sequence[float], tau: float = 1.0
) -> SegmentationModel:
    """The model of a checkpoint with adjusted logits; `aucseg validate` evaluates it, nothing is trained.

    Args:
        num_classes: K.
        checkpoint: A run's `checkpoints/last.ckpt`.
        class_counts: Training pixels of each class (K,).
        tau: Strength.
    """
    model = _trained_model(checkpoint)
    return _wrapped(AdjustedModel(model, class_counts, tau), model, num_classes)


def offsets_model(num_classes: int, *, checkpoint: str, data: Mapping[str, Any]) -> SegmentationModel:
    """The model of a checkpoint with offsets fitted for mean IoU on the training images that its run held out.

    `aucseg validate` evaluates it, nothing is trained. Where the gain is not above its spread the model stays as it
    is. The log of the run says what was found.

    Args:
        num_classes: K.
        checkpoint: A run's `checkpoints/last.ckpt`.
        data: Options of the run's data module, `held_out_share` among them.
    """
    from aucseg.training.adjustment import evaluation_batches, fit_task_offsets
    from aucseg.training.datamodule import SegmentationDataModule
    from aucseg.training.stored_task import load_task_for, restore_parts

    datamodule = SegmentationDataModule(**data)
    task = load_task_for(datamodule.card, checkpoint, "cuda" if torch.cuda.is_available() else "cpu")
    restore_parts(datamodule, Path(checkpoint))
    images, batches = evaluation_batches(datamodule, held_out=True)
    fit = fit_task_offsets(task, batches)
    verdict = "above" if fit.accepted else "not above, so that the model stays as it is"
    num_images = len(images) - images.num_left_out
    print(
        f"offsets on {num_images} held-out images: mean IoU {100 * fit.before:.1f}, {100 * fit.gain:+.1f} with offsets "
        f"fitted on others; spread {100 * fit.spread:.1f}: {verdict}; {fit.offsets}"
    )
    model = task.cpu().model
    offsets = fit.offsets if fit.accepted else (0.0,) * num_classes
    return with_offsets(model, offsets, num_classes)


def disalign_model(num_classes: int, *, checkpoint: str, classifier: str | None = None) -> SegmentationModel:
    """The model of a checkpoint, frozen, with DisAlign's calibrated head, to be trained with the loss `disalign`.

    Args:
        num_classes: K.
        checkpoint: A run's `checkpoints/last.ckpt`.
        classifier: See `aucseg.models.DisAlignModel`.
    """
    model = _trained_model(checkpoint)
    return _wrapped(DisAlignModel(model, num_classes, classifier), model, num_classes)


def _trained_model(checkpoint: str) -> nn.Module:
    from aucseg.training.stored_task import load_task

    return load_task(checkpoint).model


def _wrapped(network: nn.Module, model: nn.Module, num_classes: int) -> SegmentationModel:
    normalization: dict[str, Any] = {
        name: getattr(model, name) for name in ("pixel_mean", "pixel_std") if hasattr(model, name)
    }
    return WrappedNetwork(network, num_classes, **normalization)
