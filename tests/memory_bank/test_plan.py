"""A plan made ahead: the same pastes, and no wait for the device."""

import pickle
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from tests.memory_bank.small_banks import TAIL, assert_same, colours, make_bank, random_masks
from tests.pretended_device import MPS, MPSTensor, PretendedMPS

# Operators whose result, or its size, the host has to wait for.
WAITING = {"_local_scalar_dense", "nonzero", "equal", "is_nonzero", "masked_select", "_unique2", "unique_consecutive"}
OPTIONS = [
    {"scope": scope, "placement": placement, "protect_tail": protect, "resize_ratio": ratio, **policy}
    for scope in ("image", "batch")
    for placement in ("canvas", "uniform")
    for protect, ratio, policy in (
        (True, 1.0, {"sample_ratio": 1.0}),
        (False, 0.6, {"presence_target": 0.9}),
        (True, 1.4, {"sample_ratio": 0.5, "protect_classes": [1, 2]}),
    )
]


class NoWaiting(PretendedMPS):
    """A device that refuses everything for which the host would wait."""

    def _refuse(self, func: Any, args: Any, kwargs: dict[str, Any]) -> None:
        super()._refuse(func, args, kwargs)
        name = func.overloadpacket.__name__
        by_mask = name in ("index", "index_put_") and any(t is not None and t.dtype == torch.bool for t in args[1])
        unsized = name == "repeat_interleave" and kwargs.get("output_size") is None
        if name in WAITING or by_mask or unsized:
            raise AssertionError(f"the host waits for {func}")


@pytest.fixture
def refuse_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the host waits for a copy")

    for name in ("cpu", "tolist", "numpy", "item"):
        monkeypatch.setattr(MPSTensor, name, refuse, raising=False)


@pytest.mark.parametrize("options", OPTIONS)
def test_a_plan_changes_nothing_even_after_a_resume(options: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(3)
    plain, planned = make_bank(capacity=2, **options), make_bank(capacity=2, **options)
    for step in range(6):
        masks = random_masks(generator, 3, 30, 40)
        plan = pickle.loads(pickle.dumps(planned.planner))(masks)
        planned.plan(torch.zeros_like(masks))  # one that is thrown away draws nothing
        assert_same(list(planned(colours(masks), masks, plan=plan)), list(plain(colours(masks), masks)))
        assert planned.last_pastes == plain.last_pastes
        if step == 2:
            state = planned.state_dict()
            planned = make_bank(seed=9, capacity=2, **options)
            planned.load_state_dict(state)
    assert planned.presence_reached.keys() == plain.presence_reached.keys()


@pytest.mark.parametrize("options", OPTIONS[:6])
def test_with_a_plan_nothing_waits_for_the_device(options: dict[str, Any], refuse_reading: None) -> None:
    generator = torch.Generator().manual_seed(3)
    bank, on_cpu = make_bank(**options), make_bank(**options)
    pasted = 0
    for _ in range(5):
        masks = random_masks(generator, 3, 30, 40)
        expected = on_cpu(colours(masks), masks)
        plan = bank.plan(masks)
        with NoWaiting():
            got = bank(colours(masks).to(MPS), masks.to(MPS), plan=plan)
        assert all(isinstance(tensor, MPSTensor) for tensor in got)
        assert_same([tensor.held for tensor in got if isinstance(tensor, MPSTensor)], list(expected))
        pasted += len(bank.last_pastes)
    assert pasted


def test_the_pretended_device_notices_a_wait(refuse_reading: None) -> None:
    masks = random_masks(torch.Generator().manual_seed(3), 3, 30, 40)
    with pytest.raises(AssertionError, match="the host waits"), NoWaiting():
        make_bank()(colours(masks).to(MPS), masks.to(MPS))


def test_a_loader_plans() -> None:
    masks = random_masks(torch.Generator().manual_seed(3), 4, 20, 20)
    bank = make_bank()
    samples: list[tuple[Tensor, Tensor]] = list(zip(colours(masks), masks, strict=True))
    for images, labels, plan in DataLoader(samples, batch_size=2, collate_fn=bank.planner.collate):  # type: ignore[arg-type]
        bank(images, labels, plan=plan)
    (batch,) = DataLoader([{"mask": masks[0]}], collate_fn=bank.planner.collate)  # type: ignore[arg-type]
    assert batch["plan"].shape == (1, 20, 20)
    with pytest.raises(TypeError, match="collate takes samples"):
        bank.planner.collate([masks[0]])


def test_a_plan_of_other_masks_is_refused() -> None:
    masks = torch.zeros(2, 8, 8, dtype=torch.uint8)
    masks[0, :3, :3] = TAIL[0]
    bank = make_bank()
    for plan, given, message in (
        (make_bank(min_pixels=3).plan(masks), masks, "settings of another bank"),
        (bank.plan(masks), masks[:1], "plan each batch"),
        (bank.plan(masks), masks.flip(2), "not those of the plan"),
    ):
        with pytest.raises(ValueError, match=message):
            bank(colours(given), given, plan=plan)


@pytest.mark.parametrize("placement", ["canvas", "uniform"])
@pytest.mark.parametrize("ratio", [1.0, 0.6, 1.5])
def test_volumes_keep_the_colour_of_each_label(placement: str, ratio: float) -> None:
    generator = torch.Generator().manual_seed(1)
    bank = make_bank(placement=placement, resize_ratio=ratio)
    pasted = 0
    for _ in range(5):
        masks = random_masks(generator, 6, 12, 14).view(2, 3, 12, 14).repeat_interleave(2, dim=1)
        images, labels = bank(colours(masks), masks)
        assert torch.equal(images, colours(labels))
        changed = {(int(i), int(c)) for i in range(2) for c in TAIL if ((labels != masks) & (labels == c))[i].any()}
        assert changed == {(image, class_id) for image, class_id, _ in bank.last_pastes}
        pasted += len(bank.last_pastes)
    assert pasted
    with pytest.raises(ValueError, match="samples of volumes, it is given images"):
        bank(colours(masks[:, 0]), masks[:, 0])
