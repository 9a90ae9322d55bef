"""A trained task from a checkpoint, be it a stranger's: nothing in the file is run, and no code is imported for it.

Lightning's `load_from_checkpoint` is not used: it builds what the settings in the file say, and these may name any
class or function as the model.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from aucseg.datasets import DatasetCard
from aucseg.inference.offset_model import OFFSET_MODEL
from aucseg.models.build import is_import_path
from aucseg.models.checkpoint import TRUST_VARIABLE, files_are_trusted, load_plain
from aucseg.run_files import CONFIG_FILE, checkpoint_in, existing_checkpoint
from aucseg.safe_files import read_yaml_mapping
from aucseg.training.checkpoint_checks import check_classes
from aucseg.training.datamodule import SegmentationDataModule
from aucseg.training.second_stage import SECOND_STAGE_MODELS
from aucseg.training.task import SegmentationTask

# Models of this package that a checkpoint may name by import path; they load a checkpoint themselves, with `load_task`.
_OWN_MODELS = (*SECOND_STAGE_MODELS, OFFSET_MODEL)


def run_configuration(run: Path) -> dict[str, Any]:
    """The configuration of a run, whose entry `data` holds the arguments of the data module.

    A path of a card is relative to where the training was started: where it is not found, the card is the one that the
    checkpoint holds.

    Args:
        run: The folder of the run.

    Raises:
        ValueError: It does not say on which data the run was trained, its card is not found and there is no checkpoint;
            or whatever `load_task` refuses.
    """
    path = run / CONFIG_FILE
    config = read_yaml_mapping(path) if path.is_file() else {}
    data = config.get("data")
    # A configuration of LightningCLI may name the class beside its arguments.
    data = data.get("init_args", data) if isinstance(data, dict) else None
    if not isinstance(data, dict) or not data.get("card"):
        raise ValueError(f"{path} does not say on which data the run was trained")
    return config | {"data": data | {"card": _card_of(run, data["card"])}}


def restore_parts(datamodule: SegmentationDataModule, checkpoint: Path) -> None:
    """Has a data module take the training images that the run of a checkpoint held out, or validated as its fold.

    Otherwise they would be drawn again, from the files that exist now. Checkpoints that are older than this, or of
    another trainer, leave the data module as it is.

    Args:
        datamodule: With the options of the run.
        checkpoint: Of the run.

    Raises:
        ValueError: The file is not a checkpoint, or its entry of that name is something else.
    """
    content = load_plain(checkpoint, mmap=True)  # a few names beside all the weights
    state = content.get(SegmentationDataModule.__qualname__) if isinstance(content, Mapping) else None
    if state is not None:
        datamodule.load_state_dict(state)


def data_module_of(run: Path, root: str | Path | None = None, **changes: Any) -> SegmentationDataModule:
    """The data module of a run, with the images held out that its checkpoint names, where there is one.

    Args:
        run: The folder of the run, or that of its best validation.
        root: Folder of the data, instead of the run's.
        **changes: Options that are not the run's.

    Raises:
        ValueError: Whatever `run_configuration` and `restore_parts` refuse.
    """
    moved = {} if root is None else {"root": str(root)}
    datamodule = SegmentationDataModule(**(run_configuration(run)["data"] | moved | changes))
    if checkpoint_in(run).is_file():
        restore_parts(datamodule, checkpoint_in(run))
    return datamodule


def _card_of(run: Path, named: str) -> str:
    try:
        DatasetCard.load(named)
    except ValueError:
        is_there = "\n" in named or Path(named).is_file()  # and has a mistake
        if is_there or not checkpoint_in(run).is_file():
            raise
        return str(load_task(run).hparams["card"])
    return named


def load_task(run: str | Path, map_location: str | torch.device = "cpu") -> SegmentationTask:
    """The trained task of a run, in evaluation mode.

    A loss that would have to be imported is refused where it is first needed, in a validation: predicting needs none.

    Args:
        run: The folder of a run, or a checkpoint.
        map_location: Device of the tensors.

    Raises:
        ValueError: There is no checkpoint, it holds no task of this package, or its model is code that would have to be
            imported (`check_model_name`).
    """
    checkpoint = existing_checkpoint(Path(run))
    content = load_plain(checkpoint, map_location)
    settings = content.get("hyper_parameters") if isinstance(content, Mapping) else None
    if not isinstance(settings, Mapping) or not isinstance(content.get("state_dict"), Mapping):
        raise ValueError(
            f"{checkpoint} is not a checkpoint of 'aucseg fit': it holds no settings and weights of a task"
        )
    model: Any = settings
    check_model_name(model.get("model"), checkpoint)
    while model.get("model") == OFFSET_MODEL:  # which builds another by its name
        model = model.get("model_options")
        model = model if isinstance(model, Mapping) else {}
        check_model_name(model.get("model"), checkpoint)
    card = settings.get("card")
    if not isinstance(card, str) or "\n" not in card:
        raise ValueError(f"{checkpoint} is not a checkpoint of 'aucseg fit': it holds no data set card")
    known = inspect.signature(SegmentationTask).parameters
    try:
        task = SegmentationTask(**{name: value for name, value in settings.items() if name in known})
        task.on_load_checkpoint(content)
        task.load_state_dict(content["state_dict"])
    except ImportError:
        raise  # a package is missing; the message says which
    except Exception as error:  # whatever else the settings of a damaged or hostile file bring about
        raise ValueError(f"{checkpoint} holds a task that cannot be built again: {error}") from error
    loss = task.hparams["loss"]
    if isinstance(loss, str) and ":" in loss and not files_are_trusted():
        task.loss = RefusedLoss(_refusal(checkpoint, loss, "loss"))
    return task.to(map_location).eval()


def load_task_for(card: DatasetCard, run: str | Path, map_location: str | torch.device = "cpu") -> SegmentationTask:
    """As `load_task`, to be judged by data of a card: its classes and its ignore label must be those of the task.

    Raises:
        ValueError: They are not; or whatever `load_task` refuses.
    """
    task = load_task(run, map_location)
    check_classes(task.card, card)
    if task.card.ignore_index != card.ignore_index:
        raise ValueError(
            f"the card {card.name!r} ignores train id {card.ignore_index}, that of {run} {task.card.ignore_index}: set "
            "ignore_index in the card as it was"
        )
    return task


class RefusedLoss(nn.Module):
    """Stands for a loss that is not imported.

    Args:
        message: Why, and what to do.
    """

    def __init__(self, message: str) -> None:
        super().__init__()
        self.message = message

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Raises ValueError."""
        raise ValueError(self.message)


def _refusal(checkpoint: Path, name: str, what: str) -> str:
    return (
        f"{checkpoint} names the Python object {name!r} as its {what}. It is not imported, because that runs code of "
        f"the file's choice; if you trust the file, set {TRUST_VARIABLE}=1"
    )


def check_model_name(name: Any, checkpoint: Path) -> None:
    """Refuses the model of a checkpoint if it would have to be imported (`package.module:Name`).

    Raises:
        ValueError: The model has no name, or an import path that is not this package's own, unless the environment
            variable `AUCSEG_TRUST_FILES` is 1.
    """
    if not isinstance(name, str):
        raise ValueError(
            f"{checkpoint}: the model was given as a module, not by name, so that it cannot be built again; build it "
            "and load its weights with aucseg.models.load_checkpoint"
        )
    if is_import_path(name) and name not in _OWN_MODELS and not files_are_trusted():
        raise ValueError(_refusal(checkpoint, name, "model"))
