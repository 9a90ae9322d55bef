"""The part of a card that says where the files of a split lie, and which mask belongs to which image."""

from __future__ import annotations

import re
from dataclasses import dataclass

from aucseg.datasets.tree import pattern_regex
from aucseg.datasets.yaml_nodes import YamlValue

# In a template: a brace of a name, or a field.
TEMPLATE_FIELD = re.compile(r"\{\{|\}\}|\{(\w+)\}")


@dataclass(frozen=True)
class Layout:
    """Where the files of a split lie below the root folder, and how images and masks pair.

    Attributes:
        images: Pattern of the images. Wildcards: `*` (within one folder), `**` (any folders), `?`; all else,
            brackets included, stands for itself. The ending fits in upper and lower case, `.*` is any ending of an
            image. With `list`, a template in which `{stem}` is a line of that file.
        masks: Template of an image's mask: `{stem}` is the image's file name without its ending, `{1}`, `{2}`,
            ... what the first, second, ... wildcard of `images` matched; `{{` and `}}` are braces, a final `.*`
            is any ending of a mask. Where no such file exists, one that differs in upper and lower case or in the
            composition of its characters is taken. None for a split without masks.
        stems: `(first, last)`: of the images only those whose file name without its ending lies in this range of the
            alphabet, both ends included; a part of a folder that is another split. None for all.
        list: Text file with one image a line (stem, name or path), or None.
        train_ids: Whether the masks hold train ids already, so that the card's raw ids do not apply.
    """

    images: str
    masks: str | None
    list: str | None = None
    train_ids: bool = False
    stems: tuple[str, str] | None = None


def parse_split(split: YamlValue) -> tuple[Layout, ...]:
    """Returns the layouts of a split."""
    layouts = []
    for entry in split.sequence() if split.is_sequence else [split]:
        keys = entry.mapping(required=("images",), optional=("masks", "list", "ids", "stems"))
        paths = {key: keys[key].string().removeprefix("./") for key in keys.keys() & {"images", "masks", "list"}}
        for key, pattern in paths.items():
            is_absolute = pattern.startswith(("/", "~")) or re.match("[A-Za-z]:", pattern)
            if is_absolute or "\\" in pattern or ".." in pattern.split("/"):
                keys[key].error(
                    f"{key} {pattern!r} must stay below the root folder: no leading / or ~, no .., no backslash, no "
                    "drive letter"
                )
        if "list" in keys and "{stem}" not in paths["images"]:
            keys["images"].error("with 'list', images must hold {stem}, for example JPEGImages/{stem}.jpg")
        if "stems" in keys and "list" in keys:
            keys["stems"].error("'stems' picks files of a folder; with 'list' leave lines out of the list instead")
        num_wildcards = 0 if "list" in paths else pattern_regex(paths["images"]).groups
        known = ["stem", *map(str, range(1, num_wildcards + 1))]
        for key in paths.keys() & ({"images", "masks"} if "list" in paths else {"masks"}):
            unknown = [name for name in TEMPLATE_FIELD.findall(paths[key]) if name and name not in known]
            if unknown:
                keys[key].error(
                    f"{key} {paths[key]!r}: {{{unknown[0]}}} is unknown; known are {{{'}, {'.join(known)}}}; braces in "
                    "names are written {{ and }}"
                )
        layouts.append(
            Layout(
                images=paths["images"],
                masks=paths.get("masks"),
                list=paths.get("list"),
                train_ids="ids" in keys and keys["ids"].choice(("raw", "train")) == "train",
                stems=_parse_stems(keys["stems"]) if "stems" in keys else None,
            )
        )
    if not layouts:
        split.error(f"split {split.what} has no layout")
    return tuple(layouts)


def _parse_stems(stems: YamlValue) -> tuple[str, str]:
    ends = [end.string() for end in stems.sequence()]
    if len(ends) != 2 or ends[0] > ends[1]:
        way_out = "give the first and the last file name without ending, in their order"
        stems.error(f"stems {ends} is not a range: {way_out}")
    return ends[0], ends[1]
