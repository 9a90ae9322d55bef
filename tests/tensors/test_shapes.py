"""Logits and labels that do not fit together: losses and metrics say the same."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from aucseg import AUCSegLoss
from aucseg.losses import build_loss
from aucseg.metrics import GroupedMeanIoU, PixelAUROC

USERS: dict[str, Callable[[Tensor, Tensor], object]] = {
    "AUCSegLoss": lambda logits, target: AUCSegLoss()(logits, target),
    "ce": lambda logits, target: build_loss("ce")(logits, target),
    "dice": lambda logits, target: build_loss("dice")(logits, target),
    "GroupedMeanIoU": lambda logits, target: GroupedMeanIoU(3).update(logits, target),
    "PixelAUROC": lambda logits, target: PixelAUROC(3).update(logits, target),
}
LOGITS, TARGET = torch.zeros(2, 3, 4, 4), torch.zeros(2, 8, 8, dtype=torch.int64)


@pytest.mark.parametrize("user", USERS)
@pytest.mark.parametrize(
    ("logits", "target", "message"),
    [
        (LOGITS, TARGET[:, None], "does not fit logits of shape (2, 3, 4, 4): expected (B, *spatial): pass target.sq"),
        (LOGITS, TARGET[:1], "target of shape (1, 8, 8) does not fit logits of shape (2, 3, 4, 4): expected (B, *sp"),
        (LOGITS, TARGET[:, :3], "logits of shape (2, 3, 4, 4) are larger than the target of shape (2, 3, 8)"),
        (LOGITS[0, 0, 0], TARGET[0, 0], "logits must be (N, K) or (B, K, *spatial) with K >= 1, got shape (4,)"),
        (LOGITS[:, :, :0], TARGET, "logits of shape (2, 3, 0, 4) hold no value for the target of shape (2, 8, 8)"),
        (LOGITS, TARGET.to("meta"), "logits are on cpu but target is on meta"),
        (LOGITS[..., None, None], TARGET[..., None, None], "upsampling is offered for one to three spatial dimensions"),
    ],
)
def test_what_does_not_fit_is_named_alike(user: str, logits: Tensor, target: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        USERS[user](logits, target)


@pytest.mark.parametrize("user", USERS)
def test_labels_that_are_no_integers_are_named_alike(user: str) -> None:
    with pytest.raises(TypeError, match=r"target must hold integer class ids .* got torch.float32: .*target.long\(\)"):
        USERS[user](LOGITS, TARGET.float())
    with pytest.raises(
        TypeError, match=r"(logits|preds) must be a torch.Tensor, got dict: pass the entry that holds it"
    ):
        USERS[user]({"out": LOGITS}, TARGET)  # type: ignore[arg-type]


@pytest.mark.parametrize("user", USERS)
def test_a_batch_without_images_is_taken(user: str) -> None:
    USERS[user](LOGITS[:0], TARGET[:0])
