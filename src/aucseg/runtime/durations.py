"""Durations as people write and read them."""

from __future__ import annotations

import re

_SECONDS = {"": 60, "s": 1, "m": 60, "h": 3600, "d": 86400}


def parse_duration(text: str) -> float:
    """Returns the seconds of a duration; a number alone is minutes.

    Raises:
        ValueError: The text is not a duration, or not above 0.

    Example:
        >>> parse_duration("30m"), parse_duration("1h30m"), parse_duration("90s"), parse_duration("0.5h")
        (1800.0, 5400.0, 90.0, 1800.0)
        >>> parse_duration("soon")
        Traceback (most recent call last):
        ...
        ValueError: 'soon' is not a duration: write 90s, 30m, 1h30m or 2d
    """
    parts = re.findall(r"(\d+(?:\.\d+)?)([smhd]?)", text.strip().lower())
    if "".join(number + unit for number, unit in parts) != text.strip().lower() or not parts:
        raise ValueError(f"{text!r} is not a duration: write 90s, 30m, 1h30m or 2d")
    seconds = sum(float(number) * _SECONDS[unit] for number, unit in parts)
    if seconds <= 0:
        raise ValueError(f"{text!r} is not a time to train in: write 90s, 30m, 1h30m or 2d")
    return seconds


def format_duration(seconds: float) -> str:
    """Returns a duration in words, to two digits at least.

    Example:
        >>> [format_duration(seconds) for seconds in (8.4, 89, 145, 840, 6000, 90000, 604800, 1e7)]
        ['8 seconds', '89 seconds', '2.4 minutes', '14 minutes', '1.7 hours', '25 hours', '7 days', '116 days']
    """
    if seconds < 90:
        number = max(1, round(seconds))
        return f"{number} second{'s' * (number != 1)}"
    if seconds < 5400:
        return f"{seconds / 60:.2g} minutes"
    if seconds < 2 * 86400:
        return f"{seconds / 3600:.2g} hours"
    days = seconds / 86400
    return f"{days:.2g} days" if days < 100 else f"{days:.0f} days"
