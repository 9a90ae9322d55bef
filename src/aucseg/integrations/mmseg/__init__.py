"""AUCSeg in mmsegmentation 1.x: the loss, the bank as a transform or in the data preprocessor, and micro-batches.

Importing this module registers everything. In a configuration::

    custom_imports = dict(imports=["aucseg.integrations.mmseg"], allow_failed_imports=False)
    model = dict(
        data_preprocessor=dict(type="AUCSegDataPreProcessor", bank=dict(tail_classes=[6, 12], num_classes=19)),
        decode_head=dict(loss_decode=dict(type="AUCSegLoss")),
    )
    train_cfg = dict(type="AUCSegIterBasedTrainLoop", micro_batches=4)  # the batch of the loader in four parts

Needs `pip install "aucseg[mmseg]"`.
"""

from __future__ import annotations

try:
    import mmseg  # noqa: F401
except ImportError as error:
    raise ImportError('aucseg.integrations.mmseg needs mmsegmentation: pip install "aucseg[mmseg]"') from error

from aucseg.integrations.mmseg.bank import AUCSegDataPreProcessor, TailMemoryBankTransform
from aucseg.integrations.mmseg.loss import MMSegAUCSegLoss
from aucseg.integrations.mmseg.train_loop import AUCSegEpochBasedTrainLoop, AUCSegIterBasedTrainLoop

__all__ = [
    "AUCSegDataPreProcessor",
    "AUCSegEpochBasedTrainLoop",
    "AUCSegIterBasedTrainLoop",
    "MMSegAUCSegLoss",
    "TailMemoryBankTransform",
]
