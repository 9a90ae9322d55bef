"""The training task: model, loss, memory bank, optimizer and metrics as one LightningModule."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from aucseg.datasets import DatasetCard
from aucseg.inference.predictor import Predictor
from aucseg.loading.evaluation_batches import same_size_parts, single_images
from aucseg.losses import AUCSegLoss
from aucseg.losses.baselines import LongTailLoss
from aucseg.losses.pairwise_auc import PairwiseAUCLoss, auc_losses, in_process_group
from aucseg.memory_bank.exchange import exchange_samples
from aucseg.models import build_model, forward_with_auxiliary, without_weights
from aucseg.randomness import random_states, set_random_states, stable_seed
from aucseg.tensors.dtypes import in_model_dtype
from aucseg.tensors.upsampling import predicted_labels
from aucseg.training.checkpoint_checks import (
    check_classes,
    check_same_card,
    note_other_groups,
    state_mismatch,
    stored_card,
)
from aucseg.training.image_channels import normalization, with_channels
from aucseg.training.micro_batches import backward_all_but_last, check_micro_batches, scaled_backward
from aucseg.training.optimization import (
    check_parameter_groups,
    group_settings,
    optimizer_and_schedule,
    steps_of_training,
    take_over_changes,
)
from aucseg.training.precision import clip_gradients, keeping_digits, unscales
from aucseg.training.processes import cpu_state, draw_apart, gathered, print_note, state_of_process
from aucseg.training.start_weights import frozen_parts, take_over
from aucseg.training.task_checks import batch_norm_explained, check_gradients, check_numbers, note_if_sorted
from aucseg.training.task_parts import CheckedLogits, build_bank, check_channels, evaluation_options, loss_of
from aucseg.training.validation_metrics import ValidationMetrics, ValidationResult


class SegmentationTask(LightningModule):
    """Trains and evaluates one segmentation model on one data set card.

    The loss needs no other change in the user's code; the bank pastes into the batch on its device before the model
    sees it. Checkpoints hold the bank, the random states, the card (class names, colours, groups) and all that is
    needed to predict, as tensors and plain containers: they load with `weights_only=True`.

    Args:
        card: Name of a shipped card, path of a card's YAML file, or a card's YAML text.
        model: Name of a model, see `aucseg.build_model`, or a module from images (B, C, H, W) to logits (B, K, h, w),
            which may return them as torchvision and transformers do.
        model_options: Options of `aucseg.build_model`.
        freeze: `encoder`, or dotted names of the model's parts, that do not learn: neither weights nor statistics.
        init_from: Folder of a run, checkpoint or file of weights that a new training starts from, of other classes
            perhaps, see `aucseg.training.start_weights.take_over`.
        loss: Name of a loss, see `aucseg.losses.build_loss`, or a module from (logits, target) to a scalar, whose
            parameters learn if it has some.
        loss_options: Options of the loss.
        bank: Options of `aucseg.TailMemoryBank` (`tail_classes` defaults to the card's tail; classes are given by id
            or name; `protect_classes` may be a group of the card, such as `middle`; `as_in_paper: ade20k` stands
            for the paper's settings, see `aucseg.TailMemoryBank.as_in_paper`), or None for no bank.
        mean: Mean of each image channel, in units of 0..255; None for that of the model's weights.
        std: Standard deviation of each image channel, in the same units; None as with `mean`.
        learning_rate: Rate of the encoder; None for that which goes with model and batch, see `aucseg.models.recipes`.
        head_rate_factor: The rate of everything but the encoder is this many times higher; None as with the rate.
        weight_decay: Decay of AdamW; norms, biases and position parameters have none.
        betas: Betas of AdamW.
        optimizer: Another optimizer, by import path or as `{class_path, init_args}`, see
            `aucseg.training.optimization.build_optimizer`; the head and what decays are treated as for AdamW.
        schedule: Another schedule in the same form, instead of warm-up and decay, see
            `aucseg.training.optimization.schedule_of`.
        warmup_steps: Optimizer steps of linear warm-up; None for a tenth of the training, at most 500.
        warmup_factor: First factor of the warm-up.
        poly_power: Power of the polynomial decay to zero over the steps of the training.
        channels_last: Whether images and weights are laid out channels last, which is faster for convolutions.
        pixel_metrics: Whether validation also takes the pixel AUC (`val/auroc`) and the mean average precision of the
            tail classes (`val/tail_ap`).
        evaluation: Options of `aucseg.inference.predictor.InferenceOptions` for validation, such as `window` and
            `stride` of a sliding window; None takes whole images, in the batches of the loader.
        global_auc: With several processes, whether the AUC loss pairs the pixels of all of them (sums travel, no
            pixels do) or each process its own.
        bank_exchange_every: With several processes, optimizer steps after which each gives one stored sample of each
            tail class to another; 0 for never.
        micro_batches: Parts in which a batch goes through the model, for batches that do not fit into memory. The
            gradient is that of the whole batch: the AUC loss pairs pixels of all parts. Two forward passes instead of
            one. For AUC losses that are not computed by sorting; batch normalization in training mode sees the parts.

    Attributes:
        last_input: Images and masks of the last training batch as the model saw them, pasted samples included.
        validated: What the last validation found, an `aucseg.training.validation_metrics.ValidationResult`.

    Raises:
        ValueError: For a bank without tail classes, and whatever the card, the model, the loss or the bank refuse.
    """

    mean: Tensor
    std: Tensor
    validated: ValidationResult

    def __init__(
        self,
        card: str,
        model: str | nn.Module = "smp/fpn",
        model_options: dict[str, Any] | None = None,
        *,
        freeze: str | list[str] | None = None,
        init_from: str | None = None,
        loss: str | nn.Module = "aucseg",
        loss_options: dict[str, Any] | None = None,
        bank: dict[str, Any] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        learning_rate: float | None = None,
        head_rate_factor: float | None = None,
        weight_decay: float = 0.01,
        betas: tuple[float, float] = (0.9, 0.999),
        optimizer: str | dict[str, Any] | None = None,
        schedule: str | dict[str, Any] | None = None,
        warmup_steps: int | None = None,
        warmup_factor: float = 1e-6,
        poly_power: float = 1.0,
        channels_last: bool = True,
        pixel_metrics: bool = False,
        evaluation: dict[str, Any] | None = None,
        global_auc: bool = True,
        bank_exchange_every: int = 0,
        micro_batches: int = 1,
    ) -> None:
        super().__init__()
        check_numbers(
            micro_batches,
            bank_exchange_every,
            head_rate_factor=head_rate_factor,
            weight_decay=weight_decay,
            poly_power=poly_power,
        )
        self.card = DatasetCard.load(card)
        self.save_hyperparameters(ignore=["card", "model", "loss"])
        named = {name: value if isinstance(value, str) else None for name, value in (("model", model), ("loss", loss))}
        self._init_from = init_from  # no part of a checkpoint, which brings the weights
        self.hparams.update(named, card=self.card.to_yaml(), init_from=None)
        num_classes = self.card.num_classes
        if isinstance(model, str):
            # A checkpoint brings the weights, so what loads it must not look for those that the run began with.
            model_options = with_channels(model, model_options or {}, self.card)
            self.hparams["model_options"] = without_weights(model, model_options)
            model = build_model(model, num_classes, **model_options)
        elif model is None:
            raise ValueError(
                "the model is None: a checkpoint of a task with a module of your own does not hold it, so give it to "
                "load_from_checkpoint as well, model=..."
            )
        self.model = model.to(memory_format=torch.channels_last) if channels_last else model
        self._frozen = tuple(frozen_parts(self.model, freeze))
        self.loss = loss if isinstance(loss, nn.Module) else None
        self._generator = torch.Generator().manual_seed(torch.initial_seed())
        self.bank = None if bank is None else build_bank(bank, self.card, self._generator)
        self.last_input: tuple[Tensor, Tensor] | None = None
        self._auc_group: dist.ProcessGroup | None = None
        self._exchanged_at = 0
        self._has_stepped = False
        self._progress = 0.0
        self._random_states: dict[str, Any] | None = None
        # What the optimizer was built with, and what a checkpoint says of its own until it is in force.
        self._group_settings: list[dict[str, Any]] | None = None
        self._resumed: dict[str, Any] | None = None
        self.groups = self.card.named_groups
        self.validation_metrics = ValidationMetrics(self.card, pixel_metrics)
        mean, std = normalization(model, self.card, mean, std)
        self.hparams.update(mean=mean, std=std)
        self.evaluation = None if evaluation is None else evaluation_options(evaluation)
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(-1, 1, 1), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SegmentationTask:
        """Half precision is for the model: normalization, loss, bank and metrics are moved, and keep their digits."""
        for name, child in self.named_children():
            convert = fn if name == "model" else keeping_digits(fn)
            child._apply(convert)  # type: ignore[no-untyped-call]
        super()._apply(keeping_digits(fn), recurse=False)  # type: ignore[no-untyped-call]
        return self

    def train(self, mode: bool = True) -> SegmentationTask:
        """As in torch, but that frozen parts stay in evaluation mode."""
        super().train(mode)
        for part in self._frozen:
            part.eval()
        return self

    def setup(self, stage: str) -> None:
        """Builds a loss given by name, whose class counts come from the training split; tells processes apart."""
        if self.trainer.precision == "64-true":
            self.double()  # Lightning does so after it has restored a checkpoint, in which digits would be lost
        if stage == "predict":
            return
        if self.loss is None:
            self.loss = loss_of(self.hparams, self.card, getattr(self.trainer, "datamodule", None))
        if self.hparams["micro_batches"] > 1 and stage == "fit":
            check_micro_batches(self.loss, self.trainer.accumulate_grad_batches)
        if self.trainer.world_size == 1 or stage != "fit":
            return
        if self.hparams["global_auc"]:
            self._auc_group = dist.group.WORLD
            note_if_sorted(self.loss)
        if self.global_rank > 0:
            draw_apart(self.global_rank, self._generator)

    def on_fit_start(self) -> None:
        """Takes over weights to start from, unless a checkpoint has brought all."""
        if self._init_from is not None:
            print_note(take_over(self.model, self._init_from, self.card, self.hparams))

    def normalize(self, images: Tensor) -> Tensor:
        """Images with mean 0 and standard deviation 1, in the model's dtype, from images (B, C, H, W) in 0..255."""
        images = in_model_dtype((images.float() - self.mean) / self.std, self.model)
        return images.contiguous(memory_format=torch.channels_last) if self.hparams["channels_last"] else images

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, K, h, w) of images (B, C, H, W) in 0..255, uint8 or float, at the model's own resolution."""
        logits: Tensor = CheckedLogits(self.model, self.card)(self.normalize(images))
        return logits

    def _outputs(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Logits and, where their loss has a weight, auxiliary logits, of images as they come."""
        logits, auxiliary = forward_with_auxiliary(self.model, self.normalize(images))
        check_channels(logits, self.card)
        return logits, auxiliary if hasattr(self.model, "auxiliary_weight") else None

    def take_groups(self, card: DatasetCard) -> None:
        """Has the next validation take its means over the groups of another card of the same classes, with a note."""
        note_other_groups(self.card, card)
        self.card = replace(self.card, groups=card.groups, tail_classes=card.tail_classes)
        self.groups = self.card.named_groups
        self.validation_metrics = ValidationMetrics(self.card, self.hparams["pixel_metrics"]).to(self.device)

    def evaluation_logits(self, images: Tensor) -> Tensor:
        """Logits (B, K, h, w) as validation takes them, with the sliding window and so on of `evaluation`."""
        if self.evaluation is None:
            logits: Tensor = self(images)
            return logits
        predictor = Predictor(
            CheckedLogits(self.model, self.card),
            self.evaluation,
            pixel_mean=self.mean.flatten().tolist(),
            pixel_std=self.std.flatten().tolist(),
            device=self.device,
        )
        return torch.stack([predictor.logits(image) for image in images])

    def training_step(self, batch: dict[str, Any], batch_index: int) -> Tensor:
        """Pastes from the bank, then the loss of the batch."""
        images, masks = batch["image"], batch["mask"]
        if self.bank is not None:
            images, masks = self.bank(images, masks, plan=batch.get("plan"))
        self.last_input = images, masks
        target = masks.long()
        assert self.loss is not None
        if self.hparams["micro_batches"] > 1:
            with batch_norm_explained(len(images), self.hparams["micro_batches"]):
                whole = self._micro_batch_step(images, target)
            self._log_loss(whole, len(images))
            return whole
        with batch_norm_explained(len(images), 1):
            logits, auxiliary = self._outputs(images)
        if _scheduled(self.loss):
            self._set_progress(min(1.0, self.global_step / steps_of_training(self.trainer)))
        with in_process_group(self.loss, self._auc_group):
            loss: Tensor = self.loss(logits, target)
            if auxiliary is not None:
                loss = loss + self.model.auxiliary_weight * self.loss(auxiliary, target)
        self._log_loss(loss, len(images))
        return loss

    def _set_progress(self, progress: float) -> None:
        """Tells losses with a schedule how much of the training is done."""
        self._progress = progress
        for part in _scheduled(self.loss):
            part.set_progress(progress)

    def _log_loss(self, loss: Tensor, batch_size: int) -> None:
        """Logs the loss of all processes; where each has its own, their mean, which is what they train on."""
        loss = loss.detach()
        is_auc = isinstance(self.loss, AUCSegLoss | PairwiseAUCLoss) and bool(auc_losses(self.loss))
        if self.trainer.world_size > 1 and not (is_auc and self._auc_group is not None):
            loss = loss / self.trainer.world_size
            dist.all_reduce(loss)  # what Lightning has for it makes the host wait
        self.log("train/loss", loss, prog_bar=True, batch_size=batch_size)

    def _micro_batch_step(self, images: Tensor, target: Tensor) -> Tensor:
        self.zero_grad()
        loss = self.loss
        assert isinstance(loss, PairwiseAUCLoss | AUCSegLoss)
        backward = scaled_backward(getattr(self.trainer.precision_plugin, "scaler", None))
        with in_process_group(loss, self._auc_group):
            return backward_all_but_last(
                loss, self.model, self._outputs, images, target, self.hparams["micro_batches"], backward
            )

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """In the first step: refuses parameters without a gradient where other processes wait for it."""
        if not self._has_stepped:
            check_gradients(self)
            self._has_stepped = True

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: torch.optim.Optimizer) -> None:
        """Comes after `training_step`, which has made gradients of its own when there are micro-batches."""
        if self.hparams["micro_batches"] == 1:
            optimizer.zero_grad()

    def validation_step(self, batch: dict[str, Any], batch_index: int) -> dict[str, Any]:
        """Adds the batch to the metrics and each image's loss to their mean; images of one size go through together.

        With `evaluation` one image after the other, as their logits are as large as they.

        Args:
            batch: `image` (B, C, H, W) and `mask` (B, H, W), or lists of B tensors where sizes differ; none where no
                image of it can be read.
            batch_index: Not used.

        Returns:
            `{"predicted": the predicted labels of each image, B tensors (H, W)}`.
        """
        predicted: list[Tensor] = [torch.empty(0)] * len(batch["mask"])
        for positions, images, masks in (same_size_parts if self.evaluation is None else single_images)(batch):
            logits, target = self.evaluation_logits(images), masks.long()
            assert self.loss is not None
            with in_process_group(self.loss, None):  # processes may have unequal numbers of validation batches
                labels = self.validation_metrics.update(logits, target, self.loss)
            for position, label in zip(positions, labels, strict=True):
                predicted[position] = label
        return {"predicted": predicted}

    def predict_step(self, batch: Any, batch_index: int) -> list[Tensor]:
        """The predicted labels (H, W) of each image of a batch, with `evaluation` as in validation.

        Args:
            batch: Images (B, C, H, W), a list of them, or a mapping with these under `image`.
            batch_index: Not used.
        """
        images = batch["image"] if isinstance(batch, Mapping) else batch
        return [predicted_labels(self.evaluation_logits(one[None]), one.shape[1:])[0] for one in images]

    def on_validation_epoch_end(self) -> None:
        """Logs what was measured, see `aucseg.training.validation_metrics.ValidationResult.scores`."""
        self.validated = self.validation_metrics.compute()
        self.validation_metrics.reset()
        for name, value in self.validated.scores.items():
            # All processes have the same values; the maximum of equal ones is exact, and Lightning is content.
            shown = name in ("loss", "miou", *(self.groups or ()))
            self.log(f"val/{name}", value, prog_bar=shown, sync_dist=True, reduce_fx="max")

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW with its own rate for the head, linear warm-up and polynomial decay; or what the options say."""
        configured = optimizer_and_schedule(self.model, self.loss, self.hparams, self.trainer)
        self._group_settings = group_settings(configured["optimizer"])
        if self._resumed is not None:
            check_parameter_groups(configured["optimizer"], self._resumed["groups"])
        return configured

    def on_train_start(self) -> None:
        """Puts settings in force that a resumed run has changed."""
        self._exchanged_at = self.global_step  # a checkpoint is taken after the exchange of its step
        if self._resumed is not None and self._group_settings is not None:
            (config,) = self.trainer.lr_scheduler_configs
            then, is_own = self._resumed["settings"], self.hparams["schedule"] is None
            (optimizer,) = self.trainer.optimizers
            take_over_changes(optimizer, config.scheduler, then, self._group_settings, is_own_schedule=is_own)
            self._resumed = None

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clips as Lightning does, and in mixed precision as well, which Lightning refuses to fused optimizers."""
        if gradient_clip_val and unscales(optimizer):
            clip_gradients(self.trainer.precision_plugin, optimizer, gradient_clip_val, gradient_clip_algorithm)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def on_train_batch_start(self, batch: Any, batch_index: int) -> None:
        """Restores the random states of a resumed run: what they were where its checkpoint was taken."""
        if self._random_states is not None:
            set_random_states(self._random_states, self.device)
            self._random_states = None

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_index: int) -> None:
        """Exchanges stored samples between processes when it is time to."""
        every, step = int(self.hparams["bank_exchange_every"]), self.global_step
        if not every or self.bank is None or self.trainer.world_size == 1:
            return
        # After each of the accumulated batches the step is the same.
        if step % every == 0 and step != self._exchanged_at:
            self._exchanged_at = step
            shift = 1 + stable_seed(step) % (self.trainer.world_size - 1)
            exchange_samples(self.bank, self.trainer.strategy.root_device, shift, self._generator)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the random states, and the banks of the other processes, as plain containers."""
        # Those that a resumed run goes on with are to be restored until its first step.
        own: dict[str, Any] = {"random_states": self._random_states or random_states(self.device)}
        checkpoint["group_settings"] = self._group_settings
        checkpoint["progress"] = self._progress
        if self.trainer.world_size == 1:
            checkpoint["processes"] = [own]
            return
        if self.bank is not None and self.global_rank > 0:
            own["bank"] = self.bank.get_extra_state()
        checkpoint["processes"] = gathered(cpu_state(own))

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As in torch; a state of another model is refused in one sentence (ValueError)."""
        try:
            return super().load_state_dict(state_dict, strict, assign)
        except RuntimeError as error:
            raise state_mismatch(self, state_dict, error) from error

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes this process's part; the state of a loss that is not built yet is left out.

        Raises:
            ValueError: The checkpoint is of other classes.
        """
        stored = stored_card(checkpoint, "the checkpoint")
        check_classes(stored, self.card)
        if self._trainer is not None and self.trainer.training:
            check_same_card(stored, self.card)
        self._init_from = None
        state = checkpoint["state_dict"]
        if self.loss is None:
            for key in [key for key in state if key.startswith("loss.")]:
                del state[key]
        self._set_progress(checkpoint.get("progress", 0.0))
        # Predicting from a checkpoint must not disturb the caller's random numbers.
        if "processes" not in checkpoint or self._trainer is None or not self.trainer.training:
            return
        if states := checkpoint.get("optimizer_states"):
            self._resumed = {"groups": states[0]["param_groups"], "settings": checkpoint.get("group_settings")}
        own = state_of_process(checkpoint["processes"], self.global_rank, self.trainer.world_size)
        self._random_states = own.get("random_states")
        key = "bank._extra_state"
        for state in (checkpoint["state_dict"], checkpoint.get("current_model_state", {})):  # an average has both
            if self.bank is not None and self.global_rank > 0 and key in state:
                state[key] = own.get("bank", state[key])
                if self._random_states is None:  # a process that there was not draws on its own
                    state[key] = {**state[key], "generator": self._generator.get_state()}


def _scheduled(loss: nn.Module | None) -> list[LongTailLoss]:
    """The losses in a loss that may have a schedule."""
    return [] if loss is None else [part for part in loss.modules() if isinstance(part, LongTailLoss)]
