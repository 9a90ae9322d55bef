"""`aucseg test RUN`: the metrics of a trained run on the test split."""

from __future__ import annotations

import argparse

from aucseg.commands import validate
from aucseg.commands.validate import run as run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `aucseg test`."""
    validate.add_options(parser, "test", "test")
