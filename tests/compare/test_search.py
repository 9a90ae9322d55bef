import pytest

from aucseg.compare.methods import parse_methods
from aucseg.compare.search import Grid, parse_search, scores_of, trial_config

METHODS = parse_methods(["ce", "la", "aucseg", "ce+bank", "ce+rcs", "ce+posthoc-la"], {})
BASE = {"model": {"learning_rate": "2e-4"}}


def test_every_method_gets_as_many_trials() -> None:
    search = parse_search(["auc_weight=0.5,1,2", "la:model.loss_options.tau=0.1,0.2,0.3"], METHODS)
    assert search is not None
    grids = {method.name: search.grid(method, BASE) for method in METHODS}
    assert {len(grid.values) for grid in grids.values()} == {3}
    assert grids["aucseg"] == Grid("model.loss_options.auc_weight", (0.5, 1, 2))
    assert grids["la"] == Grid("model.loss_options.tau", (0.1, 0.2, 0.3))
    assert grids["ce"] == Grid("model.learning_rate", (1e-4, 2e-4, 4e-4))
    assert grids["ce+bank"].path == "model.bank.sample_ratio"
    assert grids["ce+rcs"].path == "data.sampler_options.temperature"
    assert grids["ce+posthoc-la"].path == "model.model_options.tau"


def test_the_bank_is_tried_with_the_setting_that_has_an_effect() -> None:
    search = parse_search(["auto"], METHODS)
    assert search is not None
    base = {"model": {"bank": {"presence_target": 0.2}}}
    assert search.grid(METHODS[3], base) == Grid("model.bank.presence_target", (0.05, 0.1, 0.15, 0.3))


@pytest.mark.parametrize("loss", ["la", "dice", "wce-median"])
def test_a_loss_is_tuned_alike_with_and_without_the_bank(loss: str) -> None:
    search = parse_search(["auto"], METHODS)
    assert search is not None
    alone, beside = (search.grid(method, BASE) for method in parse_methods([loss, f"{loss}+bank"], {}))
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
        (["vs:model.x=1,2"], "none of the methods"),
        (["tau=1,2", "auc_weight=1,2,3"], "same number of trials"),
    ],
)
def test_wrong_searches_are_told(items: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_search(items, METHODS)


def test_more_trials_than_known_values_are_refused() -> None:
    search = parse_search(["auc_weight=1,2,3,4,5,6,7"], METHODS)
    assert search is not None
    with pytest.raises(ValueError, match=r"--search la:model\.loss_options\.tau=V1"):
        search.grid(METHODS[1], BASE)


def test_failed_trials_have_no_score() -> None:
    assert scores_of(Grid("a.b", (1, 2, 3)), {1: 0.5, 2: None, 3: float("nan")}.get) == {1: 0.5}


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
