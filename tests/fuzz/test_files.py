"""Damaged files: a documented error that names the file, or what the undamaged file would give."""

from __future__ import annotations

import atexit
import functools
import io
import json
import shutil
import tarfile
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from aucseg.datasets import DatasetCard, SampleError, SegmentationDataset
from aucseg.inference.predict_files import predict_paths
from aucseg.models.checkpoint import read_state_dict
from aucseg.report import build_report
from aucseg.statistics.class_statistics import ClassStatistics
from tests.datasets.conftest import MINI
from tests.fuzz.strategies import JUNK, damaged_bytes, damaged_tree, fuzzed
from tests.report.synthetic import write_run

CARD = DatasetCard.from_yaml(MINI)
FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP", "PPM", "GIF")


@functools.cache
def encoded(kind: str, file_format: str) -> bytes:
    """An image (RGB) or mask (grey) file of 12 x 16 pixels."""
    rng = np.random.default_rng(0)
    array = rng.integers(0, 256, (12, 16, 3)) if kind == "image" else rng.choice([0, 7, 8, 9, 255], (12, 16))
    file = io.BytesIO()
    Image.fromarray(array.astype(np.uint8)).save(file, file_format)
    return file.getvalue()


def files(kind: str) -> st.SearchStrategy[bytes]:
    """Damaged image files, and bytes of any kind."""
    known = st.sampled_from(FORMATS).flatmap(lambda file_format: damaged_bytes(encoded(kind, file_format)))
    return st.one_of(known, known, st.binary(max_size=64))


def check_sample(sample: dict[str, Any]) -> None:
    image, mask = sample["image"], sample["mask"]
    assert image.dtype == torch.uint8
    assert image.shape == (3, *mask.shape)
    assert set(mask.unique().tolist()) <= {0, 1, 2, 255}


# ---- cards


@fuzzed(60, damaged_tree(yaml.safe_load(MINI)))
def test_cards_with_strange_values(document: Any) -> None:
    try:
        text = yaml.safe_dump(document, allow_unicode=True)
    except (yaml.YAMLError, UnicodeError, RecursionError):
        return
    try:
        card = DatasetCard.from_yaml(text)
    except ValueError as error:
        assert str(error).startswith("card:")
        return
    assert DatasetCard.from_yaml(card.to_yaml()) == card
    assert 0 < card.num_classes == len(card.palette) == len(card.raw_ids) == len(set(card.class_names))
    assert not 0 <= card.ignore_index < card.num_classes


@fuzzed(60, damaged_bytes(MINI.encode()))
def test_cards_with_damaged_bytes(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "card.yaml")
        path.write_bytes(data)
        try:
            card = DatasetCard.load(path)
        except ValueError as error:
            assert str(path) in str(error)
            return
        assert DatasetCard.from_yaml(card.to_yaml()) == card
        with suppress(ValueError):  # no such files
            SegmentationDataset(card, folder)


# ---- data sets and shards


@fuzzed(40, files("image"), files("mask"), st.sampled_from(["error", "ignore", "apply"]))
def test_data_set(image: bytes, mask: bytes, exif: str) -> None:
    card = DatasetCard.from_yaml(MINI + f"exif: {exif}\n")
    with tempfile.TemporaryDirectory() as folder:
        for name, data in (("images", image), ("masks", mask)):
            Path(folder, name).mkdir()
            Path(folder, name, "0.png").write_bytes(data)
        dataset = SegmentationDataset(card, folder)
        try:
            sample = dataset[0]
        except SampleError as error:
            assert folder in str(error)
            return
        check_sample(sample)
        if mask == encoded("mask", "PNG"):
            raw = np.array(Image.open(io.BytesIO(mask)))
            expected = np.select([raw == 0, np.isin(raw, [7, 8]), raw == 9], [0, 1, 2], 255)
            np.testing.assert_array_equal(sample["mask"].numpy(), expected)


@functools.cache
def shard() -> bytes:
    """A shard of two samples."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for stem in ("0", "1"):
            for kind in ("image", "mask"):
                info = tarfile.TarInfo(f"{stem}.{kind}.png")
                info.size = len(encoded(kind, "PNG"))
                archive.addfile(info, io.BytesIO(encoded(kind, "PNG")))
    return file.getvalue()


@fuzzed(30, damaged_bytes(shard()), st.sampled_from(["raise", "skip"]))
def test_shards(data: bytes, on_error: str) -> None:
    streaming = pytest.importorskip("aucseg.datasets.shards")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "train.tar")
        path.write_bytes(data)
        samples = streaming.StreamedSegmentationDataset(CARD, path, on_error=on_error)
        try:
            for sample in samples:
                check_sample(sample)
        except SampleError:
            assert on_error == "raise"


# ---- statistics and checkpoints


@functools.cache
def statistics_file() -> str:
    statistics = ClassStatistics(3, class_names=["road", "car", "bird"])
    statistics.update(np.array([[0, 1, 2], [255, 0, 0]]))
    statistics.update(np.array([[1, 1, 1], [255, 0, 0]]))
    with tempfile.TemporaryDirectory() as folder:
        statistics.save(Path(folder, "stats.json"))
        return Path(folder, "stats.json").read_text()


@fuzzed(40, st.one_of(damaged_tree(json.loads(statistics_file())), damaged_bytes(statistics_file().encode())))
def test_statistics(content: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "stats.json")
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        try:
            statistics = ClassStatistics.load(path)
        except ValueError as error:
            assert str(path) in str(error)
            return
    assert np.isfinite(statistics.frequency).all()
    assert (statistics.presence <= 1).all()
    assert statistics.image_classes.shape == (statistics.num_images, statistics.num_classes)


@functools.cache
def weights_file(zipped: bool) -> bytes:
    file = io.BytesIO()
    torch.save({"state_dict": {"weight": torch.ones(2, 2)}}, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


@fuzzed(30, st.one_of(damaged_bytes(weights_file(True)), damaged_bytes(weights_file(False)), st.binary(max_size=80)))
def test_checkpoints(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "weights.pth")
        path.write_bytes(data)
        try:
            tensors = read_state_dict(path)
        except ValueError as error:
            assert str(path) in str(error)
            return
    assert all(isinstance(tensor, torch.Tensor) for tensor in tensors.values())


# ---- predict


@fuzzed(25, st.lists(files("image"), min_size=1, max_size=3), st.booleans())
def test_predict(contents: list[bytes], scores: bool) -> None:
    torch.manual_seed(0)
    model = nn.Conv2d(3, 3, 1).eval()
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, f"{i}.png") for i in range(len(contents))]
        for path, data in zip(paths, contents, strict=True):
            path.write_bytes(data)
        with torch.inference_mode():
            summary = predict_paths(
                model, paths, Path(folder, "out"), class_names=["a", "b", "c"], palette=[(0, 0, 0)] * 3,
                scores=scores, progress=False,
            )  # fmt: skip
        assert sorted([*summary.done, *summary.failures]) == paths
        assert all(summary.failures.values())
        for path in summary.done:
            with Image.open(path) as image, Image.open(Path(folder, "out", "labels", path.name)) as labels:
                assert sorted(labels.size) == sorted(image.size)  # perhaps turned, as its EXIF tag says
                assert max(np.unique(np.array(labels))) <= 2


# ---- report


@functools.cache
def good_run() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="aucseg-fuzz-"))
    atexit.register(shutil.rmtree, folder)
    return write_run(
        folder / "run", class_names=("a", "b", "c"), groups={"head": [0], "middle": [1], "tail": [2]}, step=20
    )


RUN_FILES = ("result.json", "confusion.json", "images.json", "curves.json", "metrics.csv", "config.yaml")


@fuzzed(25, st.data())
def test_report(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        run = Path(shutil.copytree(good_run(), Path(folder, "run")))
        for name in data.draw(st.lists(st.sampled_from(RUN_FILES), min_size=1, max_size=2, unique=True)):
            path = run / name
            if not path.is_file():
                continue
            if path.suffix == ".json" and data.draw(st.booleans()):
                path.write_text(json.dumps(data.draw(damaged_tree(json.loads(path.read_text())))))
            else:
                path.write_bytes(data.draw(damaged_bytes(path.read_bytes())))
        try:
            page = build_report([run], Path(folder, "report.html"))
        except ValueError as error:
            assert str(error)
            return
        text = page.read_text()
        assert "<nan" not in text.lower()
        for shown in (">nan<", '"nan', "nan%", ">inf<", "=nan", ",nan", "NaN,", ": NaN"):
            assert shown not in text, shown


@fuzzed(20, JUNK)
def test_report_of_a_json_file_that_is_another(content: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        run = Path(shutil.copytree(good_run(), Path(folder, "run")))
        (run / "result.json").write_text(json.dumps(content))
        with suppress(ValueError):
            build_report([run], Path(folder, "report.html"))
