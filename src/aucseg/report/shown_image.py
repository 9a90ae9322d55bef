"""Images as a model sees them, of any channels, range and size, as pictures for the eye."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor


def shown_image(image: NDArray[Any]) -> NDArray[np.uint8]:
    """An image (H, W, C) of any number of channels and any range as RGB of 8 bits, for the eye.

    The first three channels are shown, or the first one in grey; other values than uint8 are stretched from their 1st
    to their 99th percentile.

    Example:
        >>> shown_image(np.zeros((2, 3, 1), np.uint8)).shape
        (2, 3, 3)
    """
    channels = image[..., :3] if image.shape[-1] >= 3 else np.repeat(image[..., :1], 3, axis=-1)
    if channels.dtype != np.uint8:
        values = np.nan_to_num(channels.astype(np.float64))
        low, high = np.percentile(values, (1, 99))
        channels = ((values - low) / max(high - low, 1e-12) * 255).clip(0, 255)
    return np.ascontiguousarray(channels.astype(np.uint8))


def shown_tensors(images: Sequence[Tensor], size: Sequence[int]) -> list[NDArray[np.uint8]]:
    """Images of one sample as pictures (H, W, 3), see `shown_image`; where they are stretched, all are alike.

    Args:
        images: (C, h, w) each, on any device.
        size: (H, W) that they are brought to, that of the mask: evaluation may see them smaller.
    """
    from aucseg.tensors.upsampling import resize

    arrays = []
    for image in images:
        array = resize(image.float()[None].cpu(), size)[0].permute(1, 2, 0).numpy()
        arrays.append(array if image.is_floating_point() else array.round().astype(np.uint8))
    return np.split(shown_image(np.concatenate(arrays)), len(arrays))
