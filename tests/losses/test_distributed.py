"""Several processes, one loss: parameter gradients under DistributedDataParallel equal those of one process."""

from __future__ import annotations

import copy
import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import start_processes
from torch.nn.parallel import DistributedDataParallel

from aucseg.losses import AUCSegLoss, PairwiseAUCLoss, accumulate
from aucseg.losses.pairwise_auc import auc_losses, in_process_group

Loss = Callable[[Any], PairwiseAUCLoss | AUCSegLoss]

CASES: dict[str, Loss] = {
    "square": lambda group: PairwiseAUCLoss(process_group=group),
    "exponential, ova, softmax": lambda group: PairwiseAUCLoss(
        "exponential", strategy="ova", scores="softmax", process_group=group
    ),
    "logistic": lambda group: PairwiseAUCLoss("logistic", process_group=group),
    "pair weights": lambda group: PairwiseAUCLoss(pair_weight=torch.arange(25.0).view(5, 5), process_group=group),
    "with cross-entropy": lambda group: AUCSegLoss(
        2.0, 0.5, class_weight=torch.tensor([1.0, 2.0, 0.5, 3.0, 1.0]), label_smoothing=0.1, process_group=group
    ),
}


def batch() -> tuple[Tensor, Tensor]:
    """Four images; the last has no valid pixel, the third one class, class 4 is nowhere, class 3 in the first only."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(4, 3, 6, 6, generator=generator, dtype=torch.float64)
    target = torch.randint(0, 3, (4, 12, 12), generator=generator)
    target[0, :2], target[1, 0], target[2], target[3] = 3, 255, 1, 255
    return images, target


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.GELU(), nn.Conv2d(4, 5, 1)).double()


def gradients(model: nn.Module) -> list[Tensor]:
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def uneven(whole: Tensor, ranks: int, rank: int) -> Tensor:
    """The images of a rank where the first has as many more as there are more images than ranks."""
    counts = [len(whole) - ranks + 1] + [1] * (ranks - 1)
    return torch.split(whole, counts)[rank]


def step(make: Loss, group: Any, images: Tensor, target: Tensor, micro: bool) -> tuple[float, list[Tensor]]:
    """One loss and its parameter gradients; full-resolution losses see the target at the size of the logits."""
    model: nn.Module = network()
    if group is not None:
        model = DistributedDataParallel(model, process_group=group)
    loss_fn = make(group)
    if isinstance(loss_fn, PairwiseAUCLoss):
        target = target[:, ::2, ::2]
    if micro:
        value = accumulate(loss_fn, model, list(zip(images.split(1), target.split(1), strict=True)))
    else:
        value = loss_fn(model(images), target)
        value.backward()
    return value.item(), gradients(model)


def worker(rank: int, ranks: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=ranks)
    images, target = batch()
    parts = {
        "even": (images.chunk(ranks)[rank], target.chunk(ranks)[rank]),
        "uneven": (uneven(images, ranks, rank), uneven(target, ranks, rank)),
    }
    results = {
        (name, micro, split): step(make, dist.group.WORLD, *part, micro)
        for name, make in CASES.items()
        for micro in (False, True)
        for split, part in parts.items()
    }
    torch.save(results, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()
    os._exit(0)  # gloo's threads may outlive the group, and abort a process that they see being torn down


@pytest.mark.parametrize("ranks", [2, pytest.param(1, marks=pytest.mark.slow), pytest.param(4, marks=pytest.mark.slow)])
def test_ranks_agree_with_one_process(ranks: int, tmp_path: Path) -> None:
    start_processes(worker, (ranks, str(tmp_path)), nprocs=ranks, start_method="spawn")
    for rank in range(ranks):
        results = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for name, make in CASES.items():
            value, expected = step(make, None, *batch(), micro=False)
            for micro, split in itertools.product((False, True), ("even", "uneven")):
                other, found = results[name, micro, split]
                assert other == pytest.approx(value, rel=1e-9), (name, micro, split, rank)
                for a, b in zip(found, expected, strict=True):
                    assert (a - b).abs().max() <= 1e-9 * b.abs().max(), (name, micro, split, rank)


def test_group_is_set_within_the_context_alone() -> None:
    group: Any = object()
    loss = AUCSegLoss()
    seen = []
    with in_process_group(loss, group):
        seen.append(loss.auc.process_group)
        with in_process_group(loss, None):
            seen.append(loss.auc.process_group)
        seen.append(loss.auc.process_group)
    assert [*seen, loss.auc.process_group] == [group, None, group, None]


def test_losses_that_sort_scores_stay_on_their_process() -> None:
    assert auc_losses(PairwiseAUCLoss("hinge", scores="identity")) == []
    assert len(auc_losses(AUCSegLoss())) == 1
    loss = PairwiseAUCLoss("hinge", scores="identity")
    group: Any = object()
    with pytest.raises(ValueError, match=r"do not travel between processes: pass process_group=None, or use a margin"):
        loss.process_group = group
    assert loss.process_group is None


def test_what_is_no_group_of_this_process_is_refused() -> None:
    for group, error in ((dist.GroupMember.NON_GROUP_MEMBER, ValueError), ("world", TypeError), (True, TypeError)):
        with pytest.raises(error, match="process_group"):
            AUCSegLoss(process_group=group)


def test_a_copy_of_the_loss_is_of_the_same_group(tmp_path: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        loss = AUCSegLoss(process_group=dist.group.WORLD, class_weight=[1.0, 2.0, 3.0])
        twin = copy.deepcopy(loss)
        assert twin.process_group is dist.group.WORLD
        assert twin.class_weight is not loss.class_weight
        logits, target = torch.randn(2, 3, 4, 4), torch.randint(3, (2, 4, 4))
        assert torch.equal(twin(logits, target), loss(logits, target))
    finally:
        dist.destroy_process_group()
