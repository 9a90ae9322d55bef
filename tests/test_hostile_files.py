"""Files of strangers: nothing in them is run, imported or unfolded, and none leads out of its folder."""

import csv
import io
import json
import pickle
import struct
import sys
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import nn

from aucseg import cli
from aucseg.class_statistics import ClassStatistics
from aucseg.datasets import DatasetCard, SampleError, SegmentationDataset
from aucseg.memory_bank import TailMemoryBank
from aucseg.models import build_model, load_checkpoint, load_encoder_checkpoint
from aucseg.models.checkpoint import read_state_dict
from aucseg.models.hub import HubModel
from aucseg.predict import find_images, predict_paths
from aucseg.report import build_report
from aucseg.report.collect import read_run
from aucseg.statistics_report import make_report, write_csv
from aucseg.stored_task import load_task
from aucseg.task import SegmentationTask
from tests.datasets.conftest import MINI
from tests.report.synthetic import write_run

MODEL = {"encoder": "resnet18", "decoder_pyramid_channels": 32, "decoder_segmentation_channels": 32}


class Bomb:
    """Unpickling it makes a folder."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.mkdir, (self.marker,)


def pickled(content: Any, path: Path) -> None:
    path.write_bytes(pickle.dumps(content))


def zipped(content: Any, path: Path) -> None:
    torch.save(content, path)


def legacy(content: Any, path: Path) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


WRITERS = [pickled, zipped, legacy]


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "code_was_run"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, tiny_card: Path) -> dict[str, Any]:
    """What a checkpoint of 'aucseg fit' holds, as far as loading needs it."""
    torch.manual_seed(0)
    task = SegmentationTask(str(tiny_card), "smp/fpn", MODEL, bank={"min_pixels": 1})
    return {
        "state_dict": task.state_dict(),
        "hyper_parameters": dict(task.hparams),
        "pytorch-lightning_version": "2.6.0",
        "global_step": 1,
        "epoch": 0,
    }


@pytest.mark.parametrize("write", WRITERS)
def test_the_bomb_goes_off_where_nothing_is_done_against_it(write: Any, marker: Path, tmp_path: Path) -> None:
    write({"state_dict": {"weight": Bomb(marker)}}, tmp_path / "bomb.pth")
    torch.load(tmp_path / "bomb.pth", weights_only=False) if write is not pickled else pickle.loads(
        (tmp_path / "bomb.pth").read_bytes()
    )
    assert marker.is_dir()


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize(
    "load",
    [
        read_state_dict,
        lambda path: load_checkpoint(nn.Linear(2, 1), path, strict=False),
        lambda path: load_encoder_checkpoint(build_model("smp/fpn", 4, **MODEL), path, strict=False),
        lambda path: build_model("segnext/tiny", 4, encoder_weights=path),
        load_task,
    ],
    ids=["read_state_dict", "load_checkpoint", "load_encoder_checkpoint", "encoder_weights", "load_task"],
)
def test_weights_run_no_code(write: Any, load: Callable[[Path], Any], marker: Path, tmp_path: Path) -> None:
    path = tmp_path / "bomb.pth"
    write({"state_dict": {"weight": torch.ones(1, 2), "bias": Bomb(marker)}, "hyper_parameters": {}}, path)
    with pytest.raises(ValueError, match=r"bomb\.pth (holds other objects|is no readable checkpoint)"):
        load(path)
    assert not marker.exists()


def test_a_pickle_named_safetensors_runs_no_code(marker: Path, tmp_path: Path) -> None:
    pickled(Bomb(marker), tmp_path / "bomb.safetensors")
    with pytest.raises(ValueError, match="no readable safetensors file"):
        read_state_dict(tmp_path / "bomb.safetensors")
    assert not marker.exists()


def run_folder(folder: Path, checkpoint: dict[str, Any], card: Path) -> Path:
    """The run folder of a stranger."""
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    torch.save(checkpoint, folder / "checkpoints" / "last.ckpt")
    config = {"data": {"card": str(card), "root": str(card.parent), "num_workers": 0}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


@pytest.mark.parametrize(
    ("command", "place"),
    [
        *(("predict", place) for place in ("hyper_parameters", "state_dict", "callbacks")),
        *(("export", "hyper_parameters"), ("fit", "callbacks"), ("validate", "hyper_parameters")),
    ],
)
def test_commands_run_no_code_of_a_checkpoint(
    command: str,
    place: str,
    checkpoint: dict[str, Any],
    marker: Path,
    tmp_path: Path,
    tiny_card: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bad = {**checkpoint, place: {**checkpoint.get(place, {}), "model": Bomb(marker)}}
    run = run_folder(tmp_path / "run", bad, tiny_card)
    path = str(run / "checkpoints" / "last.ckpt")
    arguments = {
        "predict": [str(run), str(tiny_card.parent / "images" / "val"), "--out", str(tmp_path / "out")],
        "export": [str(run), "--to", str(tmp_path / "model.onnx")],
    }
    lightning = [
        *("--model.model", "smp/fpn", "--model.model_options", json.dumps(MODEL), "--data.num_workers", "0"),
        *("--data.card", str(tiny_card), "--data.root", str(tiny_card.parent), "--out", str(tmp_path / "new")),
        *("--trainer.max_steps", "1", "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"),
        *("--ckpt_path", path),
    ]
    assert cli.main([command, *arguments.get(command, lightning)]) == 2
    assert "last.ckpt" in capsys.readouterr().err
    assert not marker.exists()


def test_a_report_of_a_strangers_run_runs_no_code(
    checkpoint: dict[str, Any], marker: Path, tmp_path: Path, tiny_card: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = DatasetCard.load(tiny_card).class_names
    run = write_run(tmp_path / "run", class_names=tuple(names), groups=None, image_names=("val/000.png",))
    bad = {**checkpoint, "hyper_parameters": {**checkpoint["hyper_parameters"], "model": Bomb(marker)}}
    run_folder(run, bad, tiny_card)
    assert cli.main(["report", str(run), "--out", str(tmp_path / "report.html")]) == 1
    assert "pictures are left out" in (told := capsys.readouterr().err)
    assert "last.ckpt" in told
    assert (tmp_path / "report.html").is_file()
    assert not marker.exists()


@pytest.mark.parametrize("name", ["hostile_module:build", "hostile_module:build/x", "torch.hub:load"])
def test_a_checkpoint_does_not_choose_what_is_imported(
    name: str,
    checkpoint: dict[str, Any],
    marker: Path,
    tmp_path: Path,
    tiny_card: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    code = f"import pathlib\npathlib.Path({str(marker)!r}).mkdir()\ndef build(num_classes, **options): ...\n"
    for file in ("hostile_module.py", "hubconf.py"):
        (tmp_path / file).write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "hostile_module", raising=False)
    options = {"repo_or_dir": str(tmp_path), "model": "build", "source": "local"}
    settings = {**checkpoint["hyper_parameters"], "model": name, "model_options": options}
    run = run_folder(tmp_path / "run", {**checkpoint, "hyper_parameters": settings}, tiny_card)
    with pytest.raises(ValueError, match=r"It is not imported, because that runs code.*AUCSEG_TRUST_FILES=1"):
        load_task(run)
    (tmp_path / "hub").mkdir()
    config = {"name": name, "class_names": ["a"], "palette": [[0, 0, 0]], "pixel_mean": [0.0], "pixel_std": [1.0]}
    (tmp_path / "hub" / "config.json").write_text(json.dumps({**config, "options": options}))
    with pytest.raises(ValueError, match="It is not imported, because that runs code"):
        HubModel.from_pretrained(tmp_path / "hub")
    assert not marker.exists()
    # The same file does harm where the user vouches for it: the test above is no empty one.
    monkeypatch.setenv("AUCSEG_TRUST_FILES", "1")
    with pytest.raises((ValueError, ImportError)):
        load_task(run)
    assert marker.exists()


def test_the_settings_in_a_checkpoint_do_not_override_the_users(
    checkpoint: dict[str, Any], tmp_path: Path, tiny_card: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {**checkpoint["hyper_parameters"], "model": "hostile_module:build"}
    run = run_folder(tmp_path / "run", {**checkpoint, "hyper_parameters": settings}, tiny_card)
    out = tmp_path / "out"
    status = cli.main([
        *("validate", "--model.model", "smp/fpn", "--model.model_options", json.dumps(MODEL)),
        *("--model.bank", '{"min_pixels": 1}', "--data.num_workers", "0", "--data.card", str(tiny_card)),
        *("--data.root", str(tiny_card.parent), "--out", str(out), "--trainer.accelerator", "cpu"),
        *("--trainer.enable_progress_bar", "false", "--ckpt_path", str(run / "checkpoints" / "last.ckpt")),
    ])  # fmt: skip
    assert status == 0, capsys.readouterr().err
    assert (out / "result.json").is_file()


def test_remote_code_of_a_model_folder_is_not_run(tmp_path: Path) -> None:
    config = {"model_type": "segformer", "trust_remote_code": True, "auto_map": {"AutoConfig": "hostile.Config"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "hostile.py").write_text("raise SystemExit('code was run')")
    with pytest.raises(ValueError, match="trust_remote_code"):
        build_model(f"hf/{tmp_path}", 4, trust_remote_code=True)


def test_old_torch_is_not_relied_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"weight": torch.ones(1)}, tmp_path / "weights.pth")
    monkeypatch.setattr(torch, "__version__", "2.5.1+cpu")
    with pytest.raises(ValueError, match="CVE-2025-32434"):
        read_state_dict(tmp_path / "weights.pth")
    monkeypatch.setenv("AUCSEG_TRUST_FILES", "1")
    assert torch.equal(read_state_dict(tmp_path / "weights.pth")["weight"], torch.ones(1))


def test_a_bank_from_a_file_is_checked_before_it_is_used() -> None:
    bank = TailMemoryBank([1], 2, min_pixels=1, sample_ratio=1.0, scope="image")
    masks = torch.zeros(1, 4, 4, dtype=torch.uint8)
    masks[0, 1, 1:3] = 1
    bank(torch.ones(1, 3, 4, 4), masks)
    good = bank.get_extra_state()
    bank.set_extra_state(good)
    for change in (
        {"runs": torch.tensor([[2**31 - 2], [2], [0]], dtype=torch.int32)},
        {"runs": torch.tensor([[-4], [2], [0]], dtype=torch.int32)},
        {"runs": torch.tensor([[5], [9], [0]], dtype=torch.int32)},
        {"values": torch.ones(3, 3)},
        {"height": 10**12},
        {"width": 2},
    ):
        sample = {**good["samples"][0][0], **change}
        with pytest.raises(ValueError, match="a sample of class 1 is not whole"):
            bank.set_extra_state({**good, "samples": [[sample]]})
    broken: list[dict[str, Any]] = [
        {"samples": []}, {"images_seen": -1}, {"images_with": [5]}, {"generator": torch.ones(3)}
    ]  # fmt: skip
    for entry in broken:
        with pytest.raises(ValueError, match="the saved bank is damaged"):
            bank.set_extra_state({**good, **entry})
    assert bank.num_samples == {1: 1}


# ---- text files


def laughs(levels: int = 40) -> str:
    lines = ["a0: &a0 {x: 1}"]
    lines += [f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}" for i in range(1, levels)]
    return "\n".join(lines)


def test_yaml_that_unfolds_is_refused_at_once(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    (run / "config.yaml").write_text(laughs())
    with pytest.raises(ValueError, match=r"config\.yaml is no YAML file: merge keys"):
        read_run(run)
    with pytest.raises(ValueError, match=r"unknown key|must be"):
        DatasetCard.from_yaml(laughs())
    lists = "\n".join(["a0: &a0 [1]"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 30)])
    with pytest.raises(ValueError, match="unknown key"):
        DatasetCard.from_yaml(lists)
    (run / "config.yaml").write_text(lists)
    assert read_run(run).max_steps is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("!!python/object/apply:os.mkdir [/tmp/x]", "must be text"),
        ('"\\e[2J\\e]0;owned\\a"', "control character"),
        ("9" * 100_000, "must be text"),
    ],
)
def test_names_in_cards_are_plain_text(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        DatasetCard.from_yaml(MINI.replace("name: road", f"name: {text}"))
    assert len(str(error.value)) < 500
    assert "\x1b" not in str(error.value)


@pytest.mark.parametrize("number", ["9" * 100_000, "0x" + "f" * 100_000, "-1", "1:30", "1e9"])
def test_numbers_in_cards_are_bounded(number: str) -> None:
    with pytest.raises(ValueError, match="must") as error:
        DatasetCard.from_yaml(MINI.replace("ids: [9]", f"ids: [{number}]"))
    assert len(str(error.value)) < 500


def test_a_card_is_not_read_without_end(tmp_path: Path) -> None:
    with (tmp_path / "card.yaml").open("wb") as file:
        file.truncate(10**11)  # a sparse file of 100 GB
    with pytest.raises(ValueError, match="more than 10 MB"):
        DatasetCard.load(tmp_path / "card.yaml")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_classes", 10**13),
        ("pixel_counts", [-1, 0, 0]),
        ("pixel_counts", [10**30, 0, 0]),
        ("num_images", 10**15),
        ("image_classes", "eJztwTEBAAAAwqD1T20ND6AAAAAAAAAA"),
        ("class_names", 3),
        ("ignore_index", "x"),
    ],
)
def test_statistics_do_not_allocate_more_than_the_file_holds(key: str, value: Any, tmp_path: Path) -> None:
    statistics = ClassStatistics(3)
    statistics.update(np.array([[0, 1, 2]]))
    statistics.save(tmp_path / "stats.json")
    state = json.loads((tmp_path / "stats.json").read_text())
    (tmp_path / "stats.json").write_text(json.dumps({**state, key: value}))
    with pytest.raises(ValueError, match="not class statistics that this version wrote"):
        ClassStatistics.load(tmp_path / "stats.json")


@pytest.mark.parametrize("depth", [100_000])
def test_deep_json_is_refused(depth: int, tmp_path: Path) -> None:
    deep = '{"a":' * depth
    (tmp_path / "stats.json").write_text(deep)
    with pytest.raises(ValueError, match="not class statistics"):
        ClassStatistics.load(tmp_path / "stats.json")
    run = write_run(tmp_path / "run")
    (run / "result.json").write_text(deep)
    with pytest.raises(ValueError, match="is no JSON file"):
        read_run(run)


# ---- images and folders


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
    streaming = pytest.importorskip("aucseg.streaming")
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


# ---- what people open


FORMULA = '=HYPERLINK("http://x","y")'


def test_tables_hold_no_formulas_of_others(tmp_path: Path) -> None:
    image = tmp_path / "=1+1.png"
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(image)
    (tmp_path / "@bad.png").write_bytes(b"x")
    predict_paths(
        nn.Conv2d(3, 1, 1).eval(), [image, tmp_path / "@bad.png"], tmp_path / "out", class_names=[FORMULA],
        palette=[(0, 0, 0)], progress=False,
    )  # fmt: skip
    card = DatasetCard.from_yaml(MINI.replace("name: road", f"name: {json.dumps(FORMULA)}"))
    statistics = ClassStatistics(3, class_names=card.class_names)
    statistics.update(np.array([[0, 1, 2]]))
    write_csv(make_report(statistics, card), tmp_path / "classes.csv")
    for path in (tmp_path / "out/areas.csv", tmp_path / "out/errors.csv", tmp_path / "classes.csv"):
        with path.open(newline="") as file:
            for row in csv.reader(file):
                assert not any(cell.startswith(("=", "+", "@", "-")) for cell in row)
        if path.name != "errors.csv":
            assert "'=HYPERLINK" in path.read_text()


@pytest.mark.slow
def test_script_in_names_is_not_run_by_a_browser(tmp_path: Path) -> None:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    attacks = (
        "<script>document.title='owned'</script>",
        "</script><script>document.title='owned'</script>",
        "<img src=x onerror=\"document.title='owned'\">",
        "'\"><svg onload=\"document.title='owned'\">",
        "{{ 7 * 7 }}",
        "javascript:document.title='owned'",
    )
    names = (*attacks, *(f"class {i}" for i in range(15)))
    runs = [
        write_run(tmp_path / f"run{i}", seed=i, strength=i, class_names=names, image_names=attacks) for i in range(2)
    ]
    page = build_report(runs, tmp_path / "report.html", titles=[attacks[1], attacks[2]])
    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    for flag in ("--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service("/usr/bin/chromedriver"))
    try:
        driver.get(page.as_uri())
        driver.execute_script(
            "for (const e of document.querySelectorAll('*')) for (const kind of ['pointermove', 'click'])"
            " e.dispatchEvent(new PointerEvent(kind, {bubbles: true, clientX: 5, clientY: 5}))"
        )
        assert "owned" not in driver.title.split("<")[0]
        assert driver.execute_script("return document.title !== 'owned'")
        assert driver.execute_script("return document.querySelectorAll('script').length") == 2
        assert "{{ 7 * 7 }}" in driver.page_source
        assert driver.get_log("browser") == []
    finally:
        driver.quit()
