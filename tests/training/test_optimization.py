from typing import Any

import pytest
import timm
import torch
from timm.optim import param_groups_weight_decay  # type: ignore[attr-defined]
from torch import Tensor, nn

from aucseg.models import DisAlignModel, build_model
from aucseg.training.optimization import build_optimizer, undecayed


class Transformer(nn.Module):
    """Parameters as the usual transformers name and shape them."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.proj = nn.Conv2d(3, 8, 4)
        self.backbone.pos_embed = nn.Parameter(torch.zeros(1, 16, 8))
        self.backbone.pos_embed2 = nn.Parameter(torch.zeros(1, 16, 8))
        self.backbone.relative_position_bias_table = nn.Parameter(torch.zeros(9, 2))
        self.backbone.rel_pos_h = nn.Parameter(torch.zeros(7, 8))
        self.backbone.position_embeddings = nn.Embedding(16, 8)
        self.backbone.grn = nn.Module()
        self.backbone.grn.weight = nn.Parameter(torch.zeros(1, 1, 1, 8))  # a scale in the shape of what it scales
        self.composition = nn.Linear(8, 8)  # no position: another word
        self.head = nn.Conv2d(8, 1, 1)  # a single output: a weight none the less


def test_positions_and_scales_of_any_shape_do_not_decay() -> None:
    model = Transformer()
    without = undecayed(model)
    assert {name for name, parameter in model.named_parameters() if id(parameter) not in without} == {
        "backbone.proj.weight",
        "composition.weight",
        "head.weight",
    }


def test_the_head_of_disalign_does_not_decay_but_for_its_convolution() -> None:
    model = DisAlignModel(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 5, 1)), num_classes=5)
    decays = {
        name: group["weight_decay"]
        for group in build_optimizer(model, 0.1, 1.0, 0.01, (0.9, 0.999)).param_groups
        for name, parameter in model.named_parameters()
        if any(parameter is chosen for chosen in group["params"])
    }
    assert decays == {"scale": 0.0, "offset": 0.0, "confidence.weight": 0.01, "confidence.bias": 0.0}


def test_what_modules_say_themselves_is_followed() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.weight = nn.Parameter(torch.zeros(3, 3)), nn.Parameter(torch.zeros(3, 3))

        def no_weight_decay(self) -> set[str]:
            return {"table"}

    model = nn.Sequential(Own(), nn.Linear(3, 3))
    without = undecayed(model)
    assert {name for name, parameter in model.named_parameters() if id(parameter) in without} == {"0.table", "1.bias"}


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swinv2_cr_tiny_224", "convnextv2_atto"])
def test_networks_of_timm_decay_what_timm_would(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name, pretrained=False)
    declared: set[str] = getattr(model, "no_weight_decay", set)()
    groups: list[dict[str, Any]] = param_groups_weight_decay(model, 0.1, no_weight_decay_list=declared)
    expected = {id(parameter) for group in groups if not group["weight_decay"] for parameter in group["params"]}
    assert expected
    assert undecayed(model) == expected


def test_every_parameter_is_in_one_group() -> None:
    model = build_model("smp/fpn", 4, encoder="resnet18")
    groups = build_optimizer(model, 0.1, 10.0, 0.01, (0.9, 0.999)).param_groups
    chosen = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(chosen) == sorted(id(parameter) for parameter in model.parameters())


def test_float16_parameters_survive_gradients_whose_squares_underflow() -> None:
    model = nn.Linear(4, 4).half()
    optimizer = build_optimizer(model, 1e-3, 1.0, 0.0, (0.9, 0.999))
    before: list[Tensor] = [parameter.detach().clone() for parameter in model.parameters()]
    for _ in range(5):
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, 1e-6)
        optimizer.step()
    for parameter, old in zip(model.parameters(), before, strict=True):
        assert float((parameter.detach() - old).abs().max()) <= 5.5e-3  # five steps of the learning rate at most
