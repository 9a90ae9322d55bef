"""Inference at full size, of images and volumes: whole, by sliding windows in constant memory, at several scales."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aucseg.hints import check_choice
from aucseg.losses.baselines.logit_adjustment import log_prior
from aucseg.losses.class_weights import check_class_counts
from aucseg.tensors.dtypes import check_tensor, in_model_dtype
from aucseg.tensors.upsampling import resize, two_logits, upsampled_bands

Array = npt.NDArray[Any]
Place = tuple[slice, ...]

# Default widths of the blocks of images and of volumes, by their number of dimensions.
_BLOCK_WIDTHS = {2: 4096, 3: 512}


@dataclass(frozen=True)
class InferenceOptions:
    """How to get logits of an image or a volume from a model.

    Attributes:
        window: `(height, width)` of the sliding window in pixels, of volumes `(depth, height, width)`; None for the
            whole image at once. Where the image is smaller it is taken whole.
        stride: Step of the window in each direction, at most its size. Default: three quarters of it.
        blend: Weight of a window's pixels where windows overlap: `"average"`, equal; `"linear"`, falling towards
            the window's border, which hides seams.
        scales: Resize the image (or window) by each factor and average the class probabilities.
        flip: Average with the image mirrored from left to right as well.
        class_frequency: Pixel counts or shares of the K classes in the training data; `tau * log(frequency)` is
            subtracted from the logits (Menon et al., *Long-tail learning via logit adjustment*, ICLR 2021), which
            favours rare classes. Meant for models trained with plain cross-entropy.
        tau: Strength of that adjustment.
        batch_size: Windows that go through the model together.
        block_width: Images wider than this are processed in columns of at least this width, so that the memory depends
            neither on the height nor on the width of the image; volumes likewise, in height and width. Windows across
            the border of two columns are computed twice. Default: 4096, for volumes 512.

    Raises:
        TypeError: One number for an option that takes several.
        ValueError: An option is out of its range.
    """

    window: tuple[int, ...] | None = None
    stride: tuple[int, ...] | None = None
    blend: Literal["average", "linear"] = "linear"
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    class_frequency: tuple[float, ...] | None = None
    tau: float = 1.0
    batch_size: int = 1
    block_width: int | None = None

    def __post_init__(self) -> None:
        for name in ("window", "stride", "scales", "class_frequency"):
            if isinstance(value := getattr(self, name), str | Real):
                raise TypeError(f"{name} must be a tuple of numbers, got {value!r}")
        if self.window is not None:
            if len(self.window) not in (2, 3) or min(self.window) < 1:
                raise ValueError(
                    f"window must be two positive numbers of pixels, or three for volumes, got {self.window}"
                )
            if len(self.steps) != len(self.window):
                raise ValueError(f"stride {self.stride} must have as many numbers as the window {self.window}")
            if any(not 1 <= step <= size for step, size in zip(self.steps, self.window, strict=True)):
                raise ValueError(f"stride {self.stride} must be at least 1 and at most the window {self.window}")
        elif self.stride is not None:
            raise ValueError("stride needs a window")
        check_choice("blend", self.blend, ("average", "linear"))
        if not self.scales or not all(0 < scale < math.inf for scale in self.scales):
            raise ValueError(f"scales must be positive numbers, got {self.scales}")
        if not math.isfinite(self.tau):
            raise ValueError(f"tau must be a number, got {self.tau}")
        for name in ("batch_size", "block_width"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.class_frequency is not None:
            check_class_counts(self.class_frequency, "class_frequency")

    @property
    def steps(self) -> tuple[int, ...]:
        """The stride, or its default for the window."""
        assert self.window is not None
        return self.stride or tuple(max(1, side * 3 // 4) for side in self.window)


class Predictor:
    """Logits and labels of images, or of volumes, at full size.

    Args:
        model: From images `(B, C, H, W)` float to logits `(B, K, h, w)` at any resolution, or from volumes
            `(B, C, D, H, W)` to `(B, K, d, h, w)`: a module in evaluation mode, or any callable.
        options: See `InferenceOptions`.
        pixel_mean: Mean to subtract from each channel, in the units of the images; None when the model normalizes by
            itself.
        pixel_std: Deviation to divide each channel by.
        device: Where the model is. Default: where its parameters are; the CPU for a callable.

    Example:
        >>> model = nn.Conv2d(3, 5, 1).eval()
        >>> image = torch.randint(256, (3, 50, 70), dtype=torch.uint8)
        >>> whole = Predictor(model).labels(image)
        >>> sliding = Predictor(model, InferenceOptions(window=(32, 32))).labels(image)
        >>> whole.shape, bool((whole == sliding).all())
        (torch.Size([50, 70]), True)
        >>> predictor = Predictor(nn.Conv3d(1, 2, 3, padding=1).eval(), InferenceOptions(window=(16, 16, 16)))
        >>> predictor.labels(torch.rand(1, 20, 30, 25)).shape
        torch.Size([20, 30, 25])
    """

    def __init__(
        self,
        model: Callable[[Tensor], Tensor],
        options: InferenceOptions | None = None,
        *,
        pixel_mean: Sequence[float] | None = None,
        pixel_std: Sequence[float] | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        if (pixel_mean is None) != (pixel_std is None):
            raise ValueError("give both of pixel_mean and pixel_std, or none")
        if pixel_std is not None and not all(0 < value < math.inf for value in pixel_std):
            raise ValueError(f"pixel_std must be above 0 in each channel, got {pixel_std}")
        self.model = model
        self.options = options or InferenceOptions()
        self.pixel_mean, self.pixel_std = (
            None if values is None else torch.tensor(values, dtype=torch.float32) for values in (pixel_mean, pixel_std)
        )
        if device is None:
            parameter = next(model.parameters(), None) if isinstance(model, nn.Module) else None
            device = "cpu" if parameter is None else parameter.device
        self.device = torch.device(device)
        frequency = self.options.class_frequency
        self._adjustment = None
        if frequency is not None:
            prior = log_prior(check_class_counts(frequency, "class_frequency"))
            self._adjustment = self.options.tau * prior.float().to(self.device)

    def logits(self, image: Tensor | Array) -> Tensor:
        """Computes the logits `(K, H, W)` or `(K, D, H, W)` float32 of one image or volume, on the model's device.

        A model with one logit z a pixel has two classes, with the logits (0, z).

        Args:
            image: A tensor `(C, H, W)` or an array `(H, W, C)`, uint8 or float; of a volume `(C, D, H, W)` or
                `(D, H, W, C)`.

        Returns:
            Logits; with several scales or a flip, logarithms of mean probabilities. The softmax of either gives
            probabilities.

        Raises:
            ValueError: The model is in training mode, or shapes do not fit.
        """
        size = _size_of(image)
        out: Tensor | None = None
        for place, logits in self.blocks(image):
            if out is None:
                out = logits.new_empty((len(logits), *size))
            out[(slice(None), *place)] = logits
        assert out is not None
        return out

    def labels(self, image: Tensor | Array, out: Array | None = None) -> Tensor:
        """Computes the labels `(H, W)` or `(D, H, W)`, with a band of the full-size logits in memory at a time.

        The mean over several scales or a flip of a whole image is kept at full size.

        Args:
            image: As in `logits`; it may be memory-mapped.
            out: Array `(H, W)` or `(D, H, W)` of an integer type to write to; it may be memory-mapped. With a
                window, the memory then does not depend on the size of the image.

        Returns:
            Labels, int64 on the CPU; with `out`, a view of it.

        Raises:
            ValueError: As in `logits`; or `out` has another shape, or cannot hold every label.
        """
        size = _size_of(image)
        array = np.empty(size, dtype=np.int64) if out is None else out
        if array.shape != size or not np.issubdtype(array.dtype, np.integer):
            raise ValueError(f"out must hold integers of shape {size}, got {array.dtype} {array.shape}")
        for place, logits in self.blocks(image):
            if len(logits) - 1 > np.iinfo(array.dtype).max:
                raise ValueError(f"out of type {array.dtype} cannot hold {len(logits)} labels")
            array[place] = logits.argmax(dim=0).cpu().numpy()
        return torch.from_numpy(array)

    def blocks(self, image: Tensor | Array) -> Iterator[tuple[Place, Tensor]]:
        """Yields `(place, logits)` for parts that cover the image, none twice.

        Args:
            image: As in `logits`.

        Yields:
            `(rows, columns)`, of volumes `(planes, rows, columns)`, as slices, and logits `(K, rows, columns)` or
            `(K, planes, rows, columns)`.

        Raises:
            ValueError: As in `logits`.
        """
        size, window = _size_of(image), self.options.window
        if isinstance(self.model, nn.Module) and self.model.training:
            raise ValueError("the model is in training mode; call model.eval() first")
        if window is not None and len(window) != len(size):
            raise ValueError(
                f"the window {window} does not fit an image of size {size}: it has two sides for images (C, H, W), "
                "three for volumes (C, D, H, W)"
            )
        parts = self._whole(image) if window is None else self._slide(image, size, window)
        for place, logits in parts:
            yield place, logits if self._adjustment is None else logits - _over_channels(self._adjustment, logits)

    def _whole(self, image: Tensor | Array) -> Iterator[tuple[Place, Tensor]]:
        pixels = self._read(image, (slice(None),) * (image.ndim - 1))[None]
        size = pixels.shape[2:]
        logits = self._run(pixels) if self._is_plain else self._augmented(pixels)
        for _, rows, band in upsampled_bands(logits, size):
            yield (rows, *(slice(0, side) for side in size[1:])), band[0]

    def _slide(
        self, image: Tensor | Array, size: tuple[int, ...], window: tuple[int, ...]
    ) -> Iterator[tuple[Place, Tensor]]:
        """Works through the columns of blocks in turn, each from top to bottom, with one band of sums in memory."""
        window = tuple(map(min, window, size))
        tops, *across = map(window_offsets, size, window, self.options.steps)
        weight = self._window_weight(window)
        block_width = self.options.block_width or _BLOCK_WIDTHS[len(size)]
        borders = [_intervals(side, max(block_width, w)) for side, w in zip(size[1:], window[1:], strict=True)]
        for block in itertools.product(*borders):
            axes = list(zip(across, window[1:], block, strict=True))
            reached = list(
                itertools.product(*([x for x in xs if x < end and x + w > begin] for xs, w, (begin, end) in axes))
            )
            extent = [window[0], *(end - begin for begin, end in block)]
            sums: Tensor | None = None
            weights = torch.zeros(extent, dtype=torch.float32, device=self.device)
            batches = self._batches(image, tops, reached, window)
            ahead = next(batches)
            for index, top in enumerate(tops):
                for _ in range(0, len(reached), self.options.batch_size):
                    corners, pixels = ahead
                    found = self._augmented(pixels)
                    # An accelerator computes while the host reads and sends what comes next.
                    ahead = next(batches, ahead)
                    for corner, logits in zip(corners, found, strict=True):
                        if sums is None:
                            sums = logits.new_zeros((len(logits), *extent))
                        inside, target = _overlap((0, *corner), window, ((0, window[0]), *block))
                        sums[(slice(None), *target)] += (logits * weight)[(slice(None), *inside)]
                        weights[target] += weight[inside]
                assert sums is not None
                finished = (tops[index + 1] if index + 1 < len(tops) else size[0]) - top
                place = (slice(top, top + finished), *(slice(begin, end) for begin, end in block))
                yield place, sums[:, :finished] / weights[:finished]
                below = (0, 0) * len(block) + (0, finished)
                sums, weights = F.pad(sums[:, finished:], below), F.pad(weights[finished:], below)

    def _batches(
        self, image: Tensor | Array, tops: list[int], reached: list[tuple[int, ...]], window: tuple[int, ...]
    ) -> Iterator[tuple[list[tuple[int, ...]], Tensor]]:
        """Yields corners of windows, without their tops, and their pixels, a batch at a time, from top to bottom."""
        for top in tops:
            for start in range(0, len(reached), self.options.batch_size):
                corners = reached[start : start + self.options.batch_size]
                places = [tuple(slice(x, x + w) for x, w in zip((top, *c), window, strict=True)) for c in corners]
                yield corners, torch.stack([self._read(image, place) for place in places])

    def _window_weight(self, window: tuple[int, ...]) -> Tensor:
        weight = torch.ones(window, dtype=torch.float32, device=self.device)
        if self.options.blend == "linear":
            for dim, size in enumerate(window):
                position = torch.arange(size, device=self.device)
                ramp = torch.minimum(position + 1, size - position).float() / size
                weight *= ramp.view(-1, *[1] * (len(window) - 1 - dim))
        return weight

    @property
    def _is_plain(self) -> bool:
        """Whether the logits of the image as it is are the answer."""
        return self.options.scales == (1.0,) and not self.options.flip

    @torch.no_grad()
    def _augmented(self, images: Tensor) -> Tensor:
        """Computes logits `(B, K, *spatial)` at the size of the images `(B, C, *spatial)`."""
        size = images.shape[2:]
        if self._is_plain:
            return resize(self._run(images), size)
        total: Tensor | None = None
        views = 0
        for scale in self.options.scales:
            scaled = resize(images, [max(1, round(side * scale)) for side in size])
            for flipped in (False, True) if self.options.flip else (False,):
                logits = self._run(scaled.flip(-1) if flipped else scaled)
                probabilities = resize(logits.flip(-1) if flipped else logits, size).softmax(dim=1)
                total = probabilities if total is None else total + probabilities
                views += 1
        assert total is not None
        return (total / views).clamp(min=torch.finfo(torch.float32).tiny).log()

    @torch.no_grad()
    def _run(self, images: Tensor) -> Tensor:
        if isinstance(self.model, nn.Module):
            images = in_model_dtype(images, self.model)
        logits = self.model(images)
        check_tensor(logits, "what the model returns")
        if logits.ndim != images.ndim or len(logits) != len(images):
            sides = "h, w" if images.ndim == 4 else "d, h, w"
            raise ValueError(f"the model returned shape {tuple(logits.shape)}; expected ({len(images)}, K, {sides})")
        logits = two_logits(logits.float())
        if self._adjustment is not None and logits.shape[1] != len(self._adjustment):
            raise ValueError(f"{len(self._adjustment)} class frequencies for a model of {logits.shape[1]} classes")
        return logits

    def _read(self, image: Tensor | Array, place: Place) -> Tensor:
        if isinstance(image, Tensor):
            pixels = image[(slice(None), *place)]
        else:
            part = image[place]
            # A copy, in the byte order of this machine: torch knows no other.
            pixels = torch.from_numpy(np.array(part, dtype=part.dtype.newbyteorder("="))).movedim(-1, 0)
        # Bytes travel as they are, all else in the one dtype that every device has.
        pixels = self._sent(pixels if pixels.dtype == torch.uint8 else pixels.float()).float()
        if self.pixel_mean is None or self.pixel_std is None:
            return pixels
        if len(self.pixel_mean) != len(pixels):
            raise ValueError(f"the image has {len(pixels)} channels, pixel_mean has {len(self.pixel_mean)}")
        mean, std = (_over_channels(self._sent(values), pixels) for values in (self.pixel_mean, self.pixel_std))
        return (pixels - mean) / std

    def _sent(self, values: Tensor) -> Tensor:
        """Values on the model's device. The host does not wait: it reads the next window while this one is computed."""
        if self.device.type == "cuda" and values.device.type == "cpu":  # from other memory the host waits for the copy
            values = values.contiguous().pin_memory()
        return values.to(self.device, non_blocking=True)


def _size_of(image: Tensor | Array) -> tuple[int, ...]:
    if image.ndim not in (3, 4) or 0 in image.shape:
        expected = "(C, H, W) or (C, D, H, W)" if isinstance(image, Tensor) else "(H, W, C) or (D, H, W, C)"
        raise ValueError(f"the image must be {expected}, got shape {tuple(image.shape)}")
    return tuple(map(int, image.shape[1:] if isinstance(image, Tensor) else image.shape[:-1]))


def _over_channels(values: Tensor, like: Tensor) -> Tensor:
    """Values of channels, (C,), in a shape that goes with `like` (C, *spatial)."""
    return values.view(-1, *[1] * (like.ndim - 1))


def window_offsets(length: int, window: int, step: int) -> list[int]:
    """Covers `length` by windows every `step`; the last one ends at the end."""
    return [*range(0, length - window, step), length - window]


def _intervals(length: int, least: int) -> list[tuple[int, int]]:
    """Cuts `length` into intervals of at least `least`, as far as it has it."""
    number = max(1, length // least)
    return list(itertools.pairwise(length * i // number for i in range(number + 1)))


def _overlap(
    corner: tuple[int, ...], window: tuple[int, ...], block: tuple[tuple[int, int], ...]
) -> tuple[Place, Place]:
    """Where a window and a block meet: as places in the window and in the block."""
    axes = list(zip(corner, window, block, strict=True))
    inside = tuple(slice(max(begin - x, 0), min(end - x, w)) for x, w, (begin, end) in axes)
    return inside, tuple(slice(max(x - begin, 0), min(x + w, end) - begin) for x, w, (begin, end) in axes)
