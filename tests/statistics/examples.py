"""Statistics of small made-up data sets."""

import numpy as np

from aucseg.statistics.class_statistics import ClassStatistics


def long_tail(num_images: int = 200, tail_presence: float = 0.02, fixed: bool = False) -> ClassStatistics:
    """Two classes in every image, two others in few, which keep to one place or not."""
    rng = np.random.default_rng(0)
    statistics = ClassStatistics(4, class_names=["road", "grass", "cone", "bird"])
    for i in range(num_images):
        mask = np.zeros((48, 64), np.uint8)
        mask[24:] = 1
        for class_id in (2, 3):
            if rng.random() < tail_presence or i < 2:
                y, x = (3, 5) if fixed else rng.integers(0, 44, 2)
                mask[y : y + 3, x + 8 * class_id - 16 : x + 8 * class_id - 13] = class_id
        statistics.update(mask)
    return statistics
