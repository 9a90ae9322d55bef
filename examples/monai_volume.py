"""Volumes: MONAI's U-Net, loss, bank, windows and metrics in three dimensions, on volumes with rare lesions made here.

python examples/monai_volume.py --presence 0.5
python examples/monai_volume.py --presence 0

One training volume of 24 holds lesions, so that most batches have none. `--presence` is the share of volumes that shall
hold one after the bank has pasted; with 0 it pastes nothing. `--oversample 12` draws the volumes with lesions twelve
times as often instead.
"""

import argparse

import torch
from monai.networks.nets import UNet

from aucseg import AUCSegLoss, GroupedMeanIoU, PixelAUROC, TailMemoryBank
from aucseg.inference.predictor import InferenceOptions, Predictor

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=300)
parser.add_argument("--presence", type=float, default=0.5)
parser.add_argument("--oversample", type=int, default=1)
parser.add_argument("--with_lesions", type=int, default=1, help="training volumes that hold lesions, of 24")
parser.add_argument("--seed", type=int, default=0)
args = parser.parse_args()
torch.manual_seed(args.seed)


def ball(size: tuple[int, ...], radius: float, margin: float) -> torch.Tensor:
    """A ball somewhere in the volume, at least `margin` voxels from its faces."""
    axes = [torch.arange(side) - (margin + float(torch.rand(())) * (side - 1 - 2 * margin)) for side in size]
    return torch.stack(torch.meshgrid(*axes, indexing="ij")).square().sum(0).sqrt() < radius


def volume(size: tuple[int, ...], num_lesions: int) -> tuple[torch.Tensor, torch.Tensor]:
    """An organ (1), vessels as bright as lesions, which are background, and lesions (2): image (1, D, H, W), labels."""
    labels = ball(size, 0.3 * min(size), 0.4 * min(size)).long()
    vessels = torch.zeros(size, dtype=torch.bool)
    for _ in range(3):  # straight, through the whole volume
        row, column = (int(torch.randint(side - 1, ())) for side in size[1:])
        vessels[:, row : row + 2, column : column + 2] = True
    labels[vessels] = 0
    for _ in range(num_lesions):
        labels[ball(size, 2.0 + 1.5 * float(torch.rand(())), 4)] = 2
    brightness = torch.tensor([0.0, 0.5, 1.0])[labels]
    brightness[vessels & (labels == 0)] = 1.0
    return (brightness + 0.4 * torch.randn(size))[None], labels


train = [volume((32, 32, 32), 2 if number < args.with_lesions else 0) for number in range(24)]
held_out = [volume((40, 48, 44), 2) for _ in range(8)]
model = UNet(spatial_dims=3, in_channels=1, out_channels=3, channels=(8, 16, 32), strides=(2, 2), num_res_units=1)
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
loss_fn = AUCSegLoss()
bank = TailMemoryBank([2], 3, presence_target=args.presence, placement="uniform")

epoch = train[: args.with_lesions] * args.oversample + train[args.with_lesions :]
order: list[int] = []
for step in range(args.steps):
    if len(order) < 2:
        order = torch.randperm(len(epoch)).tolist()
    images, masks = (torch.stack(part) for part in zip(epoch[order.pop()], epoch[order.pop()], strict=True))
    images, masks = bank(images, masks)
    loss = loss_fn(model(images), masks)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(f"step {step + 1} loss {loss.item():.4f} lesions pasted {len(bank.last_pastes)}")

predictor = Predictor(model.eval(), InferenceOptions(window=(32, 32, 32)))
iou, auc = GroupedMeanIoU(3), PixelAUROC(3, average="ovr")
for image, labels in held_out:
    logits = predictor.logits(image)[None]
    iou.update(logits, labels[None])
    auc.update(logits, labels[None])
scores = iou.details()
print(
    f"lesions: Dice {scores['per_class_f1'][2]:.3f} IoU {scores['per_class'][2]:.3f} "
    f"AUC {auc.details()['per_class'][2]:.3f}; organ: Dice {scores['per_class_f1'][1]:.3f}"
)
