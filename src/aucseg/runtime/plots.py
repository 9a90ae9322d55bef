"""What figures of matplotlib share: the endings of their files, labels, the colours of the groups."""

from __future__ import annotations

from pathlib import Path

from aucseg.hints import import_extra

GROUP_COLORS = {"head": "#4477aa", "middle": "#ccbb44", "tail": "#ee6677"}
_LONGEST_LABEL = 24


def plain_label(name: str) -> str:
    r"""A name as matplotlib takes it for a label: as it stands, no formula of it, and not too long.

    Example:
        >>> plain_label("$5 notes"), plain_label("everything else that is not a road")
        ('\\$5 notes', 'everything else that is…')
    """
    short = name if len(name) <= _LONGEST_LABEL else f"{name[: _LONGEST_LABEL - 1].rstrip()}…"
    return short.replace("$", r"\$")


def check_picture(path: Path) -> None:
    """Checks, before anything is drawn, that matplotlib writes pictures with the ending of this path.

    Raises:
        ValueError: It does not.
        ImportError: Matplotlib is missing.

    Example:
        >>> check_picture(Path("classes.svg"))
    """
    canvas = import_extra("matplotlib.backend_bases", "report").FigureCanvasBase
    endings = sorted(canvas.get_supported_filetypes())
    if path.suffix.lower().removeprefix(".") not in endings:
        raise ValueError(f"{path}: a figure is written as one of {', '.join(endings)}, by the ending of its name")
