"""Load weights from files without running code from them."""

import os
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from aucseg.hints import import_extra
from aucseg.models.first_layer import is_of_colours, widened
from aucseg.models.segmentation_model import SegmentationModel, default_encoder

# What trainers put around the weights, and before their names.
_WRAPPERS = ("state_dict", "model_state_dict", "model")
TRUST_VARIABLE = "AUCSEG_TRUST_FILES"
_PREFIXES = ("", "module.", "model.", "model.module.", "module.model.", "network.", "model.network.")


@dataclass(frozen=True)
class LoadReport:
    """What did not match when weights were loaded.

    Attributes:
        missing: Names that the model has and the file lacks.
        unexpected: Names that the file has and the model lacks.
        misshapen: `"name: (shape in the file) is not (shape in the model)"`.
    """

    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    misshapen: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.misshapen)

    def __str__(self) -> str:
        lines = []
        for title in ("missing", "unexpected", "misshapen"):
            names = getattr(self, title)
            if names:
                lines.append(f"{title} ({len(names)}):")
                lines += [f"  {name}" for name in names[:20]]
                lines += ["  ..."] if len(names) > 20 else []
        return "\n".join(lines)


def files_are_trusted() -> bool:
    """Whether the user vouches for the files that are loaded, with `AUCSEG_TRUST_FILES=1` in the environment."""
    return os.environ.get(TRUST_VARIABLE) == "1"


def file_content(content: Any) -> memoryview:
    """What `torch.save` writes into a file, for `aucseg.safe_files.replace_file`."""
    buffer = BytesIO()
    torch.save(content, buffer)
    return buffer.getbuffer()


def load_plain(path: str | Path, map_location: str | torch.device = "cpu", *, mmap: bool = False) -> Any:
    """Reads a file of `torch.save` that holds tensors, plain values and containers; nothing in the file is run.

    Args:
        path: The file.
        map_location: Where its tensors go.
        mmap: Whether tensors stay in the file until they are used, where its format allows it.

    Raises:
        ValueError: The file is damaged or holds other objects; or torch is older than 2.6, whose `weights_only` does
            not keep a file from running code (CVE-2025-32434), and `AUCSEG_TRUST_FILES` is not 1.
    """
    if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 6) and not files_are_trusted():
        raise ValueError(
            f"{path} is not loaded: in torch {torch.__version__} a file can run code even with weights_only=True "
            f"(CVE-2025-32434). Use torch 2.6 or later or a .safetensors file; or, if you trust the file, set "
            f"{TRUST_VARIABLE}=1"
        )
    with open(path, "rb") as file:
        start = file.read(2)
    if start != b"PK" and start[:1] != pickle.PROTO:  # an archive, or a bare pickle as old versions wrote it
        raise ValueError(f"{path} is not a readable checkpoint: torch.save did not write this file")
    try:
        return torch.load(path, map_location=map_location, weights_only=True, mmap=mmap and start == b"PK")
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds other objects than tensors and plain values, and is not loaded because that could run code "
            f"from the file; save its state dict alone, where you trust it. ({str(error).splitlines()[0]})"
        ) from error
    except Exception as error:  # damaged bytes fail in many ways: RuntimeError, EOFError, UnicodeDecodeError, ...
        raise ValueError(f"{path} is not a readable checkpoint: {error}") from error


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Reads the tensors of a checkpoint, safely: nothing in the file is run.

    Args:
        path: A `.safetensors` file, or a file of `torch.save` that holds a state dict, bare or under
            `state_dict`, `model_state_dict` or `model`.

    Returns:
        Names and tensors, on the CPU, as in the file.

    Raises:
        FileNotFoundError: No such file.
        ValueError: The file is not a checkpoint, is damaged, holds other objects than tensors and plain values, or
            holds no tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    content = load_plain(path)
    for wrapper in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
            break
    tensors = (
        {name: value for name, value in content.items() if isinstance(value, Tensor)}
        if isinstance(content, Mapping)
        else {}
    )
    if not tensors:
        raise ValueError(
            f"{path} holds no state dict: expected names and tensors, bare or under one of {', '.join(_WRAPPERS)}"
        )
    return tensors


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    safetensors = import_extra("safetensors", "export")
    load_file: Any = import_extra("safetensors.torch", "export").load_file
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a readable safetensors file: {error}") from error
    return tensors


def load_checkpoint(model: nn.Module, path: str | Path, *, strict: bool = True) -> LoadReport:
    """Loads the weights of a whole model.

    Prefixes that trainers add (`module.`, `model.`, `network.`) are found and removed, or added; a SegNeXt of
    mmsegmentation 1.x fits as well as one of the paper's code. Where the names bear the prefix of a model inside a
    larger state (a loss, a memory bank), the other parts are passed over.

    Args:
        model: The model; its tensors are overwritten in place.
        path: See `read_state_dict`.
        strict: Raise when anything does not match. Otherwise what fits is loaded: for a model with other classes, say.

    Returns:
        What did not match; empty (false) when everything did.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Unreadable file; or with `strict` missing, unexpected or misshapen names, which the message lists;
            or nothing at all fits.

    Example:
        >>> import tempfile, pathlib
        >>> source, target = nn.Linear(2, 1), nn.Linear(2, 1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "weights.pth")
        ...     torch.save({"state_dict": {f"module.{k}": v for k, v in source.state_dict().items()}, "meta": {}}, path)
        ...     bool(load_checkpoint(target, path))
        False
        >>> torch.equal(source.weight, target.weight)
        True
    """
    return _load(model, matching_tensors(model, path), path, strict)


def matching_tensors(model: nn.Module, path: str | Path) -> dict[str, Tensor]:
    """Reads the tensors of a checkpoint under the names that a model has for them, as far as it has any.

    Args:
        model: The model.
        path: See `read_state_dict`.
    """
    tensors = read_state_dict(path)
    expected = model.state_dict()
    candidates = [_strip(names, prefix) for names in (tensors, _from_mmseg(tensors)) for prefix in _PREFIXES]
    candidates += [{f"network.{name}": value for name, value in candidate.items()} for candidate in candidates]
    return max(candidates, key=lambda candidate: len(candidate.keys() & expected.keys()))


def load_encoder_checkpoint(model: nn.Module, path: str | Path, *, strict: bool = True) -> LoadReport:
    """Loads the weights of the encoder alone, from an ImageNet classifier (`mscan_*.pth`) or from a whole model.

    An encoder for other channels than three takes the weights of red, green and blue in turn, scaled so that
    activations keep their size.

    Args:
        model: A model of `aucseg.models.build_model`, or any with an attribute `backbone` or `encoder`.
        path: See `read_state_dict`. Names of the classifier (`head.*`, `fc.*`, `classifier.*`) and of other
            parts of a model are passed over.
        strict: As in `load_checkpoint`.

    Returns:
        What did not match.

    Raises:
        FileNotFoundError: No such file.
        ValueError: The model has no encoder, or as in `load_checkpoint`.
    """
    name = model.encoder_name if isinstance(model, SegmentationModel) else default_encoder(model)
    if name is None:
        raise ValueError(f"{type(model).__name__} has no encoder: no attribute backbone or encoder")
    encoder = model.get_submodule(name)
    tensors = read_state_dict(path)
    expected = encoder.state_dict()
    prefixes = [outer + inner for outer in _PREFIXES for inner in ("", "backbone.", "encoder.")]
    candidates = [_strip(names, prefix) for names in (tensors, _from_mmseg(tensors)) for prefix in prefixes]
    best = max(candidates, key=lambda candidate: len(candidate.keys() & expected.keys()))
    heads = ("head.", "fc.", "classifier.")
    best = {key: value for key, value in best.items() if key in expected or not key.startswith(heads)}
    for key in best.keys() & expected.keys():
        if is_of_colours(best[key], expected[key]):
            best[key] = widened(best[key], expected[key].shape[1])
    return _load(encoder, best, path, strict)


def _strip(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}


def _from_mmseg(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    # mmsegmentation 1.x shortened one name of the authors' SegNeXt, which is ours.
    return {name.replace(".mlp.dwconv.", ".mlp.dwconv.dwconv."): value for name, value in tensors.items()}


def _load(module: nn.Module, tensors: dict[str, Tensor], path: str | Path, strict: bool) -> LoadReport:
    expected = module.state_dict()
    common = tensors.keys() & expected.keys()
    misshapen = sorted(name for name in common if tensors[name].shape != expected[name].shape)
    report = LoadReport(
        # Old files have no counters of batches; nothing is computed from them at a fixed momentum.
        missing=sorted(name for name in expected.keys() - tensors.keys() if not name.endswith("num_batches_tracked")),
        unexpected=sorted(tensors.keys() - expected.keys()),
        misshapen=[f"{name}: {tuple(tensors[name].shape)} is not {tuple(expected[name].shape)}" for name in misshapen],
    )
    fitting = {name: tensors[name] for name in common if name not in misshapen}
    if not fitting or (strict and report):
        raise ValueError(f"{path} does not fit {type(module).__name__}; strict=False loads what fits\n{report}")
    module.load_state_dict(fitting, strict=False)
    return report
