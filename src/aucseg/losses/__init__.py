"""Losses for long-tail semantic segmentation; needs torch alone."""

from aucseg.losses.aucseg import AUCSegLoss
from aucseg.losses.long_tail import build_loss
from aucseg.losses.pairwise_auc import PairwiseAUCLoss, pairwise_auc_loss

__all__ = ["AUCSegLoss", "PairwiseAUCLoss", "build_loss", "pairwise_auc_loss"]
