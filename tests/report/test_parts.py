"""Charts, pictures, the figure, and the choice and prediction of examples."""

from __future__ import annotations

import base64
import io
import json
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from aucseg.metrics.class_bars import draw_class_bars
from aucseg.report import Example, Paste, collect_examples, collect_pastes, readme_figure
from aucseg.report.charts import (
    NUM_STYLES,
    bar_chart,
    beside_each_other,
    line_chart,
    marker,
    nice_ticks,
    roc_points,
    thin,
)
from aucseg.report.compared_runs import load_comparison
from aucseg.report.encode import labels_uri, outline_uri, photo_uri
from aucseg.report.examples import choose_names, rank_by_gain
from aucseg.report.runs import read_run
from aucseg.training.stored_task import run_configuration
from tests.report.synthetic import class_counts, example, examples, scene, write_run


def _decode(uri: str) -> NDArray[np.uint8]:
    picture = Image.open(io.BytesIO(base64.b64decode(uri.split(",", 1)[1])))
    return np.asarray(picture.convert("RGBA"))


def test_labels_keep_their_colours_and_ignored_pixels_are_transparent() -> None:
    palette = [(1, 2, 3), (200, 100, 50), (0, 255, 0)]
    labels = np.array([[0, 1, 1], [2, 255, -1]])
    rgba = _decode(labels_uri(labels, palette))
    for (row, column), label in np.ndenumerate(labels):
        if 0 <= label < 3:
            assert tuple(rgba[row, column]) == (*palette[label], 255)
        else:
            assert rgba[row, column, 3] == 0


def test_large_pictures_shrink_and_labels_are_not_mixed() -> None:
    labels = np.zeros((900, 1200), np.int64)
    labels[:, 601:] = 1
    rgba = _decode(labels_uri(labels, [(0, 0, 0), (200, 0, 0)], max_side=300))
    assert rgba.shape == (225, 300, 4)
    assert set(np.unique(rgba[..., 0])) == {0, 200}
    assert _decode(photo_uri(np.zeros((900, 1200, 3), np.uint8), max_side=300)).shape == (225, 300, 4)


def test_more_classes_in_a_picture_than_a_palette_holds() -> None:
    labels = np.arange(300).reshape(15, 20)
    palette = [(i % 256, i // 256, 7) for i in range(300)]
    rgba = _decode(labels_uri(labels, palette))
    assert rgba[..., :3].reshape(-1, 3).tolist() == [list(color) for color in palette]


def test_outline_surrounds_the_region() -> None:
    region = np.zeros((20, 30), bool)
    region[8:12, 10:15] = True
    alpha = _decode(outline_uri(region, max_side=30))[..., 3] > 0
    assert not alpha[region].any()
    assert alpha[7, 12]
    assert alpha[12, 12]
    assert not alpha[0, 0]
    assert alpha.sum() == 10 * 11 - 4 * 5  # a ring three pixels wide: two bright, one dark


def test_seven_runs_have_seven_marks_and_none_hides_another() -> None:
    shapes = {str(marker(style, 0.0, 0.0)).replace(f"m{style}", "m") for style in range(NUM_STYLES)}
    assert len(shapes) == NUM_STYLES == 7
    svg = str(line_chart([(i, "abc"[i], [(0.0, 0.5), (9.0, 0.5)]) for i in range(3)], label="x", x_label="step"))
    assert svg.count('class="line m0"') == 1
    assert svg.count(" over") == 2  # dashed over an equal line
    heights = [10.0, 10.0, 50.0, 12.0, 90.0, 52.0]
    shifts = beside_each_other(heights, 5.0, 60.0)
    places = [complex(x, y) for x, y in zip(shifts, heights, strict=True)]
    assert min(abs(a - b) for i, a in enumerate(places) for b in places[:i]) >= 9
    assert shifts[4] == 0


@pytest.mark.parametrize("values", [(0.25, 0.5), (-0.5, 0.25), (0.0, 0.0)])
def test_bars_begin_at_zero(values: tuple[float, float]) -> None:
    svg = str(bar_chart([(i, f"run {i}", value) for i, value in enumerate(values)], label="x"))
    assert "nan" not in svg
    heights = [float(height) for height in re.findall(r'height="([\d.]+)" class="column', svg)]
    assert heights[0] * abs(values[1]) == pytest.approx(heights[1] * abs(values[0]), rel=0.01)


def test_ticks_are_round_and_inside() -> None:
    for low, high in ((0.0, 1.0), (0.001, 0.0123), (-3.0, 812.0), (5.0, 5.0)):
        ticks = nice_ticks(low, high)
        assert 1 <= len(ticks) <= 7
        assert all(low - 1e-9 <= tick <= high + 1e-9 for tick in ticks)


def test_roc_points_lie_on_the_curve_whatever_its_direction() -> None:
    fpr, tpr = [0.0, 0.0, 0.1, 1.0], [0.0, 0.4, 0.8, 1.0]
    for direction in (1, -1):
        line = dict(roc_points(fpr[::direction], tpr[::direction], 1e-2))
        assert line[min(line)] == pytest.approx(0.4 + 0.4 * 0.1)
        assert max(line.items()) == (1.0, 1.0)


def test_thinning_keeps_the_mean() -> None:
    line = [(float(i), float(i % 7)) for i in range(1200)]
    thinned = thin(line, most=100)
    assert len(thinned) == 100
    assert np.mean([y for _, y in thinned]) == pytest.approx(np.mean([y for _, y in line]))


def test_line_of_one_point_is_drawn() -> None:
    svg = line_chart([(0, "a", [(10.0, 0.0)])], label="x", x_label="step")
    assert "nan" not in svg
    assert "circle" in svg


def test_steps_begin_at_zero_and_no_number_is_cut_off() -> None:
    svg = str(line_chart([(0, "a", [(1000.0, 0.0)])], label="x", x_label="step"))
    assert '<text x="44" y="191" class="tick mid">0<' in svg
    assert '<text x="339" y="191" class="tick end">1,000<' in svg


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_readme_figure(tmp_path: Path, suffix: str) -> None:
    titles = ("CE", "AUCSeg")
    runs = [write_run(tmp_path / "a"), write_run(tmp_path / "b", strength=1.0)]
    samples = examples(titles)[:2]
    out = readme_figure(
        runs, tmp_path / "new" / f"figure{suffix}", titles=titles, samples=samples, statistics=class_counts(), dpi=40
    )
    if suffix == ".png":
        alone = readme_figure(runs, tmp_path / "alone.png", dpi=40)
        with Image.open(out) as with_strip, Image.open(alone) as without:
            assert with_strip.width == without.width
            assert with_strip.height > without.height + 50
    else:
        assert out.read_text().startswith("<?xml")


def test_figures_take_any_class_name(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    names = ("cost $\\foo$", "$5", "a name so long that no axis would have room for it, were it written in full")
    run = write_run(tmp_path / "a", class_names=names, groups=None)
    assert readme_figure([run], tmp_path / "a.png", dpi=40).is_file()
    draw_class_bars([0.1, 0.2, 0.3], names, {}, "IoU")[0].savefig(tmp_path / "bars.png", dpi=40)
    assert [str(warning.message) for warning in recwarn] == []


@pytest.mark.parametrize("name", ["a.xyz", "a"])
def test_figure_of_no_known_ending_is_refused(name: str, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    with pytest.raises(ValueError, match=r"a figure is written as one of .*png.*, by the ending of its name"):
        readme_figure([run], tmp_path / name)


def test_readme_figure_needs_a_validation(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", parts=("metrics",))
    with pytest.raises(ValueError, match=r"no run has result\.json"):
        readme_figure([run], tmp_path / "a.png")


@pytest.mark.parametrize(
    "wrong",
    [{"image": np.zeros((4, 4, 3))}, {"truth": np.zeros((4, 5), int)}, {"predictions": {"a": np.zeros((4, 4))}}],
)
def test_wrong_arrays_are_refused(wrong: dict[str, Any]) -> None:
    arrays: dict[str, Any] = {"image": np.zeros((4, 4, 3), np.uint8), "truth": np.zeros((4, 4), int), "predictions": {}}
    with pytest.raises(ValueError, match="'x'"):
        Example("x", **(arrays | wrong))
    with pytest.raises(ValueError, match="'x'"):
        Paste("x", np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4, 3), np.uint8), np.zeros((3, 4), bool))


def _with_images(folder: Path, images: dict[str, Any], strength: float) -> Path:
    write_run(folder, strength=strength)
    (folder / "images.json").write_text(json.dumps(images))
    return folder


def test_images_are_ranked_by_the_gain_of_their_mean_iou(tmp_path: Path) -> None:
    before = {"same": {"0": [5, 10]}, "worse": {"0": [10, 10]}, "better": {"0": [0, 10]}, "blank": {"0": [0, 0]}}
    after = {
        "same": {"0": [5, 10]},
        "worse": {"0": [10, 10], "3": [0, 4]},
        "better": {"0": [10, 10]},
        "new": {"0": [1, 1]},
    }
    folders = [_with_images(tmp_path / "a", before, 0.0), _with_images(tmp_path / "b", after, 1.0)]
    ranked = rank_by_gain(*map(read_run, folders))
    assert ranked == [(-0.5, "worse"), (0.0, "same"), (1.0, "better")]
    names = ["same", "worse", "better", "blank", "new"]
    chosen = choose_names(load_comparison(folders), names, num_gain=2, num_loss=2, num_samples=2)
    assert chosen == {"same": "sample", "new": "sample"}  # the two were validated on different images
    after["blank"] = after.pop("new")
    folders[1] = _with_images(tmp_path / "c", after, 1.0)
    chosen = choose_names(load_comparison(folders), names, num_gain=2, num_loss=2, num_samples=2)
    assert chosen == {"better": "gain", "worse": "loss", "same": "sample", "new": "sample"}


class _Task:
    """Predicts a fixed class at half resolution, or with a bank paints a corner."""

    def __init__(self, class_id: int, bank: Any) -> None:
        self.class_id, self.bank = class_id, bank

    def eval(self) -> _Task:
        return self

    def evaluation_logits(self, images: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros(len(images), 21, images.shape[2] // 2, images.shape[3] // 2)
        logits[:, self.class_id] = 1
        return logits


class _Bank:
    def train(self) -> _Bank:
        return self

    def __call__(self, images: torch.Tensor, masks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        images, masks = images.clone(), masks.clone()
        images[0, :, 50:60, 50:70], masks[0, 50:60, 50:70] = 250, 15
        return images, masks


@pytest.fixture
def trained_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Two run folders with checkpoints; task and data are stand-ins."""
    names = [f"{i}.jpg" for i in range(8)]
    images = [{name: {"0": [5 + sign * i, 10]} for i, name in enumerate(names[:4])} for sign in (0, 1)]
    folders = [_with_images(tmp_path / title, image, strength) for title, image, strength in
               zip(("ce", "ours"), images, (0.0, 1.0), strict=True)]  # fmt: skip
    banks = {"ce": (3, None), "ours": (7, _Bank())}
    for folder in folders:
        (folder / "checkpoints").mkdir()
        (folder / "checkpoints" / "last.ckpt").touch()

    class Dataset(list[dict[str, Any]]):
        pairs = [SimpleNamespace(name=name) for name in names]  # noqa: RUF012
        card = "freedoom_lt"

    def dataset(transform: str) -> Dataset:
        items = []
        for i, name in enumerate(names):
            image, mask = scene(i)
            items.append(
                {"image": torch.from_numpy(image).permute(2, 0, 1), "mask": torch.from_numpy(mask), "name": name}
            )
        return Dataset(items)

    def data_module(run: Path, root: str | None = None, **changes: Any) -> Any:
        assert (run_configuration(run)["data"], root, changes) == ({"card": "freedoom_lt"}, None, {})
        return SimpleNamespace(
            validation_dataset=lambda transform: dataset({"evaluation": "val"}[transform]),
            training_dataset=lambda transform: dataset({"training": "train"}[transform]),
            evaluation_transform="evaluation", training_transform="training", batch_size=4, card="freedoom_lt",
        )  # fmt: skip

    def load(card: str, path: Path, map_location: str) -> _Task:
        assert card == "freedoom_lt"
        return _Task(*banks[path.name])

    stand_ins: dict[str, dict[str, Any]] = {
        "aucseg.training.stored_task": {"load_task_for": load, "data_module_of": data_module},
    }
    for module, objects in stand_ins.items():
        fake = ModuleType(module)
        vars(fake).update(objects)
        monkeypatch.setitem(sys.modules, module, fake)
    return folders


def test_examples_hold_what_each_run_predicts(trained_runs: list[Path]) -> None:
    made = collect_examples(trained_runs, num_gain=2, num_loss=1, num_samples=3)
    assert [(e.name, e.role) for e in made] == [
        ("3.jpg", "gain"), ("2.jpg", "gain"), ("0.jpg", "sample"), ("4.jpg", "sample"), ("7.jpg", "sample"),
    ]  # fmt: skip
    for one in made:
        image, truth = scene(int(one.name[0]))
        np.testing.assert_array_equal(one.image, image)
        np.testing.assert_array_equal(one.truth, truth)
        assert set(np.unique(one.predictions["ce"])) == {3}
        assert set(np.unique(one.predictions["ours"])) == {7}


def test_pastes_show_where_the_bank_changed_an_image(trained_runs: list[Path]) -> None:
    state = torch.get_rng_state()
    made = collect_pastes(trained_runs[1], num_images=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert len(made) == 2
    for paste in made:
        assert paste.pasted.sum() == 200
        assert paste.pasted[50:60, 50:70].all()
        assert 15 in paste.class_ids
        assert (paste.after[paste.pasted] == 250).all()
    assert collect_pastes(trained_runs[0]) == []


def test_runs_without_checkpoint_or_configuration(tmp_path: Path, trained_runs: list[Path]) -> None:
    bare = write_run(tmp_path / "bare")
    with pytest.raises(ValueError, match="no run has a checkpoint"):
        collect_examples([bare])
    with pytest.raises(ValueError, match="no checkpoint"):
        collect_pastes(bare)
    (trained_runs[1] / "config.yaml").unlink()
    with pytest.raises(ValueError, match="does not say on which data"):
        collect_pastes(trained_runs[1])


def test_mean_iou_of_an_example_is_one_for_the_truth() -> None:
    made = example("a", ("x",), 1)
    perfect = Example("a", made.image, made.truth, {"x": made.truth})
    assert perfect.mean_iou("x", 21) == 1.0
    assert (made.mean_iou("x", 21) or 1.0) < 1.0
