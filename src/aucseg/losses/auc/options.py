"""What is computed: from the user's options to the numbers that the passes over the pixels take.

`AUCOptions` are the user's, checked once. `LossOptions` say what one loss computes; a module makes them of its options
and of the tensors that move with it. `PassOptions` are their numbers: the custom operators take these one by one, as
operators of torch must.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from aucseg.losses.auc.checks import check_auc_options
from aucseg.losses.auc.separable import Separable
from aucseg.losses.auc.smooth import Coefficients, SmoothSurrogate
from aucseg.losses.auc.surrogates import choose_form, separable_form
from aucseg.tensors.dtypes import wide_dtype
from aucseg.tensors.labels import DEFAULT_IGNORE_INDEX

SurrogateOption = str | SmoothSurrogate | Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class AUCOptions:
    """The numbers and names among the options of `aucseg.losses.PairwiseAUCLoss`, which explains them.

    Attributes:
        form: The separable form in which the loss is computed from sums; None: by sorting.
    """

    surrogate: SurrogateOption = "square"
    margin: float = 1.0
    scores: str = "sigmoid"
    strategy: str = "ovo"
    ignore_index: int = DEFAULT_IGNORE_INDEX
    max_fpr: float | None = None
    check_finite: bool = False
    validate_args: bool = True
    form: Separable | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        check_auc_options(self)
        surrogate = self.surrogate
        if not isinstance(surrogate, str | SmoothSurrogate):
            surrogate = SmoothSurrogate(surrogate)
        object.__setattr__(self, "form", choose_form(surrogate, self.margin, self.scores, self.max_fpr))


@dataclass(frozen=True, eq=False)
class LossOptions:
    """What is computed of logits and labels: a weighted sum of the AUC loss and the cross-entropy.

    Attributes:
        auc: Options of the AUC loss; the ignore label is also that of the cross-entropy.
        pair_weight: Weights of the class pairs `(K, K)`, of the AUC loss.
        process_group: Ranks whose pixels are taken together.
        auc_weight: Weight of the AUC loss in the sum.
        ce_weight: Weight of the cross-entropy.
        class_weight: `(K,)`, of the cross-entropy.
        label_smoothing: Of the cross-entropy.
    """

    auc: AUCOptions
    pair_weight: Tensor | None = None
    process_group: dist.ProcessGroup | None = None
    auc_weight: float = 1.0
    ce_weight: float = 0.0
    class_weight: Tensor | None = None
    label_smoothing: float = 0.0

    @property
    def with_auc(self) -> bool:
        """Whether the AUC loss is wanted."""
        return self.auc_weight > 0

    @property
    def with_cross_entropy(self) -> bool:
        """Whether the cross-entropy is wanted."""
        return self.ce_weight > 0

    @property
    def form(self) -> Separable | None:
        """The separable form, if the AUC loss is wanted and has one."""
        return self.auc.form if self.with_auc else None

    @property
    def by_sorting(self) -> bool:
        """Whether the AUC loss is wanted and has no separable form."""
        return self.with_auc and self.auc.form is None

    def passes(self) -> PassOptions:
        """What the passes compute."""
        form = self.form
        return PassOptions(
            "" if form is None else form.key,
            1.0 if form is None else form.margin,
            0 if form is None else form.degree,
            self.auc.scores,
            int(self.auc.ignore_index),
            self.with_cross_entropy,
            self.label_smoothing if self.with_cross_entropy else 0.0,
        )


class LossFormula(NamedTuple):
    """What becomes of the sums of the passes where all is computed at once.

    Attributes:
        coefficients: `C[j][k]` of the surrogate, used where they depend on it alone.
        auc_weight: Weight of the AUC loss.
        ce_weight: Weight of the cross-entropy.
        one_vs_all: One class against all others instead of one against one.
    """

    coefficients: Coefficients
    auc_weight: float = 1.0
    ce_weight: float = 1.0
    one_vs_all: bool = False


class PassOptions(NamedTuple):
    """What the passes over the pixels compute.

    Attributes:
        form: `Separable.key` of the separable form, or `""` for no AUC loss.
        margin: Its margin.
        degree: Its degree.
        scores: `"sigmoid"`, `"softmax"` or `"identity"`.
        ignore_index: The ignore label.
        cross_entropy: Whether to sum the cross-entropy.
        label_smoothing: Of the cross-entropy.
    """

    form: str
    margin: float
    degree: int
    scores: str
    ignore_index: int
    cross_entropy: bool = False
    label_smoothing: float = 0.0

    @property
    def surrogate(self) -> Separable | None:
        """The separable form."""
        return separable_form(self.form, self.margin, self.degree, self.scores) if self.form else None

    @property
    def needs_lse(self) -> bool:
        """Whether the gradient needs the log-sum-exp of the logits."""
        return self.cross_entropy or self.scores == "softmax"


def working_dtype(logits: Tensor, form: Separable | None) -> torch.dtype:
    """Of per-pixel arithmetic: float32, or float64 for float64 logits and where the form needs it."""
    if logits.dtype == torch.float64 or (form is not None and form.needs_float64):
        return wide_dtype(logits.device)
    return torch.float32


def may_overflow(logits: Tensor, form: Separable | None) -> bool:
    """Whether the gradient may leave the range of the logits' dtype: an exponential of unbounded or steep scores."""
    return form is not None and form.may_overflow and working_dtype(logits, form) != logits.dtype
