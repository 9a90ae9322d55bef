"""SegNeXt: the MSCAN encoder and the light Hamburger head.

Guo et al., *SegNeXt: Rethinking Convolutional Attention Design for Semantic Segmentation*, NeurIPS 2022; the head's
factorization: Geng et al., *Is Attention Better Than Matrix Decomposition?*, ICLR 2021. The names of the parameters are
those of the released checkpoints.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aucseg.models.segmentation_model import SegmentationModel
from aucseg.tensors.dtypes import without_autocast
from aucseg.tensors.upsampling import resize

MLP_RATIOS = (8, 8, 4, 4)
_EPS = 1e-6


class _Stem(nn.Module):
    """Two 3x3 convolutions of stride 2, each with batch norm."""

    def __init__(self, in_channels: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Sequential(
            nn.Conv2d(in_channels, dim // 2, 3, stride=2, padding=1),
            nn.BatchNorm2d(dim // 2),
            nn.GELU(),
            nn.Conv2d(dim // 2, dim, 3, stride=2, padding=1),
            nn.BatchNorm2d(dim),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.proj(x)
        return out


class _PatchEmbedding(nn.Module):
    """A 3x3 convolution of stride 2 with batch norm."""

    def __init__(self, in_dim: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_dim, dim, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(dim)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(self.proj(x))
        return out


def _depthwise(dim: int, height: int, width: int) -> nn.Conv2d:
    return nn.Conv2d(dim, dim, (height, width), padding=(height // 2, width // 2), groups=dim)


class _Gate(nn.Module):
    """Multiply the input by a 1x1 convolution of its depthwise convolutions at several scales."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv0 = _depthwise(dim, 5, 5)
        self.conv0_1, self.conv0_2 = _depthwise(dim, 1, 7), _depthwise(dim, 7, 1)
        self.conv1_1, self.conv1_2 = _depthwise(dim, 1, 11), _depthwise(dim, 11, 1)
        self.conv2_1, self.conv2_2 = _depthwise(dim, 1, 21), _depthwise(dim, 21, 1)
        self.conv3 = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        local = self.conv0(x)
        scales = (
            self.conv0_2(self.conv0_1(local)) + self.conv1_2(self.conv1_1(local)) + self.conv2_2(self.conv2_1(local))
        )
        out: Tensor = self.conv3(local + scales) * x
        return out


class _Attention(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj_1 = nn.Conv2d(dim, dim, 1)
        self.spatial_gating_unit = _Gate(dim)
        self.proj_2 = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.proj_2(self.spatial_gating_unit(F.gelu(self.proj_1(x)))) + x
        return out


class _DepthwiseConv(nn.Module):
    """One more level of names, as in the checkpoints."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dwconv = _depthwise(dim, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.dwconv(x)
        return out


class _MLP(nn.Module):
    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(dim, hidden_dim, 1)
        self.dwconv = _DepthwiseConv(hidden_dim)
        self.fc2 = nn.Conv2d(hidden_dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(F.gelu(self.dwconv(self.fc1(x))))
        return out


class _Block(nn.Module):
    def __init__(self, dim: int, mlp_ratio: int, drop_path: float) -> None:
        super().__init__()
        self.layer_scale_1 = nn.Parameter(torch.full((dim,), 1e-2))
        self.layer_scale_2 = nn.Parameter(torch.full((dim,), 1e-2))
        self.norm1 = nn.BatchNorm2d(dim)
        self.attn = _Attention(dim)
        self.norm2 = nn.BatchNorm2d(dim)
        self.mlp = _MLP(dim, mlp_ratio * dim)
        self.drop_path = drop_path

    def forward(self, x: Tensor) -> Tensor:
        x = x + self._drop(self.layer_scale_1[:, None, None] * self.attn(self.norm1(x)))
        return x + self._drop(self.layer_scale_2[:, None, None] * self.mlp(self.norm2(x)))

    def _drop(self, residual: Tensor) -> Tensor:
        """Stochastic depth: drop the residual of an image with probability `drop_path`, scale up the kept ones."""
        if not self.training or self.drop_path == 0:
            return residual
        keep = 1 - self.drop_path
        return residual * (torch.empty_like(residual[:, :1, :1, :1]).bernoulli_(keep) / keep)


class MSCAN(nn.Module):
    """The encoder: four stages at 1/4, 1/8, 1/16 and 1/32 of the image.

    Args:
        embed_dims: Channels of each stage.
        depths: Blocks of each stage.
        drop_path: Stochastic depth of the last block; it grows linearly from 0.
        in_channels: Channels of the images.
    """

    def __init__(
        self,
        embed_dims: Sequence[int] = (32, 64, 160, 256),
        depths: Sequence[int] = (3, 3, 5, 2),
        *,
        drop_path: float = 0.1,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        rates = (drop_path * index / max(sum(depths) - 1, 1) for index in itertools.count())
        for stage, (dim, depth, mlp_ratio) in enumerate(zip(embed_dims, depths, MLP_RATIOS, strict=True)):
            embedding = _Stem(in_channels, dim) if stage == 0 else _PatchEmbedding(embed_dims[stage - 1], dim)
            blocks = nn.ModuleList(_Block(dim, mlp_ratio, next(rates)) for _ in range(depth))
            self.add_module(f"patch_embed{stage + 1}", embedding)
            self.add_module(f"block{stage + 1}", blocks)
            self.add_module(f"norm{stage + 1}", nn.LayerNorm(dim))
        self.apply(_initialize)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Computes the four stages, each `(B, dim, H / 2^(i + 2), W / 2^(i + 2))`."""
        x, stages = images, []
        for stage in range(1, 5):
            x = self.get_submodule(f"patch_embed{stage}")(x)
            for block in self.get_submodule(f"block{stage}").children():
                x = block(x)
            x = self.get_submodule(f"norm{stage}")(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).contiguous()
            stages.append(x)
        return stages


class _ConvModule(nn.Module):
    """A 1x1 convolution, with group norm (32 groups) in place of a bias unless `norm` is off."""

    def __init__(self, in_channels: int, out_channels: int, *, norm: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 1, bias=not norm)
        if norm:
            self.gn = nn.GroupNorm(32, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return self.gn(x) if hasattr(self, "gn") else x


def factorize(x: Tensor, bases: Tensor, steps: int) -> Tensor:
    """Approximates non-negative x by a product of two smaller non-negative matrices (multiplicative updates).

    x is about `bases @ coef^T`. coef starts from the softmax over R of `x^T bases`; each step multiplies coef by
    `x^T bases / (coef bases^T bases + 1e-6)`, then bases by `x coef / (bases coef^T coef + 1e-6)`; a last update of
    coef ends it.

    Args:
        x: `(B, D, N)` float, non-negative.
        bases: `(B, D, R)` or `(1, D, R)` float, non-negative, of L2 norm 1 over D.
        steps: Number of steps.

    Returns:
        `(B, D, N)`: the approximation.

    Example:
        >>> x = torch.outer(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 1.0, 2.0]))[None]
        >>> bool((factorize(x, torch.full((1, 2, 1), 0.5**0.5), steps=5) - x).abs().max() < 1e-4)
        True
    """
    coef = torch.softmax(x.mT @ bases, dim=-1)
    for _ in range(steps):
        coef = _update_coef(x, bases, coef)
        bases = bases * (x @ coef / (bases @ (coef.mT @ coef) + _EPS))
    return bases @ _update_coef(x, bases, coef).mT


def _update_coef(x: Tensor, bases: Tensor, coef: Tensor) -> Tensor:
    return coef * (x.mT @ bases / (coef @ (bases.mT @ bases) + _EPS))


class _Hamburger(nn.Module):
    """A factorization between two 1x1 convolutions, with a residual.

    In training every image starts from random bases of its own. In evaluation all images start from one set drawn
    from a fixed seed, so that an image gives the same result twice, alone or in a batch.
    """

    evaluation_bases: Tensor

    def __init__(self, channels: int, num_bases: int, train_steps: int = 6, eval_steps: int = 7) -> None:
        super().__init__()
        self.ham_in = _ConvModule(channels, channels, norm=False)
        self.ham_out = _ConvModule(channels, channels)
        self.train_steps = train_steps
        self.eval_steps = eval_steps
        self.num_bases = num_bases
        # Drawn on the CPU, so that every device has the same.
        bases = torch.rand(1, channels, num_bases, generator=torch.Generator().manual_seed(0), device="cpu")
        self.register_buffer("evaluation_bases", bases.to(torch.get_default_device()), persistent=False)

    def forward(self, x: Tensor, bases: Tensor | None = None) -> Tensor:
        ham = F.relu(self.ham_in(x))
        flat = ham.flatten(2)
        if bases is None and self.training:
            bases = torch.rand(*flat.shape[:2], self.num_bases, device=x.device)
        # Products of many terms, then quotients: half precision would overflow.
        with without_autocast(x.device):
            wide = flat.to(torch.promote_types(flat.dtype, torch.float32))
            start = (self.evaluation_bases if bases is None else bases).to(wide)
            wide = factorize(wide, F.normalize(start, dim=1), self.train_steps if self.training else self.eval_steps)
        return F.relu(x + self.ham_out(wide.to(ham.dtype).view_as(ham)))


class LightHamHead(nn.Module):
    """The decoder: stages 2 to 4 at the size of stage 2, squeezed, factorized, aligned and classified.

    Args:
        in_channels: Channels of stages 2 to 4.
        channels: Width of the head, a multiple of 32.
        num_classes: K.
        num_bases: R, the rank of the factorization.
        dropout: Probability that a channel is dropped before the classifier.
    """

    def __init__(
        self, in_channels: Sequence[int], channels: int, num_classes: int, *, num_bases: int, dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.conv_seg = nn.Conv2d(channels, num_classes, 1)
        self.squeeze = _ConvModule(sum(in_channels), channels)
        self.hamburger = _Hamburger(channels, num_bases)
        self.align = _ConvModule(channels, channels)
        self.dropout = nn.Dropout2d(dropout)
        self.apply(_initialize)
        nn.init.normal_(self.conv_seg.weight, std=0.01)

    def forward(self, stages: Sequence[Tensor], bases: Tensor | None = None) -> Tensor:
        """Computes logits `(B, K, H / 8, W / 8)`.

        Args:
            stages: The encoder's four stages.
            bases: `(B, channels, R)` or `(1, channels, R)` start of the factorization, non-negative; by default
                drawn.
        """
        size = stages[1].shape[-2:]
        resized = [resize(stage, size) for stage in stages[2:]]
        x = F.relu(self.squeeze(torch.cat([stages[1], *resized], dim=1)))
        x = F.relu(self.align(self.hamburger(x, bases)))
        logits: Tensor = self.conv_seg(self.dropout(x))
        return logits


def _initialize(module: nn.Module) -> None:
    """He initialization over the outputs, zero biases."""
    if isinstance(module, nn.Conv2d):
        fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class SegNeXt(SegmentationModel):
    """SegNeXt with the attributes `backbone` (`MSCAN`) and `decode_head` (`LightHamHead`).

    Args:
        num_classes: K.
        embed_dims: Channels of the encoder's stages.
        depths: Blocks of the encoder's stages.
        drop_path: Stochastic depth of the encoder's last block.
        head_channels: Width of the head, a multiple of 32.
        num_bases: Rank of the head's factorization.
        dropout: Dropout before the classifier.
        in_channels: Channels of the images.
        **options: See `aucseg.models.SegmentationModel`.

    Shape:
        - images: `(B, in_channels, H, W)` float, normalized with the ImageNet mean and deviation.
        - logits: `(B, K, H / 8, W / 8)` float where H and W are multiples of 8.

    Raises:
        ValueError: Widths that do not fit.

    Example:
        >>> model = SegNeXt(5, embed_dims=(8, 8, 16, 16), depths=(1, 1, 1, 1), head_channels=32, num_bases=4).eval()
        >>> model(torch.rand(2, 3, 64, 96)).shape
        torch.Size([2, 5, 8, 12])
    """

    def __init__(
        self,
        num_classes: int,
        *,
        embed_dims: Sequence[int] = (32, 64, 160, 256),
        depths: Sequence[int] = (3, 3, 5, 2),
        drop_path: float = 0.1,
        head_channels: int = 256,
        num_bases: int = 16,
        dropout: float = 0.1,
        in_channels: int = 3,
        **options: Any,
    ) -> None:
        if len(embed_dims) != 4 or len(depths) != 4:
            raise ValueError(
                f"embed_dims and depths need four entries each, got {tuple(embed_dims)} and {tuple(depths)}"
            )
        if head_channels % 32:
            raise ValueError(f"head_channels must be a multiple of 32, got {head_channels}")
        super().__init__(num_classes, stride=32, encoder="backbone", **options)
        self.backbone = MSCAN(embed_dims, depths, drop_path=drop_path, in_channels=in_channels)
        self.decode_head = LightHamHead(
            embed_dims[1:], head_channels, num_classes, num_bases=num_bases, dropout=dropout
        )

    def compute(self, images: Tensor) -> Tensor:
        """Runs encoder and head."""
        logits: Tensor = self.decode_head(self.backbone(images))
        return logits


_WIDE = (64, 128, 320, 512)
SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"embed_dims": (32, 64, 160, 256), "depths": (3, 3, 5, 2), "head_channels": 256, "num_bases": 16},
    "small": {"embed_dims": _WIDE, "depths": (2, 2, 4, 2), "head_channels": 256, "num_bases": 16},
    "base": {"embed_dims": _WIDE, "depths": (3, 3, 12, 3), "head_channels": 512, "num_bases": 64},
    "large": {"embed_dims": _WIDE, "depths": (3, 5, 27, 3), "head_channels": 1024, "num_bases": 64, "drop_path": 0.3},
}
