"""Every surrogate `l(t)`, with its separable form, its range and the choice of the form. Here a new one is added.

`t` is the score of a positive minus the score of a negative pixel. A class with a `name` is offered by this name;
it is of one of three kinds:

- a `Separable` one is exact on all scores: `Square`, `Exponential`;
- a `Smooth` one is expanded over scores in [0, 1], and no more than its formula: `Logistic`, `Sigmoid`;
- `Hinge` and `SquaredHinge` are polynomials while they are never at rest, otherwise computed by sorting.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from aucseg.losses.auc.separable import FORMS, Chebyshev, Separable, Smooth, Surrogate
from aucseg.losses.auc.separable import SURROGATES as SURROGATES  # filled here
from aucseg.losses.auc.smooth import SmoothSurrogate

# Where the exponential surrogate saturates: exp(350) and the product of two of them are finite in float64, exp(35) and
# the product of two of them and the largest margin in float32. (Float32 comes near it without float64 alone.)
_MAX_EXPONENT = {torch.float64: 350.0, torch.float32: 35.0}
# Above this margin float32 is too narrow for the exponential of a score in [0, 1].
_STEEP_EXPONENTIAL = 20


class Square(Separable):
    """`(margin - t)^2 / 2 = (u + f_neg)^2 / 2` with `u = margin - f_pos`.

    Scores in [0, 1] and a margin of at least 1 make every term non-negative, so nothing cancels.
    """

    name = "square"
    coefficients = (0.0, 0.0, 0.5), (0.0, 1.0, 0.0), (0.5, 0.0, 0.0)

    def positive_features(self, shortfall: Tensor) -> list[Tensor]:
        """`u` and its square."""
        u = shortfall + (self.margin - self.top)
        return [u, u * u]

    def positive_slope(self, shortfall: Tensor, weights: Tensor) -> Tensor:
        """`-(w_1 + 2 w_2 u)`."""
        u = shortfall + (self.margin - self.top)
        return torch.addcmul(weights[0], weights[1], u, value=2).neg_()

    def negative_features(self, scores: Tensor, own: Tensor) -> Iterator[Tensor]:
        """`f` and its square."""
        yield scores.scatter_(1, own, torch.zeros_like(own, dtype=scores.dtype))
        yield scores.square_()

    def negative_slope(self, scores: Tensor, weights: Tensor, out: Tensor) -> tuple[Tensor, Tensor | None]:
        """`w_1 + 2 w_2 f`."""
        slope = 2 * weights[1]
        if scores.device.type == "cpu" and slope.numel() < scores.numel():
            # Uniform weights: one factor for all channels saves a pass over the scores.
            first = slope.flatten()[0]
            if bool(((slope == first) & (first != 0)).all()):
                return torch.add(scores, weights[0] / first, out=out), first
        return torch.mul(scores, slope, out=out).add_(weights[0]), None


class Linear(Separable):
    """`margin - t`: the hinge that is never at rest."""

    coefficients = (0.0, 1.0), (1.0, 0.0)

    def positive_features(self, shortfall: Tensor) -> list[Tensor]:
        """`u = margin - f`."""
        return [shortfall + (self.margin - self.top)]

    def positive_slope(self, shortfall: Tensor, weights: Tensor) -> Tensor:
        """-1."""
        return -weights[0]

    def negative_features(self, scores: Tensor, own: Tensor) -> Iterator[Tensor]:
        """`f`."""
        yield scores.scatter_(1, own, torch.zeros_like(own, dtype=scores.dtype))

    def negative_slope(self, scores: Tensor, weights: Tensor, out: Tensor) -> tuple[Tensor, Tensor | None]:
        """1."""
        return out.copy_(weights[0].expand_as(out)), None


def _is_never_at_rest(margin: float, bounded: bool) -> bool:
    # Scores in [0, 1] differ by at most 1.
    return bounded and margin >= 1


class Hinge(Surrogate):
    """`max(0, margin - t)`."""

    name = "hinge"
    can_sort = True

    @classmethod
    def form(cls, margin: float, bounded: bool) -> Separable | None:
        """`Linear`, or by sorting."""
        return Linear(margin, bounded) if _is_never_at_rest(margin, bounded) else None


class SquaredHinge(Surrogate):
    """`max(0, margin - t)^2 / 2`."""

    name = "squared_hinge"
    can_sort = True

    @classmethod
    def form(cls, margin: float, bounded: bool) -> Separable | None:
        """`Square`, or by sorting."""
        return Square(margin, bounded) if _is_never_at_rest(margin, bounded) else None


class Exponential(Separable):
    """`exp(-margin t)`."""

    name = "exponential"
    coefficients = (0.0, 0.0), (0.0, 1.0)

    @property
    def needs_float64(self) -> bool:
        """Also where the margin is large."""
        return not self.bounded or self.margin > _STEEP_EXPONENTIAL

    @property
    def may_overflow(self) -> bool:
        """Its slopes grow as it does."""
        return True

    def positive_features(self, shortfall: Tensor) -> list[Tensor]:
        """`exp(-margin f)`."""
        return [_bounded_exp(self.margin * (shortfall - self.top))]

    def positive_slope(self, shortfall: Tensor, weights: Tensor) -> Tensor:
        """`-margin exp(-margin f)`."""
        return self.positive_features(shortfall)[0].mul_(weights[0]).mul_(-self.margin)

    def negative_features(self, scores: Tensor, own: Tensor) -> Iterator[Tensor]:
        """`exp(margin f)`."""
        yield _bounded_exp(scores.mul_(self.margin)).scatter_(1, own, torch.zeros_like(own, dtype=scores.dtype))

    def negative_slope(self, scores: Tensor, weights: Tensor, out: Tensor) -> tuple[Tensor, Tensor | None]:
        """`margin exp(margin f)`."""
        torch.mul(scores, self.margin, out=out)
        return _bounded_exp(out).mul_(self.margin * weights[0]), None


def _bounded_exp(exponents: Tensor) -> Tensor:
    """The exponential, in place."""
    bound = _MAX_EXPONENT[exponents.dtype]
    return exponents.clamp_(-bound, bound).exp_()


class Logistic(Smooth):
    """`log(1 + exp(-margin t))`."""

    name = "logistic"

    @staticmethod
    def loss(t: Tensor, margin: float) -> Tensor:
        """The formula."""
        return F.softplus(-margin * t, threshold=700)


class Sigmoid(Smooth):
    """`1 / (1 + exp(margin t))`: a symmetric loss, `l(t) + l(-t) = 1`.

    Labels of two classes that are wrong at random scale and shift the AUC risk of such a loss but leave its minimum,
    and no pair counts more than 1 (Charoenphakdee, Lee and Sugiyama, *On Symmetric Losses for Learning from Corrupted
    Labels*, ICML 2019).
    """

    name = "sigmoid"

    @staticmethod
    def loss(t: Tensor, margin: float) -> Tensor:
        """The formula."""
        return torch.sigmoid(-margin * t)


def choose_form(
    surrogate: str | SmoothSurrogate, margin: float, scores: str, max_fpr: float | None
) -> Separable | None:
    """The separable form in which a surrogate is computed; None: by sorting.

    Args:
        surrogate: A key of `SURROGATES`, or a user's own.
        margin: The margin gamma.
        scores: `"sigmoid"`, `"softmax"` or `"identity"`.
        max_fpr: Share of the negatives that counts, the hardest ones, which only sorting finds; None for all.

    Raises:
        ValueError: The surrogate is not offered with these scores or for partial AUC.
    """
    bounded = scores != "identity"
    if isinstance(surrogate, SmoothSurrogate):
        form: Separable | None = Chebyshev.of(surrogate, bounded)
    else:
        form = SURROGATES[surrogate].form(margin, bounded)
    if max_fpr is None:
        return form
    if isinstance(surrogate, SmoothSurrogate) or not SURROGATES[surrogate].can_sort:
        sortable = " and ".join(repr(name) for name, known in SURROGATES.items() if known.can_sort)
        raise ValueError(f"max_fpr (partial AUC) is offered for surrogate={sortable}, not for {surrogate!r}")
    return None


@lru_cache(maxsize=256)
def separable_form(key: str, margin: float, degree: int, scores: str) -> Separable:
    """The form with this `Separable.key`, as the custom operators get it; without the coefficients of `Chebyshev`."""
    return FORMS[key](margin, scores != "identity", degree)
