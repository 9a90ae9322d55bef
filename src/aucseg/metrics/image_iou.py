"""IoU image by image: what a metric over all pixels of a data set hides where some images fail."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from aucseg.tensors.dtypes import can_be_asked, int64_labels
from aucseg.tensors.labels import refuse_other_labels

# Of the images, those that the worst-case mean is taken over.
WORST_SHARE = 0.1


def per_image_overlap(predicted: Tensor, target: Tensor, num_classes: int, ignore_index: int) -> dict[int, list[int]]:
    """Intersection, union and true pixels of each class that occurs in the truth or the prediction of one image.

    Args:
        predicted: (H, W) integer labels; of a volume (D, H, W).
        target: Integer labels of that shape; pixels of `ignore_index` do not count.
        num_classes: K.
        ignore_index: The ignore label.

    Returns:
        `{class id: [pixels of the intersection, pixels of the union, pixels in the truth]}`.

    Raises:
        TypeError: Labels that are not integers.
        ValueError: Shapes that differ, or labels out of range at pixels that count.

    Example:
        >>> per_image_overlap(torch.tensor([[0, 1, 1]]), torch.tensor([[0, 0, 255]]), 3, 255)
        {0: [1, 2, 2], 1: [0, 1, 0]}
    """
    predicted, target = int64_labels(predicted, "predicted"), int64_labels(target)
    if predicted.shape != target.shape:
        raise ValueError(
            f"predicted labels of shape {tuple(predicted.shape)} and target of shape {tuple(target.shape)} differ"
        )
    valid = target != ignore_index
    predicted, target = predicted[valid], target[valid]
    for name, labels in (("predicted", predicted), ("target", target)):
        if can_be_asked(labels):
            refuse_other_labels(labels, num_classes, name)
    intersection = torch.bincount(target[target == predicted], minlength=num_classes)
    true = torch.bincount(target, minlength=num_classes)
    union = true + torch.bincount(predicted, minlength=num_classes) - intersection
    counts = torch.stack([intersection, union, true], dim=1).tolist()
    return {class_id: counts[class_id] for class_id in union.nonzero().flatten().tolist()}


def added_overlaps(one: Mapping[int, Sequence[int]], other: Mapping[int, Sequence[int]]) -> dict[int, list[int]]:
    """What `per_image_overlap` gives of an image in two parts, from that of each.

    Example:
        >>> added_overlaps({0: [1, 2, 2]}, {0: [3, 3, 3], 1: [0, 1, 0]})
        {0: [4, 5, 5], 1: [0, 1, 0]}
    """
    nothing = (0, 0, 0)
    return {
        class_id: [a + b for a, b in zip(one.get(class_id, nothing), other.get(class_id, nothing), strict=True)]
        for class_id in sorted({*one, *other})
    }


def image_scores(overlap: Mapping[str, Mapping[int, Sequence[int]]]) -> dict[str, float]:
    r"""Mean IoU by image, over all images and over the worst tenth of them.

    With :math:`\mathcal{C}_i` the classes that the truth of image i holds,

    .. math:: \mathrm{IoU}^I = \frac1N \sum_i \frac{1}{|\mathcal{C}_i|} \sum_{c \in \mathcal{C}_i} \mathrm{IoU}_{ic}

    and the same over the `ceil(N / 10)` images where the inner mean is lowest (fine-grained mIoU; Wang et al.,
    *Revisiting Evaluation Metrics for Semantic Segmentation: Optimization and Evaluation of Fine-grained Intersection
    over Union*, 2023). Images count alike, and small objects as much as large ones of the same class in other images.

    Args:
        overlap: For each image what `per_image_overlap` returns. Images without a labelled pixel do not count.

    Returns:
        `image_miou` and `image_worst`, in 0..1; NaN without an image that counts.

    Example:
        >>> image_scores({"a": {0: [8, 10, 9], 1: [0, 1, 0]}, "b": {0: [0, 4, 4], 1: [2, 4, 3]}})
        {'image_miou': 0.525, 'image_worst': 0.25}
    """
    means = sorted(
        sum(i / u for i, u in pairs) / len(pairs)
        for classes in overlap.values()
        if (pairs := [(intersection, union) for intersection, union, true in classes.values() if true])
    )
    worst = means[: math.ceil(len(means) * WORST_SHARE)]
    return {"image_miou": _mean(means), "image_worst": _mean(worst)}


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan
