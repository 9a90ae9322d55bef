from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from benchmarks.scale import ASSUMED, all_reduce_seconds, auc_bytes, model_rows, recorded_messages

from aucseg import AUCSegLoss
from aucseg.training.processes import cpu_state, gathered, part_of


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
