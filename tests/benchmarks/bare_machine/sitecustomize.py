"""Python imports this at its start: what a bare machine lacks is not found, unless it was taken along.

`LACKING` names the modules, `TAKEN_ALONG` the folder below which they may lie.
"""

import os
import sys
from collections.abc import Iterable, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import Distribution, DistributionFinder

CONTEXT = DistributionFinder.Context()


class BareMachine(DistributionFinder):
    """Finds what is lacking in the folder taken along, or not at all; for the rest it asks the usual finders."""

    def __init__(self) -> None:
        self.finders = list(sys.meta_path)
        self.lacking = frozenset(os.environ.get("LACKING", "").split(","))
        self.folder = os.environ.get("TAKEN_ALONG", "")

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: object = None) -> ModuleSpec | None:
        """Finds a module."""
        if name in self.lacking:
            return PathFinder.find_spec(name, [part for part in sys.path if part.startswith(self.folder)])
        specs = (finder.find_spec(name, path, None) for finder in self.finders)
        return next((spec for spec in specs if spec is not None), None)

    def find_distributions(self, context: DistributionFinder.Context = CONTEXT) -> Iterable[Distribution]:
        """Finds what is installed; packages that are lacking have a version all the same, if they have one here."""
        for finder in self.finders:
            if hasattr(finder, "find_distributions"):
                yield from finder.find_distributions(context)


sys.meta_path[:] = [BareMachine()]
