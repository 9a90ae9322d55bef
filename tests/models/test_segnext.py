"""SegNeXt against the released code: names and shapes of every size, outputs of the tiny one.

`tests/data/segnext` was made by running the released code once: the state dicts' names and shapes for 19 classes, and
the outputs for an input and weights that are sines, so that they can be made again here.
"""

import gzip
import itertools
import json
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from aucseg.models import SegNeXt, split_parameters
from aucseg.models.segnext import SIZES, factorize

DATA = Path(__file__).parents[1] / "data" / "segnext"


def tiny(num_classes: int = 5, **options: Any) -> SegNeXt:
    torch.manual_seed(0)
    sizes = {"embed_dims": (8, 16, 16, 24), "depths": (1, 1, 2, 1), "head_channels": 32, "num_bases": 4}
    return SegNeXt(num_classes, **{**sizes, **options})


@pytest.fixture(scope="module")
def released() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(gzip.decompress((DATA / "state_dicts.json.gz").read_bytes()))
    return content


@pytest.mark.parametrize("size", ["tiny", "small", "base", "large"])
def test_names_and_shapes_are_those_of_the_released_checkpoints(size: str, released: dict[str, Any]) -> None:
    with torch.device("meta"):
        model = SegNeXt(19, **SIZES[size])
    shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    assert shapes == released[size]["state_dict"]
    assert sum(parameter.numel() for parameter in model.parameters()) == released[size]["parameters"]


def sines(name: str, tensor: Tensor) -> Tensor:
    phase = zlib.crc32(name.encode()) % 9973
    wave = torch.from_numpy(np.sin(0.731 * np.arange(tensor.numel()) + phase)).view(tensor.shape)
    if name.endswith("running_var"):
        return 1 + wave / 2
    if name.endswith("running_mean"):
        return wave / 10
    if "layer_scale" in name:
        return 0.5 + wave / 10
    if tensor.ndim == 1:
        return 1 + wave / 5 if name.endswith("weight") else wave / 20
    return 1.5 * wave / math.sqrt(tensor.numel() / len(tensor))


def test_outputs_are_those_of_the_released_code() -> None:
    expected = {name: torch.from_numpy(array) for name, array in np.load(DATA / "tiny_outputs.npz").items()}
    model = SegNeXt(19, **SIZES["tiny"]).eval()
    state_dict = model.state_dict()
    model.load_state_dict({k: sines(k, v) if v.is_floating_point() else v for k, v in state_dict.items()})
    images = torch.from_numpy(np.sin(0.013 * np.arange(2 * 3 * 64 * 96))).view(2, 3, 64, 96).float()
    bases = torch.rand(2, 256, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        stages = model.backbone(images)
        logits = model.decode_head(stages, bases)
    for i, stage in enumerate(stages):
        torch.testing.assert_close(stage, expected[f"stage{i}"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits, expected["logits_seed0"], rtol=1e-4, atol=1e-4)


def test_evaluation_is_the_same_twice_alone_and_in_a_batch() -> None:
    model = tiny().eval()
    images = torch.rand(3, 3, 64, 64)
    with torch.no_grad():
        batch = model(images)
        torch.testing.assert_close(model(images), batch, rtol=0, atol=0)
        torch.testing.assert_close(model(images[1:2]), batch[1:2])
        torch.testing.assert_close(tiny().eval()(images), batch, rtol=0, atol=0)


def test_training_draws_new_bases() -> None:
    model = tiny(drop_path=0.0, dropout=0.0).train()
    images = torch.rand(2, 3, 64, 64)
    assert not torch.equal(model(images), model(images))


def test_bases_are_no_part_of_the_checkpoint_and_move_with_the_model() -> None:
    model = tiny()
    assert not any("bases" in name for name in model.state_dict())
    assert model.to("meta").decode_head.hamburger.evaluation_bases.is_meta


@pytest.mark.parametrize("size", [(32, 32), (64, 96), (50, 70), (33, 31)])
def test_any_size(size: tuple[int, int]) -> None:
    logits = tiny().eval()(torch.rand(1, 3, *size))
    expected = tuple(length // 8 for length in size) if all(s % 8 == 0 for s in size) else size
    assert logits.shape == (1, 5, *expected)


def test_padding_leaves_the_inside_alone() -> None:
    """Where the padding cannot be seen, the logits of a padded image are those of the image padded by hand."""
    model = tiny().eval()
    images = torch.rand(1, 3, 48, 64)
    with torch.no_grad():
        by_hand = model(F.pad(images, (0, 0, 0, 16)))
        torch.testing.assert_close(model(images), by_hand[..., :6, :], rtol=0, atol=0)


def test_half_precision_does_not_overflow() -> None:
    model = tiny().eval()
    images = 50 * torch.rand(1, 3, 64, 64)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(images)
    assert logits.isfinite().all()


def test_shapes_alone() -> None:
    """On the device `meta`, on which tools estimate memory."""
    with torch.device("meta"):
        model = tiny()
    assert model(torch.zeros(2, 3, 64, 64, device="meta")).shape == (2, 5, 8, 8)


def test_every_parameter_gets_a_gradient() -> None:
    model = tiny(drop_path=0.0).train()
    model(torch.rand(2, 3, 64, 64)).square().mean().backward()
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert without == []
    encoder, head = split_parameters(model)
    assert len(encoder) == len(list(model.backbone.parameters()))
    assert len(head) == len(list(model.decode_head.parameters()))


def test_drop_path_drops_whole_residuals() -> None:
    torch.manual_seed(0)
    block: Any = tiny(drop_path=0.9).backbone.get_submodule("block4.0")
    residual = torch.ones(4000, 2, 1, 1)
    dropped = block._drop(residual)
    values, counts = dropped[:, 0, 0, 0].unique(return_counts=True)
    torch.testing.assert_close(values, torch.tensor([0.0, 10.0]))
    assert abs(counts[1].item() / 4000 - 0.1) < 0.03
    assert torch.equal(dropped[:, 0], dropped[:, 1])
    assert torch.equal(block.eval()._drop(residual), residual)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 3), st.integers(1, 5), st.integers(1, 6), st.integers(1, 3), st.integers(0, 2**31))
def test_factorization_improves_with_steps_and_stays_non_negative(b: int, d: int, n: int, r: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(b, d, n, generator=generator, dtype=torch.float64)
    bases = F.normalize(torch.rand(b, d, r, generator=generator, dtype=torch.float64), dim=1)
    errors = [(factorize(x, bases, steps) - x).square().sum() for steps in (0, 1, 5, 20)]
    assert (factorize(x, bases, 5) >= 0).all()
    assert all(later <= earlier + 1e-4 for earlier, later in itertools.pairwise(errors))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"embed_dims": (8, 16)}, "four entries"),
        ({"head_channels": 48}, "multiple of 32"),
        ({"num_classes": 0}, "at least 1"),
    ],
)
def test_wrong_widths_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny(**options)
