"""The one contract that every model meets: images in, logits at any resolution out."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)


def pad_to_multiple(images: Tensor, multiple: int) -> Tensor:
    """Pad images with zeros at the bottom and the right until both sides are multiples of ``multiple``.

    Args:
        images: ``(B, C, H, W)``, any dtype.
        multiple: The stride of a network, at least 1.

    Returns:
        ``(B, C, H', W')`` with H' and W' the next multiples; the input itself when nothing is missing.

    Example:
        >>> import torch
        >>> pad_to_multiple(torch.ones(1, 3, 30, 32), 32).shape
        torch.Size([1, 3, 32, 32])
    """
    height, width = images.shape[-2:]
    return (
        F.pad(images, (0, -width % multiple, 0, -height % multiple))
        if height % multiple or width % multiple
        else images
    )


def crop_logits(logits: Tensor, padded_size: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Cut off of the logits what belongs to the padding of the images.

    The cut is made at the logits' own resolution where the images' border falls on a border of its cells. Elsewhere the
    logits are first upsampled (bilinear) to the padded size, because a cut inside a cell would shift every label by a
    part of a cell.

    Args:
        logits: ``(B, K, h, w)`` float, computed from images of ``padded_size``.
        padded_size: ``(H', W')`` of the images that the network saw.
        size: ``(H, W)`` of the images before the padding.

    Returns:
        ``(B, K, h H / H', w W / W')``, or ``(B, K, H, W)`` where these are not whole numbers.

    Example:
        >>> import torch
        >>> crop_logits(torch.zeros(1, 5, 8, 8), (32, 32), (24, 32)).shape
        torch.Size([1, 5, 6, 8])
        >>> crop_logits(torch.zeros(1, 5, 8, 8), (32, 32), (23, 32)).shape
        torch.Size([1, 5, 23, 32])
    """
    if padded_size == size:
        return logits
    cells = [(length * cell, padded) for length, cell, padded in zip(size, logits.shape[-2:], padded_size, strict=True)]
    if any(product % padded for product, padded in cells):
        logits = F.interpolate(logits, padded_size, mode="bilinear", align_corners=False)
        height, width = size
    else:
        height, width = (product // padded for product, padded in cells)
    return logits[..., :height, :width]


def logits_of(output: Any) -> tuple[Tensor, Tensor | None]:
    """Find the logits, and auxiliary logits if there are any, in whatever a network returned.

    Args:
        output: A tensor; a mapping with ``"out"`` (and ``"aux"``) as torchvision returns it, or with ``"logits"``; an
            object with an attribute ``logits`` as transformers returns it; a tuple or list whose first element is one
            of these.

    Returns:
        ``(logits, auxiliary logits or None)``, each ``(B, K, h, w)``.

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
    raise TypeError(
        f"the model returned {type(output).__name__}; expected logits (B, K, h, w) as a tensor, under the key 'out' or "
        "'logits', or as the first element of a tuple"
    )


class SegmentationModel(nn.Module):
    """Base of the models of this package: the contract around :meth:`compute`, which a subclass defines.

    Images whose sides are not multiples of ``stride`` are padded with zeros (the mean, after normalization) at the
    bottom and the right, and the logits are cut back.

    Args:
        num_classes: K, the channels that the logits must have.
        stride: The sides of an image must be multiples of it, as far as the network is concerned.
        encoder: Dotted name of the submodule that is the (pretrained) encoder; None when there is none.
        pixel_mean: Mean to subtract from each channel, in units of 0..255.
        pixel_std: Standard deviation to divide each channel by, in units of 0..255.
        auxiliary_weight: Weight of the loss on the auxiliary logits beside the loss on the logits.
        full_resolution: Upsample the logits (bilinear, ``align_corners=False``) to the size of the images. By default
            they stay as small as the network makes them: :class:`aucseg.losses.AUCSegLoss` upsamples them band by band
            in the same way, with the same value and a fraction of the memory.

    Shape:
        - images: ``(B, C, H, W)`` float, normalized.
        - logits: ``(B, K, h, w)`` float.
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
        """Run the network on padded images; :func:`logits_of` says what it may return."""
        raise NotImplementedError

    def forward(self, images: Tensor) -> Tensor:
        """Compute the logits ``(B, K, h, w)`` of normalized images ``(B, C, H, W)``.

        Raises:
            TypeError: The network's output holds no logits.
            ValueError: The images or the logits do not have four dimensions, or the logits have not K channels.
        """
        return self.forward_with_auxiliary(images)[0]

    def forward_with_auxiliary(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Compute the logits and, where the network has an auxiliary head, its logits (else None)."""
        if images.ndim != 4:
            raise ValueError(f"images must be (B, C, H, W), got shape {tuple(images.shape)}")
        padded = pad_to_multiple(images, self.stride)
        logits, auxiliary = logits_of(self.compute(padded))
        return self._finish(logits, padded, images), None if auxiliary is None else self._finish(
            auxiliary, padded, images
        )

    def _finish(self, logits: Tensor, padded: Tensor, images: Tensor) -> Tensor:
        if logits.ndim != 4 or logits.shape[1] != self.num_classes:
            raise ValueError(
                f"the network returned logits of shape {tuple(logits.shape)}; expected (B, {self.num_classes}, h, w): "
                f"build it for {self.num_classes} classes"
            )
        size = (images.shape[-2], images.shape[-1])
        padded_size = (padded.shape[-2], padded.shape[-1])
        if self.full_resolution and logits.shape[-2:] != padded_size:
            logits = F.interpolate(logits, padded_size, mode="bilinear", align_corners=False)
        return crop_logits(logits, padded_size, size)

    def encoder_parameters(self) -> Iterator[nn.Parameter]:
        """Iterate over the parameters of the encoder; over none when the model has no such part."""
        return iter(()) if self.encoder_name is None else self.get_submodule(self.encoder_name).parameters()


class WrappedNetwork(SegmentationModel):
    """Any network, a user's own included, behind the contract; it is the attribute ``network``.

    Args:
        network: From images to one of the outputs that :func:`logits_of` understands.
        num_classes: K.
        encoder: Dotted name of the encoder in ``network``. Default: ``"backbone"`` or ``"encoder"``, where there is
            one.
        **options: See :class:`SegmentationModel`.

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
        """Run the wrapped network."""
        return self.network(images)


def default_encoder(network: nn.Module) -> str | None:
    """Find the name of a network's encoder, ``"backbone"`` or ``"encoder"``; None when it has neither."""
    children = dict(network.named_children())
    return next((name for name in ("backbone", "encoder") if name in children), None)


def forward_with_auxiliary(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor | None]:
    """Compute logits and auxiliary logits of any model; the latter are None for a model without an auxiliary head.

    Args:
        model: A model of :func:`aucseg.models.build_model`, or any module from images to logits.
        images: ``(B, C, H, W)`` float, normalized.

    Returns:
        ``(logits, auxiliary logits or None)``. The loss of the latter is to be weighted by ``model.auxiliary_weight``.

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
    """Split the parameters in those of the (pretrained) encoder and all others, the head, for two learning rates.

    The encoder is what ``model.encoder_parameters()`` yields, or else the attribute ``backbone`` or ``encoder``. A
    model with none of these is all head.

    Args:
        model: Any module.

    Returns:
        ``(encoder parameters, head parameters)``: together every parameter once, frozen ones included.

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
