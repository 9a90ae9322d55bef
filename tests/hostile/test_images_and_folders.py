"""Images, folders and shards of strangers: none is decoded without bounds, and none leads out of its folder."""

import io
import json
import struct
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch import nn

from aucseg.datasets import DatasetCard, SampleError, SegmentationDataset
from aucseg.inference.image_files import find_images
from aucseg.inference.predict_files import predict_paths
from tests.datasets.conftest import MINI


def png_bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims to be large."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("what", ["images", "masks"])
def test_image_bombs_are_refused_by_their_header(what: str, tmp_path: Path) -> None:
    card = DatasetCard.from_yaml(MINI)
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
        Image.fromarray(np.zeros((4, 4), np.uint8)).convert("L").save(tmp_path / folder / "0.png")
    (tmp_path / what / "0.png").write_bytes(png_bomb(10**9, 10**9))
    with pytest.raises(SampleError, match=rf"{what}/0\.png: .*exceeds limit"):
        SegmentationDataset(card, tmp_path)[0]


def test_predict_refuses_image_bombs_and_goes_on(tmp_path: Path) -> None:
    (tmp_path / "bomb.png").write_bytes(png_bomb(10**9, 10**9))
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "good.png")
    summary = predict_paths(
        nn.Conv2d(3, 2, 1).eval(), sorted(tmp_path.glob("*.png")), tmp_path / "out", class_names=["a", "b"],
        palette=[(0, 0, 0), (1, 1, 1)], progress=False,
    )  # fmt: skip
    assert [path.name for path in summary.done] == ["good.png"]
    assert "more than 1073741824 pixels" in summary.failures[tmp_path / "bomb.png"]


@pytest.mark.parametrize(
    "pattern", ["../images/*.png", "/etc/*", "~/x/*.png", "a/../../b/*.png", "c:/x/*.png", "a\\\\..\\\\b.png"]
)
@pytest.mark.parametrize("key", ["images", "masks", "list"])
def test_patterns_stay_below_the_root(key: str, pattern: str) -> None:
    layout = {"images": "images/{stem}.png", "masks": "masks/{stem}.png", "list": "train.txt", key: pattern}
    text = MINI.replace('{images: "images/*.png", masks: "masks/{stem}.png"}', json.dumps(layout))
    with pytest.raises(ValueError, match="must stay below the root folder"):
        DatasetCard.from_yaml(text)


def test_loops_of_links_end(tmp_path: Path) -> None:
    card = DatasetCard.from_yaml(MINI.replace("images/*.png", "images/**/*.png"))
    for folder in ("images/deep", "masks"):
        (tmp_path / folder).mkdir(parents=True)
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "images/deep/0.png")
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "masks/0.png")
    for name in "abc":  # with plain globbing 3 ** 40 paths
        (tmp_path / "images" / name).symlink_to(".")
    assert find_images([str(tmp_path / "**" / "0.png")]) == sorted(tmp_path.rglob("0.png"))
    assert [pair.image for pair in SegmentationDataset(card, tmp_path).pairs] == ["images/deep/0.png"]


def test_shards_write_nothing_and_their_names_lead_nowhere(tmp_path: Path) -> None:
    streaming = pytest.importorskip("aucseg.datasets.shards")
    png = io.BytesIO()
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(png, "PNG")
    mask = io.BytesIO()
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(mask, "PNG")
    with tarfile.open(tmp_path / "train.tar", "w") as archive:
        for stem in ("../../outside", "/tmp/absolute"):
            for ending, data in (("image.png", png.getvalue()), ("mask.png", mask.getvalue())):
                info = tarfile.TarInfo(f"{stem}.{ending}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
        for kind, name in ((tarfile.SYMTYPE, "link.image.png"), (tarfile.LNKTYPE, "hard.image.png")):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
    before = sorted(tmp_path.parent.rglob("*"))
    samples = list(streaming.StreamedSegmentationDataset(DatasetCard.from_yaml(MINI), tmp_path / "train.tar"))
    assert [sample["image"].shape for sample in samples] == [(3, 4, 4)] * 2
    assert sorted(tmp_path.parent.rglob("*")) == before
    with pytest.raises(ValueError, match="would run a command of the shell"):
        streaming.StreamedSegmentationDataset(DatasetCard.from_yaml(MINI), "pipe:touch /tmp/x")
