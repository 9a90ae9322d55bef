"""What a result was made of: the code, the data and the configuration, so that no table mixes different ones."""

from __future__ import annotations

import ast
import hashlib
import json
import platform
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from aucseg.runtime.import_paths import search_current_folder

Fingerprint = dict[str, Any]

_PACKAGE = Path(__file__).parents[1]
# Parts of the package that no training run imports or whose changes cannot change one.
_NOT_TRAINING = (
    *("cli.py", "commands/", "compare/", "integrations/", "planning/", "report/", "models/hub.py"),
    *("inference/export.py", "inference/image_files.py", "inference/predict_files.py"),
    *("statistics/advice.py", "statistics/bound.py", "statistics/check.py", "statistics/summary.py"),
    *("datasets/duplicates.py", "datasets/mask_checks.py", "datasets/propose"),
)
_TRAINING_AFTER_ALL = "commands/fit.py"
_LIBRARIES = (
    "torch",
    "torchvision",
    "lightning",
    "segmentation-models-pytorch",
    "timm",
    "transformers",
    "albumentations",
)
# Up to this size every byte of a data set is hashed, above it every file's size and the bytes of some files.
_MAX_HASHED_BYTES = 2_000_000_000
# Where files lie, how many processes read them and whether they stay in memory does not change a result; the card's
# content is part of the data.
_NOT_CONFIGURATION = (
    *(
        f"{data}.{name}"
        for data in ("data", "model.model_options.data")
        for name in ("root", "card", "num_workers", "cache")
    ),
    "model.model_options.checkpoint",
)


def code_fingerprint(config: Mapping[str, Any]) -> Fingerprint:
    """A digest for each module of the package that training uses, and the versions of the libraries.

    Comments, docstrings and formatting do not count. Modules outside the package that the configuration names, as
    `package.module:Name` or as a `class_path`, are included.
    """
    files = {}
    for path in sorted(_PACKAGE.rglob("*.py")):
        name = path.relative_to(_PACKAGE).as_posix()
        if name == _TRAINING_AFTER_ALL or not name.startswith(_NOT_TRAINING):
            files[name] = _digest_of_code(path)
    files |= {f"{module} (yours)": _digest_of_code(path) for module, path in _modules_outside(config).items()}
    installed = {library: _version(library) for library in _LIBRARIES}
    return files | installed | {"python": platform.python_version()}


def data_fingerprint(config: Mapping[str, Any]) -> Fingerprint:
    """Digests of the card, and of the images and masks, or shards, of the training and the validation split.

    Of shards that lie elsewhere, the URLs.
    """
    from aucseg.datasets import DatasetCard, SegmentationDataset
    from aucseg.datasets.hub_folder import root_of
    from aucseg.loading.held_out import validates_held_out

    data = config["data"]
    card = DatasetCard.load(data["card"])
    result = {"card": _digest(card.to_yaml().encode())}
    parts = (("train_split", "train", "shards"), ("val_split", "val", "val_shards"))
    is_validated_on_training_images = data.get("fold") or validates_held_out(data)
    for key, default, shards in parts:
        if data.get(shards) is not None:
            result |= _digests_of_shards(shards, data[shards])
        elif shards == "shards" or not is_validated_on_training_images:
            split = data.get(key, default)
            options = {"on_error": data.get("on_error", "raise"), "follow_symlinks": data.get("follow_symlinks", True)}
            dataset = SegmentationDataset(card, root_of(data), split, **options)
            names = [name for pair in dataset.pairs for name in (pair.image, pair.mask) if name is not None]
            result[f"files of split {split!r}"] = _digest_of_files({name: dataset.root / name for name in names})
    return result


def _digests_of_shards(key: str, patterns: str | list[str]) -> Fingerprint:
    from aucseg.datasets.shards import shard_urls

    urls = shard_urls(patterns)
    local = {url: Path(url) for url in urls if "://" not in url}
    found: Fingerprint = {key: _digest_of_files(local)} if local else {}
    remote = [url for url in urls if url not in local]
    return found | ({f"{key} elsewhere": remote} if remote else {})


def named_files_fingerprint(config: Mapping[str, Any]) -> Fingerprint:
    """Digests of the files that a configuration names beside its images: counts, weights."""
    found = {}
    for section in ("model", "data"):
        for key, value in _flatten(config.get(section), f"{section}.").items():
            if isinstance(value, str) and not (key + ".").startswith(_dotted(_NOT_CONFIGURATION)) and _is_file(value):
                stat = Path(value).stat()
                found[f"file of {key}"] = _digest_of_named(Path(value).resolve(), stat.st_mtime_ns, stat.st_size)
    return found


@cache
def _digest_of_named(path: Path, mtime_ns: int, size: int) -> str:
    return _digest_of_files({"": path})


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except (OSError, ValueError):  # no name of a file
        return False


def configuration_fingerprint(config: Mapping[str, Any], first_stage: Fingerprint | None = None) -> Fingerprint:
    """The configuration as a flat mapping from dotted names to values, without what cannot change a result.

    Args:
        config: The configuration of a run.
        first_stage: That of the run whose model this one starts from.
    """
    flat = {
        key: value for key, value in _flatten(config).items() if not (key + ".").startswith(_dotted(_NOT_CONFIGURATION))
    }
    return flat | {f"first stage: {key}": value for key, value in (first_stage or {}).items()}


def digest(fingerprint: Fingerprint) -> str:
    """Twelve hexadecimal digits that differ where fingerprints differ."""
    return _digest(json.dumps(fingerprint, sort_keys=True).encode())


def differences(old: Fingerprint, new: Fingerprint) -> list[str]:
    """What changed, a short text for each entry.

    Example:
        >>> differences({"model.loss": "ce", "data.seed": 0}, {"model.loss": "la", "data.seed": 0})
        ['model.loss: ce then, la now']
    """
    missing = "nothing"
    return [
        f"{key}: {old.get(key, missing)} then, {new.get(key, missing)} now"
        for key in sorted(old.keys() | new.keys())
        if old.get(key, missing) != new.get(key, missing)
    ]


def _dotted(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name + "." for name in names)


def _flatten(value: Any, prefix: str = "") -> Fingerprint:
    if isinstance(value, dict) and value:
        return {k: v for key, item in value.items() for k, v in _flatten(item, f"{prefix}{key}.").items()}
    # An empty mapping of options (a bank with its defaults) differs from none.
    return {prefix.rstrip("."): value}


def _version(library: str) -> str:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return "not installed"


def _digest_of_code(path: Path) -> str:
    stat = path.stat()
    return _digest_of_tree(path, stat.st_mtime_ns, stat.st_size)


@cache
def _digest_of_tree(path: Path, mtime_ns: int, size: int) -> str:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and (
            ast.get_docstring(node, clean=False) is not None
        ):
            node.body = node.body[1:]
    return _digest(ast.dump(tree).encode())


def _modules_outside(config: Any) -> dict[str, Path]:
    """Files of the modules that a configuration names, the libraries' left out."""
    names: set[str] = set()
    if isinstance(config, dict):
        paths = [config.get(key) for key in ("class_path", "optimizer", "schedule")]
        paths += config.get("augmentation") or []
        # The names of models and losses have dots, too.
        paths += [path for key in ("model", "loss") if ":" in (path := str(config.get(key)))]
        names |= {path.rpartition(":" if ":" in path else ".")[0] for path in paths if isinstance(path, str)}
    found: dict[str, Path] = {}
    search_current_folder()
    for name in names:
        if name.partition(".")[0] in ("aucseg", "", *_LIBRARIES):
            continue
        try:
            spec = find_spec(name)
        except ModuleNotFoundError:  # of the package that it should be in; the run says so
            continue
        if spec is not None and spec.origin is not None and spec.origin.endswith(".py"):
            found[name] = Path(spec.origin)
    parts = config.values() if isinstance(config, dict) else config if isinstance(config, list) else ()
    for part in parts:
        found |= _modules_outside(part)
    return found


def _digest_of_files(files: Mapping[str, Path]) -> str:
    """Digest of files by what they are called, wherever they lie."""
    sizes = [path.stat().st_size for path in files.values()]
    step = max(1, -(-sum(sizes) // _MAX_HASHED_BYTES))
    total = hashlib.sha256()
    for index, ((name, path), size) in enumerate(zip(files.items(), sizes, strict=True)):
        total.update(f"{name}\0{size}\0".encode())
        if index % step == 0:
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    total.update(block)
    return total.hexdigest()[:12]


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:12]
