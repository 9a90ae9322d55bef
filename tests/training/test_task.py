from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer
from PIL import Image
from torch import Tensor, nn

from aucseg import AUCSegLoss, SegmentationTask, class_weights
from aucseg.losses.baselines.logit_adjustment import LDAMLoss
from aucseg.memory_bank import TailMemoryBank
from tests.conftest import write_tiny_dataset
from tests.small_runs import make_trainer
from tests.training.tiny_tasks import TinyNetwork, make_data, make_task


class StopAt(Callback):
    """Saves a checkpoint after some steps and ends the run there."""

    def __init__(self, step: int, path: Path) -> None:
        self.step = step
        self.path = path

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)
            trainer.should_stop = True


def test_training_lowers_the_loss_and_learns_the_colours(tiny_card: Path, tmp_path: Path) -> None:
    task, trainer = make_task(tiny_card, learning_rate=0.02), make_trainer(tmp_path, 60)
    trainer.fit(task, make_data(tiny_card))
    assert float(trainer.callback_metrics["val/miou"]) > 0.5
    assert len(task.validated.per_class_iou) == 4
    assert sum(map(sum, task.validated.confusion)) == 4 * (48 * 64 - 3)


@pytest.mark.parametrize("precision", ["32-true", "64-true"])
def test_resumed_run_equals_the_uninterrupted_one(precision: Any, tiny_card: Path, tmp_path: Path) -> None:
    bank = {"capacity": 2, "sample_ratio": 1.0, "min_pixels": 4, "scope": "image"}
    whole = make_task(tiny_card, bank=bank)
    make_trainer(tmp_path, 6, precision=precision).fit(whole, make_data(tiny_card))

    stop, half = StopAt(3, tmp_path / "half.ckpt"), make_task(tiny_card, bank=bank)
    make_trainer(tmp_path, 6, callbacks=[stop], precision=precision).fit(half, make_data(tiny_card))
    torch.manual_seed(99)
    second, trainer = make_task(tiny_card, bank=bank), make_trainer(tmp_path, 6, precision=precision)
    trainer.fit(second, make_data(tiny_card), ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name]), name
    assert whole.bank is not None
    assert second.bank is not None
    assert whole.bank.nbytes == second.bank.nbytes > 0


class Wrapped(nn.Module):
    """A loss of one's own around one that has a schedule."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = LDAMLoss([1000, 100, 10, 1], max_margin=5.0)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        loss: Tensor = self.inner(logits, target)
        return loss


def test_a_loss_with_a_schedule_is_validated_as_far_as_it_was_trained(tiny_card: Path, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, 6)
    trainer.fit(make_task(tiny_card, loss=Wrapped()), make_data(tiny_card))
    trainer.save_checkpoint(tmp_path / "done.ckpt")
    again, task = make_trainer(tmp_path, 6), make_task(tiny_card, loss=Wrapped())
    again.validate(task, make_data(tiny_card), ckpt_path=tmp_path / "done.ckpt", weights_only=True, verbose=False)
    assert task.loss.inner.progress == 5 / 6  # type: ignore[union-attr]
    assert again.callback_metrics["val/loss"] == trainer.callback_metrics["val/loss"]


def test_an_average_of_the_weights_leaves_each_process_its_bank(
    tiny_card: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint with an average holds two states, and the current one is loaded last."""
    bank = {"capacity": 2, "sample_ratio": 1.0, "min_pixels": 4}
    trainer, task = make_trainer(tmp_path, 2), make_task(tiny_card, bank=bank)
    trainer.fit(task, make_data(tiny_card))
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    checkpoint = torch.load(tmp_path / "one.ckpt", weights_only=True)
    assert task.bank is not None
    others = {**task.bank.get_extra_state(), "images_seen": 77}
    checkpoint["processes"].append({**checkpoint["processes"][0], "bank": others})
    checkpoint["current_model_state"] = dict(checkpoint["state_dict"])
    monkeypatch.setattr(SegmentationTask, "global_rank", 1)
    monkeypatch.setattr(type(trainer), "world_size", 2)
    trainer.training = True
    task.on_load_checkpoint(checkpoint)
    for name in ("state_dict", "current_model_state"):
        assert checkpoint[name]["bank._extra_state"]["images_seen"] == 77


def test_checkpoint_is_self_contained_and_safe(tiny_card: Path, tmp_path: Path) -> None:
    task = SegmentationTask(
        str(tiny_card),
        "smp/fpn",
        {"encoder": "resnet18", "decoder_pyramid_channels": 32, "decoder_segmentation_channels": 32},
        loss="aucseg",
        bank={},
        warmup_steps=1,
    )
    trainer = make_trainer(tmp_path, 1)
    trainer.fit(task, make_data(tiny_card))
    path = tmp_path / "task.ckpt"
    trainer.save_checkpoint(path)
    checkpoint = torch.load(path, weights_only=True)
    assert {"processes", "hyper_parameters", "optimizer_states"} <= checkpoint.keys()

    loaded = SegmentationTask.load_from_checkpoint(path, weights_only=True).eval()
    assert loaded.card.class_names == ("ground", "box", "crate", "gem")
    images = torch.randint(0, 256, (1, 3, 48, 64), dtype=torch.uint8)
    torch.testing.assert_close(loaded(images), task.eval()(images))
    assert isinstance(loaded.bank, TailMemoryBank)


def test_schedule_warms_up_and_decays_to_zero(tiny_card: Path, tmp_path: Path) -> None:
    task = make_task(tiny_card, warmup_steps=4, warmup_factor=0.0, poly_power=1.0, head_rate_factor=10.0)
    task.trainer = make_trainer(tmp_path, 10)
    configured: Any = task.configure_optimizers()
    optimizer, scheduler = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    rates = []
    for _ in range(11):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    expected = [0.01 * (1 - step / 10) * min(1, step / 4) for step in range(11)]
    torch.testing.assert_close([row[0] for row in rates], expected)
    torch.testing.assert_close([row[-1] for row in rates], [10 * rate for rate in expected])


def test_rates_that_are_left_out_go_with_model_and_batch(
    tiny_card: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    open_settings = {"learning_rate": None, "warmup_steps": None}
    task = make_task(tiny_card, **open_settings)
    make_trainer(tmp_path, 30).fit(task, make_data(tiny_card))
    [optimizer] = task.trainer.optimizers
    # Those of a model of unknown family for batches of 8; these are of 4.
    rates = [group["initial_lr"] for group in optimizer.param_groups]
    assert min(rates) == pytest.approx(1e-4 * 0.5**0.5, rel=0.01)
    assert max(rates) == pytest.approx(1e-3 * 0.5**0.5, rel=0.01)
    assert "model.learning_rate 7.1e-05, model.head_rate_factor 10, model.warmup_steps 3" in capsys.readouterr().err
    given = make_task(tiny_card, **open_settings, head_rate_factor=2.0)
    given.hparams["model"], given.hparams["model_options"] = "smp/fpn", {"encoder": "tu-tf_efficientnet_lite0"}
    given.trainer = make_trainer(tmp_path, 10)
    configured: Any = given.configure_optimizers()
    assert {group["initial_lr"] for group in configured["optimizer"].param_groups} == {4e-3, 8e-3}


def test_norms_and_biases_do_not_decay_and_the_head_learns_faster(tiny_card: Path, tmp_path: Path) -> None:
    task = make_task(tiny_card, weight_decay=0.1, head_rate_factor=10.0)
    task.trainer = make_trainer(tmp_path, 10)
    configured: Any = task.configure_optimizers()
    settings = {
        id(parameter): (group["initial_lr"], group["weight_decay"])
        for group in configured["optimizer"].param_groups
        for parameter in group["params"]
    }
    network = task.model
    assert isinstance(network, TinyNetwork)
    assert settings[id(network.encoder[0].weight)] == (0.01, 0.1)
    assert settings[id(network.encoder[1].weight)] == (0.01, 0.0)
    assert settings[id(network.head.weight)] == (0.1, 0.1)
    assert settings[id(network.head.bias)] == (0.1, 0.0)


def test_bank_without_tail_classes_is_refused(tiny_card: Path, tmp_path: Path) -> None:
    text = tiny_card.read_text()
    without_groups = tmp_path / "card.yaml"
    without_groups.write_text(text[: text.index("groups:")] + text[text.index("ignore_ids:") :])
    with pytest.raises(ValueError, match="names no tail classes"):
        make_task(without_groups, bank={})


def test_epochs_are_refused_with_the_way_out(tiny_card: Path, tmp_path: Path) -> None:
    trainer = Trainer(
        default_root_dir=tmp_path, max_epochs=2, logger=False, enable_progress_bar=False, accelerator="cpu"
    )
    with pytest.raises(ValueError, match=r"give trainer.max_steps: .*'aucseg fit' takes trainer.max_epochs"):
        trainer.fit(make_task(tiny_card), make_data(tiny_card))


def test_the_bank_protects_a_group_of_the_card(tiny_card: Path) -> None:
    task = make_task(tiny_card, bank={"protect_classes": "middle"})
    assert task.bank is not None
    assert task.bank.protect_classes == (1, 2)
    with pytest.raises(ValueError, match=r"'centre', which is not a group of the card .*head, middle, tail"):
        make_task(tiny_card, bank={"protect_classes": "centre"})


def test_the_loss_weighs_classes_by_the_counts_of_the_training_split(tiny_card: Path, tmp_path: Path) -> None:
    options = {"class_weight": {"rule": "inverse", "power": 0.15}}
    task, data = make_task(tiny_card, loss="aucseg", loss_options=options), make_data(tiny_card)
    make_trainer(tmp_path, 2).fit(task, data)
    assert isinstance(task.loss, AUCSegLoss)
    torch.testing.assert_close(task.loss.class_weight, class_weights(data.class_counts(), "inverse", power=0.15))


def test_a_model_of_one_logit_is_validated(monkeypatch: pytest.MonkeyPatch) -> None:
    card = "name: two\nclasses: [{name: a}, {name: b}]\nsplits: {train: {images: 'i/*.png', masks: 'm/{stem}.png'}}\n"
    model = nn.Conv2d(3, 1, 1)
    task = SegmentationTask(card, model, loss=AUCSegLoss()).eval()
    monkeypatch.setattr(task, "log", lambda *_, **__: None)
    images = torch.randint(256, (2, 3, 6, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        target = (task(images)[:, 0] > 0).long()
        predicted = task.validation_step({"image": images, "mask": target}, 0)["predicted"]
    assert 0 < target.float().mean() < 1
    assert torch.equal(torch.stack(predicted), target)
    assert task.validation_metrics.iou.compute()["miou"] == 1


def test_images_without_a_label_have_no_part_in_the_validation_loss(tmp_path: Path) -> None:
    card = write_tiny_dataset(tmp_path, num_val=2)
    found = []
    for _ in range(2):
        trainer = make_trainer(tmp_path, 1)
        trainer.validate(make_task(card), make_data(card), verbose=False)
        found.append({name: float(value) for name, value in trainer.callback_metrics.items()})
        for index in (7, 8, 9):
            for kind in ("images", "masks"):
                file = tmp_path / kind / "val" / "frame_00.png"
                pixels = np.asarray(Image.open(file))
                pixels = np.full_like(pixels, 255) if kind == "masks" else pixels
                Image.fromarray(pixels).save(file.with_name(f"frame_{index:02d}.png"))
    assert found[1] == pytest.approx(found[0], rel=1e-6, nan_ok=True)
