"""Numbers as people read them."""

from __future__ import annotations


def percent(share: float) -> str:
    """A share in [0, 1] as a percentage with two or three significant digits.

    Example:
        >>> percent(0.514), percent(0.0123), percent(0.0000456), percent(0.0)
        ('51.4 %', '1.23 %', '0.0046 %', '0 %')
    """
    value = 100 * share
    if value == 0:
        return "0 %"
    if value >= 10:
        return f"{value:.1f} %"
    if value >= 0.1:
        return f"{value:.2f} %"
    return f"{_plain(value)} %"


def _plain(value: float) -> str:
    # Two significant digits without an exponent.
    digits = f"{value:.1e}"
    return f"{value:.{1 - int(digits.split('e')[1])}f}"


def points(value: float | None) -> str:
    """A value in [0, 1] in points of a hundred, one decimal; a dash for None.

    Example:
        >>> points(0.1234), points(None)
        ('12.3', '–')
    """
    return "–" if value is None else f"{100 * value:.1f}"


def signed_points(value: float | None) -> str:
    """A difference in points with its sign; the minus is a real one.

    Example:
        >>> signed_points(0.1234), signed_points(-0.02), signed_points(0.0), signed_points(None)
        ('+12.3', '−2.0', '±0.0', '')
    """
    if value is None:
        return ""
    text = f"{100 * abs(value):.1f}"
    return ("±" if text == "0.0" else "+" if value > 0 else "−") + text


def short_count(count: float) -> str:
    """A count with a suffix for thousands, millions and billions.

    Example:
        >>> short_count(950), short_count(12_300), short_count(4.56e6), short_count(7.8e9)
        ('950', '12.3 k', '4.6 M', '7.8 G')
    """
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.1f} {suffix}"
    return f"{count:.0f}"
