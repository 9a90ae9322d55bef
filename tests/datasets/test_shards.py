from __future__ import annotations

import io
import sys
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

import aucseg.datasets.shards as streaming
from aucseg.cli import main
from aucseg.datasets import SampleError, SegmentationDataset
from aucseg.datasets.shards import StreamedSegmentationDataset, write_shards
from aucseg.statistics.class_statistics import ClassStatistics
from tests.datasets.trees import Tree, trees

CARDS = ("loveda", "pascal_voc2012", "coco_stuff10k")


@pytest.fixture
def folder(tmp_path: Path) -> SegmentationDataset:
    tree = next(tree for tree in trees() if tree.card == "loveda")
    for i in range(7):
        Tree("loveda", "train", f"Train/Rural/images_png/{i}.png", f"Train/Rural/masks_png/{i}.png", tree.table).make(
            tmp_path, seed=i
        )
    return SegmentationDataset("loveda", tmp_path)


@pytest.fixture
def shards(folder: SegmentationDataset, tmp_path: Path) -> list[Path]:
    return write_shards(folder, tmp_path / "shards", samples_per_shard=2)


def names(samples: Iterable[dict[str, Any]]) -> list[str]:
    return [sample["name"] for sample in samples]


def assert_same(one: Iterable[dict[str, Any]], other: Iterable[dict[str, Any]]) -> None:
    for a, b in zip(one, other, strict=True):
        assert a["name"] == b["name"]
        assert torch.equal(a["image"], b["image"])
        assert torch.equal(a["mask"], b["mask"])


def test_without_shuffling_the_samples_are_those_of_the_folder(folder: Any, shards: list[Path]) -> None:
    assert [path.name for path in shards] == [f"train-{i:06d}.tar" for i in range(4)]
    stream = StreamedSegmentationDataset("loveda", shards)
    assert_same(folder, stream)
    assert_same(folder, stream)
    braces = str(shards[0]).replace("000000", "{000000..000003}")
    assert_same(folder, StreamedSegmentationDataset("loveda", braces))


@pytest.mark.parametrize("card", CARDS)
def test_every_encoding_streams(card: str, tmp_path: Path) -> None:
    tree = next(tree for tree in trees() if tree.card == card)
    tree.make(tmp_path)
    dataset: Any = SegmentationDataset(card, tmp_path, tree.split)
    assert_same(dataset, StreamedSegmentationDataset(card, write_shards(dataset, tmp_path / "shards")))


def test_a_training_loop_sees_the_same_batches(folder: Any, shards: list[Path]) -> None:
    def losses(dataset: Any) -> list[float]:
        torch.manual_seed(0)
        model = torch.nn.Conv2d(3, 7, 1)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        values = []
        for batch in DataLoader(dataset, batch_size=3):
            logits = model(batch["image"].float() / 255)
            loss = torch.nn.functional.cross_entropy(logits, batch["mask"].long(), ignore_index=255)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            values.append(loss.item())
        return values

    assert losses(folder) == losses(StreamedSegmentationDataset("loveda", shards))


def test_statistics_over_shards(folder: SegmentationDataset, shards: list[Path]) -> None:
    whole = ClassStatistics.from_dataset(folder)
    assert ClassStatistics.from_dataset(StreamedSegmentationDataset("loveda", shards)) == whole
    parts = [ClassStatistics.from_dataset(StreamedSegmentationDataset("loveda", shard)) for shard in shards]
    assert sum(parts) == whole


def test_workers_share_the_shards(folder: Any, shards: list[Path]) -> None:
    stream = StreamedSegmentationDataset("loveda", shards)
    loader = DataLoader(stream, batch_size=None, num_workers=2, multiprocessing_context="spawn")
    assert sorted(names(loader)) == sorted(names(folder))


def test_ranks_share_the_shards(folder: Any, shards: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    stream = StreamedSegmentationDataset("loveda", shards)
    seen = []
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 3)
    for rank in range(3):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        seen += names(stream)
    assert sorted(seen) == sorted(names(folder))
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 5)
    with pytest.raises(ValueError, match="4 shards for 5 ranks; write at least one shard for each rank"):
        list(stream)


def test_shuffling_is_a_permutation_that_seed_and_epoch_fix(folder: Any, shards: list[Path]) -> None:
    stream = StreamedSegmentationDataset("loveda", shards, shuffle=4)
    first = names(stream)
    assert sorted(first) == sorted(names(folder))
    assert first != names(folder)
    assert names(stream) == first
    stream.set_epoch(1)
    second = names(stream)
    assert second != first
    again = StreamedSegmentationDataset("loveda", shards, shuffle=4)
    again.set_epoch(1)
    assert names(again) == second


def test_transform_is_applied(shards: list[Path]) -> None:
    stream = StreamedSegmentationDataset("loveda", shards, transform=lambda sample: {**sample, "name": "new"})
    assert set(names(stream)) == {"new"}


def spoil(shard: Path, index: int) -> None:
    """Rewrites a shard with the image of one sample broken."""
    with tarfile.open(shard) as tar:
        entries = [(member, tar.extractfile(member).read()) for member in tar.getmembers()]  # type: ignore[union-attr]
    with tarfile.open(shard, "w") as tar:
        for member, data in entries:
            if member.name == f"{index:09d}.image.png":
                data = data[: len(data) // 2]
                member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def test_broken_samples_are_named_or_skipped(shards: list[Path]) -> None:
    spoil(shards[1], 2)
    with pytest.raises(SampleError, match=r"train-000001\.tar/000000002\.image\.png: truncated or damaged"):
        list(StreamedSegmentationDataset("loveda", shards))
    stream = StreamedSegmentationDataset("loveda", shards, on_error="skip")
    assert names(stream) == [f"Train/Rural/images_png/{i}" for i in (0, 1, 3, 4, 5, 6)]
    assert stream.num_skipped == 1


def test_broken_shards_are_named_or_skipped(shards: list[Path], tmp_path: Path) -> None:
    shards[1].write_bytes(b"no tar" * 200)
    shards[2].unlink()
    with pytest.raises(SampleError, match=r"train-000001\.tar: the shard is cut off, damaged or not a tar file; write"):
        list(StreamedSegmentationDataset("loveda", shards))
    with pytest.raises(SampleError, match=r"train-000002\.tar: cannot open the shard"):
        list(StreamedSegmentationDataset("loveda", [shards[0], *shards[2:]]))
    stream = StreamedSegmentationDataset("loveda", shards, on_error="skip")
    assert names(stream) == [f"Train/Rural/images_png/{i}" for i in (0, 1, 6)]
    assert stream.num_skipped == 2


def test_truncated_and_empty_shards_are_named(shards: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    data = shards[1].read_bytes()
    shards[1].write_bytes(data[: data.rindex(b"000000003.mask") + 700])
    with tarfile.open(shards[2], "w"):
        pass
    shards[3].write_bytes(b"")
    for shard, message in zip(shards[1:], ("is cut off", "holds no files", "is cut off"), strict=True):
        with pytest.raises(SampleError, match=rf"^{shard}: the shard {message}[^<(]*$"):
            list(StreamedSegmentationDataset("loveda", shard))
    assert main(["stats", "loveda", "--shards", str(shards[2])]) == 2
    assert f"{shards[2]}: the shard holds no files" in capsys.readouterr().err
    stream = StreamedSegmentationDataset("loveda", [shards[0], *shards[2:]], on_error="skip")
    assert len(names(stream)) == 2
    assert stream.num_skipped == 2


def write_tar(path: Path, folder: SegmentationDataset, *endings: tuple[str, bool]) -> Path:
    """A shard in which image (False) and mask (True) of each sample have the given endings."""
    with tarfile.open(path, "w") as tar:
        for i in range(len(folder)):
            for ending, is_mask in endings:
                tar.add(folder.mask_path(i) if is_mask else folder.image_path(i), f"{i:03d}.{ending}")
    return path


def test_usual_names_are_told_by_their_endings(folder: SegmentationDataset, tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    stream = StreamedSegmentationDataset("loveda", path)
    for endings in ([("jpg", False), ("png", True)], [("seg.png", True), ("JPG", False), ("json", False)]):
        write_tar(path, folder, *endings)
        found = list(stream)
        assert len(found) == len(folder)
        for i, sample in enumerate(found):
            assert torch.equal(sample["image"], folder[i]["image"])
            assert torch.equal(sample["mask"], folder[i]["mask"])
    write_tar(path, folder, ("png", False))
    without = StreamedSegmentationDataset("loveda", path, mask=None)
    assert torch.equal(next(iter(without))["image"], folder[0]["image"])
    for ambiguous in ([("jpg", False), ("png", True), ("depth.png", True)], [("png", False), ("tif", True)]):
        write_tar(path, folder, *ambiguous)
        with pytest.raises(SampleError, match=r"a\.tar: sample '000' has 0 files .*call them 000\.image\.jpg and 000"):
            list(stream)


def test_a_name_that_occurs_twice_is_named(folder: SegmentationDataset, tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", folder, ("image.png", False), ("image.png", False), ("mask.png", True))
    with pytest.raises(SampleError, match=r"a\.tar: two files of one name: 000\.image\.png"):
        list(StreamedSegmentationDataset("loveda", path))


def test_endings_that_do_not_fit_are_named(shards: list[Path]) -> None:
    stream = StreamedSegmentationDataset("loveda", shards, image="jpg")
    with pytest.raises(SampleError, match=r"'000000000' has 0 files that match 'jpg' \(it has .*image\.png.*\); call"):
        list(stream)
    without = next(iter(StreamedSegmentationDataset("loveda", shards, mask=None)))
    assert "mask" not in without


def test_refusals(shards: list[Path], folder: SegmentationDataset, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="would run a command of the shell"):
        StreamedSegmentationDataset("loveda", "pipe:touch owned")
    with pytest.raises(ValueError, match="urls is empty"):
        StreamedSegmentationDataset("loveda", [])
    with pytest.raises(ValueError, match="on_error"):
        StreamedSegmentationDataset("loveda", shards, on_error="x")
    with pytest.raises(ValueError, match="shuffle is the size"):
        StreamedSegmentationDataset("loveda", shards, shuffle=-1)
    with pytest.raises(ValueError, match="samples_per_shard must be at least 1"):
        write_shards(folder, tmp_path, samples_per_shard=0)


def test_missing_package_is_named(shards: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "webdataset", None)
    with pytest.raises(ImportError, match=r'pip install "aucseg\[stream\]"'):
        streaming.StreamedSegmentationDataset("loveda", shards)
