"""The part of a card that names the classes, what stands for them in the masks, and their groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from aucseg.datasets.colors import default_color, pack_color, unpack_color
from aucseg.datasets.yaml_nodes import YamlValue

GROUP_NAMES = ("head", "middle", "tail")
# The largest raw id that a mask of each encoding can hold.
MAX_RAW_ID = {"gray": 255, "palette": 255, "gray16": 65535, "rgb": 0xFFFFFF, "mat": 65535}
_CLASS_KEYS = ("color", "ids", "mask_colors")


def parse_classes(
    classes: YamlValue, encoding: str
) -> tuple[list[str], list[tuple[int, int, int]], list[tuple[int, ...]]]:
    """Returns name, colour and raw ids of each class."""
    names: list[str] = []
    palette: list[tuple[int, int, int]] = []
    raw_ids: list[tuple[int, ...]] = []
    taken: dict[int, str] = {}
    for class_id, entry in enumerate(classes.sequence()):
        keys = entry.mapping(required=("name",), optional=_CLASS_KEYS)
        name = keys["name"].string()
        if "\n" in name:  # tables have a line for each class
            keys["name"].error(f"the name of a class must be one line, got {name[:50]!r}")
        if name in names:
            keys["name"].error(f"two classes are called {name!r}; their names must differ")
        color = keys["color"].color() if "color" in keys else default_color(class_id + 1)
        wrong_key = "ids" if encoding == "rgb" else "mask_colors"
        if wrong_key in keys:
            keys[wrong_key].error(
                f"{wrong_key!r} does not go with mask_encoding {encoding}; remove it or change the encoding"
            )
        if encoding == "rgb":
            ids = (
                [pack_color(c.color()) for c in keys["mask_colors"].sequence()]
                if "mask_colors" in keys
                else [pack_color(color)]
            )
        elif "ids" in keys:
            ids = keys["ids"].integers(0, MAX_RAW_ID[encoding])
        else:
            ids = [class_id]
        for raw in ids:
            if raw in taken:
                shown = _shown(raw, encoding)
                entry.error(f"raw id {shown} stands for {taken[raw]!r} and for {name!r}; a raw id belongs to one class")
            taken[raw] = name
        names.append(name)
        palette.append(color)
        raw_ids.append(tuple(ids))
    if not names:
        classes.error("'classes' is empty; a card needs at least two classes")
    if len(names) == 1:
        classes.error(
            f"{names[0]!r} is the only class, so there is nothing to tell it from: make the other pixels a class "
            "(background) instead of ignoring them"
        )
    return names, palette, raw_ids


def parse_ignored(card: Mapping[str, YamlValue], encoding: str, taken: Mapping[int, str]) -> list[int]:
    """Returns the raw ids that mean "ignore"; `taken` maps those of the classes to their names."""
    key, wrong_key = ("ignore_colors", "ignore_ids") if encoding == "rgb" else ("ignore_ids", "ignore_colors")
    if wrong_key in card:
        card[wrong_key].error(f"{wrong_key!r} does not go with mask_encoding {encoding}; use {key!r}")
    if key not in card:
        return []
    ids = []
    for entry in card[key].sequence():
        raw = pack_color(entry.color()) if encoding == "rgb" else entry.integer(0, MAX_RAW_ID[encoding])
        if raw in taken:
            shown = _shown(raw, encoding)
            entry.error(f"raw id {shown} is ignored and stands for class {taken[raw]!r}; it can be one only")
        ids.append(raw)
    return ids


def _shown(raw: int, encoding: str) -> int | tuple[int, int, int]:
    return unpack_color(raw) if encoding == "rgb" else raw


def parse_groups(groups: YamlValue, names: Sequence[str]) -> dict[str, list[int]]:
    """Returns the class ids of each group: of all three, or of the tail alone."""
    entries = groups.mapping(optional=GROUP_NAMES)
    if set(entries) not in ({"tail"}, set(GROUP_NAMES)):
        groups.error("'groups' needs head, middle and tail, or tail alone")
    group_of: dict[str, str] = {}
    result: dict[str, list[int]] = {}
    for group in (name for name in GROUP_NAMES if name in entries):
        members = entries[group].sequence()
        for member in members:
            name = member.string()
            if name not in names:
                member.error(f"group {group!r} names {name!r}, which is not a class of this card")
            if name in group_of:
                member.error(f"class {name!r} is in group {group_of[name]!r} and in {group!r}; it can be in one only")
            group_of[name] = group
        result[group] = [names.index(member.string()) for member in members]
    if len(result) == len(GROUP_NAMES) and len(group_of) < len(names):
        missing = next(name for name in names if name not in group_of)
        groups.error(f"class {missing!r} is in no group; every class must be in head, middle or tail")
    return result
