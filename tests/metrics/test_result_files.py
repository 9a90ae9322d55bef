import json
import math
from pathlib import Path

import torch

from aucseg.metrics.result_files import curve_points, write_results
from aucseg.safe_files import write_json


def test_nan_is_written_as_null_and_no_temporary_file_stays(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"a": float("nan"), "b": {"c": 1.5}})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": None, "b": {"c": 1.5}}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_an_evaluation_without_scores_has_no_curves_and_a_class_that_is_not_there_none(tmp_path: Path) -> None:
    overlap = {"b": {0: [1, 2, 1]}, "a": {1: [0, 1, 1]}}
    write_results(tmp_path / "x", {"step": None}, confusion=[[1, 0], [0, 0]], images=overlap)
    assert sorted(path.name for path in (tmp_path / "x").iterdir()) == ["confusion.json", "images.json", "result.json"]
    assert list(json.loads((tmp_path / "x" / "images.json").read_text())) == ["a", "b"]
    rates = {"here": (torch.tensor([0.0, 0.5, 1.0]), torch.tensor([0.0, 0.75, 1.0]))}
    rates["gone"] = (torch.full((3,), math.nan), torch.full((3,), math.nan))
    write_results(tmp_path / "x", {"step": 3}, confusion=[[1, 0], [0, 0]], images=overlap, roc_curves=rates)
    curves = json.loads((tmp_path / "x" / "curves.json").read_text())
    assert curves == {"here": curve_points(*rates["here"])}
    assert curves["here"]["auroc"] == 0.625


def test_curves_of_an_earlier_evaluation_do_not_stay(tmp_path: Path) -> None:
    rates = {"a": (torch.tensor([0.0, 1.0]), torch.tensor([0.0, 1.0]))}
    write_results(tmp_path, {"step": 1}, confusion=[[1]], images={}, roc_curves=rates)
    write_results(tmp_path, {"step": None}, confusion=[[1]], images={})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["confusion.json", "images.json", "result.json"]
