import errno
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aucseg.run_files import LAST_CHECKPOINT, PREVIOUS_CHECKPOINT
from aucseg.safe_files import replace_file
from aucseg.training.checkpoints import (
    AtomicCheckpointIO,
    RunCheckpoint,
    checkpoint_step,
    newest_checkpoint,
)
from aucseg.training.metrics_log import MetricsLog


def content(step: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(step)
    return {"global_step": step, "state_dict": {"weight": torch.rand(40, generator=generator)}, "names": ["a", "b"]}


def save(folder: Path, step: int) -> Path:
    AtomicCheckpointIO().save_checkpoint(content(step), folder / LAST_CHECKPOINT)
    return folder / LAST_CHECKPOINT


def is_content(path: Path, step: int) -> bool:
    found, expected = torch.load(path, weights_only=True), content(step)
    same = torch.equal(found["state_dict"].pop("weight"), expected["state_dict"].pop("weight"))
    return same and bool(found == expected)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("whole"), 3)


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_no_damage_goes_unnoticed(whole: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Cut off, a bit flipped, or a block of zeros: it is noticed, or what is loaded is the same."""
    bytes_ = bytearray(whole.read_bytes())
    kind = data.draw(st.sampled_from(["cut", "flip", "zeros"]))
    place = data.draw(st.integers(0, len(bytes_) - 1))
    if kind == "cut":
        del bytes_[place:]
    elif kind == "flip":
        bytes_[place] ^= 1 << data.draw(st.integers(0, 7))
    else:
        bytes_[place : place + 512] = bytes(min(512, len(bytes_) - place))
    folder = tmp_path_factory.getbasetemp() / "damaged"
    path = folder / LAST_CHECKPOINT
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes_)
    if newest_checkpoint(folder, lambda _: None) is not None:
        assert kind != "cut"
        assert is_content(path, 3)


@pytest.mark.parametrize("step", [[], "later", None])
def test_a_checkpoint_without_a_step_is_left_out(tmp_path: Path, step: Any) -> None:
    for number in (1, 2):
        last = save(tmp_path, number)
    torch.save({**content(2), "global_step": step}, last)
    said: list[str] = []
    assert newest_checkpoint(tmp_path, said.append) == tmp_path / PREVIOUS_CHECKPOINT
    assert "its step is" in said[0]
    with pytest.raises(ValueError, match="is not a readable checkpoint: its step is"):
        checkpoint_step(last)


def test_last_and_previous_are_kept_and_the_damaged_one_is_left_out(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path) is None
    for step in (1, 2):
        last = save(tmp_path, step)
    assert is_content(last, 2)
    assert is_content(tmp_path / PREVIOUS_CHECKPOINT, 1)
    assert newest_checkpoint(tmp_path) == last
    assert checkpoint_step(last) == 2

    last.write_bytes(last.read_bytes()[:-40])
    said: list[str] = []
    assert newest_checkpoint(tmp_path, said.append) == tmp_path / PREVIOUS_CHECKPOINT
    assert "last.ckpt is not a readable checkpoint: it is cut off or damaged" in said[0]
    # The damaged one does not take the place of the good one.
    save(tmp_path, 3)
    assert is_content(last, 3)
    assert is_content(tmp_path / PREVIOUS_CHECKPOINT, 1)


def test_damaged_and_missing_checkpoints_are_not_loaded(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match="not a readable checkpoint: it is cut off"):
        AtomicCheckpointIO().load_checkpoint(path)
    with pytest.raises(ValueError, match="there is no such file"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "none.ckpt")


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failing_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: Any, call: str) -> None:
    path = save(tmp_path, 1)

    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match=r"the checkpoint of step 2 .* was not written; the one before is whole") as error:
        save(tmp_path, 2)
    assert error.value.errno == errno.ENOSPC
    monkeypatch.undo()
    assert is_content(path, 1)
    assert [file.name for file in path.parent.iterdir()] == ["last.ckpt"]


def test_content_reaches_the_disk_before_the_name_and_the_name_before_the_return(
    tmp_path: Path, monkeypatch: Any
) -> None:
    """Power cut: what is renamed has been synced, and the folder with the new name is synced after."""
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace

    def note_fsync(descriptor: int) -> None:
        calls.append("fsync " + os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def note_replace(source: Any, target: Any) -> None:
        calls.append(f"rename {os.path.basename(source)} {os.path.basename(target)}")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "replace", note_replace)
    folder = tmp_path / "run"
    replace_file(folder / "a", b"1")
    replace_file(folder / "a", b"2", keep=folder / "b")
    assert calls == [
        *("fsync a.tmp", "rename a.tmp a", "fsync run"),
        *("fsync a.tmp", "rename a b", "rename a.tmp a", "fsync run"),
    ]
    assert (folder / "b").read_bytes() == b"1"


FULL_DISK = """
import sys
from pathlib import Path
from aucseg.run_files import LAST_CHECKPOINT
from aucseg.training.checkpoints import AtomicCheckpointIO, newest_checkpoint
import torch
folder = Path(sys.argv[1])
saved, size = 0, 10_000
try:
    for step in range(1, 50):
        AtomicCheckpointIO().save_checkpoint(
            {"global_step": step, "x": torch.ones(size * step)}, folder / LAST_CHECKPOINT
        )
        saved = step
except OSError as error:
    print(error)
path = newest_checkpoint(folder)
assert torch.load(path, weights_only=True)["global_step"] == saved, path
assert not list(path.parent.glob("*.tmp"))
print("saved", saved)
"""


@pytest.mark.slow
def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    mount = f'mount -t tmpfs -o size=1m tmpfs {tmp_path} && exec "$@"'
    command = ["unshare", "--mount", "sh", "-c", mount, "sh"]
    if subprocess.run([*command, "true"], check=False, capture_output=True).returncode:
        pytest.skip("a small disk needs the right to mount")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command += [sys.executable, "-c", FULL_DISK, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stderr
    assert "No space left on device: the checkpoint of step" in result.stdout
    assert int(result.stdout.split()[-1]) > 1


def test_steps_below_one_are_refused() -> None:
    with pytest.raises(ValueError, match="checkpoint_every must be at least 1, got 0"):
        RunCheckpoint(Path(), every=0)


@given(rows=st.lists(st.sampled_from(["loss", "miou", "lr"]), min_size=1, max_size=12), data=st.data())
@settings(max_examples=50, deadline=None)
def test_metrics_log_after_any_rewind_is_the_log_of_an_undisturbed_run(
    tmp_path_factory: pytest.TempPathFactory, rows: list[str], data: st.DataObject
) -> None:
    kept, lost = data.draw(st.integers(0, len(rows))), data.draw(st.integers(0, 3))
    folders = [tmp_path_factory.mktemp("log") for _ in range(2)]
    whole, killed = (MetricsLog(folder) for folder in folders)
    for step, name in enumerate(rows):
        whole.log_metrics({name: step / 7}, step=step)
        whole.save()
    for step, name in enumerate(rows[:kept]):
        killed.log_metrics({name: step / 7}, step=step)
    num_rows = killed.sync() or 0
    for step in range(lost):
        killed.log_metrics({f"other {step}": 1.0}, step=step)
    killed.save()
    with killed.path.open("a") as file:
        file.write("0.25,")  # a line that was cut short

    resumed = MetricsLog(folders[1])
    resumed.rewind(num_rows)
    for step, name in enumerate(rows[kept:], kept):
        resumed.log_metrics({name: step / 7}, step=step)
    resumed.finalize("success")
    assert resumed.path.read_bytes() == whole.path.read_bytes()


@pytest.mark.parametrize(("seconds", "asked"), [(0.1, [0, 1, 11, 21]), (3.0, list(range(24)))])
def test_processes_ask_often_enough_whether_to_stop_however_slow_a_step_is(
    seconds: float, asked: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A launcher kills what has not ended half a minute after the signal."""
    step, found = 0, []
    monkeypatch.setattr("aucseg.training.checkpoints.time.monotonic", lambda: 100 + seconds * step)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda told, op: found.append(step))
    trainer = SimpleNamespace(
        world_size=2, global_step=0, accumulate_grad_batches=1, val_check_batch=1000, loggers=[],
        strategy=SimpleNamespace(root_device=torch.device("cpu")),
        fit_loop=SimpleNamespace(epoch_loop=SimpleNamespace(total_batch_idx=0)),
    )  # fmt: skip
    callback = RunCheckpoint(tmp_path, every=500)
    callback.on_train_start(trainer, None)  # type: ignore[arg-type]
    try:
        for step in range(24):
            trainer.global_step = step
            callback.on_train_batch_start(trainer, None, None, step)  # type: ignore[arg-type]
    finally:
        trainer.global_step = 0  # of which there is a checkpoint, so that none is written
        callback.on_train_end(trainer, None)  # type: ignore[arg-type]
    assert found == asked
