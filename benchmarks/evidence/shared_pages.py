"""The page of a shared study, from its JSON file: as trained and with offsets, what was tuned, the best methods."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.evidence.shared_study import SharedStudy, best_methods, is_rival

from aucseg.compare.intervals import Interval, paired_difference, t_interval
from aucseg.compare.tables import METRICS, Table, make_tables, markdown_text
from aucseg.compare.tuning import tuned_settings

BASELINE = "ce"
_WITH_OFFSETS = ", with offsets"
_GROUPS = ("miou", "head", "middle", "tail")


def page(name: str, study: SharedStudy, result: Mapping[str, Any]) -> tuple[str, dict[str, Table]]:
    """A study's page as Markdown, and the tables behind its figures by file name.

    Args:
        name: The study's name.
        study: What it consists of.
        result: Content of its JSON file, with at least one run.

    Raises:
        ValueError: Its runs are of different code or data, or of a CPU and a GPU.
    """
    runs = result["runs"]
    check_device(name, runs)
    figures: dict[str, Table] = {}
    parts = [f"# {study.title}\n\n{study.text}\n\n{state(study, runs)}{_devices(runs)}{_commit(result)}"]
    for table in tables(study, result):
        path = f"results-{name}-{table.model.replace(', ', '-').replace(' ', '-')}.svg"
        figures[path] = table
        parts.append(
            f"![Tail and overall mIoU of each method](../images/{path})\n\n"
            + markdown_text([table]).replace("### ", "## Model ")
        )
    parts += [_best_of_each_kind(runs), _frequent(study, runs), scores_of_trials(result.get("search", []))]
    return "\n".join(part.rstrip() + "\n" for part in parts if part), figures


def state(study: SharedStudy, runs: Sequence[Mapping[str, Any]]) -> str:
    """How much of a study is done."""
    wanted = len(study.methods) * study.seeds
    steps = " or ".join(f"{steps:,}" for steps in sorted({run["steps"] for run in runs}))
    text = f"{len(runs)} of {wanted} runs, {steps} steps."
    return text if len(runs) >= wanted else f"{text} **Not complete: the other runs are still to be made.**"


def check_device(name: str, runs: Sequence[Mapping[str, Any]]) -> None:
    """ValueError where a table would mix runs on a CPU with runs on a GPU."""
    devices = {run["cost"]["device"] for run in runs if run["cost"].get("device")}
    if "cpu" in devices and len(devices) > 1:
        raise ValueError(f"the runs of {name!r} are of a CPU and a GPU ({', '.join(sorted(devices))})")


def tables(study: SharedStudy, result: Mapping[str, Any]) -> list[Table]:
    """A table of the models as they were trained, and one with the offsets of each."""
    values = {}
    for run in result["runs"]:
        plain: Mapping[str, Any] = {**run["metrics"], **run["cost"]}
        for suffix, measured in (("", plain), (_WITH_OFFSETS, run["with_offsets"]["metrics"])):
            values[run["model"] + suffix, run["method"], run["seed"]] = {
                metric.key: math.nan if measured.get(metric.key) is None else float(measured[metric.key])
                for metric in METRICS
            }
    models = [run["model"] for run in result["runs"]]
    listed = [model + suffix for model in dict.fromkeys(models) for suffix in ("", _WITH_OFFSETS)]
    found = dict.fromkeys(run["method"] for run in result["runs"])
    methods = [*(m for m in study.methods if m in found), *(m for m in found if m not in study.methods)]
    return make_tables(values, listed, methods, BASELINE, tuned=tuned(result.get("search", [])))


def tuned(search: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], Any]:
    """What was tuned, as `make_tables` takes it."""
    chosen = {(str(choice["model"]).replace("/", "-"), choice["method"], 0): choice for choice in search}
    return dict(tuned_settings(chosen))


def scores_of_trials(search: Sequence[Mapping[str, Any]]) -> str:
    """Every trial of a search and its score, as a section."""
    if not search:
        return ""
    rows = []
    for choice in search:
        scores = [
            f"{name}: {'failed' if score is None else f'{100 * score:.1f}'}" for name, score in choice["scores"].items()
        ]
        rows.append(f"| {choice['model']} | {choice['method']} | {'; '.join(scores)} |")
    return "\n".join([
        "## Trials\n",
        "| model | method | overall mIoU on held-out training images |",
        "| --- | --- | --- |",
        *rows,
    ])  # fmt: skip


def _devices(runs: Sequence[Mapping[str, Any]]) -> str:
    devices = sorted({run["cost"]["device"] for run in runs if run["cost"].get("device")})
    return f" On: {', '.join(devices)}." if devices else ""


def _commit(result: Mapping[str, Any]) -> str:
    return f" Commit {result['commit']}." if result.get("commit") else ""


def _best_of_each_kind(runs: Sequence[Mapping[str, Any]]) -> str:
    """The best method with the AUC loss against cross-entropy and the best rival, chosen on the held-out images."""
    kinds = [
        [BASELINE],
        best_methods([dict(run) for run in runs if is_rival(run["method"])])[:1],
        best_methods([dict(run) for run in runs if run["method"].startswith("auc")])[:1],
    ]
    if not kinds[2]:
        return ""
    ours = kinds[2][0]
    rows = []
    for others in kinds[:2]:
        for other in others:
            for suffix in ("", _WITH_OFFSETS):
                cells = [_difference(runs, ours, other, key, suffix) for key in _GROUPS]
                if any(cells):
                    rows.append(f"| {ours} - {other}{suffix} | {' | '.join(cell or '-' for cell in cells)} |")
    if not rows:
        return ""
    return "\n".join([
        "## The best with the AUC loss\n",
        "Against cross-entropy and the best rival, chosen by the mean IoU on the held-out images. Differences seed by "
        "seed, not corrected for the number of pairs.\n",
        "| difference | mIoU | head | middle | tail |",
        "| --- | ---: | ---: | ---: | ---: |",
        *rows,
    ])  # fmt: skip


def _difference(runs: Sequence[Mapping[str, Any]], ours: str, other: str, key: str, suffix: str) -> str:
    one, two = (
        {
            run["seed"]: 100 * score
            for run in runs
            if run["method"] == method
            and (score := (run["with_offsets"] if suffix else run)["metrics"].get(key)) is not None
        }
        for method in (ours, other)
    )
    if len(one.keys() & two.keys()) < 2:
        return ""
    difference = paired_difference(one, two)
    low, high = (difference.mean + sign * difference.half_width for sign in (-1, 1))
    return f"{difference.mean:+.1f} [{low:.1f}, {high:.1f}]"


def _frequent(study: SharedStudy, runs: Sequence[Mapping[str, Any]]) -> str:
    """The mean IoU over classes with enough images beside that over all classes."""
    if not study.frequent:
        return ""
    rows = []
    for method in dict.fromkeys(run["method"] for run in runs):
        of_method = [run for run in runs if run["method"] == method]
        cells = []
        for kind in (of_method, [run["with_offsets"] for run in of_method]):
            cells.append(_mean([100 * one["metrics"]["miou"] for one in kind]))
            scores = [_mean_iou(one["per_class_iou"], study.frequent) for one in kind if one.get("per_class_iou")]
            cells.append(_mean([100 * score for score in scores if score is not None]))
        rows.append(f"| {method} | {' | '.join(cells)} |")
    number = len(study.frequent)
    return "\n".join([
        f"## The {number} classes with at least five images\n",
        "The mean IoU over all classes counts classes of which the split has one or two images as much as any other; "
        f"that over the {number} classes with at least five does not have their noise.\n",
        f"| method | all classes | {number} classes | with offsets: all classes | {number} classes |",
        "| --- | ---: | ---: | ---: | ---: |",
        *rows,
    ])  # fmt: skip


def _mean_iou(per_class: Mapping[str, float | None], names: Sequence[str]) -> float | None:
    """Mean over the named classes that occur in truth or prediction."""
    known = [score for name in names if (score := per_class.get(name)) is not None]
    return sum(known) / len(known) if known else None


def _mean(values: Sequence[float]) -> str:
    if not values:
        return "-"
    interval: Interval = t_interval(list(values))
    return f"{interval.mean:.1f}" + ("" if math.isnan(interval.half_width) else f" ± {interval.half_width:.1f}")
