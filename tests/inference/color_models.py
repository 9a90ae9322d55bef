"""Networks for the tiny data set that know its colours, but hold the rare class back by an offset."""

import torch
from torch import Tensor, nn

from tests.conftest import TINY_COLORS

# What the rarest class lacks: with it, it is never predicted.
HELD_BACK = 2.2
_SCALE = 20_000


def _weights() -> tuple[Tensor, Tensor]:
    """Nearest colour as a linear rule: the largest `2 c x - c c`."""
    colors = torch.tensor(TINY_COLORS, dtype=torch.float32)
    bias = -(colors**2).sum(1) / _SCALE
    bias[3] -= HELD_BACK
    return 2 * colors / _SCALE, bias


def with_bias(num_classes: int) -> nn.Module:
    """A convolution."""
    layer = nn.Conv2d(3, num_classes, 1)
    weight, bias = _weights()
    with torch.no_grad():
        layer.weight.copy_(weight[:, :, None, None])
        layer.bias.copy_(bias)  # type: ignore[union-attr]
    return nn.Sequential(nn.Identity(), layer)


class WithoutBias(nn.Module):
    """The same, with a constant channel instead of a bias."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.layer = nn.Conv2d(4, num_classes, 1, bias=False)
        with torch.no_grad():
            self.layer.weight.copy_(torch.cat([*_weights()[:1], _weights()[1][:, None]], dim=1)[:, :, None, None])

    def forward(self, images: Tensor) -> Tensor:
        """Logits of images as they are."""
        logits: Tensor = self.layer(torch.cat([images, torch.ones_like(images[:, :1])], dim=1))
        return logits
