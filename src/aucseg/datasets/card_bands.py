"""The part of a card that says which bands of the images are read, and in which range."""

from __future__ import annotations

from collections.abc import Sequence

from aucseg.datasets.yaml_nodes import YamlValue


def parse_bands(bands: YamlValue) -> tuple[int, ...]:
    """Returns the numbers of the bands to read."""
    numbers = bands.integers(1, 65535)
    if not numbers:
        bands.error("'bands' is empty; name the bands to read, the first one is 1")
    return tuple(numbers)


def parse_value_range(value_range: YamlValue, bands: tuple[int, ...] | None) -> tuple[tuple[float, float], ...]:
    """Returns a range of values for each band, of one `[low, high]` for all or one for each."""
    if bands is None:
        value_range.error("'value_range' goes with 'bands': say which bands are read, for example bands: [1, 2, 3]")
    entries = value_range.sequence()
    pairs = entries if entries and entries[0].is_sequence else [value_range]
    ranges = []
    for pair in pairs:
        ends = [end.number() for end in pair.sequence()]
        if len(ends) != 2 or not ends[0] < ends[1]:
            pair.error(f"{ends} is not a range: give the values that become 0 and 255, the lower one first")
        ranges.append((ends[0], ends[1]))
    if len(ranges) not in (1, len(bands)):
        value_range.error(f"'value_range' holds {len(ranges)} pairs for {len(bands)} bands; give one, or one for each")
    return tuple(ranges if len(ranges) == len(bands) else ranges * len(bands))


def describe_range(value_range: Sequence[tuple[float, float]]) -> str:
    """The ranges of the bands in words, once where they are all the same.

    Example:
        >>> describe_range([(0, 23100)]), describe_range([(0, 3000), (0, 4500.5)])
        ('0 to 23,100', '0 to 3,000, 0 to 4,500.5')
    """
    return ", ".join(dict.fromkeys(f"{low:,.10g} to {high:,.10g}" for low, high in value_range))
