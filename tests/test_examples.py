"""Each example is run as a user runs it, in this process: importing torch anew would take longer than they do."""

import math
import re
import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
# Examples that train, and their options for a few steps.
TRAINING = {
    "plain_pytorch": ["--steps", "2", "--images", "2"],
    "lightning_module": ["--steps", "2"],
    "smp_training": ["--steps", "2"],
    "hf_trainer": ["--steps", "2", "--images", "8"],
    "monai_volume": ["--steps", "12"],
    "binary_lesions": ["--steps", "4"],
    "video_frames": ["--steps", "8"],
    "multispectral": ["--steps", "8"],
}
WITH_ANOTHER_TEST = {"predict_onnx"}  # needs an exported model

# Their libraries warn; ours are tested elsewhere.
pytestmark = pytest.mark.filterwarnings("ignore")


def run(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    path = EXAMPLES / f"{name}.py"
    monkeypatch.setattr(sys, "argv", [str(path), *TRAINING[name]])
    runpy.run_path(str(path), run_name="__main__")
    return capsys.readouterr().out


def test_every_example_is_tested() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == TRAINING.keys() | WITH_ANOTHER_TEST


@pytest.mark.parametrize("name", TRAINING)
def test_example_trains(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    output = run(name, monkeypatch, capsys)
    losses = [float(value) for value in re.findall(r"^step \d+ loss (\S+)", output, re.MULTILINE)]
    assert len(losses) == int(TRAINING[name][1])
    assert all(math.isfinite(value) and value > 0 for value in losses)
    if len(losses) >= 8:
        assert losses[-1] < losses[0]
    if "pasted" in output:
        assert re.search(r"pasted [1-9]", output)
    if name in ("plain_pytorch", "hf_trainer"):
        assert "tail" in output.splitlines()[-1]
