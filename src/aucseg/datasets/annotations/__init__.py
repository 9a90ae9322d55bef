"""Annotations that are not masks yet: polygons, run lengths and panoptic files of annotation tools, painted as masks.

From outside: `recognize` tells which format a folder holds, `read_annotations` reads it,
`write_masks` paints it. One module for each format returns the same `Annotations`; a new format is one
more module and one more line in `recognize`.

    recognize      which format                     shapes         polygons, run lengths, ellipses as COCO run lengths
    coco, yolo, labelme, cvat, label_studio         images         which image file an annotation means
    model          what all of them return          painting       the regions of one image as a mask: the overlap rule
    made_folders   what was made here before        write          masks, links to the images, card, contact sheet
"""

from aucseg.datasets.annotations.model import AnnotatedImage, AnnotationError, Annotations, Region
from aucseg.datasets.annotations.painting import PaintOptions
from aucseg.datasets.annotations.recognize import describe_annotations, read_annotations, recognize
from aucseg.datasets.annotations.write import MaskReport, write_masks

__all__ = [
    "AnnotatedImage",
    "AnnotationError",
    "Annotations",
    "MaskReport",
    "PaintOptions",
    "Region",
    "describe_annotations",
    "read_annotations",
    "recognize",
    "write_masks",
]
