"""The loss and the bank in a LightningModule of your own, on Freedoom-LT.

python examples/lightning_module.py --steps 500

`aucseg.SegmentationTask` and `aucseg.SegmentationDataModule` are a finished pair of module and data.
"""

import argparse
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from aucseg import AUCSegLoss, DatasetCard, SegmentationDataset, TailMemoryBank, build_model
from aucseg.loading.transforms import training_transform


class Segmenter(pl.LightningModule):
    """An encoder and decoder, the loss, and a bank, which becomes part of the checkpoint."""

    def __init__(self, card: DatasetCard) -> None:
        super().__init__()
        self.model = build_model("smp/fpn", card.num_classes, encoder="resnet18")
        self.loss_fn = AUCSegLoss(auc_weight=4.0)
        self.bank = TailMemoryBank(card.tail_classes, card.num_classes)

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """Pastes on the device; does nothing in evaluation."""
        images, masks = self.bank(batch["image"], batch["mask"])
        return {**batch, "image": images, "mask": masks}

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """The loss of a batch."""
        loss: Tensor = self.loss_fn(self.model((batch["image"] - 127.0) / 128.0), batch["mask"])
        print(f"step {self.global_step + 1} loss {loss.item():.4f}")
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW."""
        return torch.optim.AdamW(self.parameters(), lr=5e-4)


parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=500)
args = parser.parse_args()
pl.seed_everything(0, verbose=False)

train = SegmentationDataset("freedoom_lt", transform=training_transform((96, 128), scale=(0.75, 1.5)))
trainer = pl.Trainer(max_steps=args.steps, logger=False, enable_checkpointing=False, enable_progress_bar=False)
trainer.fit(Segmenter(train.card), DataLoader(train, batch_size=8, shuffle=True, drop_last=True))
