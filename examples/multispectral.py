"""More than three channels: statistics, transforms, bank and model on images of six float bands.

python examples/multispectral.py --steps 100
"""

import argparse

import torch

from aucseg import AUCSegLoss, ClassStatistics, TailMemoryBank, build_model
from aucseg.loading.transforms import training_transform

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=100)
args = parser.parse_args()
torch.manual_seed(0)

NUM_CLASSES, BANDS = 4, 6
signatures = torch.rand(NUM_CLASSES, BANDS)  # reflectance of each class in each band


def scene(index: int) -> dict[str, torch.Tensor]:
    """Fields in quarters; one scene in four has a rare patch (class 3)."""
    mask = torch.randint(3, (2, 2)).repeat_interleave(40, 0).repeat_interleave(40, 1).to(torch.uint8)
    if index % 4 == 0:
        mask[30:40, 30:40] = 3
    image = signatures[mask.long()].permute(2, 0, 1) + 0.05 * torch.randn(BANDS, 80, 80)
    return {"image": image, "mask": mask}


scenes = [scene(index) for index in range(16)]
statistics = ClassStatistics(NUM_CLASSES)
for one in scenes:
    statistics.update(one["mask"])
tail = [int(statistics.frequency.argmin())]

transform = training_transform((64, 64), scale=(0.8, 1.25))  # three channels or not: colours are distorted by band
model = build_model("smp/fpn", NUM_CLASSES, encoder="resnet18", in_channels=BANDS)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
loss_fn = AUCSegLoss()
bank = TailMemoryBank(tail, NUM_CLASSES, presence_target=1.0)
for step in range(args.steps):
    samples = [transform(scenes[index]) for index in torch.randint(len(scenes), (4,)).tolist()]
    images, masks = bank(*(torch.stack([sample[key] for sample in samples]) for key in ("image", "mask")))
    loss = loss_fn(model(images - 0.5), masks)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(f"step {step + 1} loss {loss.item():.4f} patches pasted {len(bank.last_pastes)}")
