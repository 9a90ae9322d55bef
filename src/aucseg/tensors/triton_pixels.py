"""What Triton kernels of loss and metrics share: whether they work, and what they see of a pixel.

That is its label and its logits, upsampled on the way where they are smaller, in functions that kernels are built of.
`KIND` is the dtype of the arithmetic, float32 or float64.
"""

import warnings
from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

_MAX_INT32 = 2**31 - 2**14  # the last program looks at places beyond the last pixel


def kernels_work(try_out: Callable[[], object], device: torch.device, without: str) -> bool:
    """Whether kernels can be built for a device; else a warning says why not.

    Args:
        try_out: Launches the kernels once.
        device: The device.
        without: What happens without them, such as `"the AUC loss falls back"`.
    """
    try:
        try_out()
    except Exception as error:  # no compiler, an old device, a driver that does not fit: Triton has no error for these
        if "out of memory" in str(error):  # says nothing about Triton
            raise
        warnings.warn(
            f"{without} to slower operations of torch: Triton does not work on {device} ({error})", stacklevel=3
        )
        return False
    return True


def fits_32_bits(logits: Tensor, target: Tensor) -> bool:
    """Whether the 32-bit indices of the kernels reach every pixel of an image.

    Args:
        logits: (B, K, *spatial) or (N, K).
        target: (B, *spatial) or (N,); of another size than the logits with two spatial dimensions only.
    """
    sizes, full_sizes = logits.shape[2:], target.shape[1:]
    if logits.dim() == 2 or sizes == full_sizes:
        return target.numel() < _MAX_INT32 * max(len(logits) if logits.dim() > 2 else 1, 1)
    last = sum((size - 1) * logits.stride(dim) for dim, size in enumerate(sizes, 2))
    steps = max(2 * size * full_size for size, full_size in zip(sizes, full_sizes, strict=True))
    return max(last, steps, torch.Size(full_sizes).numel()) < _MAX_INT32


@triton.jit
def label_of(target, image, pixels, num_pixels, num_classes, ignore_index):
    """Labels of a block of pixels, `num_classes` for those that do not count."""
    inside = pixels < num_pixels
    label = tl.load(target + image.to(tl.int64) * num_pixels + pixels, mask=inside, other=0).to(tl.int64)
    valid = inside & (label != ignore_index) & (label >= 0) & (label < num_classes)
    return tl.where(valid, label, num_classes).to(tl.int32)


@triton.jit
def neighbours(position, size, full, KIND: tl.constexpr):
    """Source places of upsampled positions (bilinear, align_corners=False), and the share of the second; exact."""
    numerator = tl.maximum((2 * position + 1) * size - full, 0)
    low = numerator // (2 * full)
    share = (numerator - low * (2 * full)).to(KIND) / (2 * full)
    return low, tl.minimum(low + 1, size - 1), share


@triton.jit
def places(
    pixels, height, width, full_height, full_width, stride_y, stride_x, UPSAMPLE: tl.constexpr, KIND: tl.constexpr
):
    """Offsets of each pixel's four neighbours within a channel, and two shares; of the pixel itself at full size."""
    if UPSAMPLE:
        top, bottom, down = neighbours(pixels // full_width, height, full_height, KIND)
        left, right, across = neighbours(pixels % full_width, width, full_width, KIND)
        top, bottom, left, right = top * stride_y, bottom * stride_y, left * stride_x, right * stride_x
        return top + left, top + right, bottom + left, bottom + right, down, across
    else:
        place, share = pixels.to(tl.int64) * stride_x, pixels.to(KIND)
        return place, place, place, place, share, share


@triton.jit
def logit(channel, valid, a, b, c, d, down, across, UPSAMPLE: tl.constexpr, KIND: tl.constexpr):
    """Logits of one channel, see `places`; 0 where a pixel does not count, whatever is there."""
    value = tl.load(channel + a, mask=valid, other=0.0).to(KIND)
    if UPSAMPLE:
        value += across * (tl.load(channel + b, mask=valid, other=0.0).to(KIND) - value)
        below = tl.load(channel + c, mask=valid, other=0.0).to(KIND)
        below += across * (tl.load(channel + d, mask=valid, other=0.0).to(KIND) - below)
        value += down * (below - value)
    return value
