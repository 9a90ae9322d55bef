"""A plain PyTorch loop with the loss and the bank, on Freedoom-LT: python examples/plain_pytorch.py --steps 500."""

import argparse

import torch
from torch.utils.data import DataLoader

from aucseg import AUCSegLoss, GroupedMeanIoU, SegmentationDataset, TailMemoryBank, build_model
from aucseg.loading.transforms import training_transform

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=500)
parser.add_argument("--images", type=int, default=None, help="validation images, all by default")
args = parser.parse_args()
torch.manual_seed(0)

train = SegmentationDataset("freedoom_lt", transform=training_transform((96, 128), scale=(0.75, 1.5)))
val = SegmentationDataset("freedoom_lt", split="val")
num_classes, groups = train.card.num_classes, train.card.groups

model = build_model("smp/fpn", num_classes, encoder="resnet18")
mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (model.pixel_mean, model.pixel_std))
optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4)
loss_fn = AUCSegLoss(auc_weight=4.0)
bank = TailMemoryBank(groups["tail"], num_classes)

step = 0
while step < args.steps:
    for batch in DataLoader(train, batch_size=8, shuffle=True, drop_last=True):
        images, masks = bank(batch["image"], batch["mask"])
        loss = loss_fn(model((images - mean) / std), masks)  # the logits may stay at a quarter of the size
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step += 1
        print(f"step {step} loss {loss.item():.4f}")
        if step == args.steps:
            break

model.eval()
metric = GroupedMeanIoU(num_classes, groups=groups)
with torch.no_grad():
    for index in range(len(val) if args.images is None else args.images):
        sample = val[index]
        metric.update(model((sample["image"][None] - mean) / std), sample["mask"][None])
print({name: round(float(value), 3) for name, value in metric.compute().items()})
