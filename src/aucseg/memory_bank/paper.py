"""The settings of the memory bank in the paper (Han et al., NeurIPS 2024), for the data sets that it reports."""

from collections.abc import Mapping
from typing import Any

from aucseg.hints import closest

_COMMON = {"capacity": 5, "scope": "image", "placement": "canvas"}
_BY_DATA_SET = {
    "ade20k": {"sample_ratio": 0.05, "resize_ratio": 0.4},
    "cityscapes": {"sample_ratio": 1.0, "resize_ratio": 1.0},
    "coco_stuff": {"sample_ratio": 0.05, "resize_ratio": 0.1},
}


def paper_settings(data_set: str) -> dict[str, Any]:
    """Options of `TailMemoryBank` that the paper sets: S_M, R_S, R_R, and what its code does about scope and place.

    Raises:
        ValueError: A data set that the paper does not report.

    Example:
        >>> paper_settings("cityscapes")["sample_ratio"]
        1.0
    """
    if data_set not in _BY_DATA_SET:
        raise ValueError(
            f"as_in_paper: the paper has no settings of the memory bank for {data_set!r}; "
            f"{closest(str(data_set), _BY_DATA_SET)}"
        )
    return {**_COMMON, **_BY_DATA_SET[data_set]}


def with_paper_settings(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a configuration, with what `as_in_paper` among them stands for; the other options take precedence.

    Raises:
        ValueError: `as_in_paper` names no data set of the paper.

    Example:
        >>> with_paper_settings({"as_in_paper": "coco_stuff", "capacity": 10})["capacity"]
        10
        >>> with_paper_settings({"capacity": 10})
        {'capacity': 10}
    """
    own = {key: value for key, value in options.items() if key != "as_in_paper"}
    data_set = options.get("as_in_paper")
    return own if data_set is None else {**paper_settings(data_set), **own}
