"""From scores to decisions: what is fitted after training."""

from aucseg.inference.offsets import OffsetFit, OffsetFitter, fit_offsets

__all__ = ["OffsetFit", "OffsetFitter", "fit_offsets"]
