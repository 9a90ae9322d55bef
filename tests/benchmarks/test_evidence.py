import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from benchmarks.evidence import budgets, run, tables
from benchmarks.evidence.shared_studies import SHARED_STUDIES
from benchmarks.evidence.studies import RESULTS, STUDIES, best_rivals
from benchmarks.method import screen
from benchmarks.method import table as screening

from aucseg import cli


def a_run(method: str, seed: int, *, code: str = "c0", steps: int = 1000, model: str = "fpn") -> dict[str, Any]:
    tail = {"ce": 0.05, "aucseg": 0.2}.get(method, 0.1) + 0.001 * seed
    metrics = {"miou": 2 * tail, "head": 0.7, "middle": 0.3, "tail": tail, "auroc": None}
    cost = {"seconds_per_step": 0.2, "peak_memory": 1_000_000, "device": "cpu"}
    hashes = {"code": code, "data": "d0", "configuration": f"{method}{seed}"}
    return {
        "model": model, "method": method, "seed": seed, "steps": steps, "metrics": metrics, "per_class_iou": {},
        "cost": cost, "seconds": 3.0, "hashes": hashes,
    }  # fmt: skip


def a_choice(method: str, best: float) -> dict[str, Any]:
    return {"model": "fpn", "method": method, "setting": "model.x", "value": 1.0, "scores": {"1.0": best, "2.0": 0.01}}


def write(folder: Path, study: str, runs: list[dict[str, Any]], search: list[dict[str, Any]]) -> None:
    (folder / f"{study}.json").write_text(json.dumps({"study": study, "runs": runs, "search": search, "trials": []}))


MAIN = [a_run(method, seed) for method in ("ce", "la", "aucseg") for seed in range(3)]
SEARCH = [
    *(a_choice(method, 0.2) for method in STUDIES["main"].methods),
    a_choice("la", 0.3),
    a_choice("focal", 0.25),
    a_choice("aucseg", 0.9),
    a_choice("ce", 0.8),
]


def test_rivals_are_chosen_by_the_held_out_images(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="run the study 'main' first"):
        best_rivals(tmp_path)
    write(tmp_path, "main", [], [choice for choice in SEARCH if choice["method"] != "vs"])
    with pytest.raises(ValueError, match=r"not tuned yet: vs\)"):
        best_rivals(tmp_path)
    write(tmp_path, "main", [], SEARCH)
    assert best_rivals(tmp_path) == ["la", "focal"]
    arguments = STUDIES["rivals_with_bank"].arguments(tmp_path / "out", None, tmp_path)
    assert arguments[:2] == ["--methods", "la+bank,focal+bank"]


def test_photographs_need_their_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--root"):
        STUDIES["camvid"].arguments(tmp_path, None, tmp_path)


def _studies() -> list[Any]:
    # The second stages of the main study need the class counts of the whole training set.
    marks = {"main": [pytest.mark.slow]}
    return [pytest.param(n, marks=marks.get(n, [])) for n, study in STUDIES.items() if not study.needs_root]


@pytest.mark.parametrize("study", _studies())
def test_every_study_is_a_valid_comparison(
    study: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "run_for", lambda command, minutes: cli.main(command[3:]))
    write(tmp_path, "main", [], SEARCH)
    options = ["--out", str(tmp_path / "runs"), "--results", str(tmp_path), "--", "--dry-run"]
    assert run.main([study, *options]) == 0
    listed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("to do")]
    methods = [m for method in STUDIES[study].methods for m in ([method] * (2 if method.startswith("RIVALS") else 1))]
    assert len(listed) == len(methods) * STUDIES[study].seeds


def test_a_piece_ends_on_time() -> None:
    start = time.monotonic()
    status = run.run_for([sys.executable, "-c", "import time; time.sleep(60)"], 0.02)
    assert status != 0
    assert time.monotonic() - start < 30


def test_a_piece_that_is_asked_to_end_takes_the_comparison_along() -> None:
    ask = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM))
    ask.start()
    assert run.run_for([sys.executable, "-c", "import time; time.sleep(60)"], None) == -signal.SIGTERM
    ask.join()


def finish(folder: Path, *, steps: int = 7) -> None:
    folder.mkdir(parents=True)
    (folder / "compare.json").write_text(json.dumps({
        "metrics": {"miou": 0.123456789, "tail": None}, "cost": {"seconds_per_step": 0.1}, "seconds": 5.0,
        "hashes": {"code": "c", "data": "d"}, "fingerprints": {"configuration": {"trainer.max_steps": steps}},
    }))  # fmt: skip
    (folder / "result.json").write_text(json.dumps({"per_class_iou": {"wall": 0.5}}))


def test_finished_runs_are_collected(tmp_path: Path) -> None:
    out = tmp_path / "out"
    finish(out / "fpn" / "ce" / "seed3")
    finish(out / "fpn" / "la" / "seed0")
    finish(out / "search" / "fpn" / "la" / "tau=1.0", steps=2)
    (out / "search.json").write_text(json.dumps([a_choice("la", 0.3)]))
    (out / "fpn" / "ce" / "seed4").mkdir()  # not finished
    result = run.collect("main", out)
    ce, la = result["runs"]
    assert (ce["model"], ce["method"], ce["seed"], ce["steps"], la["method"]) == ("fpn", "ce", 3, 7, "la")
    assert ce["metrics"] == {"miou": 0.123457, "tail": None}
    assert ce["per_class_iou"] == {"wall": 0.5}
    assert [(trial["trial"], trial["steps"]) for trial in result["trials"]] == [("tau=1.0", 2)]
    assert result["search"] == [a_choice("la", 0.3)]


def test_a_piece_goes_on_from_the_results_of_another_machine(tmp_path: Path) -> None:
    there, here = tmp_path / "there", tmp_path / "here"
    for method, seed in (("ce", 0), ("ce", 1), ("la", 0), ("ce+disalign", 0)):
        finish(there / "fpn" / method / f"seed{seed}")
    for method in ("ce", "la"):
        finish(there / "search" / "fpn" / method / "x=1.0")
    result = run.collect("main", there)
    run.restore(result, ["ce", "la", "ce+disalign"], here)
    found = run.collect("main", here)
    # The models of ce, seed 1 and of ce's trial have yet to be the first stages of others.
    assert found["runs"] == [record for record in result["runs"] if (record["method"], record["seed"]) != ("ce", 1)]
    assert [trial["method"] for trial in found["trials"]] == ["la"]
    run.restore(result, ["ce"], tmp_path / "alone")
    assert [record["seed"] for record in run.collect("main", tmp_path / "alone")["runs"]] == [0, 1]


def test_the_ablation_takes_the_runs_that_the_main_study_has_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "run_for", lambda command, minutes: 0)
    runs = [a_run(method, seed) for method in ("ce", "auc", "aucseg-weighted") for seed in range(5)]
    write(tmp_path, "main", runs, SEARCH)
    assert run.main(["ablation", "--out", str(tmp_path / "runs"), "--results", str(tmp_path)]) == 0
    taken = json.loads((tmp_path / "ablation.json").read_text())
    seeds = range(STUDIES["ablation"].seeds)
    assert [(r["method"], r["seed"]) for r in taken["runs"]] == [(m, seed) for m in ("auc", "ce") for seed in seeds]
    assert taken["search"] == []


def test_results_of_other_pieces_are_kept_unless_their_code_is_another() -> None:
    before = {"runs": [a_run("ce", 0), a_run("la", 0), a_run("la", 1)], "search": [a_choice("la", 0.3)], "trials": []}
    now = {"study": "main", "runs": [a_run("ce", 0, steps=5)], "search": [], "trials": []}
    result = run.joined(before, now)
    assert [(r["method"], r["seed"], r["steps"]) for r in result["runs"]] == [
        ("ce", 0, 5), ("la", 0, 1000), ("la", 1, 1000),
    ]  # fmt: skip
    assert result["search"] == before["search"]
    assert run.joined(before, {**now, "runs": [a_run("ce", 0, code="c1")]})["runs"] == [a_run("ce", 0, code="c1")]
    assert run.joined(before, {**now, "runs": []})["runs"] == before["runs"]


def test_page_has_the_numbers_of_the_results(tmp_path: Path) -> None:
    write(tmp_path, "main", MAIN, SEARCH)
    write(tmp_path, "rivals_with_bank", [a_run("la+bank", seed) for seed in range(2)], [a_choice("la+bank", 0.4)])
    texts, figures = tables.pages(tmp_path)
    assert list(texts) == ["index.md", "main.md"]
    assert list(figures) == ["results-main-fpn.svg"]
    text = texts["main.md"]
    assert "| ce | 3 | 10.2" in text
    assert "la+bank" in text
    wanted = sum(study.number_of_runs for name, study in STUDIES.items() if "main" in (name, study.joins))
    assert f"11 of {wanted} runs, 1000 steps. **Not complete" in text
    assert f"(main.md): 11 of {wanted} runs" in texts["index.md"]
    assert "benchmarks.evidence.run camvid --minutes 60 --root" in texts["index.md"]
    assert "| fpn | la+bank | x=1.0: 40.0; x=2.0: 1.0 |" in text
    assert "| x 1.0‡ of 1.0, 2.0 |" in text  # the best value of the older search lies at the edge of its grid
    paths = []
    for name in ("a.svg", "b.svg"):
        tables.draw(figures["results-main-fpn.svg"], tmp_path / name)
        paths.append((tmp_path / name).read_bytes())
    assert paths[0] == paths[1]


def test_pairs_of_methods_are_compared_seed_by_seed(tmp_path: Path) -> None:
    runs = [a_run(method, seed) for method in ("ce", "aucseg", "wce-effective") for seed in range(3)]
    runs[-1]["metrics"]["tail"] += 0.03  # differences of 10, 10 and 7
    write(tmp_path, "main", runs, [])
    text = tables.pages(tmp_path)[0]["main.md"]
    assert (
        "| aucseg - wce-effective | +20.0 [20.0, 20.0] | +0.0 [0.0, 0.0] | +0.0 [0.0, 0.0] | +9.0 [4.7, 13.3] |" in text
    )
    assert "aucseg-weighted - aucseg" not in text


def test_budgets_stand_below_each_other(tmp_path: Path) -> None:
    for name, steps, gain in (("camvid", 600, 0.0), ("camvid_1200", 1200, 0.02)):
        runs = [a_run(method, seed, steps=steps) for method in ("auc", "ce") for seed in range(2)]
        for one in runs:
            one["metrics"]["tail"] = 0.1 + gain + (0.05 if one["method"] == "auc" else 0) + 0.02 * one["seed"]
        write(tmp_path, name, runs, [])
    rows = [line for line in tables.pages(tmp_path)[0]["index.md"].splitlines() if line.startswith("| CamVid |")]
    assert [row.split("|")[2:6] + row.split("|")[-2:-1] for row in rows] == [
        [" 600 ", " cross-entropy ", " ce ", " 2 ", " 11.0 "],
        [" 600 ", " AUCSeg ", " auc ", " 2 ", " 16.0 (+5.0) "],
        [" 1,200 ", " cross-entropy ", " ce ", " 2 ", " 13.0 (+2.0) "],
        [" 1,200 ", " AUCSeg ", " auc ", " 2 ", " 18.0 (+5.0) "],
    ]
    # Newer results of the same data take their place; a study of other data has a panel of its own.
    write(tmp_path, "camvid_heldout", shared_runs(), [])
    write(tmp_path, "ccp_cpu", shared_runs(), [])
    found = budgets.budgets(tmp_path)
    assert [(row.data, row.steps, row.role, row.method) for row in found] == [
        (data, 2400, role, method)
        for data in ("CamVid", "Clothing Co-Parsing")
        for role, method in (("cross-entropy", "ce"), ("best rival", "vs"), ("AUCSeg", "auc"))
    ]
    budgets.draw_budgets(found, tmp_path / "budgets.svg")
    drawn = (tmp_path / "budgets.svg").read_text()
    assert all(
        text in drawn for text in ("CamVid", "Clothing Co-Parsing", "AUCSeg", "best rival", "2,400", "tail mIoU")
    )


def shared_runs() -> list[dict[str, Any]]:
    """Runs of a shared study; on the held-out images vs is the best rival, on the others la is."""
    runs = []
    for method, miou, heldout in (("ce", 0.3, 0.3), ("la", 0.5, 0.4), ("vs", 0.45, 0.5), ("auc", 0.55, 0.6)):
        for seed in range(2):
            scores = {"miou": miou + 0.01 * seed, "head": 0.8, "middle": 0.5, "tail": miou - 0.1}
            classes = {"background": miou + 0.2, "bag": miou, "bra": 0.0, "clogs": None}
            runs.append(a_run(method, seed, steps=2400) | {
                "metrics": scores, "per_class_iou": classes, "heldout": {"miou": heldout}, "learning_rate": 0.002,
                "with_offsets": {
                    "metrics": {name: score + 0.05 for name, score in scores.items()},
                    "per_class_iou": {name: None if score is None else score + 0.05 for name, score in classes.items()},
                },
            })  # fmt: skip
    return runs


def test_a_shared_study_has_a_page(tmp_path: Path) -> None:
    choice = {
        "model": "fpn", "method": "vs", "at_edge": ["a.gamma"], "settings": {"a.tau": 0.5, "a.gamma": 0.3},
        "tried": {"a.tau": [0.25, 0.5, 1.0], "a.gamma": [0.15, 0.3]},
        "scores": {"tau=0.5,gamma=0.15": 0.4, "tau=1.0,gamma=0.15": None},
    }  # fmt: skip
    write(tmp_path, "ccp", shared_runs(), [choice])
    texts, figures = tables.pages(tmp_path)
    study = SHARED_STUDIES["ccp"]
    num_runs = len(study.methods) * study.seeds
    assert f"(ccp.md): 8 of {num_runs} runs, 2,400 steps. **Not complete" in texts["index.md"]
    assert "benchmarks.evidence.run ccp --" not in texts["index.md"]
    assert "benchmarks.evidence.run cityscapes_256 --minutes 60 --processes 8 --root" in texts["index.md"]
    text = texts["ccp.md"]
    assert "On: cpu." in text
    # 0.45 and 0.46; with offsets 0.5 and 0.51.
    assert "| vs | 2 | 45.5 ± 6.4 |" in text
    assert "| vs | 2 | 50.5 ± 6.4 |" in text
    assert "tau 0.5 of 0.25, 0.5, 1.0; gamma 0.3‡ of 0.15, 0.3 |" in text
    assert "| fpn | vs | tau=0.5,gamma=0.15: 40.0; tau=1.0,gamma=0.15: failed |" in text
    assert "## Model fpn, with offsets\n" in text
    # Of the four classes two are among the 39: (0.2 + 0) / 2 above the score of the method.
    assert "## The 39 classes with at least five images" in text
    assert "| ce | 30.5 ± 6.4 | 40.0 ± 0.0 | 35.5 ± 6.4 | 45.0 ± 0.0 |" in text
    assert "| auc - vs | +10.0 [10.0, 10.0] | +0.0 [0.0, 0.0] |" in text
    assert "| auc - ce, with offsets | +25.0 [25.0, 25.0] |" in text
    assert sorted(figures) == ["results-ccp-fpn-with-offsets.svg", "results-ccp-fpn.svg"]
    tables.draw(figures["results-ccp-fpn-with-offsets.svg"], tmp_path / "a.svg")
    assert "vs" in (tmp_path / "a.svg").read_text()
    mixed = shared_runs()
    mixed[0]["cost"]["device"] = "NVIDIA H200"
    write(tmp_path, "ccp", mixed, [])
    with pytest.raises(ValueError, match="of a CPU and a GPU"):
        tables.pages(tmp_path)


def test_a_figure_is_drawn_before_the_baseline_has_run(tmp_path: Path) -> None:
    write(tmp_path, "main", [a_run("aucseg", 0)], [])
    _, figures = tables.pages(tmp_path)
    tables.draw(figures["results-main-fpn.svg"], tmp_path / "a.svg")
    assert "aucseg" in (tmp_path / "a.svg").read_text()


def test_runs_of_different_code_are_not_put_into_one_table(tmp_path: Path) -> None:
    write(tmp_path, "main", MAIN, SEARCH)
    write(tmp_path, "rivals_with_bank", [a_run("la+bank", 0, code="c1")], [])
    with pytest.raises(ValueError, match="different code"):
        tables.pages(tmp_path)


def test_results_of_the_older_training_transforms_are_named(tmp_path: Path) -> None:
    write(tmp_path, "main", [a_run("ce", 0, code="d60d30651117")], [])
    write(tmp_path, "camvid", [a_run("ce", 0, code="c1")], [])
    texts, _ = tables.pages(tmp_path)
    note = next(line for line in texts["index.md"].splitlines() if "colour channels" in line)
    assert "the studies `main`." in note
    assert "before the training transforms" in texts["main.md"]
    assert "before the training transforms" not in texts["camvid.md"]
    write(tmp_path, "main", [a_run("ce", 0, code="c1")], [])
    assert "permuted" not in tables.pages(tmp_path)[0]["index.md"]


def test_the_pages_in_the_documentation_are_up_to_date() -> None:
    texts, figures = tables.pages(RESULTS)
    written = {path.name: path.read_text() for path in (tables.DOCS / "results").glob("*.md")}
    assert written.pop("screening.md") == screening.page(screen.RESULTS)
    assert written == texts
    assert all((tables.DOCS / "images" / name).is_file() for name in (*figures, "results-budgets.svg"))
