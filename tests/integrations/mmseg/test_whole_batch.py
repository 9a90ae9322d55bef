"""Parts of a batch, in one process or two, train a segmentor as the whole batch does. Runs under make test-mmseg."""

import re
from functools import partial
from pathlib import Path
from typing import Any

import mmengine.optim.optimizer.amp_optimizer_wrapper as amp
import pytest
import torch
from mmengine.hooks import Hook
from mmseg.utils import register_all_modules
from torch import nn

from aucseg.integrations.mmseg import MMSegAUCSegLoss
from tests.integrations.mmseg.whole_batch import LOSSES, PARTS, expected_update, make_runner, make_segmentor, update_by
from tests.integrations.whole_batch import NUM_CLASSES, differences, results_in_two_processes

pytestmark = pytest.mark.slow
register_all_modules(init_default_scope=True)

# In float64. mmsegmentation's cross-entropy adds 1e-7 to the number of pixels, of each part or of the whole.
TOLERANCE = {"AUC losses in both heads": 1e-12, "with cross-entropy of mmsegmentation": 2e-9}
AUC_IN_BOTH = "AUC losses in both heads"
AUC = LOSSES[AUC_IN_BOTH]


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("parts", [1, 3, 20])  # 3 do not divide the eight images, 20 are more
def test_parts_in_one_process(name: str, parts: int, tmp_path: Path) -> None:
    assert differences(update_by(name, parts, tmp_path), expected_update(name)) < TOLERANCE[name]


def test_parts_in_two_processes(tmp_path: Path) -> None:
    for results in results_in_two_processes("tests.integrations.mmseg.whole_batch", tmp_path):
        assert set(results) == {(name, parts) for name in LOSSES for parts in PARTS}
        for (name, parts), found in results.items():
            value, weights = expected_update(name)
            # The losses of the AUC are of the whole; the mean of another is logged of its own process.
            if name != AUC_IN_BOTH:
                found = value, found[1]
            assert differences(found, (value, weights)) < TOLERANCE[name], (name, parts)


def test_accumulative_counts_of_mmengine_is_another_gradient(tmp_path: Path) -> None:
    """Or else the tests above could not fail."""
    segmentor = make_segmentor(AUC)
    runner = make_runner(segmentor, tmp_path, 1, train_cfg={"type": "IterBasedTrainLoop", "max_iters": 4})
    runner.optim_wrapper = {**runner.optim_wrapper, "accumulative_counts": 4}
    samples: Any = runner._train_dataloader
    runner._train_dataloader = torch.utils.data.DataLoader(samples.dataset, 2, collate_fn=samples.collate_fn)
    runner.train()
    expected = expected_update(AUC_IN_BOTH)
    assert differences((expected[0], segmentor.state_dict()), expected) > 0.01


class Seen(Hook):  # type: ignore[misc]
    """Counts what hooks are told."""

    def __init__(self) -> None:
        self.before: list[int] = []
        self.after: list[int] = []
        self.losses: list[dict[str, float]] = []

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        self.before.append(batch_idx)

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        assert len(data_batch["inputs"]) == 8
        self.after.append(batch_idx)
        self.losses.append({name: value.item() for name, value in outputs.items()})


def steps(folder: Path, parts: int, losses: Any = AUC, *, dropout: float = 0.0, **options: Any) -> tuple[Any, Seen]:
    """Three updates with a bank and clipped gradients; what a hook saw."""
    bank = {"tail_classes": [3], "num_classes": NUM_CLASSES, "sample_ratio": 1.0, "scope": "image"}
    segmentor = make_segmentor(losses, bank=bank, dropout=dropout)
    seen = Seen()
    optimizer = {"type": "SGD", "lr": 0.5, "momentum": 0.9}
    defaults: dict[str, Any] = {
        "train_cfg": {"type": "AUCSegIterBasedTrainLoop", "max_iters": 3, "micro_batches": parts},
        "optim_wrapper": {"type": "OptimWrapper", "optimizer": optimizer, "clip_grad": {"max_norm": 0.1}},
        "param_scheduler": [{"type": "PolyLR", "end": 3, "by_epoch": False}],
        "custom_hooks": [seen],
        "randomness": {"seed": 3},
        "default_hooks": {"checkpoint": {"type": "CheckpointHook", "interval": 1, "by_epoch": False}},
    }
    make_runner(segmentor, folder, parts, **{**defaults, **options}).train()
    return segmentor, seen


def weights_of(segmentor: Any) -> dict[str, Any]:
    return dict(segmentor.named_parameters())


def test_a_run_in_parts_is_that_of_whole_batches(tmp_path: Path) -> None:
    """Bank, clipping, momentum, schedule, hooks, checkpoints and logged values are those of one part."""
    whole, seen_whole = steps(tmp_path / "whole", 1)
    parts, seen_parts = steps(tmp_path / "parts", 4)
    torch.testing.assert_close(weights_of(parts), weights_of(whole), rtol=0, atol=1e-12)
    assert seen_parts.before == seen_parts.after == [0, 1, 2]
    for found, expected in zip(seen_parts.losses, seen_whole.losses, strict=True):
        assert list(found) == list(expected)
        losses = [key for key in expected if "loss" in key]
        assert losses == ["loss", "decode.loss_aucseg", "aux.loss_aucseg"]
        assert [found[key] for key in losses] == pytest.approx([expected[key] for key in losses], abs=1e-12)
    # Once a batch: the same samples were stored and the same pasted.
    banks = [segmentor.data_preprocessor.bank for segmentor in (whole, parts)]
    assert banks[0].last_pastes == banks[1].last_pastes != []
    assert banks[0].num_samples == banks[1].num_samples
    assert sorted(path.name for path in (tmp_path / "parts").glob("*.pth")) == [
        "iter_1.pth",
        "iter_2.pth",
        "iter_3.pth",
    ]


def test_dropout_is_that_of_the_first_pass(tmp_path: Path) -> None:
    """Otherwise the gradient would be that of another network than the sums."""
    segmentor = make_segmentor(AUC, dropout=0.5)
    inputs: list[torch.Tensor] = []
    segmentor.backbone.layers[2].register_forward_hook(lambda module, before, after: inputs.append(after.detach()))
    make_runner(segmentor, tmp_path, 2).train()
    assert len(inputs) == 4
    assert torch.equal(inputs[0], inputs[2])
    assert torch.equal(inputs[1], inputs[3])
    assert not torch.equal(inputs[0] == 0, inputs[1] == 0)


def test_epochs(tmp_path: Path) -> None:
    loop = {"type": "AUCSegEpochBasedTrainLoop", "max_epochs": 3, "micro_batches": 4}
    parts, seen = steps(tmp_path / "epochs", 4, train_cfg=loop, default_hooks={"checkpoint": None})
    whole, _ = steps(tmp_path / "iterations", 1)
    assert seen.after == [0, 0, 0]
    torch.testing.assert_close(weights_of(parts), weights_of(whole), rtol=0, atol=1e-12)


def test_mixed_precision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`AmpOptimWrapper` of bfloat16 with a scaled loss; mmengine has it for GPUs only, but what it does works here."""
    monkeypatch.setattr(amp, "is_cuda_available", lambda: True)
    monkeypatch.setattr(amp, "GradScaler", partial(torch.amp.GradScaler, device="cpu"))
    wrapper = {"type": "AmpOptimWrapper", "dtype": "bfloat16", "loss_scale": 1024.0}
    wrapper["optimizer"] = {"type": "SGD", "lr": 1.0}
    found = {}
    for parts in (1, 4):
        segmentor = make_segmentor(AUC).float()
        make_runner(segmentor, tmp_path, parts, optim_wrapper=dict(wrapper)).train()
        found[parts] = {name: value.detach().double() for name, value in segmentor.named_parameters()}
    weights = expected_update(AUC_IN_BOTH)[1]
    before = dict(make_segmentor(AUC).named_parameters())
    step = torch.cat([(weights[name] - value).flatten() for name, value in before.items()]).norm()
    for first, second, tolerance in ((found[4], found[1], 0.01), (found[4], weights, 0.02)):
        difference = torch.cat([(value - second[name]).flatten() for name, value in first.items()]).norm()
        assert difference < tolerance * step


def test_the_batch_is_given_up_after_an_error(tmp_path: Path) -> None:
    segmentor = make_segmentor(AUC)
    runner = make_runner(segmentor, tmp_path, 4)
    calls = []

    def fail(*_: Any) -> None:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt

    handle = segmentor.auxiliary_head.register_forward_pre_hook(fail)
    segmentor.auxiliary_head.loss_decode.register_forward_pre_hook(fail)
    with pytest.raises(KeyboardInterrupt):
        runner.train()
    handle.remove()
    losses = [module for module in segmentor.modules() if isinstance(module, MMSegAUCSegLoss)]
    assert [loss.sums_of_batch for loss in losses] == [None, None]


@pytest.mark.parametrize(
    ("losses", "message"),
    [
        (({"type": "AUCSegLoss", "max_fpr": 0.1, "surrogate": "hinge"}, AUC[1]), "decode_head.loss_decode .*sorting"),
        ((AUC[0], {"type": "DiceLoss"}), "auxiliary_head.loss_decode .*DiceLoss.* auc_weight=0"),
        (([AUC[0], {"type": "CrossEntropyLoss", "avg_non_ignore": True}], AUC[1]), "decode_head.loss_decode.1"),
        ((AUC[0], {"type": "CrossEntropyLoss", "class_weight": [1.0] * NUM_CLASSES}), "auxiliary_head.loss_decode"),
    ],
)
def test_losses_that_have_no_sums_are_refused(losses: Any, message: str, tmp_path: Path) -> None:
    runner = make_runner(make_segmentor(losses), tmp_path, 2)
    with pytest.raises(ValueError, match=f"micro_batches is 2, but {message}"):
        runner.train()
    make_runner(make_segmentor(losses), tmp_path, 1).train()  # whole batches train


def test_a_pixel_sampler_is_refused(tmp_path: Path) -> None:
    segmentor = make_segmentor((AUC[0], {"type": "CrossEntropyLoss"}))
    segmentor.auxiliary_head.sampler = nn.Identity()
    with pytest.raises(ValueError, match="auxiliary_head samples pixels"):
        make_runner(segmentor, tmp_path, 2).train()


@pytest.mark.parametrize("parts", [1, 2])
def test_accumulative_counts_is_refused(parts: int, tmp_path: Path) -> None:
    wrapper = {"type": "OptimWrapper", "optimizer": {"type": "SGD", "lr": 1.0}, "accumulative_counts": 4}
    runner = make_runner(make_segmentor(AUC), tmp_path, parts, optim_wrapper=wrapper)
    with pytest.raises(ValueError, match=re.escape(f"4 times as large and micro_batches {4 * parts}")):
        runner.train()


@pytest.mark.parametrize("count", [0, -1, 2.5])
def test_micro_batches_is_a_whole_number(count: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="micro_batches must be a whole number of at least 1"):
        make_runner(make_segmentor(AUC), tmp_path, count).train()
