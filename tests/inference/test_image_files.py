import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from torch import Tensor

from aucseg.datasets import DatasetCard
from aucseg.datasets.tree import IMAGE_ENDINGS
from aucseg.inference import predict_files
from aucseg.inference.image_files import ImageError, find_images, read_photo
from aucseg.inference.predict_files import output_names, predict_paths
from aucseg.inference.predictor import InferenceOptions, Predictor
from tests.datasets.files import png_of_16_bits

NAMES = ("dark", "red", "green", "blue")
PALETTE = ((0, 0, 0), (200, 0, 0), (0, 200, 0), (0, 0, 200))
Pixels = npt.NDArray[np.uint8]


def brightest_channel(images: Tensor) -> Tensor:
    """Class 0 where no channel exceeds 50, else one more than the number of the brightest one."""
    return torch.cat([torch.full_like(images[:, :1], 50), images], dim=1)


def picture(height: int = 20, width: int = 30, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def expected_labels(pixels: Pixels) -> npt.NDArray[Any]:
    labels: npt.NDArray[Any] = np.concatenate([np.full((*pixels.shape[:2], 1), 50), pixels], axis=2).argmax(axis=2)
    return labels


def save(pixels: Pixels, path: Path, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def predict(paths: list[Path], out: Path, model: Any = brightest_channel, **options: Any) -> Any:
    return predict_paths(model, paths, out, class_names=NAMES, palette=PALETTE, progress=False, **options)


def test_labels_overlays_scores_and_areas(tmp_path: Path) -> None:
    pixels = picture()
    path = save(pixels, tmp_path / "in" / "a.png")
    out = tmp_path / "out"
    summary = predict([path], out, overlays=True, opacity=0.25, scores=True)
    labels = expected_labels(pixels)

    with Image.open(out / "labels" / "a.png") as image:
        assert image.mode == "P"
        assert np.array_equal(np.array(image), labels)
        assert (image.getpalette("RGB") or [])[:12] == [value for color in PALETTE for value in color]
        assert image.info == {}
    overlay = np.array(Image.open(out / "overlays" / "a.png")).astype(float)
    assert np.abs(overlay - (0.75 * pixels + 0.25 * np.array(PALETTE)[labels])).max() <= 1
    logits = brightest_channel(torch.from_numpy(pixels).permute(2, 0, 1)[None].float())[0]
    scores = np.load(out / "scores" / "a.npy")
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, logits.softmax(0), rtol=1e-5, atol=1e-12)
    predict([path], tmp_path / "half", scores=True, score_dtype="float16")
    halves = np.load(tmp_path / "half" / "scores" / "a.npy")
    assert halves.dtype == np.float16
    np.testing.assert_allclose(halves, logits.softmax(0), atol=1e-3)

    rows = table(out / "areas.csv")
    assert {row["class"]: int(row["pixels"]) for row in rows} == {
        name: int((labels == i).sum()) for i, name in enumerate(NAMES)
    }
    assert sum(float(row["share"]) for row in rows) == pytest.approx(1, abs=1e-5)
    assert {row["image"] for row in rows} == {str(path)}
    assert summary.pixels.tolist() == [(labels == i).sum() for i in range(4)]
    assert summary.done == [path]
    assert not (out / "errors.csv").exists()
    assert sorted(p.name for p in out.iterdir()) == ["areas.csv", "labels", "overlays", "scores"]
    assert not list(out.rglob(".*"))


def test_sliding_window_and_whole_image_write_the_same(tmp_path: Path) -> None:
    path = save(picture(50, 40), tmp_path / "a.png")
    predict([path], tmp_path / "whole")
    predict([path], tmp_path / "slide", Predictor(brightest_channel, InferenceOptions(window=(16, 16))))
    assert (tmp_path / "whole/labels/a.png").read_bytes() == (tmp_path / "slide/labels/a.png").read_bytes()


def test_one_bad_file_does_not_stop_the_folder(tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    for name in ("a.png", "c.png"):
        save(picture(), folder / name)
    (folder / "b.png").write_bytes((folder / "a.png").read_bytes()[:300])
    (folder / "d.jpg").write_text("no image")
    summary = predict(find_images([folder]), out)
    assert [path.name for path in summary.done] == ["a.png", "c.png"]
    assert [path.name for path in summary.failures] == ["b.png", "d.jpg"]
    assert [Path(row["image"]).name for row in table(out / "errors.csv")] == ["b.png", "d.jpg"]
    assert sorted(path.name for path in (out / "labels").iterdir()) == ["a.png", "c.png"]
    predict([folder / "a.png"], out)
    assert not (out / "errors.csv").exists()


def test_a_failing_model_leaves_no_half_files(tmp_path: Path) -> None:
    def fails_on_wide_images(images: Tensor) -> Tensor:
        assert images.shape[-2] == 20
        if images.shape[-1] > 30:
            raise RuntimeError("out of memory")
        return brightest_channel(images)

    paths = [save(picture(20, width), tmp_path / "in" / f"{width}.png") for width in (40, 30)]
    paths.append(save(picture(10, 30), tmp_path / "in" / "low.png"))
    summary = predict(paths, tmp_path / "out", fails_on_wide_images, scores=True)
    assert summary.failures[paths[0]] == "out of memory"
    assert summary.failures.keys() == {paths[0], paths[2]}
    assert sorted(path.name for path in (tmp_path / "out").rglob("*") if path.is_file()) == [
        "30.npy", "30.png", "30.png", "areas.csv", "errors.csv",
    ]  # fmt: skip


def test_interrupted_run_keeps_what_is_finished(tmp_path: Path) -> None:
    calls = 0

    def interrupted(images: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls > 1:
            raise KeyboardInterrupt
        return brightest_channel(images)

    paths = [save(picture(), tmp_path / "in" / name) for name in ("a.png", "b.png")]
    with pytest.raises(KeyboardInterrupt):
        predict(paths, tmp_path / "out", interrupted)
    assert {Path(row["image"]).name for row in table(tmp_path / "out" / "areas.csv")} == {"a.png"}
    assert [path.name for path in (tmp_path / "out" / "labels").iterdir()] == ["a.png"]


def test_wrong_number_of_classes_is_no_bad_file(tmp_path: Path) -> None:
    path = save(picture(), tmp_path / "a.png")
    with pytest.raises(TypeError, match="the model has 3 classes, but there are names for 4"):
        predict([path], tmp_path / "out", lambda images: images)


def test_more_than_256_classes(tmp_path: Path) -> None:
    path = save(picture(), tmp_path / "a.png")

    def last_class(images: Tensor) -> Tensor:
        return torch.cat([torch.zeros(1, 299, *images.shape[-2:]), torch.ones_like(images[:, :1])], dim=1)

    predict_paths(last_class, [path], tmp_path, class_names=["x"] * 300, palette=[(1, 2, 3)] * 300, progress=False)
    assert (np.array(Image.open(tmp_path / "labels" / "a.png")) == 299).all()


def test_equal_names_do_not_collide(tmp_path: Path) -> None:
    paths = [save(picture(), tmp_path / name) for name in ("x/a.png", "y/a.png", "y/b.png", "y/b.tif")]
    predict(paths, tmp_path / "out")
    written = {p.relative_to(tmp_path / "out/labels").as_posix() for p in (tmp_path / "out/labels").rglob("*.png")}
    assert written == {"x/a.png", "y/a.png", "y/b.png.png", "y/b.tif.png"}


def test_a_name_that_is_another_ones_stem_does_not_collide(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("x.jpg", "x.png", "x.jpg.png")]
    for seed, path in enumerate(paths):
        save(picture(seed=seed), path)
    assert len(predict(paths, tmp_path / "out").done) == 3
    with Image.open(tmp_path / "out" / "labels" / "x.jpg.png.png") as image:
        assert np.array_equal(np.array(image), expected_labels(picture(seed=2)))
    assert len(list((tmp_path / "out" / "labels").iterdir())) == 3


def test_folders_above_lead_neither_to_the_images_nor_out_of_the_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else an image is taken for an earlier prediction of its own, and removed."""
    images = [save(picture(), tmp_path / name) for name in ("proj/work/photos/a.png", "raw/b.png")]
    monkeypatch.chdir(images[0].parents[1])
    predict(find_images(["photos", "../../raw"]), Path("../../out"))
    assert all(path.is_file() for path in images)
    written = sorted(p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*.png"))
    names = ["proj/work/photos/a.png", "raw/b.png"]
    assert written == [f"{folder}/{name}" for folder in ("labels", "overlays") for name in names]


@pytest.mark.parametrize("name", ["../../raw/b", "/raw/b"])
def test_a_name_that_leads_out_of_the_results_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(picture(), tmp_path / "raw/b.png")
    monkeypatch.setattr(predict_files, "output_names", lambda files: [name])
    with pytest.raises(ValueError, match=f"'{name}' cannot name a prediction: it leads out of "):
        predict([path], tmp_path / "out")
    assert path.is_file()


def test_what_an_earlier_prediction_wrote_does_not_stay_beside_a_new_one(tmp_path: Path) -> None:
    """Else `evaluate` takes the labels of one model and the scores of another."""
    paths = [save(picture(), tmp_path / f"{name}.png") for name in "ab"]
    predict(paths, tmp_path / "out", scores=True)
    predict(paths[:1], tmp_path / "out", overlays=False)
    written = sorted(p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").glob("*/*"))
    assert written == ["labels/a.png", "labels/b.png", "overlays/b.png", "scores/b.npy"]


def written(out: Path) -> list[str]:
    return sorted(p.relative_to(out).as_posix() for p in out.glob("*/**/*.*"))


def test_earlier_predictions_of_an_image_are_replaced_under_any_name(tmp_path: Path) -> None:
    """Else `evaluate` takes the old label map of the image."""
    out = tmp_path / "out"
    for name in ("train/a.png", "val/a.png", "val/=b.png"):
        save(picture(), tmp_path / "in" / name)
    predict(find_images([tmp_path / "in"]), out, overlays=False, scores=True)
    predict(find_images([tmp_path / "in/val"]), out, overlays=False)
    assert written(out) == ["labels/=b.png", "labels/a.png", "labels/train/a.png", "scores/train/a.npy"]
    assert {(row["image"], row["name"]) for row in table(out / "areas.csv")} == {
        (str(tmp_path / "in/train/a.png"), "train/a"),
        (str(tmp_path / "in/val/a.png"), "a"),
        (str(tmp_path / "in/val/=b.png"), "'=b"),
    }
    # The NAME of one image is now that of another one.
    save(picture(), tmp_path / "in/a.png")
    predict(find_images([tmp_path / "in"]), out, overlays=False)
    assert written(out) == ["labels/a.png", "labels/train/a.png", "labels/val/=b.png", "labels/val/a.png"]
    assert {row["name"] for row in table(out / "areas.csv")} == {"a", "train/a", "val/=b", "val/a"}


def test_an_interrupted_run_still_knows_what_it_did_not_come_to(tmp_path: Path) -> None:
    def stop(images: Tensor) -> Tensor:
        raise KeyboardInterrupt

    out = tmp_path / "out"
    paths = [save(picture(), tmp_path / "in" / name) for name in ("x/a.png", "x/b.png", "y.png")]
    predict(paths, out, overlays=False)
    with pytest.raises(KeyboardInterrupt):
        predict(paths[:2], out, stop)
    assert written(out) == ["labels/x/b.png", "labels/y.png"]
    assert {row["name"] for row in table(out / "areas.csv")} == {"x/b", "y"}
    predict(paths[1:2], out, overlays=False)
    assert written(out) == ["labels/b.png", "labels/y.png"]


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe", b"image,class\na,b\n", b"image,class_id,class,pixels,share,name\na"]
)
def test_a_table_that_is_not_whole_says_nothing(content: bytes, tmp_path: Path) -> None:
    path = save(picture(), tmp_path / "a.png")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/areas.csv").write_bytes(content)
    predict([path], tmp_path / "out")
    assert {row["name"] for row in table(tmp_path / "out/areas.csv")} == {"a"}


@pytest.mark.parametrize("folder", ["labels", "scores"])
def test_files_that_are_no_predictions_are_not_overwritten(folder: str, tmp_path: Path) -> None:
    path = save(picture(), tmp_path / "images" / "a.png")
    mine = save(picture(), tmp_path / folder / "a.png")
    before = mine.read_bytes()
    with pytest.raises(ValueError, match=f"{folder} has files that are not predictions"):
        predict([path], tmp_path)
    assert mine.read_bytes() == before


@pytest.mark.parametrize("ending", sorted(IMAGE_ENDINGS))
def test_a_folder_is_searched_for_every_format_that_training_takes(ending: str, tmp_path: Path) -> None:
    (tmp_path / f"a{ending}").touch()
    assert find_images([tmp_path]) == [tmp_path / f"a{ending}"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"opacity": 1.5}, "opacity"),
        ({"value_range": (5, 5)}, "value_range must be two rising numbers"),
        ({"palette": PALETTE[:2]}, "4 class names, but 2 colours"),
        ({"paths": []}, "no images"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    arguments = {"paths": [tmp_path / "a.png"], "out_dir": tmp_path, "class_names": NAMES, "palette": PALETTE}
    with pytest.raises(ValueError, match=message):
        predict_paths(brightest_channel, **{**arguments, **options})


def test_find_images(tmp_path: Path) -> None:
    paths = [save(picture(), tmp_path / name) for name in ("a.png", "sub/b.JPG", "sub/c.tif", "out/labels/a.png")]
    (tmp_path / "notes.txt").touch()
    assert find_images([tmp_path], exclude=tmp_path / "out") == paths[:3]
    assert find_images([tmp_path / "sub" / "*.tif", tmp_path / "sub"]) == [paths[2], paths[1]]
    assert find_images([str(tmp_path / "**" / "*.png")]) == [paths[0], paths[3]]
    (tmp_path / "empty").mkdir()
    for nothing in ("empty", "absent.png", "*.gif"):
        with pytest.raises(FileNotFoundError, match="no image found for"):
            find_images([tmp_path / nothing])


def test_a_file_of_two_spellings_is_found_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(picture(), tmp_path / "in/a.png")
    monkeypatch.chdir(path.parent)
    assert find_images(["a.png", path, "../in/*.png", tmp_path]) == [Path("a.png")]
    # "linked/.." is the folder of what the link leads to.
    inner = save(picture(), tmp_path / "store/a.png")
    (tmp_path / "store/sub").mkdir()
    (tmp_path / "in/linked").symlink_to(tmp_path / "store/sub")
    found = find_images(["a.png", "linked/../a.png", inner])
    assert found == [Path("a.png"), Path("linked/../a.png")]
    assert output_names(found) == ["in/a", "store/a"]


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp", "webp"])
def test_lossless_formats(suffix: str, tmp_path: Path) -> None:
    pixels = picture()
    path = save(pixels, tmp_path / f"a.{suffix}", **({"lossless": True} if suffix == "webp" else {}))
    assert np.array_equal(read_photo(path), pixels)


def test_jpeg_with_metadata_is_turned_as_shown(tmp_path: Path) -> None:
    pixels = np.zeros((16, 32, 3), dtype=np.uint8)
    pixels[:, 16:, 0] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010F] = "Maker"
    path = save(pixels, tmp_path / "a.jpg", exif=exif, quality=95, dpi=(300, 300), comment=b"a note")
    assert read_photo(path).shape == (32, 16, 3)
    assert np.abs(read_photo(path, exif="ignore").astype(int) - pixels).mean() < 3
    predict([path], tmp_path / "out")
    with Image.open(tmp_path / "out" / "labels" / "a.png") as labels:
        assert labels.info == {}
        assert labels.size == (16, 32)


def test_modes(tmp_path: Path) -> None:
    pixels = picture()
    gray = pixels[..., 0]
    for mode in ("L", "P", "RGBA", "LA", "1", "CMYK"):
        image = Image.fromarray(pixels).convert(mode)
        image.save(tmp_path / f"{mode}.tif")
        assert np.array_equal(read_photo(tmp_path / f"{mode}.tif"), np.array(image.convert("RGB"))), mode
    transparent = Image.fromarray(gray).convert("P")
    transparent.save(tmp_path / "t.png", transparency=b"\x00\x80")
    assert np.array_equal(read_photo(tmp_path / "t.png")[..., 0], gray)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits(suffix: str, tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 65536, (20, 30), dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / f"a.{suffix}")
    pixels = read_photo(tmp_path / f"a.{suffix}")
    assert pixels.shape == (20, 30, 3)
    assert np.array_equal(pixels[..., 1], np.round(values / 257).astype(np.uint8))
    narrow = read_photo(tmp_path / f"a.{suffix}", value_range=(1000, 4095))
    assert np.array_equal(narrow[..., 0], np.round(((values - 1000.0) / 3095).clip(0, 1) * 255).astype(np.uint8))


def test_sixteen_bit_colors(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 65536, (20, 30, 3), dtype=np.uint16)
    (tmp_path / "a.png").write_bytes(png_of_16_bits(values))
    assert np.array_equal(read_photo(tmp_path / "a.png"), np.round(values / 257).astype(np.uint8))
    # Data of 12 bits: refused, or scaled by the range that is stated.
    (tmp_path / "b.png").write_bytes(png_of_16_bits((values >> 4).astype(np.uint16)))
    with pytest.raises(ImageError, match=r"b\.png: values from \d+ to 40\d\d; say which of them are black and white"):
        read_photo(tmp_path / "b.png")
    scaled = read_photo(tmp_path / "b.png", value_range=(0, 4095))
    assert np.array_equal(scaled, np.round((values >> 4) * (255 / 4095)).astype(np.uint8))


def test_values_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    values = np.zeros((20, 30), np.float32)
    values[3, 4] = np.nan
    Image.fromarray(values).save(tmp_path / "a.tif")
    with pytest.raises(ImageError, match="not numbers"):
        read_photo(tmp_path / "a.tif", value_range=(0, 1))


def test_a_range_that_does_not_apply_is_told(tmp_path: Path) -> None:
    path = save(picture(), tmp_path / "in/a.png")
    Image.fromarray(np.full((20, 30), 300, np.uint16)).save(tmp_path / "in/b.png")
    summary = predict(find_images([tmp_path / "in"]), tmp_path / "out", value_range=(0, 1000))
    assert summary.unscaled == [path]
    assert len(summary.done) == 2


def test_hidden_files_are_no_images(tmp_path: Path) -> None:
    path = save(picture(), tmp_path / ".cache/in/a.png")
    folder = path.parent
    for name in ("._a.png", ".b.png", "@eaDir/a.png", ".git/c.png"):
        save(picture(), folder / name)
    (folder / "Thumbs.db").write_bytes(b"")
    assert find_images([folder]) == [path]
    assert find_images([f"{folder}/**/*"]) == [path]
    # As a shell expands "in/*".
    assert find_images([path, folder / "._a.png", folder / "Thumbs.db"]) == [path]
    with pytest.raises(FileNotFoundError):
        find_images([folder / ".git/*.jpg"])


def test_float_images_need_a_range(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random((20, 30), dtype=np.float32)
    Image.fromarray(values).save(tmp_path / "a.tif")
    with pytest.raises(ImageError, match="value_range"):
        read_photo(tmp_path / "a.tif")
    assert np.array_equal(read_photo(tmp_path / "a.tif", value_range=(0, 1))[..., 0], (values * 255).round())


def test_images_beyond_the_limit_are_refused(tmp_path: Path) -> None:
    path = save(picture(100, 100), tmp_path / "a.png")
    with pytest.raises(ImageError, match="more than 9999 pixels"):
        read_photo(path, max_pixels=9999)
    assert read_photo(path, max_pixels=10_000).shape == (100, 100, 3)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"absent\.png"):
        read_photo(tmp_path / "absent.png")


def test_a_link_to_nowhere_is_a_failure_and_not_passed_over(tmp_path: Path) -> None:
    save(picture(), tmp_path / "in" / "a.png")
    (tmp_path / "in" / "dead.jpg").symlink_to("nowhere.jpg")
    found = find_images([tmp_path / "in"])
    assert [path.name for path in found] == ["a.png", "dead.jpg"]
    assert find_images([tmp_path / "in" / "*.jpg"]) == find_images([tmp_path / "in" / "dead.jpg"]) == found[1:]
    with pytest.raises(ImageError, match=r"dead\.jpg: a symbolic link to nowhere\.jpg, where there is no file"):
        read_photo(found[1])


@pytest.mark.filterwarnings("ignore:Dataset has no geotransform")
def test_bands_that_are_no_colours_are_counted(tmp_path: Path) -> None:
    rasterio = pytest.importorskip("rasterio")
    path = tmp_path / "five.tif"
    with rasterio.open(path, "w", driver="GTiff", height=8, width=6, count=5, dtype="uint8") as file:
        file.write(np.zeros((5, 8, 6), np.uint8))
    with pytest.raises(ImageError, match=r"five\.tif: 5 bands of uint8, which are not read as colours: .*'bands:'"):
        read_photo(path)
    (tmp_path / "broken.tif").write_bytes(b"broken")
    with pytest.raises(ImageError, match=r"broken\.tif: not a readable image"):
        read_photo(tmp_path / "broken.tif")


def test_folders_behind_links_are_searched_once(tmp_path: Path) -> None:
    for place in ("store/0.png", "photos/a/1.png"):
        save(np.zeros((4, 4, 3), np.uint8), tmp_path / place)
    (tmp_path / "photos/linked").symlink_to(tmp_path / "store")
    (tmp_path / "photos/again").symlink_to(tmp_path / "store")
    (tmp_path / "photos/up").symlink_to(tmp_path / "photos")
    found = find_images([tmp_path / "photos"])
    assert [path.name for path in found] == ["1.png", "0.png"]


@pytest.mark.parametrize(
    ("says", "given", "turned"), [("ignore", None, False), ("error", None, True), ("ignore", "apply", True)]
)
def test_photographs_are_turned_as_in_training(tmp_path: Path, says: str, given: Any, turned: bool) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = save(np.zeros((8, 6, 3), np.uint8), tmp_path / "a.jpg", exif=exif)
    card = replace(DatasetCard.load("freedoom_lt"), exif=says)
    predict([path], tmp_path / "out", card=card, exif=given)
    with Image.open(tmp_path / "out/labels/a.png") as labels:
        assert labels.size == ((8, 6) if turned else (6, 8))
