"""What stops a run from outside (memory, disks, files, other processes), in words: cause and way out."""

from __future__ import annotations

import errno
import math
import os
import re
import shutil
from pathlib import Path

_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")
_GO_ON = "Where the run has a checkpoint, it goes on from the last one with '--resume auto'"


def explanation(error: BaseException) -> str | None:
    """Cause and way out of an error during a run, or None where its own message says it.

    Args:
        error: What was raised.

    Example:
        >>> print(explanation(RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")))
        a loader process has died (DataLoader worker (pid 7) is killed by signal: Killed.): most often the memory ran
        out; lower data.num_workers, data.batch_size or data.crop_size. Where the run has a checkpoint, it goes on from
        the last one with '--resume auto'
        >>> explanation(RuntimeError("something else")) is None
        True
    """
    text = str(error)
    is_full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    free = shutil.disk_usage("/dev/shm").free if Path("/dev/shm").is_dir() else math.inf
    # Semaphores lie there too, and the error about one names no file.
    if _is_shared_memory(text) or (is_full and getattr(error, "filename", None) is None and free < 1e5):
        return (
            "shared memory, through which loader processes hand over batches, is full (/dev/shm has "
            f"{free / 1e6:.1f} MB left): make it larger (docker run --shm-size=8g; mount -o remount,size=8G /dev/shm), "
            f"or lower data.num_workers (0 needs none). {_GO_ON}"
        )
    if "DataLoader worker" in text and ("killed by signal" in text or "exited unexpectedly" in text):
        cause = text.strip().splitlines()[0].strip()
        return (
            f"a loader process has died ({cause}): most often the memory ran out; lower data.num_workers, "
            f"data.batch_size or data.crop_size. {_GO_ON}"
        )
    if is_full:
        return f"the disk is full: {error}. {_GO_ON}" if "--resume" not in text else f"the disk is full: {error}"
    sample = re.search(r"SampleError: (.*)\Z", text, re.DOTALL)
    if "DataLoader worker process" in text and sample:
        # What a loader process raises arrives with the text of its traceback.
        return f"{sample[1].strip()}. Fix the file or leave such samples out (--data.on_error skip). {_GO_ON}"
    if type(error).__name__ == "SampleError" and "on_error" not in text:
        return f"{text}. Fix the file or leave such samples out (--data.on_error skip). {_GO_ON}"
    if is_out_of_memory(error):
        parts = re.split(r"(?<=[\w.\]])[.:] |\n", text)
        cause = next((part for part in parts if any(p in part for p in _OUT_OF_MEMORY)), "MemoryError")
        return (
            f"the memory ran out ({cause}). In training: lower data.batch_size or data.crop_size, raise "
            "model.micro_batches, or train in trainer.precision bf16-mixed. In validation: lower data.eval_batch_size, "
            "or give model.evaluation a window, such as {window: [1024, 1024]}"
        )
    if "parameters that were not used in producing loss" in text or "marked as ready twice" in text:
        return (
            "some parameters of the model have no part in the loss of every step, and several processes wait for their "
            "gradients: give --trainer.strategy ddp_find_unused_parameters_true, or freeze them "
            "(TORCH_DISTRIBUTED_DEBUG=DETAIL names them)"
        )
    if _is_lost_peer(error):
        return f"another process of this run is gone ({text.strip().splitlines()[0]}): its message says why. {_GO_ON}"
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the memory of the machine or of a device ran out.

    Example:
        >>> is_out_of_memory(RuntimeError("CUDA out of memory.")), is_out_of_memory(ValueError(""))
        (True, False)
    """
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(phrase in str(error) for phrase in _OUT_OF_MEMORY)
    )


def with_notes(text: str, error: BaseException) -> str:
    """A message about an error, with what was noted about where it happened and how to go on.

    A text that already says how to go on stays as it is.

    Example:
        >>> error = ValueError("no image")
        >>> error.__notes__ = ["this was in the validation"]
        >>> with_notes(str(error), error)
        'no image; this was in the validation'
    """
    return text if "--resume" in text else "; ".join([text, *getattr(error, "__notes__", [])])


def _is_shared_memory(text: str) -> bool:
    return (
        "Bus error" in text
        or "out of shared memory" in text
        or ("unable to" in text and "shm" in text)
        or ("torch_" in text and "No space left on device" in text)
        or ("/torch_" in text and os.strerror(errno.ENOSPC) in text)
    )


def _is_lost_peer(error: BaseException) -> bool:
    phrases = (
        "Connection closed by peer",
        "Connection reset by peer",
        "NCCL communicator was aborted",
        "remote process",
    )
    return isinstance(error, RuntimeError) and any(phrase in str(error) for phrase in phrases)
