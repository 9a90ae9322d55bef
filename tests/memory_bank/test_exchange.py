"""What the banks of several processes give each other: in one process here, in two in `tests.test_two_processes`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from aucseg.memory_bank import TailMemoryBank
from aucseg.memory_bank.exchange import exchange_samples
from tests.memory_bank.small_banks import TAIL, assert_same, colours, empty, make_bank, one_object


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A group of one process, to whom what it sends comes back."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    monkeypatch.setattr("aucseg.memory_bank.exchange.swap", lambda message, *_: message)
    yield
    dist.destroy_process_group()


def samples_of(bank: TailMemoryBank) -> list[list[dict[str, Any]]]:
    samples: list[list[dict[str, Any]]] = bank.get_extra_state()["samples"]
    return samples


def full_bank(**options: Any) -> TailMemoryBank:
    bank = make_bank(capacity=5, sample_ratio=0.0, **options)
    for class_id in TAIL:
        for row in range(5):
            masks = one_object(class_id, slice(row, row + 1), slice(0, row + 1))
            bank(colours(masks), masks)
    return bank


@pytest.mark.usefixtures("alone")
def test_a_sample_from_another_process_is_stored() -> None:
    """What is sent comes back: every class gains a sample, the oldest one goes where the class is full."""
    bank = full_bank()
    before = samples_of(bank)
    sent = exchange_samples(bank, torch.device("cpu"), 0, torch.Generator().manual_seed(0))
    assert 0 < sent < bank.nbytes + 20_000
    for old, new in zip(before, samples_of(bank), strict=True):
        assert len(new) == len(old) == 5
        assert_same([sample["values"] for sample in new[:4]], [sample["values"] for sample in old[1:]])
        assert any(torch.equal(new[4]["values"], sample["values"]) for sample in old)
    nothing = TailMemoryBank([1], 2, generator=torch.Generator())
    exchange_samples(nothing, torch.device("cpu"), 0, torch.Generator())
    assert nothing.nbytes == 0


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("is_own", [True, False])
def test_an_exchange_uses_no_random_number_twice(is_own: bool) -> None:
    """The generator may be the bank's own, as it is in a run: it goes on after the draws, and so does another."""
    own, other = (torch.Generator().manual_seed(seed) for seed in (7, 8))
    bank = TailMemoryBank([1, 2], 3, scope="image", min_pixels=1, sample_ratio=0.0, capacity=3, generator=own)
    masks = torch.zeros(4, 8, 8, dtype=torch.long)
    masks[:, :2], masks[:3, 4:] = 1, 2
    bank(torch.rand(4, 3, 8, 8), masks)
    handed_over, twin = own if is_own else other, torch.Generator()
    twin.set_state(handed_over.get_state())
    resting = own.get_state()
    before = samples_of(bank)
    exchange_samples(bank, torch.device("cpu"), 0, handed_over)
    drawn = [int(torch.randint(3, (), generator=twin)) for _ in range(2)]
    assert torch.equal(handed_over.get_state(), twin.get_state())
    assert is_own or torch.equal(own.get_state(), resting)
    for old, new, number in zip(before, samples_of(bank), drawn, strict=True):
        assert torch.equal(new[-1]["values"], old[number]["values"])


@pytest.mark.usefixtures("alone")
def test_an_exchange_leaves_what_was_counted() -> None:
    bank = make_bank()
    masks = torch.cat([one_object(3, slice(0, 4), slice(0, 4)), empty(20, 30)])
    bank(colours(masks), masks)
    counted = bank.presence, bank.presence_reached, bank.last_pastes
    assert counted == ({3: 0.5, 4: 0.0, 5: 0.0}, {3: 1.0, 4: 0.0, 5: 0.0}, [(1, 3, 16)])
    exchange_samples(bank, torch.device("cpu"), 0, torch.Generator())
    assert (bank.presence, bank.presence_reached, bank.last_pastes) == counted


def test_samples_beyond_the_bounds_push_the_oldest_out() -> None:
    giver, taker = full_bank(), full_bank(max_bytes=1000)
    taker.add_samples([samples[2:4] for samples in samples_of(giver)])
    for given, samples in zip(samples_of(giver), samples_of(taker), strict=True):
        assert [len(sample["values"]) for sample in samples] == [3, 4, 5, 3, 4]
        assert torch.equal(samples[-1]["values"], given[3]["values"])
    small = full_bank(max_bytes=100)
    small.add_samples(samples_of(giver))
    assert small.nbytes <= 100


def test_samples_that_do_not_fit_leave_the_bank_as_it_was() -> None:
    bank = full_bank()
    before = samples_of(bank)
    masks = one_object(3, slice(0, 1), slice(0, 4))
    other = make_bank()
    other(colours(masks, torch.float32), masks)
    damaged = [[{**sample, "height": 0} for sample in samples] for samples in before]
    for samples, message in (
        (samples_of(other), "several formats"),
        (damaged, "a sample of class 3 is not whole"),
        (before[:2], "a list of samples for each tail class"),
    ):
        with pytest.raises(ValueError, match=message):
            bank.add_samples(samples)
    for after, own in zip(samples_of(bank), before, strict=True):
        assert_same([sample["values"] for sample in after], [sample["values"] for sample in own])
