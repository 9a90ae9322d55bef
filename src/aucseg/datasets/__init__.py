"""Data sets: cards that describe them, and the data set made from card, root folder and split.

The names are imported on first use: the processes that count masks need neither torch nor the rest.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aucseg.datasets.card import DatasetCard as DatasetCard
    from aucseg.datasets.card_layout import Layout as Layout
    from aucseg.datasets.dataset import Sample as Sample
    from aucseg.datasets.dataset import SegmentationDataset as SegmentationDataset
    from aucseg.datasets.files import SampleError as SampleError

_MODULE_OF = {
    "DatasetCard": "aucseg.datasets.card",
    "Layout": "aucseg.datasets.card_layout",
    "Sample": "aucseg.datasets.dataset",
    "SampleError": "aucseg.datasets.files",
    "SegmentationDataset": "aucseg.datasets.dataset",
}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'aucseg.datasets' has no attribute {name!r}")
    return getattr(import_module(_MODULE_OF[name]), name)
