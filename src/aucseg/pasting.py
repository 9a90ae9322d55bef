"""How samples of the memory bank are resized, placed and pasted: all pastes of a batch at once.

Resizing and placing act on the samples' runs; colours are looked up only for pixels that are in fact pasted, and no box
around the pixels is ever filled.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from aucseg.components import expand, keep_where
from aucseg.samples import Sample, scatter_pixels

_NUM_TRIES = 5
"""Places tried for a paste of which nothing would be left."""


class Paste(NamedTuple):
    """One sample to paste into one image of a batch."""

    image: int
    class_id: int
    sample: Sample


class _Runs(NamedTuple):
    """Runs of all pastes, sorted by paste and reading order; each (R,) int64."""

    owner: Tensor  # paste
    y: Tensor  # row and first column in the canvas
    x: Tensor
    length: Tensor
    first: Tensor  # of its pixels, in the values of all pastes one after the other


def paste_samples(
    images: Tensor,
    masks: Tensor,
    pastes: list[Paste],
    *,
    resize_ratio: float,
    placement: Literal["canvas", "uniform"],
    is_protected: Callable[[Tensor], Tensor],
    is_spared: Callable[[Tensor], Tensor],
    first_wins: bool,
    generator: torch.Generator,
) -> list[int]:
    """Pastes into images and masks, in place.

    A paste of which nothing is left, since it lies wholly over what is protected or under other pastes, is tried again
    at a place where a random pixel of it meets a random free pixel of the image, as far as the image's edges allow.

    Args:
        images: (B, C, H, W), dense in memory, contiguous or channels-last.
        masks: (B, H, W), contiguous.
        pastes: at least one, in the order of pasting.
        resize_ratio: scale; less where the result would not fit into the image.
        placement: ``"canvas"`` or ``"uniform"``, as in ``TailMemoryBank``.
        is_protected: tells which labels (P,) must not be pasted over.
        is_spared: the same for further tries, which must not take back what was pasted before.
        first_wins: whether the first of several pastes that meet in a pixel has it; else the last.
        generator: CPU generator of the places.

    Returns:
        Pixels pasted by each.
    """

    def paste(part: list[Paste], protected: Callable[[Tensor], Tensor], aim: Tensor | None = None) -> list[list[int]]:
        return _paste_once(images, masks, part, resize_ratio, placement, protected, first_wins, generator, aim).tolist()

    sizes, counts = paste(pastes, is_protected)
    for _ in range(_NUM_TRIES - 1):
        lost = [number for number, size in enumerate(sizes) if size and not counts[number]]
        places = {image: _free_places(masks[image], is_spared) for image in {pastes[number].image for number in lost}}
        lost = [number for number in lost if len(places[pastes[number].image])]
        if not lost:
            break
        aims = [places[pastes[number].image] for number in lost]
        aim = torch.stack([free[int(torch.randint(len(free), (), generator=generator))] for free in aims])
        for number, count in zip(lost, paste([pastes[number] for number in lost], is_spared, aim)[1], strict=True):
            counts[number] = count
    return counts


def _free_places(mask: Tensor, is_spared: Callable[[Tensor], Tensor]) -> Tensor:
    """Pixels (P,) int64 of a mask (H, W) that may be pasted over."""
    return (~is_spared(mask.flatten())).nonzero().squeeze(1)


def _paste_once(
    images: Tensor,
    masks: Tensor,
    pastes: list[Paste],
    resize_ratio: float,
    placement: Literal["canvas", "uniform"],
    is_protected: Callable[[Tensor], Tensor],
    first_wins: bool,
    generator: torch.Generator,
    aim: Tensor | None,
) -> Tensor:
    """Pastes each sample once: (2, number of pastes) int64, pixels of each after resizing and pixels pasted by it.

    The places are random. With ``aim`` (number of pastes,), a pixel of the flattened (H, W) for each, a random pixel of
    the sample lies there, or as near as the edges allow.
    """
    _, height, width = masks.shape
    samples = [paste.sample for paste in pastes]
    num_runs = [sample.runs.shape[1] for sample in samples]
    num_pixels = [len(sample.values) for sample in samples]
    table = [
        [paste.image, paste.class_id, paste.sample.height, paste.sample.width, r, p]
        for paste, r, p in zip(pastes, num_runs, num_pixels, strict=True)
    ]
    image, class_id, canvas_h, canvas_w, runs_of, pixels_of = torch.tensor(table).to(masks.device).unbind(1)
    draw_y, draw_x, draw_pixel = torch.randint(2**31, (3, len(pastes)), generator=generator).to(masks.device)
    values = torch.cat([sample.values for sample in samples])
    start, length, component = torch.cat([sample.runs for sample in samples], dim=1).long()
    owner, _ = expand(runs_of, sum(num_runs))
    y = start // canvas_w[owner]
    runs = _Runs(owner, y, start - y * canvas_w[owner], length, length.cumsum(0) - length)

    if placement == "uniform":
        pixel = pixels_of.cumsum(0) - pixels_of + _pick(draw_pixel, pixels_of)
        chosen = component[torch.searchsorted(runs.first, pixel, right=True) - 1]
        runs = _Runs(*keep_where(component == chosen.index_select(0, owner), *runs))
        runs, canvas_h, canvas_w = _crop(runs, len(pastes))

    # Places are float32 whatever the default dtype: half precision cannot tell neighbouring pixels apart.
    fit = torch.minimum(height / canvas_h.float(), width / canvas_w.float()).clamp(max=resize_ratio)
    new_h = (canvas_h * fit).round().long().clamp(1, height)
    new_w = (canvas_w * fit).round().long().clamp(1, width)
    if aim is None:
        top = _pick(draw_y, height - new_h + 1)
        left = _pick(draw_x, width - new_w + 1)
    else:
        y, x = _draw_pixels(runs, draw_y)
        # In integers: the output pixel at whose centre the canvas pixel's centre lies.
        row = torch.div((2 * y + 1) * new_h, 2 * canvas_h, rounding_mode="floor")
        col = torch.div((2 * x + 1) * new_w, 2 * canvas_w, rounding_mode="floor")
        top = torch.minimum(aim // width - row, height - new_h).clamp(min=0)
        left = torch.minimum(aim % width - col, width - new_w).clamp(min=0)

    owner, y, x, length, _ = runs
    row_0, row_1 = _nearest(y, canvas_h[owner], new_h[owner]), _nearest(y + 1, canvas_h[owner], new_h[owner])
    col_0, col_1 = _nearest(x, canvas_w[owner], new_w[owner]), _nearest(x + length, canvas_w[owner], new_w[owner])
    source, position = expand(row_1 - row_0)
    owner, row, col = owner[source], row_0[source] + position, col_0[source]  # of each output run
    begin = (image[owner] * height + top[owner] + row) * width + left[owner] + col
    run, column = expand((col_1 - col_0)[source])
    target = begin.index_select(0, run) + column
    pasted_by = owner.index_select(0, run)
    sizes = torch.zeros_like(image).scatter_add_(0, pasted_by, torch.ones_like(run))
    wins = ~is_protected(masks.view(-1).index_select(0, target))
    if len(pastes) > 1:
        wins &= pasted_by == _reduce_by_target(target, pasted_by, masks.numel(), "amin" if first_wins else "amax")
    run, column, target, pasted_by = keep_where(wins, run, column, target, pasted_by)
    if resize_ratio == 1 and all(sample.height <= height and sample.width <= width for sample in samples):
        pixels = values.index_select(0, runs.first[source].index_select(0, run) + column)
    else:
        pixels = _interpolate(
            values,
            runs,
            canvas_h,
            canvas_w,
            new_h,
            new_w,
            owner=pasted_by,
            row=row.index_select(0, run),
            col=col.index_select(0, run) + column,
        )
    scatter_pixels(images, begin, run, column, pixels)
    masks.view(-1).scatter_(0, target, class_id.to(masks.dtype).index_select(0, pasted_by))
    return torch.stack([sizes, torch.zeros_like(image).scatter_add_(0, pasted_by, torch.ones_like(run))])


def _draw_pixels(runs: _Runs, draw: Tensor) -> tuple[Tensor, Tensor]:
    """A random pixel of each paste: its row and column in the canvas."""
    pixels_of = torch.zeros_like(draw).scatter_add_(0, runs.owner, runs.length)
    first = runs.length.cumsum(0) - runs.length
    pixel = pixels_of.cumsum(0) - pixels_of + _pick(draw, pixels_of)
    run = torch.searchsorted(first, pixel, right=True) - 1
    return runs.y[run], runs.x[run] + pixel - first[run]


def _pick(draw: Tensor, count: Tensor) -> Tensor:
    """Index 0..count-1 from a uniform draw of 31 bits; in integers, so that it is the same on every device."""
    return (draw * count) >> 31


def _crop(runs: _Runs, num_pastes: int) -> tuple[_Runs, Tensor, Tensor]:
    """Makes the box around each paste's runs its canvas: shifted runs, heights, widths."""
    # In int32, as Apple's MPS has no minima by index in int64.
    highest = torch.full((num_pastes,), torch.iinfo(torch.int32).max, dtype=torch.int32, device=runs.y.device)
    lowest = torch.zeros_like(highest)
    top = highest.scatter_reduce(0, runs.owner, runs.y.int(), "amin").long()
    left = highest.scatter_reduce(0, runs.owner, runs.x.int(), "amin").long()
    bottom = lowest.scatter_reduce(0, runs.owner, (runs.y + 1).int(), "amax").long()
    right = lowest.scatter_reduce(0, runs.owner, (runs.x + runs.length).int(), "amax").long()
    return runs._replace(y=runs.y - top[runs.owner], x=runs.x - left[runs.owner]), bottom - top, right - left


def _nearest(edge: Tensor, size: Tensor, new_size: Tensor) -> Tensor:
    """First output row (or column) whose nearest canvas row floor((i + 1/2) size / new_size) is at least ``edge``.

    A canvas row becomes the output rows from its own edge to the next one's: none, one or several. Integers keep it
    exact.
    """
    return -torch.div(size - 2 * edge * new_size, 2 * size, rounding_mode="floor")


def _reduce_by_target(target: Tensor, owner: Tensor, size: int, reduce: Literal["amin", "amax"]) -> Tensor:
    """For each pixel the first or last of the pastes that hit its target."""
    # The map over all pixels stays uninitialized but for the targets, the only places that are read.
    by_pixel = owner.new_empty(size, dtype=torch.int32)
    by_pixel.scatter_reduce_(0, target, owner.int(), reduce, include_self=False)
    return by_pixel.index_select(0, target)


def _interpolate(
    values: Tensor,
    runs: _Runs,
    canvas_h: Tensor,
    canvas_w: Tensor,
    new_h: Tensor,
    new_w: Tensor,
    *,
    owner: Tensor,
    row: Tensor,
    col: Tensor,
) -> Tensor:
    """Bilinear colours, half-pixel centres, of output pixels (row, col) of each paste: (P, C), dtype of ``values``.

    The weights are those of the neighbours inside the runs, normalized: what is outside the object has no share. The
    nearest canvas pixel lies inside (``_nearest``), so that the weights never sum to zero.
    """
    area = int((canvas_h * canvas_w).max())
    key = runs.owner * area + runs.y * canvas_w[runs.owner] + runs.x  # sorted
    height, width = canvas_h.index_select(0, owner), canvas_w.index_select(0, owner)
    row_weights = _neighbours(row, height, new_h.index_select(0, owner))
    col_weights = _neighbours(col, width, new_w.index_select(0, owner))
    dtype = torch.promote_types(values.dtype, torch.float32)
    total = torch.zeros((len(row), values.shape[1]), dtype=dtype, device=values.device)
    weight_sum = torch.zeros((len(row), 1), dtype=dtype, device=values.device)
    for y, weight_y in row_weights:
        for x, weight_x in col_weights:
            place = owner * area + y * width + x
            run = (torch.searchsorted(key, place, right=True) - 1).clamp(min=0)
            column = place - key.index_select(0, run)
            inside = (column >= 0) & (column < runs.length.index_select(0, run))
            weight = (weight_y * weight_x * inside).to(dtype).unsqueeze(1)
            index = torch.where(inside, runs.first.index_select(0, run) + column, 0)
            total += weight * values.index_select(0, index)
            weight_sum += weight
    pixels = total / weight_sum
    if not values.is_floating_point():
        pixels = pixels.round()
    return pixels.to(values.dtype)


def _neighbours(index: Tensor, size: Tensor, new_size: Tensor) -> list[tuple[Tensor, Tensor]]:
    """The two canvas rows (or columns) around each output index, with their weights."""
    position = ((index.float() + 0.5) * (size.float() / new_size) - 0.5).clamp(min=0)
    low = position.floor().long()
    fraction = position - low
    return [(low, 1 - fraction), (torch.minimum(low + 1, size - 1), fraction)]
