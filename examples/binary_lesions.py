"""Binary masks with one logit a pixel: small lesions, most images without one.

python examples/binary_lesions.py --steps 100

With one channel the loss is a sigmoid cross-entropy and the AUC of lesion against background.
"""

import argparse

import torch

from aucseg import AUCSegLoss, TailMemoryBank, build_model

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=100)
args = parser.parse_args()
torch.manual_seed(0)


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Four grey noisy images; every other batch has a bright lesion of 6 x 6 pixels."""
    masks = torch.zeros(4, 64, 64, dtype=torch.uint8)
    if step % 2 == 0:
        row, column = torch.randint(58, (2,)).tolist()
        masks[0, row : row + 6, column : column + 6] = 1
    noise = torch.randint(60, (4, 3, 64, 64))
    return (90 + noise + 80 * masks[:, None]).to(torch.uint8), masks


model = build_model("smp/fpn", 1, encoder="resnet18")
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
loss_fn = AUCSegLoss()
bank = TailMemoryBank([1], num_classes=2, presence_target=1.0, placement="uniform")
for step in range(args.steps):
    images, masks = bank(*batch(step))
    loss = loss_fn(model((images - 127.0) / 128.0), masks)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(f"step {step + 1} loss {loss.item():.4f} lesions pasted {len(bank.last_pastes)}")
