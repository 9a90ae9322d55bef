import copy
import io
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from aucseg.memory_bank import TailMemoryBank
from tests.memory_bank.small_banks import (
    NUM_CLASSES,
    TAIL,
    assert_same,
    colours,
    empty,
    make_bank,
    one_object,
    random_masks,
    stored,
)


def run(bank: TailMemoryBank, generator: torch.Generator, calls: int) -> list[Tensor]:
    result = []
    for _ in range(calls):
        masks = random_masks(generator, 2, 24, 24)
        images, masks = bank(colours(masks), masks)
        result += [images, masks]
    return result


@pytest.mark.parametrize("options", [{}, {"placement": "uniform", "resize_ratio": 0.5}, {"presence_target": 0.8}])
def test_checkpoint_in_the_middle_of_a_run_gives_the_same_pastes(options: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(5)
    bank = make_bank(capacity=2, **options)
    run(bank, generator, 4)
    file = io.BytesIO()
    torch.save({"bank": bank.state_dict(), "data": generator.get_state()}, file)
    expected = run(bank, generator, 4)
    assert any(bank.num_samples.values())

    file.seek(0)
    state = torch.load(file, weights_only=True)
    restored = make_bank(seed=99, capacity=2, **options)
    restored.load_state_dict(state["bank"])
    generator.set_state(state["data"])
    assert_same(run(restored, generator, 4), expected)
    assert restored.nbytes == bank.nbytes
    assert restored.presence == bank.presence


def test_settings_that_are_fixed_say_so() -> None:
    bank = make_bank(capacity=2)
    with pytest.raises(AttributeError, match=r"capacity is fixed when a bank is made.*load_state_dict"):
        bank.capacity = 5
    bank.presence_target, bank.sample_ratio = 0.5, None
    assert "capacity=2" in repr(bank)


def test_integers_of_numpy_leave_a_checkpoint_readable() -> None:
    bank = TailMemoryBank([1], np.int64(3), capacity=np.int64(2), min_pixels=np.int32(1))  # type: ignore[arg-type]
    bank(colours(one_object(1, slice(2), slice(2))), one_object(1, slice(2), slice(2)))
    file = io.BytesIO()
    torch.save(bank.state_dict(), file)
    file.seek(0)
    assert torch.load(file, weights_only=True)["_extra_state"]["num_classes"] == 3


@pytest.mark.parametrize("calls", range(1, 6))
def test_what_inference_mode_stored_is_pasted_outside(calls: int) -> None:
    generator = torch.Generator().manual_seed(5)
    bank, plain = make_bank(capacity=2), make_bank(capacity=2)
    state = generator.get_state()
    with torch.inference_mode():
        run(bank, generator, calls)
        restored = make_bank(seed=9, capacity=2)
        restored.load_state_dict(bank.state_dict())
    seen = generator.get_state()
    result = [run(bank, generator.set_state(seen), 3), run(restored, generator.set_state(seen), 3)]
    run(plain, generator.set_state(state), calls)
    expected = run(plain, generator, 3)
    assert_same(result[0], expected)
    assert_same(result[1], expected)


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda bank: pickle.loads(pickle.dumps(bank))])
def test_a_copy_goes_on_alike_and_alone(clone: Any) -> None:
    generator = torch.Generator().manual_seed(5)
    bank = make_bank(capacity=2)
    run(bank, generator, 3)
    copied = clone(bank)
    data = generator.get_state()
    expected = run(bank, generator, 3)
    assert_same(run(copied, generator.set_state(data), 3), expected)


def test_same_seed_same_run_and_other_seed_other_run() -> None:
    runs = [run(make_bank(seed), torch.Generator().manual_seed(5), 4) for seed in (1, 1, 2)]
    assert_same(runs[0], runs[1])
    assert any(not torch.equal(a, b) for a, b in zip(runs[0], runs[2], strict=True))


def test_the_default_generator_follows_the_global_seed() -> None:
    runs = []
    for _ in range(2):
        torch.manual_seed(7)
        bank = TailMemoryBank(TAIL, NUM_CLASSES, sample_ratio=1.0, resize_ratio=0.5, min_pixels=1)
        runs.append(run(bank, torch.Generator().manual_seed(5), 4))
    assert_same(runs[0], runs[1])


def test_loading_into_a_smaller_bank_drops_the_oldest() -> None:
    bank = make_bank()
    for width in (1, 2, 3):
        masks = one_object(3, slice(0, 1), slice(0, width))
        bank(colours(masks), masks)
    smaller = make_bank(capacity=2)
    smaller.load_state_dict(bank.state_dict())
    assert [len(sample["values"]) for sample in stored(smaller)] == [2, 3]
    smallest = make_bank(max_bytes=25)
    smallest.load_state_dict(bank.state_dict())
    assert [len(sample["values"]) for sample in stored(smallest)] == [3]


def test_loading_the_state_of_other_classes_names_both() -> None:
    state = make_bank().state_dict()
    with pytest.raises(ValueError, match=r"num_classes = 6, this one 7"):
        TailMemoryBank(TAIL, 7).load_state_dict(state)
    with pytest.raises(ValueError, match=r"tail_classes = \[3, 4, 5\], this one \[4, 5\]"):
        TailMemoryBank([4, 5], NUM_CLASSES).load_state_dict(state)


def test_clear_forgets_samples_and_presence() -> None:
    bank = make_bank()
    run(bank, torch.Generator().manual_seed(5), 2)
    assert bank.nbytes > 0
    bank.clear()
    assert (bank.nbytes, bank.last_pastes) == (0, [])
    assert set(bank.presence.values()) == {0.0}
    bank(torch.zeros(1, 4, 5, 5), torch.full((1, 5, 5), 3))  # another format may follow


def test_eval_returns_the_inputs_and_stores_nothing() -> None:
    bank = make_bank()
    masks = torch.cat([one_object(3, slice(0, 4), slice(0, 4)), empty(20, 30)])
    bank(colours(masks), masks)
    before = bank.state_dict()["_extra_state"]
    images = colours(masks)
    new_images, new_masks = bank.eval()(images, masks)
    assert new_images is images
    assert new_masks is masks
    assert bank.last_pastes == []
    after = bank.state_dict()["_extra_state"]
    assert torch.equal(before.pop("generator"), after.pop("generator"))
    assert str(before) == str(after)


def send_samples(bank: TailMemoryBank, counts: Any) -> None:
    counts.put(bank.num_samples)


@pytest.mark.slow
def test_a_spawned_process_gets_the_bank() -> None:
    bank = make_bank(capacity=2)
    run(bank, torch.Generator().manual_seed(5), 3)
    context = torch.multiprocessing.get_context("spawn")
    counts = context.Queue()
    child = context.Process(target=send_samples, args=(bank, counts))
    child.start()
    assert counts.get(timeout=120) == bank.num_samples
    child.join()


def test_the_random_state_of_a_pickled_bank_is_not_a_tensor() -> None:
    # A spawned process would get it by reference to memory that nothing holds.
    assert isinstance(make_bank().__getstate__()["_generator"], bytes)


@pytest.mark.parametrize("volumes", [False, True])
def test_tensors_of_monai_are_taken(volumes: bool) -> None:
    meta = pytest.importorskip("monai.data").MetaTensor
    results = []
    wraps: list[Any] = [torch.as_tensor, meta]
    for wrap in wraps:
        bank, generator = make_bank(capacity=2), torch.Generator().manual_seed(5)
        for _ in range(3):
            masks = random_masks(generator, 2, 24, 24)
            images = colours(masks)
            if volumes:
                masks, images = masks[:, None], images[:, :, None]
            masks, images = wrap(masks), wrap(images)
            for tensor in (masks, images):
                tensor.is_batch = True  # as in a batch of its loader
            results += [torch.as_tensor(part).as_subclass(Tensor) for part in bank(images, masks)]
    assert_same(results[:6], results[6:])
