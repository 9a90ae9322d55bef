"""The launches of the Triton kernels: counting labels, and the two passes over some logits and labels."""

from functools import lru_cache
from typing import Any

import torch
import triton
from torch import Tensor

from aucseg.losses.auc.options import PassOptions, may_overflow, working_dtype
from aucseg.losses.auc.pieces import ACCELERATOR_PIECE, as_planes
from aucseg.losses.auc.smooth import Coefficients
from aucseg.losses.auc.triton_kernels import (
    count_kernel,
    fold_kernel,
    gradient_kernel,
    pair_sums_kernel,
    risk_kernel,
    sums_kernel,
)
from aucseg.losses.auc.triton_limits import num_features
from aucseg.losses.auc.triton_risk import BY_SUMS
from aucseg.tensors.dtypes import wide_dtype
from aucseg.tensors.labels import other_label_message

# Pixels of a program. Fewer where the channels of a pixel lie together: then they are in the cache for the next one.
BLOCK, BLOCK_CHANNELS_LAST = 1024, 256
# Sums by channel and label: pixels of a block, blocks of a program (not more, or float32 would lose digits), channels
# and at most this number of labels.
PAIR_BLOCK, PAIR_BLOCKS, PAIR_CHANNELS, PAIR_LABELS = 64, 64, 16, 64
# Up to so many sums, programs times channels, are added up by the last program of their launch, so many at a time: the
# launches that are saved take longer.
FEW_SUMS, PARTS = 1 << 14, 1 << 12
# More channels than that are copied plane by plane first: a cache does not hold them until their turn comes. With 150
# of them at full size the walk took 5.5 times as long as cross-entropy on an H100.
MOST_CHANNELS_LAST = 32


def count(
    target: Tensor,
    num_classes: int,
    ignore_index: int,
    weights: tuple[Tensor, Tensor] | None = None,
    class_weight: Tensor | None = None,
    smoothing: float = 0.0,
    scale: float = 1.0,
    one_vs_all: bool = False,
) -> Tensor:
    """Pixels of each class, and scratch numbers, the last of them zero; fills `weights`, tables by class, if given."""
    target = _plain(target).flatten()
    # At once also what counts the programs that are done.
    total = torch.zeros(num_classes + 3, dtype=torch.int64, device=target.device)
    fine = torch.empty((), dtype=torch.int32, device=target.device)
    tables, wide = (total, total) if weights is None else weights
    with torch.cuda.device_of(target):
        count_kernel[(max(1, triton.cdiv(target.numel(), BLOCK)),)](
            target, total, fine, total if class_weight is None else class_weight.contiguous(), tables, wide,
            target.numel(), num_classes, ignore_index, smoothing, scale,
            WEIGHTS=weights is not None, CLASS_WEIGHT=class_weight is not None, ONE_VS_ALL=one_vs_all,
            CLASSES=triton.next_power_of_2(num_classes + 1), BLOCK=BLOCK,
        )  # fmt: skip
    torch._assert_async(fine, other_label_message(num_classes, ignore_index))
    return total


def _plain(target: Tensor) -> Tensor:
    return (target.view(torch.uint8) if target.dtype == torch.bool else target).contiguous()


def _fold(full: Tensor, dim: int, size: int) -> Tensor:
    """The gradient of upsampling `full` along a dimension, contiguous."""
    shape = list(full.shape)
    full_size, shape[dim] = shape[dim], size
    folded = torch.empty(shape, dtype=full.dtype, device=full.device)
    num_inner = full.stride(dim)
    num_taps = 2 * triton.cdiv(full_size, size) + 3
    grid = (triton.cdiv(folded.numel(), BLOCK),)
    fold_kernel[grid](full, folded, folded.numel(), size, full_size, num_inner, num_taps, BLOCK=BLOCK)
    return folded


class Passes:
    """The two passes over some logits and labels."""

    def __init__(self, logits: Tensor, target: Tensor, options: PassOptions) -> None:
        self._options, self._logits = options, logits
        self._upsample = logits.shape[2:] != target.shape[1:]
        planes = logits if self._upsample else as_planes(logits)
        if not self._upsample and planes.stride(1) == 1 and planes.shape[1] > MOST_CHANNELS_LAST:
            planes = planes.contiguous()
        self._num_images, self.num_classes = planes.shape[:2]
        # At full size a pixel is a place in one row.
        size = (planes.shape[2], planes.shape[3]) if self._upsample else (1, planes.shape[2])
        full_size = (target.shape[1], target.shape[2]) if self._upsample else size
        self._size, self._full_size = size, full_size
        self._num_pixels = full_size[0] * full_size[1]
        stride_y = planes.stride(2) if self._upsample else 0
        self._strides = (planes.stride(0), planes.stride(1), stride_y, planes.stride(-1))
        self._planes, self._target = planes, _plain(target)
        block = BLOCK_CHANNELS_LAST if planes.stride(1) == 1 and self.num_classes > 1 else BLOCK
        self._num_blocks = triton.cdiv(self._num_pixels, block)
        self._dtype = working_dtype(logits, options.surrogate)
        self.num_features = num_features(options)
        self.num_rows = 2 * self.num_features + 1
        self._constants: dict[str, Any] = {
            "FORM": options.form,
            "DEGREE": options.degree,
            # Not an argument, which would be a float32.
            "MARGIN": options.margin,
            "SCORES": options.scores,
            "CROSS_ENTROPY": options.cross_entropy,
            "SMOOTH": options.label_smoothing > 0,
            "UPSAMPLE": self._upsample,
            "BLOCK": block,
        }

    def empty_tables(self) -> Tensor:
        """Memory for the tables by class."""
        shape = (BY_SUMS.value + self.num_rows - 1, self.num_classes + 1)
        return torch.empty(shape, dtype=self._dtype, device=self._logits.device)

    def sums(self, tables: Tensor) -> tuple[Tensor, Tensor]:
        """Sums of features and of the cross-entropy, `(2 J + 1, K)`, wide, and the log-sum-exp where it is needed."""
        partial, lse = self._partial_sums(tables)
        return partial.sum(0, dtype=wide_dtype(partial.device)), lse

    def loss(
        self, tables: Tensor, wide: Tensor, ticket: Tensor, coefficients: Coefficients, scale: float
    ) -> tuple[Tensor, Tensor]:
        """The AUC loss `scale` fold plus the cross-entropy; the log-sum-exp; `tables` get what a gradient needs."""
        options = self._options
        loss = torch.empty((), dtype=torch.float32, device=tables.device)
        classes = triton.next_power_of_2(self.num_classes + 1)
        settings = (scale, torch.finfo(loss.dtype).max)
        if options.form != "chebyshev" and 0 < self._num_blocks * self._num_images * classes <= FEW_SUMS:
            _, lse = self._partial_sums(tables, ticket, wide, loss, *settings, parts=max(1, PARTS // classes))
            return loss, lse
        total, lse = self.sums(tables)
        by_degree = tables
        if options.form == "chebyshev":
            by_degree = _on_device(coefficients, tables.device)
        with torch.cuda.device_of(tables):
            risk_kernel[(1,)](
                total, 1, by_degree, wide, tables, loss, self.num_classes, *settings,
                FORM=options.form, DEGREE=options.degree, ROWS=self.num_rows, CLASSES=classes, PARTS=1,
            )  # fmt: skip
        return loss, lse

    def _partial_sums(self, tables: Tensor, *finish: Any, parts: int = 0) -> tuple[Tensor, Tensor]:
        """A row of sums a program, and the log-sum-exp where it is needed; with `finish` the loss as well."""
        device, options = self._logits.device, self._options
        shape = self._target.shape if options.needs_lse else (0,)
        lse = torch.empty(shape, dtype=self._dtype, device=device)
        # Of the last row only the first column is written, and used.
        num_programs = self._num_blocks * self._num_images
        partial = torch.empty(num_programs, self.num_rows, self.num_classes, dtype=self._dtype, device=device)
        if partial.numel():
            with torch.cuda.device_of(self._planes):
                sums_kernel[self._num_blocks, self._num_images](
                    self._planes, self._target, tables, lse, partial, *(finish or (tables, tables, tables, 0.0, 0.0)),
                    self._num_pixels, self.num_classes, options.ignore_index,
                    *self._size, *self._full_size, *self._strides,
                    **self._constants, ROWS=self.num_rows,
                    CLASSES=triton.next_power_of_2(self.num_classes + 1), PARTS=parts,
                )  # fmt: skip
        return partial, lse

    def pair_sums(self, lse: Tensor) -> Tensor:
        """Sums of the features of negatives by channel and label, `(J, K, K)`, wide."""
        device, options, num_classes = self._logits.device, self._options, self.num_classes
        total = torch.zeros(self.num_features, num_classes, num_classes, dtype=wide_dtype(device), device=device)
        num_runs = triton.cdiv(self._num_pixels, PAIR_BLOCK * PAIR_BLOCKS)
        labels = min(max(16, triton.next_power_of_2(num_classes)), PAIR_LABELS)
        tiles = triton.cdiv(num_classes, PAIR_CHANNELS), triton.cdiv(num_classes, labels)
        most = max(1, ACCELERATOR_PIECE // max(total.numel(), 1))
        for first in range(0, num_runs * self._num_images if total.numel() else 0, most):
            programs = min(most, num_runs * self._num_images - first)
            partial = torch.empty(programs, *total.shape, dtype=self._dtype, device=device)
            with torch.cuda.device_of(self._planes):
                pair_sums_kernel[(programs, *tiles)](
                    self._planes, self._target, lse, partial,
                    self._num_pixels, num_classes, options.ignore_index, first, num_runs,
                    *self._size, *self._full_size, *self._strides,
                    FORM=options.form, MARGIN=options.margin, SCORES=options.scores, UPSAMPLE=self._upsample,
                    BLOCKS=PAIR_BLOCKS, BLOCK=PAIR_BLOCK, CHANNELS=PAIR_CHANNELS, LABELS=labels,
                )  # fmt: skip
            total += partial.sum(0, dtype=total.dtype)
        return total

    def gradient(
        self, tables: Tensor, lse: Tensor, by_risk: Tensor, by_entropy: Tensor, by_pairs: Tensor | None = None
    ) -> Tensor:
        """The gradient by the logits, given those by the two losses (scalars).

        Args:
            tables: As made by `_tables`.
            lse: The log-sum-exp, where it is needed.
            by_risk: Scalar.
            by_entropy: Scalar.
            by_pairs: Slopes by the sums of negatives, where these are by channel and label, `(J, K + 1, K + 1)`.
        """
        if not self._target.numel():
            return torch.zeros_like(self._logits)
        with torch.cuda.device_of(self._planes):
            return self._gradient(tables, lse, by_risk, by_entropy, by_pairs)

    def _gradient(self, *inputs: Tensor | None) -> Tensor:
        logits = self._logits
        if not self._upsample:
            planes = torch.empty_like(self._planes)
            self._fill(planes, slice(None), 0, self.num_classes, *inputs)
            found = planes.squeeze(0).t() if logits.dim() == 2 else planes.view(logits.shape)
            # The operators promise the layout of the logits.
            is_alike = found.stride() == torch.empty_like(logits, device="meta").stride()
            return found if is_alike else torch.empty_like(logits).copy_(found)
        result = torch.empty_like(logits)
        images = max(1, min(self._num_images, ACCELERATOR_PIECE // (self.num_classes * self._num_pixels)))
        channels = max(1, min(self.num_classes, ACCELERATOR_PIECE // (images * self._num_pixels)))
        for image in range(0, self._num_images, images):
            part = slice(image, image + images)
            for first in range(0, self.num_classes, channels):
                last = min(first + channels, self.num_classes)
                shape = (len(logits[part]), last - first, *self._full_size)
                full = torch.empty(shape, dtype=self._dtype, device=logits.device)
                self._fill(full.flatten(2), part, first, last, *inputs)
                folded = _fold(_fold(full, 2, self._size[0]), 3, self._size[1])
                if may_overflow(logits, self._options.surrogate):
                    limit = torch.finfo(logits.dtype).max
                    folded.clamp_(-limit, limit)
                result[part, first:last] = folded
        return result

    def _fill(self, planes: Tensor, images: slice, first: int, last: int, *inputs: Any) -> None:
        tables, lse, by_risk, by_entropy, by_pairs = inputs
        gradient_kernel[self._num_blocks, len(planes)](
            self._planes[images], self._target[images] if self._upsample else self._target,
            tables, tables if by_pairs is None else by_pairs, by_risk, by_entropy,
            lse[images] if self._upsample else lse, planes,
            self._num_pixels, self.num_classes, first, last, self._options.ignore_index,
            *self._size, *self._full_size, *self._strides,
            planes.stride(0), planes.stride(1), planes.stride(-1),
            min(torch.finfo(planes.dtype).max, torch.finfo(torch.float32).max),
            **self._constants, PAIRS=by_pairs is not None, CLAMP=may_overflow(planes, self._options.surrogate),
        )  # fmt: skip


@lru_cache(maxsize=64)
def _on_device(coefficients: Coefficients, device: torch.device) -> Tensor:
    return torch.tensor(coefficients, dtype=torch.float64, device="cpu").to(device, non_blocking=True)
