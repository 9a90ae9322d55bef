"""Data sets: cards that describe them, and the data set made from card, root folder and split."""

from aucseg.datasets.card import DatasetCard, Layout
from aucseg.datasets.dataset import Sample, SegmentationDataset
from aucseg.datasets.files import SampleError

__all__ = ["DatasetCard", "Layout", "Sample", "SampleError", "SegmentationDataset"]
