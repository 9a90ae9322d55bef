from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from aucseg.report.compared_runs import load_comparison
from aucseg.report.runs import read_run
from tests.report.synthetic import CLASS_NAMES, GROUPS, class_counts, write_run


def test_reads_everything_that_a_finished_run_holds(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "ce", image_names=("a.jpg",)))
    assert run.title == "ce"
    assert run.class_names == CLASS_NAMES
    assert run.is_finished
    assert run.status == "800 steps"
    assert run.per_class_iou[CLASS_NAMES[-1]] is None
    assert "auroc" not in run.metrics  # it was NaN
    assert run.confusion is not None
    assert run.confusion.shape == (21, 21)
    assert set(run.images["a.jpg"]) == {0, 1, 2, 3, 4}
    assert set(run.roc) == {CLASS_NAMES[i] for i in GROUPS["tail"]}
    steps = [step for step, _ in run.history["train/loss"]]
    assert steps == sorted(steps)
    assert len(steps) == 80
    assert len(run.history["val/miou"]) == 4


def test_running_run_takes_its_numbers_from_the_log(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", step=400, max_steps=800, parts=("config", "metrics"))
    run = read_run(folder)
    assert not run.is_finished
    assert run.status == "step 400 of 800"
    assert run.metrics["miou"] == run.history["val/miou"][-1][1]
    assert run.class_names == ()


def test_cut_off_log_line_and_nan_are_skipped_and_a_repeated_step_counts_once(tmp_path: Path) -> None:
    text = "epoch,step,train/loss,val/miou\n0,1,2.5,\n0,2,nan,\n0,2,1.5,\n0,1,2.25,\n0,3,,0.25\n0,x"
    (tmp_path / "metrics.csv").write_text(text)
    run = read_run(tmp_path)
    assert run.history == {"train/loss": [(1, 2.25), (2, 1.5)], "val/miou": [(3, 0.25)]}


def test_result_of_a_run_that_has_gone_on_since_is_not_finished(tmp_path: Path) -> None:
    assert not read_run(write_run(tmp_path / "a", step=400, max_steps=800)).is_finished


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("result.json", '{"step": 1, ', "result.json is not a JSON file"),
        ("result.json", "[1]", "must hold a JSON object, not a list"),
        ("confusion.json", '{"counts": [[1, 2], [3]]}', "does not hold what a run writes"),
        ("confusion.json", '{"counts": [[1]]}', "21 classes"),
        ("curves.json", '{"candle": {"fpr": [0]}}', "does not hold what a run writes"),
        ("images.json", '{"a": {"wall": [1, 2]}}', "does not hold what a run writes"),
        ("config.yaml", "a: [", "config.yaml is not a YAML file"),
        ("config.yaml", "- a", "must hold a mapping"),
    ],
)
def test_broken_file_is_named(tmp_path: Path, file: str, text: str, message: str) -> None:
    folder = write_run(tmp_path / "a")
    (folder / file).write_text(text)
    with pytest.raises(ValueError, match=message):
        read_run(folder)


def test_wrong_folders(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no run folder .*missing"):
        read_run(tmp_path / "missing")
    with pytest.raises(ValueError, match=r"has none of config\.yaml, metrics\.csv, result\.json"):
        read_run(tmp_path)


def test_baseline_comes_first_and_the_best_other_run_is_the_challenger(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / name, strength=s) for name, s in (("good", 1.0), ("ce", 0.0), ("fair", 0.5))]
    comparison = load_comparison(folders, baseline="ce")
    assert [run.title for run in comparison.runs] == ["ce", "good", "fair"]
    assert comparison.challenger is not None
    assert comparison.challenger.title == "good"
    assert load_comparison(folders[:1]).challenger is None


def test_classes_are_ordered_by_the_given_statistics(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a")
    rising = class_counts()[::-1]
    assert load_comparison([folder], statistics=rising).order == tuple(range(20, -1, -1))
    statistics = SimpleNamespace(pixel_counts=np.array(rising), image_counts=np.arange(21))
    comparison = load_comparison([folder], statistics=statistics)
    assert comparison.order == tuple(range(20, -1, -1))
    assert comparison.num_images == tuple(range(21))
    assert comparison.counts_source == "training pixels"
    assert comparison.share(20) == pytest.approx(rising[20] / sum(rising))


def test_without_statistics_the_truth_of_the_validation_split_is_counted(tmp_path: Path) -> None:
    comparison = load_comparison([write_run(tmp_path / "a")])
    counts = np.array(json.loads((tmp_path / "a" / "confusion.json").read_text())["counts"])
    assert comparison.counts == tuple(counts.sum(axis=1).tolist())
    assert comparison.counts_source == "validation pixels"
    assert comparison.tail[0] == 20  # the rarest first
    blank = load_comparison([write_run(tmp_path / "b", parts=("result",))])
    assert blank.counts is None
    assert blank.order == tuple(range(21))


def test_groups_follow_the_shares_where_the_card_names_none(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", class_names=("a", "b", "c", "d"), groups=None)
    comparison = load_comparison([folder], statistics=[900.0, 80.0, 18.0, 2.0])
    assert comparison.groups == {"head": [0, 1], "middle": [2], "tail": [3]}


def test_runs_are_compared_by_the_same_groups(tmp_path: Path) -> None:
    names = ("a", "b", "c", "d")
    groups = {"head": [0], "middle": [1], "tail": [2, 3]}
    folders = [write_run(tmp_path / "now", class_names=names, groups=groups)]
    folders.append(write_run(tmp_path / "then", class_names=names, groups=groups | {"head": [1], "middle": [0]}))
    result = json.loads((tmp_path / "then" / "result.json").read_text())
    result["metrics"]["tail_ap"] = 0.5  # the mean over single classes is not known
    (tmp_path / "then" / "result.json").write_text(json.dumps(result))
    now, then = (run.metrics for run in load_comparison(folders).runs)
    expected = [result["per_class_iou"][name] for name in "ab"]
    assert [then["head"], then["middle"]] == [now["head"], now["middle"]] == expected
    assert "tail_ap" not in then
    assert load_comparison(folders[1:]).runs[0].metrics["tail_ap"] == 0.5


def test_what_does_not_fit_together_is_refused(tmp_path: Path) -> None:
    a, b = write_run(tmp_path / "a"), write_run(tmp_path / "b", class_names=("x", "y"), groups=None)
    with pytest.raises(ValueError, match="different classes"):
        load_comparison([a, b])
    with pytest.raises(ValueError, match="no run is called 'c'; there are 'a'"):
        load_comparison([a], baseline="c")
    with pytest.raises(ValueError, match=r"1 run, but titles \['x', 'y'\]: give each run one of its own"):
        load_comparison([a], titles=["x", "y"])
    with pytest.raises(ValueError, match="the statistics count 3 classes, the runs have 21"):
        load_comparison([a], statistics=[1, 2, 3])
    with pytest.raises(ValueError, match="at least one run folder"):
        load_comparison([])
    with pytest.raises(ValueError, match="at least one run folder"):
        load_comparison(str(a))


def test_folders_of_one_name_get_longer_titles(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / name / "seed0") for name in ("ce", "aucseg")]
    assert [run.title for run in load_comparison(folders).runs] == ["ce/seed0", "aucseg/seed0"]
