"""The paper's settings as a preset: the values of Han et al., NeurIPS 2024, by themselves and in a configuration."""

import pytest
import torch

from aucseg.datasets import DatasetCard
from aucseg.memory_bank import TailMemoryBank
from aucseg.memory_bank.paper import with_paper_settings


@pytest.mark.parametrize(
    ("data_set", "card", "num_tail", "sample_ratio", "resize_ratio"),
    [
        ("ade20k", "ade20k", 124, 0.05, 0.4),
        ("cityscapes", "cityscapes", 7, 1, 1),
        ("coco_stuff", "coco_stuff164k", 123, 0.05, 0.1),
    ],
)
def test_settings_are_those_of_the_paper(
    data_set: str, card: str, num_tail: int, sample_ratio: float, resize_ratio: float
) -> None:
    of_card = DatasetCard.load(card)
    assert of_card.tail_classes is not None
    bank = TailMemoryBank.as_in_paper(data_set, of_card.tail_classes, of_card.num_classes)
    assert len(bank.tail_classes) == num_tail
    assert (bank.capacity, bank.sample_ratio, bank.resize_ratio) == (5, sample_ratio, resize_ratio)
    assert (bank.scope, bank.placement, bank.presence_target) == ("image", "canvas", None)


def test_a_bank_as_in_the_paper_pastes_what_one_of_the_same_settings_pastes() -> None:
    settings = {"capacity": 5, "sample_ratio": 1.0, "resize_ratio": 1.0, "scope": "image", "placement": "canvas"}
    banks = [
        TailMemoryBank([1], 2, generator=torch.Generator().manual_seed(3), **settings),  # type: ignore[arg-type]
        TailMemoryBank.as_in_paper("cityscapes", [1], 2, generator=torch.Generator().manual_seed(3)),
    ]
    masks = torch.zeros(3, 12, 12, dtype=torch.uint8)
    masks[0, 2:8, 2:8] = 1
    images = torch.randint(256, (3, 3, 12, 12), dtype=torch.uint8)
    (images_by_hand, by_hand), (images_in_paper, in_paper) = (bank(images, masks) for bank in banks)
    assert torch.equal(images_by_hand, images_in_paper)
    assert torch.equal(by_hand, in_paper)
    assert (by_hand[1:] == 1).any()


def test_other_options_come_on_top() -> None:
    bank = TailMemoryBank.as_in_paper("ade20k", [1], 2, min_pixels=1, capacity=9)
    assert (bank.min_pixels, bank.capacity, bank.sample_ratio) == (1, 9, 0.05)
    assert with_paper_settings({"as_in_paper": None, "capacity": 2}) == {"capacity": 2}
    with pytest.raises(ValueError, match=r"sample_ratio 0.05 and presence_target 0.1 are two policies"):
        TailMemoryBank.as_in_paper("ade20k", [1], 2, presence_target=0.1)


def test_other_data_sets_are_refused_with_the_nearest_name() -> None:
    with pytest.raises(ValueError, match=r"as_in_paper: .* for 'coco_stuff164k'; did you mean coco_stuff\?"):
        TailMemoryBank.as_in_paper("coco_stuff164k", [1], 2)
    with pytest.raises(ValueError, match=r"'camvid'; known: ade20k, cityscapes, coco_stuff"):
        with_paper_settings({"as_in_paper": "camvid"})
