"""A task with a module of the user's own as model or loss, its own loader, and Lightning's other ways to run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset

from aucseg import AUCSegLoss, GroupedMeanIoU, SegmentationTask, build_model
from tests.small_runs import make_trainer
from tests.training.tiny_tasks import TinyNetwork, make_data, make_task

NUM_CLASSES = 4
EPOCHS: dict[str, Any] = {"check_val_every_n_epoch": 1, "val_check_interval": None}


class Returning(nn.Module):
    """A network that returns its logits in some other form."""

    def __init__(self, form: str, num_classes: int = NUM_CLASSES) -> None:
        super().__init__()
        self.form, self.convolution = form, nn.Conv2d(3, num_classes, 3, stride=4, padding=1)

    def forward(self, images: Tensor) -> Any:
        logits = self.convolution(images)
        return {"out": {"out": logits}, "aux": {"out": logits, "aux": logits}, "tuple": (logits,)}.get(
            self.form, {"logits": logits}
        )


def loader(num_images: int = 8) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(0)
    samples: Any = [
        {
            "image": torch.randint(256, (3, 32, 32), dtype=torch.uint8, generator=generator),
            "mask": torch.randint(NUM_CLASSES, (32, 32), generator=generator),
        }
        for _ in range(num_images)
    ]
    return DataLoader(samples, batch_size=2)


class Rates(Callback):
    """The learning rate after each step."""

    def __init__(self) -> None:
        self.found: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self.found.append(trainer.optimizers[0].param_groups[0]["lr"])


@pytest.mark.parametrize("form", ["out", "aux", "tuple", "logits"])
@pytest.mark.parametrize("evaluation", [None, {"window": [16, 16]}])
def test_a_module_may_return_its_logits_as_other_libraries_do(
    tiny_card: Path, tmp_path: Path, form: str, evaluation: dict[str, Any] | None
) -> None:
    network = Returning(form)
    task = SegmentationTask(str(tiny_card), network, loss="ce", learning_rate=1e-3, evaluation=evaluation)
    make_trainer(tmp_path, 1).fit(task, make_data(tiny_card))
    images = torch.randint(256, (1, 3, 32, 32), dtype=torch.uint8)
    assert torch.equal(task.eval()(images), network.convolution(task.normalize(images)))


@pytest.mark.parametrize("num_classes", [3, 7])
def test_a_module_of_other_classes_is_refused_in_the_first_step(
    tiny_card: Path, tmp_path: Path, num_classes: int
) -> None:
    task = SegmentationTask(str(tiny_card), Returning("logits", num_classes), loss="ce", learning_rate=1e-3)
    with pytest.raises(ValueError, match=rf"logits of shape \(2, {num_classes}, .*expected \(B, 4, h, w\)"):
        make_trainer(tmp_path, 1).fit(task, loader(), loader())


def test_a_task_is_validated_before_it_is_trained(tiny_card: Path, tmp_path: Path) -> None:
    task, data = make_task(tiny_card, pixel_metrics=True), make_data(tiny_card)
    for _ in range(2):
        make_trainer(tmp_path, 1).validate(task, data, verbose=False)
        trainer = make_trainer(tmp_path, 2)
        trainer.fit(task, data)
        assert float(trainer.callback_metrics["val/loss"]) > 0


@pytest.mark.parametrize("loss", ["ce", "ldam"])
def test_the_rate_falls_to_zero_over_epochs_of_ones_own_loader(tiny_card: Path, tmp_path: Path, loss: str) -> None:
    options = {"class_counts": [9, 5, 2, 1]} if loss == "ldam" else None
    task = make_task(tiny_card, loss=loss, loss_options=options, warmup_steps=2)
    rates = Rates()
    trainer = make_trainer(tmp_path, -1, max_epochs=3, callbacks=[rates], **EPOCHS)
    trainer.fit(task, loader(), loader())
    assert len(rates.found) == 12
    assert rates.found[2:] == sorted(rates.found[2:], reverse=True)
    assert rates.found[-1] == 0
    by_steps = Rates()
    make_trainer(tmp_path, 12, callbacks=[by_steps]).fit(
        make_task(tiny_card, loss=loss, loss_options=options, warmup_steps=2), loader(), loader()
    )
    assert rates.found == pytest.approx(by_steps.found)


class Endless(IterableDataset[Any]):
    """A data set without a length."""

    def __iter__(self) -> Iterator[Any]:
        return iter([loader().dataset[i] for i in range(8)])


@pytest.mark.parametrize("max_epochs", [-1, 2])
def test_a_training_without_a_known_end_is_refused(tiny_card: Path, tmp_path: Path, max_epochs: int) -> None:
    data = loader() if max_epochs == -1 else DataLoader(Endless(), batch_size=2)
    with pytest.raises(ValueError, match="the training has no known end"):
        make_trainer(tmp_path, -1, max_epochs=max_epochs, **EPOCHS).fit(make_task(tiny_card, loss="ce"), data, loader())


def test_a_schedule_of_ones_own_needs_no_end(tiny_card: Path, tmp_path: Path) -> None:
    schedule = {"class_path": "ConstantLR", "init_args": {"factor": 0.5}}
    task = make_task(tiny_card, loss="ce", schedule=schedule)
    stop = StopAfter(3)
    make_trainer(tmp_path, -1, max_epochs=-1, callbacks=[stop], **EPOCHS).fit(task, loader(), loader())
    assert task.global_step == 3


class StopAfter(Callback):
    """Ends a training."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        trainer.should_stop = trainer.global_step >= self.step


class WithSGD(SegmentationTask):
    """A task with an optimizer of its own."""

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.model.parameters(), 1e-3)


def test_a_task_may_have_an_optimizer_of_its_own(tiny_card: Path, tmp_path: Path) -> None:
    task = WithSGD(str(tiny_card), TinyNetwork(), loss="ldam", loss_options={"class_counts": [9, 5, 2, 1]})
    make_trainer(tmp_path, 2).fit(task, loader(), loader())
    assert task.global_step == 2


class Weighted(nn.Module):
    """The AUC loss and cross-entropy, weighted by how certain the training is of each."""

    def __init__(self) -> None:
        super().__init__()
        self.loss, self.log_variance = AUCSegLoss(), nn.Parameter(torch.zeros(()))

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        loss: Tensor = self.loss(logits, target) * torch.exp(-self.log_variance) + self.log_variance
        return loss


def test_parameters_of_a_loss_learn_and_are_resumed(tiny_card: Path, tmp_path: Path) -> None:
    trainer, loss = make_trainer(tmp_path, 4), Weighted()
    trainer.fit(make_task(tiny_card, loss=loss), make_data(tiny_card))
    assert loss.log_variance != 0
    trainer.save_checkpoint(tmp_path / "four.ckpt")
    resumed = Weighted()
    task = make_task(tiny_card, loss=resumed)
    make_trainer(tmp_path, 4).fit(task, make_data(tiny_card), ckpt_path=tmp_path / "four.ckpt", weights_only=True)
    assert torch.equal(resumed.log_variance, loss.log_variance)


class Decayed(nn.Module):
    """Cross-entropy with a penalty of a part of the model, which it holds."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        penalty = torch.stack([parameter.square().sum() for parameter in self.part.parameters()]).sum()
        loss: Tensor = AUCSegLoss(auc_weight=0.0)(logits, target) + 1e-3 * penalty
        return loss


@pytest.mark.parametrize("whole", [True, False])
def test_a_loss_may_hold_the_model(tiny_card: Path, tmp_path: Path, whole: bool) -> None:
    network = TinyNetwork()
    loss = Decayed(network if whole else network.head)
    task = SegmentationTask(str(tiny_card), network, loss=loss, learning_rate=1e-3)
    trainer = make_trainer(tmp_path, 1)
    trainer.fit(task, loader(), loader())
    plain = SegmentationTask(str(tiny_card), TinyNetwork(), loss="ce", learning_rate=1e-3)
    other = make_trainer(tmp_path, 1)
    other.fit(plain, loader(), loader())
    sizes = [
        [(len(group["params"]), group["weight_decay"]) for group in found.optimizers[0].param_groups]
        for found in (trainer, other)
    ]
    assert sizes[0] == sizes[1]


def test_the_model_is_called_as_a_module(tiny_card: Path) -> None:
    network, calls = build_model(TinyNetwork(), NUM_CLASSES), []
    network.register_forward_hook(lambda *_: calls.append(1))
    SegmentationTask(str(tiny_card), network, loss="ce").eval()(torch.zeros(1, 3, 32, 32))
    assert calls == [1]


def test_windows_of_a_model_in_training_are_refused(tiny_card: Path) -> None:
    task = make_task(tiny_card, evaluation={"window": [16, 16]})
    with pytest.raises(ValueError, match="the model is in training mode"):
        task.evaluation_logits(torch.zeros(1, 3, 32, 32))


def test_other_classes_are_refused_in_micro_batches_as_well(tiny_card: Path, tmp_path: Path) -> None:
    task = SegmentationTask(str(tiny_card), Returning("logits", 7), loss="aucseg", learning_rate=1e-3, micro_batches=2)
    with pytest.raises(ValueError, match=r"expected \(B, 4, h, w\)"):
        make_trainer(tmp_path, 1).fit(task, loader(), loader())


class OtherAuxiliary(Returning):
    """Auxiliary logits of something else, whose loss has no weight."""

    def forward(self, images: Tensor) -> Any:
        logits = self.convolution(images)
        return {"out": logits, "aux": logits[:, :1]}


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_auxiliary_logits_without_a_weight_have_no_loss(tiny_card: Path, tmp_path: Path, micro_batches: int) -> None:
    logged = []
    for kind in (OtherAuxiliary, Returning):
        torch.manual_seed(0)
        model = kind("out")
        task = SegmentationTask(str(tiny_card), model, loss="aucseg", learning_rate=1e-3, micro_batches=micro_batches)
        trainer = make_trainer(tmp_path, 1)
        trainer.fit(task, loader(), loader())
        logged.append(float(trainer.callback_metrics["train/loss"]))
    assert logged[0] == logged[1]


def test_a_checkpoint_asks_for_the_modules_that_it_does_not_hold(tiny_card: Path, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, 1)
    trainer.fit(
        SegmentationTask(str(tiny_card), TinyNetwork(), loss=AUCSegLoss(), learning_rate=1e-3), loader(), loader()
    )
    trainer.save_checkpoint(tmp_path / "own.ckpt")
    with pytest.raises(ValueError, match=r"the model is None: .*model=\.\.\."):
        SegmentationTask.load_from_checkpoint(tmp_path / "own.ckpt")
    task = SegmentationTask.load_from_checkpoint(tmp_path / "own.ckpt", model=TinyNetwork())
    with pytest.raises(ValueError, match=r"the loss is None: .*loss=\.\.\."):
        make_trainer(tmp_path, 1).validate(task, loader(), verbose=False)
    task = SegmentationTask.load_from_checkpoint(tmp_path / "own.ckpt", model=TinyNetwork(), loss=AUCSegLoss())
    make_trainer(tmp_path, 1).validate(task, loader(), verbose=False)


def test_predict_gives_the_labels_of_each_image(tiny_card: Path, tmp_path: Path) -> None:
    task = make_task(tiny_card, loss="la")  # which needs counts of classes, but not here
    predicted = make_trainer(tmp_path, 1).predict(task, loader(3))
    assert predicted is not None
    labels: list[Tensor] = [label for batch in predicted for label in batch]
    images = torch.cat([batch["image"] for batch in loader(3)])
    with torch.no_grad():
        logits = F.interpolate(task.eval()(images), scale_factor=4, mode="bilinear")
    assert torch.equal(torch.stack(labels), logits.argmax(1))


def test_numbers_of_classes_and_labels_may_be_numpys() -> None:
    number: Any = np.int64(3)
    label: Any = np.uint8(255)
    assert GroupedMeanIoU(number, ignore_index=label).num_classes == 3
    logits, target = torch.randn(1, 3, 4, 4), torch.randint(3, (1, 4, 4))
    loss = AUCSegLoss(ignore_index=label)
    assert torch.equal(loss(logits, target), AUCSegLoss()(logits, target))
