"""The floors of the package: a room, that is a folder or a module of `aucseg`, imports from the floors below only."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.source_imports import MODULES, PACKAGE, imported_names

# From the ground upwards.
FLOORS = (
    {"hints", "safe_files", "randomness", "run_files"},
    {"runtime", "tensors"},
    {"losses", "memory_bank", "metrics"},
    {"datasets"},
    {"statistics", "models"},
    {"loading", "inference"},
    {"training"},
    {"planning", "compare", "report"},
    {"commands"},
    {"cli", "__init__"},
    {"__main__"},
)
# Beside a floor: the configurations with what finds them, and the integrations, which are below training and loading.
BESIDE = {"configs": 2, "integrations": 5}
LEVEL = {room: level for level, rooms in enumerate(FLOORS) for room in rooms} | BESIDE
# Rooms side by side that may take each other's public names, those of the package itself.
NEIGHBOURS = {"losses", "memory_bank", "metrics"}
# Optional packages, and the rooms that may need them: whatever is below works without.
OPTIONAL = {
    "lightning": {"training", "compare", "commands"},
    "torchmetrics": {"metrics", "training"},
    "torchvision": {"loading", "models"},
    "jinja2": {"report"},
    "mmseg": {"integrations"},
    "webdataset": {"datasets"},
}
TESTS = Path(__file__).parent
# Commands whose help takes no heavy import.
QUICK = ("compare", "demo", "evaluate", "export", "masks", "predict", "report")


def room_of(name: str) -> str:
    """The first name below `aucseg` of a dotted one; the package itself is `__init__`."""
    return name.split(".")[1] if "." in name else "__init__"


def test_every_room_has_a_floor() -> None:
    assert {room_of(name) for name in MODULES} <= LEVEL.keys()


@pytest.mark.parametrize("name", MODULES)
def test_nothing_imports_upwards_or_sideways(name: str) -> None:
    room = room_of(name)
    for imported in imported_names(MODULES[name]):
        if imported.split(".")[0] != "aucseg" or (other := room_of(imported)) == room:
            continue
        # `aucseg.losses` itself, not what is inside of it.
        is_neighbour = {room, other} <= NEIGHBOURS and imported.count(".") == 1
        # The version is all that the command line takes from the package itself.
        is_version = name == "aucseg.cli" and imported == "aucseg"
        assert LEVEL[other] < LEVEL[room] or is_neighbour or is_version, f"{name} imports {imported}, which is above it"


@pytest.mark.parametrize("package", OPTIONAL)
def test_optional_packages_are_needed_by_few_rooms(package: str) -> None:
    users = {
        room_of(name)
        for name, path in MODULES.items()
        if any(imported.split(".")[0] == package for imported in imported_names(path))
    }
    assert users
    assert users <= OPTIONAL[package]


@pytest.mark.parametrize("line", [[], ["--help"], ["nonsense"], *([name, "--help"] for name in QUICK)])
def test_help_and_usage_errors_load_nothing_heavy(line: list[str]) -> None:
    code = (
        "import sys\nfrom aucseg.cli import main\n"
        f"try:\n    main({list(line)})\nexcept SystemExit:\n    pass\n"
        "print([name for name in ('torch', 'numpy', 'lightning', 'yaml') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_violation_is_found() -> None:
    assert "aucseg.training.stored_task" in imported_names(MODULES["aucseg.report.examples"])  # inside a function
    assert "aucseg.models.hub" in imported_names(MODULES["aucseg.inference.export"])  # by its name
    assert "aucseg.metrics" in imported_names(MODULES["aucseg"])  # for types alone


def test_tests_stand_where_the_code_does() -> None:
    rooms = {path.parent.relative_to(PACKAGE) for path in MODULES.values()} - {Path("configs")}  # which are data
    assert not [str(room) for room in rooms if not any((TESTS / room).glob("test_*.py"))]


def test_no_test_module_imports_another() -> None:
    files = {path.relative_to(TESTS.parent).as_posix(): imported_names(path) for path in TESTS.rglob("*.py")}
    assert not [name for name, imported in files.items() if any(".test_" in other for other in imported)]
