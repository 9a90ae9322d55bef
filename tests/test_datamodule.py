from itertools import islice
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aucseg.datamodule import SampleStream, SegmentationDataModule, random_order


@given(
    length=st.integers(1, 20),
    batch_size=st.integers(1, 7),
    world_size=st.integers(1, 4),
    start=st.integers(0, 30),
)
@settings(max_examples=60, deadline=None)
def test_stream_depends_on_position_alone(length: int, batch_size: int, world_size: int, start: int) -> None:
    order = random_order(length, seed=3)

    def ranks(world: int, size: int, first: int) -> list[SampleStream]:
        return [
            SampleStream(order, batch_size=size, seed=3, rank=rank, world_size=world, start_batch=first)
            for rank in range(world)
        ]

    whole = list(islice(ranks(1, batch_size * world_size, 0)[0], start + 3))
    resumed = [list(islice(stream, 3)) for stream in ranks(world_size, batch_size, start)]
    for step in range(3):
        # Interleaving the ranks gives the batch of one process.
        together = [sample for samples in zip(*(rank[step] for rank in resumed), strict=True) for sample in samples]
        assert together == whole[start + step]


def test_stream_visits_every_sample_once_an_epoch_with_fresh_seeds() -> None:
    stream = SampleStream(random_order(10, seed=0), batch_size=5, seed=0)
    batches = list(islice(stream, 4))
    first, second = [*batches[0], *batches[1]], [*batches[2], *batches[3]]
    assert sorted(index for index, _ in first) == sorted(index for index, _ in second) == list(range(10))
    assert [index for index, _ in first] != [index for index, _ in second]
    assert len({seed for _, seed in first + second}) == 20


def test_empty_split_is_named() -> None:
    with pytest.raises(ValueError, match="at least one sample"):
        SampleStream(random_order(0, seed=0), batch_size=1, seed=0)


def batches(card: Path, num_workers: int, count: int = 3, seed: int = 0) -> list[torch.Tensor]:
    module = SegmentationDataModule(
        str(card), str(card.parent), batch_size=3, num_workers=num_workers, crop_size=(32, 40), seed=seed
    )
    return [batch["image"] for batch in islice(module.train_dataloader(), count)]


def test_samples_do_not_depend_on_the_number_of_workers_nor_on_global_random_state(tiny_card: Path) -> None:
    torch.manual_seed(1)
    alone = batches(tiny_card, num_workers=0)
    torch.manual_seed(2)
    shared = batches(tiny_card, num_workers=2)
    assert all(torch.equal(one, other) for one, other in zip(alone, shared, strict=True))
    other_seed = batches(tiny_card, num_workers=0, seed=5)
    assert not torch.equal(alone[0], other_seed[0])


def test_loading_leaves_the_global_random_state_alone(tiny_card: Path) -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    batches(tiny_card, num_workers=0)
    assert torch.equal(torch.rand(3), expected)


def test_batches_are_uint8_with_names(tiny_card: Path) -> None:
    module = SegmentationDataModule(str(tiny_card), str(tiny_card.parent), eval_batch_size=4, num_workers=0)
    batch = next(iter(module.val_dataloader()))
    assert batch["image"].dtype == batch["mask"].dtype == torch.uint8
    assert batch["image"].shape == (4, 3, 48, 64)
    assert batch["mask"].shape == (4, 48, 64)
    assert [Path(name).name for name in batch["name"]] == [f"frame_{index:02d}" for index in range(4)]


def test_class_counts_are_those_of_the_training_masks(tiny_card: Path) -> None:
    module = SegmentationDataModule(str(tiny_card), str(tiny_card.parent), num_workers=0)
    dataset = module.dataset("train", None)
    masks = torch.stack([dataset[index]["mask"] for index in range(len(dataset))])
    expected = torch.bincount(masks[masks != 255].long(), minlength=4)
    assert torch.equal(module.class_counts(), expected)


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"eval_batch_size": 0}, {"num_workers": -1}])
def test_wrong_sizes_are_named(tiny_card: Path, options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        SegmentationDataModule(str(tiny_card), str(tiny_card.parent), **options)  # type: ignore[arg-type]
