"""Losses of overlap, from segmentation_models_pytorch: Dice and Lovász-softmax."""

from collections.abc import Sequence

from torch import Tensor

from aucseg.hints import import_extra
from aucseg.losses.baselines.base import LongTailLoss
from aucseg.losses.baselines.reweighting import CrossEntropyLoss


class DiceLoss(LongTailLoss):
    r"""Soft Dice loss over the classes that occur in the batch (Milletari et al., *V-Net*, 3DV 2016).

    .. math:: \frac{1}{|P|} \sum_{c \in P} \Big(1 - \frac{2 \sum_x p_c(x) [y(x) = c] + 2 s}
              {\sum_x p_c(x) + \sum_x [y(x) = c] + 2 s}\Big)

    with p the softmax, sums over the valid pixels of the batch and P the classes present. Computed by
    segmentation_models_pytorch, whose mean over all K classes is rescaled to the classes present.

    Args:
        class_counts: Not used.
        ignore_index: Pixels with this label don't count.
        smooth: s, at least 0.
        ce_weight: Weight of cross-entropy beside it, at least 0; 1 is the usual "CE + Dice".
    """

    uses_counts = False

    def __init__(
        self,
        class_counts: Tensor | Sequence[float] | None = None,
        ignore_index: int = 255,
        *,
        smooth: float = 0.0,
        ce_weight: float = 0.0,
    ) -> None:
        super().__init__(class_counts, ignore_index)
        for name, value in (("smooth", smooth), ("ce_weight", ce_weight)):
            if not value >= 0:
                raise ValueError(f"{name} must be at least 0, not {value}")
        self.ce_weight = ce_weight
        self.cross_entropy = CrossEntropyLoss(ignore_index=ignore_index)
        self.dice = import_extra("segmentation_models_pytorch.losses", "train").DiceLoss(
            "multiclass", smooth=smooth, ignore_index=ignore_index
        )

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """See :meth:`LongTailLoss.loss`."""
        num_classes = logits.shape[1]
        present = target.new_zeros(num_classes + 1)
        present.scatter_(0, target.where(self.valid(target), num_classes).flatten(), 1)
        mean: Tensor = self.dice(logits, target)
        value = mean * num_classes / present[:num_classes].sum().clamp(min=1)
        return value + self.ce_weight * self.cross_entropy.loss(logits, target) if self.ce_weight else value


class LovaszSoftmaxLoss(LongTailLoss):
    r"""Lovász-softmax loss: the Lovász extension of the Jaccard loss of the classes that occur in the batch.

    The mean over the classes present of :math:`\overline{\Delta_{J_c}}(m_c)`, with errors
    :math:`m_c(x) = |[y(x) = c] - p_c(x)|` (Berman et al., *The Lovász-Softmax Loss*, CVPR 2018). Computed by
    segmentation_models_pytorch.

    Args:
        class_counts: Not used.
        ignore_index: Pixels with this label don't count.
    """

    uses_counts = False

    def __init__(self, class_counts: Tensor | Sequence[float] | None = None, ignore_index: int = 255) -> None:
        super().__init__(class_counts, ignore_index)
        self.lovasz = import_extra("segmentation_models_pytorch.losses", "train").LovaszLoss(
            "multiclass", ignore_index=ignore_index
        )

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """See :meth:`LongTailLoss.loss`."""
        # The library computes in float32, and takes three dimensions for sigmoid scores. Without a valid pixel the
        # library returns an empty tensor, whose sum is a zero connected to the graph.
        loss: Tensor = self.lovasz(logits.float().unsqueeze(3), target.unsqueeze(2))
        return loss.sum().to(logits.dtype)
