"""Who is at work in a folder, among several processes and machines that share it.

The locks are the system's: they end with the process that holds them, however it ends, so that no lock of a dead
process stands in the way; a file that is left behind does not lock anything.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

# Held by a training or validation, in the folder of its run.
RUN_LOCK = ".lock"
# How a training begins to say that it is held.
IS_TAKEN = "another process is at work in"


@contextmanager
def lock_if_free(path: Path, seconds: float = 0.0) -> Iterator[bool]:
    """Holds a lock within the context, if nobody else does.

    Args:
        path: The lock's file; its folder is there.
        seconds: How long to wait for it.

    Returns:
        Whether it is held here.

    Raises:
        ValueError: The file system knows no locks.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "a.lock")
        >>> with lock_if_free(path) as first, lock_if_free(path) as second:
        ...     print(first, second)
        True False
    """
    # Not the object that this process may hold it with already.
    lock = FileLock(path, is_singleton=False)
    try:
        lock.acquire(timeout=seconds)
    except Timeout:
        yield False
        return
    except (NotImplementedError, OSError) as error:
        raise ValueError(f"{path} cannot be locked ({error}): give a folder on a file system with locks") from error
    try:
        yield True
    finally:
        lock.release()


def remove_lone_lock(path: Path) -> None:
    """Removes a lock's file that this process holds where there is nothing else in its folder.

    Who waits for it meanwhile finds the file gone, and tries again.
    """
    if list(path.parent.iterdir()) == [path]:
        with suppress(OSError):  # an open file cannot be removed on every system
            path.unlink()


def is_at_work(folder: Path) -> bool:
    """Whether a training or validation goes on in a folder, that of a comparison which is gone, say."""
    if not (folder / RUN_LOCK).exists():  # nor make one
        return False
    with lock_if_free(folder / RUN_LOCK) as is_free:
        return not is_free
