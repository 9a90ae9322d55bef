"""Models on the Hugging Face hub, through the mixin of `huggingface_hub`."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from aucseg.models.build import build_model, is_import_path, without_weights
from aucseg.models.checkpoint import TRUST_VARIABLE, files_are_trusted
from aucseg.tensors.dtypes import in_model_dtype


class HubModel(nn.Module, PyTorchModelHubMixin, library_name="aucseg", tags=["image-segmentation", "long-tail"]):
    """A model by name with all that is needed to use it: weights as safetensors, settings as `config.json`.

    `save_pretrained(folder)`, `push_to_hub("user/name")` and `HubModel.from_pretrained("user/name" or folder)`
    come from the mixin.

    Args:
        name: See `aucseg.models.build_model`.
        class_names: K names.
        palette: K colours `(red, green, blue)` in 0..255.
        pixel_mean: To subtract from each channel of an image in 0..255.
        pixel_std: To divide each channel by.
        options: Options of `aucseg.models.build_model`; an encoder's own weights are left out.

    Shape:
        - images: `(B, C, H, W)` uint8 or float in 0..255, not normalized.
        - logits: `(B, K, h, w)` float.

    Example:
        >>> settings = {"class_names": ["road", "train"], "palette": [[128, 64, 128], [0, 80, 100]]}
        >>> model = HubModel("smp/fpn", pixel_mean=[127.0] * 3, pixel_std=[128.0] * 3, **settings).eval()
        >>> model(torch.zeros(1, 3, 64, 64, dtype=torch.uint8)).shape
        torch.Size([1, 2, 16, 16])
    """

    def __init__(
        self,
        name: str,
        *,
        class_names: Sequence[str],
        palette: Sequence[Sequence[int]],
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if len(class_names) != len(palette):
            raise ValueError(f"{len(class_names)} class names, but {len(palette)} colours")
        self.class_names = list(class_names)
        self.palette = [tuple(color) for color in palette]
        # The weights come with the model, so nothing is to be fetched for its encoder.
        self.model = build_model(name, len(class_names), **without_weights(name, options or {}))
        self.register_buffer("mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)

    @classmethod
    def _from_pretrained(cls, *, model_id: str, **options: Any) -> "HubModel":
        name = options.get("name")
        if isinstance(name, str) and is_import_path(name) and not files_are_trusted():
            raise ValueError(
                f"{model_id} names the Python object {name!r} as its model. It is not imported, because that runs code "
                f"of the file's choice; if you trust the files, set {TRUST_VARIABLE}=1"
            )
        model: HubModel = super()._from_pretrained(model_id=model_id, **options)
        return model

    def forward(self, images: Tensor) -> Tensor:
        """Computes logits `(B, K, h, w)` of images `(B, C, H, W)` in 0..255."""
        normalized = (images.float() - self.get_buffer("mean")) / self.get_buffer("std")
        logits: Tensor = self.model(in_model_dtype(normalized, self.model))
        return logits
