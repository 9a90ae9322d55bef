"""The passes over the pixels as Triton kernels, for CUDA: most options, one launch a pass.

`fused_losses` does all of an ordinary loss with a handful of launches; `counts`, `sums` and `gradient`, with the
interface of `aucseg.losses.auc.torch_passes`, are its parts for all else: losses of several batches or processes,
weights of class pairs, Chebyshev polynomials, arithmetic in float64.
"""

import warnings
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from aucseg.dtypes import wide_dtype
from aucseg.losses.auc.checks import ONCE
from aucseg.losses.auc.options import PassOptions, may_overflow, working_dtype
from aucseg.losses.auc.pieces import ACCELERATOR_PIECE, as_planes
from aucseg.losses.auc.pixels import CrossEntropyWeights
from aucseg.losses.auc.triton_kernels import (
    BY_SUMS,
    count_kernel,
    fold_kernel,
    gradient_kernel,
    pair_sums_kernel,
    risk_kernel,
    sums_kernel,
    weights_kernel,
)
from aucseg.losses.auc.triton_limits import can_fuse as can_fuse  # with `offered` part of what a backend has
from aucseg.losses.auc.triton_limits import num_features
from aucseg.losses.auc.triton_limits import offered as offered

# Pixels of a program. Fewer where the channels of a pixel lie together: then they are in the cache for the next one.
BLOCK, BLOCK_CHANNELS_LAST = 1024, 256
# Sums by channel and label: pixels of a block, blocks of a program (not more, or float32 would lose digits), channels
# and at most so many labels.
PAIR_BLOCK, PAIR_BLOCKS, PAIR_CHANNELS, PAIR_LABELS = 64, 64, 16, 64
# More channels than that are copied plane by plane first: a cache does not hold them until their turn comes. With 150
# of them at full size the walk took 5.5 times as long as cross-entropy on an H100.
MOST_CHANNELS_LAST = 32


@lru_cache(maxsize=64)
def works_on(device: torch.device, *, by_pair: bool = False) -> bool:
    """Whether kernels can be built for a device; says why not, once.

    Args:
        device: The device.
        by_pair: Asks for the kernel that sums by channel and label, which has to be able to do more.
    """
    try:
        _try_out(device, by_pair)
    except Exception as error:  # no compiler, an old device, a driver that does not fit: Triton has no error for these
        if "out of memory" in str(error):  # says nothing about Triton
            raise
        what = "with pair weights and micro-batches " if by_pair else ""
        warnings.warn(
            f"the AUC loss {what}falls back to slower operations of torch: Triton does not work on {device} ({error})",
            stacklevel=2,
        )
        return False
    return True


def _try_out(device: torch.device, by_pair: bool) -> None:
    """Every kernel once; or the one that sums by channel and label."""
    options = PassOptions("square", 1.0, 0, "sigmoid", 255, cross_entropy=True)
    logits = torch.zeros(1, 2, 2, 2, dtype=torch.float32, device=device)
    target = torch.zeros(1, 4, 4, dtype=torch.int64, device=device)
    passes = _Passes(logits, target, options)
    if by_pair:
        passes.pair_sums(torch.zeros(target.shape, dtype=torch.float32, device=device))
        return
    risk, entropy, tables, lse = _losses(logits, target, None, options, one_vs_all=False)
    passes.gradient(tables, lse, risk, entropy)


def counts(target: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    """See `aucseg.losses.auc.operators.pixel_counts`; a label neither a class nor ignored is a device's error."""
    return _counts(target, num_classes, ignore_index)[:num_classes].to(wide_dtype(target.device))


def _counts(target: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    target = _plain(target).flatten()
    blocks = triton.cdiv(target.numel(), BLOCK)
    partial = torch.empty(blocks, num_classes + 1, dtype=torch.int32, device=target.device)
    if blocks:
        with torch.cuda.device_of(target):
            count_kernel[(blocks,)](target, partial, target.numel(), num_classes, ignore_index, BLOCK=BLOCK)
    total = partial.sum(0)
    message = f"a label is neither in 0..{num_classes - 1} nor the ignore label {ignore_index}"
    torch._assert_async(total[num_classes] == 0, message)
    return total


def _plain(target: Tensor) -> Tensor:
    return (target.view(torch.uint8) if target.dtype == torch.bool else target).contiguous()


def _fold(full: Tensor, dim: int, size: int) -> Tensor:
    """The gradient of upsampling ``full`` along a dimension, contiguous."""
    shape = list(full.shape)
    full_size, shape[dim] = shape[dim], size
    folded = torch.empty(shape, dtype=full.dtype, device=full.device)
    num_inner = full.stride(dim)
    num_taps = 2 * triton.cdiv(full_size, size) + 3
    grid = (triton.cdiv(folded.numel(), BLOCK),)
    fold_kernel[grid](full, folded, folded.numel(), size, full_size, num_inner, num_taps, BLOCK=BLOCK)
    return folded


class _Passes:
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
            "SCORES": options.scores,
            "CROSS_ENTROPY": options.cross_entropy,
            "SMOOTH": options.label_smoothing > 0,
            "UPSAMPLE": self._upsample,
            "BLOCK": block,
        }

    def empty_tables(self) -> Tensor:
        """Memory for the tables by class."""
        shape = (BY_SUMS.value + self.num_rows - 1, self.num_classes + 1)
        return torch.empty(shape, dtype=torch.float32, device=self._logits.device)

    def sums(self, tables: Tensor) -> tuple[Tensor, Tensor]:
        """Sums of features and of the cross-entropy, ``(2 J + 1, K)``, wide, and the log-sum-exp where it is needed."""
        device, options = self._logits.device, self._options
        shape = self._target.shape if options.needs_lse else (0,)
        lse = torch.empty(shape, dtype=self._dtype, device=device)
        # Of the last row only the first column is written, and used.
        num_programs = self._num_blocks * self._num_images
        partial = torch.empty(num_programs, self.num_rows, self.num_classes, dtype=self._dtype, device=device)
        if partial.numel():
            with torch.cuda.device_of(self._planes):
                sums_kernel[self._num_blocks, self._num_images](
                    self._planes, self._target, tables, lse, partial,
                    self._num_pixels, self.num_classes, options.ignore_index, options.margin,
                    *self._size, *self._full_size, *self._strides,
                    **self._constants, ROWS=self.num_rows,
                )  # fmt: skip
        return partial.sum(0, dtype=wide_dtype(device)), lse

    def pair_sums(self, lse: Tensor) -> Tensor:
        """Sums of the features of negatives by channel and label, ``(J, K, K)``, wide."""
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
                    self._num_pixels, num_classes, options.ignore_index, first, num_runs, options.margin,
                    *self._size, *self._full_size, *self._strides,
                    FORM=options.form, SCORES=options.scores, UPSAMPLE=self._upsample,
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
            by_pairs: Slopes by the sums of negatives, where these are by channel and label, ``(J, K + 1, K + 1)``.
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
            self._num_pixels, self.num_classes, first, last, self._options.ignore_index, self._options.margin,
            *self._size, *self._full_size, *self._strides,
            planes.stride(0), planes.stride(1), planes.stride(-1),
            min(torch.finfo(planes.dtype).max, torch.finfo(torch.float32).max),
            **self._constants, PAIRS=by_pairs is not None, CLAMP=may_overflow(planes, self._options.surrogate),
        )  # fmt: skip


def _tables(
    logits: Tensor, weight: Tensor | None, class_weight: Tensor | None, options: PassOptions, *by_sums: Tensor
) -> Tensor:
    """The tables of the kernels in the dtype of the arithmetic; ``weight`` None: 0."""
    dtype = working_dtype(logits, options.surrogate)
    ce = CrossEntropyWeights(class_weight, logits, dtype, options)
    weight = torch.zeros_like(ce.by_own) if weight is None else weight.to(dtype)
    rows = torch.stack([weight, ce.by_softmax, ce.by_own, F.pad(ce.by_channel, (0, 1))])
    return torch.cat([rows, *(F.pad(table.to(dtype), (0, 1)) for table in by_sums)])


def sums(
    logits: Tensor,
    target: Tensor,
    scored: Tensor,
    pixel_weight: Tensor | None,
    class_weight: Tensor | None,
    options: PassOptions,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `aucseg.losses.auc.operators.pixel_sums`; every channel is scored."""
    passes = _Passes(logits, target, options)
    total, lse = passes.sums(_tables(logits, pixel_weight, class_weight, options))
    # Copies: an operator may not return views of one tensor.
    num_features = passes.num_features
    positive, negative = total[:num_features].clone(), total[num_features : 2 * num_features].clone()
    if pixel_weight is None:
        negative = passes.pair_sums(lse)
    return positive, negative, total[-1, 0].clone(), lse


def gradient(
    positive: Tensor,
    negative: Tensor,
    entropy: Tensor,
    lse: Tensor,
    logits: Tensor,
    target: Tensor,
    scored: Tensor,
    pixel_weight: Tensor | None,
    class_weight: Tensor | None,
    options: PassOptions,
) -> Tensor:
    """See `aucseg.losses.auc.operators.pixel_gradient`."""
    by_pairs = None
    by_sums = [positive, negative]
    dtype = working_dtype(logits, options.surrogate)
    if pixel_weight is None:
        by_sums, by_pairs = [positive], F.pad(negative.to(dtype), (0, 1, 0, 1))
    tables = _tables(logits, pixel_weight, class_weight, options, *by_sums)
    one = torch.ones((), dtype=dtype, device=logits.device)
    return _Passes(logits, target, options).gradient(tables, lse, one, entropy.to(dtype), by_pairs)


def _losses(
    logits: Tensor, target: Tensor, class_weight: Tensor | None, options: PassOptions, one_vs_all: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Both losses, and what their gradient needs: the tables and the log-sum-exp."""
    passes, device = _Passes(logits, target, options), logits.device
    num_classes = passes.num_classes
    block = triton.next_power_of_2(num_classes + 1)
    if class_weight is None:
        class_weight = torch.ones(num_classes, dtype=torch.float32, device=device)
    tables, wide = passes.empty_tables(), torch.empty(3, num_classes + 1, dtype=torch.float64, device=device)
    num_pixels = _counts(target, num_classes, options.ignore_index)
    risk, entropy = (torch.empty((), dtype=torch.float32, device=device) for _ in range(2))
    with torch.cuda.device_of(logits):
        weights_kernel[(1,)](
            num_pixels, class_weight.contiguous(), tables, wide, num_classes, options.label_smoothing,
            ONE_VS_ALL=one_vs_all, BLOCK=block,
        )  # fmt: skip
        total, lse = passes.sums(tables)
        risk_kernel[(1,)](
            total, wide, tables, risk, entropy, num_classes, FORM=options.form, ROWS=passes.num_rows, BLOCK=block
        )
    return risk, entropy, tables, lse


class _FusedLosses(torch.autograd.Function):
    """`fused_losses` with their gradient."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, target: Tensor, class_weight: Tensor | None, options: PassOptions, one_vs_all: bool
    ) -> tuple[Tensor, Tensor]:
        risk, entropy, tables, lse = _losses(logits, target, class_weight, options, one_vs_all)
        ctx.save_for_backward(logits, target, tables, lse)
        ctx.options = options
        return risk, entropy

    @staticmethod
    def backward(ctx: Any, by_risk: Tensor, by_entropy: Tensor) -> tuple[Tensor | None, ...]:
        return _Gradient.apply(*ctx.saved_tensors, ctx.options, by_risk, by_entropy), None, None, None, None


class _Gradient(torch.autograd.Function):
    """The gradient of `fused_losses`, which has none of its own: ``create_graph=True`` is no error until it is used."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        target: Tensor,
        tables: Tensor,
        lse: Tensor,
        options: PassOptions,
        by_risk: Tensor,
        by_entropy: Tensor,
    ) -> Tensor:
        return _Passes(logits, target, options).gradient(tables, lse, by_risk, by_entropy)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> None:
        raise NotImplementedError(ONCE)


def fused_losses(
    logits: Tensor, target: Tensor, class_weight: Tensor | None, options: PassOptions, one_vs_all: bool
) -> tuple[Tensor, Tensor]:
    """The AUC loss with uniform pair weights and the mean cross-entropy, 0 where not asked for; differentiable once.

    Args:
        logits: As for `sums`; at least 2 channels.
        target: As for `sums`.
        class_weight: ``(K,)``, of the cross-entropy.
        options: What to compute; `offered`.
        one_vs_all: One class against all others instead of one against one.
    """
    risk, entropy = _FusedLosses.apply(logits, target, class_weight, options, one_vs_all)
    return risk, entropy
