import os
import signal
import subprocess
import sys
from pathlib import Path

from aucseg.training.run_lock import is_at_work, lock_if_free

HOLD = """
import sys
from filelock import FileLock
with FileLock(sys.argv[1]):
    print(flush=True)
    input()
"""


def test_a_lock_of_a_process_that_was_killed_is_none(tmp_path: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / ".lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    child.stdout.readline()
    assert is_at_work(tmp_path)
    with lock_if_free(tmp_path / ".lock", 0.1) as is_ours:
        assert not is_ours
    os.kill(child.pid, signal.SIGKILL)
    child.communicate()
    assert (tmp_path / ".lock").exists()  # a file alone says nothing
    assert not is_at_work(tmp_path)
