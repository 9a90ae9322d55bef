"""Video: clips (B, T, C, H, W), one bank for all frames, so that what one clip showed comes back in others.

python examples/video_frames.py --steps 100
"""

import argparse

import torch

from aucseg import AUCSegLoss, TailMemoryBank, build_model

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=100)
args = parser.parse_args()
torch.manual_seed(0)
PALETTE = torch.tensor([[60, 60, 60], [200, 60, 60], [60, 200, 60]])


def clip(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two clips of three frames with a moving box (class 1); every fourth step a small one as well (class 2)."""
    masks = torch.zeros(2, 3, 48, 64, dtype=torch.long)
    for frame in range(3):
        masks[:, frame, 10:30, 8 * frame : 8 * frame + 20] = 1
        if step % 4 == 0:
            masks[0, frame, 35:41, 4 * frame + 30 : 4 * frame + 36] = 2
    noise = torch.randint(-30, 31, (2, 3, 3, 48, 64))
    return (PALETTE[masks].movedim(-1, 2) + noise).to(torch.uint8), masks.to(torch.uint8)


model = build_model("smp/fpn", 3, encoder="resnet18")
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
loss_fn = AUCSegLoss()
bank = TailMemoryBank([2], num_classes=3, presence_target=1.0, scope="batch")
for step in range(args.steps):
    frames, masks = (part.flatten(0, 1) for part in clip(step))  # frames of all clips as one batch
    frames, masks = bank(frames, masks)
    loss = loss_fn(model((frames - 127.0) / 128.0), masks)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(f"step {step + 1} loss {loss.item():.4f} objects pasted {len(bank.last_pastes)}")
