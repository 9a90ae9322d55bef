from pathlib import Path

import pytest

from aucseg.run_files import CONFIG_FILE, LAST_CHECKPOINT, METRICS_FILE, RESULT_FILE
from aucseg.training.result_writer import prepare_run_folder, put_back, remove_failed_start, remove_run


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
    # The new start is killed, and so is the next: what was there at first comes back.
    (folder / CONFIG_FILE).write_text("new")
    prepare_run_folder(folder, overwrite=True)
    (folder / CONFIG_FILE).write_text("newer")
    put_back(folder)
    assert {path.name: path.read_text() for path in folder.rglob("*") if path.is_file()} == {
        "config.yaml": "old",
        "last.ckpt": "old",
        "notes.txt": "mine",
    }
    remove_run(folder)
    assert [path.name for path in folder.rglob("*") if path.is_file()] == ["notes.txt"]


def test_what_a_failed_start_left_goes_only_if_nothing_was_done(tmp_path: Path) -> None:
    for name in (CONFIG_FILE, "events.out.tfevents.1", METRICS_FILE, "notes.txt", RESULT_FILE):
        (tmp_path / name).write_text("x")
    remove_failed_start(tmp_path)
    assert len(list(tmp_path.iterdir())) == 5
    (tmp_path / RESULT_FILE).unlink()
    remove_failed_start(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
