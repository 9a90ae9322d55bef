"""Head, middle and tail where the results that are compared do not all name them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

GROUP_NAMES = ("head", "middle", "tail")
# Where a card names no groups: head has at least this share of the pixels, tail less than that.
HEAD_SHARE, TAIL_SHARE = 0.02, 0.005


def groups_by_share(counts: Sequence[float]) -> dict[str, list[int]]:
    """Class ids of head, middle and tail by their share of the pixels.

    Example:
        >>> groups_by_share([970, 10, 16, 4])
        {'head': [0], 'middle': [1, 2], 'tail': [3]}
    """
    total = max(sum(counts), 1)
    shares = [count / total for count in counts]
    names = ["head" if s >= HEAD_SHARE else "tail" if s < TAIL_SHARE else "middle" for s in shares]
    return {name: [i for i, group in enumerate(names) if group == name] for name in GROUP_NAMES}


def group_means(values: Sequence[float | None], groups: Mapping[str, Sequence[int]]) -> dict[str, float]:
    """Mean of each group over the classes that have a value; without the groups in which none has.

    Example:
        >>> group_means([0.5, None, 0.25, 0.75], {"head": [0], "middle": [1], "tail": [1, 2, 3]})
        {'head': 0.5, 'tail': 0.5}
    """
    known = {name: [value for i in ids if (value := values[i]) is not None] for name, ids in groups.items()}
    return {name: sum(found) / len(found) for name, found in known.items() if found}
