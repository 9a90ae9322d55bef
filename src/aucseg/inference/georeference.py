"""Label maps that lie where their images lie on the earth."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from aucseg.datasets.bands import open_raster
from aucseg.datasets.files import SampleError


def georeference(path: Path, size: tuple[int, ...]) -> dict[str, Any] | None:
    """Returns coordinate system and transform of a TIFF file.

    Args:
        path: The file.
        size: (height, width) of its label map.

    Returns:
        `{"crs": ..., "transform": ...}`; None where the file has neither, or another size, or where rasterio is not
        installed.
    """
    if path.suffix.lower() not in (".tif", ".tiff") or importlib.util.find_spec("rasterio") is None:
        return None
    try:
        with open_raster(path) as raster:
            has_place = raster.crs is not None or not raster.transform.is_identity
            if not has_place or (raster.height, raster.width) != tuple(size):
                return None
            return {"crs": raster.crs, "transform": raster.transform}
    except SampleError:
        return None


def write_geotiff(path: str, labels: npt.NDArray[Any], colors: npt.NDArray[np.uint8], place: dict[str, Any]) -> None:
    """Writes labels (H, W) as a GeoTIFF, with the colours of the classes (K, 3) where the labels have 8 bits."""
    import rasterio

    profile = {"driver": "GTiff", "count": 1, "dtype": labels.dtype.name, "compress": "deflate", "bigtiff": "if_safer"}
    with warnings.catch_warnings():
        # A raster that lies nowhere on the earth, but is too large for another format.
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.open(path, "w", height=labels.shape[0], width=labels.shape[1], **profile, **place) as raster:
            raster.write(labels, 1)
            if labels.dtype == np.uint8:
                raster.write_colormap(1, {i: (*color, 255) for i, color in enumerate(colors.tolist())})
