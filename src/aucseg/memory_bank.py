"""The tail-classes memory bank: brings the pixels of rare classes back into batches that lack them.

Source of the idea: Han et al., "AUCSeg: AUC-oriented Pixel-level Long-tail Semantic Segmentation", NeurIPS 2024.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from aucseg.bank_checks import (
    MASK_DTYPES,
    check_batch,
    check_labels,
    check_settings,
    check_state,
    checked_classes,
    checked_presence,
    checked_tail_classes,
)
from aucseg.components import connected_components, horizontal_runs, keep_where, number_components
from aucseg.pasting import Paste, paste_samples
from aucseg.samples import Sample, cut_samples, sample_nbytes


class TailMemoryBank(nn.Module):
    r"""Stores pixels of tail classes and pastes them into images that lack these classes.

    In training mode each call does, in this order:

    1. *Store.* From every image, every tail class in it is stored: its connected components (8-connectivity) of at
       least ``min_pixels`` pixels, the ``max_components`` largest, each with its place; only the pixels of the class,
       as a copy. A class holds up to ``capacity`` samples (one per image); then a random one is replaced.
    2. *Retrieve.* Of the tail classes :math:`C_{miss}` that are missing, :math:`\lceil |C_{miss}| R_S \rceil` are
       drawn without replacement among those that have something stored (:math:`R_S` = ``sample_ratio``). For each one
       a stored sample is drawn and resized by :math:`R_R` = ``resize_ratio`` (shape: nearest; colours: bilinear over
       pixels of the class alone, so no background bleeds in), or by less if it would not fit into the image.
    3. *Paste.* The sample is placed at random and only the pixels of its class change, in image and mask alike.

    What is pasted is never stored. In evaluation mode the bank returns its inputs and stores nothing. The outputs
    carry no gradient.

    A paste of which nothing would be left, for example wholly over protected pixels, is tried at up to four more
    places, chosen so that one of its pixels meets one that is free.

    With ``presence_target`` :math:`t` the number drawn follows from how common a class is, not from ``sample_ratio``:
    a class that a share :math:`p` of the images holds is pasted into an image that lacks it with probability
    :math:`q = \max(0, (t - p) / (1 - p))`, which lifts its presence to :math:`t` and leaves classes above it alone.
    Less is reached before a first sample is stored, and where images have no free pixel within reach of the sample:
    ``presence_reached`` tells.

    All work is done on the tensors' device. Stored samples follow the device of the images. Counts of stored and
    pasted pixels depend on the data, so that on an accelerator a call waits for the device a few times; random
    choices are made on the host.

    Args:
        tail_classes: class ids (train ids, 0..num_classes-1) to store and paste.
        num_classes: number of classes K.
        capacity: samples per class (S_M of the paper), at least 1.
        sample_ratio: share of the missing classes to paste (R_S), 0..1. Not used with ``presence_target``.
        resize_ratio: scale of what is pasted (R_R), above 0.
        scope: what "missing" means. ``"image"``: each image gets what it lacks. ``"batch"``: classes that no image of
            the batch holds are drawn once, and each goes to a random image; ``presence_target`` is then a share of
            batches, and :math:`p` of images becomes :math:`1 - (1 - p)^B`.
        placement: ``"canvas"``: the whole canvas of the stored image is resized and placed at a random offset, with
            all its components; at ``resize_ratio=1`` and equal image sizes an object returns to where it was cut.
            ``"uniform"``: one component, drawn by its number of pixels, goes anywhere.
        protect_tail: pixels that belong to a tail class, pasted ones included, are not pasted over. Otherwise the
            last paste wins.
        protect_classes: further classes whose pixels are not pasted over, for example the middle classes: where images
            get many pastes, the objects between head and tail are otherwise often covered.
        min_pixels: smallest component to store, in pixels.
        max_bytes: bound on ``nbytes``. Beyond it the oldest sample of the fullest class goes (most samples, then most
            bytes); a sample that is larger by itself is not stored.
        ignore_index: label of pixels without a class; never stored, may be pasted over.
        generator: CPU generator of all random choices; by default an own one, seeded from torch's global generator.
            Its state is saved and loaded with the bank.
        presence_target: share of images (0..1) that should hold each tail class; see above.
        presence: (K,) share of images that hold each class, as ``ClassStatistics`` counts it, for whole images; a crop
            holds fewer, and too little would be pasted. By default it is estimated from the images seen so far.
        max_components: components stored per class and image, at least 1.

    Raises:
        ValueError: an argument out of range.

    Example:
        >>> bank = TailMemoryBank([2], num_classes=3, sample_ratio=1.0, resize_ratio=1.0, min_pixels=1, scope="image")
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

    _tail_lookup: Tensor
    _protected: Tensor

    def __init__(
        self,
        tail_classes: Iterable[int],
        num_classes: int,
        *,
        capacity: int = 5,
        sample_ratio: float = 0.05,
        resize_ratio: float = 0.4,
        scope: Literal["batch", "image"] = "batch",
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
    ) -> None:
        super().__init__()
        self.tail_classes = checked_tail_classes(tail_classes, num_classes, ignore_index)
        check_settings(
            {"capacity": capacity, "min_pixels": min_pixels, "max_components": max_components},
            {"sample_ratio": sample_ratio, "presence_target": presence_target},
            resize_ratio,
            max_bytes,
            {"scope": (scope, ("batch", "image")), "placement": (placement, ("canvas", "uniform"))},
            generator,
        )
        self.num_classes = num_classes
        self.capacity = capacity
        self.sample_ratio = sample_ratio
        self.resize_ratio = resize_ratio
        self.scope = scope
        self.placement = placement
        self.protect_tail = protect_tail
        self.protect_classes = checked_classes(protect_classes, num_classes, "protect_classes")
        self.min_pixels = min_pixels
        self.max_bytes = max_bytes
        self.ignore_index = ignore_index
        self.presence_target = presence_target
        self.max_components = max_components
        self._presence = checked_presence(presence, presence_target, self.tail_classes, num_classes)
        if generator is None:
            generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
        self._generator = generator
        # Position in tail_classes of each label, -1 for the others; the last entry serves every label outside 0..K-1.
        lookup = torch.full((num_classes + 1,), -1)
        lookup[list(self.tail_classes)] = torch.arange(len(self.tail_classes))
        self.register_buffer("_tail_lookup", lookup, persistent=False)
        protected = torch.zeros(num_classes + 1, dtype=torch.bool)
        protected[[*self.protect_classes, *(self.tail_classes if protect_tail else ())]] = True
        self.register_buffer("_protected", protected, persistent=False)
        self.clear()

    def clear(self) -> None:
        """Forgets all samples and the running estimate of presence; keeps the state of the generator."""
        self._samples: list[list[Sample]] = [[] for _ in self.tail_classes]  # each class: oldest sample first
        self._images_seen = 0
        self._images_with = [0] * len(self.tail_classes)
        self._units_seen = 0
        self._units_reached = [0] * len(self.tail_classes)
        self._last_pastes: list[tuple[int, int, int]] = []

    @property
    def nbytes(self) -> int:
        """Bytes of all stored pixels and their places."""
        return sum(sample.nbytes for samples in self._samples for sample in samples)

    @property
    def num_samples(self) -> dict[int, int]:
        """Stored samples of each tail class."""
        return {class_id: len(samples) for class_id, samples in zip(self.tail_classes, self._samples, strict=True)}

    @property
    def presence(self) -> dict[int, float]:
        """Share of images that hold each tail class: as given, or as seen so far (0 before the first image)."""
        shares = self._presence or [seen / max(self._images_seen, 1) for seen in self._images_with]
        return dict(zip(self.tail_classes, shares, strict=True))

    @property
    def presence_reached(self) -> dict[int, float]:
        """Share of images (``scope="batch"``: of batches) that held each tail class after pasting, 0..1.

        Counted since the bank was made, cleared or loaded; what to compare ``presence_target`` with.
        """
        shares = [reached / max(self._units_seen, 1) for reached in self._units_reached]
        return dict(zip(self.tail_classes, shares, strict=True))

    @property
    def last_pastes(self) -> list[tuple[int, int, int]]:
        """What the last call pasted: (image index in the batch, class id, number of pixels), in the order of pasting.

        Pastes of which nothing is left (shrunk to nothing, or no free pixel within reach) are not listed.
        """
        return list(self._last_pastes)

    def extra_repr(self) -> str:
        """Main settings, for ``print(bank)``."""
        return (
            f"{len(self.tail_classes)} of {self.num_classes} classes, capacity={self.capacity}, "
            f"sample_ratio={self.sample_ratio}, resize_ratio={self.resize_ratio}, scope={self.scope!r}, "
            f"placement={self.placement!r}, presence_target={self.presence_target}"
        )

    @torch.no_grad()
    def forward(self, images: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """Stores from a batch, then pastes into a copy of it.

        Args:
            images: (B, C, H, W), uint8 or floating, any number of channels and any range of values. Channels and
                dtype must stay the same from batch to batch as long as samples are stored; H and W may change.
            masks: (B, H, W), labels 0..K-1 or ``ignore_index``, on the device of the images: bool or any integer dtype
                but uint64. (uint8 and int16 to int64 save a copy in int64.)

        Returns:
            ``(images, masks)``: in training mode new tensors of the same shapes, dtypes and memory format; in
            evaluation mode the inputs.

        Raises:
            TypeError: a dtype that is none of the above.
            ValueError: shapes or devices that do not match, images unlike the stored ones, or (checked on the CPU
                alone, since it would make an accelerator wait) a label outside 0..K-1 that is not ``ignore_index``.
        """
        self._last_pastes = []
        if not self.training:
            return images, masks
        check_batch(images, masks, self.tail_classes)
        self._check_format(images)
        self._move_samples(images.device)
        channels_last = not images.is_contiguous() and images.is_contiguous(memory_format=torch.channels_last)
        images = images.clone(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
        mask_dtype = masks.dtype
        # For some dtypes torch has few operations.
        masks = masks.to(mask_dtype if mask_dtype in MASK_DTYPES else torch.int64)
        masks = masks.clone(memory_format=torch.contiguous_format)
        if masks.numel():
            present = self._store(images, masks)
            pastes = self._choose(present)
            if pastes:
                counts = paste_samples(
                    images,
                    masks,
                    pastes,
                    resize_ratio=self.resize_ratio,
                    placement=self.placement,
                    is_protected=self._is_protected,
                    is_spared=lambda labels: self._is_protected(labels) | (self._tail_position(labels) >= 0),
                    first_wins=self.protect_tail,
                    generator=self._generator,
                )
                self._last_pastes = [(p.image, p.class_id, n) for p, n in zip(pastes, counts, strict=True) if n]
            self._count_reached(present, masks)
        return images, masks.to(mask_dtype)

    def _store(self, images: Tensor, masks: Tensor) -> list[list[bool]]:
        """Stores what the batch holds of each tail class; returns (B, T) which tail classes each image holds."""
        num_images, height, width = masks.shape
        num_tail = len(self.tail_classes)
        start, length, label = horizontal_runs(masks)
        if masks.device.type == "cpu":
            check_labels(label, start, masks.shape, self.num_classes, self.ignore_index)
        tail = self._tail_position(label)
        start, length, tail = keep_where(tail >= 0, start, length, tail)
        group = start // (height * width) * num_tail + tail  # one group per image and class

        present = torch.zeros(num_images * num_tail, dtype=torch.bool, device=masks.device)
        present[group] = True
        present_list: list[list[bool]] = present.view(num_images, num_tail).tolist()
        self._images_seen += num_images
        for position in range(num_tail):
            self._images_with[position] += sum(row[position] for row in present_list)

        root = connected_components(start, length, tail, height, width)
        component = number_components(root, length, group, self.min_pixels, self.max_components)
        start, length, group, component = keep_where(component >= 0, start, length, group, component)
        order = group.sort(stable=True).indices
        start, length, group, component = start[order], length[order], group[order], component[order]
        self._store_groups(images, start, length, group, component)
        return present_list

    def _store_groups(self, images: Tensor, start: Tensor, length: Tensor, group: Tensor, component: Tensor) -> None:
        """Stores each group (an image's pixels of one class), given its runs sorted by group, then by place."""
        num_tail = len(self.tail_classes)
        groups, index, num_runs = torch.unique_consecutive(group, return_inverse=True, return_counts=True)
        num_pixels = torch.zeros_like(groups).scatter_add_(0, index, length)
        table: list[list[int]] = torch.stack([groups, num_runs, num_pixels], dim=1).tolist()

        # Slots are chosen before any pixel is copied: what a later image of the same batch replaces need not be
        # copied. An integer stands for a sample that is still to be cut.
        slots: list[list[Sample | int]] = [list(samples) for samples in self._samples]
        for number, (group_id, r, p) in enumerate(table):
            if self.max_bytes is not None and sample_nbytes(r, p, images) > self.max_bytes:
                continue
            stored = slots[group_id % num_tail]
            if len(stored) == self.capacity:
                del stored[int(torch.randint(self.capacity, (), generator=self._generator))]
            stored.append(number)

        new = sorted(entry for stored in slots for entry in stored if isinstance(entry, int))
        if len(new) < len(table):
            chosen = torch.zeros(len(table), dtype=torch.bool)
            chosen[new] = True
            start, length, component = keep_where(chosen.to(index.device)[index], start, length, component)
        run_counts = [table[number][1] for number in new]
        pixel_counts = [table[number][2] for number in new]
        cut = dict(zip(new, cut_samples(images, start, length, component, run_counts, pixel_counts), strict=True))
        self._samples = [[cut[e] if isinstance(e, int) else e for e in stored] for stored in slots]
        self._evict()

    def _evict(self) -> None:
        """Drops samples until the bank is within ``max_bytes``."""
        if self.max_bytes is None:
            return
        excess = self.nbytes - self.max_bytes
        while excess > 0:
            most = max(len(samples) for samples in self._samples)
            candidates = [samples for samples in self._samples if len(samples) == most]
            fullest = max(candidates, key=lambda samples: sum(sample.nbytes for sample in samples))
            excess -= fullest.pop(0).nbytes

    def _choose(self, present: list[list[bool]]) -> list[Paste]:
        """Draws classes, images and samples."""
        units = present if self.scope == "image" else [[any(column) for column in zip(*present, strict=True)]]
        pastes = []
        for number, row in enumerate(units):
            for position in self._draw_classes(row, len(present)):
                samples = self._samples[position]
                image = number if self.scope == "image" else self._randint(len(present))
                pastes.append(Paste(image, self.tail_classes[position], samples[self._randint(len(samples))]))
        return pastes

    def _count_reached(self, present: list[list[bool]], masks: Tensor) -> None:
        """Counts the images or batches that hold each tail class after pasting."""
        if self._last_pastes and not self.protect_tail:  # a paste may have covered all there was of another class
            held = torch.stack(
                [(masks == class_id).flatten(1).any(1) for class_id in self.tail_classes], dim=1
            ).tolist()
        else:
            held = [list(row) for row in present]
            for image, class_id, _ in self._last_pastes:
                held[image][self.tail_classes.index(class_id)] = True
        if self.scope == "batch":
            held = [[any(column) for column in zip(*held, strict=True)]]
        self._units_seen += len(held)
        for position in range(len(self.tail_classes)):
            self._units_reached[position] += sum(row[position] for row in held)

    def _draw_classes(self, row: list[bool], batch_size: int) -> list[int]:
        """Draws among the tail classes that ``row`` lacks and that have something stored."""
        missing = [position for position, held in enumerate(row) if not held]
        stored = [position for position in missing if self._samples[position]]
        if not stored:
            return []
        if self.presence_target is None:
            # The small number keeps 0.07 * 100 = 7.000000000000001 from becoming 8.
            wanted = math.ceil(len(missing) * self.sample_ratio - 1e-9)
            drawn: list[int] = torch.randperm(len(stored), generator=self._generator)[:wanted].tolist()
            return [stored[index] for index in drawn]
        shares = list(self.presence.values())
        uniform: list[float] = torch.rand(len(stored), generator=self._generator, dtype=torch.float64).tolist()
        result = []
        for position, draw in zip(stored, uniform, strict=True):
            share = shares[position] if self.scope == "image" else 1 - (1 - shares[position]) ** batch_size
            if share < 1 and draw < (self.presence_target - share) / (1 - share):
                result.append(position)
        return result

    def _randint(self, high: int) -> int:
        return int(torch.randint(high, (), generator=self._generator))

    def _move_samples(self, device: torch.device) -> None:
        # Each sample is asked: what another process has given may still lie on the CPU.
        if any(sample.values.device != device for samples in self._samples for sample in samples):
            self._samples = [
                [s._replace(runs=s.runs.to(device), values=s.values.to(device)) for s in samples]
                for samples in self._samples
            ]

    def _tail_position(self, labels: Tensor) -> Tensor:
        """Position of each label in ``tail_classes``, -1 for all others."""
        return self._tail_lookup.to(labels.device).index_select(0, self._class_or_other(labels))

    def _is_protected(self, labels: Tensor) -> Tensor:
        return self._protected.to(labels.device).index_select(0, self._class_or_other(labels))

    def _class_or_other(self, labels: Tensor) -> Tensor:
        """Labels as int64; K for every label outside 0..K-1."""
        labels = labels.long()
        return torch.where(labels >= 0, labels, self.num_classes).clamp(max=self.num_classes)

    def _check_format(self, images: Tensor) -> None:
        stored = next((samples[0].values for samples in self._samples if samples), None)
        if stored is not None and (stored.dtype != images.dtype or stored.shape[1] != images.shape[1]):
            raise ValueError(
                f"the bank holds {stored.dtype} pixels of {stored.shape[1]} channels, the images are {images.dtype} "
                f"with {images.shape[1]} channels: feed it at one place of the pipeline, or call clear() first"
            )

    def get_extra_state(self) -> dict[str, Any]:
        """Everything that changes, as tensors and plain containers (part of ``state_dict()``)."""
        return {
            "num_classes": self.num_classes,
            "tail_classes": list(self.tail_classes),
            "generator": self._generator.get_state(),
            "images_seen": self._images_seen,
            "images_with": list(self._images_with),
            "samples": [[sample._asdict() for sample in samples] for samples in self._samples],
        }

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restores ``get_extra_state()``; beyond ``capacity`` and ``max_bytes`` the oldest samples are dropped.

        Raises:
            ValueError: the state is of other classes, or damaged; the bank is then as it was.
        """
        check_state(state, self.num_classes, self.tail_classes)
        try:
            self._generator.set_state(state["generator"].cpu())
        except (RuntimeError, TypeError, AttributeError) as error:
            raise ValueError(f"the saved bank is damaged: its random state cannot be restored: {error}") from error
        self.clear()
        self._images_seen = state["images_seen"]
        self._images_with = list(state["images_with"])
        self._samples = [[Sample(**sample) for sample in samples[-self.capacity :]] for samples in state["samples"]]
        self._evict()

    def __getstate__(self) -> dict[str, Any]:
        # A generator cannot be copied or pickled in every supported version of torch; its state can.
        return {**self.__dict__, "_generator": self._generator.get_state()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        generator = torch.Generator()
        generator.set_state(state["_generator"])
        super().__setstate__({**state, "_generator": generator})  # type: ignore[no-untyped-call]
