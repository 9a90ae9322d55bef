"""The parts of a training split: what is trained on, what is held out, and the fold that is validated on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from aucseg.datasets import SegmentationDataset
from aucseg.hints import shorten
from aucseg.loading.folds import fold_of_images
from aucseg.loading.held_out import HeldOut, held_out_images

_HELD_OUT, _FOLD = "held_out", "fold"
_MAX_NAMES = 3


class TrainingParts:
    """Divides the training split; its masks are read once, when a part is asked for.

    Images are held out of those that are not in the fold. A part is kept by the names of its images: a run that goes
    on, or is evaluated, after files were added must not validate images that it was trained on.

    Args:
        held_out_share: See `aucseg.loading.held_out.held_out_images`; 0 for none.
        fold: See `aucseg.loading.folds.fold_of_images`; None for none.
        by: "sequence" or "image", for both.
        num_workers: Processes that read masks.
    """

    def __init__(self, held_out_share: float, fold: tuple[int, int] | None, by: str, num_workers: int) -> None:
        self.held_out_share = held_out_share
        self.fold = fold
        self.by = by
        self.num_workers = num_workers
        self._names: dict[str, frozenset[str]] = {}
        self._sentences: dict[str, str] = {}
        self._num_images = 0
        self._stored: Mapping[str, Any] | None = None
        self._trained_on: tuple[int, str] | None = None

    def trained_on(self, dataset: SegmentationDataset) -> SegmentationDataset:
        """Leaves what is trained on in the data set of the whole split."""
        dataset = self._without_fold(dataset)
        return _without(dataset, self._held_out_of(dataset)) if self.held_out_share else dataset

    def held_out(self, dataset: SegmentationDataset) -> SegmentationDataset:
        """Leaves what is held out.

        Raises:
            ValueError: Nothing is.
        """
        if not self.held_out_share:
            raise ValueError("no training images are held out: held_out_share is 0")
        dataset = self._without_fold(dataset)
        return _only(dataset, self._held_out_of(dataset))

    def in_fold(self, dataset: SegmentationDataset) -> SegmentationDataset:
        """Leaves the images of the fold, all where there is none."""
        return dataset if self.fold is None else _only(dataset, self._in_fold_of(dataset, self.fold))

    def describe(self) -> list[str]:
        """Sentences about the parts that have been asked for."""
        return [self._sentences[part] for part in (_FOLD, _HELD_OUT) if part in self._sentences]

    def what_changed(self, files: Sequence[str]) -> str | None:
        """Remembers what is trained on; returns how it differs from what the run of the checkpoint was trained on.

        Args:
            files: Names of the images, or of the shards, in their order, which decides about the order of training.
        """
        self._trained_on = len(files), hashlib.sha256("\n".join(files).encode()).hexdigest()
        then = None if self._stored is None else self._stored["trained_on"]
        if then is None or then == self._trained_on:
            return None
        number = f"{then[0]:,} files then, {len(files):,} now"
        return "as many, with other names" if then[0] == len(files) else number

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps: the names of the images in each part, and the settings that they were drawn with.

        Of what is trained on it keeps number and digest.
        """
        return {
            "settings": {part: self._settings(part) for part in (_HELD_OUT, _FOLD)},
            "images": {part: sorted(names) for part, names in self._names.items()},
            "num_images": self._num_images,
            "trained_on": self._trained_on and list(self._trained_on),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Takes the images that a run has held out, or validated as its fold, instead of drawing them again.

        Args:
            state: Of the run's checkpoint, see `state`.

        Raises:
            ValueError: It is not such a state, or other images were drawn already.
        """
        try:
            names = {str(part): frozenset(map(str, found)) for part, found in state["images"].items()}
            trained_on = state.get("trained_on")  # older checkpoints have none
            self._stored = {
                "trained_on": trained_on and (int(trained_on[0]), str(trained_on[1])),
                "settings": dict(state["settings"]),
                "num_images": int(state["num_images"]),
                "images": names,
            }
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"the checkpoint does not say which training images were held out: {error!r}") from error
        for part, drawn in self._names.items():
            if differing := sorted(drawn ^ names.get(part, drawn)):
                raise ValueError(
                    f"other training images than those of the checkpoint were drawn for {self._title(part)}, such as "
                    f"{shorten(differing, _MAX_NAMES)}: the files have changed since. Call load_state_dict of the data "
                    "module with the checkpoint's 'SegmentationDataModule' before the trainer's fit or validate"
                )

    def _without_fold(self, dataset: SegmentationDataset) -> SegmentationDataset:
        return dataset if self.fold is None else _without(dataset, self._in_fold_of(dataset, self.fold))

    def _held_out_of(self, dataset: SegmentationDataset) -> frozenset[str]:
        return self._part(
            _HELD_OUT, dataset, lambda: held_out_images(dataset, self.held_out_share, self.num_workers, self.by)
        )

    def _in_fold_of(self, dataset: SegmentationDataset, fold: tuple[int, int]) -> frozenset[str]:
        return self._part(_FOLD, dataset, lambda: fold_of_images(dataset, fold, self.num_workers, self.by))

    def _part(self, part: str, dataset: SegmentationDataset, draw: Callable[[], HeldOut]) -> frozenset[str]:
        """The names of a part, which are those of the checkpoint or, the first time, drawn."""
        if part in self._names:
            return self._names[part]
        present = {pair.name for pair in dataset.pairs}
        names = self._stored_names(part)
        if names is None:
            division = draw()
            names = frozenset(dataset.pairs[index].name for index in division.held_out)
            self._sentences[part] = division.describe(self._title(part))
        else:
            self._sentences[part] = self._what_changed(part, names, present, dataset)
        self._names[part] = names
        # Images are held out of what the fold leaves.
        self._num_images = max(self._num_images, len(present))
        return names

    def _stored_names(self, part: str) -> frozenset[str] | None:
        """The names of a part in the checkpoint, None without one.

        Raises:
            ValueError: They were drawn with other settings, or not at all.
        """
        if self._stored is None:
            return None
        then, now = self._stored["settings"].get(part), self._settings(part)
        if then != now:
            raise ValueError(
                f"the run was trained with {_listed(then, part)}, not with {_listed(now, part)}: images that it was "
                f"trained on would count as {self._title(part)}. Set these as they were, or train again in another "
                "folder"
            )
        names: frozenset[str] | None = self._stored["images"].get(part)
        return names

    def _what_changed(self, part: str, names: frozenset[str], present: set[str], dataset: SegmentationDataset) -> str:
        """A sentence about a part of a checkpoint, and what was added or is gone since.

        Raises:
            ValueError: All its images are gone.
        """
        assert self._stored is not None
        gone, title = sorted(names - present), self._title(part)
        if len(gone) == len(names):
            raise ValueError(
                f"{dataset.root}: nothing is there of what was {title} in the run "
                f"({shorten(gone, _MAX_NAMES)}): give the folder of its data, or name a split to evaluate"
            )
        number = sum(pair.name in names for pair in dataset.pairs)
        text = f"{title}: {number:,} of {len(dataset):,} training images, those of the checkpoint"
        if gone:
            text += f"; gone since: {shorten(gone, _MAX_NAMES)}"
        then = self._stored["num_images"]
        if not self._num_images and len(present) != then:  # the first part is taken of all images
            text += f"; there were {then:,} training images then, and there are {len(present):,} now"
        return text

    def _settings(self, part: str) -> dict[str, Any] | None:
        """The settings that a part is drawn with, None where it is not asked for."""
        value = self.held_out_share if part == _HELD_OUT else self.fold and list(self.fold)
        name = "data.held_out_share" if part == _HELD_OUT else "data.fold"
        return {name: value, "data.held_out_by": self.by} if value else None

    def _title(self, part: str) -> str:
        return "held out" if part == _HELD_OUT or self.fold is None else f"fold {self.fold[0]} of {self.fold[1]}"


def _listed(settings: Mapping[str, Any] | None, part: str) -> str:
    if not settings:
        return "no data.fold" if part == _FOLD else "no data.held_out_share"
    return " and ".join(f"{name} {value}" for name, value in settings.items())


def _only(dataset: SegmentationDataset, names: frozenset[str]) -> SegmentationDataset:
    dataset.pairs = [pair for pair in dataset.pairs if pair.name in names]
    return dataset


def _without(dataset: SegmentationDataset, names: frozenset[str]) -> SegmentationDataset:
    dataset.pairs = [pair for pair in dataset.pairs if pair.name not in names]
    return dataset
