"""Every loss against a naive implementation of its published formula: values, and gradients by finite differences."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from aucseg.losses.aucseg import AUCSegLoss
from aucseg.losses.baselines import (
    BLVLoss,
    ClassBalancedFocalLoss,
    FocalLoss,
    LDAMLoss,
    LogitAdjustmentLoss,
    LongTailLoss,
    post_hoc_logit_adjustment,
)
from aucseg.losses.build import LOSSES, build_loss
from tests.losses.baselines.oracles import COUNTS, NUM_CLASSES, ORACLES, Array, cross_entropies, sample, seesaw

NAMES = [name for name in LOSSES if name != "aucseg"]


def valid_pixels(logits: Tensor, target: Tensor) -> tuple[Array, NDArray[np.int64]]:
    valid = target != 255
    return logits.detach().movedim(1, -1)[valid].double().numpy(), target[valid].numpy()


def numeric_gradient(function: Callable[[Array], float], z: Array, step: float = 1e-5) -> Array:
    gradient = np.zeros_like(z)
    for index in np.ndindex(z.shape):
        change = np.zeros_like(z)
        change[index] = step
        gradient[index] = (function(z + change) - function(z - change)) / (2 * step)
    return gradient


def check(loss: nn.Module, oracle: Callable[[Array, NDArray[np.int64]], float]) -> None:
    logits, target = sample()
    logits.requires_grad_()
    value = loss(logits, target)
    z, y = valid_pixels(logits, target)
    assert value.item() == pytest.approx(oracle(z, y), rel=1e-6)
    (3 * value).backward()
    assert logits.grad is not None
    gradient, _ = valid_pixels(logits.grad, target)
    np.testing.assert_allclose(gradient, 3 * numeric_gradient(lambda moved: oracle(moved, y), z), rtol=1e-5, atol=1e-8)
    assert (logits.grad.movedim(1, -1)[target == 255] == 0).all()


@pytest.mark.parametrize("case", ORACLES)
def test_value_and_gradient_equal_the_formula(case: str) -> None:
    name, options, oracle = ORACLES[case]
    check(build_loss(name, torch.tensor(COUNTS), **options), oracle)


def test_seesaw_equals_the_formula() -> None:
    constant, _ = valid_pixels(*sample())
    check(build_loss("seesaw", COUNTS.tolist()), lambda z, y: seesaw(z, y, constant))


def test_blv_equals_the_formula() -> None:
    logits, target = sample()
    noise = torch.empty(2, NUM_CLASSES, 6, dtype=torch.float64).normal_(
        0, 0.5, generator=torch.Generator().manual_seed(8)
    )
    drawn, _ = valid_pixels(noise.view_as(logits), target)
    rarity = np.log(COUNTS.sum() / COUNTS)
    shift = np.abs(np.clip(drawn, -1, 1)) * rarity / rarity.max()
    loss = BLVLoss(COUNTS.tolist(), sigma=0.5, generator=torch.Generator().manual_seed(8))
    check(loss, lambda z, y: float(cross_entropies(z + shift, y).mean()))
    assert loss.eval()(logits, target).item() == pytest.approx(cross_entropies(*valid_pixels(logits, target)).mean())


def test_every_loss_has_an_oracle() -> None:
    assert {name for name, _, _ in ORACLES.values()} | {"seesaw", "blv"} == set(NAMES)


@pytest.fixture(params=NAMES)
def loss(request: pytest.FixtureRequest) -> nn.Module:
    loss = build_loss(request.param, torch.tensor(COUNTS))
    return loss.eval()  # no noise


def test_nothing_valid_is_a_connected_zero(loss: nn.Module) -> None:
    logits = torch.randn(2, NUM_CLASSES, 3, 3, requires_grad=True)
    value = loss(logits, torch.full((2, 3, 3), 255))
    value.backward()
    assert value.item() == 0
    assert logits.grad is not None
    assert (logits.grad == 0).all()


def test_one_pixel_and_one_class_are_finite(loss: nn.Module) -> None:
    for shape in ((1, 1, 1), (2, 3, 3)):
        logits = torch.randn(shape[0], NUM_CLASSES, *shape[1:], requires_grad=True)
        value = loss(logits, torch.full(shape, 2))
        value.backward()
        assert value.isfinite()
        assert logits.grad is not None
        assert logits.grad.isfinite().all()


def test_extreme_logits_are_finite(loss: nn.Module) -> None:
    target = torch.tensor([[0, 1, 2, 3]])
    for scale in (1e-3, 1e4):
        for classes in (target, (target + 1) % NUM_CLASSES):
            logits = (scale * F.one_hot(classes, NUM_CLASSES).float().mT).requires_grad_()
            value = loss(logits, target)
            value.backward()
            assert value.isfinite()
            assert logits.grad is not None
            assert logits.grad.isfinite().all()


def test_half_precision_and_autocast_compute_in_float32(loss: nn.Module) -> None:
    logits, target = sample(torch.bfloat16)
    expected = loss(logits.float(), target)
    assert expected.dtype == torch.float32
    torch.testing.assert_close(loss(logits, target), expected, rtol=0, atol=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(loss(logits, target), expected, rtol=0, atol=0)


def test_small_logits_are_upsampled(loss: nn.Module) -> None:
    logits, _ = sample(torch.float32)
    target = torch.randint(NUM_CLASSES, (2, 7, 5), generator=torch.Generator().manual_seed(0))
    upsampled = F.interpolate(logits, size=(7, 5), mode="bilinear", align_corners=False)
    torch.testing.assert_close(loss(logits, target), loss(upsampled, target))
    volumes = torch.stack([logits, logits.flip(0)], dim=2)
    target = torch.randint(NUM_CLASSES, (2, 3, 7, 5), generator=torch.Generator().manual_seed(0))
    upsampled = F.interpolate(volumes, size=(3, 7, 5), mode="trilinear", align_corners=False)
    torch.testing.assert_close(loss(volumes, target), loss(upsampled.flatten(2, 3), target.flatten(1, 2)))


def test_layouts_give_the_same_value(loss: nn.Module) -> None:
    """Flat pixels, volumes, channels-last and other integer types."""
    logits, target = sample(torch.float32)
    expected = loss(logits, target)
    torch.testing.assert_close(loss(logits.to(memory_format=torch.channels_last), target), expected)
    torch.testing.assert_close(loss(logits.unsqueeze(3), target.unsqueeze(2)), expected)
    torch.testing.assert_close(loss(logits.movedim(1, -1).reshape(-1, NUM_CLASSES), target.flatten()), expected)
    torch.testing.assert_close(loss(logits, target.to(torch.uint8)), expected)


def test_relabelling_classes_changes_nothing(loss: nn.Module, request: pytest.FixtureRequest) -> None:
    logits, target = sample()
    order = [2, 0, 3, 1]
    relabelled = build_loss(request.node.callspec.params["loss"], torch.tensor(COUNTS[order])).eval()
    new_id = torch.tensor(order).argsort()
    new_target = torch.where(target == 255, 255, new_id[target.clamp(max=NUM_CLASSES - 1)])
    torch.testing.assert_close(relabelled(logits[:, order], new_target), loss(logits, target))


def test_empty_batch_is_zero(loss: nn.Module) -> None:
    assert loss(torch.zeros(0, NUM_CLASSES, 2, 2), torch.zeros(0, 2, 2, dtype=torch.long)) == 0
    assert loss(torch.zeros(0, NUM_CLASSES), torch.zeros(0, dtype=torch.long)) == 0


@pytest.mark.parametrize("gamma", [0.0, 0.5])
def test_focal_below_one_has_a_finite_gradient_at_certainty(gamma: float) -> None:
    logits = torch.tensor([[200.0, 0.0]], requires_grad=True)
    FocalLoss(gamma=gamma)(logits, torch.tensor([0])).backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_ohem_keeps_at_least_its_share_of_easy_pixels() -> None:
    logits, target = 5 * torch.ones(1, 2, 8), torch.zeros(1, 8, dtype=torch.long)
    logits[:, 0] += torch.arange(8.0)
    expected = F.cross_entropy(logits, target, reduction="none").sort(descending=True).values[0, :2].mean()
    torch.testing.assert_close(build_loss("ohem", threshold=0.0, min_kept=0.25)(logits, target), expected)


def test_ldam_schedule() -> None:
    logits, target = sample()
    loss = LDAMLoss(COUNTS.tolist(), drw_start=0.8)
    plain = loss(logits, target)
    loss.set_progress(0.79)
    assert loss(logits, target) == plain
    loss.set_progress(0.8)
    assert loss(logits, target) != plain
    with pytest.raises(ValueError, match="progress"):
        loss.set_progress(1.2)


def test_post_hoc_adjustment_equals_the_formula() -> None:
    logits, _ = sample()
    expected = logits.movedim(1, -1).numpy() - 0.5 * np.log(COUNTS / COUNTS.sum())
    adjusted_logits = post_hoc_logit_adjustment(logits, COUNTS.tolist(), tau=0.5)
    np.testing.assert_allclose(adjusted_logits.movedim(1, -1), expected)
    with pytest.raises(ValueError, match="channels"):
        post_hoc_logit_adjustment(logits[:, :2], COUNTS.tolist())


@pytest.mark.parametrize("name", ["la", "vs", "balanced-softmax", "wce-inverse", "cb-focal", "ldam", "seesaw"])
def test_rare_class_gains_in_training(name: str) -> None:
    """Two overlapping Gaussians, 50 to 1, of which CE finds next to nothing of the rare one."""
    generator = torch.Generator().manual_seed(0)
    target = torch.tensor([0] * 1000 + [1] * 20)
    inputs = torch.randn(1020, 2, generator=generator) + 1.2 * target.unsqueeze(1)

    def recall_of_rare_class(name: str) -> float:
        torch.manual_seed(0)
        loss, model = build_loss(name, [1000.0, 20.0]), nn.Linear(2, 2)
        optimizer = torch.optim.LBFGS(model.parameters(), max_iter=40)
        if isinstance(loss, LongTailLoss):
            loss.set_progress(1.0)

        def closure() -> Tensor:
            torch.manual_seed(1)  # the same noise in every step
            optimizer.zero_grad()
            value: Tensor = loss(model(inputs), target)
            value.backward()
            return value

        optimizer.step(closure)
        return float((model(inputs).argmax(1)[target == 1] == 1).float().mean())

    recall, plain = recall_of_rare_class(name), recall_of_rare_class("ce")
    assert plain < 0.3
    assert recall > plain + 0.1


def test_overlap_losses_equal_those_of_another_library() -> None:
    losses = pytest.importorskip("segmentation_models_pytorch.losses")
    logits = torch.randn(2, 5, 12, 9, generator=torch.Generator().manual_seed(0)) * 3
    target = torch.randint(5, (2, 12, 9), generator=torch.Generator().manual_seed(1))
    target[:, :2] = 255
    for name, other in (
        ("dice", losses.DiceLoss("multiclass", ignore_index=255)),
        ("jml", losses.JaccardLoss("multiclass")),
        ("lovasz", losses.LovaszLoss("multiclass", ignore_index=255)),
    ):
        # Its Jaccard loss knows no ignored pixels.
        ours, theirs = ((z[:, :, 2:], y[:, 2:]) if name == "jml" else (z, y) for z, y in [(logits, target)] * 2)
        torch.testing.assert_close(build_loss(name)(*ours), other(*theirs))


@pytest.mark.parametrize("name", ["dice", "jml", "lovasz"])
def test_overlap_of_a_rare_class_among_many_pixels(name: str) -> None:
    """20 pixels of one class among 2 million of the other, against the closed form."""
    target = torch.zeros(1, 2_000_000, dtype=torch.long)
    target[0, ::100_000] = 1
    logits = torch.stack([torch.zeros_like(target), torch.where(target == 1, -2, -9)], dim=1).float()
    own, false = 1 / (1 + np.exp(2.0)), 1 / (1 + np.exp(9.0))
    positives, negatives = 20, 2_000_000 - 20
    rare, others = (positives * own, negatives * false), (negatives * (1 - false), positives * (1 - own))
    counts = (positives, negatives)
    if name == "lovasz":
        # One error on each side of a class: the larger first.
        expected = np.mean([
            (1 - own) * 1 + false * (1 - 1),  # all positives are missed before anything else is added
            (1 - own) * positives / (negatives + positives) + false * (1 - positives / (negatives + positives)),
        ])  # fmt: skip
    else:
        share = {"dice": 2.0, "jml": 1.0}[name]
        expected = np.mean([
            1 - share * hit / (hit + miss + count - (hit if name == "jml" else 0))
            for (hit, miss), count in zip((rare, others), counts, strict=True)
        ])  # fmt: skip
    assert build_loss(name)(logits, target).item() == pytest.approx(expected, rel=2e-6)


def test_overlap_losses_ask_an_accelerator_for_no_value() -> None:
    for name in ("ce-dice", "ce-jml", "ce-lovasz"):
        loss = build_loss(name, COUNTS.tolist())
        with FakeTensorMode(allow_non_fake_inputs=True):
            loss.to("cuda")
            logits = torch.empty(2, NUM_CLASSES, 4, 4, device="cuda")
            assert loss(logits, torch.empty(2, 8, 8, dtype=torch.int64, device="cuda")).shape == ()


def test_class_balanced_focal_without_focus_is_weighted_cross_entropy_up_to_scale() -> None:
    logits, target = sample()
    loss = ClassBalancedFocalLoss(COUNTS.tolist(), gamma=0)
    weights = loss.class_weight.double()
    expected = F.cross_entropy(logits, target, weights, ignore_index=255, reduction="sum") / 11
    torch.testing.assert_close(loss(logits, target), expected)


def test_options_out_of_range() -> None:
    cases: list[tuple[str, dict[str, Any], str]] = [
        ("focal", {"gamma": -1}, "gamma"),
        ("focal", {"activation": "tanh"}, "activation"),
        ("ohem", {"threshold": 2}, "threshold"),
        ("ohem", {"min_kept": 0}, "min_kept"),
        ("ldam", {"scale": 0}, "scale"),
        ("ldam", {"drw_start": 2}, "drw_start"),
        ("ldam", {"max_margin": -1}, "max_margin"),
        ("la", {"tau": -1}, "tau"),
        ("vs", {"gamma": -1}, "gamma"),
        ("blv", {"sigma": 0}, "sigma"),
        ("seesaw", {"eps": 0}, "eps"),
        ("seesaw", {"p": -1}, "p must"),
        ("dice", {"smooth": -1}, "smooth"),
        ("dice", {"ce_weight": -1}, "ce_weight"),
        ("jml", {"smooth": float("nan")}, "smooth"),
        ("ce-lovasz", {"ce_weight": -1}, "ce_weight"),
    ]
    for name, options, message in cases:
        with pytest.raises(ValueError, match=message):
            build_loss(name, COUNTS.tolist(), **options)


def test_registry_errors() -> None:
    with pytest.raises(ValueError, match=r"did you mean seesaw\?"):
        build_loss("see-saw")
    with pytest.raises(ValueError, match="known: aucseg, "):
        build_loss("xyzzy")
    with pytest.raises(ValueError, match="LogitAdjustmentLoss needs class_counts"):
        build_loss("la")
    with pytest.raises(TypeError, match=r"loss 'focal'.*'tau'"):
        build_loss("focal", tau=1)
    for name, option, nearest in (
        ("focal", "gama", "gamma"),
        ("vs", "taw", "tau"),
        ("wce-inverse", "powr", "power"),  # an option of the rule
        ("ce", "ignore_idx", "ignore_index"),
        ("aucseg", "auc_wieght", "auc_weight"),
        ("aucseg", "surogate", "surrogate"),  # an option of the AUC loss in it
    ):
        message = rf"loss '{name}'.* has no option '{option}'; did you mean (.*, )?{nearest}\b"
        with pytest.raises(TypeError, match=message):
            build_loss(name, COUNTS.tolist(), **{option: 1})


def test_buffers_follow_the_module_and_stay_out_of_checkpoints() -> None:
    loss = LogitAdjustmentLoss(COUNTS.tolist())
    assert loss.state_dict() == {}
    assert loss.to("meta").log_prior.device.type == "meta"


@pytest.mark.parametrize("name", ["ce", "ohem", "seesaw", "ce-dice", "ce-jml", "ce-lovasz"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.int8, torch.int32])
def test_labels_of_any_integer_dtype(name: str, dtype: torch.dtype) -> None:
    logits, target = sample()
    target = target.where(target != 255, 3)
    loss = build_loss(name, COUNTS.tolist(), ignore_index=-253)  # 3 in eight bits
    assert loss(logits, target.to(dtype)) == loss(logits, target)


def test_bool_labels_are_two_classes() -> None:
    logits, target = sample()
    for name in ("ce", "la", "dice"):
        loss = build_loss(name, [90.0, 10.0])
        assert loss(logits[:, :2], target == 1) == loss(logits[:, :2], (target == 1).long())


def test_bad_input() -> None:
    loss = build_loss("la", COUNTS.tolist())
    logits, target = sample()
    bad_target = target.clone()
    bad_target[1, 2, 0] = 4
    cases: list[tuple[Tensor, Tensor, type[Exception], str]] = [
        (logits, bad_target, ValueError, r"target\[1, 2, 0\] is 4: labels must lie in 0\.\.3"),
        (logits, target.float(), TypeError, "integer"),
        (logits.long(), target, TypeError, "floating point"),
        (logits[:1], target, ValueError, "does not fit logits"),
        (logits, target[:, 0], ValueError, "does not fit logits"),
        (logits[:, :3], target.clamp(max=2), ValueError, "3 channels, but class_counts has 4"),
        (logits, target[:, :1], ValueError, "larger than the target"),
    ]
    for bad_logits, labels, error, message in cases:
        with pytest.raises(error, match=message):
            loss(bad_logits, labels)
    with pytest.raises(ValueError, match="at least 2 channels"):
        build_loss("ce")(logits[:, :1], target)
    with pytest.raises(TypeError, match="ignore_index must be an integer, got '255'"):
        build_loss("ce", ignore_index="255")


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0, "1"])
@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("la", "tau"),
        ("vs", "gamma"),
        ("ldam", "scale"),
        ("ldam", "max_margin"),
        ("blv", "sigma"),
        ("seesaw", "p"),
        ("seesaw", "q"),
        ("focal", "gamma"),
        ("disalign", "rho"),
        ("ce-dice", "ce_weight"),
        ("dice", "smooth"),
    ],
)
def test_options_are_finite_numbers(name: str, option: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"{option} must be a finite number"):
        build_loss(name, COUNTS.tolist(), **{option: value})


def test_aucseg_is_in_the_registry() -> None:
    loss = build_loss("aucseg", COUNTS.tolist(), auc_weight=2.0)
    assert isinstance(loss, AUCSegLoss)
    logits, target = sample()
    assert loss(logits, target).isfinite()


def test_aucseg_weighs_classes_by_a_rule() -> None:
    by_rule = build_loss("aucseg", COUNTS.tolist(), class_weight={"rule": "inverse", "power": 0.15})
    weights = [(sum(COUNTS.tolist()) / len(COUNTS) / count) ** 0.15 for count in COUNTS.tolist()]
    logits, target = sample()
    torch.testing.assert_close(by_rule(logits, target), AUCSegLoss(class_weight=weights)(logits, target))
    assert by_rule(logits, target) != AUCSegLoss()(logits, target)
    for counts, class_weight, message in (
        (None, {"rule": "inverse"}, "made of class_counts"),
        (COUNTS.tolist(), {"power": 0.15}, "names no rule"),
        (COUNTS.tolist(), {"rule": "sqrt"}, "rule must be one of inverse"),
    ):
        with pytest.raises(ValueError, match=message):
            build_loss("aucseg", counts, class_weight=class_weight)
    with pytest.raises(TypeError, match=r"loss 'aucseg': class_weight has no option 'exponent'; known: .*power"):
        build_loss("aucseg", COUNTS.tolist(), class_weight={"rule": "inverse", "exponent": 0.15})
