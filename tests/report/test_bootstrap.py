"""The paired bootstrap against GroupedMeanIoU on images that are really drawn, and its coverage."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from aucseg.metrics import GroupedMeanIoU
from aucseg.metrics.image_iou import per_image_overlap
from aucseg.report.bootstrap import Overlap, paired_bootstrap

GROUPS = {"head": [0, 1], "tail": [2, 3]}


def images(seed: int, number: int = 12) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Truth (N, H, W), and predictions of two models; class 3 is in few images."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(3, (number, 6, 7), generator=generator)
    target[: number // 4, :2, :2] = 3
    target[:, 5, 6] = 255
    right = (0.5, 0.7)
    noise = torch.randint(4, target.shape, generator=generator)
    return target, [
        torch.where((torch.rand(target.shape, generator=generator) < p) & (target != 255), target, noise) for p in right
    ]


def overlaps(target: torch.Tensor, predicted: torch.Tensor, names: list[str]) -> Overlap:
    triples = zip(names, target, predicted, strict=True)
    return {name: per_image_overlap(labels, truth, 4, 255) for name, truth, labels in triples}


@pytest.mark.parametrize("in_sequences", [False, True])
def test_equals_the_metric_on_drawn_images(in_sequences: bool) -> None:
    target, predictions = images(0)
    names = [f"drive{i // 3}/{i % 3:03}" if in_sequences else f"{i:03}" for i in range(12)]
    units = np.arange(12) // 3 if in_sequences else np.arange(12)
    one, two = (overlaps(target, p, names) for p in predictions)
    result = paired_bootstrap(one, two, 4, GROUPS, num_samples=400)
    assert result is not None
    assert (result.num_images, result.num_sequences) == (12, 4 if in_sequences else None)

    def differences(chosen: list[int]) -> dict[str, float]:
        values = []
        for predicted in predictions:
            metric = GroupedMeanIoU(4, GROUPS)
            metric.update(predicted[chosen], target[chosen])
            values.append(metric.compute())
        return {name: float(values[1][name] - values[0][name]) for name in ("miou", *GROUPS)}

    generator = np.random.default_rng(1)
    drawn = []
    for _ in range(400):
        counts = np.bincount(generator.integers(0, units.max() + 1, units.max() + 1), minlength=units.max() + 1)
        drawn.append(differences(np.repeat(np.arange(12), counts[units]).tolist()))
    for name, whole in differences(list(range(12))).items():
        found = result.differences[name]
        assert found.value == pytest.approx(whole, abs=1e-6)
        sampled = np.array([values[name] for values in drawn])
        low, high = np.nanpercentile(sampled, [2.5, 97.5])
        # Other random numbers: equal up to the spread of percentiles of 400 samples.
        assert found.low == pytest.approx(low, abs=0.35 * np.nanstd(sampled))
        assert found.high == pytest.approx(high, abs=0.35 * np.nanstd(sampled))


def test_the_interval_holds_the_difference_of_all_images_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    union = generator.integers(50, 500, 4000)
    hits = [generator.binomial(union, np.clip(generator.normal(p, 0.2, 4000), 0, 1)) for p in (0.5, 0.55)]
    truth = (hits[1].sum() - hits[0].sum()) / union.sum()
    held = 0
    for _ in range(200):
        chosen = generator.choice(4000, 40, replace=False)
        one, two = ({str(i): {0: (int(h[i]), int(union[i]))} for i in chosen.tolist()} for h in hits)
        result = paired_bootstrap(one, two, 1, {}, num_samples=300)
        assert result is not None
        held += result.differences["miou"].low <= truth <= result.differences["miou"].high
    assert 175 <= held <= 199


def test_only_common_images_count_and_one_is_not_enough() -> None:
    target, predictions = images(1)
    names = [f"{i:03}" for i in range(12)]
    one, two = (overlaps(target, p, names) for p in predictions)
    less = {name: two[name] for name in names[:5]}
    assert paired_bootstrap(one, less, 4, GROUPS) == paired_bootstrap({n: one[n] for n in less}, less, 4, GROUPS)
    assert paired_bootstrap(one, {names[0]: two[names[0]]}, 4, GROUPS) is None
    assert paired_bootstrap(one, {}, 4, GROUPS) is None


def test_a_class_that_no_image_holds_has_no_difference() -> None:
    one = {name: {0: (1, 2)} for name in "abc"}
    result = paired_bootstrap(one, one, 2, {"tail": [1], "head": [0]}, num_samples=20)
    assert result is not None
    assert result.differences.keys() == {"miou", "head"}
    assert not result.differences["miou"].excludes_zero
