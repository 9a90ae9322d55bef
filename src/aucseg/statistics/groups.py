"""Head, middle and tail by share of the labelled pixels, where a card does not name them."""

from __future__ import annotations

from collections.abc import Sequence

from aucseg.datasets.card_classes import GROUP_NAMES

# Shares of the labelled pixels: the head has at least the first, the tail less than the second.
HEAD_SHARE, TAIL_SHARE = 0.02, 0.005
RULE = f"by share of the labelled pixels: head from {100 * HEAD_SHARE:g} %, tail below {100 * TAIL_SHARE:g} %"


def groups_by_share(
    counts: Sequence[float], *, head: float = HEAD_SHARE, tail: float = TAIL_SHARE
) -> dict[str, list[int]]:
    """Class ids of head, middle and tail by their share of all pixels.

    Args:
        counts: (K,) pixels of each class, in any unit.
        head: A class with at least this share belongs to the head.
        tail: A class with less than this share belongs to the tail; one that never occurs has the share 0.

    Example:
        >>> groups_by_share([970, 10, 16, 4])
        {'head': [0], 'middle': [1, 2], 'tail': [3]}
    """
    total = sum(counts) or 1
    shares = [count / total for count in counts]
    names = ["head" if share >= head else "tail" if share < tail else "middle" for share in shares]
    return {name: [i for i, group in enumerate(names) if group == name] for name in GROUP_NAMES}
