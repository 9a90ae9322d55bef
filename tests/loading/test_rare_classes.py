from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from aucseg.datasets import SegmentationDataset
from aucseg.loading.crops import ClassAwareCrop
from aucseg.loading.rare_classes import DrawnIndex, RareClassSampler, RepeatFactorSampler
from aucseg.statistics.class_statistics import ClassStatistics
from tests.datasets.trees import trees

both = pytest.mark.parametrize("make", [partial(RareClassSampler, temperature=2), RepeatFactorSampler])


@pytest.fixture
def statistics() -> ClassStatistics:
    """Class 0 in every image, 1 in half of them, 2 in one of twenty; class 3 nowhere."""
    statistics = ClassStatistics(4)
    for i in range(20):
        statistics.update(np.repeat([0, 1, 2], [60, 30 * (i % 2), 10 * (i == 7)])[None])
    return statistics


def test_sampler_draws_classes_as_it_says(statistics: ClassStatistics) -> None:
    sampler = RareClassSampler(statistics, num_samples=20_000, temperature=0.5)
    presence = np.array([1, 0.5, 0.05])
    expected = np.exp((1 - presence) / 0.5)
    expected /= expected.sum()
    np.testing.assert_allclose(sampler.class_probabilities.numpy(), [*expected, 0], rtol=1e-6)
    counts = np.bincount(list(sampler), minlength=20) / 20_000
    # Image 7 holds all three classes: alone for class 2, one of ten for class 1, one of twenty for class 0.
    assert counts[7] == pytest.approx(expected @ [1 / 20, 1 / 10, 1], abs=0.015)
    assert counts[8] == pytest.approx(expected[0] / 20, abs=0.01)
    assert len(sampler) == 20_000


def test_sampler_by_frequency(statistics: ClassStatistics) -> None:
    sampler = RareClassSampler(statistics, temperature=0.5, by="frequency")
    expected = np.exp((1 - statistics.frequency[:3]) / 0.5)
    np.testing.assert_allclose(sampler.class_probabilities[:3].numpy(), expected / expected.sum(), rtol=1e-6)
    assert len(sampler) == 20


def test_repeat_factors_are_those_of_the_rarest_class(statistics: ClassStatistics) -> None:
    factors = RepeatFactorSampler(statistics, threshold=0.8, max_factor=3.0).factors.numpy()
    expected = np.ones(20)
    expected[1::2] = (0.8 / 0.5) ** 0.5  # class 1
    expected[7] = 3.0  # class 2, whose root of 16 is bounded
    np.testing.assert_allclose(factors, expected / expected.mean(), rtol=1e-12)
    by_pixels = RepeatFactorSampler(statistics, threshold=0.8, by="frequency").factors.numpy()
    rarest = np.where(np.arange(20) % 2, statistics.frequency[1], statistics.frequency[0])
    rarest[7] = statistics.frequency[2]
    expected = np.clip((0.8 / rarest) ** 0.5, 1, 5)
    np.testing.assert_allclose(by_pixels, expected / expected.mean(), rtol=1e-12)


@given(
    presence=arrays(bool, st.tuples(st.integers(1, 30), st.integers(1, 5))),
    num_samples=st.integers(1, 90),
    seed=st.integers(0, 9),
)
def test_each_epoch_has_the_repeat_factor_of_each_image(
    presence: NDArray[np.bool_], num_samples: int, seed: int
) -> None:
    statistics = ClassStatistics(5)
    for row in presence:
        statistics.update(np.append(np.flatnonzero(row), 255)[None])
    assume(presence.any())
    sampler = RepeatFactorSampler(statistics, num_samples=num_samples, seed=seed)
    wanted = sampler.factors.numpy() * num_samples / len(presence)
    counts = np.bincount(list(sampler), minlength=len(presence))
    assert counts.sum() == num_samples
    assert (counts >= np.floor(wanted - 1e-9)).all()
    assert (counts <= np.ceil(wanted + 1e-9)).all()


def test_repeat_factors_hold_on_average(statistics: ClassStatistics) -> None:
    sampler = RepeatFactorSampler(statistics)
    counts = np.zeros(20)
    for epoch in range(400):
        sampler.set_epoch(epoch)
        counts += np.bincount(list(sampler), minlength=20)
    np.testing.assert_allclose(counts / 400, sampler.factors.numpy(), atol=0.08)


@both
def test_sampler_is_deterministic_and_changes_with_epoch_and_seed(
    make: Callable[..., RareClassSampler], statistics: ClassStatistics
) -> None:
    sampler = make(statistics, seed=3)
    first = list(sampler)
    assert first == list(sampler) == list(make(statistics, seed=3))
    sampler.set_epoch(1)
    assert list(sampler) != first
    assert list(make(statistics, seed=4)) != first


@both
@pytest.mark.parametrize("num_replicas", [1, 2, 3, 4, 30])
def test_ranks_share_one_sequence(
    num_replicas: int, make: Callable[..., RareClassSampler], statistics: ClassStatistics
) -> None:
    def drawn(**options: int) -> list[tuple[int, int]]:
        sampler = make(statistics, num_samples=22, seed=1, **options)
        sampler.set_epoch(2)
        return [(int(index), index.draw) for index in sampler if isinstance(index, DrawnIndex)]

    whole = drawn()
    assert [draw for _, draw in whole] == list(range(44, 66))
    ranks = [drawn(num_replicas=num_replicas, rank=rank) for rank in range(num_replicas)]
    joined = [index for step in zip(*ranks, strict=True) for index in step]
    assert joined == [*whole, *whole[: -22 % num_replicas]]


@both
def test_sampler_goes_on_in_the_middle_of_an_epoch(
    make: Callable[..., RareClassSampler], statistics: ClassStatistics
) -> None:
    sampler = make(statistics, seed=5, num_replicas=2, rank=1)
    sampler.set_epoch(2)
    whole = list(sampler)
    state = sampler.state_dict(num_consumed=4)
    resumed = make(statistics, seed=5, num_replicas=2, rank=1)
    resumed.load_state_dict(state)
    assert len(resumed) == 6
    rest = list(resumed)
    assert rest == whole[4:]
    assert [i.draw for i in rest if isinstance(i, DrawnIndex)] == [
        i.draw for i in whole[4:] if isinstance(i, DrawnIndex)
    ]
    # The epoch after that is whole again.
    assert len(list(resumed)) == len(resumed) == 10
    with pytest.raises(ValueError, match="num_consumed"):
        resumed.load_state_dict({"epoch": 0, "num_consumed": 11})


@pytest.mark.parametrize(
    ("sampler", "arguments", "message"),
    [
        (RareClassSampler, {"temperature": 0.0}, "temperature must be positive"),
        (RepeatFactorSampler, {"threshold": 0.0}, "threshold must be positive"),
        (RepeatFactorSampler, {"threshold": math.nan}, "threshold must be positive"),
        (RepeatFactorSampler, {"max_factor": 0.5}, "max_factor must be at least 1"),
        (RepeatFactorSampler, {"max_factor": math.nan}, "max_factor must be at least 1"),
        *(
            (sampler, arguments, message)
            for sampler in (RareClassSampler, RepeatFactorSampler)
            for arguments, message in (
                ({"by": "pixels"}, "by must be"),
                ({"num_samples": 0}, "num_samples must be at least 1"),
                ({"rank": 1}, "rank must lie in"),
            )
        ),
    ],
)
def test_sampler_refuses(
    sampler: type[RareClassSampler], arguments: dict[str, Any], message: str, statistics: ClassStatistics
) -> None:
    with pytest.raises(ValueError, match=message):
        sampler(statistics, **arguments)
    with pytest.raises(ValueError, match="no class occurs"):
        sampler(ClassStatistics(2))


def test_drawn_index_survives_the_way_to_a_worker() -> None:
    copy = pickle.loads(pickle.dumps(DrawnIndex(7, 12)))
    assert (copy, copy.draw) == (7, 12)
    assert [10, 20, 30][DrawnIndex(1, 5)] == 20


def test_a_loader_gives_the_same_crops_with_and_without_workers(tmp_path: Path) -> None:
    tree = next(tree for tree in trees() if tree.card == "loveda")
    for i in range(6):
        type(tree)(
            "loveda", "train", tree.image.replace("0.", f"{i}."), tree.mask.replace("0.", f"{i}."), tree.table
        ).make(tmp_path, seed=i)
    dataset = SegmentationDataset(
        "loveda", tmp_path, transform=ClassAwareCrop((8, 8), rare_classes=[6], rare_probability=0.7)
    )
    statistics = ClassStatistics.from_dataset(dataset)
    sampler = RareClassSampler(statistics, num_samples=8)
    alone = list(DataLoader(dataset, batch_size=2, sampler=sampler))
    workers = list(DataLoader(dataset, batch_size=2, sampler=sampler, num_workers=1, multiprocessing_context="spawn"))
    assert len(alone) == 4
    for a, b in zip(alone, workers, strict=True):
        assert torch.equal(a["image"], b["image"])
        assert torch.equal(a["mask"], b["mask"])
        assert a["draw"].tolist() == b["draw"].tolist()
