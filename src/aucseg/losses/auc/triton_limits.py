"""For which logits, labels and options there are Triton kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from aucseg.losses.auc.options import PassOptions, working_dtype
from aucseg.tensors.triton_pixels import fits_32_bits

# Features of a positive and of a negative; of Chebyshev polynomials as many as their degree.
_NUM_FEATURES = {"": 0, "linear": 1, "square": 2, "exponential": 1}
_MAX_CLASSES = 4095  # what is computed by class takes one program
_MAX_IMAGES = 65535  # of CUDA, in the second direction of a grid


def num_features(options: PassOptions) -> int:
    """Number of features of a positive, which is that of a negative."""
    return options.degree if options.form == "chebyshev" else _NUM_FEATURES[options.form]


def offered(logits: Tensor, target: Tensor, options: PassOptions, *, by_pair: bool = False) -> bool:
    """Whether there are kernels for these logits, labels and options.

    Args:
        logits: As for `sums`.
        target: As for `sums`.
        options: What to compute.
        by_pair: Whether negatives are summed by channel and label.
    """
    # Triton's matrix products fail for some float64 operands.
    fits_pairs = options.form in _NUM_FEATURES and working_dtype(logits, options.surrogate) == torch.float32
    return (
        (fits_pairs if by_pair else options.form in (*_NUM_FEATURES, "chebyshev"))
        and logits.shape[1] <= _MAX_CLASSES
        and (logits.dim() == 2 or len(logits) <= _MAX_IMAGES)
        and fits_32_bits(logits, target)
    )
