"""Models: images ``(B, C, H, W)`` in, logits ``(B, K, h, w)`` at any resolution out."""

from aucseg.models.build import build_model as build_model
from aucseg.models.contract import SegmentationModel as SegmentationModel
from aucseg.models.contract import forward_with_auxiliary as forward_with_auxiliary
from aucseg.models.contract import split_parameters as split_parameters

__all__ = ["SegmentationModel", "build_model", "forward_with_auxiliary", "split_parameters"]
