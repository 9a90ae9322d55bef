import time

import pytest

from aucseg.runtime import announce
from aucseg.runtime.announce import Announcement, process_number
from tests.announced import wait_for


def test_what_takes_long_is_announced_once_and_what_is_over_soon_is_not(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert announce.PATIENCE < 1  # nobody sits before an empty screen for a second
    with Announcement("reading 12 masks", patience=0.01):
        assert wait_for(lambda: capsys.readouterr().err) == "aucseg: reading 12 masks ...\n"
    with Announcement("a moment", patience=60):
        pass
    with Announcement("silence", patience=0.0, enabled=False):
        time.sleep(0.05)
    monkeypatch.setenv("RANK", "1")
    with Announcement("of another process", patience=0.0):
        time.sleep(0.05)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("names", "rank"),
    [
        ({}, 0),
        ({"RANK": "3", "LOCAL_RANK": "1", "SLURM_PROCID": "0"}, 3),  # torchrun on a node of SLURM
        ({"LOCAL_RANK": "1", "SLURM_PROCID": "0"}, 1),  # Lightning's launcher in a shell of SLURM
        ({"SLURM_PROCID": "2", "SLURM_LOCALID": "0"}, 2),  # srun
    ],
)
def test_the_rank_is_that_of_who_started_the_process(
    names: dict[str, str], rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in names.items():
        monkeypatch.setenv(name, value)
    assert process_number() == rank
