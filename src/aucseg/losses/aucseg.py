"""The training objective of AUCSeg: cross-entropy and AUC loss together, from full- or low-resolution logits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from aucseg.hints import check_number, check_options
from aucseg.losses.auc.checks import check_class_weight
from aucseg.losses.auc.module import AUCModule
from aucseg.losses.auc.options import LossOptions
from aucseg.losses.class_weights import PixelCounts
from aucseg.losses.pairwise_auc import PairwiseAUCLoss

_MAX_WEIGHT = 1e6  # a weighted loss stays within float32


class AUCSegLoss(AUCModule):
    r"""`auc_weight * AUC + ce_weight * CE`, computed together.

    Logits smaller than the target are upsampled bilinearly (`align_corners=False`) a band of rows at a time, in the
    forward and again in the backward pass: value and gradient are those of `interpolate` followed by cross-entropy
    and `PairwiseAUCLoss`, but full-resolution logits never exist. (One or three spatial dimensions: linear or
    trilinear, at full size.)

    The cross-entropy is that of `torch.nn.functional.cross_entropy` with `reduction="mean"`, class weights, label
    smoothing and ignore label included, except that it is 0 where torch's is NaN: when no pixel is valid. With a
    process group its sum and denominator are those of all ranks. Released configurations use `auc_weight` 1
    (Cityscapes, COCO-Stuff) or 4 (ADE20K).

    Args:
        auc_weight: Weight of the AUC loss.
        ce_weight: Weight of the cross-entropy.
        upsample: Whether logits may be smaller than the target.
        class_weight: `(K,)`, of the cross-entropy; `(2,)` with one logit a pixel.
        label_smoothing: Of the cross-entropy, in [0, 1].
        **auc_options: The options of `PairwiseAUCLoss`.

    Shape:
        - logits: `(B, K, *spatial)` or `(N, K)`, any floating dtype; `K = 1` is binary (the cross-entropy is that
        of a sigmoid).
        - target: `(B, *spatial)` or `(N,)`, integer labels; each spatial size at least that of the logits.
        - output: scalar, float32 (float64 for float64 logits).

    Raises:
        ValueError: Unknown or unsuitable options; a shape, dtype, device or label that does not fit.
        TypeError: `class_weight` is not numbers, such as a mapping, which only `build_loss` and configurations take; an
            option that the loss does not have.
        NotImplementedError: As `PairwiseAUCLoss`.

    Example:
        >>> import torch
        >>> from aucseg.losses import AUCSegLoss
        >>> loss_fn = AUCSegLoss(auc_weight=4.0, class_weight=torch.tensor([1.0, 1.0, 2.0]))
        >>> logits = torch.zeros(2, 3, 8, 8, requires_grad=True)
        >>> target = torch.arange(2 * 32 * 32).view(2, 32, 32) % 3
        >>> loss = loss_fn(logits, target)
        >>> loss.backward()
        >>> round(loss.item(), 4)  # 4 x 0.5 + log 3
        3.0986
    """

    class_weight: Tensor | None

    def __init__(
        self,
        auc_weight: float = 1.0,
        ce_weight: float = 1.0,
        *,
        upsample: bool = True,
        class_weight: Tensor | Sequence[float] | None = None,
        label_smoothing: float = 0.0,
        **auc_options: Any,
    ) -> None:
        super().__init__()
        check_options("AUCSegLoss", auc_options, AUCSegLoss.__init__, PairwiseAUCLoss.__init__)
        for name, weight in (("auc_weight", auc_weight), ("ce_weight", ce_weight)):
            check_number(name, weight)
            if not 0 <= weight <= _MAX_WEIGHT:
                raise ValueError(f"{name} must lie in 0..{_MAX_WEIGHT:g}, got {weight}")
        check_number("label_smoothing", label_smoothing)
        if not 0 <= label_smoothing <= 1:
            raise ValueError(f"label_smoothing must lie in [0, 1], got {label_smoothing}")
        if isinstance(class_weight, Mapping | str | PixelCounts):
            raise TypeError(
                f"class_weight must be numbers, one for each class, got {class_weight!r}: pass what "
                "class_weights(class_counts, rule) returns, or have them made of the counts by build_loss('aucseg', "
                "class_counts, class_weight={'rule': 'inverse', 'power': 0.25})"
            )
        device = None
        if class_weight is not None:
            if not torch.is_tensor(class_weight):
                class_weight = torch.tensor(class_weight, dtype=torch.float32, device="cpu")
                device = torch.empty(0).device  # the default one, where nothing can be asked
            check_class_weight(class_weight)
        self.auc_weight, self.ce_weight = auc_weight, ce_weight
        self.upsample, self.label_smoothing = upsample, label_smoothing
        self.keep("class_weight", class_weight, device)
        self.auc = PairwiseAUCLoss(**auc_options)

    @property
    def process_group(self) -> dist.ProcessGroup | None:
        """Ranks whose pixels are taken together: that of `auc`, where it may be set."""
        return self.auc.process_group

    def loss_options(self) -> LossOptions:
        """What to compute."""
        return LossOptions(
            self.auc.options,
            self.auc.pair_weight,
            self.auc.process_group,
            self.auc_weight,
            self.ce_weight,
            class_weight=self.class_weight,
            label_smoothing=self.label_smoothing,
        )

    def extra_repr(self) -> str:
        """The weights."""
        return f"auc_weight={self.auc_weight}, ce_weight={self.ce_weight}, label_smoothing={self.label_smoothing}"
