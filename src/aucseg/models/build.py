"""build_model(): every model by its name."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import nn

from aucseg.hints import check_options, closest, takes_any_option
from aucseg.models.checkpoint import load_encoder_checkpoint
from aucseg.models.hf_models import build_hf_model, list_hf_model_types
from aucseg.models.segmentation_model import SegmentationModel, WrappedNetwork
from aucseg.models.segnext import SIZES, SegNeXt
from aucseg.models.smp_models import PACKAGE_ENCODER, PACKAGE_WEIGHTS, build_smp_model, list_smp_architectures
from aucseg.models.torchvision_models import build_torchvision_model, list_torchvision_models
from aucseg.runtime.import_paths import import_object


def build_model(name: str | nn.Module, num_classes: int, **options: Any) -> SegmentationModel:
    """Builds a model by its name.

    Args:
        name: One of

            - `"segnext/tiny"`, `small`, `base`, `large`: `build_segnext`;
            - `"smp/fpn"` and every other architecture of segmentation_models_pytorch:
              `aucseg.models.smp_models.build_smp_model`;
            - `"hf/segformer"`, `"hf/<folder, config.json or hub name>"`:
              `aucseg.models.hf_models.build_hf_model`;
            - `"torchvision/deeplabv3_resnet50"`, ...:
              `aucseg.models.torchvision_models.build_torchvision_model`;
            - `"package.module:Name"`: the user's own class or function, called with `num_classes=K` and the
              options; the module may lie in the current folder;
            - a module, to be used as it is.

        num_classes: K, at least 1.
        **options: Options of the family. For the user's own models those of `aucseg.models.WrappedNetwork`
            (`stride`, `auxiliary_weight`, `pixel_mean`, ...) go there, all others to the class or function.

    Returns:
        A module from normalized images `(B, C, H, W)` to logits `(B, K, h, w)` at any resolution. `pixel_mean`
        and `pixel_std` say how to normalize, in units of 0..255.

    Raises:
        ValueError: Unknown name; the message has the nearest ones.
        TypeError: Unknown option; or a class or function of the user's own that does not take `num_classes`, or does
            not return a module.
        ImportError: The extra that the family needs is missing, or the import path leads nowhere.

    Example:
        >>> build_model("smp/unet", 5, encoder="resnet18").num_classes
        5
        >>> build_model("torch.nn:Conv2d", 5, in_channels=3, out_channels=5, kernel_size=1)
        Traceback (most recent call last):
        ...
        TypeError: torch.nn:Conv2d must accept the keyword num_classes
        >>> build_model("smpp/unet", 5)
        Traceback (most recent call last):
        ...
        ValueError: unknown model 'smpp/unet'; did you mean smp/unet? (names are segnext/..., smp/..., ...)
    """
    if isinstance(name, nn.Module):
        return name if isinstance(name, SegmentationModel) else WrappedNetwork(name, num_classes, **options)
    if is_import_path(name):
        return _build_from_import_path(name, num_classes, options)
    family, _, rest = name.partition("/")
    if family in _FAMILIES and rest:
        return _FAMILIES[family](rest, num_classes, **options)
    raise _unknown(name)


def check_known(name: str) -> None:
    """Refuses a name that `build_model` would not know, and builds nothing; names on a hub are not looked up.

    Raises:
        ValueError: Unknown name; the message has the nearest ones.
        ImportError: As `build_model`.

    Example:
        >>> check_known("segnext/tinny")
        Traceback (most recent call last):
        ...
        ValueError: unknown model 'segnext/tinny'; did you mean segnext/tiny, ...? (names are segnext/..., ...)
    """
    if is_import_path(name):
        import_object(name)
        return
    family, _, rest = name.partition("/")
    may_be_elsewhere = family == "hf" and ("/" in rest or Path(rest).is_dir())
    if family not in _LISTS or not (may_be_elsewhere or rest in _LISTS[family]()):
        raise _unknown(name)


def _unknown(name: str) -> ValueError:
    return ValueError(
        f"unknown model {name!r}; {_closest_names(name)} "
        f"(names are {', '.join(f'{family}/...' for family in _FAMILIES)} or package.module:Name)"
    )


def without_weights(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Gives the options that build the same model with random weights, for weights that come from a checkpoint.

    Args:
        name: As for `build_model`. The options of a user's own class are left as they are.
        options: Options of `build_model`.

    Example:
        >>> without_weights("smp/fpn", {"encoder_weights": "package:efficientnet_lite0"})
        {'encoder': 'tu-tf_efficientnet_lite0'}
        >>> without_weights("hf/models/mine", {})
        {'pretrained': False}
    """
    family = name.partition("/")[0]
    if family not in _FAMILIES:
        return dict(options)
    kept = {key: value for key, value in options.items() if key != "encoder_weights"}
    if family == "hf":
        kept["pretrained"] = False
    elif family == "smp" and options.get("encoder_weights") == PACKAGE_WEIGHTS:
        kept.setdefault("encoder", PACKAGE_ENCODER)
    return kept


def _closest_names(name: str) -> str:
    """Suggests whole names, for one that lacks its family, misspells it, or bears the wrong one."""
    names: list[str] = []
    for family, list_names in _LISTS.items():
        with suppress(ImportError):  # a family whose extra is missing has no names to suggest
            names += [f"{family}/{member}" for member in list_names()]
    # 'fpn' is nearer to 'smp/fpn' than letters tell.
    rest = name.lower().rpartition("/")[2]
    tails = {candidate.rpartition("/")[2]: candidate for candidate in names}
    return f"did you mean {tails[rest]}?" if rest in tails else closest(name, names)


def is_import_path(name: str) -> bool:
    """Whether `build_model` would import `name`, and so run code; a name from a file must not be one.

    Example:
        >>> is_import_path("torch.hub:load"), is_import_path("torchvision/fcn_resnet50")
        (True, False)
    """
    family, _, rest = name.partition("/")
    return ":" in name and not (family in _FAMILIES and rest)


def build_segnext(size: str, num_classes: int, *, encoder_weights: str | Path | None = None, **options: Any) -> SegNeXt:
    """Builds SegNeXt in one of its four sizes.

    Args:
        size: `"tiny"`, `"small"`, `"base"` or `"large"`.
        num_classes: K.
        encoder_weights: File of an ImageNet checkpoint of the encoder (`mscan_t.pth`, ...); None for random weights.
        **options: Override what the size sets: see `SegNeXt`.

    Raises:
        ValueError: Unknown size, or a checkpoint that does not fit.
        TypeError: Unknown option.
        FileNotFoundError: No such checkpoint.

    Example:
        >>> sum(p.numel() for p in build_segnext("tiny", 19).parameters())
        4229747
    """
    if size not in SIZES:
        raise ValueError(f"unknown size {size!r} of SegNeXt; {closest(size, SIZES)}")
    set_here = ("num_classes", "stride", "encoder")
    check_options(f"segnext/{size}", options, SegNeXt, SegmentationModel, given=set_here)
    model = SegNeXt(num_classes, **{**SIZES[size], **options})
    if encoder_weights is not None:
        load_encoder_checkpoint(model, encoder_weights)
    return model


def _build_from_import_path(path: str, num_classes: int, options: dict[str, Any]) -> SegmentationModel:
    factory = import_object(path)
    parameters = inspect.signature(factory).parameters
    if "num_classes" not in parameters and not takes_any_option(factory):
        raise TypeError(f"{path} must accept the keyword num_classes")
    of_the_wrapper = inspect.signature(SegmentationModel).parameters.keys() - parameters.keys()
    outer = {key: options[key] for key in options if key in of_the_wrapper}
    model = factory(num_classes=num_classes, **{key: options[key] for key in options if key not in outer})
    if not isinstance(model, nn.Module):
        raise TypeError(f"{path} returned {type(model).__name__}, not a torch.nn.Module")
    return build_model(model, num_classes, **outer)


_FAMILIES: dict[str, Callable[..., SegmentationModel]] = {
    "segnext": build_segnext,
    "smp": build_smp_model,
    "hf": build_hf_model,
    "torchvision": build_torchvision_model,
}
_LISTS: dict[str, Callable[[], Iterable[str]]] = {
    "segnext": lambda: SIZES,
    "smp": list_smp_architectures,
    "hf": list_hf_model_types,
    "torchvision": list_torchvision_models,
}
