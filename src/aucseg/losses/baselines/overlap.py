"""Losses of overlap, alone or with cross-entropy beside them: Dice, Jaccard metric loss and Lovász-softmax."""

from collections.abc import Sequence

import torch
from torch import Tensor

from aucseg.losses.baselines.base import finite_number
from aucseg.losses.baselines.reweighting import CrossEntropyLoss
from aucseg.tensors.dtypes import can_be_asked, wide_dtype, wide_sum


class OverlapLoss(CrossEntropyLoss):
    """Mean over the classes that occur in the batch of a loss of their overlap, and cross-entropy beside it.

    Args:
        class_counts: Not used.
        ignore_index: Pixels with this label don't count.
        ce_weight: Weight of cross-entropy beside it, at least 0.
    """

    def __init__(
        self,
        class_counts: Tensor | Sequence[float] | None = None,
        ignore_index: int = 255,
        *,
        ce_weight: float = 0.0,
    ) -> None:
        super().__init__(class_counts, ignore_index)
        self.ce_weight = finite_number(ce_weight, "ce_weight")

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """See `LongTailLoss.loss`."""
        value = self.overlap(logits.softmax(dim=1), target).to(logits.dtype)
        return value + self.ce_weight * super().loss(logits, target) if self.ce_weight else value

    def overlap(self, p: Tensor, target: Tensor) -> Tensor:
        """Loss of the probabilities (B, K, P) against labels (B, P), a scalar."""
        raise NotImplementedError


class SmoothedOverlapLoss(OverlapLoss):
    """A loss of overlap from sums over the pixels, smoothed.

    Args:
        class_counts: Not used.
        ignore_index: Pixels with this label don't count.
        smooth: What is added to both sides of the ratio, at least 0.
        ce_weight: Weight of cross-entropy beside it, at least 0.
    """

    def __init__(
        self,
        class_counts: Tensor | Sequence[float] | None = None,
        ignore_index: int = 255,
        *,
        smooth: float = 0.0,
        ce_weight: float = 0.0,
    ) -> None:
        super().__init__(class_counts, ignore_index, ce_weight=ce_weight)
        self.smooth = finite_number(smooth, "smooth")

    def sums(self, p: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Sums over the valid pixels, each (K,) in `wide_dtype`.

        Returns:
            Of the probabilities at the pixels of their class, of all probabilities, and of the pixels of each class.
        """
        wide, valid = wide_dtype(p.device), self.valid(target).unsqueeze(1)
        is_own = (target.unsqueeze(1) == torch.arange(p.shape[1], device=p.device).view(1, -1, 1)) & valid
        own, total = (p.where(mask, 0).sum(dim=(0, 2), dtype=wide) for mask in (is_own, valid))
        return own, total, is_own.sum(dim=(0, 2)).to(wide)


class DiceLoss(SmoothedOverlapLoss):
    r"""Soft Dice loss over the classes that occur in the batch (Milletari et al., *V-Net*, 3DV 2016).

    .. math:: \frac{1}{|P|} \sum_{c \in P} \Big(1 - \frac{2 \sum_x p_c(x) [y(x) = c] + 2 s}
              {\sum_x p_c(x) + \sum_x [y(x) = c] + 2 s}\Big)

    with p the softmax, sums over the valid pixels of the batch and P the classes present.

    Args:
        class_counts: Not used.
        ignore_index: Pixels with this label don't count.
        smooth: :math:`s`, at least 0.
        ce_weight: Weight of cross-entropy beside it, at least 0; 1 is the usual "CE + Dice", `ce-dice` by name.

    Raises:
        ValueError: An option out of its range.

    Example:
        >>> DiceLoss()(torch.zeros(1, 2, 4), torch.tensor([[0, 0, 0, 1]]))  # (1 - 3/5 + 1 - 1/3) / 2
        tensor(0.5333)
    """

    def overlap(self, p: Tensor, target: Tensor) -> Tensor:
        """See `OverlapLoss.overlap`."""
        own, total, count = self.sums(p, target)
        return _mean_of_present(total + count - 2 * own, total + count + 2 * self.smooth, count)


class JaccardMetricLoss(SmoothedOverlapLoss):
    r"""Jaccard metric loss (JML): the soft Jaccard loss that is a metric, over the classes that occur in the batch.

    .. math:: \frac{1}{|P|} \sum_{c \in P} \Big(1 - \frac{\|p_c\|_1 + \|y_c\|_1 - \|p_c - y_c\|_1 + 2 s}
              {\|p_c\|_1 + \|y_c\|_1 + \|p_c - y_c\|_1 + 2 s}\Big)

    with p the softmax, :math:`y_c(x) = [y(x) = c]`, norms over the valid pixels of the batch and P the classes present
    (Wang et al., *Jaccard Metric Losses: Optimizing the Jaccard Index with Soft Labels*, NeurIPS 2023; the union over
    the whole batch, as in the authors' code). For labels that are one class each, as here, this is
    :math:`1 - \sum_x p_c y_c / \sum_x (p_c + y_c - p_c y_c)`, the soft Jaccard loss; what the paper gains by soft
    labels is not part of it.

    Args:
        class_counts: Not used.
        ignore_index: Pixels with this label don't count.
        smooth: :math:`s`, at least 0.
        ce_weight: Weight of cross-entropy beside it, at least 0; 1/3 has the paper's shares, a quarter and three
            quarters. `ce-jml` by name has 1.

    Raises:
        ValueError: An option out of its range.

    Example:
        >>> JaccardMetricLoss()(torch.zeros(1, 2, 4), torch.tensor([[0, 0, 0, 1]]))  # (1 - 3/7 + 1 - 1/5) / 2
        tensor(0.6857)
    """

    def overlap(self, p: Tensor, target: Tensor) -> Tensor:
        """See `OverlapLoss.overlap`."""
        own, total, count = self.sums(p, target)
        return _mean_of_present(total + count - 2 * own, total + count - own + self.smooth, count)


class LovaszSoftmaxLoss(OverlapLoss):
    r"""Lovász-softmax loss: the Lovász extension of the Jaccard loss of the classes that occur in the batch.

    The mean over the classes present of :math:`\overline{\Delta_{J_c}}(m_c)`, with errors
    :math:`m_c(x) = |[y(x) = c] - p_c(x)|` of the valid pixels of the batch (Berman et al., *The Lovász-Softmax Loss*,
    CVPR 2018).

    Args:
        class_counts: Not used.
        ignore_index: Pixels with this label don't count.
        ce_weight: Weight of cross-entropy beside it, at least 0; `ce-lovasz` by name has 1.

    Example:
        >>> LovaszSoftmaxLoss()(torch.zeros(1, 2, 4), torch.tensor([[0, 0, 0, 1]]))  # all errors are 1/2
        tensor(0.5000)
    """

    def overlap(self, p: Tensor, target: Tensor) -> Tensor:
        """See `OverlapLoss.overlap`."""
        num_classes, labels, valid = p.shape[1], target.flatten(), self.valid(target).flatten()
        is_present = torch.zeros(num_classes + 1, dtype=torch.bool, device=p.device)
        is_present = is_present.scatter_(0, labels.where(valid, num_classes), True)[:num_classes]
        # Absent classes are passed over where asking for them does not wait for a device; one is a connected zero.
        losses = []
        classes = (is_present.nonzero().flatten().tolist() or [0]) if can_be_asked(p) else range(num_classes)
        for class_id in classes:
            is_own = (labels == class_id) & valid
            errors = (is_own.to(p.dtype) - p[:, class_id].flatten()).abs().where(valid, 0)
            slopes = _lovasz_slopes(errors.detach(), is_own, valid)
            losses.append(wide_sum(errors * slopes).where(is_present[class_id], 0))
        return torch.stack(losses).sum() / is_present.sum().clamp(min=1)


def _lovasz_slopes(errors: Tensor, is_own: Tensor, valid: Tensor) -> Tensor:
    """By how much the Jaccard loss grows with each pixel (N,), mistaken in the order of their errors."""
    order = errors.where(valid, -1).argsort(descending=True, stable=True)
    is_own_sorted, count = is_own[order], is_own.sum()
    # In integers, whose running sums are exact, and the same in every order of the additions.
    intersection, union = count - is_own_sorted.cumsum(0), count + (~is_own_sorted).cumsum(0)
    jaccard = 1 - intersection.to(wide_dtype(errors.device)) / union.clamp(min=1)
    slopes = jaccard.diff(prepend=jaccard.new_zeros(1))
    return torch.empty_like(slopes).scatter_(0, order, slopes)


def _mean_of_present(numerator: Tensor, denominator: Tensor, count: Tensor) -> Tensor:
    is_present = count > 0
    ratios = numerator.where(is_present, 0) / denominator.where(is_present, 1)
    return ratios.sum() / is_present.sum().clamp(min=1)
