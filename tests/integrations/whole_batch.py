"""One update of a network in each framework, from a batch in parts and over processes: all must equal the whole.

Run under torchrun, it saves what every framework makes of the batch: `-m tests.integrations.whole_batch FOLDER`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from aucseg.losses import AUCSegLoss, accumulate

NUM_CLASSES = 5
# Parts of the batch on each process.
PARTS = (1, 2)


def batch() -> tuple[Tensor, Tensor]:
    """Eight images, of which every half and quarter is unlike the whole: other classes, other numbers of pixels."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(8, 3, 6, 6, generator=generator, dtype=torch.float64)
    target = torch.randint(0, 3, (8, 12, 12), generator=generator)
    target[0, :2], target[1, 3:9], target[2], target[3], target[6, :, :5] = 3, 255, 1, 255, 3
    return images, target


class Network(nn.Module):
    """No batch normalization, no dropout: the gradient of a batch is that of its parts. In float64."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.GELU(), nn.Conv2d(4, NUM_CLASSES, 1)).double()

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.layers(images)
        return logits


class ModelOutput(nn.Module):
    """The network with the names of Hugging Face's models."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        return {"logits": self.network(pixel_values)}


def make_loss() -> AUCSegLoss:
    return AUCSegLoss(2.0, 0.5, class_weight=torch.tensor([1.0, 2.0, 0.5, 3.0, 1.0]), label_smoothing=0.1)


Update = tuple[float, dict[str, Tensor]]


def update_by(framework: Callable[..., float], parts: int, folder: Path) -> Update:
    """The loss that a framework tells and the weights after one step of SGD at rate 1."""
    network = Network()
    value = framework(network, make_loss(), parts, folder)
    return value, {name: tensor.clone() for name, tensor in network.state_dict().items()}


def expected_update() -> Update:
    """By PyTorch alone, in one process and one batch."""
    network, (images, target) = Network(), batch()
    loss = make_loss()(network(images), target)
    loss.backward()
    torch.optim.SGD(network.parameters(), 1.0).step()
    return loss.item(), network.state_dict()


def differences(found: Update, expected: Update) -> float:
    """The largest difference of loss and weights."""
    weights = [(found[1][name] - value).abs().max().item() for name, value in expected[1].items()]
    return max(abs(found[0] - expected[0]), *weights)


def of_this_process(parts: int) -> list[tuple[Tensor, Tensor]]:
    """Its share of the batch, in parts."""
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    images, target = (tensor.chunk(ranks)[rank] for tensor in batch())
    return list(zip(images.chunk(parts), target.chunk(parts), strict=True))


def pair_pixels_of_all_processes(loss: AUCSegLoss) -> None:
    if dist.is_initialized():
        loss.auc.process_group = dist.group.WORLD


def plain(network: nn.Module, loss: AUCSegLoss, parts: int, folder: Path) -> float:
    model = nn.parallel.DistributedDataParallel(network) if dist.is_initialized() else network
    pair_pixels_of_all_processes(loss)
    value = accumulate(loss, model, of_this_process(parts))
    torch.optim.SGD(network.parameters(), 1.0).step()
    return value.item()


def accelerate(network: nn.Module, loss: AUCSegLoss, parts: int, folder: Path) -> float:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    pair_pixels_of_all_processes(loss)
    model, optimizer = accelerator.prepare(network, torch.optim.SGD(network.parameters(), 1.0))
    value = accumulate(loss, model, of_this_process(parts), accelerator.backward)
    optimizer.step()
    return value.item()


def lightning(network: nn.Module, loss: AUCSegLoss, parts: int, folder: Path) -> float:
    import lightning.pytorch as pl

    class Segmenter(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False
            self.model, self.loss_fn = network, loss

        def on_fit_start(self) -> None:
            pair_pixels_of_all_processes(self.loss_fn)

        def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
            images, masks = batch
            optimizer: Any = self.optimizers()
            optimizer.zero_grad()
            micro_batches = zip(images.chunk(parts), masks.chunk(parts), strict=True)
            self.log("loss", accumulate(self.loss_fn, self.model, micro_batches, self.manual_backward))
            optimizer.step()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 1.0)

    ranks = dist.get_world_size() if dist.is_initialized() else 1
    loader: Any = torch.utils.data.DataLoader(list(zip(*batch(), strict=True)), batch_size=8 // ranks)  # type: ignore[arg-type]
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    strategy = "ddp" if ranks > 1 else "auto"
    trainer = pl.Trainer(
        max_steps=1, accelerator="cpu", devices=ranks, strategy=strategy, enable_model_summary=False, **quiet
    )
    trainer.fit(Segmenter(), loader)
    return float(trainer.callback_metrics["loss"])


def hugging_face(network: nn.Module, loss: AUCSegLoss, parts: int, folder: Path) -> float:
    from transformers import TrainingArguments

    from aucseg.integrations.hf import AUCSegTrainer

    ranks = dist.get_world_size() if dist.is_initialized() else 1
    arguments = TrainingArguments(
        str(folder),
        max_steps=1,
        per_device_train_batch_size=8 // ranks // parts,
        gradient_accumulation_steps=parts,
        max_grad_norm=0,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        lr_scheduler_type="constant",
    )
    samples: Any = [{"pixel_values": image, "labels": mask} for image, mask in zip(*batch(), strict=True)]
    optimizers: Any = (torch.optim.SGD(network.parameters(), 1.0), None)
    trainer = AUCSegTrainer(ModelOutput(network), arguments, loss=loss, train_dataset=samples, optimizers=optimizers)
    trainer.train()
    return float(next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry))


# The fifth, mmsegmentation, has an environment of its own: tests/integrations/mmseg/test_whole_batch.py.
FRAMEWORKS: dict[str, Callable[..., float]] = {
    "plain PyTorch": plain,
    "accelerate": accelerate,
    "Lightning": lightning,
    "Hugging Face": hugging_face,
}


def main(folder: Path) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    results = {
        (name, parts): update_by(framework, parts, folder) for name, framework in FRAMEWORKS.items() for parts in PARTS
    }
    torch.save(results, folder / f"{dist.get_rank()}.pt")
    dist.barrier()
    sys.stdout.flush()
    os._exit(0)  # gloo's threads may outlive the group, and abort a process that they see being torn down


def results_in_two_processes(module: str, folder: Path) -> list[Any]:
    """What each of two processes of a module has saved in the folder."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*launcher, "-m", module, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
