import pytest
import torch
from benchmarks.evidence.offsets import (
    confusion_of,
    confusions_of_values,
    fit_offsets,
    grouped_scores,
    intersection_over_union,
)
from torch import Tensor

from aucseg.metrics import GroupedMeanIoU

K = 5


def some_batches(num_classes: int = K) -> list[tuple[Tensor, Tensor]]:
    """Logits that know the labels a little, against the rarer classes; the last class never occurs."""
    generator = torch.Generator().manual_seed(0)
    frequency = torch.tensor([100.0, 30, 10, 3, 0])[:num_classes]
    batches = []
    for size in (16, 24):
        target = torch.multinomial(frequency, 2 * size**2, replacement=True, generator=generator).view(2, size, size)
        logits = torch.randn(2, num_classes, size, size, generator=generator)
        logits += 1.5 * torch.nn.functional.one_hot(target, num_classes).permute(0, 3, 1, 2)
        logits += (0.5 * frequency.clamp(min=1).log()).view(-1, 1, 1)
        target[0, 0] = 255
        batches.append((logits, target.to(torch.uint8)))
    return batches


def test_confusion_and_iou_are_those_of_the_metric() -> None:
    offsets = torch.tensor([0.0, 0.3, -1, 2, -9])
    groups = {"head": [0], "tail": [2, 3], "none": [4]}
    metric = GroupedMeanIoU(K, groups=groups)
    for logits, target in some_batches():
        metric.update((logits + offsets.view(-1, 1, 1)).argmax(1), target)
    confusion = confusion_of(some_batches(), offsets)
    assert torch.equal(confusion, metric.confusion)
    iou = intersection_over_union(confusion)
    expected = metric.details()
    torch.testing.assert_close(iou.float(), expected["per_class"], equal_nan=True)
    found = grouped_scores(confusion, groups)
    assert found == {name: pytest.approx(float(expected[name])) for name in ("miou", "head", "tail")} | {"none": None}


@pytest.mark.parametrize("class_id", range(K))
def test_all_values_of_an_offset_are_counted_in_one_pass(class_id: int) -> None:
    offsets = torch.tensor([0.0, 0.3, -1, 2, 0.5])
    values = torch.linspace(-3, 3, 7)
    found = confusions_of_values(some_batches(), offsets, class_id, values)
    for value, confusion in zip(values, found, strict=True):
        changed = offsets.clone()
        changed[class_id] = value
        assert torch.equal(confusion, confusion_of(some_batches(), changed))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_counts_what_the_cpu_counts() -> None:
    offsets, values = torch.tensor([0.0, 0.3, -1, 2, 0.5]), torch.linspace(-3, 3, 7)
    there = [(logits.cuda(), target.cuda()) for logits, target in some_batches()]
    found = confusions_of_values(there, offsets.cuda(), 2, values.cuda())
    assert torch.equal(found.cpu(), confusions_of_values(some_batches(), offsets, 2, values))
    assert fit_offsets(there, K).device.type == "cuda"


def test_low_resolution_logits_are_upsampled_before_the_argmax() -> None:
    batches = [(logits[:, :, ::4, ::4], target) for logits, target in some_batches()]
    found = confusions_of_values(batches, torch.zeros(K), 2, torch.tensor([0.0, 1.0]))
    assert torch.equal(found[0], confusion_of(batches, torch.zeros(K)))
    assert int(found[1].sum()) == sum(int((target != 255).sum()) for _, target in batches)


def test_fitted_offsets_raise_the_mean_iou_and_leave_absent_classes_alone() -> None:
    batches = some_batches()
    offsets = fit_offsets(batches, K)
    before, after = (
        float(intersection_over_union(confusion_of(batches, o))[:4].mean()) for o in (torch.zeros(K), offsets)
    )
    assert after > before + 0.01
    assert offsets[4] == 0
    assert offsets[3] > offsets[0]  # the rare ones were too low
    # No single offset of the last grid is better.
    for class_id in range(4):
        values = offsets[class_id] + torch.linspace(-0.2, 0.2, 17)
        scores = intersection_over_union(confusions_of_values(batches, offsets, class_id, values))[:, :4].mean(1)
        assert float(scores.max()) <= after + 1e-3
