"""The configuration that `aucseg fit` keeps in the folder of a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, SaveConfigCallback

from aucseg.run_files import LAST_CHECKPOINT

if TYPE_CHECKING:
    from jsonargparse import Namespace


class RunConfig(SaveConfigCallback):
    """Keeps a run's configuration without what concerns one start of it alone, so that it can be used again.

    Attributes:
        waits: Whether it is written when training begins only, as that of a resumed run, whose checkpoint
            may not fit.
    """

    waits = False

    def __init__(self, parser: LightningArgumentParser, config: Namespace, **options: Any) -> None:
        config = config.clone()
        config.resume, config.overwrite = "never", False
        super().__init__(parser, config, **options)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leaves the configuration of a run as it was trained where it is validated into its own folder, or resumed."""
        is_kept = stage == "validate" and Path(trainer.default_root_dir, LAST_CHECKPOINT).is_file()
        if not (is_rehearsal(trainer) or is_kept or self.waits):
            super().setup(trainer, pl_module, stage)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the configuration where it was to wait."""
        if not is_rehearsal(trainer):
            super().setup(trainer, pl_module, "fit")


def is_rehearsal(trainer: Any) -> bool:
    """Whether a few steps are tried, of which nothing is to stay."""
    return bool(trainer.fast_dev_run)
