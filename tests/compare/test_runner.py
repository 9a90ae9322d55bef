import subprocess
import sys
from pathlib import Path

import pytest

from aucseg.compare.runner import locked, write_atomically


def test_a_run_that_outlives_its_comparison_keeps_the_folder_locked(tmp_path: Path) -> None:
    with locked(tmp_path) as lock:
        assert lock is not None
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=(lock.fileno(),))
    with pytest.raises(ValueError, match="is at work in"), locked(tmp_path):
        pass
    child.communicate(b"\n")
    with locked(tmp_path):
        pass


def test_a_file_is_whole_or_not_there(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a" / "b.json", "x")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b.json"]
    assert (tmp_path / "a" / "b.json").read_text() == "x"
