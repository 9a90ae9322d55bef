"""Cross-entropy and AUC together."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aucseg.losses.pairwise_auc import PairwiseAUCLoss, binary_as_two, check_inputs

_MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}


class AUCSegLoss(nn.Module):
    """``auc_weight * AUC + ce_weight * CE``."""

    class_weight: Tensor | None

    def __init__(
        self,
        auc_weight: float = 1.0,
        ce_weight: float = 1.0,
        *,
        upsample: bool = True,
        class_weight: Tensor | None = None,
        label_smoothing: float = 0.0,
        ignore_index: int = 255,
        **auc_options: Any,
    ) -> None:
        super().__init__()
        self.auc_weight, self.ce_weight = auc_weight, ce_weight
        self.upsample, self.label_smoothing, self.ignore_index = upsample, label_smoothing, ignore_index
        self.register_buffer(
            "class_weight", None if class_weight is None else torch.as_tensor(class_weight), persistent=False
        )
        self.auc = PairwiseAUCLoss(ignore_index=ignore_index, **auc_options)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """The loss of ``logits (B, K, *spatial)``, at the target's or a lower resolution, against ``target (B, *spatial)``."""
        check_inputs(logits, target, self.ignore_index, same_size=not self.upsample)
        with torch.autocast(logits.device.type, enabled=False):
            if logits.dtype in (torch.float16, torch.bfloat16):
                logits = logits.float()
            if logits.shape[2:] != target.shape[1:]:
                logits = F.interpolate(
                    logits, size=target.shape[1:], mode=_MODES[logits.dim() - 2], align_corners=False
                )
            two = binary_as_two(logits) if logits.shape[1] == 1 else logits
            weight = None if self.class_weight is None else self.class_weight.to(two.dtype)
            options: dict[str, Any] = {"ignore_index": self.ignore_index, "label_smoothing": self.label_smoothing}
            labels = target.long()
            total = F.cross_entropy(two, labels, weight, reduction="sum", **options)
            valid = labels != self.ignore_index
            share = valid if weight is None else torch.where(valid, weight[labels.clamp(0, two.shape[1] - 1)], 0)
            count = share.sum(dtype=torch.float64)
            ce = total / count.clamp(min=torch.finfo(torch.float32).tiny).to(total.dtype)
            return self.auc_weight * self.auc(logits, target) + self.ce_weight * ce
