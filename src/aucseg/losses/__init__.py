"""Losses for long-tail semantic segmentation; needs torch alone."""

from aucseg.losses.auc.smooth import SmoothSurrogate
from aucseg.losses.aucseg import AUCSegLoss
from aucseg.losses.build import build_loss
from aucseg.losses.micro_batches import MicroBatchAUC, accumulate
from aucseg.losses.pairwise_auc import PairwiseAUCLoss, pairwise_auc_loss

__all__ = [
    "AUCSegLoss",
    "MicroBatchAUC",
    "PairwiseAUCLoss",
    "SmoothSurrogate",
    "accumulate",
    "build_loss",
    "pairwise_auc_loss",
]
