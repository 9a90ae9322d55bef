"""Volumes: MONAI's U-Net on a volume made here, the loss on logits (B, K, D, H, W).

python examples/monai_volume.py --steps 100

The bank takes volumes too; here there is nothing to paste.
"""

import argparse

import torch
from monai.networks.nets import UNet

from aucseg import AUCSegLoss

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=100)
args = parser.parse_args()
torch.manual_seed(0)

# A large ball (class 1) with a small one inside (class 2), brighter the smaller.
axis = torch.linspace(-1, 1, 32)
radius = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij")).square().sum(0).sqrt()
target = ((radius < 0.8).long() + (radius < 0.15).long())[None]
volume = target[:, None].float() + 0.3 * torch.randn(1, 1, 32, 32, 32)

model = UNet(spatial_dims=3, in_channels=1, out_channels=3, channels=(8, 16, 32), strides=(2, 2))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
loss_fn = AUCSegLoss()
for step in range(args.steps):
    loss = loss_fn(model(volume), target)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(f"step {step + 1} loss {loss.item():.4f}")
