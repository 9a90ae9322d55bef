"""The first layer of an encoder for images with other channels than red, green and blue."""

from __future__ import annotations

from torch import Tensor, nn

_NUM_COLOURS = 3


def widened(weight: Tensor, in_channels: int) -> Tensor:
    """Returns the weights of a first layer for more or fewer channels than the three colours it was trained on.

    Channel i takes the weights of colour i modulo 3; with C channels they count 3 / C, so that activations keep their
    size.

    Args:
        weight: (O, 3, h, w).
        in_channels: C.

    Example:
        >>> import torch
        >>> widened(torch.tensor([1.0, 2.0, 4.0]).view(1, 3, 1, 1), 4).flatten().tolist()
        [0.75, 1.5, 3.0, 0.75]
    """
    colours = [channel % _NUM_COLOURS for channel in range(in_channels)]
    return weight[:, colours] * (_NUM_COLOURS / in_channels)


def is_of_colours(weight: Tensor, target: Tensor) -> bool:
    """Whether these are weights of colours where those of other channels are to be.

    Args:
        weight: (O, 3, h, w), to be loaded.
        target: (O, C, h, w), to be loaded into.
    """
    is_layer = weight.ndim == target.ndim == 4 and weight.shape[1] == _NUM_COLOURS != target.shape[1]
    return is_layer and weight.shape[0] == target.shape[0] and weight.shape[2:] == target.shape[2:]


def widen_first_layer(network: nn.Module, in_channels: int, *, is_trained: bool) -> None:
    """Replaces the first convolution of a network, which takes three colours, by one for other channels.

    Args:
        network: Changed in place.
        in_channels: C, at least 1.
        is_trained: Whether the weights are to be kept (`widened`), or drawn again: He initialization over the
            outputs, as torchvision has it.

    Raises:
        ValueError: C is below 1.
    """
    if in_channels < 1:
        raise ValueError(f"in_channels must be at least 1, got {in_channels}")
    if in_channels == _NUM_COLOURS:
        return
    name, first = next((name, module) for name, module in network.named_modules() if isinstance(module, nn.Conv2d))
    assert first.in_channels == _NUM_COLOURS
    wide = nn.Conv2d(
        in_channels,
        first.out_channels,
        first.kernel_size,  # type: ignore[arg-type]
        first.stride,  # type: ignore[arg-type]
        first.padding,  # type: ignore[arg-type]
        bias=first.bias is not None,
        device=first.weight.device,
        dtype=first.weight.dtype,
    )
    if is_trained:
        wide.weight.data = widened(first.weight.data, in_channels)
    else:
        nn.init.kaiming_normal_(wide.weight, mode="fan_out", nonlinearity="relu")
    if first.bias is not None:
        wide.bias = first.bias
    outer, _, inner = name.rpartition(".")
    setattr(network.get_submodule(outer), inner, wide)
