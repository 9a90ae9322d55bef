import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image
from torch import Tensor, nn

from aucseg import AUCSegLoss, SegmentationDataModule, SegmentationTask
from aucseg.training.step_guard import StepGuard, TrainingStopped
from tests.small_runs import make_trainer
from tests.training.faults import FAULTY_STEP, SKIPPED, Scaled, States, faulty_network, same
from tests.training.tiny_tasks import make_data, make_task


def train(card: Path, folder: Path, guard: StepGuard, steps: int = 6, **options: Any) -> States:
    states = States()
    trainer = make_trainer(folder, steps, callbacks=[states, guard])
    trainer.fit(make_task(card, **options), make_data(card))
    return states


@pytest.mark.filterwarnings(SKIPPED)
def test_step_with_nan_activations_changes_nothing_and_its_batch_is_kept(tiny_card: Path, tmp_path: Path) -> None:
    guard = StepGuard()
    task = make_task(tiny_card)
    task.model = faulty_network(math.nan, {FAULTY_STEP})
    states = States()
    make_trainer(tmp_path, 6, callbacks=[states, guard]).fit(task, make_data(tiny_card))
    assert guard.num_skipped == 1
    before, after = states.before[FAULTY_STEP : FAULTY_STEP + 2]
    assert same(before, after)
    assert not same(states.before[2], states.before[3])
    assert not same(states.before[4], states.before[5])
    assert all(parameter.isfinite().all() for parameter in task.model.state_dict().values())

    (path,) = (tmp_path / "skipped").iterdir()
    assert path.name == f"step-{FAULTY_STEP:07d}-rank-0.pt"
    kept = torch.load(path, weights_only=True)
    assert kept["reason"] == "the loss is nan"
    assert kept["image"].shape == (4, 3, 40, 48)
    assert kept["image"].dtype == torch.uint8
    assert kept["mask"].shape == (4, 40, 48)
    assert len(kept["name"]) == 4
    assert math.isnan(kept["loss"])


@pytest.mark.filterwarnings(SKIPPED)
@pytest.mark.parametrize("kind", ["fused", "plain"])
def test_infinite_gradient_is_skipped_by_any_optimizer(tiny_card: Path, tmp_path: Path, kind: str) -> None:
    class Blown(nn.Module):
        """A finite loss whose gradient is not."""

        calls = 0

        def forward(self, logits: Tensor, target: Tensor) -> Tensor:
            loss: Tensor = logits.square().mean()
            if self.training:
                self.calls += 1
                if self.calls - 1 == FAULTY_STEP:
                    loss = loss + (logits - logits.detach()).abs().sqrt().sum()
            return loss

    guard, states = StepGuard(), States()
    task = make_task(tiny_card, loss=Blown())
    if kind == "plain":
        original = task.configure_optimizers

        def unfused() -> Any:
            configured: Any = original()
            groups = configured["optimizer"].param_groups
            return torch.optim.SGD([{"params": group["params"]} for group in groups], lr=0.01, momentum=0.9)

        task.configure_optimizers = unfused  # type: ignore[method-assign]
    make_trainer(tmp_path, 6, callbacks=[states, guard]).fit(task, make_data(tiny_card))
    assert guard.num_skipped == 1
    assert same(*states.before[FAULTY_STEP : FAULTY_STEP + 2])
    assert not same(*states.before[4:6])
    (path,) = (tmp_path / "skipped").iterdir()
    assert "norm of the gradient" in torch.load(path, weights_only=True)["reason"]


@pytest.mark.filterwarnings(SKIPPED)
def test_loss_spike_is_skipped_after_the_warmup_alone(tiny_card: Path, tmp_path: Path) -> None:
    guard = StepGuard(spike_factor=5.0, warmup=4)
    states = train(tiny_card, tmp_path, guard, steps=9, loss=Scaled(AUCSegLoss(), 100.0, {2, 7}))
    assert (guard.num_skipped, guard.num_jumps) == (1, 1)
    assert not same(*states.before[2:4])
    assert same(*states.before[7:9])
    assert not (set(tmp_path.glob("skipped/*")) - {tmp_path / "skipped" / "step-0000007-rank-0.pt"})
    free = StepGuard(spike_factor=None, warmup=4)
    train(tiny_card, tmp_path, free, steps=9, loss=Scaled(AUCSegLoss(), 100.0, {7}))
    assert (free.num_skipped, free.num_jumps) == (0, 1)


def write_rare_dataset(root: Path) -> Path:
    """Twenty training images of background, one of which holds the rare class, hard to see; the path of the card."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 20), ("val", 1)):
        for index in range(count):
            mask = np.zeros((32, 32), np.uint8)
            image = rng.integers(100, 130, (32, 32, 3), dtype=np.uint8)
            if index == 0:
                mask[8:20, 8:20] = 1
                image[8:20, 8:20] += 6
            for kind, pixels in (("images", image), ("masks", mask)):
                (root / kind / split).mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(root / kind / split / f"{index:02d}.png")
    card = {
        "name": "defects",
        "classes": [{"name": "background"}, {"name": "defect"}],
        "splits": {s: {"images": f"images/{s}/*.png", "masks": f"masks/{s}/{{stem}}.png"} for s in ("train", "val")},
        "groups": {"head": ["background"], "middle": [], "tail": ["defect"]},
    }
    (root / "card.yaml").write_text(yaml.safe_dump(card))
    return root / "card.yaml"


def test_batches_with_a_rare_class_are_trained_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One batch in twenty holds the rare class: its loss jumps, and is what is to be learned."""
    card = write_rare_dataset(tmp_path)
    torch.manual_seed(0)
    head = nn.Conv2d(8, 2, 1)
    assert head.bias is not None
    head.bias.data = torch.tensor([4.0, -4.0])  # has learned that there is background alone
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), head)
    task = SegmentationTask(str(card), network, loss="ce", learning_rate=1e-3, warmup_steps=1)
    data = SegmentationDataModule(
        str(card), str(tmp_path), batch_size=1, num_workers=0, crop_size=(32, 32), scale=(1.0, 1.0), max_class_share=1.0
    )
    guard, states = StepGuard(warmup=15), States()
    make_trainer(tmp_path, 80, callbacks=[states, guard]).fit(task, data)
    assert guard.num_skipped == 0
    assert not (tmp_path / "skipped").exists()
    assert all(not same(one["model"], next_["model"]) for one, next_ in itertools.pairwise(states.before))
    assert guard.num_jumps >= 2, "the data do not show what the test is about"
    assert f"in {guard.num_jumps} of 80 steps the loss was more than 10 times" in capsys.readouterr().err


@pytest.mark.filterwarnings(SKIPPED)
def test_run_stops_after_too_many_and_says_where_to_look(tiny_card: Path, tmp_path: Path) -> None:
    guard = StepGuard(max_skipped=2, max_saved=1)
    with pytest.raises(TrainingStopped, match=r"3 steps were skipped, more than guard.max_skipped = 2.*skipped"):
        train(tiny_card, tmp_path, guard, loss=Scaled(AUCSegLoss(), math.inf, {1, 2, 4}))
    assert [path.name for path in (tmp_path / "skipped").iterdir()] == ["step-0000001-rank-0.pt"]


def test_a_guard_that_finds_nothing_changes_no_bit(tiny_card: Path, tmp_path: Path) -> None:
    with_guard = train(tiny_card, tmp_path, StepGuard())
    tasks = make_task(tiny_card)
    states = States()
    make_trainer(tmp_path, 6, callbacks=[states]).fit(tasks, make_data(tiny_card))
    assert same(with_guard.before[-1]["model"], states.before[-1]["model"])
    assert not (tmp_path / "skipped").exists()


def test_accumulated_batches_are_one_step(tiny_card: Path, tmp_path: Path) -> None:
    guard = StepGuard(max_skipped=0, warmup=1, spike_factor=1.9)
    trainer = make_trainer(tmp_path, 4, callbacks=[guard], accumulate_grad_batches=2)
    trainer.fit(make_task(tiny_card, learning_rate=1e-6), make_data(tiny_card))
    assert trainer.global_step == 4
    assert guard.num_skipped == 0


def test_counts_and_mean_go_through_a_state() -> None:
    guard, other = StepGuard(), StepGuard()
    guard.num_skipped, guard.num_jumps, guard._mean = 4, 9, torch.tensor([0.25, 7.0])
    other.load_state_dict(guard.state_dict())
    assert (other.num_skipped, other.num_jumps) == (4, 9)
    assert torch.equal(other._mean, guard._mean)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"max_skipped": -1}, "max_skipped"), ({"spike_factor": 1.0}, "spike_factor"), ({"warmup": -2}, "warmup")],
)
def test_options_out_of_range_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StepGuard(**options)


class Names(Callback):
    """The names in each batch of the training."""

    def __init__(self) -> None:
        self.names: list[list[str]] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Notes them."""
        self.names.append(list(batch["name"]))


@pytest.mark.filterwarnings(SKIPPED)
@pytest.mark.parametrize("faulty", [0, 1])
def test_of_accumulated_batches_the_one_to_blame_is_kept(tiny_card: Path, tmp_path: Path, faulty: int) -> None:
    names = Names()
    trainer = make_trainer(tmp_path, 2, callbacks=[names, StepGuard()], accumulate_grad_batches=2)
    trainer.fit(make_task(tiny_card, loss=Scaled(AUCSegLoss(), math.nan, {faulty})), make_data(tiny_card))
    (path,) = (tmp_path / "skipped").iterdir()
    assert list(torch.load(path, weights_only=True)["name"]) == names.names[faulty]
    assert names.names[0] != names.names[1]
