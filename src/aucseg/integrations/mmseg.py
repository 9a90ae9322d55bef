"""AUCSeg in mmsegmentation 1.x: the loss, and the bank as a transform or in the data preprocessor.

Importing this module registers everything. In a configuration::

    custom_imports = dict(imports=["aucseg.integrations.mmseg"], allow_failed_imports=False)
    model = dict(
        data_preprocessor=dict(type="AUCSegDataPreProcessor", bank=dict(tail_classes=[6, 12], num_classes=19)),
        decode_head=dict(loss_decode=dict(type="AUCSegLoss")),
    )

Needs ``pip install "aucseg[mmseg]"``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from aucseg.losses import AUCSegLoss
from aucseg.memory_bank import TailMemoryBank
from aucseg.memory_bank.paper import with_paper_settings

try:
    from mmcv.transforms import BaseTransform
    from mmseg.models import SegDataPreProcessor
    from mmseg.registry import MODELS, TRANSFORMS
except ImportError as error:
    raise ImportError('aucseg.integrations.mmseg needs mmsegmentation: pip install "aucseg[mmseg]"') from error


@MODELS.register_module(name="AUCSegLoss")
class MMSegAUCSegLoss(nn.Module):
    """`aucseg.AUCSegLoss` as a ``loss_decode`` of mmsegmentation's heads, in place of their cross-entropy.

    Args:
        loss_weight: factor of the whole loss.
        loss_name: key of the loss in the log; must contain ``loss`` to be trained on.
        use_sigmoid: must be False. It is what a configuration inherits from the cross-entropy that this loss replaces,
            like the next.
        avg_non_ignore: not used: ignored pixels never count.
        **options: options of `aucseg.AUCSegLoss`; ``ignore_index`` must be that of the head.

    Raises:
        ValueError: for a ``loss_name`` that mmengine would only log, for ``use_sigmoid=True``, and what
            `aucseg.AUCSegLoss` refuses.
    """

    def __init__(
        self,
        loss_weight: float = 1.0,
        loss_name: str = "loss_aucseg",
        use_sigmoid: bool = False,
        avg_non_ignore: bool = True,
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

    @property
    def loss_name(self) -> str:
        """Key of the loss in the log."""
        return self._loss_name

    def forward(
        self, cls_score: Tensor, label: Tensor, weight: Tensor | None = None, ignore_index: int = 255, **_: Any
    ) -> Tensor:
        """The loss of logits ``(B, K, H, W)`` against labels ``(B, H, W)``, as the heads call it.

        Raises:
            ValueError: for pixel weights, which a pixel sampler makes (a pair of pixels has no one weight), and for a
                head with another ignore label.
        """
        if weight is not None:
            raise ValueError("AUCSegLoss takes no pixel weights: remove the sampler from the decode head")
        if ignore_index != self.ignore_index:
            raise ValueError(
                f"the head ignores label {ignore_index}, the loss {self.ignore_index}: "
                f"loss_decode=dict(type='AUCSegLoss', ignore_index={ignore_index})"
            )
        value: Tensor = self.loss_weight * self.loss(cls_score, label)
        return value


@TRANSFORMS.register_module()
class TailMemoryBankTransform(BaseTransform):  # type: ignore[misc]
    """`aucseg.TailMemoryBank` on one packed sample: put it after ``PackSegInputs``.

    As in the paper's code every data-loading worker holds a bank of its own, which only sees that worker's images, and
    "missing" is judged for each image. `AUCSegDataPreProcessor` has one bank for the whole batch.

    Args:
        **options: options of `aucseg.TailMemoryBank`; ``as_in_paper="ade20k"`` stands for the paper's settings.

    Raises:
        ValueError: for ``scope="batch"``: a pipeline sees one image at a time.
    """

    def __init__(self, **options: Any) -> None:
        options = with_paper_settings(options)
        if options.setdefault("scope", "image") != "image":
            raise ValueError(
                "a transform sees one image at a time: use scope='image', or AUCSegDataPreProcessor for scope='batch'"
            )
        self.options = options
        # Built at the first image: a bank built here would give every worker process the same random numbers.
        self._bank: TailMemoryBank | None = None

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Stores from and pastes into ``results["inputs"] (C, H, W)`` and its ``gt_sem_seg (1, H, W)``.

        Raises:
            ValueError: before ``PackSegInputs``.
        """
        if "inputs" not in results or "data_samples" not in results:
            raise ValueError("TailMemoryBankTransform needs packed samples: put it after PackSegInputs")
        if self._bank is None:
            self._bank = TailMemoryBank(**self.options)
        truth = results["data_samples"].gt_sem_seg
        images, masks = self._bank(results["inputs"][None], truth.data)
        results["inputs"], truth.data = images[0], masks
        return results

    def __repr__(self) -> str:
        options = ", ".join(f"{key}={value!r}" for key, value in self.options.items())
        return f"{type(self).__name__}({options})"


@MODELS.register_module()
class AUCSegDataPreProcessor(SegDataPreProcessor):  # type: ignore[misc]
    """mmsegmentation's data preprocessor with one bank, on the model's device, for the whole batch.

    Storing and pasting come after normalization and padding. The bank is the attribute ``bank``; its state is part of
    the model's checkpoint.

    Args:
        bank: options of `aucseg.TailMemoryBank`; ``as_in_paper="ade20k"`` stands for the paper's settings; None for
            no bank.
        **options: options of ``SegDataPreProcessor``.
    """

    def __init__(self, bank: dict[str, Any] | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.bank = None if bank is None else TailMemoryBank(**with_paper_settings(bank))

    def forward(self, data: dict[str, Any], training: bool = False) -> dict[str, Any]:
        """As in ``SegDataPreProcessor``, then, in training, the bank."""
        batch: dict[str, Any] = super().forward(data, training)
        if self.bank is None or not training:
            return batch
        truths = [sample.gt_sem_seg for sample in batch["data_samples"]]
        device = batch["inputs"].device
        masks = torch.cat([truth.data for truth in truths]).to(device)
        batch["inputs"], masks = self.bank.train()(batch["inputs"], masks)
        for truth, mask in zip(truths, masks, strict=True):
            truth.data = mask[None]
        return batch
