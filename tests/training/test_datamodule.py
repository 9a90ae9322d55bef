import shutil
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from aucseg.datasets import SampleError, SegmentationDataset
from aucseg.datasets.shards import StreamedSegmentationDataset, write_shards
from aucseg.loading.crops import ClassAwareCrop
from aucseg.loading.sample_order import SampleStream, random_order
from aucseg.statistics.class_statistics import ClassStatistics
from aucseg.training.datamodule import SegmentationDataModule
from tests.conftest import write_tiny_dataset


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


@pytest.mark.parametrize("num_workers", [0, 2])
def test_images_kept_in_memory_give_the_same_batches(tiny_card: Path, num_workers: int) -> None:
    options: dict[str, Any] = {"batch_size": 3, "num_workers": num_workers, "crop_size": (32, 40)}
    plain, kept = (SegmentationDataModule(str(tiny_card), str(tiny_card.parent), cache=cache, **options)
                   for cache in (None, "memory"))  # fmt: skip
    assert_same(take(kept, 4), take(plain, 4))


def test_wrong_caches_are_refused(tiny_card: Path) -> None:
    with pytest.raises(ValueError, match="cache must be 'memory' or None, got 'disk'"):
        SegmentationDataModule(str(tiny_card), cache="disk")
    with pytest.raises(ValueError, match="leave one of the two out"):
        SegmentationDataModule(str(tiny_card), cache="memory", shards="a.tar")


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


def shard_options(card: Path, folder: Path, **options: Any) -> dict[str, Any]:
    dataset = SegmentationDataset(str(card), card.parent)
    shards = [str(path) for path in write_shards(dataset, folder, samples_per_shard=3)]
    return {"card": str(card), "batch_size": 2, "crop_size": (32, 40), "shards": shards, **options}


def take(module: SegmentationDataModule, count: int) -> list[dict[str, Any]]:
    return list(islice(module.train_dataloader(), count))


def assert_same(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> None:
    assert len(one) == len(other) > 0
    for a, b in zip(one, other, strict=True):
        assert a["name"] == b["name"]
        assert torch.equal(a["image"], b["image"])
        assert torch.equal(a["mask"], b["mask"])


@pytest.mark.parametrize("num_workers", [0, 1])
def test_shards_give_the_training_batches_of_the_folder(tiny_card: Path, tmp_path: Path, num_workers: int) -> None:
    options = shard_options(tiny_card, tmp_path, sampler="sequential", num_workers=num_workers)
    # More batches than an epoch has.
    from_shards = take(SegmentationDataModule(**options), 9)
    del options["shards"]
    assert_same(take(SegmentationDataModule(root=str(tiny_card.parent), **options), 9), from_shards)


@pytest.mark.parametrize(("num_workers", "start"), [(0, 3), (2, 7)])
def test_a_stream_from_shards_goes_on_where_it_was(
    tiny_card: Path, tmp_path: Path, num_workers: int, start: int
) -> None:
    module = SegmentationDataModule(**shard_options(tiny_card, tmp_path, num_workers=num_workers, shuffle_buffer=3))
    whole = take(module, start + 3)
    module.trainer = SimpleNamespace(  # type: ignore[assignment]
        global_rank=0, world_size=1, max_steps=100, global_step=start, accumulate_grad_batches=1
    )
    assert_same(whole[start:], take(module, 3))


def test_shards_are_counted_and_validated_like_the_folder(tiny_card: Path, tmp_path: Path) -> None:
    module = SegmentationDataModule(**shard_options(tiny_card, tmp_path / "train", num_workers=0))
    folder = SegmentationDataModule(str(tiny_card), str(tiny_card.parent), num_workers=0)
    assert torch.equal(module.class_counts(), folder.class_counts())
    val = [str(path) for path in write_shards(folder.dataset("val", None), tmp_path / "val")]
    from_shards = SegmentationDataModule(str(tiny_card), val_shards=val, num_workers=0)
    assert_same(list(folder.val_dataloader()), list(from_shards.val_dataloader()))


def test_too_few_shards_for_the_loader_processes_are_named(tiny_card: Path, tmp_path: Path) -> None:
    options = shard_options(tiny_card, tmp_path, num_workers=2)
    options["shards"] = options["shards"][:1]
    with pytest.raises(ValueError, match=r"too few shards in data\.shards: 1 for 2 loader processes"):
        take(SegmentationDataModule(**options), 2)


def test_rare_crops_hold_the_class_and_are_the_same_again(tiny_card: Path) -> None:
    dataset = SegmentationDataset(str(tiny_card), tiny_card.parent)
    rarest = int(np.argmin(ClassStatistics.from_dataset(dataset).pixel_counts))
    holders = {dataset[i]["name"] for i in range(len(dataset)) if bool((dataset[i]["mask"] == rarest).any())}

    def module(probability: float) -> SegmentationDataModule:
        return SegmentationDataModule(
            str(tiny_card),
            str(tiny_card.parent),
            num_workers=0,
            crop_size=(16, 16),
            scale=(1.0, 1.0),
            sampler="rare_class",
            sampler_options={"temperature": 0.05},
            rare_crop=probability,
            rare_crop_classes=[rarest],
        )

    batches = take(module(1.0), 4)
    assert_same(batches, take(module(1.0), 4))
    found = [
        bool((mask == rarest).any())
        for batch in batches
        for name, mask in zip(batch["name"], batch["mask"], strict=True)
        if name in holders
    ]
    assert found
    assert all(found)
    without = torch.stack([batch["mask"] == rarest for batch in take(module(0.0), 4)]).any((2, 3)).float().mean()
    assert without < 1


def test_the_cap_spares_the_tail_of_the_card(tiny_card: Path) -> None:
    for options, expected in (({}, (3,)), ({"rare_crop_classes": [1, 2]}, (1, 2))):
        data = SegmentationDataModule(str(tiny_card), str(tiny_card.parent), **options)  # type: ignore[arg-type]
        (crop,) = [step for step in data.training_transform.transforms if isinstance(step, ClassAwareCrop)]
        assert crop.rare_classes == expected
        assert crop.rare_probability == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampler": "rare"}, "must be 'random', 'sequential', 'rare_class' or 'repeat_factor'"),
        ({"sampler_options": {"threshold": 0.3}}, "go with the samplers"),
        ({"sampler": "repeat_factor", "sampler_options": {"temperature": 0.3}}, "no option 'temperature'"),
        ({"shards": "a.tar", "sampler": "rare_class"}, "no sampler 'rare_class' or 'repeat_factor'"),
        ({"shards": "a.tar", "sampler": "repeat_factor"}, "no sampler 'rare_class' or 'repeat_factor'"),
        ({"shards": "a.tar", "held_out_share": 0.1}, "no held_out_share or fold"),
        ({"rare_crop": 1.5, "rare_crop_classes": [1]}, "must be in"),
        ({"rare_crop": 0.5, "rare_crop_classes": [9]}, "rare_crop_classes holds 9"),
    ],
)
def test_options_that_do_not_fit_are_named(tiny_card: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        SegmentationDataModule(str(tiny_card), str(tiny_card.parent), **options)


def test_shards_by_a_pattern(tiny_card: Path, tmp_path: Path) -> None:
    folder = tmp_path / "my [shards]"
    write_shards(SegmentationDataset(str(tiny_card), tiny_card.parent), folder, samples_per_shard=4)
    (folder / "._train-000000.tar").write_bytes(b"")
    stream = StreamedSegmentationDataset(str(tiny_card), str(folder / "train-*.tar"))
    assert [Path(url).name for url in stream.urls] == ["train-000000.tar", "train-000001.tar"]
    assert len(list(stream)) == 8
    assert StreamedSegmentationDataset(str(tiny_card), str(folder / "*-{000000..000001}.tar")).urls == stream.urls
    with pytest.raises(ValueError, match=r"no shard is called .*val-\*\.tar"):
        StreamedSegmentationDataset(str(tiny_card), str(folder / "val-*.tar"))


def test_what_a_run_says_of_its_data(tiny_card: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "data"
    shutil.copytree(tiny_card.parent, root)
    (root / "images/train/frame_00.png").rename(root / "images/train/frame_00.jpeg")
    module = SegmentationDataModule(str(tiny_card), str(root), num_workers=0)
    module.setup("fit")
    module.setup("validate")
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "aucseg: files: train 7 images, val 4 images",
        "aucseg: files: 2 not as they should be (all of them: aucseg stats): images/train/frame_00.jpeg: in no pair; "
        "masks/train/frame_00.png: in no pair",
    ]


def test_links_out_of_the_root_are_followed_unless_forbidden(tiny_card: Path, tmp_path: Path) -> None:
    for folder in ("images", "masks"):
        (tmp_path / folder).symlink_to(tiny_card.parent / folder)
    followed = SegmentationDataModule(str(tiny_card), str(tmp_path), num_workers=0, crop_size=(32, 40))
    assert next(iter(followed.train_dataloader()))["image"].shape == (8, 3, 32, 40)
    module = SegmentationDataModule(
        str(tiny_card), str(tmp_path), num_workers=0, crop_size=(32, 40), follow_symlinks=False
    )
    with pytest.raises(SampleError, match="a symbolic link leads out of the root folder"):
        next(iter(module.train_dataloader()))


def test_images_in_tiles_are_drawn_by_window_and_by_class(tiny_card: Path, tmp_path: Path) -> None:
    pytest.importorskip("rasterio")
    root = tmp_path / "data"
    shutil.copytree(tiny_card.parent, root)
    for split in ("train", "val"):
        for folder in ("images", "masks"):
            for path in (root / folder / split).iterdir():
                with Image.open(path) as file:
                    large = file.resize((256, 96), Image.Resampling.NEAREST)
                large.save(path)
    options: dict[str, Any] = {"batch_size": 3, "num_workers": 0, "crop_size": (64, 64), "tile": 64, "scale": (1, 1)}
    options |= {"photometric": False, "flip": 0.0, "max_class_share": 1.0}
    module = SegmentationDataModule(str(tiny_card), str(root), sampler="rare_class", **options)
    num_tiles = 2 * 6  # of 48 x 42 or 43 pixels
    dataset = module.training_dataset(None)
    assert len(dataset) == 8 * num_tiles == module.class_statistics().num_images
    assert len(module.validation_dataset(None)) == 4 * num_tiles

    first, again = (take(module, 2) for _ in range(2))
    assert_same(first, again)
    for batch in first:
        assert batch["mask"].shape == (3, 64, 64)
        for name, image, mask in zip(batch["name"], batch["image"], batch["mask"], strict=True):
            with Image.open(root / f"{name}.png") as file:
                whole = torch.from_numpy(np.array(file)).permute(2, 0, 1)
            starts = (whole.unfold(2, 64, 1) == image[:, 0, None, None]).all(-1).all(0)  # (96, 193), of its first row
            windows = [whole[:, top : top + 64, left : left + 64] for top, left in starts.nonzero().tolist()]
            assert any(torch.equal(window, image) for window in windows)
            assert (mask != 255).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cache": "memory"}, "cache keeps whole images"),
        ({"val_shards": "a.tar"}, "shards are read whole"),
        ({"base_size": (100, 100)}, "fit whole images"),
        ({"eval_base_size": (100, 100)}, "fit whole images"),
    ],
)
def test_what_does_not_go_with_tiles_is_refused(tiny_card: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SegmentationDataModule(str(tiny_card), str(tiny_card.parent), tile=64, **options)


def test_images_held_out_of_other_data_play_no_part(tiny_card: Path, tmp_path: Path) -> None:
    other = write_tiny_dataset(tmp_path, num_train=4)
    other.write_text(other.read_text().replace("name: tiny", "name: other"))
    run = SegmentationDataModule(str(tiny_card), str(tiny_card.parent), held_out_share=0.25, num_workers=0)
    run.held_out_dataset(None)
    elsewhere = SegmentationDataModule(str(other), str(tmp_path), held_out_share=0.5, num_workers=0)
    elsewhere.load_state_dict(run.state_dict())
    assert len(elsewhere.held_out_dataset(None)) == 2
    same = SegmentationDataModule(str(tiny_card), str(tiny_card.parent), held_out_share=0.5, num_workers=0)
    same.load_state_dict(run.state_dict())
    with pytest.raises(ValueError, match=r"was trained with data.held_out_share 0.25"):
        same.held_out_dataset(None)
