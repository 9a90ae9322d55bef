"""Runs the command line as `python -m aucseg`, as launchers such as torchrun need it."""

import sys

from aucseg.cli import main

sys.exit(main())
