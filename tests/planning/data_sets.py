"""Fingerprints of data sets as people have them, without any file."""

from dataclasses import replace
from typing import Any

import numpy as np

from aucseg.planning.fingerprint import DataFingerprint
from aucseg.planning.machine import Machine
from aucseg.statistics.class_statistics import ClassStatistics
from aucseg.training.speed import Speed

CPU = Machine("cpu", "CPU with 2 cores", 2, 4 * 10**9, has_packaged_weights=True)
BARE_CPU = replace(CPU, has_packaged_weights=False)
SMALL_GPU = Machine("cuda", "GTX 1650", 4, 8 * 10**9, 3 * 10**9, has_packaged_weights=True)
LARGE_GPU = Machine("cuda", "H100", 16, 64 * 10**9, 78 * 10**9, has_bfloat16=True, has_packaged_weights=True)
MACHINES = (CPU, BARE_CPU, SMALL_GPU, LARGE_GPU)

FAST = Speed(step=0.25, image=0.05, start=5.0, steps=20)


def statistics_of(num_images: int, presence: tuple[float, ...], area: int = 30) -> ClassStatistics:
    """Classes in these shares of the images: the first covers what the others leave, each of `area` pixels."""
    rng = np.random.default_rng(0)
    statistics = ClassStatistics(len(presence))
    for index in range(num_images):
        mask = np.zeros((64, 64), np.uint8)
        for class_id, share in enumerate(presence):
            if class_id and (rng.random() < share or index == class_id):
                side = round(area**0.5)
                y, x = rng.integers(0, 64 - side, 2)
                mask[y : y + side, x : x + side] = class_id
        statistics.update(mask)
    return statistics


def data_set(
    num_images: int,
    size: tuple[int, int],
    presence: tuple[float, ...] = (1.0, 0.6, 0.05),
    *,
    tail_share: float | None = 0.002,
    num_validation: int | None = None,
    **changes: Any,
) -> DataFingerprint:
    """A data set whose last class is its tail; without `num_validation` a fifth of the images is held out."""
    last = len(presence) - 1
    held_out = 0.2 if num_validation is None else 0.0
    found = DataFingerprint(
        title="example",
        statistics=statistics_of(num_images, presence),
        groups={"head": [0], "middle": list(range(1, last)), "tail": [last]},
        by_share=False,
        num_channels=3,
        size=size,
        largest=size,
        one_size=True,
        mean_pixels=size[0] * size[1],
        tail_share=tail_share,
        val_split=None if held_out else "val",
        num_validation=max(1, round(held_out * num_images)) if num_validation is None else num_validation,
        held_out_share=held_out,
    )
    return replace(found, **changes)


TWELVE = data_set(12, (256, 300))
PHOTOGRAPHS = data_set(400, (3000, 4000), tail_share=100 / (3000 * 4000), num_validation=80)
UNSPLIT = data_set(900, (360, 480))
LESIONS = data_set(200, (600, 800), (1.0, 1.0), tail_share=0.01, num_validation=50, one_size=False)
SLICES = data_set(640, (256, 256), (1.0, 0.4, 0.08), num_channels=1, num_validation=160, bands=((21.3,), (30.5,)))
CITYSCAPES = data_set(1000, (1024, 2048), (1.0, 0.9, 0.7, 0.1), tail_share=0.0004, num_validation=500)
MANY = data_set(1000, (512, 512), num_validation=9000)
DATA_SETS = {
    "twelve": TWELVE,
    "photographs": PHOTOGRAPHS,
    "unsplit": UNSPLIT,
    "lesions": LESIONS,
    "slices": SLICES,
    "cityscapes": CITYSCAPES,
    "many": MANY,
}
