from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from benchmarks.scale import ASSUMED, all_reduce_seconds, auc_bytes, filled_bank, model_rows, recorded_messages

from aucseg import AUCSegLoss
from aucseg.memory_bank import TailMemoryBank
from aucseg.training.processes import cpu_state, exchange_samples, gathered, part_of


@pytest.fixture
def group(tmp_path: Path) -> Iterator[dist.ProcessGroup]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    world = dist.group.WORLD
    assert world is not None
    yield world
    dist.destroy_process_group()


@pytest.mark.parametrize("num_classes", [2, 19, 150])
def test_bytes_of_a_step_are_those_of_the_formula(group: dist.ProcessGroup, num_classes: int) -> None:
    logits = torch.randn(1, num_classes, 4, 4, requires_grad=True)
    target = torch.arange(16 * 16).view(1, 16, 16) % num_classes
    with recorded_messages() as sent:
        AUCSegLoss(process_group=group)(logits, target).backward()
    assert sum(sent) == auc_bytes(num_classes)
    assert len(sent) == 2


def test_gathering_keeps_the_order(group: dist.ProcessGroup) -> None:
    assert gathered({"a": 1}) == [{"a": 1}]


def test_parts_are_consecutive_and_complete() -> None:
    for length in range(12):
        for world_size in range(1, 5):
            parts = [part_of(range(length), rank, world_size) for rank in range(world_size)]
            assert [item for part in parts for item in part] == list(range(length))
            assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_sample_from_another_process_is_stored(group: dist.ProcessGroup, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is sent comes back: every class gains a sample, the oldest one goes where the class is full."""
    monkeypatch.setattr("aucseg.training.processes._swap", lambda message, *_: message)
    bank = filled_bank(3)
    before = bank.get_extra_state()["samples"]
    sent = exchange_samples(bank, torch.device("cpu"), 0, torch.Generator().manual_seed(0))
    after = bank.get_extra_state()["samples"]
    assert sent < bank.nbytes + 20_000
    for old, new in zip(before, after, strict=True):
        assert len(new) == len(old) == 5
        assert [id(sample["values"]) for sample in new[:4]] == [id(sample["values"]) for sample in old[1:]]
        assert any(torch.equal(new[4]["values"], sample["values"]) for sample in old)
    empty = TailMemoryBank([1], 2, generator=torch.Generator())
    exchange_samples(empty, torch.device("cpu"), 0, torch.Generator())
    assert empty.nbytes == 0


def test_exchange_uses_no_random_number_twice(group: dist.ProcessGroup, monkeypatch: pytest.MonkeyPatch) -> None:
    """The generator may be the bank's own, as it is in a run: it goes on after the draws, and so does another."""
    monkeypatch.setattr("aucseg.training.processes._swap", lambda message, *_: message)
    for own in (True, False):
        generators = [torch.Generator().manual_seed(seed) for seed in (7, 7 if own else 8)]
        bank = TailMemoryBank(
            [1, 2], 3, scope="image", min_pixels=1, sample_ratio=0.0, capacity=3, generator=generators[0]
        )
        handed_over = generators[0] if own else generators[1]
        masks = torch.zeros(4, 8, 8, dtype=torch.long)
        masks[:, :2], masks[:3, 4:] = 1, 2
        bank(torch.rand(4, 3, 8, 8), masks)
        twin = torch.Generator()
        twin.set_state(handed_over.get_state())
        resting = generators[0].get_state()
        before = bank.get_extra_state()["samples"]
        exchange_samples(bank, torch.device("cpu"), 0, handed_over)
        drawn = [int(torch.randint(3, (), generator=twin)) for _ in range(2)]
        assert torch.equal(handed_over.get_state(), twin.get_state())
        if not own:
            assert torch.equal(generators[0].get_state(), resting)
        for old, new, number in zip(before, bank.get_extra_state()["samples"], drawn, strict=True):
            assert torch.equal(new[-1]["values"], old[number]["values"])


def test_state_is_moved_with_its_containers() -> None:
    assert cpu_state({"a": [torch.ones(1), (2, "b")]}) == {"a": [torch.ones(1), [2, "b"]]}


def test_cost_model_has_no_message_for_one_process_and_a_latency_for_each_doubling() -> None:
    assert all_reduce_seconds(1e6, 1, 1e-5, 1e9) == 0
    assert all_reduce_seconds(0, 1024, 1e-5, 1e9) == pytest.approx(1e-4)
    assert all_reduce_seconds(1e9, 2, 0, 1e9) == pytest.approx(1.0)


def test_table_of_the_guide_is_that_of_the_model() -> None:
    guide = (Path(__file__).parents[2] / "docs" / "scale.md").read_text(encoding="utf-8")
    for row in model_rows(ASSUMED["latency_us"] / 1e6, ASSUMED["bandwidth_gb_s"] * 1e9, 150)[1:]:
        cells = f"| {row['gpus']:,.0f} | {row['sums_ms']:.2f} | {row['small_ms']:.2f} | {row['gradient_ms']:.2f} "
        assert f"{cells}| {row['step_ms']:.1f} | {100 * row['sums_share']:.2f} % |" in guide
