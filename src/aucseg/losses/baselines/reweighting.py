"""Losses that weigh pixels: by their class (weighted cross-entropy), by their difficulty (focal, OHEM), or both."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from aucseg.hints import check_choice
from aucseg.losses.baselines.base import LongTailLoss, finite_number
from aucseg.losses.class_weights import WeightRule, class_weights
from aucseg.tensors.dtypes import wide_sum


class CrossEntropyLoss(LongTailLoss):
    r"""Cross-entropy, the mean of :math:`-\log p_y` over the valid pixels.

    Args:
        class_counts: Not used.
        ignore_index: Pixels with this label don't count.

    Example:
        >>> loss = CrossEntropyLoss()
        >>> loss(torch.zeros(1, 4, 2, 2), torch.zeros(1, 2, 2, dtype=torch.long))  # log 4
        tensor(1.3863)
    """

    uses_counts = False

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """See `LongTailLoss.loss`."""
        return self.mean(self.cross_entropy(logits, target), self.valid(target))

    def cross_entropy(self, logits: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy of each pixel (B, P), zero at ignored pixels."""
        return F.cross_entropy(logits, target, ignore_index=self.ignore_index, reduction="none")


class WeightedCrossEntropyLoss(CrossEntropyLoss):
    r"""Class-weighted cross-entropy :math:`\sum_x w_{y(x)} (-\log p_{y(x)}) / \sum_x w_{y(x)}` over the valid pixels.

    The rules are those of `aucseg.losses.class_weights.class_weights`, which names their sources.

    Args:
        class_counts: Pixels of each class in the training set (K,).
        ignore_index: Pixels with this label don't count.
        rule: `"inverse"`, `"median"`, `"effective"` or `"enet"`.
        **options: Options of the rule, such as `power` or `beta`.

    Raises:
        ValueError: Class counts that cannot be used, or an option out of its range.

    Example:
        >>> loss = WeightedCrossEntropyLoss([900, 100], rule="inverse")
        >>> loss.class_weight
        tensor([0.5556, 5.0000])
    """

    uses_counts = True

    class_weight: Tensor

    def __init__(
        self,
        class_counts: Tensor | Sequence[float] | None = None,
        ignore_index: int = 255,
        *,
        rule: WeightRule = "inverse",
        **options: Any,
    ) -> None:
        super().__init__(class_counts, ignore_index)
        self.keep("class_weight", class_weights(self.exact_counts, rule, **options))

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """See `LongTailLoss.loss`."""
        weight = self.of_target(self.class_weight.to(logits.dtype), target)
        return self.mean(self.cross_entropy(logits, target), weight)


class DisAlignLoss(WeightedCrossEntropyLoss):
    r"""Generalized re-weighted cross-entropy of DisAlign's second stage: weights :math:`w_c \propto (1 / \pi_c)^\rho`.

    It trains the head `aucseg.models.DisAlignModel`. Weighted mean over the valid pixels (Zhang et al., *Distribution
    Alignment: A Unified Framework for Long-Tail Visual Recognition*, CVPR 2021).

    Args:
        class_counts: Pixels of each class in the training set (K,).
        ignore_index: Pixels with this label don't count.
        rho: How far the aligned distribution is balanced, at least 0: 0 leaves it, 1 makes all classes weigh the same.

    Raises:
        ValueError: Class counts that cannot be used, or an option out of its range.

    Example:
        >>> loss = DisAlignLoss([90, 10], rho=0.0)  # weights of 1
        >>> loss(torch.zeros(1, 2, 4), torch.tensor([[0, 0, 0, 1]]))
        tensor(0.6931)
    """

    def __init__(
        self,
        class_counts: Tensor | Sequence[float] | None = None,
        ignore_index: int = 255,
        *,
        rho: float = 0.3,
    ) -> None:
        super().__init__(class_counts, ignore_index, rule="inverse", power=finite_number(rho, "rho"))


class FocalLoss(CrossEntropyLoss):
    r"""Focal loss (Lin et al., *Focal Loss for Dense Object Detection*, ICCV 2017).

    With `activation="softmax"`, the form for classes that exclude each other,

    .. math:: -(1 - p_y)^\gamma \log p_y

    with `activation="sigmoid"`, the paper's, every channel is a detector of its own:

    .. math:: -\sum_c (1 - p^t_c)^\gamma \log p^t_c, \qquad
              p^t_c = \sigma(z_c) \text{ if } c = y \text{ else } \sigma(-z_c)

    Mean over the valid pixels.

    Args:
        class_counts: Not used.
        ignore_index: Pixels with this label don't count.
        gamma: Focusing parameter, at least 0; 0 is cross-entropy.
        activation: `"softmax"` or `"sigmoid"`.

    Raises:
        ValueError: An option out of its range.

    Example:
        >>> loss = FocalLoss(gamma=2)
        >>> loss(torch.zeros(1, 2, 3), torch.zeros(1, 3, dtype=torch.long))  # (1 - 1/2)^2 log 2
        tensor(0.1733)
    """

    def __init__(
        self,
        class_counts: Tensor | Sequence[float] | None = None,
        ignore_index: int = 255,
        *,
        gamma: float = 2.0,
        activation: Literal["softmax", "sigmoid"] = "softmax",
    ) -> None:
        super().__init__(class_counts, ignore_index)
        check_choice("activation", activation, ("softmax", "sigmoid"))
        self.gamma = finite_number(gamma, "gamma")
        self.activation = activation

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """See `LongTailLoss.loss`."""
        return self.mean(self.focal(logits, target), self.valid(target))

    def focal(self, logits: Tensor, target: Tensor) -> Tensor:
        """Focal loss of each pixel (B, P)."""
        if self.activation == "softmax":
            return self._focus(-self.cross_entropy(logits, target))
        own = torch.zeros_like(logits, dtype=torch.bool)
        own.scatter_(1, target.where(self.valid(target), 0).unsqueeze(1), True)
        return self._focus(F.logsigmoid(logits.where(own, -logits))).sum(dim=1)

    def _focus(self, log_p: Tensor) -> Tensor:
        # 1 - p is kept off 0, where the derivative of its power is infinite for gamma < 1.
        return -((-torch.expm1(log_p)).clamp(min=torch.finfo(log_p.dtype).eps) ** self.gamma) * log_p


class ClassBalancedFocalLoss(FocalLoss):
    r"""Class-balanced focal loss: `FocalLoss` with the weights of the effective numbers of the classes.

    .. math:: w_y \, \mathrm{focal}(z, y), \qquad w_c \propto (1 - \beta) / (1 - \beta^{n_c}), \quad \sum_c w_c = K

    Mean over the valid pixels (Cui et al., *Class-Balanced Loss Based on Effective Number of Samples*, CVPR 2019).

    Args:
        class_counts: Pixels of each class in the training set (K,).
        ignore_index: Pixels with this label don't count.
        gamma: Focusing parameter, at least 0.
        activation: `"softmax"` or `"sigmoid"`.
        beta: See `aucseg.losses.class_weights.class_weights`.

    Raises:
        ValueError: Class counts that cannot be used, or an option out of its range.

    Example:
        >>> loss = ClassBalancedFocalLoss([90, 10], gamma=0.0)
        >>> loss(torch.zeros(1, 2, 4), torch.tensor([[0, 0, 0, 1]]))  # log 2, times the mean weight of the pixels
        tensor(0.4708)
    """

    uses_counts = True

    class_weight: Tensor

    def __init__(
        self,
        class_counts: Tensor | Sequence[float] | None = None,
        ignore_index: int = 255,
        *,
        gamma: float = 2.0,
        activation: Literal["softmax", "sigmoid"] = "softmax",
        beta: float | None = None,
    ) -> None:
        super().__init__(class_counts, ignore_index, gamma=gamma, activation=activation)
        self.keep("class_weight", class_weights(self.exact_counts, "effective", beta=beta))

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """See `LongTailLoss.loss`."""
        weight = self.of_target(self.class_weight.to(logits.dtype), target)
        return self.mean(self.focal(logits, target) * weight, self.valid(target))


class OHEMCrossEntropyLoss(CrossEntropyLoss):
    r"""Cross-entropy of the hard pixels: online hard example mining.

    The mean of :math:`-\log p_y` over the valid pixels with :math:`p_y \le \max(\theta, p_{(k)})`, where
    :math:`p_{(k)}` is the k-th smallest :math:`p_y` and k the least number of pixels to keep (Shrivastava et al.,
    *Training Region-based Object Detectors with Online Hard Example Mining*, CVPR 2016; per pixel as is usual in
    segmentation).

    Args:
        class_counts: Not used.
        ignore_index: Pixels with this label don't count.
        threshold: :math:`\theta`, in 0..1: a pixel whose own class is less probable is hard.
        min_kept: Least share of the valid pixels to keep, above 0 and at most 1.

    Raises:
        ValueError: An option out of its range.

    Example:
        >>> loss = OHEMCrossEntropyLoss(threshold=0.5, min_kept=0.25)
        >>> loss(torch.tensor([[0.0, 0.0], [9.0, 0.0]]), torch.tensor([0, 0]))  # the second pixel is easy
        tensor(0.6931)
    """

    def __init__(
        self,
        class_counts: Tensor | Sequence[float] | None = None,
        ignore_index: int = 255,
        *,
        threshold: float = 0.7,
        min_kept: float = 1 / 16,
    ) -> None:
        super().__init__(class_counts, ignore_index)
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold must lie in 0..1, got {threshold}")
        if not 0 < min_kept <= 1:
            raise ValueError(f"min_kept must be above 0 and at most 1, got {min_kept}")
        self.threshold = threshold
        self.min_kept = min_kept

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """See `LongTailLoss.loss`."""
        losses, valid = self.cross_entropy(logits, target), self.valid(target)
        probability = torch.exp(-losses.detach()).where(valid, torch.inf)
        # One more, so that there is a smallest without a pixel, too.
        ascending = F.pad(probability.flatten(), (0, 1), value=torch.inf).sort().values
        # The k-th smallest without waiting for the device to know k.
        kth = (wide_sum(valid) * self.min_kept).ceil().long().sub(1).clamp(min=0)
        limit = ascending.gather(0, kth.view(1)).clamp(min=self.threshold)
        return self.mean(losses, valid & (probability <= limit))
