"""How the fuzz targets are run, and the damaged bytes and values that they are fed.

`AUCSEG_FUZZ=50 pytest tests/fuzz` takes 50 times as many examples, new ones at each run (hypothesis keeps what fails
in `.hypothesis`). Without it the examples are few and always the same, so that a failure is about a change in the
code; `AUCSEG_FUZZ_FIXED=1` makes them the same with an effort, too. `python fuzz/run.py` drives the same targets by
coverage.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

EFFORT = float(os.environ.get("AUCSEG_FUZZ", "1"))
Target = Callable[..., None]


def fuzzed(num_examples: int, *arguments: Any, **named: Any) -> Callable[[Target], Target]:
    """`hypothesis.given` with so many examples, times the effort asked for; an example that hangs fails."""

    def decorate(target: Target) -> Target:
        chosen = settings(
            max_examples=max(1, round(num_examples * EFFORT)),
            derandomize="AUCSEG_FUZZ" not in os.environ or "AUCSEG_FUZZ_FIXED" in os.environ,
            deadline=20_000,
            suppress_health_check=list(HealthCheck),
        )
        result: Target = chosen(given(*arguments, **named)(target))
        return result

    return decorate


@st.composite
def damaged_bytes(draw: st.DrawFn, data: bytes) -> bytes:
    """A file with some bytes replaced, cut out, doubled or swapped, or cut off; sometimes as it was."""
    result = bytearray(data)
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, len(result)))
        length = draw(st.integers(0, 24))
        kind = draw(st.sampled_from(["replace", "insert", "delete", "double", "zero", "cut"]))
        if kind == "replace":
            new = draw(st.binary(min_size=1, max_size=8))
            result[start : start + len(new)] = new
        elif kind == "insert":
            result[start:start] = draw(st.binary(min_size=1, max_size=24))
        elif kind == "delete":
            del result[start : start + length]
        elif kind == "double":
            result[start:start] = result[start : start + length]
        elif kind == "zero":
            result[start : start + length] = bytes(len(result[start : start + length]))
        else:
            del result[start:]
    return bytes(result)


NUMBERS = st.one_of(
    st.sampled_from([0, -1, 1, 255, 256, 2**31, 2**63, 10**30, -(10**30), 0.5, 1e308, -0.0]),
    st.sampled_from([float("nan"), float("inf"), float("-inf")]),
    st.integers(-3, 70_000),
    st.floats(),
)
JUNK = st.one_of(
    st.none(),
    st.booleans(),
    NUMBERS,
    st.text(max_size=8),
    st.sampled_from(
        ["", "..", "../x", "{stem}", "{1}", "{2}", "*", "**/*", "\x00", "\x1b[2J", "<b>", "=1+1", "\ud800"]
    ),
    st.lists(NUMBERS, max_size=4),
    st.dictionaries(st.text(max_size=4), NUMBERS, max_size=3),
)


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, entry in entries for place in _places(entry, (*path, key)))]


@st.composite
def damaged_tree(draw: st.DrawFn, value: Any) -> Any:
    """Nested dicts and lists with some entries replaced, removed, renamed or doubled."""
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.sampled_from(_places(value)))
        kind = draw(st.sampled_from(["replace", "remove", "rename", "double"]))
        value = _changed(draw, value, place, kind)
    return value


def _changed(draw: st.DrawFn, value: Any, place: tuple[Any, ...], kind: str) -> Any:
    if not place:
        return draw(JUNK) if kind == "replace" else value
    key, rest = place[0], place[1:]
    result = dict(value) if isinstance(value, dict) else list(value)
    if rest or kind == "replace":
        result[key] = _changed(draw, result[key], rest, kind)
    elif kind == "remove":
        del result[key]
    elif kind == "rename" and isinstance(result, dict):
        result[draw(st.text(max_size=6))] = result.pop(key)
    elif isinstance(result, list):
        result.insert(key, result[key])
    return result
