"""Logits of many images in bounded memory: only what a bounded offset for each class could decide otherwise is kept."""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from aucseg.metrics.pixel_metric import bands_at, check_logits
from aucseg.tensors.labels import check_ignore_index, is_integer, refuse_default_ignore_label, refuse_other_labels
from aucseg.tensors.upsampling import two_logits

Integers = npt.NDArray[np.integer[Any]]
Floats = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class CandidateScores:
    """The scores of the classes that may win, pixel by pixel, and the counts of the pixels that are settled.

    N open pixels with E scores in all, G clusters (images, or groups of images), K classes.

    Attributes:
        label: `(N,)` label of each open pixel.
        cluster: `(N,)` cluster of each open pixel.
        weight: `(K,)` pixels that an open pixel of each label stands for: 1 unless pixels had to be left out.
        start: `(N + 1,)` where the scores of each pixel begin.
        class_id: `(E,)` class of each score, rising within a pixel.
        score: `(E,)` logits.
        num_true: `(G, K)` pixels of each label, all of them.
        settled_hits: `(G, K)` settled pixels that are predicted rightly.
        settled_predicted: `(G, K)` settled pixels that are predicted as each class.
        clusters: What the G clusters are called.
    """

    label: Integers
    cluster: Integers
    weight: Floats
    start: Integers
    class_id: Integers
    score: Floats
    num_true: Integers
    settled_hits: Integers
    settled_predicted: Integers
    clusters: tuple[Hashable, ...]

    @property
    def num_classes(self) -> int:
        """K."""
        return int(self.num_true.shape[1])

    @property
    def is_exact(self) -> bool:
        """Whether every pixel is counted, none by way of another."""
        return bool((self.weight == 1).all())

    def of_clusters(self, chosen: npt.NDArray[np.bool_]) -> "CandidateScores":
        """Gives the part of some clusters, which keep their numbers.

        Args:
            chosen: `(G,)` bool.
        """
        kept = chosen[self.cluster]
        lengths = np.diff(self.start)
        entries = np.repeat(kept, lengths)
        return CandidateScores(
            self.label[kept],
            self.cluster[kept],
            self.weight,
            np.concatenate([[0], np.cumsum(lengths[kept])]),
            self.class_id[entries],
            self.score[entries],
            self.num_true * chosen[:, None],
            self.settled_hits * chosen[:, None],
            self.settled_predicted * chosen[:, None],
            self.clusters,
        )

    def counts(self, predicted: Integers) -> tuple[Floats, Floats]:
        """Counts by cluster and class, for a prediction of the open pixels.

        Args:
            predicted: `(N,)` class ids.

        Returns:
            Rightly predicted pixels `(G, K)` and predicted pixels `(G, K)`, the settled ones included.
        """
        weight, shape = self.weight[self.label], self.num_true.shape
        cell, hit = self.cluster * self.num_classes + predicted, predicted == self.label
        hits = self.settled_hits + weighted_counts(cell[hit], weight[hit], shape)
        return hits, self.settled_predicted + weighted_counts(cell, weight, shape)


def weighted_counts(cell: Integers, weight: Floats, shape: tuple[int, ...]) -> Floats:
    """Adds up the weights of each cell of a table, in double precision.

    Args:
        cell: `(N,)` numbers of cells, row by row.
        weight: `(N,)`.
        shape: Of the table.
    """
    return np.bincount(cell, weight, math.prod(shape)).astype(np.float64).reshape(shape)


@dataclass
class _Chunk:
    label: npt.NDArray[Any]
    cluster: npt.NDArray[Any]
    draw: npt.NDArray[Any]
    length: npt.NDArray[Any]
    class_id: npt.NDArray[Any]
    score: npt.NDArray[Any]

    def thinned(self, share: Floats) -> "_Chunk":
        kept = self.draw < share[self.label]
        entries = np.repeat(kept, self.length)
        return _Chunk(
            self.label[kept],
            self.cluster[kept],
            self.draw[kept],
            self.length[kept],
            self.class_id[entries],
            self.score[entries],
        )


class ScoreCollector:
    """Takes logits and labels image by image and keeps what offsets of a bounded size could change.

    A class whose logit is more than `2 max_offset` below the largest can never win, so it is dropped, exactly; a
    pixel with one class left is settled and becomes a count. Where the scores that are left exceed `max_scores`, a
    random half of the pixels of the label that has most of them is dropped, again and again, and the others count for
    more: rare labels stay whole.

    Args:
        num_classes: K.
        ignore_index: Pixels with this label don't count.
        max_offset: Offsets lie in `[-max_offset, max_offset]`.
        max_scores: Most scores to keep, about 8 bytes each (40 while offsets are searched for).

    Raises:
        ValueError: A number out of its range.
    """

    def __init__(self, num_classes: int, *, ignore_index: int, max_offset: float, max_scores: int) -> None:
        if not is_integer(num_classes) or num_classes < 2:
            raise ValueError(f"num_classes must be an integer of at least 2, got {num_classes!r}")
        check_ignore_index(ignore_index)
        refuse_default_ignore_label(ignore_index, num_classes)
        if not 0 < max_offset < 1e4:
            raise ValueError(f"max_offset must lie between 0 and 10,000, got {max_offset}")
        if max_scores < 1:
            raise ValueError(f"max_scores must be at least 1, got {max_scores}")
        self.num_classes = int(num_classes)
        self.ignore_index = int(ignore_index)
        self.max_offset = max_offset
        self.max_scores = max_scores
        self._clusters: dict[Hashable, int] = {}
        self._counts: list[Integers] = []  # by cluster: (3, K) true, settled hits, settled predicted
        self._open = np.zeros(num_classes, dtype=np.int64)
        self._chunks: list[_Chunk] = []
        self._share = np.ones(num_classes)
        self._generator = np.random.default_rng(0)

    def update(self, logits: Tensor, target: Tensor, clusters: Sequence[Hashable] | Tensor | None = None) -> None:
        """Adds a batch, see `aucseg.inference.OffsetFitter.update`."""
        logits, target = check_logits(logits, target, self.num_classes)
        logits = two_logits(logits)
        if isinstance(clusters, Tensor):  # the elements of a tensor are all different, whatever they hold
            clusters = clusters.tolist()
        if clusters is not None and len(clusters) != len(target):
            raise ValueError(f"{len(clusters)} clusters for a batch of {len(target)} images: give one for each")
        state = self._generator.bit_generator.state
        try:
            images = [
                [
                    self._read(band[0].flatten(1), labels.flatten())
                    for band, labels in bands_at(logits[index : index + 1], target[index : index + 1])
                ]
                for index in range(len(target))
            ]
        except ValueError:  # nothing of a batch that is refused is kept
            self._generator.bit_generator.state = state
            raise
        for index, bands in enumerate(images):
            if not any(counts[0].any() for counts, _, _ in bands):  # nothing is labelled: it proves nothing
                continue
            # A name that no user gives, for an image that is a cluster of its own.
            name = ("image", len(self._clusters)) if clusters is None else clusters[index]
            cluster = self._clusters.setdefault(name, len(self._clusters))
            if cluster == len(self._counts):
                self._counts.append(np.zeros((3, self.num_classes), dtype=np.int64))
            for counts, num_open, chunk in bands:
                self._counts[cluster] += counts
                self._open += num_open
                chunk.cluster[:] = cluster
                self._chunks.append(chunk)
        self._make_room()

    @torch.no_grad()
    def _read(self, scores: Tensor, labels: Tensor) -> tuple[Integers, Integers, _Chunk]:
        """Pixels that are true, settled hits and settled predictions (3, K), open ones (K,), and what is kept."""
        valid = labels != self.ignore_index
        if not bool(valid.all()):
            scores, labels = scores[:, valid], labels[valid]
        if not bool(scores.isfinite().all()):
            raise ValueError("logits must be finite (mask a class with -1e4, not -inf)")
        refuse_other_labels(labels, self.num_classes, "target")
        top, predicted = scores.max(dim=0)
        # The next smaller number, so that no class is lost to rounding.
        least = torch.nextafter(top - 2 * self.max_offset, top.new_tensor(-torch.inf))
        is_open = (scores >= least).sum(dim=0) > 1
        settled, hit = ~is_open, predicted == labels
        counted = (labels, labels[settled & hit], predicted[settled])
        counts = torch.stack([torch.bincount(chosen, minlength=self.num_classes) for chosen in counted])
        place = is_open.nonzero()[:, 0]
        label = labels[place].cpu().numpy()
        num_open = np.bincount(label, minlength=self.num_classes)
        draw = self._generator.random(len(label), dtype=np.float32)
        kept = draw < self._share[label]
        place = place[torch.from_numpy(kept).to(place.device)]
        scores, least = scores[:, place].T.contiguous(), least[place]
        may_win = scores >= least[:, None]
        chunk = _Chunk(
            label[kept].astype(np.int32),
            np.zeros(len(place), dtype=np.int32),
            draw[kept],
            may_win.sum(dim=1).cpu().numpy().astype(np.int32),
            may_win.nonzero()[:, 1].cpu().numpy().astype(np.int32),
            scores[may_win].cpu().numpy(),
        )
        return counts.cpu().numpy(), num_open, chunk

    @property
    def num_scores(self) -> int:
        """Scores that are kept."""
        return sum(len(chunk.score) for chunk in self._chunks)

    def _make_room(self) -> None:
        if self.num_scores <= self.max_scores:
            return
        # Below the bound, so that there is room for some images.
        while self.num_scores > 0.75 * self.max_scores:
            held = sum(np.bincount(c.label, c.length, self.num_classes) for c in self._chunks)
            self._share[int(np.argmax(held))] /= 2
            self._chunks = [chunk.thinned(self._share) for chunk in self._chunks]

    def scores(self) -> CandidateScores:
        """Gives what was collected.

        Raises:
            ValueError: There was no labelled pixel.
        """
        counts = np.stack(self._counts) if self._counts else np.zeros((0, 3, self.num_classes), dtype=np.int64)
        if not counts[:, 0].any():
            raise ValueError("there is no labelled pixel to fit offsets on")

        def joined(name: str, dtype: type) -> npt.NDArray[Any]:
            parts = [getattr(chunk, name) for chunk in self._chunks]
            return np.concatenate(parts).astype(dtype) if parts else np.zeros(0, dtype)

        label = joined("label", np.int64)
        kept = np.bincount(label, minlength=self.num_classes)
        return CandidateScores(
            label,
            joined("cluster", np.int64),
            # Exact totals for each label, however many of its pixels were drawn.
            np.where(kept > 0, self._open / np.maximum(kept, 1), 1.0),
            np.concatenate([[0], np.cumsum(joined("length", np.int64))]),
            joined("class_id", np.int64),
            joined("score", np.float64),
            counts[:, 0],
            counts[:, 1],
            counts[:, 2],
            tuple(self._clusters),
        )
