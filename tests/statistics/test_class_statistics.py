from __future__ import annotations

import itertools
import json
import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from aucseg.statistics.class_statistics import ClassStatistics

K = 5
mask_lists = st.lists(
    arrays(np.uint8, st.tuples(st.integers(1, 6), st.integers(1, 6)), elements=st.sampled_from([0, 1, 2, 3, 4, 255])),
    min_size=1,
    max_size=6,
)
Masks = list[np.ndarray[Any, Any]]


def count(masks: Masks) -> ClassStatistics:
    statistics = ClassStatistics(K)
    for mask in masks:
        statistics.update(mask)
    return statistics


@settings(max_examples=50, deadline=None)
@given(mask_lists)
def test_sums_are_those_of_a_plain_loop(masks: Masks) -> None:
    statistics = count(masks)
    for c in range(K):
        areas = [int((mask == c).sum()) for mask in masks]
        assert statistics.pixel_counts[c] == sum(areas)
        assert statistics.image_counts[c] == sum(area > 0 for area in areas)
        assert statistics.max_pixels[c] == max(areas)
        assert statistics.labelled_counts[c] == sum((mask != 255).sum() for mask in masks if (mask == c).any())
        np.testing.assert_array_equal(statistics.image_classes[:, c], [area > 0 for area in areas])
        assert statistics.presence[c] == pytest.approx(sum(area > 0 for area in areas) / len(masks))
        assert statistics.mean_pixels[c] == pytest.approx(sum(areas) / len(masks))
    assert statistics.num_ignored == sum((mask == 255).sum() for mask in masks)
    assert statistics.num_labelled + statistics.num_ignored == sum(mask.size for mask in masks)
    if statistics.num_labelled:
        assert statistics.frequency.sum() == pytest.approx(1)


@settings(max_examples=50, deadline=None)
@given(mask_lists, mask_lists)
def test_parts_add_up_to_the_whole(first: Masks, second: Masks) -> None:
    assert count(first) + count(second) == count(first + second)
    assert sum([count(first), count(second)]) == count(first + second)


@settings(max_examples=50, deadline=None)
@given(mask_lists, st.randoms(use_true_random=False))
def test_the_order_of_the_images_changes_nothing_but_the_order(masks: Masks, rng: Any) -> None:
    shuffled = list(masks)
    rng.shuffle(shuffled)
    one, other = count(masks), count(shuffled)
    np.testing.assert_array_equal(one.pixel_counts, other.pixel_counts)
    np.testing.assert_array_equal(one.cell_counts, other.cell_counts)
    assert one.tau == other.tau or math.isnan(one.tau)


@settings(max_examples=50, deadline=None)
@given(mask_lists)
def test_saved_and_loaded(tmp_path_factory: pytest.TempPathFactory, masks: Masks) -> None:
    path = tmp_path_factory.mktemp("statistics") / "s.json"
    statistics = count(masks)
    statistics.save(path)
    loaded = ClassStatistics.load(path)
    assert loaded == statistics
    assert loaded + loaded == statistics + statistics


def test_tensors_batches_and_wide_types_count_the_same() -> None:
    masks = np.random.default_rng(0).choice([0, 1, 4, 255], (3, 7, 9)).astype(np.uint8)
    expected = count(list(masks))
    for batch in (masks, torch.from_numpy(masks), torch.from_numpy(masks).long(), masks.astype(np.int32)):
        statistics = ClassStatistics(K)
        statistics.update(batch)
        assert statistics == expected
    by_one = ClassStatistics(K)
    for mask in masks:
        by_one.update(torch.from_numpy(mask).T)
    assert by_one.pixel_counts.tolist() == expected.pixel_counts.tolist()


def test_bad_masks() -> None:
    statistics = ClassStatistics(3)
    with pytest.raises(ValueError, match=r"label 7 \(2 pixels\) is outside 0\.\.2 and is not the ignore label 255"):
        statistics.update(np.array([[0, 7, 7]]))
    with pytest.raises(ValueError, match="label -1"):
        statistics.update(np.array([[-1, 0]]))
    with pytest.raises(TypeError, match="got float32; cast it"):
        statistics.update(torch.zeros(2, 2))
    with pytest.raises(ValueError, match=r"a mask has shape \(H, W\), a batch \(B, H, W\), got \(4,\)"):
        statistics.update(np.zeros(4, np.uint8))
    assert statistics.num_images == 0
    with pytest.raises(ValueError, match="num_classes must be at least 1"):
        ClassStatistics(0)
    with pytest.raises(ValueError, match="ignore_index 2 is one of the 3 classes"):
        ClassStatistics(3, ignore_index=2)
    with pytest.raises(ValueError, match="class_names has 1 names for 3 classes"):
        ClassStatistics(3, class_names=["a"])
    with pytest.raises(ValueError, match="needs a data set with a card"):
        ClassStatistics.from_dataset([{"mask": np.zeros((2, 2))}])
    with pytest.raises(ValueError, match="do not add up"):
        ClassStatistics(3) + ClassStatistics(4)


def test_nothing_counted() -> None:
    statistics = ClassStatistics(2)
    statistics.update(np.full((2, 2), 255, np.uint8))
    assert statistics.frequency.tolist() == [0, 0]
    assert math.isnan(statistics.tau)
    assert math.isnan(statistics.imbalance_ratio)
    with pytest.raises(ValueError, match="no class occurs"):
        statistics.min_batch_size()
    with pytest.raises(ValueError, match="no labelled image"):
        statistics.generalization_bound()
    with pytest.raises(ValueError, match="no image"):
        ClassStatistics(2).batch_coverage(3)


def test_groups_follow_the_rule_at_its_borders() -> None:
    statistics = ClassStatistics(5)
    # Of 1000 pixels 20 are 2 %, exactly head; 5 are 0.5 %, just not tail; 4 are tail; class 4 never occurs.
    statistics.update(np.repeat([0, 1, 2, 3], [971, 20, 5, 4])[None])
    assert statistics.groups() == {"head": [0, 1], "middle": [2], "tail": [3, 4]}
    assert statistics.groups(head=0.5, tail=0.01) == {"head": [0], "middle": [1], "tail": [2, 3, 4]}
    with pytest.raises(ValueError, match="0 <= tail <= head <= 1"):
        statistics.groups(head=0.1, tail=0.2)


def exact_coverage(rows: list[set[int]], batch_size: int) -> Fraction:
    """Probability that a batch drawn with replacement holds every class that occurs, by inclusion and exclusion."""
    classes = set().union(*rows)
    total = Fraction(0)
    for size in range(len(classes) + 1):
        for missing in itertools.combinations(classes, size):
            without = Fraction(sum(not row & set(missing) for row in rows), len(rows))
            total += (-1) ** size * without**batch_size
    return total


def test_the_batch_size_is_enough_and_the_simulation_agrees_with_the_exact_probability() -> None:
    rng = np.random.default_rng(3)
    statistics = ClassStatistics(4)
    rows = []
    for _ in range(40):
        present = [0, *(c for c in (1, 2, 3) if rng.random() < 0.15 * c)]
        rows.append(set(present))
        statistics.update(np.array([present]))
    for delta in (0.2, 0.01):
        size = statistics.min_batch_size(delta)
        p = statistics.presence.min()
        assert size == math.ceil(math.log(delta / 4) / math.log(1 - p))
        assert exact_coverage(rows, size) >= 1 - delta
    small = 5
    simulated = statistics.batch_coverage(small, trials=4000)
    # Four standard deviations of the simulation.
    assert simulated == pytest.approx(float(exact_coverage(rows, small)), abs=4 * 0.5 / math.sqrt(4000))
    assert statistics.batch_coverage(small, trials=50, seed=1) == statistics.batch_coverage(small, trials=50, seed=1)
    with pytest.raises(ValueError, match="delta is a probability"):
        statistics.min_batch_size(1.0)


def test_classes_in_every_image_need_one_image_and_absent_classes_none() -> None:
    statistics = ClassStatistics(3)
    statistics.update(np.array([[0, 1]]))
    assert statistics.min_batch_size() == 1
    assert statistics.batch_coverage(1, trials=3) == 1


def test_tau_and_bound_are_the_formulas_of_the_paper() -> None:
    statistics = count([np.array([[0, 0, 0, 1]]), np.array([[0, 1, 1, 255]]), np.array([[0, 0, 2, 255]])])
    tau = max(3 / (6 / 3), 2 / (3 / 3), 1 / (1 / 3)) ** 2
    assert statistics.tau == pytest.approx(tau)
    n, k, classes, delta, mu, (a, b, c) = 3, 4, K, 0.1, 2.0, (1.5, 2.5, 3.5)
    terms = statistics.generalization_bound(delta=delta, mu=mu, constants=(a, b, c))
    inner, inter = 48 * mu * tau * math.log(n) / n, 2 * math.sqrt(2) * tau
    expected = 8 / n + (inner + inter) / math.sqrt(n) * math.sqrt(a * math.log(2 * b * mu * tau * n * k + c))
    last = math.sqrt(math.log(4 * classes * (classes - 1) / delta))
    expected += 3 * (math.sqrt(1 / (2 * n)) + classes * math.sqrt(1 - 1 / n)) * last
    assert terms["total"] == pytest.approx(expected)
    assert terms["inner"] / terms["inter"] == pytest.approx(inner / inter)


def test_the_last_term_of_the_bound_is_as_large_as_the_paper_implies() -> None:
    statistics = ClassStatistics(19)
    for _ in range(3000):
        statistics.num_images += 1
    statistics.pixel_counts[:] = statistics.max_pixels[:] = 10
    statistics.max_image_pixels = 100
    # Far above 1, which the loss cannot exceed.
    assert statistics.generalization_bound(delta=0.01)["confidence"] == pytest.approx(196.2, abs=0.5)
    with pytest.raises(ValueError, match="must be positive"):
        statistics.generalization_bound(mu=0)


def test_fixedness_tells_fixed_from_moving_objects() -> None:
    rng = np.random.default_rng(0)
    statistics = ClassStatistics(4)
    for _ in range(60):
        mask = np.zeros((64, 64), np.uint8)
        mask[8:16, 8:16] = 1
        y, x = rng.integers(0, 7, 2) * 8
        mask[y + 24 if y < 32 else y, x] = 2
        statistics.update(mask)
    fixed, moving, absent = statistics.fixedness[[1, 2, 3]]
    assert fixed == pytest.approx(1)
    assert moving < 0.2
    assert np.isnan(absent)


@pytest.mark.parametrize("spoil", ["format", "image_classes", "pixel_counts", "num_images", "text"])
def test_spoilt_files_are_refused(spoil: str, tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    count([np.array([[0, 1]])]).save(path)
    state = json.loads(path.read_text())
    state[spoil] = {"format": "x", "image_classes": "!", "pixel_counts": [1], "num_images": 9, "text": 0}[spoil]
    if spoil == "text":
        path.write_text("{")
    else:
        path.write_text(json.dumps(state))
    with pytest.raises(ValueError, match=r"s\.json: not class statistics that this version wrote"):
        ClassStatistics.load(path)
