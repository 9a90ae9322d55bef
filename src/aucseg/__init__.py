"""AUC-oriented long-tail semantic segmentation for PyTorch.

The public names are imported on first use, so that `import aucseg` stays light and a missing extra is noticed only by
what needs it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aucseg.datasets import DatasetCard as DatasetCard
    from aucseg.datasets import SegmentationDataset as SegmentationDataset
    from aucseg.losses import AUCSegLoss as AUCSegLoss
    from aucseg.losses import PairwiseAUCLoss as PairwiseAUCLoss
    from aucseg.losses import build_loss as build_loss
    from aucseg.losses import pairwise_auc_loss as pairwise_auc_loss
    from aucseg.losses.class_weights import class_weights as class_weights
    from aucseg.memory_bank import TailMemoryBank as TailMemoryBank
    from aucseg.metrics import GroupedMeanIoU as GroupedMeanIoU
    from aucseg.metrics import PixelAUROC as PixelAUROC
    from aucseg.metrics import PixelAveragePrecision as PixelAveragePrecision
    from aucseg.models import build_model as build_model
    from aucseg.statistics.class_statistics import ClassStatistics as ClassStatistics
    from aucseg.training.datamodule import SegmentationDataModule as SegmentationDataModule
    from aucseg.training.task import SegmentationTask as SegmentationTask

__version__ = "0.1.0"

_MODULE_OF = {
    "AUCSegLoss": "aucseg.losses",
    "PairwiseAUCLoss": "aucseg.losses",
    "build_loss": "aucseg.losses",
    "class_weights": "aucseg.losses.class_weights",
    "pairwise_auc_loss": "aucseg.losses",
    "TailMemoryBank": "aucseg.memory_bank",
    "ClassStatistics": "aucseg.statistics.class_statistics",
    "GroupedMeanIoU": "aucseg.metrics",
    "PixelAUROC": "aucseg.metrics",
    "PixelAveragePrecision": "aucseg.metrics",
    "DatasetCard": "aucseg.datasets",
    "SegmentationDataset": "aucseg.datasets",
    "SegmentationDataModule": "aucseg.training.datamodule",
    "SegmentationTask": "aucseg.training.task",
    "build_model": "aucseg.models",
}

__all__ = ["__version__", *sorted(_MODULE_OF)]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'aucseg' has no attribute {name!r}")
    return getattr(import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return list(__all__)
