"""What the tests of whole runs share: a trainer without extras, and the options of a small run."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer

# Of `aucseg fit`: a small network, a small bank, nothing on the screen.
SMALL_RUN: dict[str, object] = {
    "trainer.log_every_n_steps": 1,
    "trainer.accelerator": "cpu",
    "trainer.enable_progress_bar": "false",
    "trainer.enable_model_summary": "false",
    "model.model": "smp/fpn",
    "model.model_options": '{"encoder": "tu-mobilenetv3_small_050", "encoder_weights": null,'
    ' "decoder_pyramid_channels": 32, "decoder_segmentation_channels": 32}',
    "model.bank": '{"capacity": 2, "min_pixels": 4, "sample_ratio": 1.0, "scope": "image"}',
}


# A configuration of `aucseg fit`, but for card and root.
TINY_RUN = {
    "trainer": {
        "max_steps": 4,
        "val_check_interval": 4,
        "log_every_n_steps": 1,
        "accelerator": "cpu",
        "enable_progress_bar": False,
    },
    "model": {
        "model": "smp/fpn",
        "model_options": {
            "encoder": "resnet18",
            "encoder_weights": None,
            "decoder_pyramid_channels": 32,
            "decoder_segmentation_channels": 32,
        },
        "loss": "aucseg",
        "bank": {"capacity": 2, "min_pixels": 4},
        "warmup_steps": 1,
    },
    "data": {"batch_size": 2, "eval_batch_size": 2, "num_workers": 0, "crop_size": [32, 40]},
}


def make_trainer(folder: Path, max_steps: int, accelerator: str = "cpu", **options: Any) -> Trainer:
    return Trainer(
        default_root_dir=folder,
        max_steps=max_steps,
        accelerator=accelerator,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        **{"check_val_every_n_epoch": None, "val_check_interval": max_steps, **options},
    )
