import shutil
from pathlib import Path
from typing import Any

import pytest

from aucseg.compare.fingerprints import (
    code_fingerprint,
    configuration_fingerprint,
    data_fingerprint,
    differences,
    digest,
    named_files_fingerprint,
)
from aucseg.datasets import SegmentationDataset
from aucseg.datasets.shards import write_shards
from tests.source_imports import MODULES, PACKAGE, reached_from


def test_code_is_all_that_trains_and_nothing_else() -> None:
    files = code_fingerprint({})
    assert {
        "training/task.py",
        "memory_bank/bank.py",
        "losses/aucseg.py",
        "training/second_stage.py",
        "torch",
    } <= files.keys()
    assert not {"report/page.py", "compare/tables.py", "commands/demo.py", "cli.py"} & files.keys()


def test_code_is_what_a_training_run_can_import() -> None:
    own = {f"aucseg.{name}" for name in ("commands.fit", "training.second_stage", "compare.cost")}
    reached = {MODULES[name].relative_to(PACKAGE).as_posix() for name in reached_from(own)}
    unimportant = {name for name in reached - code_fingerprint({}).keys() if not name.endswith("__init__.py")}
    # What plans (its settings are in the configuration), tells and draws; advice, the checks of data before a run, and
    # the measurement of what a run costs.
    assert {name for name in unimportant if not name.startswith(("commands/", "planning/", "report/"))} == {
        "compare/cost.py",
        *("statistics/advice.py", "statistics/bound.py", "statistics/check.py", "statistics/summary.py"),
        *("datasets/duplicates.py", "datasets/mask_checks.py"),
        *("datasets/propose.py", "datasets/propose_bands.py", "datasets/propose_layouts.py"),
    }
    assert {"commands/failures.py", "planning/plan.py", "report/class_table.py"} <= unimportant


def test_comments_and_docstrings_do_not_count_but_code_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    module = tmp_path / "a_network_of_mine.py"
    config = {"model": {"model": "a_network_of_mine:Net"}}

    def fingerprint(text: str) -> str:
        module.write_text(text)
        return str(code_fingerprint(config)["a_network_of_mine (yours)"])

    first = fingerprint("def f():\n    return 1\n")
    assert fingerprint('def f():\n    """Text."""\n\n    return 1  # one\n') == first
    assert fingerprint("def f():\n    return 2\n") != first
    assert "a_network_of_mine (yours)" not in code_fingerprint({"model": {"model": "smp/fpn"}})
    by_class = {"trainer": {"callbacks": [{"class_path": "a_network_of_mine.Callback"}]}}
    assert "a_network_of_mine (yours)" in code_fingerprint(by_class)


def test_data_is_the_content_of_card_and_files(tiny_card: Path, tmp_path: Path) -> None:
    def fingerprint(root: Path) -> dict[str, str]:
        return data_fingerprint({"data": {"card": str(root / "tiny.yaml"), "root": str(root)}})

    copy = tmp_path / "copy"
    shutil.copytree(tiny_card.parent, copy)
    original = fingerprint(tiny_card.parent)
    assert fingerprint(copy) == original
    image = copy / "images" / "train" / "frame_00.png"
    image.write_bytes(image.read_bytes()[:-1] + b"x")
    (change,) = differences(original, fingerprint(copy))
    assert change.startswith("files of split 'train'")


def test_data_are_the_shards_where_there_are_any(tiny_card: Path, tmp_path: Path) -> None:
    pytest.importorskip("webdataset")
    dataset = SegmentationDataset(tiny_card, tiny_card.parent, "train")
    for folder in ("one", "two"):
        write_shards(dataset, tmp_path / folder, samples_per_shard=3)

    def fingerprint(folder: str, **options: Any) -> dict[str, Any]:
        shards = {"shards": str(tmp_path / folder / "*.tar"), "val_shards": "https://a.org/{0..1}.tar"}
        return data_fingerprint({"data": {"card": str(tiny_card), **shards, **options}})  # no root: there are no files

    original = fingerprint("one")
    assert original["val_shards elsewhere"] == ["https://a.org/0.tar", "https://a.org/1.tar"]
    assert {"card", "shards", "val_shards elsewhere"} == original.keys()
    next((tmp_path / "one").glob("*.tar")).unlink()
    (change,) = differences(original, fingerprint("one"))
    assert change.startswith("shards: ")
    # A split of files is validated on where there are no shards of it.
    assert "files of split 'val'" in fingerprint("two", val_shards=None, root=str(tiny_card.parent))


def test_files_that_a_configuration_names_count_by_their_content(tmp_path: Path) -> None:
    counts, weights = tmp_path / "counts.json", tmp_path / "weights.pth"
    for path in (counts, weights):
        path.write_text("1")
    config = {
        "model": {"init_from": str(weights), "model": "smp/fpn", "model_options": {"encoder_weights": "imagenet"}},
        "data": {"statistics": str(counts), "card": str(counts), "root": str(tmp_path)},
    }
    original = named_files_fingerprint(config)
    assert original.keys() == {"file of model.init_from", "file of data.statistics"}
    weights.write_text("2")
    assert [text.partition(":")[0] for text in differences(original, named_files_fingerprint(config))] == [
        "file of model.init_from"
    ]


def test_configuration_leaves_places_out() -> None:
    config: dict[str, Any] = {
        "model": {"loss": "ce", "bank": {}},
        "data": {"root": "a", "card": "x", "num_workers": 2, "seed": 0},
    }
    flat = configuration_fingerprint(config)
    assert flat == {"model.loss": "ce", "model.bank": {}, "data.seed": 0}
    moved = config | {"data": config["data"] | {"root": "b"}}
    assert digest(configuration_fingerprint(moved)) == digest(flat)
    without_bank = config | {"model": {"loss": "ce", "bank": None}}
    assert digest(configuration_fingerprint(without_bank)) != digest(flat)
    assert configuration_fingerprint({"a": 1}, {"b": 2}) == {"a": 1, "first stage: b": 2}
