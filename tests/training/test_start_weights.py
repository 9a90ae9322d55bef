from pathlib import Path

import pytest
import torch
from torch import nn

from aucseg import DatasetCard
from aucseg.models import build_model
from aucseg.training.start_weights import take_over


class Net(nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.backbone = nn.Conv2d(3, 4, 1)  # as many channels as classes, which is chance
        self.head = nn.Conv2d(4, num_classes, 1)


NAME = f"{__name__}:Net"


def a_card(*names: str) -> DatasetCard:
    classes = "\n".join(f"- name: {name}" for name in names)
    splits = "splits: {train: {images: 'i/*.png', masks: 'm/{stem}.png'}}"
    return DatasetCard.from_yaml(f"name: a\nclasses:\n{classes}\n{splits}\n")


def a_checkpoint(path: Path, *names: str) -> nn.Module:
    model = build_model(NAME, len(names))
    state = {f"model.{name}": value for name, value in model.state_dict().items()}
    torch.save({"state_dict": state, "hyper_parameters": {"card": a_card(*names).to_yaml()}}, path)
    return model


@pytest.mark.parametrize("names", [("d", "a", "c", "b"), ("e", "a", "f"), ("a", "b", "c", "d", "e")])
def test_rows_go_by_the_names_of_the_classes(names: tuple[str, ...], tmp_path: Path) -> None:
    old_names = ("a", "b", "c", "d")
    old, new = a_checkpoint(tmp_path / "a.ckpt", *old_names).state_dict(), build_model(NAME, len(names))
    before = {name: value.clone() for name, value in new.state_dict().items()}
    rebuilt = {"model": NAME, "model_options": None}
    text = take_over(new, tmp_path / "a.ckpt", a_card(*names), rebuilt)
    after = new.state_dict()
    assert torch.equal(after["network.backbone.weight"], old["network.backbone.weight"])
    for key in ("network.head.weight", "network.head.bias"):
        for class_id, name in enumerate(names):
            expected = old[key][old_names.index(name)] if name in old_names else before[key][class_id]
            assert torch.equal(after[key][class_id], expected)
    shared = len(set(names) & set(old_names))
    assert f"4 of 4 tensors taken; of network.head.bias, network.head.weight the rows of {shared} of" in text


def test_a_file_of_weights_without_class_names_gives_what_fits(tmp_path: Path) -> None:
    model = build_model(NAME, 5)
    torch.save({"backbone.weight": torch.ones(4, 3, 1, 1), "head.bias": torch.ones(4)}, tmp_path / "a.pth")
    text = take_over(model, tmp_path / "a.pth", a_card(*"abcde"), {"model": NAME, "model_options": None})
    assert text.endswith(
        "1 of 4 tensors taken; as initialized: network.backbone.bias, network.head.bias, network.head.weight; "
        "not used: network.head.bias"
    )
    assert torch.equal(model.state_dict()["network.backbone.weight"], torch.ones(4, 3, 1, 1))
    torch.save({"other": torch.ones(4)}, tmp_path / "b.pth")
    with pytest.raises(ValueError, match=r"nothing in .*b.pth fits the model WrappedNetwork"):
        take_over(model, tmp_path / "b.pth", a_card(*"abcde"), {"model": NAME, "model_options": None})
