"""Sets of pixels as intervals [begin, end) of the flattened batch: which are free, and which paste has which."""

from __future__ import annotations

import numpy as np

from aucseg.memory_bank.components import Ints, expand


def subtract(begin: Ints, end: Ints, taken_begin: Ints, taken_end: Ints) -> tuple[Ints, Ints, Ints]:
    """What is left of intervals outside those that are taken.

    Args:
        begin: (N,) any order.
        end: (N,) at least `begin`.
        taken_begin: (M,) sorted.
        taken_end: (M,) of disjoint intervals.

    Returns:
        `(source, begin, end)` of each piece, in the order of the intervals: which interval it is from, and where it
        lies. None is empty.

    Example:
        >>> pieces = subtract(np.array([0, 10]), np.array([9, 20]), np.array([2, 8, 15]), np.array([4, 11, 16]))
        >>> [piece.tolist() for piece in pieces]
        [[0, 0, 1, 1], [0, 4, 11, 16], [2, 8, 15, 20]]
    """
    first = np.searchsorted(taken_end, begin, side="right")
    cuts = np.maximum(np.searchsorted(taken_begin, end) - first, 0)
    if not cuts.any():
        source = np.flatnonzero(end > begin)
        return source, begin[source], end[source]
    source, position = expand(cuts + 1)
    taken = first[source] + position  # the interval that ends the piece; the one before begins it
    left = np.where(position == 0, begin[source], taken_end[taken - 1])
    right = np.where(position == cuts[source], end[source], taken_begin[np.minimum(taken, len(taken_begin) - 1)])
    kept = right > left
    return source[kept], left[kept], right[kept]


def overlaps(begin: Ints, end: Ints, other_begin: Ints, other_end: Ints) -> tuple[Ints, Ints]:
    """Where intervals meet others.

    Args:
        begin: (N,) any order.
        end: (N,).
        other_begin: (M,) sorted.
        other_end: (M,) of disjoint intervals.

    Returns:
        `(other, size)` of each overlap: which of the others, and pixels in common.

    Example:
        >>> [part.tolist() for part in overlaps(np.array([3]), np.array([9]), np.array([0, 8]), np.array([5, 20]))]
        [[0, 1], [2, 1]]
    """
    first = np.searchsorted(other_end, begin, side="right")
    own, position = expand(np.maximum(np.searchsorted(other_begin, end) - first, 0))
    other = first[own] + position
    return other, np.minimum(end[own], other_end[other]) - np.maximum(begin[own], other_begin[other])


def union(begin: Ints, end: Ints) -> tuple[Ints, Ints]:
    """Joins intervals that overlap: sorted, disjoint `(begin, end)`.

    Example:
        >>> [part.tolist() for part in union(np.array([5, 0, 3]), np.array([9, 4, 5]))]
        [[0, 5], [5, 9]]
    """
    order = np.argsort(begin, kind="stable")
    begin, reach = begin[order], np.maximum.accumulate(end[order])
    first = np.flatnonzero(np.concatenate([[True], begin[1:] >= reach[:-1]])[: len(begin)])
    return begin[first], reach[np.append(first[1:], len(begin)) - 1]


def gaps(begin: Ints, end: Ints, low: int, high: int) -> tuple[Ints, Ints]:
    """What [low, high) holds outside sorted, disjoint intervals: `(begin, length)` of each gap, some empty.

    Example:
        >>> [part.tolist() for part in gaps(np.array([0, 12]), np.array([11, 15]), low=10, high=20)]
        [[11, 15], [1, 5]]
    """
    within = slice(np.searchsorted(end, low, side="right"), np.searchsorted(begin, high))
    gap_begin = np.concatenate([[low], end[within]])
    gap_end = np.concatenate([begin[within], [high]])
    kept = gap_end > gap_begin
    return gap_begin[kept], (gap_end - gap_begin)[kept]


def settle(owner: Ints, begin: Ints, end: Ints, first_wins: bool) -> tuple[Ints, Ints, Ints]:
    """Gives what several intervals cover to the one whose owner comes first (or last).

    Args:
        owner: (N,) owner of each interval; those of one owner are disjoint.
        begin: (N,) any order.
        end: (N,) none empty.
        first_wins: Whether the smallest owner has it, or the greatest.

    Returns:
        `(source, begin, end)` of disjoint pieces: which interval each is from, and where it lies.

    Example:
        >>> pieces = settle(np.array([0, 1]), np.array([4, 0]), np.array([6, 9]), first_wins=True)
        >>> [piece.tolist() for piece in pieces]
        [[0, 1, 1], [4, 0, 6], [6, 4, 9]]
    """
    order = np.argsort(begin, kind="stable")
    reach = np.maximum.accumulate(end[order])
    joins = begin[order][1:] < reach[:-1]
    if not joins.any():
        return np.arange(len(owner)), begin, end
    shared = np.zeros(len(owner), dtype=bool)
    shared[order[1:]] = joins
    shared[order[:-1]] |= joins
    alone, several = np.flatnonzero(~shared), np.flatnonzero(shared)
    # Between two neighbouring ends nothing changes: the pieces of which all is made.
    cuts = np.unique(np.concatenate([begin[several], end[several]]))
    first = np.searchsorted(cuts, begin[several])
    interval, position = expand(np.searchsorted(cuts, end[several]) - first)
    piece, source = first[interval] + position, several[interval]
    winner = np.full(len(cuts), len(owner) if first_wins else -1)
    (np.minimum if first_wins else np.maximum).at(winner, piece, owner[source])
    won = winner[piece] == owner[source]
    piece, source = piece[won], source[won]
    return (
        np.concatenate([alone, source]),
        np.concatenate([begin[alone], cuts[piece]]),
        np.concatenate([end[alone], cuts[piece + 1]]),
    )
