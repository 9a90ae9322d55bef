"""What all losses of this package share: one interface, checks, upsampling, float32, means over valid pixels."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from aucseg.losses.class_weights import check_class_counts
from aucseg.tensors.dtypes import can_be_asked, is_mapped, wide_dtype, wide_sum, without_autocast
from aucseg.tensors.labels import assert_labels, check_ignore_index, check_labels, refuse_default_ignore_label
from aucseg.tensors.shapes import check_logits_and_target
from aucseg.tensors.upsampling import resize


class LongTailLoss(nn.Module):
    """A loss of logits against labels that may know how often the classes occur.

    Args:
        class_counts: Pixels of each class in the training set (K,). Classes with a count of zero are taken to be as
            rare as the rarest other class. Losses that don't use counts accept None.
        ignore_index: Pixels with this label don't count.
    """

    uses_counts = True

    class_counts: Tensor | None

    def __init__(self, class_counts: Tensor | Sequence[float] | None = None, ignore_index: int = 255) -> None:
        super().__init__()
        if class_counts is None and self.uses_counts:
            raise ValueError(f"{type(self).__name__} needs class_counts, the pixels of each class in the training set")
        check_ignore_index(ignore_index)
        self.ignore_index = int(ignore_index)
        self._of_classes: dict[str, Tensor] = {}
        # Tells where the module is: an integer, so that half() and the like leave it alone.
        self.register_buffer("_place", torch.empty(0, dtype=torch.int64), persistent=False)
        self.class_counts = None
        if class_counts is not None:
            self.keep("class_counts", check_class_counts(class_counts))

    @property
    def exact_counts(self) -> Tensor:
        """Class counts (K,), float64 on the CPU, from which other values of classes are made."""
        return self._of_classes["class_counts"]

    def keep(self, name: str, values: Tensor) -> None:
        """Keeps values of classes (K,), given on the CPU, as an attribute that goes where the module goes.

        Unlike a buffer it stays out of checkpoints and exact where the module is turned into half precision; float64
        becomes float32 on a device that has no float64 (`wide_dtype`).
        """
        self._of_classes[name] = values
        self._put(name)

    def _put(self, name: str) -> None:
        values, device = self._of_classes[name], self.get_buffer("_place").device
        setattr(self, name, (values.to(wide_dtype(device)) if values.dtype == torch.float64 else values).to(device))

    def _apply(self, fn: Any, *args: Any, **kwargs: Any) -> "LongTailLoss":
        super()._apply(fn, *args, **kwargs)  # type: ignore[no-untyped-call]
        for name in self._of_classes:
            self._put(name)
        return self

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Computes the loss.

        Args:
            logits: (B, K, *spatial), floating point; (N, K) goes with (N,) labels. Smaller than the target, they are
                upsampled (bilinear, `align_corners=False`). Float16 and bfloat16 are computed in float32.
            target: Labels (B, *spatial), integers in `0..K - 1` or `ignore_index`; bool with two classes.

        Returns:
            A scalar, float32 (float64 for float64 logits); a zero connected to the graph where no pixel is valid.

        Raises:
            TypeError: No tensors, logits that are not floating point, labels that are not integers.
            ValueError: Shapes that don't fit, labels out of range (on a CPU; CUDA and compiled code report these as a
                RuntimeError, other devices do not look).
        """
        target = self._check(logits, target)
        for name in self._of_classes:
            if getattr(self, name).device != self.get_buffer("_place").device:  # filled after it was made on `meta`
                self._put(name)
        with without_autocast(logits.device):
            wide = resize(logits if logits.dtype == torch.float64 else logits.float(), target.shape[1:])
            is_own = wide is not logits
            if target.ndim == 1:
                wide, target = wide.unsqueeze(2), target.unsqueeze(1)
            wide, target = wide.flatten(2), target.flatten(1)
            return self.loss(self._blanked(wide, target, in_place=is_own), target)

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Computes the loss of logits (B, K, P) in float32 or float64 against labels (B, P), int64."""
        raise NotImplementedError

    def set_progress(self, progress: float) -> None:
        """Tells the loss how much of the training is done, 0..1. For losses with a schedule; others ignore it."""

    def mean(self, losses: Tensor, weight: Tensor) -> Tensor:
        """Weighted mean of `losses` (B, P), summed by `wide_sum`; zero where the weights are."""
        total, norm = wide_sum(losses * weight), wide_sum(weight)
        return (total / norm.clamp(min=torch.finfo(norm.dtype).tiny)).to(losses.dtype)

    def valid(self, target: Tensor) -> Tensor:
        """Marks the pixels that count."""
        return target != self.ignore_index

    def _blanked(self, logits: Tensor, target: Tensor, in_place: bool) -> Tensor:
        """Logits without those of ignored pixels, whose weight 0 is not enough: 0 times an infinity is NaN."""
        ignored = ~self.valid(target)
        if can_be_asked(logits, target) and bool(logits.transpose(1, 2)[ignored].isfinite().all()):
            return logits
        ignored = ignored.unsqueeze(1)
        in_place = in_place and not is_mapped(logits, target)
        return logits.masked_fill_(ignored, 0) if in_place else logits.masked_fill(ignored, 0)

    def of_target(self, values: Tensor, target: Tensor) -> Tensor:
        """Value of each pixel's class, (B, P), from (K,); zero at ignored pixels."""
        valid = self.valid(target)
        return values[target.where(valid, 0)].where(valid, 0)

    def _check(self, logits: Tensor, target: Tensor) -> Tensor:
        check_logits_and_target(logits, target)
        target = target.long()
        num_classes = logits.shape[1]
        if num_classes < 2:
            raise ValueError("logits need at least 2 channels; one logit z is the two logits (0, z)")
        refuse_default_ignore_label(self.ignore_index, num_classes)
        if self.class_counts is not None and len(self.class_counts) != num_classes:
            raise ValueError(
                f"logits have {num_classes} channels, but class_counts has {len(self.class_counts)} classes"
            )
        if can_be_asked(target) and target.numel():
            check_labels(target, num_classes, self.ignore_index)
        elif not is_mapped(target):
            assert_labels(target, num_classes, self.ignore_index)
        return target


def finite_number(value: Any, name: str, *, above_zero: bool = False) -> float:
    """Returns an option of a loss that must be a finite number and at least, or above, 0.

    Raises:
        ValueError: It is not.

    Example:
        >>> finite_number(float("nan"), "tau")
        Traceback (most recent call last):
        ...
        ValueError: tau must be a finite number of at least 0, got nan
    """
    is_number = isinstance(value, (int, float)) and math.isfinite(value)
    if not is_number or value < 0 or (above_zero and value == 0):
        raise ValueError(f"{name} must be a finite number {'above' if above_zero else 'of at least'} 0, got {value!r}")
    return float(value)


def channels(values: Tensor, like: Tensor) -> Tensor:
    """Shapes values of classes (K,) for logits (B, K, P), in their dtype."""
    return values.to(like.dtype).view(1, -1, 1)
