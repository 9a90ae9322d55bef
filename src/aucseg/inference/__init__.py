"""What a trained model is used for: prediction, export, decisions."""

from aucseg.inference.offsets import OffsetFit, OffsetFitter, fit_offsets

__all__ = ["OffsetFit", "OffsetFitter", "fit_offsets"]
