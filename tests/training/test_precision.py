"""Every precision of Lightning trains, with bank, guard, clipping and accumulation."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn

from aucseg import AUCSegLoss, SegmentationTask
from aucseg.cli import main
from aucseg.commands import fit as lightning_cli
from aucseg.inference.predictor import InferenceOptions, Predictor
from aucseg.losses.build import LOSSES, build_loss
from aucseg.metrics import GroupedMeanIoU, PixelAUROC, PixelAveragePrecision
from aucseg.models.hub import HubModel
from aucseg.training.step_guard import StepGuard
from tests.small_runs import make_trainer
from tests.training.faults import SKIPPED, Scaled, States, same
from tests.training.tiny_tasks import make_data, make_task
from tests.two_processes import arguments

STEPS = 10
WIDTHS = {"16-true": torch.float16, "bf16-true": torch.bfloat16, "64-true": torch.float64}
BANK = {"capacity": 2, "sample_ratio": 1.0, "min_pixels": 4, "scope": "image"}


class Steps(Callback):
    """Loss and input of each batch, and the norm of the gradients that each step was taken with."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.inputs: list[tuple[Tensor, Tensor]] = []
        self.norms: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        assert isinstance(pl_module, SegmentationTask)
        assert pl_module.last_input is not None
        self.losses.append(float(trainer.callback_metrics["train/loss"]))
        self.inputs.append(pl_module.last_input)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        def after_step(optimizer: torch.optim.Optimizer, *_: Any) -> None:
            gradients = [p.grad.double() for group in optimizer.param_groups for p in group["params"]]
            self.norms.append(float(torch.stack([gradient.norm() for gradient in gradients]).norm()))

        trainer.optimizers[0].register_step_post_hook(after_step)


def trained(card: Path, folder: Path, accelerator: str = "cpu", **options: Any) -> tuple[SegmentationTask, Steps]:
    task = make_task(card, bank=BANK, pixel_metrics=True, learning_rate=2e-3, evaluation={"window": (32, 32)})
    before = {name: value.clone() for name, value in task.model.state_dict().items()}
    guard, steps = StepGuard(warmup=0), Steps()
    trainer = make_trainer(
        folder,
        STEPS,
        accelerator,
        callbacks=[guard, steps],
        gradient_clip_val=0.5,
        accumulate_grad_batches=2,
        **options,
    )
    trainer.fit(task, make_data(card))
    assert trainer.global_step == STEPS
    assert guard.num_skipped == 0
    for name, value in task.model.state_dict().items():
        assert value.isfinite().all(), name
        if value.ndim > 1:  # the scales of norms are 1: bfloat16 does not take small steps from there
            assert not torch.equal(value.cpu().double(), before[name].double()), name
    for name in ("val/loss", "val/miou", "val/auroc"):
        assert math.isfinite(trainer.callback_metrics[name]), name
    return task, steps


def check_against_single_precision(card: Path, folder: Path, accelerator: str = "cpu", **options: Any) -> None:
    _, expected = trained(card, folder, accelerator)
    task, found = trained(card, folder, accelerator, **options)
    dtype = WIDTHS.get(options.get("precision", ""), torch.float32)
    assert {parameter.dtype for parameter in task.model.parameters()} == {dtype}
    assert min(torch.finfo(value.dtype).bits for value in (task.mean, task.std)) >= 32
    # The same batches, pastes included: half precision is for the network alone.
    for (image, mask), (other_image, other_mask) in zip(found.inputs, expected.inputs, strict=True):
        assert torch.equal(image, other_image)
        assert torch.equal(mask, other_mask)
    torch.testing.assert_close(found.losses, expected.losses, rtol=0.05, atol=0.02)
    assert max(found.norms) <= 0.5 * 1.01
    torch.testing.assert_close(found.norms, expected.norms, rtol=0.1, atol=0.02)


@pytest.mark.parametrize("precision", ["64-true", "bf16-mixed", "bf16-true", "16-true"])
def test_training_in_each_precision_is_like_that_in_single(
    tiny_card: Path, tmp_path: Path, precision: str, capsys: pytest.CaptureFixture[str]
) -> None:
    check_against_single_precision(tiny_card, tmp_path, precision=precision)
    assert ("is rounded away" in capsys.readouterr().err) == (precision in ("bf16-true", "16-true"))


def test_training_under_a_gradient_scaler_is_like_that_without(tiny_card: Path, tmp_path: Path) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    check_against_single_precision(tiny_card, tmp_path, plugins=[MixedPrecision("16-mixed", "cpu", scaler)])


@pytest.mark.parametrize("precision", ["bf16-true", "16-true", "64-true", "scaler"])
def test_micro_batches_in_each_precision(tiny_card: Path, tmp_path: Path, precision: str) -> None:
    """One step's loss and norm, of the batch as a whole; the network has no batch normalization."""
    found: dict[str, Steps] = {}
    for name in ("32-true", precision):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.GELU(), nn.Conv2d(8, 4, 3, padding=1))
        task = SegmentationTask(str(tiny_card), network, loss=AUCSegLoss(), warmup_steps=1, micro_batches=2)
        found[name], guard = Steps(), StepGuard()
        scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
        options: dict[str, Any] = {"precision": name}
        if name == "scaler":
            options = {"plugins": [MixedPrecision("16-mixed", "cpu", scaler)]}
        trainer = make_trainer(tmp_path, 3, callbacks=[found[name], guard], gradient_clip_val=0.5, **options)
        trainer.fit(task, make_data(tiny_card))
        assert guard.num_skipped == 0
    torch.testing.assert_close(found[precision].losses, found["32-true"].losses, rtol=0.02, atol=0.01)
    torch.testing.assert_close(found[precision].norms, found["32-true"].norms, rtol=0.05, atol=0.01)


def test_fit_resume_validate_and_predict_in_true_half_precision(tiny_card: Path, tmp_path: Path) -> None:
    more = {"trainer.precision": "bf16-true", "trainer.gradient_clip_val": 1.0, "model.bank_exchange_every": 0}
    out = tmp_path / "run"
    for steps in (2, 4):
        options = {**more, "resume": "auto", "trainer.max_steps": steps, "trainer.val_check_interval": steps}
        assert lightning_cli.run("fit", arguments(tiny_card, out, **options)) == 0
    last = out / "checkpoints" / "last.ckpt"
    weights = torch.load(last, weights_only=True)["state_dict"]
    assert {value.dtype for name, value in weights.items() if name.endswith("weight")} == {torch.bfloat16}
    trained_result = json.loads((out / "result.json").read_text())
    assert trained_result["step"] == 4
    validate = arguments(tiny_card, tmp_path / "again", **more, ckpt_path=last)
    assert lightning_cli.run("validate", validate) == 0
    again = json.loads((tmp_path / "again" / "result.json").read_text())
    assert again["metrics"] == trained_result["metrics"]
    images = tiny_card.parent / "images" / "val"
    assert main(["predict", str(out), str(images), "--out", str(tmp_path / "labels"), "--device", "cpu"]) == 0


@pytest.mark.filterwarnings("ignore:You passed .Trainer:UserWarning")
def test_float16_autocast_on_the_cpu_becomes_what_the_cpu_has(tiny_card: Path, tmp_path: Path) -> None:
    check_against_single_precision(tiny_card, tmp_path, precision="16-mixed")


class Blown(nn.Module):
    """A finite loss whose gradient is infinite in the given step."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.step, self.calls = step, 0

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        loss: Tensor = logits.float().square().mean()
        self.calls += self.training
        if self.training and self.calls - 1 == self.step:
            loss = loss + (logits - logits.detach()).abs().sqrt().sum()
        return loss


def guarded(card: Path, folder: Path, loss: nn.Module, scale: float, fused: bool, guard: StepGuard) -> States:
    """Nine steps under a gradient scaler, with clipping."""
    task, states = make_task(card, loss=loss), States()
    if not fused:
        configure = task.configure_optimizers

        def unfused() -> Any:
            configured: Any = configure()
            configured["optimizer"].defaults["fused"] = False
            for group in configured["optimizer"].param_groups:
                group["fused"] = False
            del configured["optimizer"]._step_supports_amp_scaling
            return configured

        task.configure_optimizers = unfused  # type: ignore[method-assign]
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    trainer = make_trainer(
        folder,
        9,
        callbacks=[states, guard],
        plugins=[MixedPrecision("16-mixed", "cpu", scaler)],
        gradient_clip_val=0.01,
    )
    trainer.fit(task, make_data(card))
    assert all(value.isfinite().all() for value in task.state_dict().values() if isinstance(value, Tensor))
    return states


@pytest.mark.filterwarnings(SKIPPED)
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("factor", [100.0, math.inf, math.nan])
def test_a_guarded_step_under_a_scaler_changes_nothing(
    tiny_card: Path, tmp_path: Path, fused: bool, factor: float
) -> None:
    norms = {}
    for scale in (1.0, 64.0):
        guard = StepGuard(spike_factor=10.0, warmup=2)
        folder = tmp_path / str(scale)
        states = guarded(tiny_card, folder, Scaled(AUCSegLoss(), factor, {5}), scale, fused, guard)
        assert guard.num_skipped == 1
        assert same(*states.before[5:7])
        assert not same(*states.before[4:6])
        assert not same(*states.before[6:8])
        (kept,) = (folder / "skipped").iterdir()
        norms[scale] = torch.load(kept, weights_only=True)["gradient_norm"]
    if math.isfinite(factor):
        assert norms[1.0] > 0.01  # that before clipping
        assert norms[64.0] == pytest.approx(norms[1.0], rel=0.05)


@pytest.mark.parametrize("fused", [True, False])
def test_gradients_that_overflow_are_left_to_the_scaler(tiny_card: Path, tmp_path: Path, fused: bool) -> None:
    guard = StepGuard()
    states = guarded(tiny_card, tmp_path, Blown(5), 64.0, fused, guard)
    assert guard.num_skipped == 0
    weights = [{n: v for n, v in state["model"].items() if "running" not in n} for state in states.before]
    assert not same(*weights[4:6])
    assert same(*weights[5:7])
    assert not same(*weights[6:8])


def test_large_gradients_in_float16_are_no_infinite_norm(tiny_card: Path, tmp_path: Path) -> None:
    """The squares of numbers far below float16's largest sum up to more."""

    class Steep(nn.Module):
        def forward(self, logits: Tensor, target: Tensor) -> Tensor:
            return logits.float().sum() * 40

    class Look(Callback):
        def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
            gradients = [parameter.grad for parameter in pl_module.parameters() if parameter.grad is not None]
            assert all(gradient.isfinite().all() for gradient in gradients)
            assert any(gradient.norm().isinf() for gradient in gradients), "the data do not show what the test is about"

    guard = StepGuard()
    task = make_task(tiny_card, loss=Steep(), learning_rate=1e-5)
    make_trainer(tmp_path, 3, callbacks=[Look(), guard], precision="16-true").fit(task, make_data(tiny_card))
    assert guard.num_skipped == 0


def test_loss_metrics_and_normalization_keep_their_digits() -> None:
    loss = nn.Module()
    loss.register_buffer("class_weight", torch.tensor([0.1]))
    task = SegmentationTask("freedoom_lt", nn.Conv2d(3, 13, 1), loss=loss).half()
    assert task.model.weight.dtype == torch.float16
    assert {value.dtype for value in (task.mean, task.std, loss.class_weight)} == {torch.float32}
    assert torch.equal(task.mean.flatten(), torch.tensor(task.hparams["mean"]))
    assert task.double().mean.dtype == task.model.weight.dtype == torch.float64
    assert task.to("meta").mean.device.type == task.model.weight.device.type == "meta"


@pytest.mark.parametrize("window", [None, (20, 20)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_predictor_takes_models_of_any_precision(dtype: torch.dtype, window: tuple[int, int] | None) -> None:
    torch.manual_seed(0)
    model = nn.Conv2d(3, 5, 1).eval()
    image = torch.randint(256, (3, 33, 40), dtype=torch.uint8)
    options = InferenceOptions(window=window, stride=window and (7, 7))
    settings: dict[str, Any] = {"pixel_mean": [120.0] * 3, "pixel_std": [60.0] * 3}
    expected = Predictor(model, options, **settings).logits(image)
    with default_dtype(dtype):
        found = Predictor(model.to(dtype), options, **settings).logits(image)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02)


def test_published_models_run_in_half_precision() -> None:
    settings: dict[str, Any] = {"class_names": ["a", "b"], "palette": [(0, 0, 0), (9, 9, 9)]}
    options = {"encoder": "tu-mobilenetv3_small_050", "decoder_pyramid_channels": 32}
    model = HubModel("smp/fpn", pixel_mean=[120.0] * 3, pixel_std=[60.0] * 3, options=options, **settings).eval()
    images = torch.randint(256, (1, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        expected, found = model(images), model.bfloat16()(images)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, rtol=0.05, atol=0.05)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """As Lightning sets it around each step in true half or double precision."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_the_same_under_any_default_dtype(name: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(0, 4, (2, 24, 28), generator=generator)
    target[:, :2] = 255
    values = []
    for default in (torch.float32, dtype):
        logits = torch.randn(2, 4, 12, 14, generator=generator.manual_seed(1), dtype=torch.float32, requires_grad=True)
        torch.manual_seed(2)
        with default_dtype(default):
            loss = build_loss(name, [9000, 900, 90, 9], ignore_index=255).train()(logits, target)
            loss.backward()
        assert loss.dtype == torch.float32
        assert logits.grad is not None
        values.append((loss.detach(), logits.grad))
    for found, expected in zip(*values, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("make", [GroupedMeanIoU, PixelAUROC, PixelAveragePrecision])
def test_metrics_are_the_same_under_any_default_dtype(make: Any, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 40, 50, generator=generator)
    target = torch.randint(0, 4, (2, 40, 50), generator=generator)
    results = []
    for default in (torch.float32, dtype):
        with default_dtype(default):
            metric = make(4)
            for _ in range(3):
                metric.update(logits, target)
            results.append(metric.details())
    for name, value in results[0].items():
        assert torch.equal(results[1][name].double(), value.double()), name


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", ["64-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true"])
def test_training_in_each_precision_on_a_gpu(tiny_card: Path, tmp_path: Path, precision: str) -> None:
    check_against_single_precision(tiny_card, tmp_path, "gpu", precision=precision)
