"""Means of head, middle and tail where a result lacks them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def group_means(values: Sequence[float | None], groups: Mapping[str, Sequence[int]]) -> dict[str, float]:
    """Mean of each group over the classes that have a value; without the groups in which none has.

    Example:
        >>> group_means([0.5, None, 0.25, 0.75], {"head": [0], "middle": [1], "tail": [1, 2, 3]})
        {'head': 0.5, 'tail': 0.5}
    """
    known = {name: [value for i in ids if (value := values[i]) is not None] for name, ids in groups.items()}
    return {name: sum(found) / len(found) for name, found in known.items() if found}
