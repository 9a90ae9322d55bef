"""Charts as inline SVG. Colours come from the page's style sheet: class `m0` is the first run, `m1` the second."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from aucseg.report.compared_runs import ComparedRuns
from aucseg.report.text import percent, points, short_count, signed_points

NUM_STYLES = 7
Series = tuple[int, str, Sequence[tuple[float, float]]]
"""Number of the run (its style), its title, its points."""


def tag(name: str, content: object = "", **attributes: object) -> Markup:
    """An element; attributes and content are escaped, `_` in names becomes `-`, None is left out.

    Example:
        >>> print(tag("text", "a < b", x=1.0, class_="tick", data_tip='"'))
        <text x="1" class="tick" data-tip="&#34;">a &lt; b</text>
    """
    # The names of elements and attributes are this package's own; what comes from a run is escaped by format().
    element = Markup(name)  # nosec B704
    parts = [Markup("<") + element]
    for key, value in attributes.items():
        if value is not None:
            shown = f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else value
            key = key.rstrip("_").replace("_", "-")
            attribute = Markup(key)  # nosec B704
            parts.append(Markup(' {}="{}"').format(attribute, shown))
    parts.append(Markup(">{}</{}>").format(content, element))
    return Markup("").join(parts)


def _svg(width: float, height: float, label: str, children: Sequence[Markup], class_: str) -> Markup:
    return tag(
        "svg", Markup("").join(children), viewBox=f"0 0 {width:g} {height:g}", role="img", aria_label=label,
        class_=class_, style=f"--w:{width:g}px",
    )  # fmt: skip


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """At most about `count` round numbers in [low, high].

    Example:
        >>> nice_ticks(0, 1), nice_ticks(0.2, 17)
        ([0.0, 0.2, 0.4, 0.6, 0.8, 1.0], [5.0, 10.0, 15.0])
    """
    if not high > low:
        return [low]
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


# One shape a style; the first is a circle.
_CORNERS: tuple[list[tuple[float, float]], ...] = (
    [],
    [(0, -1.3), (1.3, 0), (0, 1.3), (-1.3, 0)],
    [(-0.95, -0.95), (0.95, -0.95), (0.95, 0.95), (-0.95, 0.95)],
    [(0, -1.25), (1.2, 0.95), (-1.2, 0.95)],
    [(0, 1.25), (1.2, -0.95), (-1.2, -0.95)],
    [(r * math.sin(i * math.pi / 5), -r * math.cos(i * math.pi / 5)) for i in range(10) for r in ((1.5, 0.65)[i % 2],)],
    [(-0.45, -1.2), (0.45, -1.2), (0.45, -0.45), (1.2, -0.45), (1.2, 0.45), (0.45, 0.45),
     (0.45, 1.2), (-0.45, 1.2), (-0.45, 0.45), (-1.2, 0.45), (-1.2, -0.45), (-0.45, -0.45)],
)  # fmt: skip


def marker(style: int, x: float, y: float, size: float = 5.0) -> Markup:
    """The mark of a run: shapes differ as well as colours."""
    css = f"mark m{style % NUM_STYLES}"
    corners = _CORNERS[style % NUM_STYLES]
    if not corners:
        return tag("circle", cx=x, cy=y, r=size, class_=css)
    path = " ".join(f"{x + size * dx:.1f},{y + size * dy:.1f}" for dx, dy in corners)
    return tag("polygon", points=path, class_=css)


def legend_mark(style: int) -> Markup:
    """A run's mark for legends outside of a chart."""
    return tag("svg", marker(style, 7, 7), viewBox="0 0 14 14", width=14, height=14, class_="key", aria_hidden="true")


def beside_each_other(heights: Sequence[float], size: float, room: float) -> list[float]:
    """Horizontal shifts of marks in one column, so that none hides behind another: 0 where they lie apart.

    Args:
        heights: Of the marks, in pixels.
        size: Radius of a mark.
        room: Width that the marks may take.

    Example:
        >>> beside_each_other([10.0, 80.0, 11.0], size=5.0, room=40.0)
        [-6.0, 0.0, 6.0]
    """
    shifts = [0.0] * len(heights)
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    start = 0
    for end in range(1, len(order) + 1):
        if end < len(order) and heights[order[end]] - heights[order[end - 1]] < 1.8 * size:
            continue
        together = sorted(order[start:end])
        step = min(2.4 * size, room / max(len(together), 1))
        for place, i in enumerate(together):
            shifts[i] = step * (place - (len(together) - 1) / 2)
        start = end
    return shifts


@dataclass(frozen=True)
class _Scale:
    """Maps a domain to pixels, linearly or by logarithm."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log10(low), math.log10(high), math.log10(max(value, self.low))
        return self.start + (value - low) / (high - low) * (self.end - self.start)


def class_chart(comparison: ComparedRuns) -> Markup:
    """IoU of each class by frequency rank, one mark a run, above the classes' shares of the pixels."""
    num_classes = len(comparison.order)
    pitch = min(max(974 / num_classes, 13.0), 72.0)  # up to 75 classes fit into the page
    has_counts = comparison.counts is not None and sum(comparison.counts) > 0
    left, top, plot, bars = 52.0, 26.0, 280.0, 64.0 if has_counts else 0.0
    names_top = top + plot + (bars + 22 if has_counts else 10)
    longest = max(len(name) for name in comparison.class_names)
    width, height = left + pitch * num_classes + 12, names_top + 7.2 * min(longest, 18) + 6
    y = _Scale(0, 1, top + plot, top)
    # `children` is drawn first to last: bands, grid, marks, and the hover targets on top.
    children = _group_bands(comparison, left, pitch, top, plot + (bars + 14 if has_counts else 0))
    for value in nice_ticks(0, 1):
        children.append(tag("line", x1=left, x2=width - 12, y1=y(value), y2=y(value), class_="grid"))
        children.append(tag("text", f"{100 * value:.0f}", x=left - 8, y=y(value) + 4, class_="tick end"))
    children.append(tag("text", "IoU, %", x=left - 38, y=top - 10, class_="axis"))
    if has_counts:
        children += _share_bars(comparison, left, pitch, top + plot + 14, bars, width - 12)
    hits = []
    for rank, class_id in enumerate(comparison.order):
        x = left + pitch * (rank + 0.5)
        name = comparison.class_names[class_id]
        ious = [run.per_class_iou.get(name) for run in comparison.runs]
        known = [iou for iou in ious if iou is not None]
        if len(known) > 1:
            children.append(tag("line", x1=x, x2=x, y1=y(min(known)), y2=y(max(known)), class_="stem"))
        size = min(5.0, pitch / 3.2)
        shown_ious = [(i, y(iou)) for i, iou in enumerate(ious) if iou is not None]
        shifts = beside_each_other([height for _, height in shown_ious], size, 0.9 * pitch)
        children += [marker(i, x + dx, at, size) for (i, at), dx in zip(shown_ious, shifts, strict=True)]
        if not known:
            spot = f"translate({x + 4:.1f} {y(0) - 8:.1f}) rotate(-90)"
            children.append(tag("text", "not in the validation images", transform=spot, class_="tick why"))
        shown = name if len(name) <= 18 else name[:17] + "…"
        names_class = f"name {comparison.group_of(class_id)}"
        spot = f"translate({x + 3.5:.1f} {names_top:.1f}) rotate(-90)"
        children.append(tag("text", shown, transform=spot, class_=names_class + " end"))
        hits.append(
            tag("rect", x=x - pitch / 2, y=top, width=pitch, height=height - top, class_="hit",
                data_tip=class_tip(comparison, class_id))
        )  # fmt: skip
    label = f"IoU of {num_classes} classes by frequency, {', '.join(run.title for run in comparison.runs)}"
    return _svg(width, height, label, [*children, *hits], "chart wide")


def class_tip(comparison: ComparedRuns, class_id: int) -> str:
    """What the pointer shows on a class: name, group, counts, IoU of each run."""
    name = comparison.class_names[class_id]
    rank = comparison.order.index(class_id) + 1
    group = comparison.group_of(class_id)
    lines = [name, f"rank {rank}" + (f" · {group}" if group else "")]
    if comparison.counts is not None:
        count = short_count(comparison.counts[class_id])
        lines.append(f"{count} {comparison.counts_source} ({comparison.share_text(class_id)})")
    if comparison.num_images is not None:
        lines.append(f"in {comparison.num_images[class_id]:,} images")
    before = comparison.baseline.per_class_iou.get(name)
    for run in comparison.runs:
        iou = run.per_class_iou.get(name)
        if iou is None:
            text = "no IoU (not in the validation split)" if run.per_class_iou else "not validated yet"
        else:
            text = points(iou)
            if run is not comparison.baseline and before is not None and comparison.has_same_images(run):
                text += f" ({signed_points(iou - before)})"
        lines.append(f"{run.title}: {text}")
    return "\n".join(lines)


def _group_bands(comparison: ComparedRuns, left: float, pitch: float, top: float, height: float) -> list[Markup]:
    bands: list[Markup] = []
    groups = [comparison.group_of(class_id) for class_id in comparison.order]
    start = 0
    for rank in range(1, len(groups) + 1):
        if rank == len(groups) or groups[rank] != groups[start]:
            group, x, width = groups[start], left + pitch * start, pitch * (rank - start)
            if group:
                bands.append(tag("rect", x=x, y=top, width=width, height=height, class_=f"band {group}"))
                if width > 6.5 * len(group) + 8:
                    bands.append(tag("text", group, x=x + width / 2, y=top - 8, class_="group mid"))
            start = rank
    return bands


def _share_bars(
    comparison: ComparedRuns, left: float, pitch: float, top: float, height: float, right: float
) -> list[Markup]:
    shares = [comparison.share(class_id) or 0.0 for class_id in comparison.order]
    smallest = min((share for share in shares if share > 0), default=1.0)
    low = 10.0 ** min(math.floor(math.log10(smallest)), -1)
    y = _Scale(low, 1, top + height, top, log=True)
    children = [tag("line", x1=left, x2=right, y1=top + height, y2=top + height, class_="rule")]
    decades = round(-math.log10(low))
    for exponent in range(0, decades + 1, max(1, math.ceil(decades / 3))):
        value = 10.0**-exponent
        children.append(tag("line", x1=left, x2=right, y1=y(value), y2=y(value), class_="grid"))
        text = f"{100 * value:.{max(exponent - 2, 0)}f} %" if exponent <= 4 else f"10{_superscript(2 - exponent)} %"
        children.append(tag("text", text, x=left - 8, y=y(value) + 4, class_="tick end"))
    for rank, share in enumerate(shares):
        if share > 0:
            x, width = left + pitch * (rank + 0.2), pitch * 0.6
            bar_height = max(y(low) - y(share), 1.0)
            children.append(tag("rect", x=x, y=y(low) - bar_height, width=width, height=bar_height, class_="bar"))
    return children


def _superscript(number: int) -> str:
    return str(number).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def _range_around(values: Sequence[float]) -> tuple[float, float]:
    """The range of an axis: with some room at both ends, but not below 0 where no value is."""
    low, high = min(values), max(values)
    margin = 0.06 * (high - low) or abs(high) * 0.1 or 1.0
    return (max(low - margin, 0.0) if low >= 0 else low - margin), high + margin


def _powers_of_ten(low: float, high: float) -> list[float]:
    return [10.0**power for power in range(math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9) + 1)]


def line_chart(
    series: Sequence[Series],
    *,
    label: str,
    x_label: str,
    y_range: tuple[float, float] | None = None,
    log_x: bool = False,
    format_x: Callable[[float], str] = lambda value: f"{value:,.0f}",
    format_y: Callable[[float], str] = lambda value: f"{value:.3g}",
    format_tick: Callable[[float], str] | None = None,
) -> Markup:
    """Lines over steps or rates, with strips that show the values under the pointer."""
    width, height, left, right, top, bottom = 340.0, 210.0, 44.0, 12.0, 10.0, 36.0
    xs = [x for _, _, line in series for x, _ in line]
    ys = [y for _, _, line in series for _, y in line]
    # Steps are counted from 0, so that one validation at the end of a run stands at the end.
    low_x, high_x = min(xs) if log_x else min(0.0, *xs), max(xs)
    if low_x == high_x:
        low_x, high_x = (low_x / 10, high_x) if log_x else (low_x, high_x + 1)
    low_y, high_y = y_range or _range_around(ys)
    x = _Scale(low_x, high_x, left, width - right, log=log_x)
    y = _Scale(low_y, high_y, height - bottom, top)
    children = []
    for value in nice_ticks(low_y, high_y, 5):
        children.append(tag("line", x1=left, x2=width - right, y1=y(value), y2=y(value), class_="grid"))
        children.append(tag("text", (format_tick or format_y)(value), x=left - 6, y=y(value) + 4, class_="tick end"))
    for value in _powers_of_ten(low_x, high_x) if log_x else nice_ticks(low_x, high_x, 4):
        children.append(
            tag("line", x1=x(value), x2=x(value), y1=height - bottom, y2=height - bottom + 4, class_="rule")
        )
        # A number in the middle of the right edge would be cut off.
        anchor = "end" if x(value) > width - 2 * right else "mid"
        at = width - 1 if anchor == "end" else x(value)
        children.append(tag("text", format_x(value), x=at, y=height - bottom + 17, class_=f"tick {anchor}"))
    children.append(tag("text", x_label, x=(left + width - right) / 2, y=height - 3, class_="axis mid"))
    drawn: set[str] = set()
    for style, _, line in series:
        path = " ".join(f"{x(px):.1f},{y(py):.1f}" for px, py in line)
        # A line over an equal one is dashed, so that both are seen.
        over = " over" if path in drawn else ""
        drawn.add(path)
        children.append(tag("polyline", points=path, class_=f"line m{style % NUM_STYLES}{over}"))
    marked = [(style, x(px), y(py)) for style, _, line in series if len(line) <= 12 for px, py in line]
    for column in sorted({px for _, px, _ in marked}):
        marks = [(style, at) for style, px, at in marked if px == column]
        shifts = beside_each_other([at for _, at in marks], 3.0, 24.0)
        children += [marker(style, column + dx, at, 3.0) for (style, at), dx in zip(marks, shifts, strict=True)]
    strips = min(24, len(set(xs)))
    step = (width - left - right) / strips
    for i in range(strips):
        center = left + step * (i + 0.5)
        tip = _strip_tip(series, center, x, x_label, format_x, format_y)
        children.append(
            tag("rect", x=left + step * i, y=top, width=step, height=height - bottom - top, class_="hit", data_tip=tip)
        )
    return _svg(width, height, label, children, "chart")


def bar_chart(
    bars: Sequence[tuple[int, str, float]],
    *,
    label: str,
    y_range: tuple[float, float] | None = None,
    format_y: Callable[[float], str] = lambda value: f"{value:.3g}",
    format_tick: Callable[[float], str] | None = None,
) -> Markup:
    """One value a run, for what was measured once: (number of the run, its title, the value)."""
    width, height, left, right, top, bottom = 340.0, 210.0, 44.0, 12.0, 18.0, 14.0
    values = [value for *_, value in bars]
    # The length of a bar stands for its value, so that bars begin at 0.
    low, high = y_range or (min(0.0, *values), max(0.0, *values))
    y = _Scale(low, high if high > low else low + 1, height - bottom, top)
    children = []
    for tick in nice_ticks(low, high if high > low else low + 1, 5):
        children.append(tag("line", x1=left, x2=width - right, y1=y(tick), y2=y(tick), class_="grid"))
        children.append(tag("text", (format_tick or format_y)(tick), x=left - 6, y=y(tick) + 4, class_="tick end"))
    step = (width - left - right) / len(bars)
    for place, (style, title, value) in enumerate(bars):
        x, thick = left + step * (place + 0.5), min(0.6 * step, 56.0)
        from_y, to_y = sorted((y(0.0), y(value)))
        css = f"column m{style % NUM_STYLES}"
        children.append(tag("rect", x=x - thick / 2, y=from_y, width=thick, height=max(to_y - from_y, 1.0), class_=css,
                            data_tip=f"{title}: {format_y(value)}"))  # fmt: skip
        children.append(marker(style, x, from_y - 8, 3.5))
    return _svg(width, height, label, children, "chart")


def _strip_tip(
    series: Sequence[Series],
    center: float,
    x: _Scale,
    x_label: str,
    format_x: Callable[[float], str],
    format_y: Callable[[float], str],
) -> str:
    lines = []
    for _, title, line in series:
        nearest = min(line, key=lambda point: abs(x(point[0]) - center))
        lines.append(f"{title}: {format_y(nearest[1])} at {format_x(nearest[0])}")
    return "\n".join([x_label, *lines])


def thin(line: Sequence[tuple[float, float]], most: int = 120) -> list[tuple[float, float]]:
    """Means of equal runs of points, at most `most` of them: a noisy curve becomes readable and small.

    Example:
        >>> thin([(0, 1.0), (1, 3.0), (2, 5.0), (3, 7.0)], most=2)
        [(0.5, 2.0), (2.5, 6.0)]
    """
    if len(line) <= most:
        return list(line)
    parts = np.array_split(np.asarray(line, dtype=np.float64), most)
    return [(float(part[:, 0].mean()), float(part[:, 1].mean())) for part in parts]


def roc_points(fpr: Sequence[float], tpr: Sequence[float], low: float) -> list[tuple[float, float]]:
    """The ROC curve, which is linear between its points, at even steps of the logarithm of the false positive rate."""
    order = np.argsort(np.asarray(fpr), kind="stable")
    grid = np.logspace(math.log10(low), 0.0, 61)
    values = np.interp(grid, np.asarray(fpr)[order], np.maximum.accumulate(np.asarray(tpr)[order]))
    return list(zip(grid.tolist(), values.tolist(), strict=True))


def rate_text(value: float) -> str:
    """A false positive rate as a power of ten where it is one.

    Example:
        >>> rate_text(0.001), rate_text(1.0), rate_text(0.0234)
        ('10⁻³', '1', '2.34 %')
    """
    exponent = math.log10(value)
    if abs(exponent - round(exponent)) < 1e-6:
        return "1" if round(exponent) == 0 else f"10{_superscript(round(exponent))}"
    return percent(value)
