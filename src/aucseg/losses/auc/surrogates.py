"""Every surrogate ``l(t)``, with its separable form, its range and the choice of the form. Here a new one is added.

``t`` is the score of a positive minus the score of a negative pixel. A surrogate is *separable* if it is a short sum of
products of a function of the positive and a function of the negative,

    l(f_pos - f_neg) = sum_jk C[j, k] p_j(f_pos) q_k(f_neg),      p_0 = q_0 = 1,

for then its mean over all pairs of pixels follows from the means of ``p_j`` and ``q_k``, and no pair is ever formed.

- `Separable`: surrogates that are so on all scores (`Square`, `Exponential`), and the forms of others (`Linear`,
  `Chebyshev`).
- `Smooth`: on scores in [0, 1] any smooth function is a short sum of Chebyshev polynomials. A new surrogate of this
  kind is its formula: see `Sigmoid`.
- `Hinge`, `SquaredHinge`: polynomials while they are never at rest, otherwise computed by sorting.

A class with a ``name`` is offered by this name, see `SURROGATES`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from aucseg.losses.auc.smooth import Coefficients, SmoothSurrogate

SURROGATES: dict[str, type[Surrogate]] = {}
_FORMS: dict[str, type[Separable]] = {}

# Where the exponential surrogate saturates: exp(350) and the product of two of them are finite in float64, exp(35) and
# the product of two of them and the largest margin in float32. (Float32 comes near it without float64 alone.)
_MAX_EXPONENT = {torch.float64: 350.0, torch.float32: 35.0}
# Above this margin float32 is too narrow for the exponential of a score in [0, 1].
_STEEP_EXPONENTIAL = 20


class Surrogate(ABC):
    """What ``surrogate="name"`` stands for.

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
    """The features ``p_j``, ``q_k`` of a separable surrogate, and their slopes.

    The positives enter through their *shortfall* ``h = top - f``: near ``f = 1`` it keeps the digits that ``f`` has
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
        _FORMS[cls.__name__.lower()] = cls

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
        """``C[j][k]``."""

    @property
    def num_features(self) -> tuple[int, int]:
        """Number of ``p_j`` and of ``q_k`` without the constants."""
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


class Square(Separable):
    """``(margin - t)^2 / 2 = (u + f_neg)^2 / 2`` with ``u = margin - f_pos``.

    Scores in [0, 1] and a margin of at least 1 make every term non-negative, so nothing cancels.
    """

    name = "square"
    coefficients = (0.0, 0.0, 0.5), (0.0, 1.0, 0.0), (0.5, 0.0, 0.0)

    def positive_features(self, shortfall: Tensor) -> list[Tensor]:
        """``u`` and its square."""
        u = shortfall + (self.margin - self.top)
        return [u, u * u]

    def positive_slope(self, shortfall: Tensor, weights: Tensor) -> Tensor:
        """``-(w_1 + 2 w_2 u)``."""
        u = shortfall + (self.margin - self.top)
        return torch.addcmul(weights[0], weights[1], u, value=2).neg_()

    def negative_features(self, scores: Tensor, own: Tensor) -> Iterator[Tensor]:
        """``f`` and its square."""
        yield scores.scatter_(1, own, torch.zeros_like(own, dtype=scores.dtype))
        yield scores.square_()

    def negative_slope(self, scores: Tensor, weights: Tensor, out: Tensor) -> tuple[Tensor, Tensor | None]:
        """``w_1 + 2 w_2 f``."""
        slope = 2 * weights[1]
        if scores.device.type == "cpu" and slope.numel() < scores.numel():
            # Uniform weights: one factor for all channels saves a pass over the scores.
            first = slope.flatten()[0]
            if bool(((slope == first) & (first != 0)).all()):
                return torch.add(scores, weights[0] / first, out=out), first
        return torch.mul(scores, slope, out=out).add_(weights[0]), None


class Linear(Separable):
    """``margin - t``: the hinge that is never at rest."""

    coefficients = (0.0, 1.0), (1.0, 0.0)

    def positive_features(self, shortfall: Tensor) -> list[Tensor]:
        """``u = margin - f``."""
        return [shortfall + (self.margin - self.top)]

    def positive_slope(self, shortfall: Tensor, weights: Tensor) -> Tensor:
        """-1."""
        return -weights[0]

    def negative_features(self, scores: Tensor, own: Tensor) -> Iterator[Tensor]:
        """``f``."""
        yield scores.scatter_(1, own, torch.zeros_like(own, dtype=scores.dtype))

    def negative_slope(self, scores: Tensor, weights: Tensor, out: Tensor) -> tuple[Tensor, Tensor | None]:
        """1."""
        return out.copy_(weights[0].expand_as(out)), None


def _is_never_at_rest(margin: float, bounded: bool) -> bool:
    # Scores in [0, 1] differ by at most 1.
    return bounded and margin >= 1


class Hinge(Surrogate):
    """``max(0, margin - t)``."""

    name = "hinge"
    can_sort = True

    @classmethod
    def form(cls, margin: float, bounded: bool) -> Separable | None:
        """`Linear`, or by sorting."""
        return Linear(margin, bounded) if _is_never_at_rest(margin, bounded) else None


class SquaredHinge(Surrogate):
    """``max(0, margin - t)^2 / 2``."""

    name = "squared_hinge"
    can_sort = True

    @classmethod
    def form(cls, margin: float, bounded: bool) -> Separable | None:
        """`Square`, or by sorting."""
        return Square(margin, bounded) if _is_never_at_rest(margin, bounded) else None


class Exponential(Separable):
    """``exp(-margin t)``."""

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
        """``exp(-margin f)``."""
        return [_bounded_exp(self.margin * (shortfall - self.top))]

    def positive_slope(self, shortfall: Tensor, weights: Tensor) -> Tensor:
        """``-margin exp(-margin f)``."""
        return self.positive_features(shortfall)[0].mul_(weights[0]).mul_(-self.margin)

    def negative_features(self, scores: Tensor, own: Tensor) -> Iterator[Tensor]:
        """``exp(margin f)``."""
        yield _bounded_exp(scores.mul_(self.margin)).scatter_(1, own, torch.zeros_like(own, dtype=scores.dtype))

    def negative_slope(self, scores: Tensor, weights: Tensor, out: Tensor) -> tuple[Tensor, Tensor | None]:
        """``margin exp(margin f)``."""
        torch.mul(scores, self.margin, out=out)
        return _bounded_exp(out).mul_(self.margin * weights[0]), None


def _bounded_exp(exponents: Tensor) -> Tensor:
    """The exponential, in place."""
    bound = _MAX_EXPONENT[exponents.dtype]
    return exponents.clamp_(-bound, bound).exp_()


@dataclass(frozen=True)
class Chebyshev(Separable):
    """Any smooth surrogate on scores in [0, 1]: Chebyshev polynomials ``T_j(2 f - 1)``, j = 1..degree.

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
        """``T_j``."""
        scores = self.top - shortfall
        own = torch.zeros_like(scores, dtype=torch.int64).unsqueeze(1)
        return [
            feature.squeeze(1).clone() for feature in self._features(scores.unsqueeze(1), torch.ones_like(own), own)
        ]

    def positive_slope(self, shortfall: Tensor, weights: Tensor) -> Tensor:
        """``sum_j w_j dT_j/df``."""
        scores = self.top - shortfall
        return self.negative_slope(scores, weights, torch.empty_like(scores))[0]

    def negative_features(self, scores: Tensor, own: Tensor) -> Iterator[Tensor]:
        """``T_k``."""
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
        """``sum_k w_k dT_k/df``: ``T_j' = j U_{j-1}``, and ``d(2 f - 1)/df = 2``."""
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
        """``l(t)``, elementwise for ``t`` in [-1, 1], float64, differentiable."""

    @classmethod
    def form(cls, margin: float, bounded: bool) -> Chebyshev:
        """`Chebyshev`."""
        return Chebyshev.of(cls.expansion(margin), bounded)

    @classmethod
    @lru_cache(maxsize=64)
    def expansion(cls, margin: float) -> SmoothSurrogate:
        """The expansion for a margin, with its errors."""
        return SmoothSurrogate(partial(cls.loss, margin=margin))


class Logistic(Smooth):
    """``log(1 + exp(-margin t))``."""

    name = "logistic"

    @staticmethod
    def loss(t: Tensor, margin: float) -> Tensor:
        """The formula."""
        return F.softplus(-margin * t, threshold=700)


class Sigmoid(Smooth):
    """``1 / (1 + exp(margin t))``: a symmetric loss, ``l(t) + l(-t) = 1``.

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
        scores: ``"sigmoid"``, ``"softmax"`` or ``"identity"``.
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
    return _FORMS[key](margin, scores != "identity", degree)
