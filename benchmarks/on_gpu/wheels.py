"""Wheels that a bare machine lacks: `python -m benchmarks.on_gpu.wheels fetch|install`.

`fetch` (here, with a network) builds the package of one commit, downloads what its extras `train` and `demo` need
and `machine.txt` does not list, for Linux x86-64 and CPython 3.12, and checks all versions against each other.
`install` (there, without) unpacks the wheels into folders of the checkout, and checks the versions that are there.
"""

from __future__ import annotations

import argparse
import io
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from email.parser import HeaderParser
from importlib import metadata
from pathlib import Path

from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

WHEELS = Path(".wheels")
SITE = Path(".gpu/site")
PINNED = Path(".gpu/pinned")
MOST_BYTES = 60_000_000
_MACHINE = Path(__file__).with_name("machine.txt")
_ROOT = Path(__file__).parents[2]
_PACKAGE, _EXTRAS = "aucseg", ("train", "demo")
_PYTHON = "3.12"
_PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64", "manylinux1_x86_64")
_ENVIRONMENT = {
    "implementation_name": "cpython",
    "os_name": "posix",
    "platform_machine": "x86_64",
    "platform_python_implementation": "CPython",
    "platform_system": "Linux",
    "python_full_version": f"{_PYTHON}.0",
    "python_version": _PYTHON,
    "sys_platform": "linux",
}


@dataclass(frozen=True)
class Package:
    """A package that is there: its version (None if that is not known) and what it requires."""

    version: str | None
    requires: tuple[str, ...] = ()


Find = Callable[[Requirement], "Package | None"]


def machine_packages() -> dict[str, Package]:
    """What the bare machine has, by name."""
    lines = [line for line in _MACHINE.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    found: dict[str, Package] = {}
    for line in lines:
        name, _, version = line.partition("==")
        found[canonicalize_name(name)] = Package(version or None)
    return found


def problems_of(find: Find) -> list[str]:
    """What the package's extras need and `find` does not have, each as a sentence; needs of needs included.

    Args:
        find: From a requirement to the package that would be used for it, or None.
    """
    problems: dict[str, None] = {}
    waiting = [(_PACKAGE, Requirement(f"{_PACKAGE}[{','.join(_EXTRAS)}]"))]
    seen: set[str] = set()
    while waiting:
        asking, requirement = waiting.pop(0)
        if str(requirement) in seen:
            continue
        seen.add(str(requirement))
        package = find(requirement)
        if package is None:
            problems[f"{asking} needs {requirement}: not there"] = None
            continue
        if package.version is not None and not requirement.specifier.contains(package.version, prereleases=True):
            problems[f"{asking} needs {requirement}: version {package.version} is there"] = None
        for text in package.requires:
            need = Requirement(text)
            if any(_applies(need.marker, extra) for extra in ("", *requirement.extras)):
                waiting.append((requirement.name, need))
    return list(problems)


def _applies(marker: Marker | None, extra: str) -> bool:
    return marker is None or marker.evaluate({**_ENVIRONMENT, "extra": extra})


def package_of_wheel(path: Path) -> Package:
    """The version and needs of a wheel."""
    with zipfile.ZipFile(path) as wheel:
        name = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
        headers = HeaderParser().parsestr(wheel.read(name).decode())
    return Package(headers["Version"], tuple(headers.get_all("Requires-Dist") or ()))


def build_pinned(commit: str, folder: Path) -> Path:
    """Builds the wheel of a commit, whose hash becomes the local part of the version (`1.0+gHASH`).

    Raises:
        ValueError: There is no such commit.
    """
    found = subprocess.run(
        ["git", "-C", str(_ROOT), "rev-parse", "--verify", f"{commit}^{{commit}}"], capture_output=True, text=True
    )
    if found.returncode != 0:
        raise ValueError(f"there is no commit {commit!r}")
    name = found.stdout.strip()
    existing = list(folder.glob(f"{_PACKAGE}-*+g{name}-*.whl"))
    if existing:
        return existing[0]
    shutil.rmtree(folder, ignore_errors=True)
    archive = subprocess.run(["git", "-C", str(_ROOT), "archive", name], capture_output=True, check=True).stdout
    with tempfile.TemporaryDirectory() as temporary:
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            tar.extractall(temporary, filter="data")
        version_file = Path(temporary, "src", _PACKAGE, "__init__.py")
        lines = version_file.read_text(encoding="utf-8").splitlines(keepends=True)
        pinned = [f'{line.rstrip()[:-1]}+g{name}"\n' if line.startswith("__version__ = ") else line for line in lines]
        version_file.write_text("".join(pinned), encoding="utf-8")
        _pip("wheel", "--no-deps", "--wheel-dir", str(folder), temporary)
    return next(folder.glob(f"{_PACKAGE}-*+g{name}-*.whl"))


def fetch(commit: str, folder: Path) -> list[str]:
    """Fetches the wheels, and returns what does not fit together."""
    pinned = package_of_wheel(build_pinned(commit, folder / "pinned"))
    machine = machine_packages()
    used: set[Path] = set()

    def find(requirement: Requirement) -> Package | None:
        name = canonicalize_name(requirement.name)
        if name == _PACKAGE:
            return pinned
        if name in machine:
            return machine[name]
        path = _wheel(requirement, folder)
        used.add(path)
        return package_of_wheel(path)

    problems = problems_of(find)
    for path in set(folder.glob("*.whl")) - used:  # two versions of one package cannot be installed
        path.unlink()
    return problems


def _wheel(requirement: Requirement, folder: Path) -> Path:
    stem = canonicalize_name(requirement.name).replace("-", "_")
    for path in folder.glob("*.whl"):
        if path.name.partition("-")[0].lower() == stem and requirement.specifier.contains(path.name.split("-")[1]):
            return path
    wanted = f"{requirement.name}{requirement.specifier}"
    platforms = [part for platform in _PLATFORMS for part in ("--platform", platform)]
    options = ["--no-deps", "--only-binary=:all:", "--python-version", _PYTHON, "--implementation", "cp", *platforms]
    _pip("download", *options, "--constraint", str(_ROOT / "constraints.txt"), "--dest", str(folder), wanted)
    return next(path for path in folder.glob("*.whl") if path.name.partition("-")[0].lower() == stem)


def install(folder: Path, site: Path, pinned: Path) -> list[str]:
    """Installs the wheels, the package itself into `pinned` and the rest into `site`; returns what does not fit.

    Raises:
        ValueError: There are no wheels.
    """
    for wheels, target in ((sorted(folder.glob("*.whl")), site), (sorted((folder / "pinned").glob("*.whl")), pinned)):
        if not wheels:
            raise ValueError(f"there are no wheels in {folder}: make them with `make gpu-wheels`, and take them along")
        marker, names = target / ".installed", "".join(f"{path.name}\n" for path in wheels)
        if not marker.is_file() or marker.read_text(encoding="utf-8") != names:
            shutil.rmtree(target, ignore_errors=True)
            options = ["--no-index", "--no-deps", "--no-compile", "--no-cache-dir", "--target", str(target)]
            _pip("install", *options, *map(str, wheels))
            marker.write_text(names, encoding="utf-8")
    return problems_of(lambda requirement: _installed(requirement, [str(pinned), str(site), *sys.path]))


def _installed(requirement: Requirement, path: list[str]) -> Package | None:
    for distribution in metadata.distributions(name=requirement.name, path=path):
        return Package(distribution.version, tuple(distribution.requires or ()))
    return None


def sizes(folder: Path) -> Iterable[tuple[str, int]]:
    """Name and bytes of everything that travels: the tracked files of the checkout, and the wheels."""
    tracked = subprocess.run(["git", "-C", str(_ROOT), "ls-files", "-z"], capture_output=True, check=True).stdout
    files = [_ROOT / name for name in tracked.decode().split("\0") if name]
    yield "checkout", sum(path.stat().st_size for path in files if path.is_file())
    for path in sorted(folder.rglob("*.whl")):
        yield path.name, path.stat().st_size


def _pip(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments], check=True)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("fetch", "install"))
    parser.add_argument("--folder", type=Path, default=WHEELS, metavar="DIR", help="default: %(default)s")
    parser.add_argument("--commit", default="HEAD", help="of the package that studies run (default: %(default)s)")
    parser.add_argument("--site", type=Path, default=SITE, metavar="DIR", help="default: %(default)s")
    parser.add_argument("--pinned", type=Path, default=PINNED, metavar="DIR", help="default: %(default)s")
    args = parser.parse_args(argv)
    try:
        if args.action == "fetch":
            problems = fetch(args.commit, args.folder)
        else:
            problems = install(args.folder, args.site, args.pinned)
    except ValueError as error:
        parser.error(str(error))
    if args.action == "fetch":
        listed = list(sizes(args.folder))
        for name, size in (*listed, ("together", sum(size for _, size in listed))):
            print(f"{size / 1e6:8.2f} MB  {name}")
        if sum(size for _, size in listed) > MOST_BYTES:
            problems.append(f"more than {MOST_BYTES / 1e6:.0f} MB")
    for problem in problems:
        print(f"does not fit: {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
