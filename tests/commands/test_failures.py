import errno
import os
import signal
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from aucseg import SegmentationDataModule
from aucseg.commands import fit as lightning_cli
from aucseg.commands.failures import explanation, with_notes
from aucseg.hints import add_note
from aucseg.training.result_writer import check_writable
from aucseg.training.task import SegmentationTask
from tests.two_processes import arguments

Usage = namedtuple("Usage", "total used free")


class Killed(Dataset[int]):
    """Its loader process dies."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> int:
        os.kill(os.getpid(), signal.SIGKILL)
        return index


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_dead_loader_process_is_explained() -> None:
    with pytest.raises(RuntimeError) as error:
        list(DataLoader(Killed(), num_workers=1))
    text = explanation(error.value) or ""
    assert "a loader process has died" in text
    assert "lower data.num_workers" in text
    assert "--resume auto" in text


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("workers", [0, 1])
def test_vanished_file_is_named_without_a_traceback(tiny_card: Path, workers: int, monkeypatch: Any) -> None:
    module = SegmentationDataModule(str(tiny_card), str(tiny_card.parent), num_workers=workers, crop_size=(32, 40))
    loader = module.train_dataloader()
    monkeypatch.setattr(Path, "is_file", lambda self: False)
    with pytest.raises(ValueError, match="there is no such file") as error:
        next(iter(loader))
    text = explanation(error.value) or ""
    assert text.startswith(str(tiny_card.parent / "images"))
    assert "Traceback" not in text
    assert "--data.on_error skip" in text


@pytest.mark.parametrize(
    "message",
    [
        "DataLoader worker (pid 5) is killed by signal: Bus error. It is possible that dataloader's workers are out of "
        "shared memory. Please try to raise your shared memory limit.",
        "unable to write to file </torch_77_1>: No space left on device (28)",
        "unable to open shared memory object </torch_1_2> in read-write mode: No space left on device (28)",
    ],
)
def test_full_shared_memory_is_explained(message: str) -> None:
    text = explanation(RuntimeError(message)) or ""
    assert text.startswith("shared memory")
    assert "--shm-size" in text


def test_full_disk_is_told_from_full_shared_memory(monkeypatch: Any) -> None:
    monkeypatch.setattr("aucseg.commands.failures.shutil.disk_usage", lambda path: Usage(100, 100, 0))
    unnamed, named = (OSError(errno.ENOSPC, "No space left on device", name) for name in (None, "runs/a/metrics.csv"))
    assert (explanation(unnamed) or "").startswith("shared memory")
    assert (explanation(named) or "").startswith("the disk is full: [Errno 28] No space left on device: 'runs/a/")


def test_too_little_shared_memory_is_said_before_training(tiny_card: Path, monkeypatch: Any) -> None:
    module = SegmentationDataModule(str(tiny_card), str(tiny_card.parent), batch_size=8, num_workers=2)
    needed = 2 * 2 * 8 * 512 * 512 * 4
    monkeypatch.setattr("aucseg.training.loader_checks.shutil.disk_usage", lambda path: Usage(2**26, 0, needed))
    module.train_dataloader()
    monkeypatch.setattr("aucseg.training.loader_checks.shutil.disk_usage", lambda path: Usage(2**26, 0, needed - 1))
    with pytest.raises(ValueError, match=r"/dev/shm has 33.6 MB left, and 2 loader processes need up to 33.6 MB"):
        module.train_dataloader()


def test_folder_that_cannot_be_written_is_said_before_anything_is_built(tiny_card: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("aucseg.training.task.build_model", lambda *_, **__: pytest.fail("the model was built first"))
    # Not even root can make a folder there.
    with pytest.raises(ValueError, match="nothing can be written to /proc/aucseg"):
        lightning_cli.run_lightning("fit", arguments(tiny_card, Path("/proc/aucseg")))


@pytest.mark.parametrize(
    "wrong",
    [("--model.loss=nonsense", "unknown loss"), ("--model.loss_options.class_weight=[1,2]", "class_weight has 2")],
)
def test_run_that_fails_on_its_options_can_be_started_again(
    tiny_card: Path, tmp_path: Path, wrong: tuple[str, str]
) -> None:
    right = arguments(tiny_card, tmp_path)
    with pytest.raises(ValueError, match=wrong[1]):
        lightning_cli.run_lightning("fit", [*right, wrong[0]])
    assert lightning_cli.run("fit", right) == 0
    assert (tmp_path / "result.json").is_file()


def test_run_that_fails_after_its_first_steps_stays(tiny_card: Path, tmp_path: Path, monkeypatch: Any) -> None:
    def fail(self: SegmentationTask) -> None:
        if self.global_step:
            raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(SegmentationTask, "on_validation_start", fail, raising=False)
        with pytest.raises(ZeroDivisionError):
            lightning_cli.run("fit", arguments(tiny_card, tmp_path))
    with pytest.raises(ValueError, match="already holds a run"):
        lightning_cli.run("fit", arguments(tiny_card, tmp_path))


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_missing_permission_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o555)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            if os.geteuid() == 0:
                os.setuid(65534)
            check_writable(folder)
        except ValueError as error:
            code = 0 if "Permission denied" in str(error) and "--out" in str(error) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_lost_process_points_to_its_message() -> None:
    error = RuntimeError("[../gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:1234")
    assert (explanation(error) or "").startswith("another process of this run is gone")
    assert explanation(RuntimeError("shapes do not match")) is None


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (
            torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has"),
            "CUDA out of memory",
        ),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:1] . DefaultCPUAllocator: can't allocate memory: you tried"),
            "can't allocate memory",
        ),
        (MemoryError(), "MemoryError"),
    ],
)
def test_memory_that_runs_out_is_explained(error: Exception, cause: str) -> None:
    text = explanation(error) or ""
    assert text.startswith(f"the memory ran out ({cause})")
    assert "lower data.batch_size" in text
    assert "lower data.eval_batch_size" in text


def test_notes_follow_a_message_that_does_not_say_how_to_go_on() -> None:
    error = ValueError("no image")
    assert with_notes("no image", error) == "no image"
    add_note(error, "first")
    add_note(error, "second")
    assert with_notes("no image", error) == "no image; first; second"
    assert with_notes("use --resume auto", error) == "use --resume auto"
