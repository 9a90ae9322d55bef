import math

import pytest

from aucseg.runtime.durations import format_duration, parse_duration


@pytest.mark.parametrize("text", ["", "0m", "-3m", "soon", "3 m x", "1w", "m"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="write 90s, 30m, 1h30m or 2d"):
        parse_duration(text)


def test_durations_are_read_as_they_are_written() -> None:
    assert [parse_duration(text) for text in ("90s", "5", "30m", "1h30m", "2d", "1.5H")] == [
        90,
        300,
        1800,
        5400,
        172800,
        5400,
    ]
    for seconds in (1, 59, 61, 5000, 10**6):
        number, unit = format_duration(seconds).split()
        assert parse_duration(f"{float(number):f}{unit[0]}") == pytest.approx(seconds, rel=0.06)
    assert math.isclose(parse_duration("0.5h"), 1800)
