"""Losses that shift, scale or perturb logits by the frequency of their class, and then take the cross-entropy."""

from collections.abc import Sequence

import torch
from torch import Tensor

from aucseg.losses.baselines.base import channels, finite_number
from aucseg.losses.baselines.reweighting import CrossEntropyLoss
from aucseg.losses.class_weights import check_class_counts, class_weights
from aucseg.tensors.dtypes import check_floating_point


def log_prior(class_counts: Tensor) -> Tensor:
    """Logarithm of the share of each class (K,), float64."""
    return torch.log(class_counts / class_counts.sum())


def post_hoc_logit_adjustment(logits: Tensor, class_counts: Tensor | Sequence[float], tau: float = 1.0) -> Tensor:
    r"""Adjusts the logits of a model trained with plain cross-entropy: :math:`z_c - \tau \log \pi_c`.

    The argmax of the result is the prediction that minimizes the balanced error (Menon et al., *Long-tail Learning via
    Logit Adjustment*, ICLR 2021).

    Args:
        logits: (B, K, *spatial), floating point.
        class_counts: Pixels of each class in the training set (K,).
        tau: Strength, at least 0; 0 changes nothing.

    Returns:
        Logits of the same shape and dtype.

    Raises:
        TypeError: Logits that are not floating point.
        ValueError: Counts that don't fit the logits, a negative `tau`.

    Example:
        >>> post_hoc_logit_adjustment(torch.zeros(1, 2), [75, 25])
        tensor([[0.2877, 1.3863]])
    """
    counts = check_class_counts(class_counts)
    check_floating_point(logits, "logits")
    if logits.ndim < 2 or logits.shape[1] != len(counts):
        raise ValueError(f"logits of shape {tuple(logits.shape)} don't have the {len(counts)} channels of class_counts")
    finite_number(tau, "tau")
    prior = log_prior(counts).to(logits.dtype).to(logits.device)
    return logits - tau * prior.view(-1, *[1] * (logits.ndim - 2))


class LogitAdjustmentLoss(CrossEntropyLoss):
    r"""Logit-adjusted cross-entropy.

    .. math:: -\log \frac{e^{z_y + \tau \log \pi_y}}{\sum_c e^{z_c + \tau \log \pi_c}}

    with :math:`\pi_c` the share of class c, mean over the valid pixels (Menon et al., *Long-tail Learning via Logit
    Adjustment*, ICLR 2021). Predict with the plain logits.

    Args:
        class_counts: Pixels of each class in the training set (K,).
        ignore_index: Pixels with this label don't count.
        tau: Strength, at least 0; 0 is cross-entropy.

    Raises:
        ValueError: Class counts that cannot be used, or an option out of its range.

    Example:
        >>> loss = LogitAdjustmentLoss([75, 25])
        >>> loss(torch.zeros(1, 2), torch.tensor([1]))  # -log 0.25
        tensor(1.3863)
    """

    uses_counts = True

    log_prior: Tensor

    def __init__(
        self,
        class_counts: Tensor | Sequence[float] | None = None,
        ignore_index: int = 255,
        *,
        tau: float = 1.0,
    ) -> None:
        super().__init__(class_counts, ignore_index)
        self.tau = finite_number(tau, "tau")
        self.keep("log_prior", log_prior(self.exact_counts))

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """See `LongTailLoss.loss`."""
        return super().loss(logits + channels(self.tau * self.log_prior, logits), target)


class BalancedSoftmaxLoss(LogitAdjustmentLoss):
    r"""Balanced softmax cross-entropy (Ren et al., *Balanced Meta-Softmax*, NeurIPS 2020).

    .. math:: -\log \frac{n_y e^{z_y}}{\sum_c n_c e^{z_c}}

    with n_c the count of class c, mean over the valid pixels: logit adjustment with :math:`\tau = 1`.

    Args:
        class_counts: Pixels of each class in the training set (K,).
        ignore_index: Pixels with this label don't count.

    Raises:
        ValueError: Class counts that cannot be used.

    Example:
        >>> loss = BalancedSoftmaxLoss([90, 10])
        >>> loss(torch.zeros(1, 2, 4), torch.tensor([[0, 0, 0, 1]]))  # -(3 log 0.9 + log 0.1) / 4
        tensor(0.6547)
    """

    def __init__(self, class_counts: Tensor | Sequence[float] | None = None, ignore_index: int = 255) -> None:
        super().__init__(class_counts, ignore_index, tau=1.0)


class VSLoss(LogitAdjustmentLoss):
    r"""Vector-scaling loss: logits scaled and shifted by class.

    .. math:: -\log \frac{e^{\Delta_y z_y + \iota_y}}{\sum_c e^{\Delta_c z_c + \iota_c}}, \qquad
              \Delta_c = (n_c / n_{\max})^\gamma, \quad \iota_c = \tau \log \pi_c

    mean over the valid pixels (Kini et al., *Label-Imbalanced and Group-Sensitive Classification under
    Overparameterization*, NeurIPS 2021). Predict with the plain logits.

    Args:
        class_counts: Pixels of each class in the training set (K,).
        ignore_index: Pixels with this label don't count.
        gamma: Strength of the scaling, at least 0.
        tau: Strength of the shift, at least 0.

    Raises:
        ValueError: Class counts that cannot be used, or an option out of its range.

    Example:
        >>> loss = VSLoss([90, 10], gamma=0.15, tau=1.0)
        >>> loss(torch.zeros(1, 2, 4), torch.tensor([[0, 0, 0, 1]]))  # logits of 0 have no scale: logit adjustment
        tensor(0.6547)
    """

    scale: Tensor

    def __init__(
        self,
        class_counts: Tensor | Sequence[float] | None = None,
        ignore_index: int = 255,
        *,
        gamma: float = 0.15,
        tau: float = 1.25,
    ) -> None:
        super().__init__(class_counts, ignore_index, tau=tau)
        finite_number(gamma, "gamma")
        self.keep("scale", (self.exact_counts / self.exact_counts.max()) ** gamma)

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """See `LongTailLoss.loss`."""
        return super().loss(logits * channels(self.scale, logits), target)


class LDAMLoss(CrossEntropyLoss):
    r"""Label-distribution-aware margin loss with deferred re-weighting.

    .. math:: -w_y \log \frac{e^{s (z_y - \Delta_y)}}{e^{s (z_y - \Delta_y)} + \sum_{c \ne y} e^{s z_c}}, \qquad
              \Delta_c = C / n_c^{1/4}

    with C such that the largest margin is `max_margin`. The weights w are 1 until `set_progress` is told that
    `drw_start` of the training is done, and the effective-number weights from then on; weighted mean over the valid
    pixels (Cao et al., *Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss*, NeurIPS 2019). Predict
    with the plain logits.

    Args:
        class_counts: Pixels of each class in the training set (K,).
        ignore_index: Pixels with this label don't count.
        max_margin: Margin of the rarest class, at least 0. The paper's 0.5 at scale 30 is a margin of 15 between
            logits that have no scale, so that margins up to there are worth a trial.
        scale: :math:`s`, above 0. The paper's code takes 30 with a classifier whose logits are cosines; logits of an
            ordinary classifier need no scale.
        drw_start: Share of the training, 0..1, after which classes are weighted; None for never.
        beta: Of the weights, see `aucseg.losses.class_weights.class_weights`.

    Raises:
        ValueError: Class counts that cannot be used, or an option out of its range.

    Example:
        >>> loss = LDAMLoss([810_000, 10_000, 100])
        >>> loss.margin
        tensor([0.0527, 0.1581, 0.5000], dtype=torch.float64)
        >>> loss.set_progress(0.9)  # call once a step or an epoch: weighted from here on
    """

    uses_counts = True

    margin: Tensor
    class_weight: Tensor

    def __init__(
        self,
        class_counts: Tensor | Sequence[float] | None = None,
        ignore_index: int = 255,
        *,
        max_margin: float = 0.5,
        scale: float = 1.0,
        drw_start: float | None = 0.8,
        beta: float | None = None,
    ) -> None:
        super().__init__(class_counts, ignore_index)
        if drw_start is not None and not 0 <= drw_start <= 1:
            raise ValueError(f"drw_start must lie in 0..1 or be None, got {drw_start}")
        self.scale = finite_number(scale, "scale", above_zero=True)
        self.drw_start = drw_start
        self.progress = 0.0
        margin = finite_number(max_margin, "max_margin") * (self.exact_counts.min() / self.exact_counts) ** 0.25
        self.keep("margin", margin)
        self.keep("class_weight", class_weights(self.exact_counts, "effective", beta=beta))

    def set_progress(self, progress: float) -> None:
        """Tells the loss how much of the training is done, 0..1: weights start at `drw_start`."""
        if not 0 <= progress <= 1:
            raise ValueError(f"progress must lie in 0..1, got {progress}")
        self.progress = progress

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """See `LongTailLoss.loss`."""
        valid = self.valid(target)
        margin = self.of_target(self.margin.to(logits.dtype), target).unsqueeze(1)
        shifted = logits.scatter_add(1, target.where(valid, 0).unsqueeze(1), -margin)
        losses = self.cross_entropy(self.scale * shifted, target)
        if self.drw_start is None or self.progress < self.drw_start:
            return self.mean(losses, valid)
        return self.mean(losses, self.of_target(self.class_weight.to(logits.dtype), target))


class BLVLoss(CrossEntropyLoss):
    r"""Cross-entropy with balancing logit variation: noise on the logits, the larger the rarer the class.

    .. math:: -\log \mathrm{softmax}\Big(z_c + \frac{\log (N / n_c)}{\max_k \log (N / n_k)} |\delta_c|\Big)_y, \qquad
              \delta_c \sim \mathcal N(0, \sigma^2) \text{ clipped to } [-1, 1]

    drawn for every pixel and channel, mean over the valid pixels (Wang et al., *Balancing Logit Variation for
    Long-Tailed Semantic Segmentation*, CVPR 2023, as in the released code). No noise in `eval()`. Predict with the
    plain logits.

    Args:
        class_counts: Pixels of each class in the training set (K,).
        ignore_index: Pixels with this label don't count.
        sigma: Standard deviation of the noise before clipping, above 0.
        generator: Source of the noise, on the logits' device; None for PyTorch's own.

    Raises:
        ValueError: Class counts that cannot be used, or an option out of its range.

    Example:
        >>> loss = BLVLoss([90, 10]).eval()  # no noise
        >>> loss(torch.zeros(1, 2, 4), torch.tensor([[0, 0, 0, 1]]))
        tensor(0.6931)
    """

    uses_counts = True

    variation: Tensor

    def __init__(
        self,
        class_counts: Tensor | Sequence[float] | None = None,
        ignore_index: int = 255,
        *,
        sigma: float = 4.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(class_counts, ignore_index)
        self.sigma = finite_number(sigma, "sigma", above_zero=True)
        self.generator = generator
        rarity = -log_prior(self.exact_counts)
        self.keep("variation", rarity / rarity.max())

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """See `LongTailLoss.loss`."""
        if self.training:
            noise = torch.empty_like(logits).normal_(0, self.sigma, generator=self.generator)
            logits = logits + noise.clamp_(-1, 1).abs_() * channels(self.variation, logits)
        return super().loss(logits, target)


class SeesawLoss(CrossEntropyLoss):
    r"""Seesaw loss: gradients on rare classes are turned down for pixels of frequent ones, unless they are mistaken.

    .. math:: -\log \frac{e^{z_y}}{e^{z_y} + \sum_{c \ne y} M_{yc} C_{yc} e^{z_c}}, \qquad
              M_{yc} = \min\big(1, (n_c / n_y)^p\big), \quad C_{yc} = \max\big(1, (\sigma_c / \sigma_y)^q\big)

    with :math:`\sigma` the softmax, a constant in the backward pass and :math:`\sigma_y` at least `eps` (Wang et al.,
    *Seesaw Loss for Long-Tailed Instance Segmentation*, CVPR 2021). The variant for pixels: n are the pixels of the
    training set where the paper counts instances as they come, and there is no objectness branch.

    Args:
        class_counts: Pixels of each class in the training set (K,).
        ignore_index: Pixels with this label don't count.
        p: Strength of the mitigation M, at least 0.
        q: Strength of the compensation C, at least 0.
        eps: Least :math:`\sigma_y` in C, as in the authors' code; above 0 and below 1.

    Raises:
        ValueError: Class counts that cannot be used, or an option out of its range.

    Example:
        >>> loss = SeesawLoss([90, 10], q=0.0)  # mitigation alone: M of the pixels of class 0 is (1 / 9)^0.8
        >>> loss(torch.zeros(1, 2, 4), torch.tensor([[0, 0, 0, 1]]))  # (3 log(1 + M) + log 2) / 4
        tensor(0.2926)
    """

    uses_counts = True

    log_counts: Tensor

    def __init__(
        self,
        class_counts: Tensor | Sequence[float] | None = None,
        ignore_index: int = 255,
        *,
        p: float = 0.8,
        q: float = 2.0,
        eps: float = 1e-2,
    ) -> None:
        super().__init__(class_counts, ignore_index)
        if not 0 < eps < 1:
            raise ValueError(f"eps must lie between 0 and 1, got {eps}")
        self.p, self.q, self.eps = finite_number(p, "p"), finite_number(q, "q"), eps
        self.keep("log_counts", self.exact_counts.log())

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """See `LongTailLoss.loss`."""
        with torch.no_grad():
            own = target.where(self.valid(target), 0).unsqueeze(1)
            counts = self.log_counts.to(logits.dtype)
            seesaw = (channels(counts, logits) - counts[own]).clamp_(max=0).mul_(self.p)
            log_p = logits.log_softmax(dim=1)
            log_own = log_p.gather(1, own).clamp_(min=torch.log(logits.new_tensor(self.eps)))
            seesaw += (log_p - log_own).clamp_(min=0).mul_(self.q)
            seesaw.scatter_(1, own, 0)
        return super().loss(logits + seesaw, target)
