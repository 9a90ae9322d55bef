"""Surrogates ``l(t)`` of the AUC risk, ``t`` = score of a positive minus score of a negative pixel.

A surrogate that is *separable* is a short sum of products of a function of the positive and a function of the negative,

    l(f_pos - f_neg) = sum_jk C[j, k] p_j(f_pos) q_k(f_neg),      p_0 = q_0 = 1,

so its mean over all pairs of pixels follows from the means of ``p_j`` and ``q_k``: no pair is ever formed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

Coefficients = tuple[tuple[float, ...], ...]

# Where the exponential surrogate saturates: exp(350) and the product of two of them are finite in float64, exp(35) and
# the product of two of them and the largest margin in float32. (Float32 comes near it without float64 alone.)
_MAX_EXPONENT = {torch.float64: 350.0, torch.float32: 35.0}


@dataclass(frozen=True)
class Separable(ABC):
    """The features of a separable surrogate, and their slopes.

    The positives enter through their *shortfall* ``h = top - f``: near ``f = 1`` it keeps the digits that ``f`` has
    lost.

    Attributes:
        margin: The margin gamma.
        top: Upper end of the scores: 1 for sigmoid and softmax, 0 (no end) for identity.
        degree: Number of features of a polynomial surrogate.
    """

    margin: float
    top: float
    degree: int

    @property
    def num_features(self) -> tuple[int, int]:
        """Number of ``p_j`` and of ``q_k`` without the constants."""
        return len(self.coefficients) - 1, len(self.coefficients[0]) - 1

    coefficients: ClassVar[Coefficients] = ((0.0,),)

    @abstractmethod
    def positive_features(self, shortfall: Tensor) -> list[Tensor]:
        """``p_j``, j >= 1, of the positives."""

    @abstractmethod
    def positive_slope(self, shortfall: Tensor, weights: Tensor) -> Tensor:
        """``sum_j weights[j] dp_j/df``; ``weights`` is ``(J, *shortfall.shape)``."""

    @abstractmethod
    def negative_features(self, scores: Tensor, own: Tensor) -> Iterator[Tensor]:
        """``q_k``, k >= 1, of the negatives, zero where a channel meets its own class. Overwrites ``scores``.

        Args:
            scores: ``(b, K, p)``.
            own: ``(b, 1, p)`` int64, the class of each pixel.
        """

    @abstractmethod
    def negative_slope(self, scores: Tensor, weights: Tensor, out: Tensor) -> tuple[Tensor, Tensor | None]:
        """``sum_k weights[k] dq_k/df`` into ``out``, up to a factor that is returned beside it (None: 1).

        Args:
            scores: ``(b, K, p)``.
            weights: ``(J', ...)``, broadcasts with ``scores``.
            out: ``(b, K, p)``.
        """


class _Linear(Separable):
    """``margin - t``: the hinge while the margin is at least the largest difference."""

    coefficients = (0.0, 1.0), (1.0, 0.0)

    def positive_features(self, shortfall: Tensor) -> list[Tensor]:
        return [shortfall + (self.margin - self.top)]

    def positive_slope(self, shortfall: Tensor, weights: Tensor) -> Tensor:
        return -weights[0]

    def negative_features(self, scores: Tensor, own: Tensor) -> Iterator[Tensor]:
        yield scores.scatter_(1, own, torch.zeros_like(own, dtype=scores.dtype))

    def negative_slope(self, scores: Tensor, weights: Tensor, out: Tensor) -> tuple[Tensor, Tensor | None]:
        return out.copy_(weights[0].expand_as(out)), None


class _Square(Separable):
    """``(margin - t)^2 / 2 = (u + f_neg)^2 / 2`` with ``u = margin - f_pos``.

    Scores in [0, 1] and a margin of at least 1 make every term non-negative, so nothing cancels.
    """

    coefficients = (0.0, 0.0, 0.5), (0.0, 1.0, 0.0), (0.5, 0.0, 0.0)

    def positive_features(self, shortfall: Tensor) -> list[Tensor]:
        u = shortfall + (self.margin - self.top)
        return [u, u * u]

    def positive_slope(self, shortfall: Tensor, weights: Tensor) -> Tensor:
        u = shortfall + (self.margin - self.top)
        return torch.addcmul(weights[0], weights[1], u, value=2).neg_()

    def negative_features(self, scores: Tensor, own: Tensor) -> Iterator[Tensor]:
        yield scores.scatter_(1, own, torch.zeros_like(own, dtype=scores.dtype))
        yield scores.square_()

    def negative_slope(self, scores: Tensor, weights: Tensor, out: Tensor) -> tuple[Tensor, Tensor | None]:
        slope = 2 * weights[1]
        if scores.device.type == "cpu" and slope.numel() < scores.numel():
            # Uniform weights: one factor for all channels saves a pass over the scores.
            first = slope.flatten()[0]
            if bool(((slope == first) & (first != 0)).all()):
                return torch.add(scores, weights[0] / first, out=out), first
        return torch.mul(scores, slope, out=out).add_(weights[0]), None


class _Exponential(Separable):
    """``exp(-margin t)``."""

    coefficients = (0.0, 0.0), (0.0, 1.0)

    def positive_features(self, shortfall: Tensor) -> list[Tensor]:
        return [_bounded_exp(self.margin * (shortfall - self.top))]

    def positive_slope(self, shortfall: Tensor, weights: Tensor) -> Tensor:
        return self.positive_features(shortfall)[0].mul_(weights[0]).mul_(-self.margin)

    def negative_features(self, scores: Tensor, own: Tensor) -> Iterator[Tensor]:
        yield _bounded_exp(scores.mul_(self.margin)).scatter_(1, own, torch.zeros_like(own, dtype=scores.dtype))

    def negative_slope(self, scores: Tensor, weights: Tensor, out: Tensor) -> tuple[Tensor, Tensor | None]:
        torch.mul(scores, self.margin, out=out)
        return _bounded_exp(out).mul_(self.margin * weights[0]), None


def _bounded_exp(exponents: Tensor) -> Tensor:
    """The exponential, in place."""
    bound = _MAX_EXPONENT[exponents.dtype]
    return exponents.clamp_(-bound, bound).exp_()


class _Chebyshev(Separable):
    """Any smooth surrogate on scores in [0, 1]: Chebyshev polynomials ``T_j(2 f - 1)``, j = 1..degree."""

    @property
    def num_features(self) -> tuple[int, int]:
        return self.degree, self.degree

    def positive_features(self, shortfall: Tensor) -> list[Tensor]:
        scores = self.top - shortfall
        own = torch.zeros_like(scores, dtype=torch.int64).unsqueeze(1)
        return [
            feature.squeeze(1).clone() for feature in self._features(scores.unsqueeze(1), torch.ones_like(own), own)
        ]

    def positive_slope(self, shortfall: Tensor, weights: Tensor) -> Tensor:
        scores = self.top - shortfall
        return self.negative_slope(scores, weights, torch.empty_like(scores))[0]

    def negative_features(self, scores: Tensor, own: Tensor) -> Iterator[Tensor]:
        return self._features(scores, torch.zeros_like(own), own)

    def _features(self, scores: Tensor, at_own: Tensor, own: Tensor) -> Iterator[Tensor]:
        # T_0 and T_1 times ``at_own`` in each pixel's own channel: the recurrence keeps the factor.
        factor = at_own.to(scores.dtype)
        previous = torch.ones_like(scores).scatter_(1, own, factor)
        twice = scores.mul_(4).sub_(2)
        current = (0.5 * twice).mul_(previous)
        for _ in range(self.degree):
            yield current
            previous, current = current, previous.neg_().addcmul_(twice, current)

    def negative_slope(self, scores: Tensor, weights: Tensor, out: Tensor) -> tuple[Tensor, Tensor | None]:
        # T_j' = j U_{j-1}, and d(2 f - 1)/df = 2.
        twice = 4 * scores - 2
        previous, current = torch.zeros_like(scores), torch.ones_like(scores)
        out.zero_()
        for j in range(self.degree):
            out.add_(current * (2 * (j + 1) * weights[j]))
            previous, current = current, previous.neg_().addcmul_(twice, current)
        return out, None


_FORMS: dict[str, type[Separable]] = {
    "square": _Square,
    "linear": _Linear,
    "exponential": _Exponential,
    "chebyshev": _Chebyshev,
}


@lru_cache(maxsize=256)
def separable_form(form: str, margin: float, degree: int, scores: str) -> Separable:
    """The features called ``form`` on the given scores."""
    return _FORMS[form](margin, 0.0 if scores == "identity" else 1.0, degree)
