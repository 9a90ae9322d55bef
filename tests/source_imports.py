"""What the modules of the package import, read from their source: also inside functions and for types alone."""

import ast
from collections.abc import Iterable
from pathlib import Path

import aucseg

PACKAGE = Path(aucseg.__file__).parent
# Functions that import a module by its name.
_IMPORTERS = ("import_module", "import_extra", "import_kernels")


def module_name(path: Path) -> str:
    """`losses/auc/pixels.py` as `aucseg.losses.auc.pixels`; an `__init__.py` has its folder's name."""
    names = ["aucseg", *path.relative_to(PACKAGE).with_suffix("").parts]
    return ".".join(names[:-1] if names[-1] == "__init__" else names)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imported_names(path: Path) -> set[str]:
    """Dotted names of the modules that a file imports; of names taken from a package, the module if it is one."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            assert node.module is not None
            submodules = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (submodules & MODULES.keys()) or {node.module}
        elif (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in _IMPORTERS
            and isinstance(node.args[0], ast.Constant)
        ):
            found.add(str(node.args[0].value))
    return found


def reached_from(names: Iterable[str]) -> set[str]:
    """Modules of the package that may be imported once some of them are, these and their packages included."""
    reached: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name in MODULES and name not in reached:
            reached.add(name)
            # A package is imported with its modules; the door of the whole is left out, which names everything.
            waiting += [name.rpartition(".")[0], *imported_names(MODULES[name])]
            waiting = [other for other in waiting if other != "aucseg"]
    return reached
