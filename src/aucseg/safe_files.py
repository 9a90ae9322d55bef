"""Files that are replaced as a whole: written aside, synced, renamed."""

from __future__ import annotations

import os
from pathlib import Path


def replace_file(path: Path, data: bytes | memoryview, keep: Path | None = None) -> None:
    """Writes a file so that at any moment, also at a power cut, the old or the new content is there as a whole.

    Args:
        path: the file.
        data: its new content.
        keep: where the old content is kept, in the same folder; None to drop it.

    Raises:
        OSError: it cannot be written, for example because the disk is full; the old file is as it was.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if keep is not None and path.exists():
            os.replace(path, keep)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    # The new name is a change of the folder, which has to reach the disk as well.
    if os.name == "posix":
        descriptor = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
