"""Train loops of mmengine with the gradient of the whole batch, from its parts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from itertools import islice
from typing import Any

from mmengine.model import is_model_wrapper
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop
from mmseg.models.losses import CrossEntropyLoss
from mmseg.registry import LOOPS
from torch import Tensor, nn

from aucseg.integrations.mmseg.loss import MMSegAUCSegLoss, SumsOfBatch
from aucseg.losses.micro_batches import TwoPasses
from aucseg.losses.pairwise_auc import auc_losses


class _InMicroBatches:
    """A train loop of mmengine, of which each iteration may run over the batch of the loader in parts."""

    runner: Any
    _iter: int

    def __init__(self, *args: Any, micro_batches: int = 1, **options: Any) -> None:
        if not isinstance(micro_batches, int) or micro_batches < 1:
            raise ValueError(f"micro_batches must be a whole number of at least 1, got {micro_batches!r}")
        super().__init__(*args, **options)
        self.micro_batches = micro_batches
        if micro_batches > 1:
            _check_losses(self._segmentor(), micro_batches)

    def _segmentor(self) -> Any:
        return self.runner.model.module if is_model_wrapper(self.runner.model) else self.runner.model

    def run(self) -> nn.Module:
        """Trains.

        Raises:
            ValueError: For an optimizer wrapper with `accumulative_counts` above 1.
        """
        counts = getattr(self.runner.optim_wrapper, "_accumulative_counts", 1)
        if counts > 1:
            raise ValueError(
                f"accumulative_counts={counts} of the optimizer wrapper averages the losses of {counts} batches, which "
                f"is not the loss of one batch of all their images: remove it, and make batch_size of train_dataloader "
                f"{counts} times as large and micro_batches {self.micro_batches * counts}"
            )
        model: nn.Module = super().run()  # type: ignore[misc]
        return model

    def run_iter(self, *index_and_batch: Any) -> None:
        """One iteration with its hooks, which is one update of the weights; mmengine's own with one micro-batch."""
        if self.micro_batches == 1:
            super().run_iter(*index_and_batch)  # type: ignore[misc]
            return
        *index, batch = index_and_batch  # a loop by epochs gives both, one by iterations has counted itself
        about = {"batch_idx": index[0] if index else self._iter, "data_batch": batch}
        self.runner.call_hook("before_train_iter", **about)
        outputs = self._train_step(batch)
        self.runner.call_hook("after_train_iter", **about, outputs=outputs)
        self._iter += 1

    def _train_step(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """What `train_step` of a segmentor does, in two passes over the parts; returns what is logged."""
        model, optimizer, segmentor = self.runner.model, self.runner.optim_wrapper, self._segmentor()
        with optimizer.optim_context(model):
            parts = _split(segmentor.data_preprocessor(batch, True), self.micro_batches)
        device = parts[0][0]["inputs"].device
        passes, sums = TwoPasses(model), SumsOfBatch()
        logged: dict[str, Tensor] = {}
        with _adding_up(segmentor, sums):
            for part, share in parts:
                sums.next_part(share)
                with passes.first(device), optimizer.optim_context(model):
                    model(**part, mode="loss")
            sums.first_pass_is_over()
            for number, (part, share) in enumerate(parts, 1):
                is_last = number == len(parts)
                sums.next_part(share)
                passes.second(device)
                with nullcontext() if is_last or not hasattr(model, "no_sync") else model.no_sync():
                    with optimizer.optim_context(model):
                        losses = model(**part, mode="loss")
                    value, values = segmentor.parse_losses(losses)
                    (optimizer.update_params if is_last else optimizer.backward)(share * value)
                for name, of_part in values.items():
                    logged[name] = logged.get(name, 0) + share * of_part.detach()
        return logged


@LOOPS.register_module()
class AUCSegIterBasedTrainLoop(_InMicroBatches, IterBasedTrainLoop):  # type: ignore[misc]
    """mmengine's `IterBasedTrainLoop`; each batch in `micro_batches` parts, with the gradient of the whole.

    In place of `accumulative_counts`, which averages the losses of parts. `batch_size` of the loader is that of an
    update, and an iteration is an update: schedules, hooks and `max_iters` stay as they are. The bank of
    `AUCSegDataPreProcessor` sees the batch whole, once. The model runs over the parts twice, as in
    `aucseg.losses.MicroBatchAUC`, with what is said there of batch normalization.

    Args:
        *args: Arguments of `IterBasedTrainLoop`.
        micro_batches: Number of parts, at least 1; fewer if a batch has fewer images.
        **options: Arguments of `IterBasedTrainLoop`.

    Raises:
        ValueError: For a loss, of any head, that cannot be computed from sums over parts; `AUCSegLoss` can unless it is
            computed by sorting, and `CrossEntropyLoss` as long as it is a mean over all pixels (no
            `avg_non_ignore`, `class_weight` or pixel sampler). When it runs: for `accumulative_counts` above 1.
    """


@LOOPS.register_module()
class AUCSegEpochBasedTrainLoop(_InMicroBatches, EpochBasedTrainLoop):  # type: ignore[misc]
    """mmengine's `EpochBasedTrainLoop` in the same way; see `AUCSegIterBasedTrainLoop`."""


Part = tuple[dict[str, Any], float]


def _split(batch: dict[str, Any], count: int) -> list[Part]:
    """Parts of a batch, each with its share of the images."""
    images, samples = batch["inputs"], iter(batch["data_samples"])
    return [
        ({"inputs": part, "data_samples": list(islice(samples, len(part)))}, len(part) / len(images))
        for part in images.tensor_split(min(count, len(images)))
    ]


@contextmanager
def _adding_up(segmentor: nn.Module, sums: SumsOfBatch) -> Iterator[None]:
    losses = [module for module in segmentor.modules() if isinstance(module, MMSegAUCSegLoss)]
    try:
        for loss in losses:
            loss.sums_of_batch = sums
        yield
    finally:
        for loss in losses:
            loss.sums_of_batch = None


def _check_losses(segmentor: nn.Module, micro_batches: int) -> None:
    """Raises a ValueError for a loss that is not to be had from sums or means over parts of a batch."""
    for name, head in segmentor.named_modules():
        if getattr(head, "sampler", None) is not None:
            raise ValueError(
                f"micro_batches is {micro_batches}, but {name} samples pixels, and would sample different ones in "
                "each part: remove its sampler, or micro_batches=1"
            )
    for name, loss in _losses_of(segmentor):
        if isinstance(loss, MMSegAUCSegLoss):
            fits = bool(auc_losses(loss.loss))
            way_out = "take other options of AUCSegLoss, with which it is not computed by sorting"
        else:
            # A mean over all pixels, those with the ignore label included, is the mean over parts.
            fits = (
                isinstance(loss, CrossEntropyLoss)
                and loss.reduction == "mean"
                and loss.class_weight is None
                and not (loss.avg_non_ignore or loss.use_mask)
            )
            way_out = "put AUCSegLoss there, with auc_weight=0 for a cross-entropy alone (class_weight=... works)"
        if not fits:
            raise ValueError(
                f"micro_batches is {micro_batches}, but {name} ({type(loss).__name__}) cannot be computed from sums "
                f"over parts of a batch: {way_out}, or micro_batches=1"
            )


def _losses_of(module: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Losses of all heads, with their names in the configuration: a head keeps them as `loss_...`."""
    for name, child in module.named_children():
        if "loss" not in name:
            yield from _losses_of(child, f"{path}{name}.")
        elif isinstance(child, nn.ModuleList):
            yield from ((f"{path}{name}.{number}", loss) for number, loss in enumerate(child))
        else:
            yield f"{path}{name}", child
