import numpy as np
import torch

from aucseg.datasets import DatasetCard
from aucseg.memory_bank import TailMemoryBank
from aucseg.statistics.advice import advise_bank, choose_groups
from aucseg.statistics.class_statistics import ClassStatistics
from tests.statistics.examples import long_tail


def test_bank_advice_depends_on_the_data() -> None:
    rare = advise_bank(long_tail(), [2, 3], [], batch_size=8)
    assert rare["use_bank"]
    assert rare["settings"]["scope"] == "image"
    assert rare["settings"]["tail_classes"] == [2, 3]
    assert rare["settings"]["presence_target"] == 0.1
    assert 0 < rare["settings"]["resize_ratio"] <= 1
    frequent = advise_bank(long_tail(tail_presence=0.9), [2, 3], [], batch_size=8)
    assert not frequent["use_bank"]
    assert any("train without one" in reason for reason in frequent["reasons"])
    in_every_batch = advise_bank(long_tail(tail_presence=0.5), [2, 3], [1], batch_size=8)
    assert not in_every_batch["use_bank"]
    assert any("nothing to bring back" in reason for reason in in_every_batch["reasons"])
    fixed = advise_bank(long_tail(tail_presence=0.05, fixed=True), [2, 3], [], batch_size=2)
    assert not fixed["use_bank"]
    assert any("keep to their places" in reason for reason in fixed["reasons"])
    assert advise_bank(long_tail(), [], [], batch_size=8)["settings"] == {}


def test_the_tail_is_lifted_to_a_typical_middle_class_and_not_beyond() -> None:
    statistics = ClassStatistics(6)
    for i in range(40):
        mask = np.zeros((8, 8), np.uint8)
        for class_id, every in ((1, 4), (2, 5), (3, 10), (4, 2), (5, 20)):
            if i % every == 0:
                mask[class_id] = class_id
        statistics.update(mask)
    advice = advise_bank(statistics, [4, 5], [1, 2, 3], batch_size=4)
    assert advice["settings"]["presence_target"] == 0.2  # of 0.25, 0.2, 0.1
    assert advice["settings"]["protect_classes"] == [1, 2, 3]
    assert any("1 of the 2 are in fewer images" in reason for reason in advice["reasons"])
    assert not advise_bank(statistics, [4], [1, 2, 3], batch_size=4)["use_bank"]


def test_many_tail_classes_are_pasted_no_more_often_than_an_image_bears() -> None:
    statistics = ClassStatistics(42)
    for i in range(100):
        mask = np.zeros((42, 4), np.uint8)
        mask[1] = i % 2  # half of the images
        if i < 40:
            mask[i + 2] = i + 2  # each of 40 classes in one image
        statistics.update(mask)
    advice = advise_bank(statistics, list(range(2, 42)), [1], batch_size=8)
    assert advice["settings"]["presence_target"] == 0.08  # 40 x (0.08 - 0.01) = 2.8 pastes an image
    assert any("more than 3 pastes" in reason for reason in advice["reasons"])


def test_the_bank_takes_the_suggested_settings() -> None:
    settings = advise_bank(long_tail(), [2, 3], [1], batch_size=8)["settings"]
    bank = TailMemoryBank(**settings)
    images, masks = bank(torch.zeros(2, 3, 48, 64), torch.zeros(2, 48, 64, dtype=torch.uint8))
    assert images.shape == (2, 3, 48, 64)
    assert masks.shape == (2, 48, 64)


def test_groups_of_the_report_come_from_the_card_where_it_names_them() -> None:
    cityscapes = DatasetCard.load("cityscapes")
    groups, rule = choose_groups(ClassStatistics(19), cityscapes)
    assert groups == cityscapes.groups
    assert "card" in rule
    statistics = ClassStatistics(171)
    statistics.update(np.repeat(np.arange(171, dtype=np.uint8), 10)[None])
    statistics.update(np.zeros((100, 100), np.uint8))
    groups, _ = choose_groups(statistics, DatasetCard.load("coco_stuff164k"))
    assert groups["head"] == [0]
    assert [len(groups[name]) for name in ("head", "middle", "tail")] == [1, 47, 123]
