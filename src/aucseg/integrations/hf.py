"""AUCSeg in Hugging Face's `Trainer`: the gradient of the whole batch, however it is split, and the memory bank.

Needs `pip install "aucseg[hf]"`.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from aucseg.losses import MicroBatchAUC
from aucseg.losses.pairwise_auc import auc_losses, in_process_group
from aucseg.memory_bank import TailMemoryBank
from aucseg.models.checkpoint import load_plain
from aucseg.models.segmentation_model import logits_of
from aucseg.safe_files import replacing

try:
    from transformers import Trainer, TrainerCallback
except ImportError as error:
    raise ImportError('aucseg.integrations.hf needs transformers: pip install "aucseg[hf]"') from error

Batch = dict[str, Any]


class AUCSegTrainer(Trainer):
    """`transformers.Trainer` with a loss on logits and masks, and a memory bank that pastes into training batches.

    The gradient of an update is that of one process with one batch of all images: those of all processes and of all
    `gradient_accumulation_steps`. The AUC loss pairs the pixels of all of them, the mean of the cross-entropy is over
    all valid pixels, and the loss that is logged is that of the whole. With accumulation the model runs forward twice,
    first for the sums over pixels, then for the gradient, see `aucseg.losses.MicroBatchAUC`.

    Batches need `pixel_values` (B, C, H, W) and `labels` (B, H, W); the model's output has `logits` (B, K, h, w),
    no larger than the labels, or is such a tensor, alone or first in a tuple. Evaluation takes the loss of each batch
    alone and pastes nothing. Checkpoints hold the bank. To add it to a Trainer of your own:
    `class Mine(AUCSegTrainer, YourTrainer)`.

    Args:
        *args: Arguments of `transformers.Trainer`.
        loss: From logits and labels to a scalar: `aucseg.AUCSegLoss`, `aucseg.PairwiseAUCLoss`, or, without
            accumulation, any other (of which processes are averaged).
        bank: Stores from and pastes into the batches of the training.
        **options: Arguments of `transformers.Trainer`, but for `compute_loss_func`.

    Raises:
        TypeError: `compute_loss_func` is given.
        ValueError: `label_smoothing_factor` is set; accumulation with a loss that cannot be computed from sums over
            parts; a batch without `pixel_values` or `labels`.
    """

    def __init__(self, *args: Any, loss: nn.Module, bank: TailMemoryBank | None = None, **options: Any) -> None:
        if "compute_loss_func" in options:
            raise TypeError("AUCSegTrainer computes its loss itself: pass loss=..., not compute_loss_func")
        # A Trainer with a loss function leaves its scale alone; without one it divides by the accumulation steps.
        options["compute_loss_func"] = self._loss_of
        super().__init__(*args, **options)
        steps = self.args.gradient_accumulation_steps
        if steps > 1 and not auc_losses(loss):
            raise ValueError(
                f"gradient_accumulation_steps is {steps}, but {loss} cannot be computed from sums over parts of a "
                "batch: take an AUCSegLoss or PairwiseAUCLoss that is not computed by sorting, or "
                "gradient_accumulation_steps=1 with a larger per_device_train_batch_size"
            )
        if self.args.label_smoothing_factor:
            raise ValueError(
                "label_smoothing_factor is for the Trainer's own loss, which is not used here: give it to the loss, "
                f"AUCSegLoss(label_smoothing={self.args.label_smoothing_factor})"
            )
        if getattr(getattr(self.model, "config", None), "use_auxiliary_head", False):
            warnings.warn(
                "the loss is taken of the model's logits alone, and its auxiliary head is not trained: build the model "
                "with use_auxiliary_head=False",
                stacklevel=2,
            )
        # The Trainer finds them in the signature of forward(), and evaluates without a loss where it finds none.
        self.label_names = self.args.label_names or ["labels"]
        self.loss = loss.to(self.args.device)
        self.bank = bank
        if bank is not None:
            self.add_callback(_BankSaver(bank))
        self._batches: list[Batch] = []
        self._whole: MicroBatchAUC | None = None
        self._value: Tensor | None = None
        self._is_training_step = False

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list[Batch], Any]:
        """The batches of one update, with what the bank pastes."""
        batches, num_items = super().get_batch_samples(*args, **kwargs)
        self._batches = [self._pasted(self._prepare_inputs(batch)) for batch in batches]
        self._whole = None
        return self._batches, num_items

    def training_step(self, model: nn.Module, inputs: Batch, *args: Any, **kwargs: Any) -> Tensor:
        """Forward and backward pass of one batch; returns its part of the loss of the update, as it is logged."""
        self._is_training_step = True
        try:
            super().training_step(model, inputs, *args, **kwargs)
        finally:
            self._is_training_step = False
        assert self._value is not None
        # The Trainer adds these up. What it returned itself is divided or not, by release.
        return self._value / max(1, len(self._batches))

    def compute_loss(
        self, model: nn.Module, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The loss of the whole update with the gradient of one batch; in evaluation that of the batch alone."""
        network, labels = _Logits(model), inputs["labels"]
        if not self._is_training_step:
            outputs = network.outputs(inputs)
            loss = self._loss_of(outputs, labels)
            if not return_outputs:
                return loss
            if isinstance(outputs, dict):
                return loss, outputs
            # Of a tuple the Trainer takes all but the first, which of models of its own is the loss.
            return loss, (loss, *(outputs if isinstance(outputs, tuple | list) else (logits_of(outputs)[0],)))
        with in_process_group(self.loss, dist.group.WORLD if self.accelerator.num_processes > 1 else None):
            if len(self._batches) > 1:
                if self._whole is None:
                    self._whole = MicroBatchAUC(self.loss, network)  # type: ignore[arg-type]
                    for batch in self._batches:
                        self._whole.collect(batch, batch["labels"])
                loss = self._whole.loss(inputs, labels)
            else:
                loss = self.loss(network(inputs), labels)
        self._value = loss.detach().clone()  # some releases scale the loss in place
        return loss

    def _loss_of(self, outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        loss: Tensor = self.loss(logits_of(outputs)[0], labels)
        return loss

    def _pasted(self, batch: Batch) -> Batch:
        missing = {"pixel_values", "labels"} - batch.keys()
        if missing:
            raise ValueError(
                f"a training batch has {sorted(batch)}, but not {sorted(missing)}: name them so in data_collator, and "
                "give TrainingArguments(remove_unused_columns=False) if the model's forward() has no such parameter"
            )
        if self.bank is None:
            return batch
        images, labels = self.bank(batch["pixel_values"], batch["labels"])
        return {**batch, "pixel_values": images, "labels": labels}

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        path = Path(resume_from_checkpoint) / _bank_file(self.args)
        if self.bank is None:
            return
        if path.is_file():
            self.bank.load_state_dict(load_plain(path))
        else:
            warnings.warn(
                f"{path} is missing: the bank of process {self.args.process_index} starts empty", stacklevel=2
            )


class _Logits(nn.Module):
    """From a batch to logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def outputs(self, batch: Batch) -> Any:
        return self.model(**{name: value for name, value in batch.items() if name != "labels"})

    def forward(self, batch: Batch) -> Tensor:
        return logits_of(self.outputs(batch))[0]


class _BankSaver(TrainerCallback):
    """Puts the bank of each process beside the model in every checkpoint."""

    def __init__(self, bank: TailMemoryBank) -> None:
        self._bank = bank

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if folder.is_dir():  # a search of hyperparameters has its checkpoints elsewhere, and does not resume
            with replacing(folder / _bank_file(args)) as path:
                torch.save(self._bank.state_dict(), path)


def _bank_file(args: Any) -> str:
    return f"tail_memory_bank_{args.process_index}.pt"
