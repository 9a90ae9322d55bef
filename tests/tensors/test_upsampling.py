"""Labels and logits at the size of the mask by bands: the numbers of the whole at once, in the memory of a band."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from benchmarks.peak_memory import peak_bytes
from torch import Tensor

from aucseg.metrics import GroupedMeanIoU
from aucseg.tensors import upsampling
from aucseg.tensors.upsampling import predicted_labels, upsampled_bands

SIZES = [
    ((5, 7), (5, 7)),
    ((5, 7), (20, 28)),
    ((5, 7), (23, 30)),
    ((5, 7), (23, 7)),
    ((5, 7), (5, 30)),
    ((9, 20), (4, 3)),
    ((6,), (17,)),
    ((2, 3, 4), (5, 6, 9)),
    ((1, 1), (4, 3)),
]
MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}


def whole(logits: Tensor, size: tuple[int, ...]) -> Tensor:
    """All bands, put together."""
    out = torch.empty(*logits.shape[:2], *size, dtype=torch.promote_types(logits.dtype, torch.float32))
    for image, rows, band in upsampled_bands(logits, size):
        out[image, :, rows] = band[0]
    return out


@pytest.mark.parametrize(("small", "large"), SIZES)
@pytest.mark.parametrize("num_classes", [1, 4, 19])
def test_every_band_and_layout_gives_the_same_bits(
    small: tuple[int, ...], large: tuple[int, ...], num_classes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = torch.randn(2, num_classes, *small)
    at_once = whole(logits, large)
    expected = F.interpolate(logits, size=large, mode=MODES[len(small)], align_corners=False)
    torch.testing.assert_close(at_once, expected, atol=2e-6, rtol=1e-5)
    labels = (at_once[:, 0] > 0).long() if num_classes == 1 else at_once.argmax(1)
    for elements in (1, 400):
        monkeypatch.setattr(upsampling, "BAND_ELEMENTS", elements)
        for given in (logits, logits.movedim(1, -1).contiguous().movedim(-1, 1)):
            assert torch.equal(whole(given, large), at_once)
            assert torch.equal(predicted_labels(given, large), labels)
        for image in range(2):  # alone as in a batch
            assert torch.equal(predicted_labels(logits[image : image + 1], large)[0], labels[image])


@pytest.mark.parametrize(("small", "large"), SIZES)
def test_float64_stays_float64(small: tuple[int, ...], large: tuple[int, ...]) -> None:
    logits = torch.randn(2, 4, *small, dtype=torch.float64)
    expected = F.interpolate(logits, size=large, mode=MODES[len(small)], align_corners=False)
    torch.testing.assert_close(whole(logits, large), expected, atol=1e-14, rtol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [(6, 5), (21, 17)])
def test_labels_of_half_precision_are_those_of_its_numbers_in_float32(
    dtype: torch.dtype, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = torch.randn(3, 7, 6, 5).to(dtype)
    expected = whole(logits.float(), size).argmax(1)
    monkeypatch.setattr(upsampling, "BAND_ELEMENTS", 500)
    for layout in (torch.contiguous_format, torch.channels_last):
        assert torch.equal(predicted_labels(logits.contiguous(memory_format=layout), size), expected)


def test_the_first_of_equal_logits_wins_and_nan_is_the_largest() -> None:
    logits = torch.zeros(1, 4, 2, 2)
    logits[0, 2, 0, 0] = logits[0, 3, 0, 0] = 1
    assert predicted_labels(logits, (4, 4))[0, 0].tolist() == [2, 2, 2, 0]
    logits[0, 3, 1, 1] = torch.nan
    assert predicted_labels(logits, (2, 2)).tolist() == [[[2, 0], [0, 3]]]
    assert predicted_labels(logits[:0], (4, 4)).shape == (0, 4, 4)
    assert predicted_labels(logits, (0, 4)).shape == (1, 0, 4)


def test_labels_are_those_that_the_metric_counts() -> None:
    logits, target = torch.randn(2, 5, 8, 8), torch.randint(5, (2, 32, 30))
    of_logits, of_labels = GroupedMeanIoU(5), GroupedMeanIoU(5)
    of_logits.update(logits, target)
    of_labels.update(predicted_labels(logits, (32, 30)), target)
    assert torch.equal(of_logits.confusion, of_labels.confusion)


def test_memory_is_that_of_the_labels_and_a_few_bands() -> None:
    logits, size = torch.randn(4, 40, 32, 32), (256, 256)
    labels = 8 * len(logits) * size[0] * size[1]
    peak = peak_bytes(lambda: predicted_labels(logits, size))
    assert peak < labels + 6 * 4 * upsampling.BAND_ELEMENTS
    at_once = peak_bytes(lambda: F.interpolate(logits, size, mode="bilinear", align_corners=False).argmax(1))
    assert at_once > 3 * peak
