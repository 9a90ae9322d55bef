"""Hugging Face Trainer: SegFormer with the loss on its small logits, the bank, IoU without logits.

python examples/hf_trainer.py --steps 500 --images 400
"""

import argparse
import tempfile
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import SegformerConfig, SegformerForSemanticSegmentation, TrainingArguments

from aucseg import AUCSegLoss, GroupedMeanIoU, SegmentationDataset, TailMemoryBank
from aucseg.integrations.hf import AUCSegTrainer
from datasets import Array2D, Array3D, Dataset, Features

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=500)
parser.add_argument("--images", type=int, default=400, help="training images; a quarter as many for validation")
args = parser.parse_args()
torch.manual_seed(0)

SIZE = (96, 128)
card = SegmentationDataset("freedoom_lt").card
features = Features({"image": Array3D((3, *SIZE), "uint8"), "mask": Array2D(SIZE, "uint8")})


def local_dataset(split: str, num_images: int) -> Dataset:
    """The upper left corners of the first images of a split."""
    source = SegmentationDataset("freedoom_lt", split=split)
    samples = [source[index] for index in range(num_images)]
    columns = {
        "image": [sample["image"][:, : SIZE[0], : SIZE[1]].numpy() for sample in samples],
        "mask": [sample["mask"][: SIZE[0], : SIZE[1]].numpy() for sample in samples],
    }
    return Dataset.from_dict(columns, features=features).with_format("torch")


bank = TailMemoryBank(card.tail_classes, card.num_classes)


def collate(samples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Stacks and normalizes."""
    images, masks = (torch.stack([sample[key] for sample in samples]) for key in ("image", "mask"))
    return {"pixel_values": (images.float() - 127.0) / 128.0, "labels": masks.long()}


def predicted_labels(logits: Any, labels: Tensor) -> Tensor:
    """Labels instead of logits are what the Trainer gathers: a byte a pixel."""
    logits = logits[0] if isinstance(logits, tuple) else logits
    return F.interpolate(logits, labels.shape[-2:], mode="bilinear", align_corners=False).argmax(1).to(torch.uint8)


def compute_metrics(prediction: Any) -> dict[str, float]:
    """Mean IoU, overall and of head, middle and tail."""
    metric = GroupedMeanIoU(card.num_classes, groups=card.groups)
    metric.update(torch.as_tensor(prediction.predictions), torch.as_tensor(prediction.label_ids))
    return {name: float(value) for name, value in metric.compute().items()}


config = SegformerConfig(
    num_labels=card.num_classes,
    hidden_sizes=[16, 32, 64, 128],
    depths=[1, 1, 1, 1],
    num_attention_heads=[1, 2, 4, 8],
    decoder_hidden_size=64,
)
with tempfile.TemporaryDirectory() as folder:
    arguments = TrainingArguments(
        folder,
        max_steps=args.steps,
        per_device_train_batch_size=8,
        learning_rate=5e-4,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        remove_unused_columns=False,  # the collator names them as the model does
        disable_tqdm=True,
    )
    trainer = AUCSegTrainer(
        SegformerForSemanticSegmentation(config),
        arguments,
        loss=AUCSegLoss(auc_weight=4.0),
        bank=bank,
        data_collator=collate,
        train_dataset=local_dataset("train", args.images),
        eval_dataset=local_dataset("val", max(1, args.images // 4)),
        compute_metrics=compute_metrics,
        preprocess_logits_for_metrics=predicted_labels,
    )
    trainer.train()
    for step, entry in enumerate((entry for entry in trainer.state.log_history if "loss" in entry), start=1):
        print(f"step {step} loss {float(entry['loss']):.4f}")
    print({key: round(value, 3) for key, value in trainer.evaluate().items() if "iou" in key or "tail" in key})
