"""`aucseg compare --search` and `--folds`: settings are chosen away from the images that methods are compared on."""

import json
from pathlib import Path

import pytest
import yaml

from tests.commands.comparisons import change_config, rows_of
from tests.commands.conftest import Compare, Launches


def test_search_tunes_every_method_alike_and_away_from_validation(
    compare: Compare, launches: Launches, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--methods", "ce,aucseg,ce+posthoc-la", "--seeds", "0,1", "--search", "auc_weight=1,2,4")
    assert compare(*options, "--search-steps", "2") == 0
    started = launches()
    trials = [line for line in started if "/search/" in line]
    for method in ("ce", "aucseg", "ce+posthoc-la"):
        assert sum(f"/{method}/" in line for line in trials) == 3
    assert len(started) - len(trials) == 6
    for folder in (tmp_path / "out" / "search").glob("*/*/*"):
        config = yaml.safe_load((folder / "input.yaml").read_text())
        assert config["data"]["held_out_share"] == 0.25
        assert config["trainer"]["max_steps"] == 2
    chosen = {entry["method"]: entry for entry in json.loads((tmp_path / "out" / "search.json").read_text())}
    assert chosen["aucseg"]["settings"] == {"model.loss_options.auc_weight": 2}
    assert chosen["aucseg"]["tried"] == {"model.loss_options.auc_weight": [1, 2, 4]}
    assert chosen["aucseg"]["at_edge"] == []
    for seed in (0, 1):
        config = yaml.safe_load((tmp_path / "out" / "smp-fpn" / "aucseg" / f"seed{seed}" / "input.yaml").read_text())
        assert config["model"]["loss_options"]["auc_weight"] == 2
        assert config["data"].get("held_out_share", 0) == 0
        assert (config["seed_everything"], config["data"]["seed"]) == (seed, seed)
    assert "auc_weight = 2" in capsys.readouterr().out
    # Trials are validated on other images than runs; neither is taken for the other.
    assert compare(*options, "--search-steps", "2", "--dry-run") == 0
    assert {line.split()[0] for line in capsys.readouterr().out.splitlines()} == {"finished"}
    assert compare(*options, "--search-steps", "2") == 0
    assert launches() == []


def test_a_search_goes_on_beyond_the_edge_and_says_so(
    compare: Compare, launches: Launches, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The stand-in is best at an AUC weight of 2, which lies outside of the grid; the bank's is never tuned."""
    options = ("--methods", "ce,auc,vs", "--seeds", "0", "--search", "auc_weight=0.25,0.5")
    assert compare(*options, "--search-limit", "3") == 0
    trials = [line.rpartition("/")[2] for line in launches() if "/search/" in line and "/auc/" in line]
    assert trials == ["auc_weight=0.25", "auc_weight=0.5", "auc_weight=1.0"]
    chosen = {entry["method"]: entry for entry in json.loads((tmp_path / "out" / "search.json").read_text())}
    assert chosen["auc"]["at_edge"] == ["model.loss_options.auc_weight"]
    assert "auc_weight 1.0‡ of 0.25, 0.5, 1.0 |" in (tmp_path / "out" / "table.md").read_text()
    printed = capsys.readouterr().out
    assert "auc_weight at the edge of its grid" in printed
    assert "auc_weight 1.0^ of 0.25, 0.5, 1.0\n" in printed
    # With a higher limit what is known is not tried again, and every method has as many trials as it wants up to that.
    assert compare(*options, "--search-limit", "6", "--redo") == 0
    started = launches()
    assert [line.rpartition("/")[2] for line in started if "/search/" in line and "/auc/" in line] == [
        "auc_weight=2.0",
        "auc_weight=4.0",
    ]
    chosen = {entry["method"]: entry for entry in json.loads((tmp_path / "out" / "search.json").read_text())}
    assert chosen["auc"]["settings"] == {"model.loss_options.auc_weight": 2.0}
    assert chosen["auc"]["at_edge"] == []
    assert list(chosen["vs"]["settings"]) == ["model.loss_options.tau", "model.loss_options.gamma"]
    assert all(len(entry["scores"]) <= 6 for entry in chosen.values())
    run = yaml.safe_load((tmp_path / "out" / "smp-fpn" / "auc" / "seed0" / "input.yaml").read_text())
    assert run["model"]["loss_options"]["auc_weight"] == 2.0
    assert compare(*options, "--search-limit", "6") == 0
    assert launches() == []


def test_other_seeds_take_the_settings_of_the_trials_that_there_are(
    compare: Compare, launches: Launches, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Be it that no run of the trials' seed is finished, or that it is not named again."""
    options = ("--methods", "auc", "--search", "auc_weight=1,2", "--search-limit", "2")
    assert compare(*options, "--seeds", "3") == 0
    launches()
    (tmp_path / "out" / "smp-fpn" / "auc" / "seed3" / "compare.json").unlink()
    assert compare(*options, "--seeds", "1,0") == 0
    assert launches() == ["out/smp-fpn/auc/seed1", "out/smp-fpn/auc/seed0"]
    capsys.readouterr()
    assert compare(*options, "--seeds", "0,1", "--dry-run") == 0
    assert {line.split()[0] for line in capsys.readouterr().out.splitlines()} == {"finished"}


def test_a_metric_that_no_trial_has_is_told(
    compare: Compare, launches: Launches, base_config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    card = tmp_path / "card.yaml"
    original = Path(yaml.safe_load(base_config.read_text())["data"]["card"])
    options = ("--methods", "ce,ce+posthoc-la", "--seeds", "0", "--search", "auto", "--search-metric")
    # The stand-in has no value of it, as where no image that is held out has such a class.
    assert compare(*options, "head") == 1
    printed = capsys.readouterr().out
    assert "ce is left out: no trial has a value of head" in printed
    assert "ce+posthoc-la is left out: it starts from ce, which is" in printed
    launches()
    content = yaml.safe_load(original.read_text())
    card.write_text(yaml.safe_dump(content | {"groups": {"tail": content["groups"]["tail"]}}))
    change_config(base_config, "data", card=str(card))
    with pytest.raises(ValueError, match=r"--search-metric head: the card 'tiny' names no such group.* miou or tail,"):
        compare(*options, "head")
    assert launches() == []


def test_folds_of_the_training_images(
    compare: Compare, launches: Launches, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each fold is validated on once; its settings are chosen on images of the others alone."""
    options = ("--methods", "ce,ce+posthoc-la", "--folds", "2", "--search", "tau=1,2", "--search-limit", "2")
    assert compare(*options) == 0
    started = launches()
    out = tmp_path / "out" / "smp-fpn"
    for number in range(2):
        for method in ("ce", "ce+posthoc-la"):
            run = yaml.safe_load((out / method / f"fold{number}" / "input.yaml").read_text())
            assert (run["data"]["fold"], run["data"]["seed"], run["seed_everything"]) == ([number, 2], number, number)
            trials = list((tmp_path / "out" / "search" / "smp-fpn" / method / f"fold{number}").glob("*/input.yaml"))
            assert len(trials) == 2
            for trial in trials:
                data = yaml.safe_load(trial.read_text())["data"]
                assert (data["fold"], data["held_out_share"]) == ([number, 2], 0.25)
    assert len(started) == len(set(started)) == 4 + 8
    counts = [
        yaml.safe_load((out / "ce+posthoc-la" / f"fold{number}" / "input.yaml").read_text())["model"]["model_options"]
        for number in range(2)
    ]
    assert len({tuple(count["class_counts"]) for count in counts}) == 2  # those of other images
    chosen = json.loads((tmp_path / "out" / "search.json").read_text())
    assert [(choice["fold"], choice["method"]) for choice in chosen] == [
        (fold, method) for fold in (0, 1) for method in ("ce", "ce+posthoc-la")
    ]
    assert [row["fold"] for row in rows_of(tmp_path / "out") if row["method"] == "ce"] == ["0", "1"]
    assert "Folds share training images" in (tmp_path / "out" / "table.md").read_text()
    printed = capsys.readouterr().out
    assert "smp/fpn, ce, fold 1 ..." in printed
    assert printed.startswith("files: train 8 images, val 4 images (not used here)")
    # The choices are read again, whether trials come first or not.
    assert compare(*options, "--dry-run") == 0
    assert {line.split()[0] for line in capsys.readouterr().out.splitlines()} == {"finished"}


def test_folds_that_there_cannot_be_are_told(compare: Compare, base_config: Path) -> None:
    with pytest.raises(ValueError, match="leave out --seeds"):
        compare("--methods", "ce", "--folds", "3", "--seeds", "0,1")
    with pytest.raises(ValueError, match="9 folds of 8 images"):
        compare("--methods", "ce", "--folds", "9")
    change_config(base_config, "data", held_out_share=0.2)
    with pytest.raises(ValueError, match=r"leave out data\.held_out_share"):
        compare("--methods", "ce", "--folds", "3")
