"""The losses to compare with: the usual answers to a long tail, under one interface.

Every loss is `Loss(class_counts, ignore_index=255, **options)` with `forward(logits, target)` as in
`LongTailLoss`; `aucseg.losses.build_loss` makes one by name.
"""

from aucseg.losses.baselines.base import LongTailLoss
from aucseg.losses.baselines.logit_adjustment import (
    BalancedSoftmaxLoss,
    BLVLoss,
    LDAMLoss,
    LogitAdjustmentLoss,
    SeesawLoss,
    VSLoss,
    post_hoc_logit_adjustment,
)
from aucseg.losses.baselines.overlap import DiceLoss, JaccardMetricLoss, LovaszSoftmaxLoss
from aucseg.losses.baselines.reweighting import (
    ClassBalancedFocalLoss,
    CrossEntropyLoss,
    DisAlignLoss,
    FocalLoss,
    OHEMCrossEntropyLoss,
    WeightedCrossEntropyLoss,
)

__all__ = [
    "BLVLoss",
    "BalancedSoftmaxLoss",
    "ClassBalancedFocalLoss",
    "CrossEntropyLoss",
    "DiceLoss",
    "DisAlignLoss",
    "FocalLoss",
    "JaccardMetricLoss",
    "LDAMLoss",
    "LogitAdjustmentLoss",
    "LongTailLoss",
    "LovaszSoftmaxLoss",
    "OHEMCrossEntropyLoss",
    "SeesawLoss",
    "VSLoss",
    "WeightedCrossEntropyLoss",
    "post_hoc_logit_adjustment",
]
