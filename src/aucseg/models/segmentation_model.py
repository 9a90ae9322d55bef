"""The one contract that every model meets: images in, logits at any resolution out."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from aucseg.tensors.imagenet import IMAGENET_MEAN, IMAGENET_STD
from aucseg.tensors.upsampling import resize


def pad_to_multiple(images: Tensor, multiple: int) -> Tensor:
    """Pads images with zeros at the far end of each side until all sides are multiples of `multiple`.

    Args:
        images: `(B, C, H, W)` or volumes `(B, C, D, H, W)`, any dtype.
        multiple: The stride of a network, at least 1.

    Returns:
        `(B, C, H', W')` or `(B, C, D', H', W')` with the next multiples; the input itself when nothing is missing.

    Example:
        >>> import torch
        >>> pad_to_multiple(torch.ones(1, 3, 30, 32), 32).shape
        torch.Size([1, 3, 32, 32])
        >>> pad_to_multiple(torch.ones(1, 1, 7, 8, 9), 4).shape
        torch.Size([1, 1, 8, 8, 12])
    """
    sides = images.shape[2:]
    if not any(side % multiple for side in sides):
        return images
    return F.pad(images, [amount for side in reversed(sides) for amount in (0, -side % multiple)])


def crop_logits(logits: Tensor, padded_size: Sequence[int], size: Sequence[int]) -> Tensor:
    """Cuts off of the logits what belongs to the padding of the images.

    The cut is made at the logits' own resolution where the images' border falls on a border of its cells. Elsewhere the
    logits are first upsampled (linearly in each direction) to the padded size, because a cut inside a cell would shift
    every label by a part of a cell.

    Args:
        logits: `(B, K, h, w)` or `(B, K, d, h, w)` float, computed from images of `padded_size`.
        padded_size: Size `(H', W')` or `(D', H', W')` of the images that the network saw.
        size: Size of the images before the padding.

    Returns:
        `(B, K, h H / H', w W / W')`, or `(B, K, H, W)` where these are not whole numbers; volumes likewise.

    Example:
        >>> import torch
        >>> crop_logits(torch.zeros(1, 5, 8, 8), (32, 32), (24, 32)).shape
        torch.Size([1, 5, 6, 8])
        >>> crop_logits(torch.zeros(1, 5, 8, 8), (32, 32), (23, 32)).shape
        torch.Size([1, 5, 23, 32])
    """
    if tuple(padded_size) == tuple(size):
        return logits
    cells = [(length * cell, padded) for length, cell, padded in zip(size, logits.shape[2:], padded_size, strict=True)]
    if any(product % padded for product, padded in cells):
        logits = resize(logits, padded_size)
    else:
        size = [product // padded for product, padded in cells]
    return logits[(slice(None), slice(None), *map(slice, size))]


def logits_of(output: Any) -> tuple[Tensor, Tensor | None]:
    """Finds the logits, and auxiliary logits if there are any, in whatever a network returned.

    Args:
        output: A tensor; a mapping with `"out"` (and `"aux"`) as torchvision returns it, or with `"logits"`; an
            object with an attribute `logits` as transformers returns it; a tuple or list whose first element is one
            of these.

    Returns:
        `(logits, auxiliary logits or None)`, each `(B, K, h, w)`.

    Raises:
        TypeError: The output is none of these.
    """
    if isinstance(output, Tensor):
        return output, None
    if isinstance(output, Mapping) and "out" in output:
        return output["out"], output.get("aux")
    if isinstance(output, Mapping) and "logits" in output:
        return output["logits"], None
    if isinstance(getattr(output, "logits", None), Tensor):
        return output.logits, None
    if isinstance(output, (tuple, list)) and output:
        return logits_of(output[0])
    found = f" with {', '.join(map(str, output))}" if isinstance(output, Mapping) else ""
    raise TypeError(
        f"the model returned {type(output).__name__}{found}; expected logits (B, K, h, w) as a tensor, "
        "under the key 'out' or 'logits', or as the first element of a tuple"
    )


class SegmentationModel(nn.Module):
    """Base of the models of this package: the contract around `compute`, which a subclass defines.

    Images whose sides are not multiples of `stride` are padded with zeros (the mean, after normalization) at the
    bottom and the right, and the logits are cut back. Volumes are taken as well if the network takes them.

    Args:
        num_classes: K, the channels that the logits must have.
        stride: The sides of an image must be multiples of it, as far as the network is concerned.
        encoder: Dotted name of the submodule that is the (pretrained) encoder; None when there is none.
        pixel_mean: Mean to subtract from each channel, in units of 0..255.
        pixel_std: Standard deviation to divide each channel by, in units of 0..255.
        auxiliary_weight: Weight of the loss on the auxiliary logits beside the loss on the logits.
        full_resolution: Upsample the logits (bilinear, `align_corners=False`) to the size of the images. By default
            they stay as small as the network makes them: `aucseg.losses.AUCSegLoss` upsamples them band by band
            in the same way, with the same value and a fraction of the memory.

    Shape:
        - images: `(B, C, H, W)`, or volumes `(B, C, D, H, W)`; float, normalized.
        - logits: `(B, K, h, w)` or `(B, K, d, h, w)` float.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        stride: int = 1,
        encoder: str | None = None,
        pixel_mean: tuple[float, ...] = IMAGENET_MEAN,
        pixel_std: tuple[float, ...] = IMAGENET_STD,
        auxiliary_weight: float = 0.0,
        full_resolution: bool = False,
    ) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {num_classes}")
        if stride < 1:
            raise ValueError(f"stride must be at least 1, got {stride}")
        if auxiliary_weight < 0:
            raise ValueError(f"auxiliary_weight must not be negative, got {auxiliary_weight}")
        self.num_classes = num_classes
        self.stride = stride
        self.encoder_name = encoder
        self.pixel_mean = pixel_mean
        self.pixel_std = pixel_std
        self.auxiliary_weight = auxiliary_weight
        self.full_resolution = full_resolution

    def compute(self, images: Tensor) -> Any:
        """Runs the network on padded images; `logits_of` says what it may return."""
        raise NotImplementedError

    def forward(self, images: Tensor) -> Tensor:
        """Computes the logits `(B, K, h, w)` of normalized images `(B, C, H, W)`.

        Raises:
            TypeError: The network's output holds no logits.
            ValueError: The images have neither four dimensions nor five, the logits have another number of them, or the
                logits do not have K channels.
        """
        return self.forward_with_auxiliary(images)[0]

    def forward_with_auxiliary(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Computes the logits and, where the network has an auxiliary head, its logits (else None)."""
        if images.ndim not in (4, 5):
            raise ValueError(
                f"images must be (B, C, H, W), or volumes (B, C, D, H, W), got shape {tuple(images.shape)}"
            )
        padded = pad_to_multiple(images, self.stride)
        logits, auxiliary = logits_of(self.compute(padded))
        return self._finish(logits, padded, images), None if auxiliary is None else self._finish(
            auxiliary, padded, images
        )

    def _finish(self, logits: Tensor, padded: Tensor, images: Tensor) -> Tensor:
        if logits.ndim != images.ndim or logits.shape[1] != self.num_classes:
            sides = "h, w" if images.ndim == 4 else "d, h, w"
            raise ValueError(
                f"the network returned logits of shape {tuple(logits.shape)}; expected (B, {self.num_classes}, "
                f"{sides}): build it for {self.num_classes} classes"
            )
        if self.full_resolution:
            logits = resize(logits, padded.shape[2:])
        return crop_logits(logits, padded.shape[2:], images.shape[2:])

    def encoder_parameters(self) -> Iterator[nn.Parameter]:
        """Iterates over the parameters of the encoder; over none when the model has no such part."""
        return iter(()) if self.encoder_name is None else self.get_submodule(self.encoder_name).parameters()


class WrappedNetwork(SegmentationModel):
    """Any network, a user's own included, behind the contract; it is the attribute `network`.

    Args:
        network: From images to one of the outputs that `logits_of` understands.
        num_classes: K.
        encoder: Dotted name of the encoder in `network`. Default: `"backbone"` or `"encoder"`, where there is
            one.
        **options: See `SegmentationModel`.

    Example:
        >>> import torch
        >>> model = WrappedNetwork(nn.Conv2d(3, 5, 3, stride=4, padding=1), num_classes=5, stride=4)
        >>> model(torch.rand(2, 3, 24, 30)).shape
        torch.Size([2, 5, 24, 30])
        >>> model(torch.rand(2, 3, 24, 32)).shape
        torch.Size([2, 5, 6, 8])
    """

    def __init__(self, network: nn.Module, num_classes: int, *, encoder: str | None = None, **options: Any) -> None:
        if encoder is None:
            encoder = default_encoder(network)
        super().__init__(num_classes, encoder=None if encoder is None else f"network.{encoder}", **options)
        self.network = network

    def compute(self, images: Tensor) -> Any:
        """Runs the wrapped network."""
        return self.network(images)


def default_encoder(network: nn.Module) -> str | None:
    """Finds the name of a network's encoder, `"backbone"` or `"encoder"`; None when it has neither."""
    children = dict(network.named_children())
    return next((name for name in ("backbone", "encoder") if name in children), None)


def forward_with_auxiliary(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor | None]:
    """Computes logits and auxiliary logits of any model; the latter are None for a model without an auxiliary head.

    Args:
        model: A model of `aucseg.models.build_model`, or any module from images to logits.
        images: `(B, C, H, W)` float, normalized.

    Returns:
        `(logits, auxiliary logits or None)`. The loss of the latter is to be weighted by `model.auxiliary_weight`.

    Example:
        >>> import torch
        >>> logits, auxiliary = forward_with_auxiliary(nn.Conv2d(3, 5, 1), torch.rand(2, 3, 8, 8))
        >>> logits.shape, auxiliary
        (torch.Size([2, 5, 8, 8]), None)
    """
    method = getattr(model, "forward_with_auxiliary", None)
    outputs: tuple[Tensor, Tensor | None] = logits_of(model(images)) if method is None else method(images)
    return outputs


def split_parameters(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Splits the parameters in those of the (pretrained) encoder and all others, the head, for two learning rates.

    The encoder is what `model.encoder_parameters()` yields, or else the attribute `backbone` or `encoder`. A
    model with none of these is all head.

    Args:
        model: Any module.

    Returns:
        `(encoder parameters, head parameters)`: together every parameter once, frozen ones included.

    Example:
        >>> encoder, head = split_parameters(nn.ModuleDict({"backbone": nn.Linear(3, 4), "head": nn.Linear(4, 2)}))
        >>> len(encoder), len(head)
        (2, 2)
        >>> encoder, head = split_parameters(nn.Linear(3, 4))
        >>> len(encoder), len(head)
        (0, 2)
    """
    if callable(method := getattr(model, "encoder_parameters", None)):
        encoder = list(method())
    else:
        name = default_encoder(model)
        encoder = [] if name is None else list(model.get_submodule(name).parameters())
    in_encoder = {id(parameter) for parameter in encoder}
    return encoder, [parameter for parameter in model.parameters() if id(parameter) not in in_encoder]
