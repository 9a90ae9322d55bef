"""The training task, its data module and what watches over a run."""

from aucseg.hints import import_extra

import_extra("lightning.pytorch", "train")
