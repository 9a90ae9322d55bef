import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aucseg.run_files import CONFIG_FILE, LAST_CHECKPOINT, METRICS_FILE, RESULT_FILE
from aucseg.training.result_writer import (
    per_image_overlap,
    prepare_run_folder,
    remove_failed_start,
    write_json,
)


def test_overlap_in_narrow_dtypes() -> None:
    labels = torch.tensor([[0, 3, 3]], dtype=torch.uint8)
    assert per_image_overlap(labels, labels, 4, ignore_index=-253) == {0: [1, 1], 3: [2, 2]}  # 3 in eight bits


@given(seed=st.integers(0, 10_000), num_classes=st.integers(1, 6))
@settings(max_examples=50, deadline=None)
def test_overlap_equals_counting_by_hand(seed: int, num_classes: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    predicted = torch.randint(num_classes, (7, 9), generator=generator)
    target = torch.randint(num_classes, (7, 9), generator=generator)
    target[torch.rand(7, 9, generator=generator) < 0.2] = 255
    valid = target != 255
    expected = {}
    for class_id in range(num_classes):
        intersection = int(((predicted == class_id) & (target == class_id)).sum())
        union = int((((predicted == class_id) | (target == class_id)) & valid).sum())
        if union:
            expected[class_id] = [intersection, union]
    assert per_image_overlap(predicted, target, num_classes, 255) == expected


def test_nan_is_written_as_null_and_no_temporary_file_stays(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"a": float("nan"), "b": {"c": 1.5}})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": None, "b": {"c": 1.5}}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_run_is_not_replaced_unasked_and_other_files_stay(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    prepare_run_folder(folder)
    (folder / CONFIG_FILE).write_text("old")
    (folder / LAST_CHECKPOINT).parent.mkdir()
    (folder / LAST_CHECKPOINT).write_text("old")
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"already holds a run: go on with it"):
        prepare_run_folder(folder)
    prepare_run_folder(folder, overwrite=True)
    assert [path.name for path in folder.iterdir() if path.is_file()] == ["notes.txt"]
    assert not (folder / LAST_CHECKPOINT).exists()


def test_what_a_failed_start_left_goes_only_if_nothing_was_done(tmp_path: Path) -> None:
    for name in (CONFIG_FILE, "events.out.tfevents.1", METRICS_FILE, "notes.txt", RESULT_FILE):
        (tmp_path / name).write_text("x")
    remove_failed_start(tmp_path)
    assert len(list(tmp_path.iterdir())) == 5
    (tmp_path / RESULT_FILE).unlink()
    remove_failed_start(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
