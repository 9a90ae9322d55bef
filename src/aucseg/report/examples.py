"""Example pictures: validation images with the predictions of several runs, and what the bank pasted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from aucseg.hints import difference_of_classes
from aucseg.report.compared_runs import ComparedRuns, load_comparison
from aucseg.report.runs import Run, read_run
from aucseg.report.shown_image import shown_tensors
from aucseg.run_files import CONFIG_FILE, LAST_CHECKPOINT, checkpoint_in
from aucseg.safe_files import read_yaml_mapping

Role = Literal["gain", "loss", "sample"]


@dataclass(frozen=True)
class Example:
    """One validation image with its truth and the label maps that the runs predict.

    Attributes:
        name: Name of the image.
        image: uint8 (H, W, 3), RGB.
        truth: Integers (H, W), class ids; what is outside 0..K-1 is ignored.
        predictions: For the title of each run its class ids (H, W).
        role: Why it is shown: a large `gain` or `loss` against the baseline, or a plain `sample`.

    Raises:
        ValueError: For arrays of other shapes or dtypes.
    """

    name: str
    image: NDArray[np.uint8]
    truth: NDArray[Any]
    predictions: Mapping[str, NDArray[Any]]
    role: Role = "sample"

    def __post_init__(self) -> None:
        _check_image(self.name, self.image)
        labels = {"truth": self.truth, **{f"prediction of {title!r}": p for title, p in self.predictions.items()}}
        for what, array in labels.items():
            if array.shape != self.image.shape[:2] or not np.issubdtype(array.dtype, np.integer):
                raise ValueError(
                    f"example {self.name!r}: the {what} must hold integers of shape {self.image.shape[:2]}, got "
                    f"{array.dtype} {array.shape}"
                )

    def mean_iou(self, title: str, num_classes: int) -> float | None:
        """Mean IoU over the classes that truth or prediction of this image hold; None where all is ignored."""
        valid = (self.truth >= 0) & (self.truth < num_classes)
        truth, prediction = self.truth[valid], self.predictions[title][valid]
        classes = {}
        for class_id in np.union1d(truth, prediction).tolist():
            in_truth, in_prediction = truth == class_id, prediction == class_id
            classes[class_id] = (int((in_truth & in_prediction).sum()), int((in_truth | in_prediction).sum()))
        return image_mean_iou(classes)


@dataclass(frozen=True)
class Paste:
    """A training image before and after the bank.

    Attributes:
        name: Name of the image.
        before: uint8 (H, W, 3), the augmented image.
        after: uint8 (H, W, 3), the same with objects pasted.
        pasted: Bool (H, W), the pasted pixels.
        class_ids: Classes that were pasted.
    """

    name: str
    before: NDArray[np.uint8]
    after: NDArray[np.uint8]
    pasted: NDArray[np.bool_]
    class_ids: tuple[int, ...] = field(default=())

    def __post_init__(self) -> None:
        _check_image(self.name, self.before)
        if self.after.shape != self.before.shape or self.pasted.shape != self.before.shape[:2]:
            raise ValueError(f"paste {self.name!r}: before, after and pasted must have one height and width")


def _check_image(name: str, image: NDArray[Any]) -> None:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"image {name!r} must be uint8 of shape (H, W, 3), got {image.dtype} {image.shape}")


def image_mean_iou(classes: Mapping[int, tuple[int, int]]) -> float | None:
    """Mean IoU of one image from `{class id: (intersection, union)}`; None without a class.

    Example:
        >>> image_mean_iou({0: (50, 100), 3: (0, 10), 4: (0, 0)})
        0.25
    """
    ious = [intersection / union for intersection, union in classes.values() if union > 0]
    return sum(ious) / len(ious) if ious else None


def rank_by_gain(baseline: Run, other: Run) -> list[tuple[float, str]]:
    """Gain in mean IoU of each image that both runs know, the largest loss first and the largest gain last."""
    gains = []
    for name in sorted(baseline.images.keys() & other.images.keys()):
        before, after = image_mean_iou(baseline.images[name]), image_mean_iou(other.images[name])
        if before is not None and after is not None:
            gains.append((after - before, name))
    return sorted(gains)


def choose_names(
    comparison: ComparedRuns, names: Sequence[str], *, num_gain: int, num_loss: int, num_samples: int
) -> dict[str, Role]:
    """Which of the validation images to show, and why.

    Gains and losses are those between the baseline and the best other run; the plain samples are spread evenly over
    the split, so that nobody picks them.
    """
    roles: dict[str, Role] = {}
    challenger = comparison.challenger
    if challenger is not None:
        known = set(names)
        ranked = [(gain, name) for gain, name in rank_by_gain(comparison.baseline, challenger) if name in known]
        roles.update({name: "gain" for gain, name in ranked[::-1][:num_gain] if gain > 0})
        roles.update({name: "loss" for gain, name in ranked[:num_loss] if gain < 0})
    rest = [name for name in names if name not in roles]
    spread = np.linspace(0, len(rest) - 1, min(num_samples, len(rest))).round().astype(int)
    roles.update({rest[index]: "sample" for index in spread.tolist()})
    return roles


def collect_examples(
    run_folders: Sequence[str | Path],
    *,
    titles: Sequence[str] | None = None,
    baseline: str | None = None,
    method: str | None = None,
    num_gain: int = 3,
    num_loss: int = 3,
    num_samples: int = 6,
    root: str | Path | None = None,
    device: str = "cpu",
) -> list[Example]:
    """Predicts some validation images with the last checkpoint of each run, or reads what was predicted elsewhere.

    Args:
        run_folders: The run folders, and those of `aucseg evaluate`; what has neither a checkpoint nor predictions in
            files, or was validated on other images than the baseline, is left out.
        titles: A name for each, by default the folder names.
        baseline: Title of the run that the others are compared with, by default the first.
        method: Title of the run that is set against it, by default the best other one.
        num_gain: Images with the largest gain of the best other run over the baseline.
        num_loss: Images with its largest loss.
        num_samples: Images spread evenly over the split.
        root: Folder of the data, by default what the run's configuration says.
        device: Where to predict.

    Returns:
        Gains (largest first), losses (largest first), samples.

    Raises:
        ValueError: No run has a checkpoint and a configuration, the data or predictions are not to be found, or the
            card is of other classes than a run.
    """
    comparison = load_comparison(run_folders, titles=titles, baseline=baseline, method=method)
    # The images of the baseline may be among those that another run was trained on.
    runs = [run for run in comparison.runs if can_be_shown(run) and comparison.has_same_images(run)]
    if not runs:
        raise ValueError(
            f"no run has a checkpoint {LAST_CHECKPOINT} yet, of those that were validated on the images of "
            f"{comparison.baseline.title}: nothing can be predicted"
        )
    # A run that was trained says more of its data than an evaluation does, such as which images it held out.
    dataset = _validation_images(min(runs, key=lambda run: bool(run.predictions)), root)
    index_of = {pair.name: index for index, pair in enumerate(dataset.pairs)}
    roles = choose_names(comparison, list(index_of), num_gain=num_gain, num_loss=num_loss, num_samples=num_samples)
    # Another image takes the place of one that cannot be read.
    samples = {name: sample for name in roles if (sample := dataset[index_of[name]])["name"] == name}
    predictions: dict[str, dict[str, NDArray[Any]]] = {name: {} for name in samples}
    for run in runs:
        labels_of = _read_labels(run, dataset) if run.predictions else _predicted_labels(run, device, dataset.card)
        for name, sample in samples.items():
            labels = labels_of(name, sample)
            if labels is not None:
                predictions[name][run.title] = labels
    examples = []
    for name, sample in samples.items():
        truth = sample["mask"].numpy()
        image = shown_tensors([sample["image"]], truth.shape)[0]
        examples.append(Example(name, image, truth, predictions[name], roles[name]))
    return examples


def can_be_shown(run: Run) -> bool:
    """Whether there are pictures of a run: it has a checkpoint, or its predictions are in files."""
    return bool(run.predictions) or checkpoint_in(run.folder).is_file()


def _validation_images(run: Run, root: str | Path | None) -> Any:
    if not run.predictions:
        datamodule = _datamodule(run, root)
        return datamodule.validation_dataset(datamodule.evaluation_transform)
    from aucseg.datasets import SegmentationDataset

    data = read_yaml_mapping(run.folder / CONFIG_FILE)["data"]
    return SegmentationDataset(data["card"], root or data.get("root"), data["val_split"])


def _predicted_labels(run: Run, device: str, card: Any) -> Callable[[str, dict[str, Any]], NDArray[Any] | None]:
    import torch

    from aucseg.tensors.upsampling import predicted_labels

    task = _load_task(run, device, card)

    def labels_of(name: str, sample: dict[str, Any]) -> NDArray[Any] | None:
        with torch.inference_mode():
            logits = task.evaluation_logits(sample["image"][None].to(device))
            labels = predicted_labels(logits, sample["mask"].shape[-2:])
        predicted: NDArray[Any] = labels[0].cpu().numpy()
        return predicted

    return labels_of


def _read_labels(run: Run, dataset: Any) -> Callable[[str, dict[str, Any]], NDArray[Any] | None]:
    from aucseg.datasets.prediction_files import PredictionFiles

    found = difference_of_classes(run.class_names, dataset.card.class_names, "in the evaluation")
    if found is not None and not found[1]:
        raise ValueError(f"{run.folder} is of other classes than the card is now: {found[0]}. Evaluate it again")
    options = read_yaml_mapping(run.folder / CONFIG_FILE)["predictions"]
    names = [pair.name for pair in dataset.pairs]
    files = PredictionFiles(Path(options["folder"]), dataset.card, names, options["ids"])

    def labels_of(name: str, sample: dict[str, Any]) -> NDArray[Any] | None:
        # Images that were left out of the evaluation are left out here.
        if name not in run.images or (name not in files.labels and name not in files.scores):
            return None
        return files.labels_from_any(name, sample["mask"].numpy(), options["scores"])

    return labels_of


def collect_pastes(
    run_folder: str | Path,
    *,
    num_images: int = 4,
    max_batches: int = 30,
    root: str | Path | None = None,
    device: str = "cpu",
) -> list[Paste]:
    """Shows what the bank of a run's last checkpoint pastes into augmented training images.

    Args:
        run_folder: Folder of a run with a bank.
        num_images: Images to return, if that many get something pasted.
        max_batches: Training batches to try.
        root: Folder of the data, by default what the run's configuration says.
        device: Where to paste.

    Returns:
        At most `num_images` images that got something; none for a run without a bank.

    Raises:
        ValueError: The run has no checkpoint or no configuration, the data is not to be found, or its card is of other
            classes.
    """
    import torch

    run = read_run(run_folder)
    if not checkpoint_in(run.folder).is_file():
        raise ValueError(f"{run.folder} has no checkpoint {LAST_CHECKPOINT} yet: its bank cannot be shown")
    datamodule = _datamodule(run, root)
    task = _load_task(run, device, datamodule.card)
    if task.bank is None:
        return []
    bank = task.bank.train()
    dataset = datamodule.training_dataset(datamodule.training_transform)
    pastes: list[Paste] = []
    # The augmentations draw from the global generator, which belongs to the caller.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        order = torch.randperm(len(dataset)).tolist()
        size = min(datamodule.batch_size, len(order))
        for start in range(0, min(max_batches * size, len(order) - size + 1), size):
            samples = [dataset[index] for index in order[start : start + size]]
            images = torch.stack([sample["image"] for sample in samples]).to(device)
            masks = torch.stack([sample["mask"] for sample in samples]).to(device)
            new_images, new_masks = bank(images, masks)
            changed = (new_masks != masks) | (new_images != images).any(1)
            for i in torch.nonzero(changed.flatten(1).any(1)).flatten().tolist():
                class_ids = tuple(sorted(new_masks[i][changed[i]].unique().tolist()))
                before, after = shown_tensors([images[i], new_images[i]], masks.shape[1:])
                pastes.append(Paste(samples[i]["name"], before, after, changed[i].cpu().numpy(), class_ids))
                if len(pastes) == num_images:
                    return pastes
    return pastes


def _load_task(run: Run, device: str, card: Any) -> Any:
    from aucseg.training.stored_task import load_task_for

    return load_task_for(card, run.folder, device)


def _datamodule(run: Run, root: str | Path | None) -> Any:
    from aucseg.training.stored_task import data_module_of

    return data_module_of(run.folder, root)


def class_ids_in(arrays: Iterable[NDArray[Any]], num_classes: int, min_pixels: int = 1) -> list[int]:
    """Class ids that have at least `min_pixels` pixels in one of the label maps, in order.

    Example:
        >>> class_ids_in([np.array([[0, 2], [2, 255]]), np.array([[1, 1], [1, 1]])], num_classes=3, min_pixels=2)
        [1, 2]
    """
    found: set[int] = set()
    for array in arrays:
        ids, counts = np.unique(array, return_counts=True)
        found.update(ids[(counts >= min_pixels) & (ids >= 0) & (ids < num_classes)].tolist())
    return sorted(found)
