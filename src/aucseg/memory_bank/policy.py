"""Which of the missing classes are pasted: the policies of the memory bank.

A policy draws among the tail classes that a unit (an image, or a batch with `scope="batch"`) lacks. Classes go by
their position among the tail classes here.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from aucseg.memory_bank.components import Bools, Ints, pick

DEFAULT_POLICY = {"presence_target": 0.1, "max_factor": 5.0}
"""Options of a bank that is given none for what it pastes."""


def with_default_policy(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a bank, with `DEFAULT_POLICY` where they say neither a presence target nor a sample ratio.

    Example:
        >>> with_default_policy({"capacity": 3, "max_factor": 2.0})
        {'presence_target': 0.1, 'max_factor': 2.0, 'capacity': 3}
        >>> with_default_policy({"sample_ratio": 0.2})
        {'sample_ratio': 0.2}
    """
    if options.get("sample_ratio") is not None or options.get("presence_target") is not None:
        return dict(options)
    return DEFAULT_POLICY | {key: value for key, value in options.items() if value is not None}


def draw_share_of_missing(
    missing: Bools, stored: Bools, sample_ratio: float, generator: torch.Generator
) -> tuple[Ints, Ints]:
    r"""The paper's policy: :math:`\lceil |C_{miss}| R_S \rceil` classes of each unit, without replacement.

    Args:
        missing: (U, num_tail) whether a unit lacks a class.
        stored: (U, num_tail) whether it lacks it and something of it is stored.
        sample_ratio: :math:`R_S`, 0..1.
        generator: CPU generator of the draw.

    Returns:
        `(unit, position)` of each class that is drawn, unit after unit, in random order within each.

    Example:
        >>> missing, stored = np.array([[True] * 4]), np.array([[True, False, True, False]])
        >>> unit, position = draw_share_of_missing(missing, stored, sample_ratio=0.5, generator=torch.Generator())
        >>> unit.tolist(), sorted(position.tolist())
        ([0, 0], [0, 2])
    """
    # The small number keeps 0.07 * 100 = 7.000000000000001 from becoming 8.
    wanted = np.ceil(missing.sum(1) * sample_ratio - 1e-9)
    # Classes of which nothing is stored come last.
    order = np.where(stored, _uniform(stored.shape, generator), 1).argsort(1, kind="stable")
    unit, rank = np.nonzero(np.arange(stored.shape[1]) < np.minimum(wanted, stored.sum(1))[:, None])
    return unit, order[unit, rank]


def draw_to_presence(
    stored: Bools,
    shares: Sequence[float],
    target: float,
    generator: torch.Generator,
    max_factor: float | None = None,
) -> tuple[Ints, Ints]:
    r"""Each class on its own, with the probability :math:`\max(0, (t - p) / (1 - p))` that lifts it to the target.

    Args:
        stored: (U, num_tail) whether a unit lacks a class of which something is stored.
        shares: :math:`p` of each tail class, the share of the units that hold it, 0..1.
        target: :math:`t`, 0..1.
        generator: CPU generator of the draws.
        max_factor: The target of a class is at most this many times :math:`p`; None for no bound.

    Returns:
        `(unit, position)` of each class that is drawn, ascending.

    Example:
        >>> stored = np.ones((1, 2), dtype=bool)
        >>> draw_to_presence(stored, shares=[0.2, 0.9], target=1.0, generator=torch.Generator())[1].tolist()
        [0, 1]
        >>> draw_to_presence(stored, shares=[0.6, 0.9], target=0.5, generator=torch.Generator())[1].tolist()
        []
        >>> unit, position = draw_to_presence(stored, [0.0, 0.5], 1.0, torch.Generator(), max_factor=2.0)
        >>> position.tolist()
        [1]
    """
    share = np.array(shares)
    targets = np.full(len(share), target) if max_factor is None else np.minimum(target, max_factor * share)
    drawn = _uniform(stored.shape, generator) * (1 - share) < targets - share
    unit, position = np.nonzero(stored & drawn)
    return unit, position


def draw_below(counts: Ints, generator: torch.Generator) -> Ints:
    """An integer below each of the counts (N,), which are at least 1 and below 2**31."""
    return pick(torch.randint(2**31, counts.shape, generator=generator, device="cpu").numpy(), counts)


def _uniform(shape: tuple[int, ...], generator: torch.Generator) -> npt.NDArray[np.float64]:
    """Uniform on [0, 1)."""
    drawn: npt.NDArray[np.float64] = torch.rand(shape, generator=generator, dtype=torch.float64, device="cpu").numpy()
    return drawn
