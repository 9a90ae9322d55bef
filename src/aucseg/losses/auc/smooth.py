"""Smooth surrogates of any shape, by Chebyshev expansion of `l(f_pos - f_neg)` over the unit square of scores."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

Coefficients = tuple[tuple[float, ...], ...]

_MAX_DEGREE = 64
_GRID = 129


class SmoothSurrogate:
    r"""A smooth surrogate `l(t)` of the score difference, for scores in [0, 1].

    `l(f_pos - f_neg)` is expanded as `sum_jk C[j, k] T_j(2 f_pos - 1) T_k(2 f_neg - 1)` with the smallest degree
    whose error is within the tolerance. The mean over all pairs of pixels then follows from the means of the Chebyshev
    polynomials over each class (polynomial moments: Chebyshev form keeps the digits that powers would cancel away).
    Work O(N K degree).

    Args:
        function: `l`, elementwise on float64 tensors of any shape with values in [-1, 1]; differentiable by autograd.
        tolerance: Largest error of `l` and of `l'`, as a share of the largest `|l'|`.

    Attributes:
        degree: Degree of the expansion.
        coefficients: `C`, (degree + 1) x (degree + 1).
        value_error: Largest error of `l` over a 129 x 129 grid of score pairs, its borders included.
        gradient_error: The same for `l'`.

    Raises:
        TypeError: The function cannot be called.
        ValueError: A tolerance that is not above 0, or degree 64 does not reach it: the function is not smooth enough.

    Example:
        >>> import torch
        >>> from aucseg.losses import SmoothSurrogate
        >>> surrogate = SmoothSurrogate(lambda t: torch.log1p(torch.exp(-2 * t)))
        >>> surrogate.degree < 20, surrogate.gradient_error < 2e-6
        (True, True)
    """

    def __init__(self, function: Callable[[Tensor], Tensor], tolerance: float = 1e-6) -> None:
        if not callable(function):
            raise TypeError(f"function must be callable, got {type(function).__name__}")
        if not tolerance > 0:
            raise ValueError(f"tolerance must be above 0, got {tolerance}")
        self.function = function
        grid = torch.linspace(0, 1, _GRID, dtype=torch.float64, device="cpu")
        value, slope = _value_and_slope(function, grid[:, None] - grid[None, :])
        scale = float(slope.abs().max())
        for degree in range(1, _MAX_DEGREE + 1):
            coefficients = _expand(function, degree)
            basis, derivative = _chebyshev(grid, degree)
            self.degree = degree
            self.value_error = float((basis @ coefficients @ basis.T - value).abs().max())
            self.gradient_error = max(
                float((derivative @ coefficients @ basis.T - slope).abs().max()),
                float((basis @ coefficients @ derivative.T + slope).abs().max()),
            )
            if max(self.value_error, self.gradient_error) <= tolerance * scale:
                break
        else:
            raise ValueError(
                f"surrogate is not smooth enough on [-1, 1]: at degree {_MAX_DEGREE} its slope is off by "
                f"{self.gradient_error:.1e} (allowed: {tolerance * scale:.1e}); take a smaller margin, raise "
                "`tolerance`, or take surrogate='hinge' or 'squared_hinge', which are computed by sorting"
            )
        self.coefficients: Coefficients = tuple(tuple(row) for row in coefficients.tolist())


def _value_and_slope(function: Callable[[Tensor], Tensor], t: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        t = t.clone().requires_grad_()
        value = function(t)
        if not isinstance(value, Tensor) or value.shape != t.shape:
            raise ValueError("a smooth surrogate must map a tensor to a tensor of the same shape, element by element")
        if value.dtype != t.dtype or not value.requires_grad:
            raise ValueError(
                f"a smooth surrogate must be differentiable and keep the dtype {t.dtype} of what it is given: it gave "
                f"{value.dtype}{'' if value.requires_grad else ' without a gradient'}"
            )
        (slope,) = torch.autograd.grad(value.sum(), t)
    if not bool((torch.isfinite(value) & torch.isfinite(slope)).all()):
        raise ValueError("a smooth surrogate must be finite, with finite slope, on [-1, 1]")
    return value.detach(), slope


def _expand(function: Callable[[Tensor], Tensor], degree: int) -> Tensor:
    num_nodes = degree + 1
    angle = (torch.arange(num_nodes, dtype=torch.float64, device="cpu") + 0.5) * (math.pi / num_nodes)
    scores = (angle.cos() + 1) / 2
    transform = torch.cos(torch.arange(num_nodes, dtype=torch.float64, device="cpu")[:, None] * angle) * (2 / num_nodes)
    transform[0] /= 2
    with torch.no_grad():
        return transform @ function(scores[:, None] - scores[None, :]) @ transform.T


def _chebyshev(scores: Tensor, degree: int) -> tuple[Tensor, Tensor]:
    """`T_j(2 f - 1)` and its derivative by f, each (points, degree + 1)."""
    x = 2 * scores - 1
    value, slope = [torch.ones_like(x), x], [torch.zeros_like(x), torch.ones_like(x)]
    for _ in range(degree - 1):
        slope.append(2 * value[-1] + 2 * x * slope[-1] - slope[-2])
        value.append(2 * x * value[-1] - value[-2])
    return torch.stack(value[: degree + 1], 1), 2 * torch.stack(slope[: degree + 1], 1)
