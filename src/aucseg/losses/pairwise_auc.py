"""The pixel-level pairwise AUC loss: exact over every pair of pixels, linear in their number."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from aucseg.losses.auc.checks import (
    check_inputs,
    check_pair_weight,
    check_sums_are_enough,
    names_nearest_option,
)
from aucseg.losses.auc.module import AUCModule
from aucseg.losses.auc.objective import weighted_loss
from aucseg.losses.auc.options import AUCOptions, LossOptions, SurrogateOption


def pairwise_auc_loss(
    logits: Tensor,
    target: Tensor,
    surrogate: SurrogateOption = "square",
    *,
    margin: float = 1.0,
    scores: str = "sigmoid",
    strategy: str = "ovo",
    pair_weight: Tensor | None = None,
    ignore_index: int = 255,
    process_group: dist.ProcessGroup | None = None,
    max_fpr: float | None = None,
    check_finite: bool = False,
    validate_args: bool = True,
) -> Tensor:
    """The pairwise AUC loss as a function; see `PairwiseAUCLoss` for formula, arguments and errors.

    Args:
        logits: `(B, K, *spatial)` or `(N, K)`, floating point.
        target: `(B, *spatial)` or `(N,)`, integer.
        surrogate: See `PairwiseAUCLoss`, like all that follow.
        margin: The margin gamma.
        scores: Score function.
        strategy: One-vs-one or one-vs-all.
        pair_weight: Weights of the class pairs.
        ignore_index: Label of pixels that do not count.
        process_group: Ranks whose pixels are taken together.
        max_fpr: Share of the negatives that counts.
        check_finite: Whether to check the logits.
        validate_args: Whether to check the labels.

    Returns:
        Scalar, float32 (float64 for float64 logits).

    Raises:
        TypeError: Logits that are not floating point, or labels that are not integers.
        ValueError: Options out of their ranges, shapes that do not fit, or labels that are neither a class nor ignored.

    Example:
        >>> import torch
        >>> from aucseg.losses import pairwise_auc_loss
        >>> logits = torch.tensor([[4.0, -4.0], [4.0, -4.0], [-4.0, 4.0]])  # (N, K) also works
        >>> round(pairwise_auc_loss(logits, torch.tensor([0, 0, 1])).item(), 4)
        0.0006
        >>> round(pairwise_auc_loss(logits, torch.tensor([1, 1, 0])).item(), 4)
        1.9287
    """
    auc = AUCOptions(surrogate, margin, scores, strategy, ignore_index, max_fpr, check_finite, validate_args)
    check_pair_weight(pair_weight, auc)
    _check_process_group(process_group, auc)
    options = LossOptions(auc, pair_weight, process_group)
    check_inputs(logits, target, options)
    return weighted_loss(logits, target, options)


def _check_process_group(group: dist.ProcessGroup | None, options: AUCOptions) -> None:
    if group is None:
        return
    check_sums_are_enough(options, "which do not travel between processes: pass process_group=None")
    given: object = group
    if given is dist.GroupMember.NON_GROUP_MEMBER:
        raise ValueError(
            "this process is not in process_group, of which torch.distributed.new_group has made no group here: give "
            "each process the group that it is in, or None"
        )
    if isinstance(given, str | int):
        raise TypeError(f"process_group must be a group of torch.distributed, such as dist.group.WORLD, got {given!r}")


class PairwiseAUCLoss(AUCModule):
    r"""The pixel-level AUC loss of AUCSeg, exact over all pairs of pixels of the batch.

    For channel c the pixels of class c are positives, those of every other class a negatives:

    .. math:: L = \sum_{c \ne a} w_{ca} \; \mathrm{mean}_{m \in c,\, n \in a} \; \ell\big(f_c(x_m) - f_c(x_n)\big)

    with uniform weights over the ordered pairs of classes present (`"ovo"`), or one class against all other valid
    pixels, averaged over the classes present (`"ova"`). Surrogates of `t = f_c(x_m) - f_c(x_n)`:

    | surrogate         | l(t)                         | remark                                              |
    |-------------------|------------------------------|-----------------------------------------------------|
    | `"square"`        | `(margin - t)^2 / 2`         | the 1/2 is that of the released code                |
    | `"hinge"`         | `max(0, margin - t)`         | linear time for margin >= 1 and bounded scores,     |
    | `"squared_hinge"` | `max(0, margin - t)^2 / 2`   | otherwise by sorting, O(N log N) a channel          |
    | `"exponential"`   | `exp(-margin t)`             | saturates where `abs(margin f)` > 350 (MPS: 35)     |
    | `"logistic"`      | `log(1 + exp(-margin t))`    | to 1e-6 of its largest slope, see `SmoothSurrogate` |
    | `"sigmoid"`       | `1 / (1 + exp(margin t))`    | the same; symmetric, for labels with errors         |

    Source: Han et al., *AUCSeg: AUC-oriented Pixel-level Long-tail Semantic Segmentation*, NeurIPS 2024.

    Linear in pixels and channels, no pair is formed; the backward pass keeps logits and labels only. Arithmetic is
    float32 per pixel (float64 for float64 logits and identity scores) and float64 for sums, whatever the autocast
    dtype. It can be differentiated once, by a backward pass. A batch with fewer than two classes gives a zero that is
    connected to the graph. NaN logits of valid pixels give a NaN loss (in the channel of a class that does not occur
    they may not be looked at); infinite logits are scores of 0 and 1 with sigmoid scores; with softmax scores
    `-inf` is a score of 0 and `+inf` gives NaN, as identity scores do for both unless the surrogate saturates; ignored
    pixels never count, whatever their logits.

    Args:
        surrogate: One of the names above, a `SmoothSurrogate`, or a smooth function of the difference (a callable on
            tensors, for scores in [0, 1]; the margin is not used then).
        margin: The margin gamma, above 0.
        scores: `"sigmoid"` (the released code's), `"softmax"` or `"identity"`.
        strategy: `"ovo"` or `"ova"`.
        pair_weight: `(K, K)`, not negative, row = positives, column = negatives; normalized over the pairs present.
            `"ovo"` only.
        ignore_index: Label of pixels that do not count.
        process_group: Take the pixels of all ranks of this group together: every rank gets the loss of the whole, and
            the averaged gradients of data-parallel training are those of one process with the whole batch. None: this
            process alone.
        max_fpr: One-way partial AUC: of the negatives of each class (`"ova"`: of all negatives) only the
            `ceil(max_fpr n)` with the highest scores count. In (0, 1]; for hinge and squared hinge.
        check_finite: Raise a ValueError that names image and class if a logit is not finite. Waits for the device.
        validate_args: Check the labels when they are on the CPU. (CUDA reports a bad label later, by an assertion of
            the device; other accelerators may not notice.)

    Shape:
        - logits: `(B, K, *spatial)` with any number of spatial dimensions, or `(N, K)`; `K = 1`: one logit a
          pixel, labels 0 and 1, the binary AUC loss.
        - target: `(B, *spatial)` or `(N,)`, labels 0..K-1 or the ignore label, of any integer dtype but
          uint64, or bool.
        - output: scalar, float32 (float64 for float64 logits).

    Raises:
        ValueError: Unknown or unsuitable options; a shape, dtype, device or label that does not fit.
        TypeError: Inputs that are not tensors; an option that the loss does not have.
        NotImplementedError: Forward-mode derivatives, transforms of `torch.func` or second derivatives are asked for.

    Example:
        >>> import torch
        >>> from aucseg.losses import PairwiseAUCLoss
        >>> logits = torch.zeros(2, 3, 8, 8, requires_grad=True)
        >>> target = torch.arange(128).view(2, 8, 8) % 3
        >>> loss = PairwiseAUCLoss()(logits, target)
        >>> round(loss.item(), 4)
        0.5
        >>> loss.backward()
        >>> bool(logits.grad[0, 0, 0, 0] < 0)  # a pixel of class 0 raises its own score
        True
    """

    pair_weight: Tensor | None

    @names_nearest_option
    def __init__(
        self,
        surrogate: SurrogateOption = "square",
        *,
        margin: float = 1.0,
        scores: str = "sigmoid",
        strategy: str = "ovo",
        pair_weight: Tensor | None = None,
        ignore_index: int = 255,
        process_group: dist.ProcessGroup | None = None,
        max_fpr: float | None = None,
        check_finite: bool = False,
        validate_args: bool = True,
    ) -> None:
        super().__init__()
        self._options = AUCOptions(
            surrogate, margin, scores, strategy, ignore_index, max_fpr, check_finite, validate_args
        )
        check_pair_weight(pair_weight, self._options)
        self.keep("pair_weight", pair_weight)
        self.process_group = process_group

    @property
    def options(self) -> AUCOptions:
        """The options that do not change."""
        return self._options

    @property
    def process_group(self) -> dist.ProcessGroup | None:
        """Ranks whose pixels are taken together; may be set.

        Raises:
            TypeError: When set: it is not a process group.
            ValueError: When set: this process is not in it, or the loss is computed by sorting scores, which do not
                travel.
        """
        return self._process_group

    @process_group.setter
    def process_group(self, group: dist.ProcessGroup | None) -> None:
        _check_process_group(group, self._options)
        self._process_group = group

    def __deepcopy__(self, memo: dict[int, Any]) -> PairwiseAUCLoss:
        # A group cannot be copied; a copy of the loss, as an average of the weights makes one, is of the same ranks.
        memo[id(self._process_group)] = self._process_group
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        twin.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return twin

    def loss_options(self) -> LossOptions:
        """What to compute."""
        return LossOptions(self._options, self.pair_weight, self._process_group)

    def extra_repr(self) -> str:
        """The options that were chosen."""
        shown: dict[str, Any] = {
            name: getattr(self._options, name)
            for name in ("surrogate", "margin", "scores", "strategy", "ignore_index", "max_fpr")
        }
        return ", ".join(f"{name}={value!r}" for name, value in shown.items())


def auc_losses(loss: nn.Module) -> list[PairwiseAUCLoss]:
    """The AUC losses in a loss whose sums can be taken over several processes or micro-batches.

    Example:
        >>> from aucseg.losses import AUCSegLoss
        >>> len(auc_losses(AUCSegLoss())), auc_losses(AUCSegLoss(surrogate="hinge", margin=0.5))
        (1, [])
    """
    return [part for part in loss.modules() if isinstance(part, PairwiseAUCLoss) and part.options.form is not None]


@contextmanager
def in_process_group(loss: nn.Module, group: dist.ProcessGroup | None) -> Iterator[None]:
    """Within the context the AUC losses take the pixels of all processes of `group` together; None: this one's.

    Losses that are computed by sorting stay on their process.
    """
    parts = auc_losses(loss)
    before = [part.process_group for part in parts]
    try:
        for part in parts:
            part.process_group = group
        yield
    finally:
        for part, old in zip(parts, before, strict=True):
            part.process_group = old
