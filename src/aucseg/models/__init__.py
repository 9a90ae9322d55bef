"""Models: images `(B, C, H, W)` in, logits `(B, K, h, w)` at any resolution out."""

from aucseg.models.build import build_model as build_model
from aucseg.models.build import without_weights as without_weights
from aucseg.models.checkpoint import load_checkpoint as load_checkpoint
from aucseg.models.checkpoint import load_encoder_checkpoint as load_encoder_checkpoint
from aucseg.models.disalign import DisAlignModel as DisAlignModel
from aucseg.models.segmentation_model import SegmentationModel as SegmentationModel
from aucseg.models.segmentation_model import WrappedNetwork as WrappedNetwork
from aucseg.models.segmentation_model import forward_with_auxiliary as forward_with_auxiliary
from aucseg.models.segmentation_model import split_parameters as split_parameters
from aucseg.models.segnext import SegNeXt as SegNeXt

__all__ = [
    "DisAlignModel",
    "SegNeXt",
    "SegmentationModel",
    "WrappedNetwork",
    "build_model",
    "forward_with_auxiliary",
    "load_checkpoint",
    "load_encoder_checkpoint",
    "split_parameters",
    "without_weights",
]
