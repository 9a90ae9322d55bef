"""The data side of a training run: a data set card in, loaders of uint8 batches out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import torch
import torch.distributed as dist
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from aucseg.datasets import DatasetCard, SegmentationDataset
from aucseg.datasets.hub_folder import root_of
from aucseg.datasets.shards import StreamedSegmentationDataset
from aucseg.hints import shorten
from aucseg.loading.evaluation_batches import EvaluationBatches, EvaluationImages, collate_any_size, largest_image
from aucseg.loading.held_out import share_to_hold_out
from aucseg.loading.photometric import COLOUR_CHANGES, distort_colours
from aucseg.loading.sample_order import SampleStream, SeededDataset, epoch_order
from aucseg.loading.shard_order import ShardStream
from aucseg.loading.training_parts import TrainingParts
from aucseg.loading.transforms import evaluation_transform, training_transform
from aucseg.randomness import stable_seed
from aucseg.runtime.import_paths import Entries
from aucseg.statistics.class_statistics import ClassStatistics
from aucseg.tensors.imagenet import IMAGENET_MEAN
from aucseg.training.bank_plans import planned_by_workers
from aucseg.training.data_description import describe_run
from aucseg.training.loader_checks import (
    check_at_least,
    check_held_out,
    check_number_of_shards,
    check_sampling,
    check_shared_memory,
    check_tile,
    load_statistics,
)
from aucseg.training.processes import part_of, print_note, start_worker

# Of images that are read once, with cache "memory".
_DECODING_THREADS = 4


class SegmentationDataModule(LightningDataModule):
    """Loaders over a data set described by a card.

    Batches are dicts `{"image": uint8 (B, C, H, W), "mask": uint8 or int64 (B, H, W), "name": list of str}`; in a
    validation batch with images of unequal sizes image and mask are lists of B tensors.

    Args:
        card: Name of a shipped card, path of a card's YAML file, or a card's YAML text.
        root: Folder of the data set; None for data that is embedded in the package, or in `hf`.
        hf: A data set of the library `datasets` instead of a folder: what it has saved to disk, parquet files, or a
            name on the hub; see `aucseg.datasets.hub_folder`.
        image_column: Its column of images.
        mask_column: Its column of masks; None for the one that is called so.
        batch_size: Training crops in a batch, on each rank.
        eval_batch_size: Validation images in a batch; those of one size go through the model together.
        num_workers: Loader processes; 0 loads in the main process.
        crop_size: `(height, width)` of the training crops.
        scale: Range of the random scale factor.
        base_size: `(long, short)` edges that training images are fitted into before scaling; None for their own size.
        eval_base_size: The same for validation images (masks keep their size); None for their own size.
        max_class_share: Largest share of a crop's labelled pixels that one class may hold where a redraw finds such a
            crop without losing a class; rare classes may hold more, see
            `aucseg.loading.crops.ClassAwareCrop`.
        flip: Probability of a horizontal flip.
        photometric: Whether to distort the colours of training images. "device" draws the same changes in the loader
            and makes them on the device the batch is trained on, where they cost little; outside a trainer call
            `aucseg.loading.photometric.distort_colours` with the batch's `"colour_changes"`.
        augmentation: Transforms of torchvision v2 or albumentations, or functions of a sample, for the crops, see
            `aucseg.loading.own_augmentation.OwnAugmentation`: import paths, or mappings with class_path and init_args.
        fill: Padding value of images smaller than the crop.
        train_split: Name of the card's split to train on.
        val_split: Name of the card's split to validate on.
        on_error: "raise" or "skip" for files that cannot be read: in training the next image takes the place of one
            that is skipped, in validation it is left out.
        follow_symlinks: Whether files may lie outside the root, reached by symbolic links below it (DVC, git-annex, the
            cache of a hub); false where the folder is a stranger's. Members of shards are never links.
        tile: Side in pixels of the windows by which larger images are read, see `aucseg.SegmentationDataset`: in
            training any window around each tile, in validation all tiles. None reads images whole.
        seed: Seed of order and augmentation.
        sampler: "random" (every image once an epoch), "sequential" (the same in the order of the files), "rare_class"
            or "repeat_factor" (`aucseg.loading.rare_classes`: `RareClassSampler`, `RepeatFactorSampler`).
        sampler_options: Options of the last two, such as `temperature` and `max_factor`.
        held_out_share: For choosing settings without looking at the validation split: this share of the training
            images is kept from training and validated on, each class in its share (`aucseg.loading.held_out`), the same
            images whatever the seed. 0 for an ordinary run; None for what the card says where it has no validation
            split, else 0.
        held_out_by: "sequence" holds out whole sequences where the images' names tell any (frames of a video are nearly
            copies of each other), "image" takes images one by one.
        validate_held_out: False validates on the validation split all the same: the images held out are kept for
            `aucseg adjust`.
        fold: `[i, k]` deals the training images out to k folds (`aucseg.loading.folds`), validates on fold i, counted
            from 0, and trains on the others.
        statistics: File of the training split's class statistics, as `aucseg stats` writes it; None counts the masks
            when something needs the counts (each process its part).
        rare_crop: How often a training crop is one around a pixel of a rare class, in [0, 1].
        rare_crop_classes: Train ids or names of the rare classes; None for the tail that the card names.
        shards: Tar shards to train on instead of the root's files (paths, URLs, `train-{0000..0099}.tar`,
            `shards/*.tar`), see `aucseg.datasets.shards`.
        val_shards: The same for validation; None for the files of `val_split`.
        shuffle_buffer: Samples among which a loader process draws with shards and sampler "random".
        cache: "memory" reads and decodes each training image once, when training begins, and keeps it in memory (4
            bytes a pixel of RGB, on each rank); for data that fit there. The samples are the same. None reads files
            each time.

    Raises:
        ValueError: For values out of their range, and for a trainer without `max_steps`.
    """

    def __init__(
        self,
        card: str,
        root: str | None = None,
        *,
        hf: str | None = None,
        image_column: str = "image",
        mask_column: str | None = None,
        batch_size: int = 8,
        eval_batch_size: int = 1,
        num_workers: int = 2,
        crop_size: tuple[int, int] = (512, 512),
        scale: tuple[float, float] = (0.5, 2.0),
        base_size: tuple[int, int] | None = None,
        eval_base_size: tuple[int, int] | None = None,
        max_class_share: float = 0.75,
        flip: float = 0.5,
        photometric: bool | Literal["device"] = True,
        augmentation: Entries | Sequence[Any] | None = None,
        fill: Sequence[float] = IMAGENET_MEAN,
        train_split: str = "train",
        val_split: str = "val",
        on_error: str = "raise",
        follow_symlinks: bool = True,
        tile: int | None = None,
        seed: int = 0,
        sampler: str = "random",
        sampler_options: dict[str, Any] | None = None,
        held_out_share: float | None = None,
        held_out_by: str = "sequence",
        validate_held_out: bool = True,
        fold: tuple[int, int] | None = None,
        statistics: str | None = None,
        rare_crop: float = 0.0,
        rare_crop_classes: list[int | str] | None = None,
        shards: str | list[str] | None = None,
        val_shards: str | list[str] | None = None,
        shuffle_buffer: int = 1000,
        cache: str | None = None,
    ) -> None:
        super().__init__()
        check_sampling(cache=cache, shards=shards, sampler=sampler, sampler_options=sampler_options or {})
        check_tile(tile, cache=cache, shards=shards or val_shards, base_size=base_size or eval_base_size)
        self.card = DatasetCard.load(card)
        given = {"held_out_share": held_out_share, "val_split": val_split, "val_shards": val_shards, "shards": shards}
        held_out_share = share_to_hold_out(self.card, {**given, "fold": fold})
        check_held_out(held_out_share, held_out_by, fold=fold, shards=shards, statistics=statistics)
        check_at_least(1, batch_size=batch_size, eval_batch_size=eval_batch_size, shuffle_buffer=shuffle_buffer)
        check_at_least(0, num_workers=num_workers)
        self.root = root_of({"root": root, "hf": hf, "image_column": image_column, "mask_column": mask_column})
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.num_workers = num_workers
        self.train_split = train_split
        self.val_split = val_split
        self.on_error = on_error
        self.follow_symlinks = follow_symlinks
        self.tile = tile
        self._has_described_data = False
        self.seed = seed
        self.sampler = sampler
        self.sampler_options = dict(sampler_options or {})
        self.held_out_share = held_out_share
        self.fold = fold
        self.parts = TrainingParts(held_out_share, fold, held_out_by, num_workers)
        self.validate_held_out = validate_held_out
        self._statistics = None if statistics is None else load_statistics(statistics, self.card)
        self.shards = shards
        self.val_shards = val_shards
        self.shuffle_buffer = shuffle_buffer
        self.cache = cache
        # Three channels and a mask; bands with a range are of four bytes each.
        channel_bytes = self.card.num_channels * (1 if self.card.value_range is None else 4)
        self._crop_bytes = (channel_bytes + 1) * crop_size[0] * crop_size[1]
        self.training_transform = training_transform(
            crop_size,
            scale=scale,
            base_size=base_size,
            max_class_share=max_class_share,
            flip=flip,
            photometric=photometric,
            ignore_index=self.card.ignore_index,
            fill=self._fill(fill),
            rare_classes=self._rare_crop_classes(rare_crop_classes, needed=rare_crop > 0),
            rare_probability=rare_crop,
            augmentation=augmentation or (),
        )
        self.evaluation_transform = evaluation_transform(base_size=eval_base_size)

    def _fill(self, fill: Sequence[float]) -> tuple[float, ...]:
        """The padding values; the default, which has colours, is the middle of the range for images without."""
        has_default = tuple(fill) == tuple(IMAGENET_MEAN) and self.card.num_channels != len(IMAGENET_MEAN)
        return (127.5,) if has_default else tuple(fill)

    def dataset(
        self, split: str, transform: Callable[[dict[str, Any]], dict[str, Any]] | None, *, random_windows: bool = False
    ) -> SegmentationDataset:
        """The data set of one split of the card."""
        return SegmentationDataset(
            self.card,
            self.root,
            split,
            transform=transform,
            on_error=self.on_error,
            follow_symlinks=self.follow_symlinks,
            tile=self.tile,
            random_windows=random_windows,
        )

    def setup(self, stage: str) -> None:
        """Says once, before the first step, which files are used, which are not, and which classes cannot be judged."""
        if self._has_described_data or self._place[0]:
            return
        self._has_described_data = True
        for line in describe_run(self, trains=stage == "fit"):
            print_note(line)

    def training_dataset(self, transform: Callable[[dict[str, Any]], dict[str, Any]] | None) -> SegmentationDataset:
        """The training images, without those held out and those of the fold."""
        return self.parts.trained_on(self.dataset(self.train_split, transform, random_windows=True))

    def validation_dataset(self, transform: Callable[[dict[str, Any]], dict[str, Any]] | None) -> SegmentationDataset:
        """The validation split, or the training images that are held out or in the fold."""
        if self.validates_held_out:
            return self.held_out_dataset(transform)
        if not self.validates_training_images:
            return self.dataset(self.val_split, transform)
        return self.parts.in_fold(self.dataset(self.train_split, transform))

    @property
    def validates_held_out(self) -> bool:
        """Whether training images that are held out are validated on, instead of a split or shards."""
        return self.held_out_share > 0 and self.validate_held_out and self.val_shards is None

    @property
    def validates_training_images(self) -> bool:
        """Whether a part of the training split is validated on, instead of another split or shards."""
        return self.validates_held_out or (self.fold is not None and self.val_shards is None)

    @property
    def validation_name(self) -> str:
        """What is validated on, in words."""
        if self.validates_held_out:
            return "held-out training images"
        if self.fold is not None and self.validates_training_images:
            return f"fold {self.fold[0]} of {self.fold[1]}"
        if self.val_shards is not None:
            return f"shards {self.val_shards if isinstance(self.val_shards, str) else shorten(self.val_shards, 3)}"
        return f"split {self.val_split!r}"

    def held_out_dataset(self, transform: Callable[[dict[str, Any]], dict[str, Any]] | None) -> SegmentationDataset:
        """The training images that are held out.

        Raises:
            ValueError: None are.
        """
        return self.parts.held_out(self.dataset(self.train_split, transform))

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of the data: which training images are held out, or in the fold."""
        return {"card": self.card.name, **self.parts.state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes the images that the run of a checkpoint has held out; best before anything asks for images.

        Raises:
            ValueError: Others were drawn already.
        """
        is_other = isinstance(state_dict, dict) and state_dict.get("card", self.card.name) != self.card.name
        if not is_other:  # of other data nothing was trained on
            self.parts.restore(state_dict)

    def _rare_crop_classes(self, classes: list[int | str] | None, needed: bool) -> tuple[int, ...]:
        if classes is not None:
            return tuple(self.card.ids_of(classes, "data.rare_crop_classes"))
        if needed and self.card.tail_classes is None:
            raise ValueError(f"card {self.card.name!r} names no tail classes: give data.rare_crop_classes")
        return tuple(self.card.tail_classes or ())

    @property
    def _place(self) -> tuple[int, int]:
        """This process's rank and the number of processes."""
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    def class_statistics(self) -> ClassStatistics:
        """Counts of the training images, without those held out; several processes count a part each."""
        if self._statistics is None:
            rank, world_size = self._place
            if self.shards is not None:
                statistics = ClassStatistics.from_dataset(self._stream(self.shards, None))
            else:
                dataset = self.training_dataset(None)
                dataset.pairs = list(part_of(dataset.pairs, rank, world_size))
                statistics = ClassStatistics.from_dataset(dataset, num_workers=self.num_workers)
            if world_size > 1:
                parts: list[Any] = [None] * world_size
                dist.all_gather_object(parts, statistics)
                statistics = sum(parts[1:], parts[0])
            self._statistics = statistics
        return self._statistics

    def class_counts(self) -> Tensor:
        """Number of training pixels of each class, (K,) int64."""
        return torch.as_tensor(self.class_statistics().pixel_counts)

    def train_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Endless-order training loader; on a resumed run it starts at the batch that comes next."""
        (rank, world_size), start_batch = self._place, 0
        if self.trainer is not None:
            if self.trainer.max_steps == -1:
                raise ValueError(
                    "give trainer.max_steps: batches come without end ('aucseg fit' takes trainer.max_epochs as well)"
                )
            start_batch = self.trainer.global_step * self.trainer.accumulate_grad_batches
        check_shared_memory(self.num_workers, self.batch_size * self._crop_bytes)
        options = self._loader_options() | planned_by_workers(self.trainer)
        if self.shards is not None:
            shards = self._stream(self.shards, None, shuffle=self.shuffle_buffer if self.sampler == "random" else 0)
            check_number_of_shards(len(shards.urls), self.num_workers, world_size)
            self._tell_of_other_files([url.rpartition("/")[2] for url in shards.urls])
            shard_stream = ShardStream(
                shards,
                self.training_transform,
                batch_size=self.batch_size,
                seed_of=partial(stable_seed, self.seed),
                rank=rank,
                world_size=world_size,
                start_batch=start_batch,
            )
            return DataLoader(shard_stream, batch_size=self.batch_size, **options)
        dataset = self.training_dataset(self.training_transform)
        self._tell_of_other_files(list(dict.fromkeys(pair.name for pair in dataset.pairs)))
        if self.cache == "memory":
            dataset.keep_in_memory(max(_DECODING_THREADS, self.num_workers))
        stream = SampleStream(
            epoch_order(self.sampler, len(dataset), self.seed, self.class_statistics, self.sampler_options),
            batch_size=self.batch_size,
            seed=self.seed,
            rank=rank,
            world_size=world_size,
            start_batch=start_batch,
        )
        return DataLoader(SeededDataset(dataset), batch_sampler=stream, **options)

    def _tell_of_other_files(self, files: Sequence[str]) -> None:
        """A resumed run with other training files is allowed, but hardly ever meant."""
        changed = self.parts.what_changed(files)
        # A finished run does not go on.
        if changed and self.trainer is not None and self.trainer.global_step < self.trainer.max_steps:
            print_note(
                f"the run goes on with other training files than before ({changed}): it draws them in another order, "
                "and does not end bit by bit as it would have"
            )

    def val_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Validation loader, in order; processes take whole batches in turn, each image once.

        In Lightning's check before the first step (`trainer.num_sanity_val_steps`) the batch with the largest image
        comes first.
        """
        rank, world_size = self._place
        options = {**self._loader_options(), "collate_fn": collate_any_size}
        if self.val_shards is not None:
            stream = self._stream(self.val_shards, self.evaluation_transform)
            return DataLoader(stream, batch_size=self.eval_batch_size, **options)
        dataset = self.validation_dataset(self.evaluation_transform)
        if len(dataset) < world_size:
            raise ValueError(
                f"{self.validation_name}: {len(dataset)} images for {world_size} processes: validate with fewer"
            )

        def rehearse() -> int | None:
            return largest_image(dataset) if self.trainer is not None and self.trainer.sanity_checking else None

        batches = EvaluationBatches(
            len(dataset), self.eval_batch_size, rank=rank, world_size=world_size, rehearse=rehearse
        )
        return DataLoader(EvaluationImages(dataset), batch_sampler=batches, **options)

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """Distorts the colours of a training batch where its loader has left that to the device."""
        changes = batch.pop(COLOUR_CHANGES, None)
        return batch if changes is None else {**batch, "image": distort_colours(batch["image"], changes)}

    def _stream(
        self, urls: str | list[str], transform: Callable[[dict[str, Any]], dict[str, Any]] | None, shuffle: int = 0
    ) -> StreamedSegmentationDataset:
        return StreamedSegmentationDataset(
            self.card, urls, transform=transform, shuffle=shuffle, seed=self.seed, on_error=self.on_error
        )

    def _loader_options(self) -> dict[str, Any]:
        rank, _ = self._place
        return {
            "worker_init_fn": partial(start_worker, rank=rank),
            "num_workers": self.num_workers,
            "persistent_workers": self.num_workers > 0,
            "pin_memory": torch.cuda.is_available(),
            # Otherwise every new iterator draws from the global generator, and a resumed run would drift.
            "generator": torch.Generator().manual_seed(self.seed),
        }
