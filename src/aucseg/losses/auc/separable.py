"""What a surrogate is: separable, or smooth and thereby separable. The surrogates themselves are in `surrogates`.

A surrogate `l(t)`, `t` = score of a positive minus score of a negative pixel, is *separable* if it is a short sum
of products of a function of the positive and a function of the negative,

    l(f_pos - f_neg) = sum_jk C[j, k] p_j(f_pos) q_k(f_neg),      p_0 = q_0 = 1,

for then its mean over all pairs of pixels follows from the means of `p_j` and `q_k`, and no pair is ever formed. On
scores in [0, 1] any smooth function is a short sum of products of Chebyshev polynomials.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import ClassVar

import torch
from torch import Tensor

from aucseg.losses.auc.smooth import Coefficients, SmoothSurrogate

SURROGATES: dict[str, type[Surrogate]] = {}
"""The classes with a `name`, in the order in which they are defined."""
FORMS: dict[str, type[Separable]] = {}
"""The separable ones, named or not, by `Separable.key`."""


class Surrogate(ABC):
    """What `surrogate="name"` stands for.

    Attributes:
        name: The name; without one the class is not offered.
        can_sort: Whether `aucseg.losses.auc.by_sorting` computes it where it has no separable form.
    """

    name: ClassVar[str]
    can_sort: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "name" in vars(cls):
            SURROGATES[cls.name] = cls

    @classmethod
    @abstractmethod
    def form(cls, margin: float, bounded: bool) -> Separable | None:
        """The separable form with this margin; None if there is none, and the scores have to be sorted.

        Args:
            margin: The margin gamma.
            bounded: Whether the scores lie in [0, 1]; otherwise they are any real numbers.

        Raises:
            ValueError: The surrogate is not offered for such scores.
        """


@dataclass(frozen=True)
class Separable(Surrogate):
    """The features `p_j`, `q_k` of a separable surrogate, and their slopes.

    The positives enter through their *shortfall* `h = top - f`: near `f = 1` it keeps the digits that `f` has
    lost.

    Attributes:
        margin: The margin gamma.
        bounded: Whether the scores lie in [0, 1].
        degree: Number of features of a form that can have any.
    """

    margin: float
    bounded: bool
    degree: int = 0

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        FORMS[cls.__name__.lower()] = cls

    @classmethod
    def form(cls, margin: float, bounded: bool) -> Separable:
        """The surrogate itself."""
        return cls(margin, bounded)

    @property
    def key(self) -> str:
        """Name of the form, for the custom operators and the kernels."""
        return type(self).__name__.lower()

    @property
    def top(self) -> float:
        """Upper end of the scores: 1, or 0 if they have no end."""
        return 1.0 if self.bounded else 0.0

    @property
    @abstractmethod
    def coefficients(self) -> Coefficients:
        """`C[j][k]`."""

    @property
    def num_features(self) -> tuple[int, int]:
        """Number of `p_j` and of `q_k` without the constants."""
        return len(self.coefficients) - 1, len(self.coefficients[0]) - 1

    @property
    def needs_float64(self) -> bool:
        """Whether float32 is too narrow for the features: always for unbounded scores."""
        return not self.bounded

    @property
    def may_overflow(self) -> bool:
        """Whether slopes may leave the range of float32 or half precision."""
        return False

    @abstractmethod
    def positive_features(self, shortfall: Tensor) -> list[Tensor]:
        """`p_j`, j >= 1, of the positives."""

    @abstractmethod
    def positive_slope(self, shortfall: Tensor, weights: Tensor) -> Tensor:
        """`sum_j weights[j] dp_j/df`; `weights` is `(J, *shortfall.shape)`."""

    @abstractmethod
    def negative_features(self, scores: Tensor, own: Tensor) -> Iterator[Tensor]:
        """`q_k`, k >= 1, of the negatives, zero where a channel meets its own class. Overwrites `scores`.

        Args:
            scores: `(b, K, p)`.
            own: `(b, 1, p)` int64, the class of each pixel.
        """

    @abstractmethod
    def negative_slope(self, scores: Tensor, weights: Tensor, out: Tensor) -> tuple[Tensor, Tensor | None]:
        """`sum_k weights[k] dq_k/df` into `out`, up to a factor that is returned beside it (None: 1).

        Args:
            scores: `(b, K, p)`.
            weights: `(J', ...)`, broadcasts with `scores`.
            out: `(b, K, p)`.
        """


@dataclass(frozen=True)
class Chebyshev(Separable):
    """Any smooth surrogate on scores in [0, 1]: Chebyshev polynomials `T_j(2 f - 1)`, j = 1..degree.

    Attributes:
        coefficients: Those of `SmoothSurrogate`; the features do not need them.
    """

    coefficients: Coefficients = ()

    @classmethod
    def of(cls, smooth: SmoothSurrogate, bounded: bool) -> Chebyshev:
        """The form of a smooth surrogate.

        Raises:
            ValueError: The scores are not bounded.
        """
        if not bounded:
            expanded = [name for name, known in SURROGATES.items() if issubclass(known, Smooth)]
            others = [repr(name) for name in SURROGATES if name not in expanded]
            raise ValueError(
                f"{', '.join(expanded)} and user-defined surrogates are expanded over scores in [0, 1]; "
                "scores='identity' is not offered for them: use 'sigmoid' or 'softmax', or take one of the surrogates "
                f"{', '.join(others)}"
            )
        return cls(0.0, bounded, smooth.degree, smooth.coefficients)

    @property
    def num_features(self) -> tuple[int, int]:
        """The degree, twice."""
        return self.degree, self.degree

    def positive_features(self, shortfall: Tensor) -> list[Tensor]:
        """`T_j`."""
        scores = self.top - shortfall
        own = torch.zeros_like(scores, dtype=torch.int64).unsqueeze(1)
        return [
            feature.squeeze(1).clone() for feature in self._features(scores.unsqueeze(1), torch.ones_like(own), own)
        ]

    def positive_slope(self, shortfall: Tensor, weights: Tensor) -> Tensor:
        """`sum_j w_j dT_j/df`."""
        scores = self.top - shortfall
        return self.negative_slope(scores, weights, torch.empty_like(scores))[0]

    def negative_features(self, scores: Tensor, own: Tensor) -> Iterator[Tensor]:
        """`T_k`."""
        return self._features(scores, torch.zeros_like(own), own)

    def _features(self, scores: Tensor, at_own: Tensor, own: Tensor) -> Iterator[Tensor]:
        # T_0 and T_1 times `at_own` in each pixel's own channel: the recurrence keeps the factor.
        factor = at_own.to(scores.dtype)
        previous = torch.ones_like(scores).scatter_(1, own, factor)
        twice = scores.mul_(4).sub_(2)
        current = (0.5 * twice).mul_(previous)
        for _ in range(self.degree):
            yield current
            previous, current = current, previous.neg_().addcmul_(twice, current)

    def negative_slope(self, scores: Tensor, weights: Tensor, out: Tensor) -> tuple[Tensor, Tensor | None]:
        """`sum_k w_k dT_k/df`: `T_j' = j U_{j-1}`, and `d(2 f - 1)/df = 2`."""
        twice = 4 * scores - 2
        previous, current = torch.zeros_like(scores), torch.ones_like(scores)
        out.zero_()
        for j in range(self.degree):
            out.add_(current * (2 * (j + 1) * weights[j]))
            previous, current = current, previous.neg_().addcmul_(twice, current)
        return out, None


class Smooth(Surrogate):
    """A smooth surrogate of scores in [0, 1], given by its formula and expanded by `SmoothSurrogate`."""

    @staticmethod
    @abstractmethod
    def loss(t: Tensor, margin: float) -> Tensor:
        """`l(t)`, elementwise for `t` in [-1, 1], float64, differentiable."""

    @classmethod
    def form(cls, margin: float, bounded: bool) -> Chebyshev:
        """`Chebyshev`."""
        return Chebyshev.of(cls.expansion(margin), bounded)

    @classmethod
    @lru_cache(maxsize=64)
    def expansion(cls, margin: float) -> SmoothSurrogate:
        """The expansion for a margin, with its errors."""
        return SmoothSurrogate(partial(cls.loss, margin=margin))
