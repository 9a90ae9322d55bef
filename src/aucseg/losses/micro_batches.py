"""The gradient of a batch of any size in the memory of a micro-batch: sums first, gradients second."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from aucseg.losses.aucseg import AUCSegLoss
from aucseg.losses.pairwise_auc import PairwiseAUCLoss
from aucseg.tensors.buffers import is_expanded


class LossFromSums(Protocol):
    """What `MicroBatchAUC` asks of a loss; `PairwiseAUCLoss` and `AUCSegLoss` have it."""

    @property
    def process_group(self) -> dist.ProcessGroup | None:
        """Ranks whose pixels are taken together."""

    def class_sums(self, logits: Any, target: Tensor) -> Any:
        """Sums of a micro-batch on this rank, without gradient; they add up, and have `all_reduced(process_group)`."""

    def given_sums(self, whole: Any, logits: Any, target: Tensor) -> Tensor:
        """The loss of the whole batch; its gradient is that of this micro-batch."""


class MicroBatchAUC:
    """Two passes over the micro-batches of a batch: first the sums of all, then the gradient of each by these sums.

    The AUC loss is not a mean over pixels, so adding up the losses of micro-batches is not the loss of the batch. This
    is. The sum of the gradients of the second pass is that of the whole batch, for networks without batch normalization
    or with it frozen. The second pass starts from the buffers of the first (batch-norm statistics are updated once) and
    replays its random numbers (dropout). Twice the forward work.

    Where the loss has a process group the sums of all ranks are taken once, between the passes: ranks may have unequal
    numbers of micro-batches, unless the model itself waits for the others in a forward pass, as `SyncBatchNorm` does.

    Args:
        loss: The loss.
        model: From what you pass as `inputs` to logits.

    Raises:
        TypeError: A loss without such sums.
        ValueError: From `collect` for losses that are computed by sorting.
        RuntimeError: When the two passes do not fit together. After any error in `collect` or `loss` the batch is
            forgotten: the next call of `collect` begins a new one.

    Example:
        >>> import torch
        >>> from aucseg.losses import AUCSegLoss, MicroBatchAUC
        >>> model = torch.nn.Conv2d(3, 4, 1)
        >>> batches = [(torch.randn(1, 3, 8, 8), torch.randint(0, 4, (1, 8, 8))) for _ in range(3)]
        >>> whole = MicroBatchAUC(AUCSegLoss(), model)
        >>> for images, target in batches:
        ...     whole.collect(images, target)
        >>> for images, target in batches:
        ...     loss = whole.loss(images, target)  # the value of the whole batch each time
        ...     loss.backward()
    """

    def __init__(self, loss: LossFromSums, model: nn.Module) -> None:
        if not hasattr(loss, "class_sums"):
            raise TypeError(
                f"{type(loss).__name__} has no sums over micro-batches, as AUCSegLoss and PairwiseAUCLoss have: a loss "
                "that is a mean over pixels is the mean of those of the micro-batches, weighted by their valid pixels"
            )
        self._loss, self._model = loss, model
        self.reset()

    def reset(self) -> None:
        """Forgets the batch, so that the next call of `collect` begins a new one.

        An error within `collect` or `loss` does this by itself. After an error between the calls, for example a
        backward pass that runs out of memory, call it yourself.
        """
        self._sums: Any = None
        self._passes: TwoPasses | None = None

    def collect(self, inputs: Any, target: Tensor) -> None:
        """First pass: the sums of one micro-batch, without gradient."""
        if self._passes is not None and self._passes.num_second:
            raise RuntimeError(
                f"collect() after {self._passes.num_second} of {self._passes.num_first} calls of loss(): finish the "
                "second pass first, or give the batch up with reset()"
            )
        with self._forgotten_after_an_error():
            self._collect(inputs, target)

    def _collect(self, inputs: Any, target: Tensor) -> None:
        if self._passes is None:
            self._passes = TwoPasses(self._model)
        with self._passes.first(target.device):
            sums = self._loss.class_sums(self._model(inputs), target)
        self._sums = sums if self._sums is None else self._sums + sums

    def loss(self, inputs: Any, target: Tensor) -> Tensor:
        """Second pass, in the same order: the loss of the whole batch; its gradient is the part of this micro-batch."""
        if self._passes is None:
            raise RuntimeError("loss() needs the sums of the whole batch: call collect() for every micro-batch first")
        with self._forgotten_after_an_error():
            if not self._passes.num_second:
                self._sums = self._sums.all_reduced(self._loss.process_group)
            self._passes.second(target.device)
            result = self._loss.given_sums(self._sums, self._model(inputs), target)
        if self._passes.num_second == self._passes.num_first:
            self.reset()
        return result

    @contextmanager
    def _forgotten_after_an_error(self) -> Iterator[None]:
        # Whoever catches it goes on with the next batch, which the sums of this one must not enter.
        try:
            yield
        except BaseException:
            self.reset()
            raise


class TwoPasses:
    """A model runs over the parts of a batch twice, and the second time is like the first.

    The second pass starts from the buffers of the first, so that statistics are updated once, and replays its random
    numbers. Buffers that the first pass makes or resizes, such as a cache, stay as it leaves them. Make a new one for
    each batch.

    Args:
        model: The model.

    Raises:
        ValueError: It has lazy modules that have not run yet.

    Attributes:
        num_second: Parts of the second pass so far.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        if any(map(is_lazy, [*model.parameters(), *model.buffers()])):
            raise ValueError("the model has lazy modules, made in its first call: run it once on a sample before")
        named = model.named_buffers()
        self._buffers = {name: buffer.clone() for name, buffer in named if not is_expanded(buffer)}
        self._random: list[tuple[Tensor, Tensor | None]] = []
        self.num_second = 0

    @property
    def num_first(self) -> int:
        """Parts of the first pass so far."""
        return len(self._random)

    @contextmanager
    def first(self, device: torch.device) -> Iterator[None]:
        """Within the context the model runs on the next part for the first time, without gradient."""
        self._random.append(_random_state(device))
        with torch.no_grad():
            yield
        # Autocast may keep weights that it cast without gradient; used again, they would give the second pass none.
        torch.clear_autocast_cache()

    def second(self, device: torch.device) -> None:
        """Called before the model runs on the next part for the second time, in the same order."""
        if not self.num_second:
            with torch.no_grad():
                for name, buffer in self._model.named_buffers():
                    before = self._buffers.get(name)
                    # A cache that the first pass has made, or made larger, is the same in the second.
                    if before is not None and before.shape == buffer.shape:
                        buffer.copy_(before)
        _set_random_state(self._random[self.num_second], device)
        self.num_second += 1


def accumulate(
    loss: PairwiseAUCLoss | AUCSegLoss,
    model: nn.Module,
    micro_batches: Iterable[tuple[Any, Tensor]],
    backward: Callable[[Tensor], Any] = torch.Tensor.backward,
) -> Tensor:
    """Adds the gradient of the whole batch to the parameters; see `MicroBatchAUC`.

    Under `DistributedDataParallel` the gradients are synchronized once, with the last micro-batch.

    Args:
        loss: The loss.
        model: From inputs to logits.
        micro_batches: Pairs of inputs and target. They are kept until the second pass, also those of an iterator.
        backward: Called with each loss; for a scaler `lambda loss: scaler.scale(loss).backward()`, in a
            LightningModule with manual optimization `self.manual_backward`.

    Returns:
        The loss of the whole batch, detached.

    Raises:
        ValueError: No micro-batch, a model with lazy modules, or a loss that is computed by sorting.
        TypeError: A loss that has no sums over micro-batches.

    Example:
        >>> import torch
        >>> from aucseg.losses import PairwiseAUCLoss, accumulate
        >>> model = torch.nn.Conv2d(3, 4, 1)
        >>> batch = torch.randn(6, 3, 8, 8), torch.randint(0, 4, (6, 8, 8))
        >>> value = accumulate(PairwiseAUCLoss(), model, list(zip(batch[0].split(2), batch[1].split(2))))
        >>> bool(model.weight.grad.abs().sum() > 0)
        True
    """
    micro_batches = list(micro_batches)
    if not micro_batches:
        raise ValueError("accumulate() needs at least one micro-batch")
    whole = MicroBatchAUC(loss, model)
    for inputs, target in micro_batches:
        whole.collect(inputs, target)
    for number, (inputs, target) in enumerate(micro_batches, 1):
        no_sync = getattr(model, "no_sync", None)
        with no_sync() if no_sync and number < len(micro_batches) else nullcontext():
            value = whole.loss(inputs, target)
            backward(value)
    return value.detach()


def _random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    module = None if device.type == "cpu" else torch.get_device_module(device)
    return torch.get_rng_state(), module.get_rng_state(device) if module else None


def _set_random_state(state: tuple[Tensor, Tensor | None], device: torch.device) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.get_device_module(device).set_rng_state(state[1], device)
