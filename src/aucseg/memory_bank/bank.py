"""The tail-classes memory bank: brings the pixels of rare classes back into batches that lack them.

Source of the idea: Han et al., "AUCSeg: AUC-oriented Pixel-level Long-tail Semantic Segmentation", NeurIPS 2024.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from aucseg.memory_bank.checks import (
    check_batch,
    check_plan,
    check_policy,
    check_samples,
    check_settings,
    check_state,
    checked_classes,
    checked_presence,
    checked_tail_classes,
    workable,
)
from aucseg.memory_bank.components import Bools, Ints
from aucseg.memory_bank.paper import paper_settings
from aucseg.memory_bank.paste import Pastes, is_present, place_samples
from aucseg.memory_bank.pixels import dense_format, paste_pixels
from aucseg.memory_bank.plan import BankPlanner, BatchPlan
from aucseg.memory_bank.policy import (
    draw_below,
    draw_share_of_missing,
    draw_to_presence,
    with_default_policy,
)
from aucseg.memory_bank.presence import NeverStored, PresenceCounts, in_any
from aucseg.memory_bank.store import SampleStore
from aucseg.memory_bank.uncompiled import UncompiledModule
from aucseg.randomness import stable_seed
from aucseg.runtime.announce import process_number
from aucseg.tensors.dtypes import plain_tensor

_NO_PASTES: Ints = np.zeros((3, 0), dtype=np.int64)
# Settings of which planner and store have copies.
_FIXED = (
    "tail_classes", "num_classes", "capacity", "max_bytes", "protect_tail", "protect_classes", "min_pixels",
    "ignore_index", "max_components",
)  # fmt: skip


class TailMemoryBank(UncompiledModule):
    r"""Stores pixels of tail classes and pastes them into images that lack these classes.

    In training mode each call does, in this order:

    1. *Store.* From every image, every tail class in it is stored: its connected components (8-connectivity) of at
       least `min_pixels` pixels, the `max_components` largest, each with its place; only the pixels of the class,
       as a copy. A class holds up to `capacity` samples (one per image); then a random one is replaced.
    2. *Retrieve.* Some of the tail classes that are missing are drawn among those that have something stored. For
       each one a stored sample is drawn and resized by `resize_ratio` (shape: nearest; colours: bilinear over pixels
       of the class alone, so no background bleeds in), or by less if it would not fit into the image.
    3. *Paste.* The sample is placed at random and only the pixels of its class change, in image and mask alike.

    What is pasted is never stored. In evaluation mode the bank returns its inputs and stores nothing. The outputs
    carry no gradient.

    A paste of which nothing would be left, for example wholly over protected pixels, is tried at up to four more
    places, chosen so that one of its pixels meets one that is free.

    What is drawn follows from how common a class is, by `presence_target` :math:`t`: a class that a share :math:`p`
    of the images holds is pasted into an image that lacks it with probability
    :math:`q = \max(0, (t - p) / (1 - p))`, which lifts its presence to :math:`t` and leaves classes above it alone.
    Less is reached before a first sample is stored, and where images have no free pixel within reach of the sample:
    `presence_reached` tells. With `sample_ratio` :math:`R_S`, the paper's policy, :math:`\lceil |C_{miss}| R_S \rceil`
    of the missing classes :math:`C_{miss}` are drawn without replacement; `as_in_paper` has all of its settings.

    Places and random choices are worked out on the host, and stored pixels stay on the images' device. A call that has
    to read its masks from an accelerator waits for it; with a `plan` nothing waits. Volumes work like images.

    Args:
        tail_classes: Class ids (train ids, 0..num_classes-1) to store and paste.
        num_classes: Number of classes K.
        capacity: Samples per class (S_M of the paper), at least 1.
        sample_ratio: Share of the missing classes to paste (R_S of the paper), 0..1, instead of a presence target.
        resize_ratio: Scale of what is pasted (R_R of the paper), above 0.
        scope: What "missing" means. `"image"`: each image gets what it lacks. `"batch"`: classes that no image of
            the batch holds are drawn once, and each goes to a random image; `presence_target` is then a share of
            batches, and :math:`p` of images becomes :math:`1 - (1 - p)^B`.
        placement: `"canvas"`: the whole canvas of the stored image is resized and placed at a random offset, with
            all its components; at `resize_ratio=1` and equal image sizes an object returns to where it was cut.
            `"uniform"`: one component, drawn by its number of pixels, goes anywhere.
        protect_tail: Pixels that belong to a tail class, pasted ones included, are not pasted over. Otherwise the
            last paste wins.
        protect_classes: Further classes whose pixels are not pasted over, for example the middle classes: where images
            get many pastes, the objects between head and tail are otherwise often covered.
        min_pixels: Smallest component to store, in pixels. Of a class whose components are all smaller nothing is
            stored; a warning says so once.
        max_bytes: Bound on `nbytes`, not on the room around it. Beyond it the oldest sample of the fullest class
            goes (most samples, then most bytes); a sample that is larger by itself is not stored.
        ignore_index: Label of pixels without a class; never stored, may be pasted over.
        generator: CPU generator of all random choices; by default one of its own, seeded from torch's global
            generator and the rank. Its state is saved and loaded with the bank.
        presence_target: Share of images (0..1) that should hold each tail class; see above. By default 0.1, unless
            there is a `sample_ratio`.
        max_factor: Presence rises at most this many times, at least 1: :math:`t` becomes
            :math:`\min(t, \mathrm{max\_factor} \cdot p)`, and a sample is shown about that many times an epoch. By
            default 5, and no bound where a `presence_target` is given.
        presence: (K,) share of images that hold each class, as `ClassStatistics` counts it, for whole images; a crop
            holds fewer, and too little would be pasted. By default it is estimated from the images seen so far.
        max_components: Components stored per class and image, at least 1.

    Raises:
        TypeError: Classes that are not given by their ids.
        ValueError: An argument out of range, or `sample_ratio` beside `presence_target`, `max_factor` or `presence`.

    Example:
        >>> bank = TailMemoryBank([2], num_classes=3, presence_target=1.0, min_pixels=1)
        >>> images = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
        >>> masks = torch.zeros(2, 4, 4, dtype=torch.uint8)
        >>> images[0, :, 1, 2:] = 99
        >>> masks[0, 1, 2:] = 2
        >>> pasted_images, pasted_masks = bank(images, masks)
        >>> pasted_masks[1].nonzero().tolist()
        [[1, 2], [1, 3]]
        >>> pasted_images[1, 0, 1].tolist()
        [0, 0, 99, 99]
        >>> bank.last_pastes
        [(1, 2, 2)]
    """

    def __init__(
        self,
        tail_classes: Iterable[int],
        num_classes: int,
        *,
        capacity: int = 5,
        sample_ratio: float | None = None,
        resize_ratio: float = 1.0,
        scope: Literal["batch", "image"] = "image",
        placement: Literal["canvas", "uniform"] = "canvas",
        protect_tail: bool = True,
        min_pixels: int = 16,
        max_bytes: int | None = None,
        ignore_index: int = 255,
        generator: torch.Generator | None = None,
        presence_target: float | None = None,
        presence: Sequence[float] | Tensor | None = None,
        max_components: int = 32,
        protect_classes: Iterable[int] = (),
        max_factor: float | None = None,
    ) -> None:
        super().__init__()
        policy = with_default_policy(
            {"sample_ratio": sample_ratio, "presence_target": presence_target, "max_factor": max_factor}
        )
        presence_target, max_factor = policy["presence_target"], policy["max_factor"]
        self.tail_classes = checked_tail_classes(tail_classes, num_classes, ignore_index)
        check_settings(
            {
                "num_classes": num_classes,
                "capacity": capacity,
                "min_pixels": min_pixels,
                "max_components": max_components,
            },
            {"sample_ratio": sample_ratio, "presence_target": presence_target},
            resize_ratio,
            max_bytes,
            {"scope": (scope, ("batch", "image")), "placement": (placement, ("canvas", "uniform"))},
            generator,
        )
        check_policy(sample_ratio, presence_target, max_factor)
        # Integers of NumPy would keep a checkpoint from being read.
        num_classes, ignore_index = int(num_classes), int(ignore_index)
        capacity, min_pixels, max_components = int(capacity), int(min_pixels), int(max_components)
        self.num_classes = num_classes
        self.capacity, self.max_bytes = capacity, None if max_bytes is None else int(max_bytes)
        self.sample_ratio, self.resize_ratio = sample_ratio, resize_ratio
        self.scope, self.placement = scope, placement
        self.protect_tail = protect_tail
        self.protect_classes = checked_classes(protect_classes, num_classes, "protect_classes")
        self.min_pixels, self.ignore_index = min_pixels, ignore_index
        self.presence_target, self.max_factor = presence_target, max_factor
        self.max_components = max_components
        self._presence = checked_presence(presence, sample_ratio, self.tail_classes, num_classes)
        if generator is None:
            # Processes that were seeded alike must not paste in the same steps.
            seed = stable_seed(int(torch.randint(2**62, (), device="cpu")), process_number())
            generator = torch.Generator().manual_seed(seed)
        self._generator = generator
        protected = {*self.protect_classes, *(self.tail_classes if protect_tail else ())}
        self._planner = BankPlanner(
            self.tail_classes, tuple(sorted(protected)), num_classes, ignore_index, min_pixels, max_components
        )
        self.clear()

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _FIXED and "_planner" in self.__dict__:
            raise AttributeError(
                f"{name} is fixed when a bank is made, since its samples and plans depend on it: make a new bank, and "
                "give it the samples of this one by load_state_dict(bank.state_dict())"
            )
        super().__setattr__(name, value)

    @classmethod
    def as_in_paper(
        cls, data_set: str, tail_classes: Iterable[int], num_classes: int, **options: Any
    ) -> TailMemoryBank:
        """Makes a bank with the settings of the paper and, for scope and placement, of its code.

        `capacity` (S_M) is 5, `scope` image, `placement` canvas; the others depend on the data set:

        - `"ade20k"`: `sample_ratio` (R_S) 0.05, `resize_ratio` (R_R) 0.4
        - `"cityscapes"`: 1 and 1
        - `"coco_stuff"`: 0.05 and 0.1

        Args:
            data_set: One of these names.
            tail_classes: As above.
            num_classes: As above.
            **options: Any other option, or one of these settings with another value.

        Raises:
            ValueError: Another data set, or what the bank refuses.

        Example:
            >>> TailMemoryBank.as_in_paper("cityscapes", [6, 12, 14, 15, 16, 17, 18], 19).resize_ratio
            1.0
        """
        return cls(tail_classes, num_classes, **{**paper_settings(data_set), **options})

    def clear(self) -> None:
        """Forgets all samples and the running estimate of presence; keeps the state of the generator."""
        num_tail = len(self.tail_classes)
        self._store = SampleStore(num_tail, self.capacity, self.max_bytes)
        self._counts = PresenceCounts(num_tail)
        self._never_stored = NeverStored(self.tail_classes, self.min_pixels, self.max_bytes)
        self._last_pastes: Ints = _NO_PASTES

    @property
    def nbytes(self) -> int:
        """Bytes of all stored pixels and their places; with room, the memory is up to half as large again."""
        return self._store.nbytes

    @property
    def num_samples(self) -> dict[int, int]:
        """Stored samples of each tail class."""
        return dict(zip(self.tail_classes, map(len, self._store.samples), strict=True))

    @property
    def presence(self) -> dict[int, float]:
        """Share of images that hold each tail class: as given, or as seen so far (0 before the first image)."""
        return dict(zip(self.tail_classes, self._presence or self._counts.seen, strict=True))

    @property
    def presence_reached(self) -> dict[int, float]:
        """Share of images (`scope="batch"`: of batches) that held each tail class after pasting, 0..1.

        Counted since the bank was made, cleared or loaded; what to compare `presence_target` with.
        """
        return dict(zip(self.tail_classes, self._counts.reached, strict=True))

    @property
    def last_pastes(self) -> list[tuple[int, int, int]]:
        """What the last call pasted: (image index in the batch, class id, number of pixels), in the order of pasting.

        Pastes of which nothing is left (shrunk to nothing, or no free pixel within reach) are not listed.
        """
        return [(image, class_id, count) for image, class_id, count in self._last_pastes.T.tolist()]

    def extra_repr(self) -> str:
        """Main settings, for `print(bank)`."""
        return (
            f"{len(self.tail_classes)} of {self.num_classes} classes, capacity={self.capacity}, "
            f"sample_ratio={self.sample_ratio}, resize_ratio={self.resize_ratio}, scope={self.scope!r}, "
            f"placement={self.placement!r}, presence_target={self.presence_target}, max_factor={self.max_factor}"
        )

    @torch.no_grad()
    def forward(self, images: Tensor, masks: Tensor, plan: BatchPlan | None = None) -> tuple[Tensor, Tensor]:
        """Stores from a batch, then pastes into a copy of it.

        Args:
            images: (B, C, H, W), or volumes (B, C, D, H, W), uint8 or floating, any number of channels and any range
                of values. Channels and dtype must stay the same from batch to batch as long as samples are stored; H
                and W may change.
            masks: (B, H, W) or (B, D, H, W), labels 0..K-1 or `ignore_index`, on the device of the images: bool or
                any integer dtype but uint64. (uint8 and int16 to int64 save a copy in int64.)
            plan: What `bank.plan(masks)` or `bank.planner(masks)` has made of these masks, while on the CPU:
                nothing then waits for the device, and the pastes are the same.

        Returns:
            `(images, masks)`: in training mode new tensors of the same shapes, dtypes and memory format; in
            evaluation mode the inputs.

        Raises:
            TypeError: A dtype other than these.
            ValueError: Shapes or devices that do not match, images unlike the stored ones, a label outside 0..K-1
                that is not `ignore_index`, or a plan of other settings or masks (on CUDA other masks of the same
                shape are an assertion of the device, which says so later; on other accelerators nobody notices).
        """
        self._last_pastes = _NO_PASTES
        if not self.training:
            return images, masks
        check_batch(images, masks, self.tail_classes)
        images, masks = plain_tensor(images), plain_tensor(masks)
        self._store.check_format(images)
        mask_dtype = masks.dtype
        if plan is not None:
            check_plan(plan, self.planner, masks)
        elif masks.numel():
            plan = self.planner(masks)
        images = images.clone(memory_format=dense_format(images))
        masks = workable(masks).clone(memory_format=torch.contiguous_format)
        if plan is not None and masks.numel():
            self._counts.see(plan.present)
            self._never_stored.update(plan.present, self._store.add(plan, images, self._generator))
            held = self._paste(images, masks, plan, self._choose(plan.present))
            self._counts.reach(held if self.scope == "image" else in_any(held))
        return images, masks.to(mask_dtype)

    @property
    def planner(self) -> BankPlanner:
        """Makes the plans of this bank; it can be pickled and given to the processes of a loader."""
        return self._planner

    def plan(self, masks: Tensor) -> BatchPlan:
        """Takes from a batch's masks what `bank(images, masks, plan=plan)` needs of them; draws and stores nothing.

        Args:
            masks: (B, H, W) or (B, D, H, W), on the CPU; on an accelerator this waits for the device.
        """
        return self._planner(masks)

    def _paste(self, images: Tensor, masks: Tensor, plan: BatchPlan, pastes: Pastes) -> Bools:
        """Pastes into images and masks, in place; returns (B, T) which tail classes each image holds then."""
        if not pastes.samples:
            return plan.present
        placed = place_samples(
            pastes,
            plan,
            resize_ratio=self.resize_ratio,
            placement=self.placement,
            first_wins=self.protect_tail,
            generator=self._generator,
        )
        if len(placed.pieces.begin):
            paste_pixels(images, masks, self._store.pixels, placed.pieces)
        self._last_pastes = np.stack([pastes.image, pastes.label, placed.counts])[:, placed.counts > 0]
        return is_present(plan, pastes, placed)

    def _choose(self, present: Bools) -> Pastes:
        """Draws classes, images and samples."""
        num_samples = np.array([len(samples) for samples in self._store.samples])
        missing = ~(present if self.scope == "image" else in_any(present))
        unit, position = self._draw_classes(missing, missing & (num_samples > 0), len(present))
        image = unit if self.scope == "image" else draw_below(np.full_like(unit, len(present)), self._generator)
        index = draw_below(num_samples[position], self._generator)
        stored = self._store.samples
        samples = [stored[which][one] for which, one in zip(position.tolist(), index.tolist(), strict=True)]
        return Pastes(image, position, np.array(self.tail_classes)[position], samples)

    def _draw_classes(self, missing: Bools, stored: Bools, batch_size: int) -> tuple[Ints, Ints]:
        """Draws among the tail classes that a unit lacks and that have something stored."""
        if self.presence_target is None:
            assert self.sample_ratio is not None
            return draw_share_of_missing(missing, stored, self.sample_ratio, self._generator)
        shares = list(self.presence.values())
        if self.scope == "batch":
            shares = [1 - (1 - share) ** batch_size for share in shares]
        return draw_to_presence(stored, shares, self.presence_target, self._generator, self.max_factor)

    def add_samples(self, samples: Sequence[Sequence[Mapping[str, Any]]]) -> None:
        """Stores samples of a bank with the same tail classes, such as that of another process.

        Args:
            samples: For each tail class in ascending order any number of samples, as `get_extra_state()` holds them
                under `"samples"`. Beyond `capacity` and `max_bytes` the oldest go.

        Raises:
            ValueError: Damaged samples, or samples unlike the stored ones; the bank is then as it was.
        """
        check_samples(samples, self.tail_classes)
        check_samples([[*own, *new] for own, new in zip(self._store.state(), samples, strict=True)], self.tail_classes)
        self._store.extend(samples)

    def get_extra_state(self) -> dict[str, Any]:
        """Everything that changes, as tensors and plain containers (part of `state_dict()`)."""
        return {
            "num_classes": self.num_classes,
            "tail_classes": list(self.tail_classes),
            "generator": self._generator.get_state(),
            "images_seen": self._counts.images,
            "images_with": list(self._counts.images_with),
            "samples": self._store.state(),
        }

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restores `get_extra_state()`; beyond `capacity` and `max_bytes` the oldest samples are dropped.

        Raises:
            ValueError: The state is of other classes, or damaged; the bank is then as it was.
        """
        check_state(state, self.num_classes, self.tail_classes)
        try:
            self._generator.set_state(state["generator"].cpu())
        except (RuntimeError, TypeError, AttributeError) as error:
            raise ValueError(f"the saved bank is damaged: its random state cannot be restored: {error}") from error
        self.clear()
        self._counts.images = state["images_seen"]
        self._counts.images_with = list(state["images_with"])
        self._store.extend(state["samples"])
        nothing = np.zeros((0, len(self.tail_classes)), dtype=bool)
        self._never_stored.update(nothing, {position for position, own in enumerate(self._store.samples) if own})

    def __getstate__(self) -> dict[str, Any]:
        # A generator cannot be copied or pickled in every supported version of torch; its state can.
        # As bytes: a process that is spawned gets tensors by reference, and nothing here would hold this one.
        return {**self.__dict__, "_generator": self._generator.get_state().numpy().tobytes()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        generator = torch.Generator()
        generator.set_state(torch.frombuffer(bytearray(state["_generator"]), dtype=torch.uint8))
        super().__setstate__({**state, "_generator": generator})
