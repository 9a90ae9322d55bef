"""The command line: `aucseg COMMAND`.

This module imports no heavy package, so that `aucseg --help` answers at once; every command imports what it needs.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from importlib import import_module

from aucseg import __version__
from aucseg.commands.failures import with_notes
from aucseg.commands.fit_help import told_at_once
from aucseg.commands.option_parser import OptionParser
from aucseg.commands.validate import names_run
from aucseg.hints import closest
from aucseg.runtime.announce import Announcement, start_of_command

_EXAMPLES = """examples:
  aucseg demo                                      cross-entropy beside AUCSeg on embedded data, and a report
  aucseg stats my_data/                            class table, head/middle/tail, suggested bank settings
  aucseg fit my_data/ --out runs/a                 plan and train; or --config run.yaml
  aucseg validate runs/a                           evaluate again, on any split
  aucseg test runs/a                               evaluate on the test split
  aucseg evaluate theirs/ --card my.yaml --root d  measure predictions of any framework
  aucseg predict runs/a photos/ --out predictions  label maps and overlays of images, folders or globs

'aucseg COMMAND --help' tells more about each. Set AUCSEG_TRACEBACK=1 to see where an error comes from.
"""

# Commands with a module of their own, which has add_arguments(parser) and run(args) -> int: (module, help).
_COMMANDS = {
    "demo": ("aucseg.commands.demo", "train cross-entropy and AUCSeg on the embedded data and compare them"),
    "validate": ("aucseg.commands.validate", "evaluate a trained run on its validation split, or on another"),
    "test": ("aucseg.commands.test", "evaluate a trained run on the test split"),
    "evaluate": ("aucseg.commands.evaluate", "measure label maps or scores that any framework has written"),
    "predict": ("aucseg.commands.predict", "write label maps and overlays of images, folders or globs"),
    "stats": ("aucseg.commands.stats", "count the classes of a data set, check its labels, suggest settings"),
    "masks": ("aucseg.commands.masks", "make masks and a card from polygons and other annotations"),
    "compare": ("aucseg.commands.compare", "train several methods with several seeds and tabulate them"),
    "report": ("aucseg.commands.report", "write one HTML page about finished or running runs"),
    "adjust": ("aucseg.commands.adjust", "fit one offset a class to a trained model, for mean IoU or the tail's"),
    "export": ("aucseg.commands.export", "write a trained model as ONNX, torch.export or safetensors"),
}
# Its options Lightning's command line derives from the task, the data module and the trainer; with --config those of
# "validate", too.
_FIT = ("fit", "train a model on a folder of images and masks, or from a YAML configuration")

# What the same command does after Ctrl-C.
_AFTER_CTRL_C = {"fit": "starts again", "demo": "goes on", "compare": "goes on"}


def _parser() -> OptionParser:
    parser = OptionParser(
        prog="aucseg",
        description="AUC-oriented long-tail semantic segmentation.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"aucseg {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, text in (_FIT, *((name, text) for name, (_, text) in _COMMANDS.items())):
        commands.add_parser(name, help=text, add_help=False)
    return parser


def _run(command: str, arguments: list[str]) -> int:
    asks_for_help = not {"-h", "--help"}.isdisjoint(arguments)
    if command == "fit" or (command == "validate" and not names_run(arguments) and not asks_for_help):
        text = told_at_once(arguments)
        if text is not None:
            print(text)
            return 0
        with Announcement("loading PyTorch and Lightning"):
            module = import_module("aucseg.commands.fit")
        return int(module.run(command, arguments))
    module_name, text = _COMMANDS[command]
    module = import_module(module_name)
    parser = OptionParser(
        prog=f"aucseg {command}",
        description=text[0].upper() + text[1:] + ".",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.add_arguments(parser)
    return int(module.run(parser.parse_args(arguments)))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: The arguments, by default those of the process.

    Returns:
        Exit status: 0 done, 1 done with failures that were reported, 2 wrong input, 3 a training stopped by a
        failure that the message names, 130 interrupted, 128 + n ended by signal n.
    """
    start_of_command()
    arguments = list(sys.argv[1:] if argv is None else argv)
    # The commands parse their own options, so only the first word is parsed here.
    parser = _parser()
    commands = ("fit", *_COMMANDS)
    if arguments and not arguments[0].startswith("-") and arguments[0] not in commands:
        parser.error(f"there is no command {arguments[0]!r}; {closest(arguments[0], commands)}")
    command = parser.parse_args(arguments[:1]).command
    try:
        return _run(command, arguments[1:])
    except KeyboardInterrupt as interrupt:
        text = with_notes("interrupted", interrupt)
        how = _AFTER_CTRL_C.get(command)
        if how is not None and "--resume" not in text:  # a training notes what goes on from its last checkpoint
            text += f"; '{shlex.join(['aucseg', *arguments])}' {how}"
        print(f"aucseg {command}: {text}", file=sys.stderr)
        return 130
    except (ValueError, TypeError, OSError, ImportError) as error:
        if os.environ.get("AUCSEG_TRACEBACK"):
            raise
        print(f"aucseg {command}: error: {with_notes(str(error), error)}", file=sys.stderr)
        return 2
    except Exception as error:
        if sys.version_info < (3, 11) and (notes := with_notes("", error)):  # later versions show notes themselves
            print(f"aucseg {command}{notes}", file=sys.stderr)
        raise
