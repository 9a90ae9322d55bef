"""One update of a segmentor of mmsegmentation, from a batch in parts and over processes.

Run under torchrun in the environment of `make test-mmseg`: `-m tests.integrations.mmseg.whole_batch FOLDER`.
"""

from __future__ import annotations

import copy
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.model import BaseModule
from mmengine.runner import Runner
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from mmseg.utils import register_all_modules
from torch import Tensor, nn

import aucseg.integrations.mmseg  # noqa: F401
from aucseg.losses import AUCSegLoss
from tests.integrations.whole_batch import NUM_CLASSES, Update, batch

PARTS = (1, 2)
CHANNELS = 4
CLASS_WEIGHT = [1.0, 2.0, 0.5, 3.0, 1.0]
OURS: dict[str, Any] = {"auc_weight": 2.0, "ce_weight": 0.5, "class_weight": CLASS_WEIGHT, "label_smoothing": 0.1}
AUC_ALONE: dict[str, Any] = {"ce_weight": 0.0, "surrogate": "squared_hinge"}
# Losses of the head and of the auxiliary head.
LOSSES: dict[str, tuple[Any, Any]] = {
    "AUC losses in both heads": (
        {"type": "AUCSegLoss", "loss_weight": 1.5, **OURS},
        {"type": "AUCSegLoss", "loss_weight": 0.4, **AUC_ALONE},
    ),
    "with cross-entropy of mmsegmentation": (
        [{"type": "AUCSegLoss", **OURS}, {"type": "CrossEntropyLoss", "loss_name": "loss_ce", "loss_weight": 0.3}],
        {"type": "CrossEntropyLoss", "loss_weight": 0.4},
    ),
}


def images_and_labels() -> tuple[Tensor, Tensor]:
    """The batch of the other frameworks, with images as large as the labels, in float32 as mmengine has them."""
    images, labels = batch()
    return F.interpolate(images, scale_factor=2).float(), labels


@MODELS.register_module(force=True)
class WithoutNormalization(BaseModule):  # type: ignore[misc]
    """A backbone without batch normalization, in float64."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, CHANNELS, 3, stride=2, padding=1), nn.GELU(), nn.Dropout(dropout))

    def forward(self, images: Tensor) -> list[Tensor]:
        return [self.layers(images.to(next(self.parameters()).dtype))]


def make_segmentor(losses: tuple[Any, Any], *, dropout: float = 0.0, bank: dict[str, Any] | None = None) -> Any:
    head = {
        "type": "FCNHead", "num_classes": NUM_CLASSES, "in_channels": CHANNELS, "channels": CHANNELS, "num_convs": 0,
        "concat_input": False, "dropout_ratio": 0.0, "in_index": 0, "align_corners": False, "init_cfg": None,
    }  # fmt: skip
    torch.manual_seed(1)
    config = {
        "type": "EncoderDecoder",
        "data_preprocessor": {"type": "AUCSegDataPreProcessor", "size": (12, 12), "bank": bank},
        "backbone": {"type": "WithoutNormalization", "dropout": dropout},
        "decode_head": {**head, "loss_decode": losses[0]},
        "auxiliary_head": {**head, "loss_decode": losses[1]},
    }
    return MODELS.build(copy.deepcopy(config)).double()  # building takes the types out of the dicts


def samples_of_this_process() -> list[dict[str, Any]]:
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    samples = []
    for image, label in zip(*(tensor.chunk(ranks)[rank] for tensor in images_and_labels()), strict=True):
        sample = SegDataSample(metainfo={"img_shape": (12, 12), "ori_shape": (12, 12)})
        sample.gt_sem_seg = PixelData(data=label[None])
        samples.append({"inputs": image, "data_samples": sample})
    return samples


def make_runner(segmentor: Any, folder: Path, parts: int, **options: Any) -> Runner:
    """A runner whose loader gives the whole batch, every time."""
    make_runner.count = getattr(make_runner, "count", 0) + 1  # type: ignore[attr-defined]
    samples: Any = samples_of_this_process()
    config: dict[str, Any] = {
        "work_dir": str(folder),
        "train_dataloader": torch.utils.data.DataLoader(samples, batch_size=len(samples), collate_fn=pseudo_collate),
        "train_cfg": {"type": "AUCSegIterBasedTrainLoop", "max_iters": 1, "micro_batches": parts},
        "optim_wrapper": {"type": "OptimWrapper", "optimizer": {"type": "SGD", "lr": 1.0}},
        "default_scope": "mmseg",
        "default_hooks": {"checkpoint": None},
        "experiment_name": f"{Path(folder).name}-{make_runner.count}",  # type: ignore[attr-defined]
        "log_level": "ERROR",
    }
    if dist.is_initialized():
        config["launcher"] = "pytorch"
        config["cfg"] = Config({"model_wrapper_cfg": {"type": "MMDistributedDataParallel", "device_ids": None}})
    return Runner(model=segmentor, **{**config, **options})


def update_by(name: str, parts: int, folder: Path, **options: Any) -> Update:
    """The loss that is logged and the weights after one step of SGD at rate 1."""
    segmentor = make_segmentor(LOSSES[name])
    runner = make_runner(segmentor, folder, parts, **options)
    runner.train()
    weights = {key: value.clone() for key, value in segmentor.state_dict().items() if torch.is_tensor(value)}
    return float(runner.message_hub.get_scalar("train/loss").current()), weights


def expected_update(name: str) -> Update:
    """By PyTorch alone, in one process and one batch."""
    segmentor = make_segmentor(LOSSES[name])
    images, labels = images_and_labels()
    (features,) = segmentor.backbone(images)
    main, auxiliary = (
        F.interpolate(head.conv_seg(features), labels.shape[1:], mode="bilinear", align_corners=False)
        for head in (segmentor.decode_head, segmentor.auxiliary_head)
    )
    ours = AUCSegLoss(**{**OURS, "class_weight": torch.tensor(CLASS_WEIGHT).double()})(main, labels)

    def mean_over_all(logits: Tensor) -> Tensor:  # of pixels, those with the ignore label included
        return F.cross_entropy(logits, labels, ignore_index=255, reduction="sum") / labels.numel()

    if name == "AUC losses in both heads":
        loss = 1.5 * ours + 0.4 * AUCSegLoss(**AUC_ALONE)(auxiliary, labels)
    else:
        loss = ours + 0.3 * mean_over_all(main) + 0.4 * mean_over_all(auxiliary)
    loss.backward()
    torch.optim.SGD(segmentor.parameters(), 1.0).step()
    return loss.item(), {key: value for key, value in segmentor.state_dict().items() if torch.is_tensor(value)}


def main(folder: Path) -> None:
    warnings.simplefilter("ignore")
    register_all_modules(init_default_scope=True)
    dist.init_process_group("gloo")
    results = {(name, parts): update_by(name, parts, folder) for name in LOSSES for parts in PARTS}
    torch.save(results, folder / f"{dist.get_rank()}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
