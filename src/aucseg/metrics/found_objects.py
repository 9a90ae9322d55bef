"""Objects of the truth that a prediction finds, by their size: connected components, not pixels, are counted."""

from typing import Any

import numpy as np
import numpy.typing as npt

from aucseg.hints import import_extra

SIZES = ("small", "medium", "large")
# Sides of the squares from whose area on an object is medium, and large, as in COCO.
SIDE_LIMITS = (32, 96)


def found_objects(
    predicted: npt.NDArray[Any],
    target: npt.NDArray[Any],
    num_classes: int,
    side_limits: tuple[float, float] = SIDE_LIMITS,
) -> npt.NDArray[np.int64]:
    """Counts the objects of one image or volume, and those found, by class and size.

    An object is a connected component of the pixels of a class in the truth, 8-connected, in volumes 26-connected. It
    is found when at least half of its pixels are predicted as that class. An object of 30 pixels counts as much as one
    of 30,000, so that this tells whether rare things are seen at all, which IoU, a matter of pixels, does not. False
    alarms are not counted: read it beside precision.

    Args:
        predicted: (H, W) or (D, H, W) integer labels.
        target: Integer labels of that shape; what is outside of 0..K-1 is not an object.
        num_classes: K.
        side_limits: Sides in pixels of the square (in volumes of the cube) with as many pixels as the smallest medium
            and the smallest large object. Those of COCO, 32 and 96, leave only small lesions in most volumes.

    Returns:
        (K, 3, 2) int64: for each class and size (small, medium, large) the objects found and all objects; to be summed
        over images.

    Raises:
        ImportError: Without scipy.
        TypeError: Labels that are not integers.
        ValueError: Shapes that differ or have neither two nor three dimensions; limits that fall.

    Example:
        >>> target = np.array([[1, 1, 0, 1], [0, 0, 0, 1]])
        >>> predicted = np.array([[1, 0, 0, 0], [0, 0, 0, 0]])
        >>> found_objects(predicted, target, num_classes=2)[:, 0].tolist()
        [[1, 1], [1, 2]]
    """
    if predicted.shape != target.shape or target.ndim not in (2, 3):
        raise ValueError(
            f"predicted labels of shape {predicted.shape} and target of shape {target.shape}: expected (H, W), or "
            "(D, H, W) of one volume, for both"
        )
    for name, labels in (("predicted", predicted), ("target", target)):
        if labels.dtype.kind not in "iub":
            raise TypeError(f"{name} must hold integer class ids, got {labels.dtype}")
    if not 0 <= side_limits[0] <= side_limits[1]:
        raise ValueError(f"side_limits must be two sides that do not fall, got {side_limits}")
    ndimage = import_extra("scipy.ndimage", "train")
    limits = [side**target.ndim for side in side_limits]
    counts = np.zeros((num_classes, len(SIZES), 2), np.int64)
    if not target.size:
        return counts
    target = target.astype(np.int64)
    classes = [class_id for class_id in np.unique(target).tolist() if 0 <= class_id < num_classes]
    # Boxes of the classes, so that rare ones take no time. The label 0 would count as background.
    boxes = ndimage.find_objects(np.where((target >= 0) & (target < num_classes), target + 1, 0))
    for class_id in classes:
        box = boxes[class_id]
        components, number = ndimage.label(target[box] == class_id, structure=np.ones((3,) * target.ndim, bool))
        areas = np.bincount(components.ravel(), minlength=number + 1)[1:]
        hits = np.bincount(components[predicted[box] == class_id], minlength=number + 1)[1:]
        size = np.digitize(areas, limits)
        counts[class_id, :, 0] = np.bincount(size[2 * hits >= areas], minlength=len(SIZES))
        counts[class_id, :, 1] = np.bincount(size, minlength=len(SIZES))
    return counts
