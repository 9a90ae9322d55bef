"""Objects of the truth that a prediction finds, by their size: connected components, not pixels, are counted."""

from typing import Any

import numpy as np
import numpy.typing as npt

from aucseg.hints import import_extra

SIZES = ("small", "medium", "large")
# Pixels from which an object is medium, and large: 32 x 32 and 96 x 96, as in COCO.
SIZE_LIMITS = (32**2, 96**2)


def found_objects(predicted: npt.NDArray[Any], target: npt.NDArray[Any], num_classes: int) -> npt.NDArray[np.int64]:
    """Count the objects of one image, and those found, by class and size.

    An object is a connected component of the pixels of a class in the truth, 8-connected. It is found when at least
    half of its pixels are predicted as that class. An object of 30 pixels counts as much as one of 30,000, so that this
    tells whether rare things are seen at all, which IoU, a matter of pixels, does not. False alarms are not counted:
    read it beside precision.

    Args:
        predicted: (H, W) integer labels.
        target: (H, W) integer labels; what is outside of 0..K-1 is no object.
        num_classes: K.

    Returns:
        (K, 3, 2) int64: for each class and size (small, medium from 32² pixels, large from 96² on) the objects found
        and all objects; to be summed over images.

    Raises:
        ImportError: without scipy.

    Example:
        >>> target = np.array([[1, 1, 0, 1], [0, 0, 0, 1]])
        >>> predicted = np.array([[1, 0, 0, 0], [0, 0, 0, 0]])
        >>> found_objects(predicted, target, num_classes=2)[:, 0].tolist()
        [[1, 1], [1, 2]]
    """
    ndimage = import_extra("scipy.ndimage", "train")
    counts = np.zeros((num_classes, len(SIZES), 2), np.int64)
    classes = [class_id for class_id in np.unique(target).tolist() if 0 <= class_id < num_classes]
    # Boxes of the classes, so that rare ones take no time. The label 0 would count as background.
    boxes = ndimage.find_objects(np.where((target >= 0) & (target < num_classes), target.astype(np.int64) + 1, 0))
    for class_id in classes:
        box = boxes[class_id]
        components, number = ndimage.label(target[box] == class_id, structure=np.ones((3, 3), bool))
        areas = np.bincount(components.ravel(), minlength=number + 1)[1:]
        hits = np.bincount(components[predicted[box] == class_id], minlength=number + 1)[1:]
        size = np.digitize(areas, SIZE_LIMITS)
        counts[class_id, :, 0] = np.bincount(size[2 * hits >= areas], minlength=len(SIZES))
        counts[class_id, :, 1] = np.bincount(size, minlength=len(SIZES))
    return counts
