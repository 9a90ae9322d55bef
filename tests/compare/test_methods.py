from pathlib import Path
from typing import Any

import pytest
import yaml

from aucseg.cli import main
from aucseg.compare.methods import (
    Definition,
    holding_out,
    load_base,
    load_definitions,
    load_models,
    merged,
    parse_method,
    parse_methods,
    second_stage_config,
)

BASE = {
    "trainer": {"max_steps": 10},
    "model": {"model": "smp/fpn", "loss": "aucseg", "loss_options": {"auc_weight": 4.0}, "bank": {"capacity": 3}},
    "data": {"card": "freedoom_lt"},
}


def test_names_become_configurations() -> None:
    def model(name: str) -> dict[str, object]:
        config = parse_method(name, {}).configure(BASE)["model"]
        return {key: config[key] for key in ("loss", "loss_options", "bank")}

    assert model("ce") == {"loss": "ce", "loss_options": None, "bank": None}
    assert model("la+bank") == {"loss": "la", "loss_options": None, "bank": {"capacity": 3}}
    assert model("auc") == {"loss": "aucseg", "loss_options": {"auc_weight": 4.0}, "bank": None}
    assert model("aucseg") == {"loss": "aucseg", "loss_options": {"auc_weight": 4.0}, "bank": {"capacity": 3}}
    assert parse_method("ce+rcs", {}).configure(BASE)["data"]["sampler"] == "rare_class"
    assert parse_method("ce+rfs", {}).configure(BASE)["data"]["sampler"] == "repeat_factor"
    assert parse_method("ce", {}).configure(BASE)["data"]["sampler"] == "random"
    assert BASE["model"]["bank"] == {"capacity": 3}  # type: ignore[index]


def test_options_go_with_their_sampler() -> None:
    base = {"model": {}, "data": {"sampler": "repeat_factor", "sampler_options": {"threshold": 0.2}}}
    expected = {"ce+rfs": {"threshold": 0.2}, "ce+rcs": None, "ce": None}
    assert {n: parse_method(n, {}).configure(base)["data"]["sampler_options"] for n in expected} == expected
    with pytest.raises(ValueError, match=r"two samplers: \+rcs or \+rfs"):
        parse_method("ce+rcs+rfs", {})
    of_definition = parse_method("mine+rfs", {"mine": Definition("ce+rcs", {})})
    assert of_definition.sampler == "repeat_factor"


def test_a_base_without_a_bank_gives_the_banks_defaults() -> None:
    config = parse_method("ce+bank", {}).configure({"model": {"loss": "ce"}, "data": {}})
    assert config["model"]["bank"] == {}


def test_definitions_change_a_method(tmp_path: Path) -> None:
    path = tmp_path / "methods.yaml"
    path.write_text("image-scope: {method: ce+bank, model: {bank: {scope: image}}}\n")
    definitions = load_definitions(path)
    assert definitions == {"image-scope": Definition("ce+bank", {"model": {"bank": {"scope": "image"}}})}
    config = parse_method("image-scope", definitions).configure(BASE)
    assert config["model"]["bank"] == {"capacity": 3, "scope": "image"}
    second = parse_method("image-scope+posthoc-la", definitions)
    assert (second.first_stage, second.second_stage) == ("image-scope", "posthoc-la")


def test_offsets_follow_any_trained_model() -> None:
    methods = parse_methods(["la+bank", "la+bank+offsets", "ce", "ce+disalign", "ce+disalign+offsets"], {})
    assert [method.second_stage for method in methods] == [None, "offsets", None, "disalign", "offsets"]
    assert [method.first_stage for method in methods] == [None, "la+bank", None, "ce", "ce+disalign"]
    assert [method.has_setting for method in methods] == [True, False, True, True, False]


def test_images_are_kept_for_offsets_and_the_validation_split_stays() -> None:
    config = holding_out(BASE, 0.1)
    assert config["data"] == {"card": "freedoom_lt", "held_out_share": 0.1, "validate_held_out": False}
    assert holding_out(config, 0.3) == config
    second = second_stage_config(parse_method("ce+offsets", {}), config, Path("last.ckpt"), None)
    assert second["model"]["model"] == "aucseg.training.second_stage:offsets_model"
    assert second["model"]["model_options"] == {"checkpoint": "last.ckpt", "data": config["data"]}
    with pytest.raises(ValueError, match=r"set data\.validate_held_out to false"):
        holding_out(merged(BASE, {"data": {"held_out_share": 0.2}}), 0.1)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["focl"], "did you mean focal"),
        (["ce+bnk"], r"no '\+bnk'"),
        (["ce", "ce"], "twice"),
        (["ce+bank+bank"], "a part twice"),
        (["disalign"], "unknown method"),
        (["ce+posthoc-la"], "list that before it"),
        (["la", "ce+disalign"], "starts from the models of 'ce'"),
        (["ce+posthoc-la+bank"], "write it last"),
        (["ce+posthoc-la+offsets"], "one alone"),
        (["ce+offsets"], "list that before it"),
    ],
)
def test_wrong_names_are_told(names: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_methods(names, {})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: {model: {}}", "needs a 'method'"),
        ("a+b: {method: ce}", "may hold letters"),
        ("a: {method: ce, loss: {}}", "unknown section 'loss'"),
        ("[1]", "must hold a mapping"),
        ("a: {b: ", "is not a YAML file"),
    ],
)
def test_wrong_methods_files_are_told(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "methods.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        load_definitions(path)


def test_base_needs_a_budget_and_a_card(tmp_path: Path) -> None:
    path = tmp_path / "base.yaml"
    for config, message in (
        ({"data": {"card": "x"}}, "set trainer.max_steps"),
        ({"trainer": {"max_steps": 3}}, "set data.card"),
        ({"trainer": 3}, "must hold a mapping"),
    ):
        path.write_text(yaml.safe_dump(config))
        with pytest.raises(ValueError, match=message):
            load_base(path)
    with pytest.raises(ValueError, match="there is no file"):
        load_base(tmp_path / "missing.yaml")


def test_models_are_names_or_files(tmp_path: Path) -> None:
    change = tmp_path / "wide.yaml"
    change.write_text("model: {model_options: {width: 2}}\n")
    other = tmp_path / "other.yaml"
    other.write_text("model: {model: smp/unet, model_options: {depth: 3}}\n")
    options = {"encoder": "resnet18"}
    base = merged(BASE, {"model": {"model_options": options}})
    assert load_models([], base) == {"smp/fpn": base}
    models = load_models(["smp/fpn", "segnext/tiny", str(change), str(other)], base)
    assert models["smp/fpn"] == base
    made = {name: (config["model"]["model"], config["model"]["model_options"]) for name, config in models.items()}
    assert made == {
        "smp/fpn": ("smp/fpn", options),
        "segnext/tiny": ("segnext/tiny", None),
        "wide": ("smp/fpn", {**options, "width": 2}),
        "other": ("smp/unet", {"depth": 3}),  # without those of the base's model
    }
    assert all(config["data"] == base["data"] for config in models.values())
    with pytest.raises(ValueError, match="two models"):
        load_models(["smp/fpn", "smp/fpn"], BASE)
    assert list(load_models(["hf/organization/model", "torch.nn:Conv2d"], BASE))  # neither is looked up or built
    other.write_text("model: {model: smp/unett}\n")
    for item, message in (
        ("nope/x", "unknown model 'nope/x'"),
        (str(other), "unknown model 'smp/unett'; did you mean smp/unet"),
    ):
        with pytest.raises(ValueError, match=message):
            load_models(["smp/fpn", item], BASE)
    with pytest.raises(ImportError, match="no_such_module"):
        load_models(["no_such_module:Net"], BASE)


def test_the_configuration_of_a_run_is_one_of_a_comparison(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--data.card", "freedoom_lt", "--trainer.max_steps", "3", "--keep_best", "val/tail"]
    with pytest.raises(SystemExit, match="0"):
        main(["fit", "--print_config", *options])
    path = tmp_path / "config.yaml"
    path.write_text(capsys.readouterr().out)
    base = load_base(path)
    assert base.keys() == {"seed_everything", "trainer", "model", "data", "guard"}
    assert base["guard"].keys() == yaml.safe_load(path.read_text())["guard"].keys()


@pytest.mark.parametrize(
    ("trainer", "named"),
    [
        ({"max_epochs": 3}, "max_epochs"),
        ({"max_time": "00:01:00:00"}, "max_time"),
        ({"callbacks": [{"class_path": "lightning.pytorch.callbacks.EarlyStopping"}]}, "EarlyStopping"),
    ],
)
def test_what_ends_a_run_early_is_refused_before_the_first(trainer: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=rf"makes trainer\.max_steps steps; leave \S*{named} out"):
        load_models([], merged(BASE, {"trainer": trainer}))
    assert load_models([], merged(BASE, {"trainer": {"max_epochs": -1, "max_time": None}}))


@pytest.mark.parametrize("left_out", [{}, {"learning_rate": None, "head_rate_factor": None}])
def test_a_second_stage_has_the_rates_of_its_first_stage_where_none_are_given(left_out: dict[str, None]) -> None:
    model = {"model": "smp/unet", "model_options": {"encoder": "resnet34"}, **left_out}
    first = {"model": model, "data": {"batch_size": 2}, "trainer": {"max_steps": 100}}
    second = second_stage_config(parse_method("ce+disalign", {}), first, Path("last.ckpt"), None)
    assert second["model"]["learning_rate"] == 5e-4
    assert second["model"]["head_rate_factor"] == 3.0
