"""Where a model starts: weights of another run, of other classes perhaps, and parts that do not learn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from aucseg.datasets import DatasetCard
from aucseg.hints import closest, shorten
from aucseg.models import build_model, without_weights
from aucseg.models.checkpoint import load_plain, matching_tensors
from aucseg.models.segmentation_model import SegmentationModel, default_encoder
from aucseg.run_files import checkpoint_in
from aucseg.training.checkpoint_checks import stored_card

# Names that are worth a place in a sentence.
_NUM_SHOWN = 4


def frozen_parts(model: nn.Module, names: str | Sequence[str] | None) -> list[nn.Module]:
    """Freezes parts of a model: their parameters have no gradient.

    Args:
        model: Any module.
        names: `encoder`, or dotted names of submodules; None for none.

    Returns:
        The parts, in evaluation mode, in which the caller keeps them: running statistics stay as well.

    Raises:
        ValueError: There is no such part, or nothing is left that learns.

    Example:
        >>> model = nn.ModuleDict({"backbone": nn.Linear(3, 4), "head": nn.Linear(4, 2)})
        >>> frozen_parts(model, "encoder")
        [Linear(in_features=3, out_features=4, bias=True)]
        >>> [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        ['head.weight', 'head.bias']
    """
    parts = []
    modules = dict(model.named_modules())
    for name in [names] if isinstance(names, str) else names or []:
        found = _encoder_name(model) if name == "encoder" and name not in modules else name
        if found is None or found not in modules or not found:
            raise ValueError(f"model.freeze: the model has no part {name!r}; {closest(name, ['encoder', *modules])}")
        parts.append(modules[found].requires_grad_(False).eval())
    if parts and not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(f"model.freeze {names}: nothing is left that learns")
    return parts


def _encoder_name(model: nn.Module) -> str | None:
    return model.encoder_name if isinstance(model, SegmentationModel) else default_encoder(model)


@torch.no_grad()
def take_over(model: nn.Module, source: str | Path, card: DatasetCard, rebuilt: Mapping[str, Any]) -> str:
    """Takes the weights of a trained model that fit, in place.

    Of layers that have an output for each class those of the classes are taken that the source has under the same name;
    the others begin as they are. The source tells its classes where it is a run of this package.

    Args:
        model: The model.
        source: Folder of a run, a checkpoint, or a file of weights, see `aucseg.models.load_checkpoint`.
        card: Of the model.
        rebuilt: `model` and `model_options` to build another of its kind, `model` being None where nobody can.

    Returns:
        What was taken and what was not, in a line.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It cannot be read, or nothing fits.
    """
    path = Path(source)
    path = checkpoint_in(path) if path.is_dir() else path
    given, expected = matching_tensors(model, path), model.state_dict()
    old_names = _class_names(path)
    differ = old_names is not None and old_names != list(card.class_names)
    by_class = _tensors_by_class(expected, card.num_classes, rebuilt) if differ else set()
    taken: dict[str, Tensor] = {}
    by_rows: list[str] = []
    for name in given.keys() & expected.keys():
        value, own = given[name], expected[name]
        fits_rows = own.ndim > 0 and old_names is not None and value.shape == (len(old_names), *own.shape[1:])
        if differ and fits_rows and (name in by_class or value.shape != own.shape):
            assert old_names is not None
            taken[name] = own.clone()
            for class_id, class_name in enumerate(card.class_names):
                if class_name in old_names:
                    taken[name][class_id] = value[old_names.index(class_name)]
            by_rows.append(name)
        elif value.shape == own.shape:
            taken[name] = value
    if not taken:
        raise ValueError(f"model.init_from: nothing in {path} fits the model {type(model).__name__}")
    model.load_state_dict(taken, strict=False)
    parts = [f"model.init_from {path}: {len(taken)} of {len(expected)} tensors taken"]
    if by_rows:
        shared = [name for name in card.class_names if name in (old_names or [])]
        parts.append(
            f"of {shorten(sorted(by_rows), _NUM_SHOWN)} the rows of {len(shared)} of {card.num_classes} classes "
            f"({shorten(shared, _NUM_SHOWN) or 'none'})"
        )
    left = sorted(expected.keys() - taken.keys())
    parts += [f"as initialized: {shorten(left, _NUM_SHOWN)}"] if left else []
    unused = sorted(given.keys() - taken.keys())
    parts += [f"not used: {shorten(unused, _NUM_SHOWN)}"] if unused else []
    return "; ".join(parts)


def _class_names(path: Path) -> list[str] | None:
    """The classes of a checkpoint of this package."""
    if path.suffix == ".safetensors":
        return None
    card = stored_card(load_plain(path), path)
    return None if card is None else list(card.class_names)


def _tensors_by_class(expected: Mapping[str, Tensor], num_classes: int, rebuilt: Mapping[str, Any]) -> set[str]:
    """Names of the tensors that have a row for each class: those that grow with the number of classes."""
    if rebuilt["model"] is None:
        return set()
    options = without_weights(rebuilt["model"], rebuilt["model_options"] or {})
    with torch.random.fork_rng(devices=[]):
        larger = build_model(rebuilt["model"], num_classes + 1, **options).state_dict()
    return {name for name, value in larger.items() if name in expected and value.shape != expected[name].shape}
