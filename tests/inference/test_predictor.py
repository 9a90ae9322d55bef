import math
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

from aucseg.datasets import SegmentationDataset
from aucseg.inference.predictor import InferenceOptions, Predictor, window_offsets
from aucseg.models import build_model
from tests.pretended_device import MPS, MPSTensor, NoWaiting


def pointwise(num_classes: int = 5) -> nn.Module:
    torch.manual_seed(0)
    return nn.Conv2d(3, num_classes, 1).eval()


def random_image(height: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (3, height, width), generator=generator, dtype=torch.uint8)


@settings(max_examples=25, deadline=None)
@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    window=st.tuples(st.integers(1, 25), st.integers(1, 25)),
    share=st.floats(0.1, 1),
    blend=st.sampled_from(["average", "linear"]),
    batch_size=st.integers(1, 3),
    block_width=st.integers(1, 50),
)
def test_sliding_equals_whole_for_a_pointwise_model(
    height: int, width: int, window: tuple[int, int], share: float, blend: Any, batch_size: int, block_width: int
) -> None:
    stride = (max(1, int(window[0] * share)), max(1, int(window[1] * share)))
    options = InferenceOptions(
        window=window, stride=stride, blend=blend, batch_size=batch_size, block_width=block_width
    )
    image = random_image(height, width)
    expected = Predictor(pointwise()).logits(image)
    torch.testing.assert_close(Predictor(pointwise(), options).logits(image), expected, rtol=1e-4, atol=1e-4)


def naive_slide(model: nn.Module, image: Tensor, window: int, stride: int) -> Tensor:
    """Every window by itself, sums and counts over the whole image."""
    height, width = image.shape[-2:]
    total, count = torch.zeros(5, height, width), torch.zeros(height, width)
    for top in [*range(0, height - window, stride), height - window]:
        for left in [*range(0, width - window, stride), width - window]:
            crop = image[:, top : top + window, left : left + window].float()[None]
            logits = F.interpolate(model(crop), (window, window), mode="bilinear", align_corners=False)[0]
            total[:, top : top + window, left : left + window] += logits
            count[top : top + window, left : left + window] += 1
    return total / count


@pytest.mark.parametrize("block_width", [16, 30, 4096])
def test_sliding_equals_the_naive_loop(block_width: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 5, stride=4, padding=2), nn.ReLU(), nn.Conv2d(8, 5, 3, padding=1)).eval()
    image = random_image(50, 90)
    options = InferenceOptions(window=(16, 16), stride=(12, 12), blend="average", batch_size=2, block_width=block_width)
    with torch.no_grad():
        torch.testing.assert_close(
            Predictor(model, options).logits(image), naive_slide(model, image, 16, 12), rtol=1e-4, atol=1e-4
        )


def test_linear_blending_hides_seams() -> None:
    """A model that knows the border of its window answers smoothly all the same."""

    def left_to_right(images: Tensor) -> Tensor:
        ramp = torch.linspace(-1, 1, images.shape[-1]).expand(len(images), 1, *images.shape[-2:])
        return torch.cat([ramp, -ramp], dim=1)

    image = random_image(32, 96)
    jumps = {}
    for blend in ("average", "linear"):
        options = InferenceOptions(window=(32, 32), stride=(32, 16), blend=blend)
        jumps[blend] = Predictor(left_to_right, options).logits(image)[0, 0].diff().abs().max().item()
    assert jumps["linear"] < 0.25 * jumps["average"]


@pytest.fixture(scope="module")
def freedoom_predictor() -> Predictor:
    """FPN after a short training on Freedoom-LT with cross-entropy."""
    torch.manual_seed(0)
    train = SegmentationDataset("freedoom_lt", split="train")
    weights = "package:efficientnet_lite0"
    model = build_model("smp/fpn", train.card.num_classes, encoder_weights=weights, decoder_segmentation_channels=64)
    predictor = Predictor(model, pixel_mean=model.pixel_mean, pixel_std=model.pixel_std)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    for step in range(80):
        samples = [train[(17 * (4 * step + i)) % len(train)] for i in range(4)]
        images = torch.stack([sample["image"] for sample in samples]).float()
        target = torch.stack([sample["mask"] for sample in samples]).long()
        logits = model((images - 127) / 128)
        logits = F.interpolate(logits, target.shape[-2:], mode="bilinear", align_corners=False)
        optimizer.zero_grad()
        torch.autograd.backward(F.cross_entropy(logits, target, ignore_index=255))
        optimizer.step()
    model.eval()
    return predictor


def jumps(labels: Tensor, rows: list[int], columns: list[int]) -> tuple[Tensor, Tensor]:
    """Where the label changes from the line before each of the given rows and columns."""
    return labels[rows] != labels[[row - 1 for row in rows]], labels[:, columns] != labels[:, [c - 1 for c in columns]]


@pytest.mark.slow
@pytest.mark.parametrize("blend", ["linear", "average"])
@pytest.mark.parametrize("window", [(96, 128), (64, 96)])
def test_seams_do_not_show_on_freedoom_lt(freedoom_predictor: Predictor, window: tuple[int, int], blend: Any) -> None:
    """Windows of small images show less context, so labels differ; but hardly any changes at a border of windows."""
    dataset = SegmentationDataset("freedoom_lt", split="val")
    options = InferenceOptions(window=window, blend=blend)
    normalization: dict[str, Any] = {"pixel_mean": (127.0,) * 3, "pixel_std": (128.0,) * 3}
    sliding = Predictor(freedoom_predictor.model, options, **normalization)
    rows, columns = (
        sorted({edge for start in window_offsets(size, w, step) for edge in (start, start + w)} - {0, size})
        for size, w, step in zip((120, 160), window, options.steps, strict=True)
    )
    hits, seams, pixels = 0, 0, 0
    for index in range(0, len(dataset), len(dataset) // 12):
        sample = dataset[index]
        whole, windows = freedoom_predictor.labels(sample["image"]), sliding.labels(sample["image"])
        new = [b & ~a for a, b in zip(jumps(whole, rows, columns), jumps(windows, rows, columns), strict=True)]
        seams += sum(int(jump.sum()) for jump in new)
        hits += int((whole == sample["mask"]).sum())
        pixels += whole.numel()
    assert hits / pixels > 0.6
    assert seams / pixels < 0.005


def test_scales_and_flip_average_probabilities() -> None:
    model = pointwise()
    image = random_image(20, 30)
    options = InferenceOptions(scales=(0.5, 1.0, 1.5), flip=True)
    pixels = image[None].float()
    total = torch.zeros(1, 5, 20, 30)
    with torch.no_grad():
        for height, width in ((10, 15), (20, 30), (30, 45)):
            scaled = F.interpolate(pixels, (height, width), mode="bilinear", align_corners=False)
            for mirrored in (False, True):
                logits = model(scaled.flip(-1)).flip(-1) if mirrored else model(scaled)
                total += F.interpolate(logits, (20, 30), mode="bilinear", align_corners=False).softmax(1)
    actual = Predictor(model, options).logits(image).softmax(0)
    torch.testing.assert_close(actual, total[0] / 6, rtol=1e-4, atol=1e-5)


def test_flip_makes_the_answer_symmetric() -> None:
    torch.manual_seed(0)
    model = nn.Conv2d(3, 5, 5, padding=2).eval()
    image = random_image(16, 24)
    predictor = Predictor(model, InferenceOptions(flip=True))
    torch.testing.assert_close(predictor.logits(image.flip(-1)).flip(-1), predictor.logits(image))
    assert not torch.allclose(Predictor(model).logits(image.flip(-1)).flip(-1), Predictor(model).logits(image))


def coarse(num_classes: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Conv2d(3, num_classes, 8, stride=8).eval()


def test_whole_images_are_upsampled_by_bands(monkeypatch: pytest.MonkeyPatch) -> None:
    model, image = coarse(7), random_image(40, 56)
    with torch.no_grad():
        expected = F.interpolate(model(image[None].float()), (40, 56), mode="bilinear", align_corners=False)[0]
    monkeypatch.setattr("aucseg.tensors.upsampling.BAND_ELEMENTS", 7 * 56 * 6)
    predictor = Predictor(model)
    blocks = list(predictor.blocks(image))
    assert [place for place, _ in blocks] == [(slice(top, min(top + 6, 40)), slice(0, 56)) for top in range(0, 40, 6)]
    assert not any(logits.requires_grad for _, logits in blocks)
    torch.testing.assert_close(predictor.logits(image), expected, rtol=1e-5, atol=1e-3)
    assert (predictor.labels(image) == expected.argmax(0)).float().mean() > 0.999


def test_the_next_windows_are_read_while_the_first_are_computed() -> None:
    events: list[str] = []

    class Recorded(np.ndarray[Any, Any]):
        def __getitem__(self, key: Any) -> Any:
            if isinstance(key, tuple):
                events.append(f"read {key[0].start}, {key[1].start}")
            return np.asarray(self)[key]

    def model(images: Tensor) -> Tensor:
        events.append("computed")
        return images

    image = random_image(24, 16).permute(1, 2, 0).numpy().view(Recorded)
    for (rows, _), _ in Predictor(model, InferenceOptions(window=(16, 8), stride=(8, 8))).blocks(image):
        events.append(f"given {rows.start}")
    assert events == [
        "read 0, 0", "computed", "read 0, 8", "computed", "read 8, 0", "given 0",
        "computed", "read 8, 8", "computed", "given 8",
    ]  # fmt: skip


@pytest.mark.parametrize("window", [None, (16, 16)])
def test_class_priors_are_taken_off(window: tuple[int, int] | None) -> None:
    frequency, tau = (70.0, 20.0, 9.0, 1.0, 0.0), 0.5
    image = random_image(20, 30)
    plain = Predictor(pointwise(), InferenceOptions(window=window)).logits(image)
    adjusted = Predictor(pointwise(), InferenceOptions(window=window, class_frequency=frequency, tau=tau)).logits(image)
    shares = torch.tensor([70.0, 20.0, 9.0, 1.0, 1.0]) / 101  # a class that never occurs counts as the rarest
    torch.testing.assert_close(
        plain - adjusted, tau * shares.log()[:, None, None].expand(5, 20, 30), rtol=1e-4, atol=1e-4
    )


def test_normalization_and_layout_of_the_image() -> None:
    model = pointwise()
    image = random_image(20, 30)
    mean, std = (10.0, 20.0, 30.0), (50.0, 60.0, 70.0)
    expected = model((image.float() - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1))
    predictor = Predictor(model, pixel_mean=mean, pixel_std=std)
    torch.testing.assert_close(predictor.logits(image), expected.detach())
    torch.testing.assert_close(predictor.logits(image.permute(1, 2, 0).numpy()), expected.detach())
    assert torch.equal(predictor.labels(image), expected.argmax(0))


def test_memory_mapped_files(tmp_path: Path) -> None:
    image = random_image(150, 130).permute(1, 2, 0).numpy()
    source = np.lib.format.open_memmap(tmp_path / "image.npy", mode="w+", dtype=np.uint8, shape=image.shape)
    source[:] = image
    target = np.lib.format.open_memmap(tmp_path / "labels.npy", mode="w+", dtype=np.uint8, shape=image.shape[:2])
    options = InferenceOptions(window=(32, 32), block_width=40)
    labels = Predictor(pointwise(), options).labels(source, out=target)
    expected = Predictor(pointwise()).labels(image)
    assert torch.equal(labels.long(), expected)
    target.flush()
    assert np.array_equal(np.load(tmp_path / "labels.npy"), expected.numpy())


@pytest.mark.slow
def test_ten_thousand_pixels_square_in_constant_memory(tmp_path: Path) -> None:
    """The limit is on what a process may allocate; mapped files do not count."""
    code = f"""
        import resource
        import numpy as np, torch
        from torch import nn
        from aucseg.inference.predictor import InferenceOptions, Predictor
        torch.set_num_threads(1)
        model = nn.Sequential(nn.Conv2d(3, 4, 8, stride=8)).eval()
        predictor = Predictor(model, InferenceOptions(window=(1024, 1024), stride=(1000, 1000)))
        predictor.labels(np.zeros((1100, 1100, 3), np.uint8))
        shape = (10_000, 10_000)
        image = np.lib.format.open_memmap({str(tmp_path / "i.npy")!r}, mode="w+", dtype=np.uint8, shape=(*shape, 3))
        image[5000:, :, 0] = 255
        labels = np.lib.format.open_memmap({str(tmp_path / "l.npy")!r}, mode="w+", dtype=np.uint8, shape=shape)
        with open("/proc/self/status") as status:
            data = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmData"))
        resource.setrlimit(resource.RLIMIT_DATA, (data + 400 * 2**20,) * 2)
        predictor.labels(image, out=labels)
        crop = np.array(image[4900:5100, :200])
        assert (labels[4900:5100, :200] == Predictor(model).labels(crop).numpy()).mean() > 0.9
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, timeout=500)


def test_training_mode_is_refused() -> None:
    with pytest.raises(ValueError, match=r"call model.eval\(\)"):
        Predictor(pointwise().train()).labels(random_image(8, 8))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": (0, 8)}, "window must be two positive"),
        ({"window": (8,)}, "or three for volumes"),
        ({"window": (8, 8), "stride": (9, 8)}, "at most the window"),
        ({"window": (8, 8), "stride": (8, 8, 8)}, "as many numbers as the window"),
        ({"block_width": 0}, "block_width must be at least 1"),
        ({"stride": (9, 8)}, "stride needs a window"),
        ({"blend": "cubic"}, "blend must be"),
        ({"scales": (0.0,)}, "scales must be positive"),
        ({"scales": ()}, "scales must be positive"),
        ({"scales": (1.0, math.nan)}, "scales must be positive"),
        ({"batch_size": 0}, "at least 1"),
        ({"class_frequency": (1.0, -1.0)}, "class_frequency must be finite and not negative"),
        ({"class_frequency": (1.0, float("nan"))}, "class_frequency must be finite"),
        ({"class_frequency": (0.0, 0.0)}, "class_frequency are all zero"),
        ({"class_frequency": ()}, "class_frequency must hold one count for each"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        InferenceOptions(**options)


def test_wrong_inputs() -> None:
    image = random_image(8, 8)
    with pytest.raises(ValueError, match=r"must be \(C, H, W\)"):
        Predictor(pointwise()).logits(image[0])
    with pytest.raises(ValueError, match=r"must be \(H, W, C\)"):
        Predictor(pointwise()).logits(image[0].numpy())
    with pytest.raises(ValueError, match="out must hold integers of shape"):
        Predictor(pointwise()).labels(image, out=np.zeros((8, 9), np.uint8))
    with pytest.raises(ValueError, match="cannot hold 300 labels"):
        Predictor(pointwise(300)).labels(image, out=np.zeros((8, 8), np.uint8))
    with pytest.raises(ValueError, match="2 class frequencies for a model of 5 classes"):
        Predictor(pointwise(), InferenceOptions(class_frequency=(1.0, 2.0))).logits(image)
    with pytest.raises(ValueError, match="3 channels, pixel_mean has 1"):
        Predictor(pointwise(), pixel_mean=(0.0,), pixel_std=(1.0,)).logits(image)
    with pytest.raises(ValueError, match="both"):
        Predictor(pointwise(), pixel_mean=(0.0,))
    with pytest.raises(ValueError, match="expected"):
        Predictor(lambda images: images[0]).logits(image)


@pytest.mark.parametrize("options", [{}, {"flip": True, "scales": (1.0, 2.0)}, {"window": (8, 8)}])
def test_one_logit_is_two_classes(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    one = nn.Conv2d(3, 1, 3, padding=1).eval()

    def two(images: Tensor) -> Tensor:
        logit: Tensor = one(images)
        return torch.cat([torch.zeros_like(logit), logit], 1)

    image = torch.rand(3, 20, 16)
    labels = Predictor(one, InferenceOptions(**options)).labels(image)
    assert torch.equal(labels, Predictor(two, InferenceOptions(**options)).labels(image))
    assert 0 < labels.float().mean() < 1


@pytest.mark.parametrize(
    "options", [{}, {"scales": (0.5, 1.0), "flip": True}, {"class_frequency": (0.9, 0.1)}], ids=str
)
def test_windows_follow_each_other_without_waiting_for_the_device(options: dict[str, Any]) -> None:
    """The host only sends; whoever takes the logits waits for them."""
    image = random_image(40, 50)
    window: dict[str, Any] = {"window": (16, 16), "batch_size": 2, **options}
    normalized: dict[str, Any] = {"pixel_mean": (100.0, 110.0, 120.0), "pixel_std": (50.0, 60.0, 70.0)}

    def two_classes(images: Tensor) -> Tensor:
        return images[:, :2, ::2, ::2]

    expected = Predictor(two_classes, InferenceOptions(**window), **normalized).logits(image)
    with NoWaiting():
        found = Predictor(two_classes, InferenceOptions(**window), **normalized, device=MPS).logits(image)
    assert isinstance(found, MPSTensor)
    torch.testing.assert_close(found.held, expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_windows_on_a_gpu_give_what_they_give_on_a_cpu() -> None:
    image, options = random_image(200, 300), InferenceOptions(window=(64, 64), batch_size=2)
    expected = Predictor(pointwise(), options).labels(image)
    for picture in (image, image.permute(1, 2, 0).numpy()):
        assert (Predictor(pointwise().cuda(), options).labels(picture) == expected).float().mean() > 0.999


@pytest.mark.parametrize("options", [{"window": 512}, {"window": (64, 64), "stride": 32}, {"scales": 1.0}])
def test_one_number_for_several_is_told(options: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="must be a tuple of numbers"):
        InferenceOptions(**options)


def test_what_a_model_returns_and_how_images_come() -> None:
    with pytest.raises(TypeError, match=r"what the model returns must be a torch.Tensor, got dict.*'out'"):
        Predictor(lambda images: {"out": images}).labels(torch.zeros(3, 4, 4))  # type: ignore[arg-type, return-value]
    with pytest.raises(ValueError, match="pixel_std must be above 0"):
        Predictor(lambda images: images, pixel_mean=[0.0, 0.0, 0.0], pixel_std=[0.0, 1.0, 1.0])
    image = np.arange(48, dtype=np.uint16).reshape(4, 4, 3)
    predictor = Predictor(lambda images: images)
    torch.testing.assert_close(predictor.logits(image.astype(">u2")), predictor.logits(image))


def test_options_may_be_arrays() -> None:
    options = InferenceOptions(class_frequency=np.array([5, 3, 1]), tau=1.0)  # type: ignore[arg-type]
    assert Predictor(nn.Conv2d(3, 3, 1).eval(), options).labels(torch.rand(3, 8, 8)).shape == (8, 8)
