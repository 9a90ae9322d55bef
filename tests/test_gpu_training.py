"""Training on a GPU as people do it: compiled steps, data-parallel wrappers, the bank and the metrics without waiting.

What has no operation of CUDA's own also runs on the CPU, in the slow tier, so that the tests themselves are tested.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from aucseg import AUCSegLoss
from aucseg.memory_bank import TailMemoryBank
from aucseg.metrics import GroupedMeanIoU, PixelAUROC, PixelAveragePrecision
from aucseg.tensors.upsampling import predicted_labels
from tests.memory_bank.small_banks import NUM_CLASSES, assert_same, colours, make_bank, random_masks
from tests.on_gpu import no_waiting, run
from tests.two_processes import STEPS, arguments

ON_GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
CUDA = pytest.param("cuda", marks=ON_GPU)
DEVICES = [pytest.param("cpu", marks=pytest.mark.slow), CUDA]


def batches(number: int = 3) -> list[Tensor]:
    """Masks (3, 32, 40) of all classes."""
    generator = torch.Generator().manual_seed(3)
    return [random_masks(generator, 3, 32, 40) for _ in range(number)]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 1))


def losses_of(step: Any, model: nn.Module, bank: TailMemoryBank, device: str) -> list[float]:
    """The loss of a few steps of plain SGD."""
    optimizer, values = torch.optim.SGD(model.parameters(), 0.1), []
    for masks in batches():
        plan = bank.plan(masks)
        loss = step(model, bank, colours(masks).to(device), masks.to(device), plan)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        values.append(float(loss.detach()))
    return values


def one_step(model: nn.Module, bank: TailMemoryBank, images: Tensor, masks: Tensor, plan: Any) -> Tensor:
    images, masks = bank(images, masks, plan=plan)
    loss: Tensor = AUCSegLoss()(model(images.float() / 255), masks.long())
    return loss


def plain_losses() -> list[float]:
    return losses_of(one_step, network(), make_bank(), "cpu")


@pytest.mark.parametrize("device", DEVICES)
def test_a_compiled_step_with_loss_and_bank_is_the_plain_one(device: str) -> None:
    compiled = torch.compile(one_step, backend="inductor" if device == "cuda" else "aot_eager")
    found = losses_of(compiled, network().to(device), make_bank(), device)
    assert found == pytest.approx(plain_losses(), rel=1e-4)


@pytest.fixture
def process_group(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    device: str = request.param
    if device == "cuda":
        torch.cuda.set_device(0)
    store = dist.FileStore(  # type: ignore[attr-defined]
        str(tmp_path / "store"), 1
    )
    dist.init_process_group("nccl" if device == "cuda" else "gloo", store=store, rank=0, world_size=1)
    yield device
    dist.destroy_process_group()


@pytest.mark.parametrize("process_group", DEVICES, indirect=True)
@pytest.mark.parametrize("wrapper", ["ddp", "fsdp"])
def test_wrapped_models_train_like_the_plain_one(process_group: str, wrapper: str) -> None:
    """One process alone in its group: sums travel, gradients are reduced, batch normalization is synchronized."""
    from torch.nn.parallel import DistributedDataParallel

    model: nn.Module = network().to(process_group)
    if process_group == "cuda":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    if wrapper == "ddp":
        model = DistributedDataParallel(model)
    else:
        fsdp = pytest.importorskip("torch.distributed.fsdp")
        if not hasattr(fsdp, "fully_shard"):
            pytest.skip("torch has no fully_shard")
        fsdp.fully_shard(model, mesh=dist.device_mesh.init_device_mesh(process_group, (1,)))
    loss_fn = AUCSegLoss(process_group=dist.group.WORLD)

    def step(model: nn.Module, bank: TailMemoryBank, images: Tensor, masks: Tensor, plan: Any) -> Tensor:
        images, masks = bank(images, masks, plan=plan)
        loss: Tensor = loss_fn(model(images.float() / 255), masks.long())
        return loss

    found = losses_of(step, model, make_bank(), process_group)
    assert found == pytest.approx(plain_losses(), rel=1e-4)


@pytest.mark.parametrize("device", [CUDA])
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_fit_with_a_strategy_of_several_processes(device: str, strategy: str, tiny_card: Path, tmp_path: Path) -> None:
    more = {
        "trainer.accelerator": "gpu", "trainer.devices": 1, "trainer.strategy": strategy, "trainer.max_steps": STEPS
    }  # fmt: skip
    result = run("fit", *arguments(tiny_card, tmp_path / "run", **more))
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("device", [CUDA])
@pytest.mark.parametrize("options", [{}, {"scope": "batch", "placement": "uniform"}, {"resize_ratio": 0.6}], ids=str)
def test_with_a_plan_the_bank_waits_for_nothing(device: str, options: dict[str, Any]) -> None:
    bank, on_cpu = make_bank(**options), make_bank(**options)
    for number, masks in enumerate(batches(6)):
        images, plan = colours(masks), bank.plan(masks)
        moved = images.to(device), masks.to(device)
        if number < 2:  # the first calls may load kernels
            found = bank(*moved, plan=plan)
        else:
            with no_waiting():
                found = bank(*moved, plan=plan)
        assert_same([tensor.cpu() for tensor in found], list(on_cpu(images, masks)))


@pytest.mark.parametrize("device", [CUDA])
def test_a_plan_of_other_masks_is_an_error_of_the_device(device: str) -> None:
    """In a process of its own: CUDA is of no use after it."""
    code = (
        "import torch; from tests.test_gpu_training import batches, colours, make_bank\n"
        "masks, other = batches(2); bank = make_bank()\n"
        "bank(colours(masks).cuda(), masks.cuda(), plan=bank.plan(other)); torch.cuda.synchronize()"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode != 0
    assert "not those of the plan" in result.stderr


@pytest.mark.parametrize("device", [CUDA])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_validation_counts_without_waiting_what_the_cpu_counts(device: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, NUM_CLASSES, 24, 32, generator=generator).to(dtype)
    target = random_masks(generator, 2, 96, 128).long()
    for layout in (torch.contiguous_format, torch.channels_last):
        moved, labels = logits.to(device, memory_format=layout), target.to(device)
        predicted_labels(moved, (96, 128))
        metrics = [GroupedMeanIoU(NUM_CLASSES), PixelAUROC(NUM_CLASSES), PixelAveragePrecision(NUM_CLASSES)]
        for metric in metrics:
            metric.to(device)
        with no_waiting():
            found = predicted_labels(moved, (96, 128))
            metrics[0].update(found, labels)
            for metric in metrics[1:]:
                metric.update(moved, labels)
        assert torch.equal(found.cpu(), predicted_labels(logits, (96, 128)))  # bit by bit


@pytest.mark.parametrize("device", [CUDA])
@pytest.mark.parametrize("options", [{}, {"surrogate": "exponential", "scores": "softmax"}], ids=str)
def test_sums_of_micro_batches_wait_for_nothing(device: str, options: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, NUM_CLASSES, 16, 16, generator=generator)
    target = random_masks(generator, 2, 32, 32).long()
    loss = AUCSegLoss(**options)
    expected = loss.class_sums(logits, target)
    loss.class_sums(logits.to(device), target.to(device))
    moved = logits.to(device), target.to(device)
    with no_waiting():
        found = loss.class_sums(*moved)
    for name in ("counts", "positive", "negative", "entropy"):
        torch.testing.assert_close(getattr(found, name).cpu(), getattr(expected, name), rtol=1e-5, atol=1e-5)
