"""What makes batches of a data set: transforms, samplers, orders. Needs ``pip install "aucseg[train]"``."""

from aucseg.hints import import_extra

import_extra("torchvision", "train")
