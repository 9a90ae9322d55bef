import pytest
import torch
from torch import Tensor, nn

from aucseg.inference.offset_model import OFFSET_MODEL, OffsetNetwork, add_to_bias, offset_model, with_offsets
from aucseg.models import build_model

TINY_SEGNEXT = {"embed_dims": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "head_channels": 32, "num_bases": 4}
SMALL_SMP = {"encoder": "tu-mobilenetv3_small_050"}
SEGFORMER = {
    "hidden_sizes": [8, 8, 16, 16],
    "depths": [1, 1, 1, 1],
    "decoder_hidden_size": 16,
    "num_attention_heads": [1, 1, 2, 2],
}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("segnext/tiny", TINY_SEGNEXT),
        ("smp/fpn", SMALL_SMP),
        ("smp/deeplabv3plus", SMALL_SMP),
        ("torchvision/lraspp_mobilenet_v3_large", {}),
        ("hf/segformer", SEGFORMER),
    ],
)
def test_every_family_takes_offsets_into_a_bias(name: str, options: dict[str, object]) -> None:
    if name.startswith("hf/"):
        pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = build_model(name, 4, **options).eval()
    offsets = torch.tensor([1.0, -2.0, 0.5, 0.5])
    images = torch.randn(2, 3, 50, 70)
    with torch.no_grad():
        before = model(images)
        layer = add_to_bias(model, offsets, torch.randn(1, 3, 64, 96))
        assert layer is not None
        torch.testing.assert_close(model(images), before + offsets.view(1, -1, 1, 1), rtol=1e-4, atol=1e-4)


class Scaled(nn.Module):
    """Its last bias changes the logits by other than what is added to it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 2, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Twice the convolution."""
        logits: Tensor = self.layer(images)
        return 2 * logits


@pytest.mark.parametrize(
    "model", [Scaled(), nn.Conv2d(3, 2, 1, bias=False), nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU())]
)
def test_a_bias_that_would_not_do_is_left_alone(model: nn.Module) -> None:
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    images = torch.randn(1, 3, 8, 8)
    assert add_to_bias(model.eval(), [1.0, -1.0], images) is None
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    wrapped = with_offsets(model, [1.0, -1.0], 2).eval()
    expected = model(images) + torch.tensor([1.0, -1.0]).view(1, -1, 1, 1)
    torch.testing.assert_close(wrapped(images), expected)


def test_a_model_by_name_with_offsets_behind_it() -> None:
    model = build_model(OFFSET_MODEL, 4, model="segnext/tiny", model_options=TINY_SEGNEXT)
    assert model.get_buffer("network.offsets").tolist() == [0] * 4
    inner = build_model("segnext/tiny", 4, **TINY_SEGNEXT)
    assert model.pixel_mean == inner.pixel_mean
    assert offset_model(4, model="segnext/tiny", model_options=TINY_SEGNEXT, offsets=[1, 2, 3, 4]).num_classes == 4


def test_wrong_calls_are_told() -> None:
    model, images = nn.Conv2d(3, 2, 1), torch.randn(1, 3, 8, 8)
    with pytest.raises(ValueError, match="training mode"):
        add_to_bias(model, [1, 2], images)
    with pytest.raises(ValueError, match="give one a class"):
        add_to_bias(model.eval(), [1, 2, 3], images)


def test_offsets_behind_a_model_of_volumes_and_of_one_logit() -> None:
    volumes, network = torch.randn(1, 1, 3, 4, 4), nn.Conv3d(1, 3, 1)
    change = OffsetNetwork(network, [1.0, 0.0, -1.0])(volumes) - network(volumes)
    torch.testing.assert_close(change.mean((0, 2, 3, 4)), torch.tensor([1.0, 0.0, -1.0]))
    images, one_logit = torch.randn(1, 3, 8, 8), nn.Conv2d(3, 1, 1).eval()
    expected = (one_logit(images)[:, 0] - 0.5 > 0).long()
    assert torch.equal(with_offsets(one_logit, [0.25, -0.25], 2)(images).argmax(1), expected)
    before = one_logit(images)
    assert add_to_bias(one_logit, [0.25, -0.25], images) == ""
    torch.testing.assert_close(one_logit(images), before - 0.5)


def test_offsets_of_another_number_of_classes_are_refused() -> None:
    with pytest.raises(ValueError, match="2 offsets for logits of 3 classes"):
        OffsetNetwork(nn.Conv2d(3, 3, 1), [1.0, -1.0])(torch.randn(1, 3, 4, 4))
