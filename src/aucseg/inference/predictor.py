"""Inference at full size: whole images, sliding windows in constant memory, scales and flips, class priors."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aucseg.dtypes import in_model_dtype
from aucseg.losses.baselines.logit_adjustment import log_prior
from aucseg.losses.class_weights import check_class_counts

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class InferenceOptions:
    """How to get logits of an image from a model.

    Attributes:
        window: ``(height, width)`` of the sliding window in pixels; None for the whole image at once. A smaller image
            is taken whole.
        stride: ``(vertical, horizontal)`` step of the window, at most its size. Default: three quarters of it.
        blend: Weight of a window's pixels where windows overlap: ``"average"``, equal; ``"linear"``, falling towards
            the window's border, which hides seams.
        scales: Resize the image (or window) by each factor and average the class probabilities.
        flip: Average with the mirrored image as well.
        class_frequency: Pixel counts or shares of the K classes in the training data; ``tau * log(frequency)`` is
            subtracted from the logits (Menon et al., *Long-tail learning via logit adjustment*, ICLR 2021), which
            favours rare classes. Meant for models trained with plain cross-entropy.
        tau: Strength of that adjustment.
        batch_size: Windows that go through the model together.
        block_width: Images wider than this are worked off in columns of at least this width, so that the memory depends
            neither on the height nor on the width of the image. Windows across the border of two columns are computed
            twice.

    Raises:
        ValueError: An option is out of its range.
    """

    window: tuple[int, int] | None = None
    stride: tuple[int, int] | None = None
    blend: Literal["average", "linear"] = "linear"
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    class_frequency: tuple[float, ...] | None = None
    tau: float = 1.0
    batch_size: int = 1
    block_width: int = 4096

    def __post_init__(self) -> None:
        if self.window is not None:
            if len(self.window) != 2 or min(self.window) < 1:
                raise ValueError(f"window must be two positive numbers of pixels, got {self.window}")
            if any(not 1 <= step <= size for step, size in zip(self.steps, self.window, strict=True)):
                raise ValueError(f"stride {self.stride} must be at least 1 and at most the window {self.window}")
        elif self.stride is not None:
            raise ValueError("stride needs a window")
        if self.blend not in ("average", "linear"):
            raise ValueError(f"blend must be 'average' or 'linear', got {self.blend!r}")
        if not self.scales or min(self.scales) <= 0:
            raise ValueError(f"scales must be positive, got {self.scales}")
        if self.batch_size < 1 or self.block_width < 1:
            raise ValueError(
                f"batch_size and block_width must be at least 1, got {self.batch_size} and {self.block_width}"
            )
        if self.class_frequency is not None:
            check_class_counts(self.class_frequency, "class_frequency")

    @property
    def steps(self) -> tuple[int, int]:
        """The stride, or its default for the window."""
        assert self.window is not None
        return self.stride or (max(1, self.window[0] * 3 // 4), max(1, self.window[1] * 3 // 4))


class Predictor:
    """Logits and labels of images at full size.

    Args:
        model: From images ``(B, C, H, W)`` float to logits ``(B, K, h, w)`` at any resolution: a module in evaluation
            mode, or any callable.
        options: See :class:`InferenceOptions`.
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
        self.model = model
        self.options = options or InferenceOptions()
        self.pixel_mean, self.pixel_std = (
            None if values is None else torch.tensor(values, dtype=torch.float32).view(-1, 1, 1)
            for values in (pixel_mean, pixel_std)
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
        """Compute the logits ``(K, H, W)`` float32 of one image, on the model's device.

        A model with one logit z a pixel has two classes, with the logits (0, z).

        Args:
            image: A tensor ``(C, H, W)`` or an array ``(H, W, C)``, uint8 or float.

        Returns:
            Logits; with several scales or a flip, logarithms of mean probabilities. The softmax of either gives
            probabilities.

        Raises:
            ValueError: The model is in training mode, or shapes do not fit.
        """
        height, width = _size_of(image)
        out: Tensor | None = None
        for rows, columns, logits in self.blocks(image):
            if out is None:
                out = logits.new_empty((len(logits), height, width))
            out[:, rows, columns] = logits
        assert out is not None
        return out

    def labels(self, image: Tensor | Array, out: Array | None = None) -> Tensor:
        """Compute the labels ``(H, W)`` of one image without keeping the logits of more than a band of it.

        Args:
            image: A tensor ``(C, H, W)`` or an array ``(H, W, C)``, uint8 or float; it may be memory-mapped.
            out: Array ``(H, W)`` of an integer type to write to; it may be memory-mapped. With a window, the memory
                then does not depend on the size of the image.

        Returns:
            Labels, int64 on the CPU; with ``out``, a view of it.

        Raises:
            ValueError: As in :meth:`logits`; or ``out`` has another shape, or cannot hold every label.
        """
        size = _size_of(image)
        array = np.empty(size, dtype=np.int64) if out is None else out
        if array.shape != size or not np.issubdtype(array.dtype, np.integer):
            raise ValueError(f"out must hold integers of shape {size}, got {array.dtype} {array.shape}")
        for rows, columns, logits in self.blocks(image):
            if len(logits) - 1 > np.iinfo(array.dtype).max:
                raise ValueError(f"out of type {array.dtype} cannot hold {len(logits)} labels")
            array[rows, columns] = logits.argmax(dim=0).cpu().numpy()
        return torch.from_numpy(array)

    def blocks(self, image: Tensor | Array) -> Iterator[tuple[slice, slice, Tensor]]:
        """Yield ``(rows, columns, logits)`` for parts that cover the image, none twice; logits ``(K, rows, columns)``.

        Args:
            image: A tensor ``(C, H, W)`` or an array ``(H, W, C)``, uint8 or float.

        Raises:
            ValueError: As in :meth:`logits`.
        """
        height, width = _size_of(image)
        if isinstance(self.model, nn.Module) and self.model.training:
            raise ValueError("the model is in training mode; call model.eval() first")
        parts = self._whole(image) if self.options.window is None else self._slide(image, height, width)
        for rows, columns, logits in parts:
            yield rows, columns, logits if self._adjustment is None else logits - self._adjustment[:, None, None]

    def _whole(self, image: Tensor | Array) -> Iterator[tuple[slice, slice, Tensor]]:
        pixels = self._read(image, slice(None), slice(None))[None]
        yield slice(0, pixels.shape[-2]), slice(0, pixels.shape[-1]), self._augmented(pixels)[0]

    def _slide(self, image: Tensor | Array, height: int, width: int) -> Iterator[tuple[slice, slice, Tensor]]:
        """Work off one column of blocks after the other, each from top to bottom, with one band of sums in memory."""
        assert self.options.window is not None
        window = (min(self.options.window[0], height), min(self.options.window[1], width))
        tops = window_offsets(height, window[0], self.options.steps[0])
        lefts = window_offsets(width, window[1], self.options.steps[1])
        weight = self._window_weight(window)
        block_width = max(self.options.block_width, window[1])
        num_blocks = max(1, width // block_width)
        borders = [width * i // num_blocks for i in range(num_blocks + 1)]
        for left, right in itertools.pairwise(borders):
            reached = [x for x in lefts if x < right and x + window[1] > left]
            sums: Tensor | None = None
            weights = torch.zeros(window[0], right - left, dtype=torch.float32, device=self.device)
            for index, top in enumerate(tops):
                for start in range(0, len(reached), self.options.batch_size):
                    xs = reached[start : start + self.options.batch_size]
                    rows = slice(top, top + window[0])
                    batch = torch.stack([self._read(image, rows, slice(x, x + window[1])) for x in xs])
                    for x, logits in zip(xs, self._augmented(batch), strict=True):
                        if sums is None:
                            sums = logits.new_zeros((len(logits), window[0], right - left))
                        inside = slice(max(left - x, 0), min(right - x, window[1]))
                        place = slice(max(x - left, 0), min(x + window[1], right) - left)
                        sums[:, :, place] += (logits * weight)[:, :, inside]
                        weights[:, place] += weight[:, inside]
                assert sums is not None
                finished = (tops[index + 1] if index + 1 < len(tops) else height) - top
                yield slice(top, top + finished), slice(left, right), sums[:, :finished] / weights[:finished]
                sums = F.pad(sums[:, finished:], (0, 0, 0, finished))
                weights = F.pad(weights[finished:], (0, 0, 0, finished))

    def _window_weight(self, window: tuple[int, int]) -> Tensor:
        if self.options.blend == "average":
            return torch.ones(window, dtype=torch.float32, device=self.device)
        ramps = []
        for size in window:
            position = torch.arange(size, device=self.device)
            ramps.append(torch.minimum(position + 1, size - position).float() / size)
        return ramps[0][:, None] * ramps[1]

    @torch.no_grad()
    def _augmented(self, images: Tensor) -> Tensor:
        """Compute logits ``(B, K, H, W)`` at the size of the images ``(B, C, H, W)``."""
        size = (images.shape[-2], images.shape[-1])
        if self.options.scales == (1.0,) and not self.options.flip:
            return _resize(self._run(images), size)
        total: Tensor | None = None
        views = 0
        for scale in self.options.scales:
            scaled = _resize(images, (max(1, round(size[0] * scale)), max(1, round(size[1] * scale))))
            for flipped in (False, True) if self.options.flip else (False,):
                logits = self._run(scaled.flip(-1) if flipped else scaled)
                probabilities = _resize(logits.flip(-1) if flipped else logits, size).softmax(dim=1)
                total = probabilities if total is None else total + probabilities
                views += 1
        assert total is not None
        return (total / views).clamp(min=torch.finfo(torch.float32).tiny).log()

    def _run(self, images: Tensor) -> Tensor:
        if isinstance(self.model, nn.Module):
            images = in_model_dtype(images, self.model)
        logits = self.model(images)
        if logits.ndim != 4 or len(logits) != len(images):
            raise ValueError(f"the model returned shape {tuple(logits.shape)}; expected ({len(images)}, K, h, w)")
        logits = logits.float()
        if logits.shape[1] == 1:  # one logit z a pixel: two classes with the logits (0, z)
            logits = torch.cat([torch.zeros_like(logits), logits], dim=1)
        if self._adjustment is not None and logits.shape[1] != len(self._adjustment):
            raise ValueError(f"{len(self._adjustment)} class frequencies for a model of {logits.shape[1]} classes")
        return logits

    def _read(self, image: Tensor | Array, rows: slice, columns: slice) -> Tensor:
        if isinstance(image, Tensor):
            pixels = image[:, rows, columns]
        else:
            pixels = torch.from_numpy(np.array(image[rows, columns])).permute(2, 0, 1)
        # Bytes travel as they are, all else in the one dtype that every device has.
        pixels = self._sent(pixels if pixels.dtype == torch.uint8 else pixels.float()).float()
        if self.pixel_mean is None or self.pixel_std is None:
            return pixels
        if len(self.pixel_mean) != len(pixels):
            raise ValueError(f"the image has {len(pixels)} channels, pixel_mean has {len(self.pixel_mean)}")
        return (pixels - self._sent(self.pixel_mean)) / self._sent(self.pixel_std)

    def _sent(self, values: Tensor) -> Tensor:
        """Values on the model's device. The host does not wait: it reads the next window while this one is computed."""
        if self.device.type == "cuda" and values.device.type == "cpu":  # from other memory the host waits for the copy
            values = values.contiguous().pin_memory()
        return values.to(self.device, non_blocking=True)


def _size_of(image: Tensor | Array) -> tuple[int, int]:
    if image.ndim != 3 or 0 in image.shape:
        expected = "(C, H, W)" if isinstance(image, Tensor) else "(H, W, C)"
        raise ValueError(f"the image must be {expected}, got shape {tuple(image.shape)}")
    height, width = image.shape[1:] if isinstance(image, Tensor) else image.shape[:2]
    return int(height), int(width)


def window_offsets(length: int, window: int, step: int) -> list[int]:
    """Cover ``length`` by windows every ``step``; the last one ends at the end."""
    return [*range(0, length - window, step), length - window]


def _resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    return x if x.shape[-2:] == size else F.interpolate(x, size, mode="bilinear", align_corners=False)
