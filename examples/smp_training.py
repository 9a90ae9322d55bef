"""segmentation_models_pytorch: its models and loop stay, only the loss changes and a bank comes before the model.

python examples/smp_training.py --steps 500
"""

import argparse

import segmentation_models_pytorch as smp
import torch
from torch.utils.data import DataLoader

from aucseg import AUCSegLoss, SegmentationDataset, TailMemoryBank
from aucseg.loading.transforms import training_transform

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=500)
args = parser.parse_args()
torch.manual_seed(0)

train = SegmentationDataset("freedoom_lt", transform=training_transform((96, 128), scale=(0.75, 1.5)))
num_classes, tail = train.card.num_classes, train.card.tail_classes

model = smp.Unet("resnet18", encoder_weights=None, classes=num_classes)
optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4)
loss_fn = AUCSegLoss(auc_weight=4.0)  # was: smp.losses.DiceLoss("multiclass", ignore_index=255)
bank = TailMemoryBank(tail, num_classes)

step = 0
while step < args.steps:
    for batch in DataLoader(train, batch_size=8, shuffle=True, drop_last=True):
        images, masks = bank(batch["image"], batch["mask"])
        loss = loss_fn(model((images - 127.0) / 128.0), masks)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step += 1
        print(f"step {step} loss {loss.item():.4f}")
        if step == args.steps:
            break
