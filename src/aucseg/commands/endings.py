"""How a command that trains ends when it does not end by itself: one sentence, and the command that goes on."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from lightning.fabric.utilities.exceptions import MisconfigurationException

from aucseg.commands.failures import explanation, with_notes
from aucseg.runtime.announce import process_number
from aucseg.training.checkpoints import RunInterrupted
from aucseg.training.step_guard import TrainingStopped


def status_of(command: str, train: Callable[[], object]) -> int:
    """Trains, and says what stopped it.

    Args:
        command: Name of the command, for the sentence.
        train: What is done.

    Returns:
        Exit status: 0 done, 3 stopped by a failure that is named, 128 + n stopped by signal n with a checkpoint.

    Raises:
        KeyboardInterrupt: Ctrl-C before there was a checkpoint.
        ValueError: Options that the trainer refuses.
    """
    try:
        train()
    except MisconfigurationException as error:
        raise ValueError(str(error)) from error
    except RunInterrupted as interruption:
        _say(command, with_notes(str(interruption), interruption))
        return 128 + interruption.signal
    except TrainingStopped as stop:
        _say(command, f"error: {stop}")
        return 3
    except SystemExit as end:
        # Lightning turns Ctrl-C into this, outside of the training itself.
        if not isinstance(end.__context__, KeyboardInterrupt):
            raise
        raise end.__context__ from None
    except Exception as error:
        explained = explanation(error)
        if explained is None or os.environ.get("AUCSEG_TRACEBACK"):
            raise
        _say(command, f"error: {with_notes(explained, error)}")
        return 3
    return 0


def _say(command: str, message: str) -> None:
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    place = f" (process {process_number()} of {world_size})" if world_size > 1 else ""
    print(f"aucseg {command}{place}: {message}", file=sys.stderr, flush=True)
