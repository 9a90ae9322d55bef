"""How samples of the memory bank are resized and placed: all pastes of a batch at once, on the host.

Everything acts on horizontal runs and on intervals of the flattened batch, never on single pixels: which pixels of a
paste are free, and which of two pastes has a pixel, is known before any pixel is touched.
"""

from __future__ import annotations

import itertools
import math
from typing import Literal, NamedTuple

import numpy as np
import torch

from aucseg.memory_bank.components import Bools, Ints, before, expand, pick, sum_by
from aucseg.memory_bank.intervals import gaps, overlaps, settle, subtract, union
from aucseg.memory_bank.pixels import Floats, Pieces, Resizing
from aucseg.memory_bank.plan import BatchPlan
from aucseg.memory_bank.samples import StoredSample

_NUM_TRIES = 5
"""Places tried for a paste of which nothing would be left."""


class Pastes(NamedTuple):
    """Samples to paste into the images of a batch, in this order."""

    image: Ints  # (N,)
    position: Ints  # (N,) of the class among the tail classes
    label: Ints  # (N,)
    samples: list[StoredSample]

    def part(self, numbers: list[int]) -> Pastes:
        """Some of them."""
        chosen = [self.samples[number] for number in numbers]
        return Pastes(self.image[numbers], self.position[numbers], self.label[numbers], chosen)


class _Runs(NamedTuple):
    """Runs of all pastes, sorted by paste and reading order."""

    owner: Ints  # (R,) paste
    place: Ints  # (axes, R) row and first column in the canvas; of volumes plane, row and column
    length: Ints  # (R,)
    first: Ints  # (R,) place of its first pixel among the stored ones


class _Placed(NamedTuple):
    """Pastes at their places: what is left of each."""

    sizes: Ints  # (N,) pixels of each paste after resizing
    counts: Ints  # (N,) pixels of it that are free and its own
    label: Ints  # (N,)
    canvas: Ints  # (axes, N) size of the canvas, and of the resized canvas
    resized: Ints
    runs: _Runs
    owner: Ints  # (S,) paste of each piece
    begin: Ints  # (S,) in the flattened batch
    end: Ints
    place: Ints  # (axes, S) of the piece's first pixel in the resized canvas
    source: Ints  # (S,) place of that pixel among the stored ones, if the size has not changed


class Placement(NamedTuple):
    """Where everything goes.

    Attributes:
        counts: (N,) pixels pasted by each paste.
        pieces: What to write.
    """

    counts: Ints
    pieces: Pieces


def place_samples(
    pastes: Pastes,
    plan: BatchPlan,
    *,
    resize_ratio: float,
    placement: Literal["canvas", "uniform"],
    first_wins: bool,
    generator: torch.Generator,
) -> Placement:
    """Works out where samples go.

    A paste of which nothing is left, since it lies wholly over what is protected or under other pastes, is tried again
    at a place where a random pixel of it meets a random free pixel of the image, as far as the image's edges allow;
    such a further try covers neither a tail class nor what was pasted before.

    Args:
        pastes: At least one, in the order of pasting.
        plan: Of the masks.
        resize_ratio: Scale; less where the result would not fit into the image.
        placement: `"canvas"` or `"uniform"`, as in `TailMemoryBank`.
        first_wins: Whether the first of several pastes that meet in a pixel has it; else the last.
        generator: CPU generator of the places.
    """

    def place(part: Pastes, taken: tuple[Ints, Ints], aim: Ints | None = None) -> _Placed:
        return _place(part, plan.shape[1:], taken, resize_ratio, placement, first_wins, generator, aim)

    tries = [place(pastes, plan.protected)]
    counts = tries[0].counts.copy()
    for _ in range(_NUM_TRIES - 1):
        lost = np.flatnonzero((tries[0].sizes > 0) & (counts == 0)).tolist()
        if not lost:
            break
        taken = union(
            np.concatenate([plan.spared_begin, *(done.begin for done in tries)]),
            np.concatenate([plan.spared_end, *(done.end for done in tries)]),
        )
        pixels = plan.pixels_per_image
        images = pastes.image[lost].tolist()
        free = {image: gaps(*taken, low=image * pixels, high=(image + 1) * pixels) for image in set(images)}
        found = [(number, image) for number, image in zip(lost, images, strict=True) if len(free[image][0])]
        if not found:
            break
        lost = [number for number, _ in found]
        aim = np.array([_draw_free(*free[image], generator) for _, image in found])
        tries.append(place(pastes.part(lost), taken, aim % pixels))
        counts[lost] = tries[-1].counts
    return Placement(counts, _pieces(tries))


def covered_pixels(pieces: Pieces, plan: BatchPlan) -> Ints:
    """Pixels of each tail class in each image that pieces cover, (B, T)."""
    run, size = overlaps(pieces.begin, pieces.begin + pieces.length, plan.spared_begin, plan.spared_end)
    is_tail = plan.spared_tail[run] >= 0
    run, size = run[is_tail], size[is_tail]
    index = plan.spared_begin[run] // plan.pixels_per_image * plan.present.shape[1] + plan.spared_tail[run]
    return sum_by(index, size, plan.present.size).reshape(plan.present.shape)


def _draw_free(begin: Ints, length: Ints, generator: torch.Generator) -> int:
    """A random pixel of the gaps."""
    reach = np.cumsum(length)
    drawn = int(torch.randint(int(reach[-1]), (), generator=generator, device="cpu"))
    gap = int(np.searchsorted(reach, drawn, side="right"))
    return int(begin[gap] + drawn - (reach[gap] - length[gap]))


def _place(
    pastes: Pastes,
    size: tuple[int, ...],
    taken: tuple[Ints, Ints],
    resize_ratio: float,
    placement: Literal["canvas", "uniform"],
    first_wins: bool,
    generator: torch.Generator,
    aim: Ints | None,
) -> _Placed:
    """Places each sample once, outside the intervals that are taken.

    The places are random. With `aim` (number of pastes,), a pixel of the flattened image for each, a random pixel of
    the sample lies there, or as near as the edges allow.
    """
    num_pastes = len(pastes.samples)
    sides = np.array(size)[:, None]
    draws: Ints = torch.randint(2**31, (len(size) + 1, num_pastes), generator=generator, device="cpu").numpy()
    runs, component, canvas = _runs(pastes.samples)
    if placement == "uniform":
        chosen = component[_draw_runs(runs, draws[-1], sum_by(runs.owner, runs.length, num_pastes))[0]]
        kept = component == chosen[runs.owner]
        runs = _Runs(runs.owner[kept], runs.place[:, kept], runs.length[kept], runs.first[kept])
        runs, canvas = _crop(runs)

    fit = np.minimum(sides.astype(np.float32) / canvas.astype(np.float32), np.float32(resize_ratio)).min(0)
    resized = np.clip(np.rint(canvas.astype(np.float32) * fit).astype(np.int64), 1, sides)
    if aim is None:
        offset = pick(draws[:-1], sides - resized + 1)
    else:
        run, pixel = _draw_runs(runs, draws[0], sum_by(runs.owner, runs.length, num_pastes))
        place = runs.place[:, run]
        place[-1] += pixel
        # In integers: the resized pixel at whose centre the canvas pixel's centre lies.
        place = (2 * place + 1) * resized // (2 * canvas)
        offset = np.clip(np.array(np.unravel_index(aim, size)) - place, 0, sides - resized)

    source, place, length = _resize(runs, canvas, resized)
    owner = runs.owner[source]
    whole = np.ravel_multi_index(tuple(place + offset[:, owner]), size)
    begin = pastes.image[owner] * math.prod(size) + whole
    sizes = sum_by(owner, length, num_pastes)
    piece, left, right = subtract(begin, begin + length, *taken)
    won, left, right = settle(owner[piece], left, right, first_wins)
    piece = piece[won]
    shift = left - begin[piece]
    place, owner = place[:, piece], owner[piece]
    place[-1] += shift
    return _Placed(
        sizes,
        sum_by(owner, right - left, num_pastes),
        pastes.label,
        canvas,
        resized,
        runs,
        owner,
        left,
        right,
        place,
        runs.first[source[piece]] + shift,
    )


def _runs(samples: list[StoredSample]) -> tuple[_Runs, Ints, Ints]:
    """The runs of all samples, the number of each one's component, and (axes, N) the size of each canvas."""
    start, length, component = np.concatenate([sample.runs for sample in samples], axis=1).astype(np.int64)
    facts = np.array([(s.runs.shape[1], s.num_pixels, s.first, *s.size) for s in samples]).T
    num_runs, pixels_of, first, canvas = facts[0], facts[1], facts[2], facts[3:]
    owner = np.repeat(np.arange(len(samples)), num_runs)
    place = np.empty((len(canvas), len(start)), dtype=np.int64)
    for axis in range(len(canvas) - 1, 0, -1):
        side = canvas[axis, owner]
        above = start // side
        place[axis] = start - above * side
        start = above
    place[0] = start
    return _Runs(owner, place, length, before(length) + (first - before(pixels_of))[owner]), component, canvas


def _draw_runs(runs: _Runs, draw: Ints, pixels_of: Ints) -> tuple[Ints, Ints]:
    """A random pixel of each paste: its run, and its place in it."""
    reach = np.cumsum(runs.length)
    pixel = before(pixels_of) + pick(draw, pixels_of)
    run = np.searchsorted(reach, pixel, side="right")
    return run, pixel - (reach[run] - runs.length[run])


def _crop(runs: _Runs) -> tuple[_Runs, Ints]:
    """Makes the box around each paste's runs its canvas."""
    first = np.flatnonzero(np.diff(runs.owner, prepend=-1))
    low = np.minimum.reduceat(runs.place, first, axis=1)
    past = runs.place + 1
    past[-1] = runs.place[-1] + runs.length
    high = np.maximum.reduceat(past, first, axis=1)
    return runs._replace(place=runs.place - low[:, runs.owner]), high - low


def _resize(runs: _Runs, canvas: Ints, resized: Ints) -> tuple[Ints, Ints, Ints]:
    """Runs of the resized canvases.

    Returns:
        `(source, place, length)`: the run (S,) each comes from, its place (axes, S) in the resized canvas, and its
        length (S,).
    """
    if (canvas == resized).all():
        source = np.arange(len(runs.owner))
        return source, runs.place.copy(), runs.length
    size, new = canvas[:, runs.owner], resized[:, runs.owner]
    low = _nearest(runs.place, size, new)
    past = runs.place + 1
    past[-1] = runs.place[-1] + runs.length
    counts = _nearest(past, size, new) - low
    source, position = expand(counts[:-1].prod(0) * (counts[-1] > 0))
    place = low[:, source]
    for axis in range(len(canvas) - 2, -1, -1):
        count = counts[axis, source]
        place[axis] += position % count
        position //= count
    return source, place, counts[-1, source]


def _nearest(edge: Ints, size: Ints, new_size: Ints) -> Ints:
    """First resized row (or column) whose nearest canvas row floor((i + 1/2) size / new_size) is at least `edge`.

    A canvas row becomes the resized rows from its own edge to the next one's: none, one or several. Integers keep it
    exact.
    """
    return -((size - 2 * edge * new_size) // (2 * size))


def _pieces(tries: list[_Placed]) -> Pieces:
    """What all tries paste, together."""
    begin = np.concatenate([done.begin for done in tries])
    length = np.concatenate([done.end for done in tries]) - begin
    label = np.concatenate([done.label[done.owner] for done in tries])
    source = np.concatenate([done.source for done in tries])
    if all((done.canvas == done.resized).all() for done in tries):
        return Pieces(begin, length, label, source, None)
    return Pieces(begin, length, label, np.zeros_like(source), _resizing(tries))


def _resizing(tries: list[_Placed]) -> Resizing:
    """What interpolation needs to know; pastes are numbered through all tries."""
    canvas, resized = (
        np.concatenate(parts, axis=1) for parts in zip(*((t.canvas, t.resized) for t in tries), strict=True)
    )
    first_paste = np.cumsum([0, *(len(done.sizes) for done in tries)])
    owner = np.concatenate([done.owner + number for done, number in zip(tries, first_paste, strict=False)])
    runs_owner = np.concatenate([done.runs.owner + number for done, number in zip(tries, first_paste, strict=False)])
    canvas_begin = before(canvas.prod(0))
    scale = canvas.astype(np.float32) / resized.astype(np.float32)
    place = np.concatenate([done.place for done in tries], axis=1)

    row = [canvas_begin[owner]]
    weight: list[Floats] = [np.ones(len(owner), dtype=np.float32)]
    stride = np.cumprod(canvas[::-1], axis=0)[::-1]  # of the axis before
    for axis in range(len(canvas) - 1):
        neighbours = _neighbours(place[axis], canvas[axis, owner], scale[axis, owner])
        pairs = list(itertools.product(zip(row, weight, strict=True), neighbours))
        row = [begin + index * stride[axis + 1, owner] for (begin, _), (index, _) in pairs]
        weight = [share * by_axis for (_, share), (_, by_axis) in pairs]

    runs_place = np.concatenate([done.runs.place for done in tries], axis=1)
    key = canvas_begin[runs_owner] + runs_place[-1]
    for axis in range(len(canvas) - 1):
        key += runs_place[axis] * stride[axis + 1, runs_owner]
    return Resizing(
        key,
        np.concatenate([done.runs.first for done in tries]),
        np.concatenate([done.runs.length for done in tries]),
        np.stack(row),
        np.stack(weight),
        place[-1],
        canvas[-1, owner],
        scale[-1, owner],
    )


def _neighbours(index: Ints, size: Ints, scale: Floats) -> list[tuple[Ints, Floats]]:
    """The two canvas rows (or planes) around each resized one, with their weights."""
    position = np.maximum((index.astype(np.float32) + np.float32(0.5)) * scale - np.float32(0.5), np.float32(0))
    low = np.floor(position).astype(np.int64)
    fraction = position - low.astype(np.float32)
    return [(low, 1 - fraction), (np.minimum(low + 1, size - 1), fraction)]


def is_present(plan: BatchPlan, pastes: Pastes, placement: Placement) -> Bools:
    """Which tail classes each image holds after pasting, (B, T)."""
    if plan.planner.protects_tail:
        held = plan.present.copy()
    else:
        held = plan.tail_pixels > covered_pixels(placement.pieces, plan)
    pasted = placement.counts > 0
    held[pastes.image[pasted], pastes.position[pasted]] = True
    return held
