import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from aucseg.datasets import DatasetCard
from aucseg.datasets.counting import MaskScan, scan_mask
from aucseg.memory_bank import TailMemoryBank
from aucseg.statistics.advice import LEAVE_OUT, NOT_CLEAR, USE, advise_bank, choose_groups
from aucseg.statistics.class_statistics import ClassStatistics
from tests.statistics.examples import long_tail

# Counts of the training images of data sets on which bank and no bank were compared, from `aucseg stats --save`.
COUNTS = Path(__file__).parent / "counts"


def test_bank_advice_depends_on_the_data() -> None:
    rare = advise_bank(long_tail(400, tail_presence=0.04), [2, 3], [], batch_size=8)
    assert (rare.answer, rare.use_bank) == (USE, True)
    assert rare.settings["scope"] == "image"
    assert rare.settings["tail_classes"] == [2, 3]
    assert rare.settings["presence_target"] == 0.082  # 1 - 0.918^8 = 0.5
    assert 0 < rare.settings["resize_ratio"] <= 1
    frequent = advise_bank(long_tail(tail_presence=0.5), [2, 3], [], batch_size=8)
    assert (frequent.answer, frequent.use_bank, frequent.settings) == (LEAVE_OUT, False, {})
    fixed = advise_bank(long_tail(400, tail_presence=0.05, fixed=True), [2, 3], [], batch_size=2)
    assert fixed.answer == LEAVE_OUT
    assert any("keep to their places" in reason for reason in fixed.reasons)
    assert fixed.reasons[0].startswith("at batch size 8, as which one of 2 is judged, a tail class is in")
    assert rare.reasons[0].startswith("at batch size 8 a tail class is in")
    between = advise_bank(long_tail(tail_presence=0.095), [2, 3], [], batch_size=8)  # 1 - 0.905^8 = 0.55
    assert (between.answer, between.use_bank) == (NOT_CLEAR, False)
    assert between.settings == {}
    assert not any("try both" in reason for reason in between.reasons)
    open_question = advise_bank(long_tail(tail_presence=0.075), [2, 3], [], batch_size=8)
    assert (open_question.answer, open_question.settings["tail_classes"]) == (NOT_CLEAR, [3])
    assert any("try both" in reason for reason in open_question.reasons)
    assert advise_bank(long_tail(), [], [], batch_size=8).settings == {}


def test_a_few_samples_are_not_shown_again_and_again() -> None:
    few = advise_bank(long_tail(tail_presence=0.02), [2, 3], [], batch_size=8)  # in 5 and 6 images
    assert few.answer == NOT_CLEAR
    assert few.settings == {}
    # There is nothing to try, either where it is the answer that is not clear.
    few = advise_bank(long_tail(12, tail_presence=0.2), [2, 3], [], batch_size=8)
    assert (few.answer, few.settings) == (NOT_CLEAR, {})
    assert "try both" not in " ".join([few.summary, *few.reasons])
    assert "in enough different images to paste" in few.summary
    statistics = ClassStatistics(4)
    for i in range(1000):
        mask = np.zeros((8, 8), np.uint8)
        mask[:2] = i % 2
        for class_id, every in ((2, 100), (3, 20)):  # in 10 and in 50 images
            if i % every == 0:
                mask[2 * class_id - 1] = class_id
        statistics.update(mask)
    settings = advise_bank(statistics, [2, 3], [], batch_size=8).settings
    assert (settings["presence_target"], settings["max_factor"]) == (0.082, 5.0)
    assert settings["tail_classes"] == [2, 3]  # class 2 reaches 0.05


def test_many_tail_classes_are_pasted_no_more_often_than_an_image_bears() -> None:
    statistics = ClassStatistics(82)
    for i in range(800):
        mask = np.zeros((84, 4), np.uint8)
        mask[1] = i % 2  # half of the images
        for j in range(2):
            mask[2 + (2 * i + j) % 80] = 2 + (2 * i + j) % 80  # each of 80 classes in 20 images
        statistics.update(mask)
    advice = advise_bank(statistics, list(range(2, 82)), [1], batch_size=8)
    assert advice.settings["presence_target"] == 0.062  # 80 x (0.062 - 0.025) = 2.96 pastes an image
    assert advice.settings["protect_classes"] == [1]
    assert any("above 3 pasted into an image" in reason for reason in advice.reasons)


@pytest.mark.parametrize(
    ("name", "answer"), [("freedoom_lt", USE), ("cityscapes_256", LEAVE_OUT), ("ccp", LEAVE_OUT), ("camvid", LEAVE_OUT)]
)
@pytest.mark.parametrize("by_share", [False, True])
def test_the_answer_for_data_sets_that_were_trained_on(name: str, answer: str, by_share: bool) -> None:
    statistics = ClassStatistics.load(COUNTS / f"{name}.json")
    groups = statistics.groups() if by_share else json.loads((COUNTS / "groups.json").read_text())[name]
    for batch_size in (4, 8, 16):
        advice = advise_bank(statistics, groups["tail"], groups["middle"], batch_size=batch_size, by_share=by_share)
        assert advice.answer == answer


def points(presence: Sequence[float], areas: Sequence[int], num_images: int) -> list[MaskScan]:
    """Scans of images in which each class but the first two is a blob of a random size at a random place."""
    rng = np.random.default_rng(5)
    scans = []
    for i in range(num_images):
        mask = np.zeros((64, 64), np.uint8)
        mask[32:] = 1
        for class_id, (share, area) in enumerate(zip(presence, areas, strict=True), 2):
            if rng.random() < share or i < 4:
                side = max(1, round((area * rng.exponential()) ** 0.5))
                y, x = rng.integers(0, 64 - min(side, 60), 2)
                mask[y : y + side, x : x + side] = class_id
        scans.append(scan_mask(mask))
    return scans


@pytest.mark.parametrize("slipping", [pytest.param(0.06, marks=pytest.mark.slow), 0.25])
def test_halves_of_one_data_set_never_get_opposite_answers(slipping: float) -> None:
    # Classes 4 and 5 have about 0.5 % of the pixels: in some halves they are of the tail, in others of the middle.
    scans = points((0.05, 0.06, slipping, 0.3), (60, 50, round(20 / slipping), 66), 900)
    answers, plain = set(), set()
    for seed in range(50):
        half = ClassStatistics(6)
        for index in np.random.default_rng(seed).permutation(900)[:450]:
            half.add_scan(scans[index])
        groups = half.groups()
        answers.add(advise_bank(half, groups["tail"], groups["middle"], batch_size=8, by_share=True).answer)
        plain.add(float((1 - (1 - half.presence[groups["tail"]]) ** 8).mean()) < 0.55)
    assert not {USE, LEAVE_OUT} <= answers
    if slipping == 0.25:
        assert plain == {False, True}  # the counts alone would tell otherwise from half to half


def test_the_bank_takes_the_suggested_settings() -> None:
    settings = advise_bank(long_tail(tail_presence=0.05), [2, 3], [1], batch_size=8).settings
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
