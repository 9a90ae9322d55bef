"""The surrogates that are offered, for tests of each of them."""

from __future__ import annotations

from aucseg.losses.auc.separable import Smooth
from aucseg.losses.auc.surrogates import SURROGATES

NAMES = list(SURROGATES)
SMOOTH = [name for name, surrogate in SURROGATES.items() if issubclass(surrogate, Smooth)]
SCORES = ("sigmoid", "softmax", "identity")
# Smooth ones are for scores in [0, 1] alone.
WITH_SCORES = [(name, scores) for name in NAMES for scores in SCORES if name not in SMOOTH or scores != "identity"]


def tolerance(surrogate: str) -> float:
    """Relative error of value and gradient in float64: of rounding, or of the expansion."""
    return 3e-6 if surrogate in SMOOTH else 1e-11
