"""Lightning without what it says at every start."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_LOGGERS = ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.seed")


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Within the context Lightning is silent about devices, seeds, tips, loader processes and its own dependencies."""
    levels = {name: logging.getLogger(name).level for name in _LOGGERS}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".isinstance.treespec, LeafSpec.. is deprecated")
        # Few loader processes suit small machines; whether more help is the user's to try.
        warnings.filterwarnings("ignore", message=".*does not have many workers")
        try:
            for name in levels:
                logging.getLogger(name).setLevel(logging.WARNING)
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)
