"""GroupedMeanIoU against torchmetrics, scikit-learn's confusion matrix and PyTorch's own upsampling."""

import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support
from torch import Tensor
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassJaccardIndex

from aucseg.metrics import GroupedMeanIoU

NUM_CLASSES = 7
GROUPS = {"head": [0, 1], "middle": [2, 3], "tail": [4, 5, 6]}


def random_labels(seed: int, ignored: float = 0.1, num_classes: int = NUM_CLASSES) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    predicted = torch.randint(num_classes, (3, 20, 30), generator=generator)
    target = torch.where(torch.rand(3, 20, 30, generator=generator) < 0.5, predicted, predicted.flip(0))
    target[torch.rand(3, 20, 30, generator=generator) < ignored] = 255
    return predicted, target


def naive_iou(predicted: Tensor, target: Tensor, num_classes: int) -> np.ndarray:
    valid = (target != 255).flatten().numpy()
    confusion = confusion_matrix(
        target.flatten().numpy()[valid], predicted.flatten().numpy()[valid], labels=range(num_classes)
    )
    union = confusion.sum(0) + confusion.sum(1) - np.diag(confusion)
    return np.array([np.diag(confusion)[c] / union[c] if union[c] else np.nan for c in range(num_classes)])


def test_equals_jaccard_index_over_batches() -> None:
    metric, reference = (
        GroupedMeanIoU(NUM_CLASSES, GROUPS),
        MulticlassJaccardIndex(NUM_CLASSES, average="none", ignore_index=255),
    )
    for seed in range(3):
        predicted, target = random_labels(seed)
        metric.update(predicted, target)
        reference.update(predicted, target)
    result, expected = metric.details(), reference.compute()
    torch.testing.assert_close(result["per_class"], expected)
    torch.testing.assert_close(result["miou"], expected.mean())
    for name, class_ids in GROUPS.items():
        torch.testing.assert_close(result[name], expected[class_ids].mean())
    assert list(metric.compute()) == ["miou", *GROUPS, "precision", "recall", "f1"]
    torch.testing.assert_close(metric.compute(), {name: result[name] for name in metric.compute()})


def test_absent_classes_are_nan_and_left_out() -> None:
    predicted, target = random_labels(0, num_classes=4)
    metric = GroupedMeanIoU(NUM_CLASSES, GROUPS)
    metric.update(predicted, target)
    result = metric.details()
    expected = naive_iou(predicted, target, NUM_CLASSES)
    np.testing.assert_allclose(result["per_class"].numpy(), expected, rtol=1e-6)
    assert math.isnan(result["tail"])
    np.testing.assert_allclose(result["miou"].item(), np.nanmean(expected), rtol=1e-6)


def test_precision_recall_and_f1_equal_sklearn() -> None:
    """Over classes of which one is never predicted, one never true and one in neither."""
    predicted, target = random_labels(5)
    predicted[predicted == 1] = 0
    target[target == 2] = 0
    predicted[predicted == 6], target[target == 6] = 3, 3
    metric = GroupedMeanIoU(NUM_CLASSES, GROUPS)
    metric.update(predicted, target)
    result = metric.details()
    valid = (target != 255).flatten()
    occurs = [0, 1, 2, 3, 4, 5]
    *scores, _ = precision_recall_fscore_support(
        target.flatten()[valid], predicted.flatten()[valid], labels=occurs, zero_division=0
    )
    for name, expected in zip(("precision", "recall", "f1"), scores, strict=True):
        np.testing.assert_allclose(result[f"per_class_{name}"][:6].numpy(), expected, rtol=1e-6)
        assert result[f"per_class_{name}"][6].isnan()
        np.testing.assert_allclose(metric.compute()[name].item(), expected.mean(), rtol=1e-6)
        np.testing.assert_allclose(result[f"tail_{name}"].item(), expected[4:].mean(), rtol=1e-6)


def test_class_only_in_prediction_counts_as_zero() -> None:
    metric = GroupedMeanIoU(3)
    metric.update(torch.tensor([0, 2]), torch.tensor([0, 0]))
    np.testing.assert_array_equal(metric.details()["per_class"].numpy(), [0.5, np.nan, 0.0])


def test_nothing_valid_is_nan() -> None:
    metric = GroupedMeanIoU(3, {"tail": [2], "empty": []})
    metric.update(torch.zeros(4, dtype=torch.uint8), torch.full((4,), 255, dtype=torch.uint8))
    assert all(value.isnan().all() for value in metric.details().values())


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.int16, torch.int32, torch.int64])
def test_integer_types(dtype: torch.dtype) -> None:
    predicted, target = random_labels(1)
    metric = GroupedMeanIoU(NUM_CLASSES)
    metric.update(predicted.to(dtype), target.to(dtype))
    np.testing.assert_allclose(
        metric.details()["per_class"].numpy(), naive_iou(predicted, target, NUM_CLASSES), rtol=1e-6
    )


def test_ignore_index_inside_the_classes() -> None:
    target = torch.tensor([0, 0, 1, 2])
    metric = GroupedMeanIoU(3, ignore_index=0)
    metric.update(torch.tensor([1, 2, 1, 1]), target)
    np.testing.assert_array_equal(metric.details()["per_class"].numpy(), [np.nan, 0.5, 0.0])


@pytest.mark.parametrize("ignored", [0, 2])
def test_an_ignored_class_is_left_out_of_all_means(ignored: int) -> None:
    """Even where pixels of other classes are called it, which are missed there."""
    predicted, target = random_labels(4, ignored=0)
    others = [c for c in range(NUM_CLASSES) if c != ignored]
    metric = GroupedMeanIoU(NUM_CLASSES, {"with": [ignored, others[0]], "rest": others[1:]}, ignore_index=ignored)
    metric.update(predicted, target)
    result = metric.details()
    masked = torch.where(target == ignored, 255, target)
    expected = naive_iou(predicted, masked, NUM_CLASSES)
    expected[ignored] = np.nan
    np.testing.assert_allclose(result["per_class"].numpy(), expected, rtol=1e-6)
    np.testing.assert_allclose(result["miou"].item(), expected[others].mean(), rtol=1e-6)
    np.testing.assert_allclose(result["with"].item(), expected[others[0]], rtol=1e-6)
    np.testing.assert_allclose(result["rest"].item(), expected[others[1:]].mean(), rtol=1e-6)
    alone = GroupedMeanIoU(NUM_CLASSES, {"alone": [ignored]}, ignore_index=ignored)
    alone.update(predicted, target)
    assert math.isnan(alone.compute()["alone"])


@pytest.mark.parametrize(
    ("dtype", "ignore_index", "label"),
    [(torch.uint8, -100, 156), (torch.int8, 255, -1), (torch.uint8, 256, 0), (torch.uint16, -1, 65535)],
)
def test_labels_are_not_ignored_for_their_last_bits(dtype: torch.dtype, ignore_index: int, label: int) -> None:
    target = torch.tensor([0, 1, label]).to(dtype)
    metric = GroupedMeanIoU(157, ignore_index=ignore_index)
    if 0 <= label < 157:
        metric.update(target, target)
        assert metric.confusion[label, label] == (2 if label == 0 else 1)
    else:
        with pytest.raises(ValueError, match=f"target label {label} at \\(2,\\)"):
            metric.update(torch.zeros(3, dtype=torch.long), target)


def test_bool_labels_are_two_classes() -> None:
    predicted, target = torch.tensor([True, True, False]), torch.tensor([True, False, False])
    as_bool, as_int = GroupedMeanIoU(2), GroupedMeanIoU(2)
    as_bool.update(predicted, target)
    as_int.update(predicted.long(), target.long())
    assert torch.equal(as_bool.confusion, as_int.confusion)


@pytest.mark.parametrize("size", [(6, 5), (15, 11)])
def test_one_logit_is_two_classes(size: tuple[int, int]) -> None:
    logit, target = torch.randn(2, 1, 6, 5), torch.randint(2, (2, *size))
    one, two = GroupedMeanIoU(2), GroupedMeanIoU(2)
    one.update(logit, target.bool())
    two.update(torch.cat([torch.zeros_like(logit), logit], 1), target)
    assert torch.equal(one.confusion, two.confusion)
    with pytest.raises(ValueError, match="one logit a pixel goes with num_classes=2"):
        GroupedMeanIoU(3).update(logit, target)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_logits_give_their_argmax(dtype: torch.dtype) -> None:
    logits = torch.randn(2, NUM_CLASSES, 6, 5).to(dtype)
    target = torch.randint(NUM_CLASSES, (2, 6, 5))
    from_logits, from_labels = GroupedMeanIoU(NUM_CLASSES), GroupedMeanIoU(NUM_CLASSES)
    from_logits.update(logits, target)
    from_labels.update(logits.float().argmax(1), target)
    assert torch.equal(from_logits.confusion, from_labels.confusion)
    assert from_logits.confusion.sum() == target.numel()


def test_flat_logits() -> None:
    logits, target = torch.randn(50, NUM_CLASSES), torch.randint(NUM_CLASSES, (50,))
    metric = GroupedMeanIoU(NUM_CLASSES)
    metric.update(logits, target)
    np.testing.assert_allclose(
        metric.details()["per_class"].numpy(), naive_iou(logits.argmax(1), target, NUM_CLASSES), rtol=1e-6
    )


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.integers(0, 600))
def test_invariances(seed: int, cut: int) -> None:
    """Splitting into batches, permuting pixels and adding ignored pixels change nothing."""
    predicted, target = (labels.flatten() for labels in random_labels(seed))
    whole, parts = GroupedMeanIoU(NUM_CLASSES), GroupedMeanIoU(NUM_CLASSES)
    whole.update(predicted, target)
    order = torch.randperm(len(target), generator=torch.Generator().manual_seed(seed))
    for part in (order[:cut], order[cut:]):
        parts.update(predicted[part], target[part])
    parts.update(predicted[:cut], torch.full((cut,), 255))
    assert torch.equal(whole.confusion, parts.confusion)


def test_clone_pickle_reset_forward_and_collection() -> None:
    predicted, target = random_labels(2)
    metric = GroupedMeanIoU(NUM_CLASSES, GROUPS)
    batch_value = metric(predicted, target)
    for copy in (metric.clone(), pickle.loads(pickle.dumps(metric))):
        torch.testing.assert_close(copy.compute(), metric.compute())
    torch.testing.assert_close(batch_value, metric.compute())
    collection = MetricCollection({"val": GroupedMeanIoU(NUM_CLASSES, GROUPS)}, prefix="run/")
    collection.update(predicted, target)
    assert collection.compute()["run/tail"] == metric.compute()["tail"]
    metric.reset()
    assert metric.confusion.sum() == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_classes": 1}, "at least 2"),
        ({"num_classes": 3, "groups": {"tail": [3]}}, "group 'tail' holds 3, which is outside 0..2"),
        ({"num_classes": 3, "groups": {"head": [0], "tail": [0]}}, "class id 0 is listed twice"),
        ({"num_classes": 3, "groups": {"miou": [0]}}, "cannot be called 'miou'"),
        ({"num_classes": 3, "groups": {"recall": [0]}}, "cannot be called 'recall'"),
        ({"num_classes": 3, "groups": {"tail": [0], "tail_f1": [1]}}, "cannot be called 'tail_f1'"),
        ({"num_classes": 3, "class_names": ["road", "car"]}, "class_names must hold 3 names"),
        ({"num_classes": 3, "class_names": "cat"}, "class_names must hold 3 names"),
    ],
)
def test_bad_options(arguments: dict[str, object], message: str) -> None:
    make: Callable[..., GroupedMeanIoU] = GroupedMeanIoU
    with pytest.raises(ValueError, match=message):
        make(**arguments)


@pytest.mark.parametrize("tail", ["12", [1.5], [False, False, True], 2])
def test_groups_hold_class_ids(tail: Any) -> None:
    with pytest.raises(TypeError, match=r"group 'tail' .*: give class ids"):
        GroupedMeanIoU(3, {"tail": tail})


@pytest.mark.parametrize(
    ("preds", "target", "error", "message"),
    [
        (torch.tensor([0, 1]), torch.tensor([0, 3]), ValueError, r"target label 3 at \(1,\)"),
        (torch.tensor([0, 1]), torch.tensor([-1, 0]), ValueError, r"target label -1 at \(0,\)"),
        (torch.tensor([0, 255]), torch.tensor([0, 0]), ValueError, r"predicted label 255 at \(1,\)"),
        (torch.tensor([0, 1]), torch.tensor([0]), ValueError, "differ"),
        (torch.tensor([0, 1]), torch.tensor([0.0, 1.0]), TypeError, "target must hold integer"),
        (torch.tensor([1j]), torch.tensor([0]), TypeError, "preds must hold integer"),
        (
            torch.tensor([0], dtype=torch.uint64),
            torch.tensor([0]),
            TypeError,
            r"torch.uint64.*preds.long\(\)",
        ),
        (torch.randn(1, 3, 2, 2), torch.zeros(1, 2, 2), TypeError, "target must hold integer"),
        (torch.randn(1, 4, 2, 2), torch.zeros(1, 2, 2, dtype=torch.long), ValueError, "4 channels"),
        (torch.randn(1, 3, 3, 2), torch.zeros(1, 2, 2, dtype=torch.long), ValueError, "larger than the target"),
        (torch.randn(2, 3, 2, 2), torch.zeros(1, 2, 2, dtype=torch.long), ValueError, "does not fit logits"),
        (torch.full((1, 3, 1), math.nan), torch.zeros(1, 1, dtype=torch.long), ValueError, r"logit nan at \(0, 0, 0\)"),
        (
            torch.randn(1, 3, 1, 1, 1, 1),
            torch.zeros(1, 2, 1, 1, 1, dtype=torch.long),
            ValueError,
            "three spatial",
        ),
        ({"out": torch.randn(1, 3, 2, 2)}, torch.zeros(1, 2, 2), TypeError, r"preds must be .*got dict: .*\('out'\)"),
        (torch.randn(1, 3, 2, 2), [[[0, 0], [0, 0]]], TypeError, "target must be a torch.Tensor, got list"),
    ],
)
def test_bad_input(preds: Any, target: Any, error: type[Exception], message: str) -> None:
    metric = GroupedMeanIoU(3)
    with pytest.raises(error, match=message):
        metric.update(preds, target)
    assert metric.confusion.sum() == 0


def test_invalid_prediction_at_ignored_pixel_is_fine() -> None:
    metric = GroupedMeanIoU(2)
    metric.update(torch.tensor([0, 9]), torch.tensor([0, 255]))
    assert metric.compute()["miou"] == 1


def test_invalid_values_met_on_an_accelerator_raise_at_compute() -> None:
    """The accelerator's path, on the CPU: what update cannot look at is counted and compute refuses."""
    metric = GroupedMeanIoU(2)
    metric.update(torch.tensor([0, 1]), torch.tensor([0, 1]))
    metric.num_invalid += 2
    with pytest.raises(ValueError, match="met 2 values"):
        metric.compute()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_equals_cpu() -> None:
    predicted, target = random_labels(3)
    on_cpu, on_gpu = GroupedMeanIoU(NUM_CLASSES), GroupedMeanIoU(NUM_CLASSES).to("cuda")
    on_cpu.update(predicted, target)
    on_gpu.update(predicted.cuda(), target.cuda())
    assert torch.equal(on_cpu.confusion, on_gpu.confusion.cpu())
    on_gpu.update(predicted.cuda(), torch.full_like(target, 77).cuda())
    with pytest.raises(ValueError, match="values"):
        on_gpu.compute()


def test_float64_logits_are_not_rounded() -> None:
    logits = torch.ones(1, 3, 2, 2, dtype=torch.float64)
    logits[:, 1] += 1e-9
    metric = GroupedMeanIoU(3)
    metric.update(logits, torch.ones(1, 2, 2, dtype=torch.long))
    assert metric.compute()["miou"] == 1
