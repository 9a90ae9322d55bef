import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aucseg.compare.methods import parse_methods
from aucseg.compare.search import Grid, Outcome, Point, outcome, parse_search, trial_config, with_settings
from aucseg.memory_bank import TailMemoryBank

METHODS = parse_methods(["ce", "la", "aucseg", "ce+bank", "ce+rcs", "ce+rfs", "ce+posthoc-la"], {})
BASE = {"model": {"learning_rate": "2e-4"}}


def test_every_method_gets_as_many_trials() -> None:
    search = parse_search(["auc_weight=0.5,1,2", "la:model.loss_options.tau=0.1,0.2,0.3"], METHODS)
    assert search is not None
    grids = {method.name: search.grids_of(method, BASE) for method in METHODS}
    assert {len(grid[0].values) for grid in grids.values()} == {3}
    assert grids["aucseg"] == (Grid("model.loss_options.auc_weight", (0.5, 1, 2)),)
    assert grids["la"] == (Grid("model.loss_options.tau", (0.1, 0.2, 0.3)),)
    assert grids["ce"] == (Grid("model.learning_rate", (1e-4, 2e-4, 4e-4), 2e-4),)
    assert grids["ce+bank"][0].path == "model.bank.presence_target"
    assert grids["ce+rcs"][0].path == "data.sampler_options.temperature"
    assert grids["ce+rfs"][0].path == "data.sampler_options.threshold"
    assert grids["ce+posthoc-la"][0].path == "model.model_options.tau"
    assert search.limit == 6


def test_the_bank_is_tried_with_the_setting_that_has_an_effect() -> None:
    search = parse_search(["auto"], METHODS)
    assert search is not None
    base = {"model": {"bank": {"presence_target": 0.2}}}
    (grid,) = search.grids_of(METHODS[3], base)
    assert (grid.path, grid.values) == ("model.bank.presence_target", (0.075, 0.15, 0.3, 0.6))
    # The target that is tried for the bank's own policy keeps its bound.
    trial = with_settings({"model": {"bank": {}}}, {"model.bank.presence_target": 0.3})
    assert TailMemoryBank([1], 2, **trial["model"]["bank"]).max_factor == 5
    trial = with_settings({"model": {"bank": {"presence_target": 0.2}}}, {"model.bank.presence_target": 0.3})
    assert trial["model"]["bank"] == {"presence_target": 0.3}
    for by_share in ({"sample_ratio": 0.2}, {"as_in_paper": "ade20k"}):
        (grid,) = search.grids_of(METHODS[3], {"model": {"bank": by_share}})
        assert grid.path == "model.bank.sample_ratio"


def test_rates_are_tuned_for_every_method_that_trains() -> None:
    search = parse_search(["auto", "rates"], METHODS)
    assert search is not None
    paths = {method.name: [grid.name for grid in search.grids_of(method, BASE)] for method in METHODS}
    assert paths["la"] == ["tau", "learning_rate"]
    assert paths["ce"] == ["learning_rate"]
    assert paths["ce+posthoc-la"] == ["tau"]
    (vs,) = parse_methods(["vs"], {})
    assert [grid.name for grid in search.grids_of(vs, BASE)] == ["tau", "gamma", "learning_rate"]


def test_several_settings_of_one_method() -> None:
    items = ["la:model.loss_options.tau=2,1", "la:model.learning_rate=0.1,0.2", "la:model.loss=la,ce"]
    search = parse_search(items, METHODS, limit=3)
    assert search is not None
    assert [grid.values for grid in search.grids_of(METHODS[1], BASE)] == [(1, 2), (0.1, 0.2), ("la", "ce")]
    assert search.limit == 3


@pytest.mark.parametrize("loss", ["la", "dice", "wce-median"])
def test_a_loss_is_tuned_alike_with_and_without_the_bank(loss: str) -> None:
    search = parse_search(["auto"], METHODS)
    assert search is not None
    alone, beside = (search.grids_of(method, BASE) for method in parse_methods([loss, f"{loss}+bank"], {}))
    assert alone == beside


def test_auto_and_none() -> None:
    search = parse_search(["auto"], METHODS)
    assert search is not None
    assert search.num_trials == 4
    assert parse_search([], METHODS) is None


@pytest.mark.parametrize(
    ("items", "message"),
    [
        (["tau"], "expected 'auto'"),
        (["tau=1"], "at least two values"),
        (["vs:model.x=1,2"], "not a method with a setting"),
        (["tau=1,2", "auc_weight=1,2,3"], "same number of trials"),
        (["tau={,"], "is not YAML"),
    ],
)
def test_wrong_searches_are_told(items: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_search(items, METHODS)


def test_rates_are_numbers_however_they_are_written() -> None:
    search = parse_search(["learning_rate=3e-3,1e-4,3e-4"], METHODS)
    assert search is not None
    grids = search.grids_of(METHODS[0], BASE)
    assert grids == (Grid("model.learning_rate", (1e-4, 3e-4, 3e-3)),)
    # So the grid goes on beyond its edge.
    assert outcome(grids, 6, {(1e-4,): 0.3, (3e-4,): 0.2, (3e-3,): 0.1}).wanted == ((3.33333e-05,),)


def test_values_of_a_setting_that_no_method_has_are_refused() -> None:
    search = parse_search(["auc_weigth=0.5,1"], METHODS)
    assert search is not None
    with pytest.raises(ValueError, match="tuned by 'auc_weigth'; did you mean auc_weight"):
        search.check(METHODS, BASE)


def test_more_trials_than_known_values_are_refused() -> None:
    search = parse_search(["auc_weight=1,2,3,4,5,6,7"], METHODS)
    assert search is not None
    with pytest.raises(ValueError, match=r"--search la:model\.loss_options\.tau=V1"):
        search.grids_of(METHODS[1], BASE)


def test_a_limit_below_the_grid_is_told() -> None:
    with pytest.raises(ValueError, match="--search-limit 2 is below the 3 values"):
        parse_search(["tau=1,2,3"], METHODS, limit=2)


def run_to_the_end(
    grids: Sequence[Grid], limit: int, objective: Callable[..., float | None]
) -> tuple[Outcome, dict[Point, float | None]]:
    """What a trainer does: tries what is wanted, one after another, until nothing is."""
    scores: dict[Point, float | None] = {}
    while wanted := (found := outcome(grids, limit, scores)).wanted:
        assert wanted[0] not in scores
        scores[wanted[0]] = objective(*wanted[0])
    return found, scores


def test_a_grid_goes_on_beyond_its_edge() -> None:
    grid = Grid("model.loss_options.tau", (0.25, 0.5, 1.0))
    found, scores = run_to_the_end([grid], 8, lambda tau: -abs(math.log2(tau) - 2))  # best at 4
    assert found.point == (4.0,)
    assert found.tried == ((0.25, 0.5, 1.0, 2.0, 4.0, 8.0),)
    assert found.at_edge == (False,)
    assert len(scores) == 6
    found, scores = run_to_the_end([grid], 8, lambda tau: -abs(math.log2(tau) + 3))  # best at 1/8
    assert (found.point, found.at_edge, len(scores)) == ((0.125,), (False,), 5)


def test_the_limit_is_kept_and_the_edge_is_marked() -> None:
    grid = Grid("model.loss_options.tau", (0.25, 0.5, 1.0))
    found, scores = run_to_the_end([grid], 5, lambda tau: tau)
    assert (found.point, found.at_edge, len(scores)) == ((4.0,), (True,), 5)
    # With a higher limit it goes on from there.
    assert outcome([grid], 6, scores).wanted == ((8.0,),)


def test_the_second_setting_is_tuned_beside_the_best_value_of_the_first() -> None:
    grids = [Grid("a.tau", (0.5, 1.0, 2.0), 1.0), Grid("a.gamma", (0.1, 0.2, 0.4), 0.2)]
    found, scores = run_to_the_end(grids, 9, lambda tau, gamma: -abs(tau - 1) - abs(gamma - 0.8))
    assert found.point == (1.0, 0.8)
    assert found.tried == ((0.5, 1.0, 2.0), (0.1, 0.2, 0.4, 0.8, 1.6))
    assert set(scores) == {(0.5, 0.2), (1.0, 0.2), (2.0, 0.2), (1.0, 0.1), (1.0, 0.4), (1.0, 0.8), (1.0, 1.6)}
    found, scores = run_to_the_end(grids, 3, lambda tau, gamma: -abs(tau - 1) - gamma)  # no trial is left for it
    assert (found.point, found.tried, found.at_edge) == ((1.0, 0.2), ((0.5, 1.0, 2.0), (0.2,)), (False, False))
    found, scores = run_to_the_end(grids, 4, lambda tau, gamma: -abs(tau - 1) - gamma)  # one trial
    assert (found.point, found.tried[1], found.at_edge) == ((1.0, 0.1), (0.1, 0.2), (False, True))
    assert len(scores) == 4


def test_settings_end_somewhere() -> None:
    cases: list[tuple[Grid, list[Any], bool]] = [
        (Grid("a.threshold", (0.5, 0.7, 0.9)), [0.5, 0.7, 0.9, 1.0], False),  # by equal differences, to 1
        (Grid("a.presence_target", (0.2, 0.4)), [0.2, 0.4, 0.8, 1.0], False),
        (Grid("a.beta", (0.99, 0.999)), [0.99, 0.999, 0.9999, 0.99999, 0.999999], True),
        (Grid("a.auc_weight", (1, 2, 4)), [1, 2, 4, 8, 16], True),
        (Grid("a.offset", (0, 1)), [0, 1, 2, 3, 4], True),
        (Grid("a.surrogate", ("hinge", "square")), ["hinge", "square"], False),  # names have no edge
    ]
    for grid, tried, at_edge in cases:
        found, _ = run_to_the_end([grid], 5, tried.index)
        assert found.tried[0] == tuple(tried)
        assert found.at_edge == (at_edge,)
    assert [type(value) for value in run_to_the_end([Grid("a.b", (1, 2, 4))], 4, float)[0].tried[0]] == [int] * 4
    below: list[tuple[tuple[float, ...], tuple[float, ...]]] = [
        ((1, 2, 3), (0.25, 0.5, 1, 2, 3)),
        ((1e-4, 2e-4, 3e-4), (2.5e-5, 5e-5, 1e-4, 2e-4, 3e-4)),
        ((0.2, 0.5, 0.8), (0.032, 0.08, 0.2, 0.5, 0.8)),
        ((0, 1, 2), (0, 1, 2)),
    ]
    for values, expected in below:
        downwards = run_to_the_end([Grid("a.b", values)], 5, lambda value: -value)[0]
        assert downwards.tried == (expected,)
        assert downwards.at_edge == (expected[0] > 0,)


def test_failed_trials_bound_a_grid_and_have_no_score() -> None:
    grid = Grid("a.rate", (1.0, 2.0, 4.0))
    found, _ = run_to_the_end([grid], 9, lambda rate: rate if rate < 4 else None)
    assert (found.point, found.at_edge) == ((2.0,), (False,))
    found, _ = run_to_the_end([grid], 9, lambda rate: math.nan if rate == 2 else 1 / rate)
    assert found.point is not None
    assert found.point[0] < 1
    found, scores = run_to_the_end([grid, Grid("a.b", (1, 2))], 9, lambda rate, b: None)
    assert (found.point, len(scores)) == (None, 3)


def test_equal_scores_ask_for_no_more() -> None:
    found, scores = run_to_the_end([Grid("a.b", (1.0, 2.0, 4.0))], 9, lambda _: 0.5)
    assert (found.point, len(scores)) == ((2.0,), 3)


@settings(max_examples=50, deadline=None)
@given(st.integers(-6, 6), st.integers(3, 12), st.lists(st.booleans(), min_size=40, max_size=40))
def test_a_peak_within_reach_is_found(peak: int, limit: int, fails: list[bool]) -> None:
    """Of a curve with one peak the search finds the peak, or says that it lies beyond; with failures it ends, too."""
    grids = [Grid("a.b", (0.5, 1.0, 2.0)), Grid("a.c", (1, 2))]
    found, scores = run_to_the_end(grids, limit, lambda b, c: -abs(math.log2(b) - peak))
    assert len(scores) <= limit
    assert found.point is not None
    reached = math.log2(found.point[0]) == peak
    assert reached or found.at_edge[0]
    assert reached or len(scores) == limit
    rest = iter(fails)
    assert len(run_to_the_end(grids, limit, lambda b, c: None if next(rest) else b)[1]) <= limit


def test_a_trial_never_sees_the_validation_split() -> None:
    config = trial_config({"trainer": {"max_steps": 100}, "data": {"card": "freedoom_lt"}}, 0.25, 10)
    assert config["data"]["held_out_share"] == 0.25
    assert config["trainer"] == {"max_steps": 10, "val_check_interval": 10}
    data = {"card": "freedoom_lt", "validate_held_out": False}
    kept = trial_config({"trainer": {"max_steps": 100}, "data": data}, 0.25, None)
    assert kept["data"] == {**data, "held_out_share": 0.25, "validate_held_out": True}


def test_a_trial_does_not_choose_by_the_images_that_runs_are_validated_on() -> None:
    data = {"card": "freedoom_lt", "held_out_share": 0.2}
    with pytest.raises(ValueError, match="compare without --search"):
        trial_config({"trainer": {"max_steps": 100}, "data": data}, 0.25, None)
