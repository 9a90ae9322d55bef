from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import aucseg.datasets.scan as scan_module
from aucseg.datasets import DatasetCard, SampleError, SegmentationDataset
from aucseg.datasets.mask_files import read_mask
from aucseg.datasets.scan import scan_samples
from aucseg.datasets.scan_cache import ScanCache
from aucseg.statistics.class_statistics import ClassStatistics
from tests.datasets.conftest import save_mask

WriteCard = Callable[..., DatasetCard]


def count(dataset: SegmentationDataset, cache: ScanCache | None = None, num_workers: int = 0) -> ClassStatistics:
    statistics = ClassStatistics(dataset.card.num_classes)
    for sample in scan_samples(dataset, cache=cache, num_workers=num_workers):
        assert not sample.errors
        assert sample.raw is not None
        statistics.add_scan(dataset.label_map.map_scan(sample.raw)[0])
    return statistics


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The masks that were decoded, in order."""
    paths: list[str] = []
    original = read_mask

    def recording_read(path: Path, card: DatasetCard, data: bytes | None = None) -> object:
        paths.append(path.name)
        return original(path, card, data)

    monkeypatch.setattr(scan_module, "read_mask", recording_read)
    return paths


def test_a_pool_gives_the_same_in_the_same_order(
    write_card: WriteCard, mini_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(4, 24):
        for folder in ("images", "masks"):
            (mini_root / f"{folder}/{i}.png").write_bytes((mini_root / f"{folder}/{i % 4}.png").read_bytes())
    dataset = SegmentationDataset(write_card(), mini_root)
    monkeypatch.setattr(scan_module, "_MIN_POOL_JOBS", 4)
    alone, pooled = count(dataset), count(dataset, num_workers=2)
    assert alone == pooled
    assert alone.num_images == 24
    assert ClassStatistics.from_dataset(dataset).image_classes.tolist() == pooled.image_classes.tolist()


def test_a_second_run_reads_nothing_and_an_edited_file_is_noticed(
    write_card: WriteCard, mini_root: Path, tmp_path: Path, decoded: list[str]
) -> None:
    dataset = SegmentationDataset(write_card(), mini_root)
    cache = ScanCache(tmp_path / "cache" / "scans.sqlite")
    first = count(dataset, cache)
    assert len(decoded) == 4
    assert count(dataset, cache) == first
    assert len(decoded) == 4

    # Edited, with the same size and the old time of modification.
    path = mini_root / "masks/2.png"
    before = path.stat()
    mask = np.full((12, 16), 9)
    save_mask(mask, path)
    path.write_bytes(path.read_bytes().ljust(before.st_size, b"\0"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    second = count(dataset, cache)
    assert decoded[4:] == ["2.png"]
    assert second != first
    assert second == count(dataset)


def test_copied_data_is_known_by_its_content(
    write_card: WriteCard, mini_root: Path, tmp_path: Path, decoded: list[str]
) -> None:
    cache = ScanCache(tmp_path / "scans.sqlite")
    first = count(SegmentationDataset(write_card(), mini_root), cache)
    mini_root.rename(tmp_path / "moved")
    for path in (tmp_path / "moved").rglob("*.png"):
        path.touch()
    assert count(SegmentationDataset(write_card(), tmp_path / "moved"), cache) == first
    assert len(decoded) == 4


def test_the_cache_follows_the_card(write_card: WriteCard, mini_root: Path, tmp_path: Path, decoded: list[str]) -> None:
    cache = ScanCache(tmp_path / "scans.sqlite")
    one = count(SegmentationDataset(write_card(), mini_root), cache)
    # Another map of ids needs no second look at the files.
    other = count(
        SegmentationDataset(write_card(**{"ids: [7, 8]": "ids: [7]", "ids: [9]": "ids: [9, 8]"}), mini_root), cache
    )
    assert len(decoded) == 4
    assert one.pixel_counts.sum() == other.pixel_counts.sum()
    assert one.pixel_counts[2] < other.pixel_counts[2]


def test_a_damaged_cache_is_made_anew(write_card: WriteCard, mini_root: Path, tmp_path: Path) -> None:
    path = tmp_path / "scans.sqlite"
    path.write_bytes(b"SQLite format 3\0" + b"no database behind its first bytes" * 100)
    cache = ScanCache(path)
    count(SegmentationDataset(write_card(), mini_root), cache)
    cache.close()
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT COUNT(*) FROM files").fetchone() == (8,)
    connection.close()


def test_an_interrupted_run_keeps_what_it_read(
    write_card: WriteCard, mini_root: Path, tmp_path: Path, decoded: list[str]
) -> None:
    dataset = SegmentationDataset(write_card(), mini_root)
    cache = ScanCache(tmp_path / "scans.sqlite")
    scans = scan_samples(dataset, cache=cache)
    next(scans)
    scans.close()
    cache.close()
    count(dataset, ScanCache(tmp_path / "scans.sqlite"))
    assert len(decoded) == 4


def test_errors_are_reported_with_the_sample(write_card: WriteCard, mini_root: Path) -> None:
    save_mask(np.zeros((5, 5)), mini_root / "masks/0.png")
    (mini_root / "images/1.png").write_bytes((mini_root / "images/1.png").read_bytes()[:300])
    (mini_root / "masks/2.png").write_bytes(b"")
    dataset = SegmentationDataset(write_card(), mini_root)
    by_header = [sample.errors for sample in scan_samples(dataset)]
    decoded = [sample.errors for sample in scan_samples(dataset, decode_images=True)]
    assert [len(errors) for errors in by_header] == [1, 0, 1, 0]
    assert [len(errors) for errors in decoded] == [1, 1, 1, 0]
    assert "the mask is 5 x 5" in by_header[0][0]
    assert "images/1.png: truncated or damaged" in decoded[1][0]
    with pytest.raises(SampleError, match=r"masks/2\.png"):
        ClassStatistics.from_dataset(dataset)
    skipping = SegmentationDataset(write_card(), mini_root, on_error="skip")
    assert ClassStatistics.from_dataset(skipping).num_images == 3
