"""Text files of strangers: nothing in them unfolds, and what they claim is checked before memory is taken."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aucseg.datasets import DatasetCard
from aucseg.report.runs import read_run
from aucseg.statistics.class_statistics import ClassStatistics
from tests.datasets.conftest import MINI
from tests.report.synthetic import write_run


def laughs(levels: int = 40) -> str:
    lines = ["a0: &a0 {x: 1}"]
    lines += [f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}" for i in range(1, levels)]
    return "\n".join(lines)


def test_yaml_that_unfolds_is_refused_at_once(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    (run / "config.yaml").write_text(laughs())
    with pytest.raises(ValueError, match=r"config\.yaml is not a YAML file: merge keys"):
        read_run(run)
    with pytest.raises(ValueError, match=r"unknown key|must be"):
        DatasetCard.from_yaml(laughs())
    lists = "\n".join(["a0: &a0 [1]"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 30)])
    with pytest.raises(ValueError, match="unknown key"):
        DatasetCard.from_yaml(lists)
    (run / "config.yaml").write_text(lists)
    assert read_run(run).max_steps is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("!!python/object/apply:os.mkdir [/tmp/x]", "must be text"),
        ('"\\e[2J\\e]0;owned\\a"', "control character"),
        ('"road\\nrail"', "must be one line"),
        ("9" * 100_000, "must be text"),
    ],
)
def test_names_in_cards_are_plain_text(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        DatasetCard.from_yaml(MINI.replace("name: road", f"name: {text}"))
    assert len(str(error.value)) < 500
    assert "\x1b" not in str(error.value)


@pytest.mark.parametrize("number", ["9" * 100_000, "0x" + "f" * 100_000, "-1", "1:30", "1e9"])
def test_numbers_in_cards_are_bounded(number: str) -> None:
    with pytest.raises(ValueError, match="must") as error:
        DatasetCard.from_yaml(MINI.replace("ids: [9]", f"ids: [{number}]"))
    assert len(str(error.value)) < 500


def test_a_card_is_not_read_without_end(tmp_path: Path) -> None:
    with (tmp_path / "card.yaml").open("wb") as file:
        file.truncate(10**11)  # a sparse file of 100 GB
    with pytest.raises(ValueError, match="more than 10 MB"):
        DatasetCard.load(tmp_path / "card.yaml")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_classes", 10**13),
        ("pixel_counts", [-1, 0, 0]),
        ("pixel_counts", [10**30, 0, 0]),
        ("num_images", 10**15),
        ("image_classes", "eJztwTEBAAAAwqD1T20ND6AAAAAAAAAA"),
        ("class_names", 3),
        ("ignore_index", "x"),
    ],
)
def test_statistics_do_not_allocate_more_than_the_file_holds(key: str, value: Any, tmp_path: Path) -> None:
    statistics = ClassStatistics(3)
    statistics.update(np.array([[0, 1, 2]]))
    statistics.save(tmp_path / "stats.json")
    state = json.loads((tmp_path / "stats.json").read_text())
    (tmp_path / "stats.json").write_text(json.dumps({**state, key: value}))
    with pytest.raises(ValueError, match="not class statistics that this version wrote"):
        ClassStatistics.load(tmp_path / "stats.json")


@pytest.mark.parametrize("depth", [100_000])
def test_deep_json_is_refused(depth: int, tmp_path: Path) -> None:
    deep = '{"a":' * depth
    (tmp_path / "stats.json").write_text(deep)
    with pytest.raises(ValueError, match="not class statistics"):
        ClassStatistics.load(tmp_path / "stats.json")
    run = write_run(tmp_path / "run")
    (run / "result.json").write_text(deep)
    with pytest.raises(ValueError, match="is not a JSON file"):
        read_run(run)
