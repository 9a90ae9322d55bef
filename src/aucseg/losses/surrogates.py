"""Surrogates ``l(t)`` of the AUC risk, ``t`` = score of a positive minus score of a negative pixel.

A surrogate that is *separable* is a short sum of products of a function of the positive and a function of the negative,

    l(f_pos - f_neg) = sum_jk C[j, k] p_j(f_pos) q_k(f_neg),      p_0 = q_0 = 1,

so its mean over all pairs of pixels follows from the means of ``p_j`` and ``q_k``: no pair is ever formed.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

SURROGATES = ("square", "hinge", "exponential")

# exp(+-350) and the product of two of them are finite in float64; beyond, the exponential surrogate saturates.
_MAX_EXPONENT = 350.0


@dataclass(frozen=True)
class Separable(ABC):
    """A separable surrogate.

    The positives enter through their *shortfall* ``h = top - f``: near ``f = 1`` it keeps the digits that ``f`` has lost.

    Attributes:
        margin: The margin gamma of the surrogate.
        top: Upper end of the scores: 1 for sigmoid and softmax, 0 (no end) for identity.
    """

    margin: float
    top: float

    @property
    @abstractmethod
    def coefficients(self) -> tuple[tuple[float, ...], ...]:
        """``C[j][k]``: rows for the features of positives, columns for those of negatives, both with the constant first."""

    @abstractmethod
    def positive_features(self, shortfall: Tensor) -> list[Tensor]:
        """``p_j``, j >= 1, of the positives."""

    @abstractmethod
    def positive_slope(self, shortfall: Tensor, weights: Tensor) -> Tensor:
        """``sum_j weights[j] dp_j/df``; ``weights`` is ``(J, *shortfall.shape)``."""

    @abstractmethod
    def negative_features(self, scores: Tensor, positives: Tensor) -> Iterator[Tensor]:
        """``q_k``, k >= 1, of the negatives, zero where a channel meets its own class. Overwrites ``scores``.

        Args:
            scores: ``(b, C, p)``.
            positives: ``(b, 1, p)`` int64, the channel of each pixel's own class.
        """

    @abstractmethod
    def negative_slope(self, scores: Tensor, weights: Tensor, out: Tensor) -> Tensor:
        """``sum_k weights[k] dq_k/df`` into ``out``; ``weights`` is ``(K, C, 1)``."""


class Linear(Separable):
    """``l(t) = margin - t``: the hinge while the margin is at least the largest difference."""

    @property
    def coefficients(self) -> tuple[tuple[float, ...], ...]:
        return (0.0, 1.0), (1.0, 0.0)

    def positive_features(self, shortfall: Tensor) -> list[Tensor]:
        return [shortfall + (self.margin - self.top)]

    def positive_slope(self, shortfall: Tensor, weights: Tensor) -> Tensor:
        return -weights[0]

    def negative_features(self, scores: Tensor, positives: Tensor) -> Iterator[Tensor]:
        yield scores.scatter_(1, positives, 0.0)

    def negative_slope(self, scores: Tensor, weights: Tensor, out: Tensor) -> Tensor:
        return out.copy_(weights[0].expand_as(out))


class Square(Separable):
    """``l(t) = (margin - t)^2 / 2 = (u + f_neg)^2 / 2`` with ``u = margin - f_pos``.

    Scores in [0, 1] and a margin of at least 1 make every term non-negative, so nothing cancels.
    """

    @property
    def coefficients(self) -> tuple[tuple[float, ...], ...]:
        return (0.0, 0.0, 0.5), (0.0, 1.0, 0.0), (0.5, 0.0, 0.0)

    def positive_features(self, shortfall: Tensor) -> list[Tensor]:
        u = shortfall + (self.margin - self.top)
        return [u, u * u]

    def positive_slope(self, shortfall: Tensor, weights: Tensor) -> Tensor:
        u = shortfall + (self.margin - self.top)
        return -(weights[0] + 2 * weights[1] * u)

    def negative_features(self, scores: Tensor, positives: Tensor) -> Iterator[Tensor]:
        yield scores.scatter_(1, positives, 0.0)
        yield scores.square_()

    def negative_slope(self, scores: Tensor, weights: Tensor, out: Tensor) -> Tensor:
        return torch.addcmul(weights[0], scores, 2 * weights[1], out=out)


class Exponential(Separable):
    """``l(t) = exp(-margin t)``."""

    @property
    def coefficients(self) -> tuple[tuple[float, ...], ...]:
        return (0.0, 0.0), (0.0, 1.0)

    def positive_features(self, shortfall: Tensor) -> list[Tensor]:
        return [(self.margin * (shortfall - self.top)).clamp_(-_MAX_EXPONENT, _MAX_EXPONENT).exp_()]

    def positive_slope(self, shortfall: Tensor, weights: Tensor) -> Tensor:
        return -self.margin * weights[0] * self.positive_features(shortfall)[0]

    def negative_features(self, scores: Tensor, positives: Tensor) -> Iterator[Tensor]:
        yield scores.mul_(self.margin).clamp_(-_MAX_EXPONENT, _MAX_EXPONENT).exp_().scatter_(1, positives, 0.0)

    def negative_slope(self, scores: Tensor, weights: Tensor, out: Tensor) -> Tensor:
        torch.mul(scores, self.margin, out=out)
        return out.clamp_(-_MAX_EXPONENT, _MAX_EXPONENT).exp_().mul_(self.margin * weights[0])


@lru_cache(maxsize=128)
def separable_surrogate(name: str, margin: float, scores: str) -> Separable:
    """The separable form of the surrogate called ``name``.

    Args:
        name: One of `SURROGATES`.
        margin: A finite number above 0.
        scores: ``"sigmoid"``, ``"softmax"`` or ``"identity"``.

    Returns:
        The surrogate.

    Raises:
        ValueError: For an unknown name, a bad margin, or a hinge that is not linear on these scores.
    """
    if not (math.isfinite(margin) and margin > 0):
        raise ValueError(f"margin must be a finite number above 0, got {margin}")
    top = 0.0 if scores == "identity" else 1.0
    if name == "square":
        return Square(margin, top)
    if name == "exponential":
        return Exponential(margin, top)
    if name == "hinge":
        if scores == "identity" or margin < 1.0:
            raise ValueError(
                f'surrogate="hinge" with margin={margin} and scores="{scores}" is not linear over the range of score '
                "differences and would need sorting, which is not offered yet; use a margin of at least 1 with "
                '"sigmoid" or "softmax" scores'
            )
        return Linear(margin, top)
    raise ValueError(f"surrogate must be one of {', '.join(SURROGATES)}, got {name!r}")
