from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aucseg import AUCSegLoss, SegmentationDataModule, SegmentationTask
from aucseg.datasets import SegmentationDataset
from aucseg.evaluation_batches import EvaluationBatches, collate_any_size, largest_image, same_size_parts
from aucseg.run_folder import ResultWriter
from aucseg.streaming import write_shards
from tests.small_runs import make_trainer


def sample(index: int, size: tuple[int, int], mask_size: tuple[int, int]) -> dict[str, Any]:
    image, mask = torch.full((3, *size), index), torch.full(mask_size, index)
    return {"image": image, "mask": mask, "name": f"image {index}"}


sizes = st.tuples(st.integers(1, 3), st.integers(1, 3))


@given(shapes=st.lists(st.tuples(sizes, sizes), min_size=1, max_size=7))
@settings(max_examples=60, deadline=None)
def test_every_image_is_in_one_part_with_others_of_its_size(shapes: list[tuple[Any, Any]]) -> None:
    samples = [sample(index, *shape) for index, shape in enumerate(shapes)]
    batch = collate_any_size(samples)
    assert batch["name"] == [f"image {index}" for index in range(len(shapes))]
    parts = list(same_size_parts(batch))
    assert sorted(position for positions, _, _ in parts for position in positions) == list(range(len(shapes)))
    assert len(parts) == len(set(shapes))
    for positions, images, masks in parts:
        for position, image, mask in zip(positions, images, masks, strict=True):
            assert torch.equal(image, samples[position]["image"])
            assert torch.equal(mask, samples[position]["mask"])


@given(length=st.integers(1, 30), size=st.integers(1, 9), world_size=st.integers(1, 5), data=st.data())
@settings(max_examples=100, deadline=None)
def test_each_process_has_a_batch_and_each_image_is_in_one(
    length: int, size: int, world_size: int, data: st.DataObject
) -> None:
    if length < world_size:
        with pytest.raises(ValueError, match=f"{length} images for {world_size} processes"):
            EvaluationBatches(length, size, world_size=world_size)
        return
    largest = data.draw(st.integers(0, length - 1))
    asked = [None, largest]
    dealt = []
    for rank in range(world_size):
        wanted = iter(asked)
        batches = EvaluationBatches(length, size, rank=rank, world_size=world_size, rehearse=lambda w=wanted: next(w))  # type: ignore[misc]
        plain, (rehearsal, *others) = list(batches), list(batches)
        assert 1 <= len(plain) == len(batches)
        assert max(map(len, plain)) <= size
        assert largest in rehearsal
        assert others == plain
        dealt += plain
    assert sorted(index for batch in dealt for index in batch) == list(range(length))


def test_largest_image_is_found_from_the_headers(uneven_card: Path, monkeypatch: Any) -> None:
    dataset = SegmentationDataset(str(uneven_card), uneven_card.parent, "val")
    assert largest_image(dataset) == 2
    # An unreadable file is somebody else's to report.
    monkeypatch.setattr(dataset, "image_path", lambda index: Path("/no/such" if index == 2 else f"{index}"))
    assert largest_image(dataset) == 0


@pytest.mark.parametrize(
    ("evaluation", "base_size"),
    [(None, None), ({"window": [32, 32], "stride": [20, 20], "flip": True}, None), (None, (50, 40))],
)
def test_batches_of_unequal_images_give_the_numbers_of_one_by_one(
    uneven_card: Path, tmp_path: Path, evaluation: dict[str, Any] | None, base_size: tuple[int, int] | None
) -> None:
    torch.manual_seed(0)
    model = torch.nn.Conv2d(3, 4, 5, stride=2, padding=2)
    shards = [
        str(path)
        for path in write_shards(SegmentationDataset(str(uneven_card), uneven_card.parent, "val"), tmp_path / "shards")
    ]

    def evaluate(name: str, size: int, **options: Any) -> tuple[dict[str, float], bytes, bytes]:
        task = SegmentationTask(
            str(uneven_card), model, loss=AUCSegLoss(), pixel_metrics=True, evaluation=evaluation, channels_last=False
        )
        data = SegmentationDataModule(
            str(uneven_card),
            str(uneven_card.parent),
            eval_batch_size=size,
            num_workers=0,
            eval_base_size=base_size,
            **options,
        )
        trainer = make_trainer(tmp_path, 1, callbacks=[ResultWriter(tmp_path / name)])
        (metrics,) = trainer.validate(task, data, verbose=False)
        files = [(tmp_path / name / file).read_bytes() for file in ("confusion.json", "images.json")]
        return dict(metrics), files[0], files[1]

    metrics, *files = evaluate("one", 1)
    assert metrics["val/loss"] > 0
    for name, size, options in (
        ("two", 2, {}),
        ("three", 3, {}),
        ("all", 8, {}),
        ("shards", 3, {"val_shards": shards}),
    ):
        found, *found_files = evaluate(name, size, **options)
        assert found == pytest.approx(metrics, rel=1e-5), name
        assert found_files == files, name


def test_held_out_images_of_unequal_sizes_are_evaluated_together(uneven_card: Path) -> None:
    data = SegmentationDataModule(
        str(uneven_card),
        str(uneven_card.parent),
        train_split="val",
        held_out_share=0.6,
        eval_batch_size=3,
        num_workers=0,
    )
    (batch,) = data.val_dataloader()
    assert len(batch["name"]) == len(batch["image"]) == 3
    assert sum(len(positions) for positions, _, _ in same_size_parts(batch)) == 3
