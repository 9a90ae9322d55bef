"""The tail-class memory bank in mmsegmentation, as a transform or in the data preprocessor."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from mmcv.transforms import BaseTransform
from mmseg.models import SegDataPreProcessor
from mmseg.registry import MODELS, TRANSFORMS

from aucseg.hints import check_options
from aucseg.memory_bank import TailMemoryBank
from aucseg.memory_bank.paper import with_paper_settings


@TRANSFORMS.register_module()
class TailMemoryBankTransform(BaseTransform):  # type: ignore[misc]
    """`aucseg.TailMemoryBank` on one packed sample: put it after `PackSegInputs`.

    As in the paper's code every data-loading worker holds a bank of its own, which only sees that worker's images, and
    "missing" is judged for each image. `AUCSegDataPreProcessor` has one bank for the whole batch.

    Args:
        **options: Options of `aucseg.TailMemoryBank`; `as_in_paper="ade20k"` stands for the paper's settings.

    Raises:
        ValueError: For `scope="batch"`: a pipeline sees one image at a time.
    """

    def __init__(self, **options: Any) -> None:
        options = with_paper_settings(options)
        if options.get("scope", "image") != "image":
            raise ValueError(
                "a transform sees one image at a time: use scope='image', or AUCSegDataPreProcessor for scope='batch'"
            )
        # What is wrong with the options is found here, not in a loader process.
        check_options(type(self).__name__, options, TailMemoryBank)
        TailMemoryBank(**{"generator": torch.Generator(), **options})
        self.options = options
        # Built at the first image: a bank built here would give every worker process the same random numbers.
        self._bank: TailMemoryBank | None = None

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Stores from and pastes into `results["inputs"] (C, H, W)` and its `gt_sem_seg (1, H, W)`.

        Raises:
            ValueError: Before `PackSegInputs`.
        """
        if "inputs" not in results or "data_samples" not in results:
            raise ValueError("TailMemoryBankTransform needs packed samples: put it after PackSegInputs")
        if self._bank is None:
            self._bank = TailMemoryBank(**self.options)
        _warn_of_edges(results["data_samples"])
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

    Storing and pasting come after normalization and padding. The bank is the attribute `bank`; its state is part of
    the model's checkpoint. A checkpoint of other classes (`load_from`) leaves it empty, with a warning.

    Args:
        bank: Options of `aucseg.TailMemoryBank`; `as_in_paper="ade20k"` stands for the paper's settings; None for
            no bank.
        **options: Options of `SegDataPreProcessor`.
    """

    def __init__(self, bank: dict[str, Any] | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.bank = None
        if bank is not None:
            bank = with_paper_settings(bank)
            check_options("bank", bank, TailMemoryBank)
            self.bank = TailMemoryBank(**bank)
        if self.bank is not None:
            self.bank.register_load_state_dict_pre_hook(_leave_other_classes_out)  # type: ignore[no-untyped-call]

    def forward(self, data: dict[str, Any], training: bool = False) -> dict[str, Any]:
        """As in `SegDataPreProcessor`, then, in training, the bank."""
        batch: dict[str, Any] = super().forward(data, training)
        if self.bank is None or not training:
            return batch
        for sample in batch["data_samples"]:
            _warn_of_edges(sample)
        truths = [sample.gt_sem_seg for sample in batch["data_samples"]]
        device = batch["inputs"].device
        masks = torch.cat([truth.data for truth in truths]).to(device)
        batch["inputs"], masks = self.bank.train()(batch["inputs"], masks)
        for truth, mask in zip(truths, masks, strict=True):
            truth.data = mask[None]
        return batch


def _warn_of_edges(sample: Any) -> None:
    """Warns of samples with edges, which are not those of the mask after a paste."""
    if "gt_edge_map" in sample:
        warnings.warn(
            "the samples have gt_edge_map, in which the edges of what the bank pastes are missing: train without a "
            "bank, or with a model that has no head for edges",
            stacklevel=3,
        )


def _leave_other_classes_out(bank: TailMemoryBank, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Puts the bank's own state in the place of one of other classes, which it could not take."""
    key = f"{prefix}_extra_state"
    stored, own = state.get(key), bank.get_extra_state()
    names = ("num_classes", "tail_classes")
    if isinstance(stored, Mapping) and any(stored.get(name) != own[name] for name in names):
        found = ", ".join(f"{name} {stored.get(name)}" for name in names)
        warnings.warn(f"the checkpoint has a bank of other classes ({found}): the bank begins empty", stacklevel=2)
        state[key] = own
