"""The loss in the heads of mmsegmentation, of a batch as it comes or of one in parts."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from mmseg.registry import MODELS
from torch import Tensor, nn

from aucseg.losses import AUCSegLoss
from aucseg.losses.auc.class_sums import ClassSums, with_value
from aucseg.losses.pairwise_auc import in_process_group


class SumsOfBatch:
    """The sums of a batch in parts, for every call of a loss within a forward pass.

    A segmentor has several losses (decode head, auxiliary heads), and a head may call its loss more than once. The
    calls come in the same order for every part.
    """

    def __init__(self) -> None:
        self._sums: list[ClassSums] = []
        self._num_calls = 0
        self._share = 1.0
        self._num_complete: int | None = None

    def next_part(self, share: float) -> None:
        """Called before each forward pass, with the part's share of the images."""
        self._share, self._num_calls = share, 0

    def first_pass_is_over(self) -> None:
        """From now on the calls give losses."""
        self._num_complete = 0

    def __call__(self, loss: AUCSegLoss, logits: Tensor, label: Tensor) -> Tensor:
        """In the first pass 0. In the second the value of the whole batch, with a gradient to be weighted by share."""
        call, self._num_calls = self._num_calls, self._num_calls + 1
        if self._num_complete is None:
            sums = loss.class_sums(logits, label)
            if call == len(self._sums):
                self._sums.append(sums)
            else:
                self._sums[call] += sums
            return logits.new_zeros(())
        if call == self._num_complete:  # processes need not have the same number of parts
            self._sums[call] = self._sums[call].all_reduced(loss.process_group)
            self._num_complete += 1
        value = loss.given_sums(self._sums[call], logits, label)
        return with_value(value, value.detach(), 1 / self._share)


@MODELS.register_module(name="AUCSegLoss")
class MMSegAUCSegLoss(nn.Module):
    """`aucseg.AUCSegLoss` as a `loss_decode` of mmsegmentation's heads, in place of their cross-entropy.

    Args:
        loss_weight: Factor of the whole loss.
        loss_name: Key of the loss in the log; must contain `loss` to be trained on.
        use_sigmoid: Must be False; accepted, like `avg_non_ignore`, because a configuration inherits it from the
            cross-entropy that this loss replaces.
        avg_non_ignore: Not used: ignored pixels never count.
        global_auc: With several processes, whether the loss is that of the pixels of all of them (sums travel, no
            pixels); else each process has that of its own, which are averaged. Losses that are computed by sorting
            always are of one process.
        **options: Options of `aucseg.AUCSegLoss`; `ignore_index` must be that of the head.

    Raises:
        ValueError: For a `loss_name` that mmengine would only log, for `use_sigmoid=True`, and what
            `aucseg.AUCSegLoss` refuses.
    """

    def __init__(
        self,
        loss_weight: float = 1.0,
        loss_name: str = "loss_aucseg",
        use_sigmoid: bool = False,
        avg_non_ignore: bool = True,
        global_auc: bool = True,
        **options: Any,
    ) -> None:
        super().__init__()
        if use_sigmoid:
            raise ValueError(
                "AUCSegLoss has a softmax cross-entropy and cannot inherit use_sigmoid=True: write "
                "loss_decode=dict(_delete_=True, type='AUCSegLoss')"
            )
        if "loss" not in loss_name:
            raise ValueError(f"loss_name must contain 'loss', or mmengine only logs the loss, got {loss_name!r}")
        self.loss_weight = loss_weight
        self.ignore_index = int(options.setdefault("ignore_index", 255))
        self._loss_name = loss_name
        self.loss = AUCSegLoss(**options)
        self.global_auc = global_auc
        self.sums_of_batch: SumsOfBatch | None = None  # of the train loop, while it runs over the parts of a batch

    @property
    def loss_name(self) -> str:
        """Key of the loss in the log."""
        return self._loss_name

    def forward(
        self, cls_score: Tensor, label: Tensor, weight: Tensor | None = None, ignore_index: int = 255, **_: Any
    ) -> Tensor:
        """The loss of logits `(B, K, H, W)` against labels `(B, H, W)`, as the heads call it.

        Raises:
            ValueError: For pixel weights, which a pixel sampler makes (a pair of pixels has no one weight), and for a
                head with another ignore label.
        """
        if weight is not None:
            raise ValueError("AUCSegLoss takes no pixel weights: remove the sampler from the decode head")
        if ignore_index != self.ignore_index:
            raise ValueError(
                f"the head ignores label {ignore_index}, the loss {self.ignore_index}: "
                f"loss_decode=dict(type='AUCSegLoss', ignore_index={ignore_index})"
            )
        with self._with_all_processes():
            if self.sums_of_batch is None:
                value: Tensor = self.loss(cls_score, label)
            else:
                value = self.sums_of_batch(self.loss, cls_score, label)
        return self.loss_weight * value

    def _with_all_processes(self) -> AbstractContextManager[None]:
        several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        # Without gradients a process may be the only one that asks for the loss.
        if several and self.global_auc and torch.is_grad_enabled():
            return in_process_group(self.loss, dist.group.WORLD)
        return nullcontext()
