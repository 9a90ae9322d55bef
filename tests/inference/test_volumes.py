"""Prediction of volumes: against the whole volume, every window by itself, and MONAI."""

import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from aucseg.inference.predictor import InferenceOptions, Predictor, window_offsets

Size = tuple[int, int, int]
SIZES = st.tuples(*[st.integers(1, 14)] * 3)


def pointwise(num_classes: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return nn.Conv3d(2, num_classes, 1).eval()


def with_context(num_classes: int = 3) -> nn.Module:
    """Sees its neighbours, and answers at half the resolution."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv3d(2, 4, 3, stride=2, padding=1), nn.ReLU(), nn.Conv3d(4, num_classes, 3, padding=1)
    ).eval()


def random_volume(*size: int, seed: int = 0) -> Tensor:
    return torch.randint(256, (2, *size), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


@settings(max_examples=25, deadline=None)
@given(
    size=SIZES,
    window=SIZES,
    share=st.floats(0.1, 1),
    blend=st.sampled_from(["average", "linear"]),
    batch_size=st.integers(1, 3),
    block_width=st.one_of(st.none(), st.integers(1, 16)),
)
def test_sliding_equals_whole_for_a_pointwise_model(
    size: Size, window: Size, share: float, blend: Any, batch_size: int, block_width: int | None
) -> None:
    """Odd sizes, and windows larger than the volume, too."""
    stride = tuple(max(1, int(side * share)) for side in window)
    options = InferenceOptions(
        window=window, stride=stride, blend=blend, batch_size=batch_size, block_width=block_width
    )
    volume = random_volume(*size)
    expected = Predictor(pointwise()).logits(volume)
    assert expected.shape == (3, *size)
    torch.testing.assert_close(Predictor(pointwise(), options).logits(volume), expected, rtol=1e-4, atol=1e-4)


def naive_slide(model: nn.Module, volume: Tensor, window: Size, stride: Size, blend: str) -> Tensor:
    """Every window by itself, sums and weights over the whole volume."""
    ramps = [torch.tensor([min(i + 1, side - i) / side for i in range(side)]) for side in window]
    weight = torch.einsum("d,h,w->dhw", *ramps) if blend == "linear" else torch.ones(window)
    total, weights = torch.zeros(3, *volume.shape[1:]), torch.zeros(volume.shape[1:])
    planes, rows, columns = map(window_offsets, volume.shape[1:], window, stride)
    for z in planes:
        for y in rows:
            for x in columns:
                place = (slice(z, z + window[0]), slice(y, y + window[1]), slice(x, x + window[2]))
                logits = model(volume[(slice(None), *place)].float()[None])
                logits = F.interpolate(logits, window, mode="trilinear", align_corners=False)[0]
                total[(slice(None), *place)] += logits * weight
                weights[place] += weight
    return total / weights


@pytest.mark.parametrize("block_width", [1, 9, None])
@pytest.mark.parametrize("blend", ["average", "linear"])
def test_sliding_equals_the_naive_loop(blend: Any, block_width: int | None) -> None:
    model, volume = with_context(), random_volume(13, 21, 18)
    window, stride = (6, 8, 7), (4, 5, 7)
    options = InferenceOptions(window=window, stride=stride, blend=blend, batch_size=2, block_width=block_width)
    with torch.no_grad():
        expected = naive_slide(model, volume, window, stride, blend)
    torch.testing.assert_close(Predictor(model, options).logits(volume), expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("size", "window"), [((13, 21, 18), (6, 8, 8)), ((5, 30, 9), (5, 8, 9)), ((8, 8, 8), (8, 8, 8))]
)
def test_sliding_equals_monai(size: Size, window: Size) -> None:
    inferers = pytest.importorskip("monai.inferers")
    volume, model = random_volume(*size), with_context()

    def upsampled(volumes: Tensor) -> Tensor:
        return F.interpolate(model(volumes), volumes.shape[2:], mode="trilinear", align_corners=False)

    with torch.no_grad():
        expected = inferers.sliding_window_inference(volume[None].float(), window, 2, upsampled, overlap=0.25)[0]
    stride = tuple(int(side * 0.75) for side in window)
    options = InferenceOptions(window=window, stride=stride, blend="average", batch_size=2)
    torch.testing.assert_close(Predictor(model, options).logits(volume), expected, rtol=1e-4, atol=1e-3)


def test_blocks_cover_the_volume_once_and_are_small() -> None:
    options = InferenceOptions(window=(4, 6, 5), stride=(3, 4, 4), block_width=8)
    seen = torch.zeros(17, 31, 20)
    for place, logits in Predictor(pointwise(), options).blocks(random_volume(17, 31, 20)):
        seen[place] += 1
        assert logits.shape[1:] == seen[place].shape
        assert all(side <= most for side, most in zip(logits.shape[1:], (4, 11, 10), strict=True))
    assert (seen == 1).all()


def test_scales_flip_priors_and_normalization() -> None:
    model, volume = pointwise(), random_volume(6, 8, 10)
    mean, std = (10.0, 20.0), (50.0, 60.0)
    pixels = ((volume.float() - torch.tensor(mean).view(2, 1, 1, 1)) / torch.tensor(std).view(2, 1, 1, 1))[None]
    total = torch.zeros(1, 3, 6, 8, 10)
    with torch.no_grad():
        for size in ((3, 4, 5), (6, 8, 10)):
            scaled = F.interpolate(pixels, size, mode="trilinear", align_corners=False)
            for mirrored in (False, True):
                logits = model(scaled.flip(-1)).flip(-1) if mirrored else model(scaled)
                total += F.interpolate(logits, (6, 8, 10), mode="trilinear", align_corners=False).softmax(1)
    prior = torch.tensor([0.7, 0.2, 0.1])
    expected = (total[0] / 4).log() - prior.log().view(3, 1, 1, 1)
    options = InferenceOptions(scales=(0.5, 1.0), flip=True, class_frequency=tuple(prior.tolist()))
    predictor = Predictor(model, options, pixel_mean=mean, pixel_std=std)
    torch.testing.assert_close(predictor.logits(volume), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(predictor.labels(volume.movedim(0, -1).numpy()), predictor.logits(volume).argmax(0))


def test_one_logit_is_two_classes() -> None:
    torch.manual_seed(0)
    one = nn.Conv3d(2, 1, 3, padding=1).eval()
    volume = torch.randn(2, 9, 7, 8)
    with torch.no_grad():
        expected = one(volume[None])[0, 0] > 0
    assert 0 < expected.float().mean() < 1
    assert torch.equal(Predictor(one).labels(volume).bool(), expected)


def test_what_does_not_fit_is_refused() -> None:
    volume = random_volume(6, 8, 10)
    for window, image in (((4, 4), volume), ((4, 4, 4), volume[:, 0])):
        with pytest.raises(ValueError, match=r"two sides for images .*three for volumes"):
            Predictor(pointwise(), InferenceOptions(window=window)).labels(image)
    with pytest.raises(ValueError, match=r"expected \(1, K, d, h, w\)"):
        Predictor(lambda volumes: volumes[:, :, 0]).labels(volume)
    with pytest.raises(ValueError, match="2 channels, pixel_mean has 1"):
        Predictor(pointwise(), pixel_mean=(0.0,), pixel_std=(1.0,)).labels(volume)
    with pytest.raises(ValueError, match=r"out must hold integers of shape \(6, 8, 10\)"):
        Predictor(pointwise()).labels(volume, out=np.zeros((8, 10), np.uint8))
    with pytest.raises(ValueError, match=r"must be \(C, H, W\) or \(C, D, H, W\)"):
        Predictor(pointwise()).labels(volume[None])


@pytest.mark.slow
@pytest.mark.parametrize("long_side", [0, 1])
def test_large_volumes_in_constant_memory(tmp_path: Path, long_side: int) -> None:
    """The limit is on what a process may allocate; mapped files do not count. All logits would take 1.3 GB."""
    size = [256, 256, 256]
    size[long_side] = 1200
    code = f"""
        import resource
        import numpy as np, torch
        from torch import nn
        from aucseg.inference.predictor import InferenceOptions, Predictor
        torch.set_num_threads(1)
        model = nn.Conv3d(1, 4, 4, stride=4).eval()
        predictor = Predictor(model, InferenceOptions(window=(64, 128, 128), stride=(60, 128, 128), block_width=256))
        predictor.labels(np.zeros((70, 300, 300, 1), np.uint8))
        size = {tuple(size)}
        volume = np.lib.format.open_memmap({str(tmp_path / "v.npy")!r}, mode="w+", dtype=np.uint8, shape=(*size, 1))
        volume[size[0] // 2 :, size[1] // 2 :] = 255
        labels = np.lib.format.open_memmap({str(tmp_path / "l.npy")!r}, mode="w+", dtype=np.uint8, shape=size)
        with open("/proc/self/status") as status:
            data = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmData"))
        resource.setrlimit(resource.RLIMIT_DATA, (data + 500 * 2**20,) * 2)
        predictor.labels(volume, out=labels)
        place = tuple(slice(side // 2 - 8, side // 2 + 8) for side in size)
        assert (labels[place] == Predictor(model).labels(np.array(volume[place])).numpy()).mean() > 0.9
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, timeout=500)
