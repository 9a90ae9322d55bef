"""Metrics over a whole data set, in constant memory: every state is a sum over batches and ranks.

All are `torchmetrics.Metric` objects (`pip install "aucseg[train]"`).
"""

try:
    import torchmetrics as torchmetrics
except ImportError as error:
    raise ImportError('aucseg.metrics needs torchmetrics: pip install "aucseg[train]"') from error

from aucseg.metrics.average_precision import PixelAveragePrecision
from aucseg.metrics.mean_iou import GroupedMeanIoU
from aucseg.metrics.pixel_auroc import PixelAUROC

__all__ = ["GroupedMeanIoU", "PixelAUROC", "PixelAveragePrecision"]
