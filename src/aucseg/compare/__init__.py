"""``aucseg compare``: methods x seeds x models on one card and one budget, resumable, in tables with intervals."""

from aucseg.compare.comparison import add_arguments, run

__all__ = ["add_arguments", "run"]
