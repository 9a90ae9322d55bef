"""A data set described as data: classes, label map, file patterns, groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from aucseg.datasets.card_bands import parse_bands, parse_value_range
from aucseg.datasets.card_classes import GROUP_NAMES, MAX_RAW_ID, parse_classes, parse_groups, parse_ignored
from aucseg.datasets.card_layout import Layout, parse_split
from aucseg.datasets.colors import unpack_color
from aucseg.datasets.yaml_nodes import YamlValue
from aucseg.hints import closest

CARDS_FOLDER = Path(__file__).parent / "cards"
_CARD_KEYS = (
    "title", "ignore_index", "mask_encoding", "mat_key", "check_palette", "exif", "unmapped", "ignore_ids",
    "ignore_colors", "groups", "held_out_share", "hint", "citation", "licence", "source", "bands", "value_range",
)  # fmt: skip


@dataclass(frozen=True)
class DatasetCard:
    """What there is to know of a data set, read from a YAML file; everything else follows from it.

    Attributes:
        name: Short name, as in `aucseg stats NAME`.
        title: Name for people.
        class_names: Names of the classes in the order of their train ids 0..K-1.
        palette: Colour of each class, parts in 0..255.
        splits: For each split its layouts; its files are those of all of them together.
        raw_ids: For each class the raw ids in the mask files that mean it (with `rgb` masks `65536 red + 256 green +
            blue`).
        ignore_ids: Raw ids that mean "ignore".
        ignore_index: Train id of ignored pixels, outside 0..K-1.
        mask_encoding: `gray` (8 bits or less), `palette` (the index counts, not the colour), `gray16`, `rgb`
            (the colour counts), `mat` (a MATLAB file with the matrix `mat_key`).
        check_palette: Whether the palette of a `palette` mask must show the card's colours.
        exif: What an orientation tag in an image means: `error`, `ignore` (masks fit the pixels as stored),
            `apply` (masks fit the picture as shown).
        bands: Which bands of the images are read, in this order, the first one is 1; None for images read as RGB.
        value_range: For each band the values that become 0 and 255; None for bands of 8 bits as they are.
        unmapped: What a raw id outside the map is: `error` or `ignore`.
        groups: `{"head": [class ids], "middle": [...], "tail": [...]}`, or None where nobody has named all three.
        tail_classes: The tail classes, also where only they are named; else None.
        held_out_share: For data without a validation split: the share of the training images, in (0, 1), that runs
            keep from training and validate on, unless their configuration says otherwise; None for no say in it.
        hint: Advice added to the message about unknown raw ids.
        citation: Whom to cite.
        licence: Terms of the data.
        source: How to get the data.
        path: The file the card was read from, or None.

    Example:
        >>> card = DatasetCard.load("pascal_voc2012")
        >>> card.num_classes, card.class_names[15], card.palette[15]
        (21, 'person', (192, 128, 128))
    """

    name: str
    title: str
    class_names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    splits: Mapping[str, tuple[Layout, ...]]
    raw_ids: tuple[tuple[int, ...], ...]
    ignore_ids: tuple[int, ...] = ()
    ignore_index: int = 255
    mask_encoding: str = "gray"
    mat_key: str = "S"
    check_palette: bool = False
    exif: str = "error"
    unmapped: str = "error"
    groups: dict[str, list[int]] | None = None
    tail_classes: tuple[int, ...] | None = None
    held_out_share: float | None = None
    hint: str = ""
    citation: str = ""
    licence: str = ""
    source: str = ""
    bands: tuple[int, ...] | None = None
    value_range: tuple[tuple[float, float], ...] | None = None
    path: Path | None = field(default=None, compare=False)

    @property
    def num_classes(self) -> int:
        """Number of classes K, the ignore label not counted."""
        return len(self.class_names)

    @property
    def named_groups(self) -> dict[str, list[int]] | None:
        """The groups that the card names: all three, or the tail alone; None where it names none."""
        if self.groups is None and self.tail_classes:
            return {"tail": list(self.tail_classes)}
        return self.groups

    @property
    def num_channels(self) -> int:
        """Number of channels C of the images."""
        return 3 if self.bands is None else len(self.bands)

    def ids_of(self, classes: Sequence[int | str], name: str) -> list[int]:
        """Returns the train ids of classes that are given by id or by name, in their order.

        Args:
            classes: Ids 0..K-1, names, or both.
            name: What to call the setting in messages.

        Raises:
            ValueError: There is no such class.

        Example:
            >>> DatasetCard.load("freedoom_lt").ids_of(["imp", 0], "tail_classes")
            [2, 0]
        """
        ids = []
        for entry in classes:
            if isinstance(entry, str):
                if entry not in self.class_names:
                    near = closest(entry, self.class_names)
                    raise ValueError(f"{name} holds {entry!r}, which is not a class of the card {self.name!r}; {near}")
                entry = self.class_names.index(entry)
            if isinstance(entry, bool) or not isinstance(entry, int) or not 0 <= entry < self.num_classes:
                raise ValueError(
                    f"{name} holds {entry!r}: the classes of the card {self.name!r} are 0..{self.num_classes - 1}, or "
                    "their names"
                )
            ids.append(entry)
        return ids

    @staticmethod
    def available() -> list[str]:
        """Returns the names of the cards that come with the package."""
        return sorted(path.stem for path in CARDS_FOLDER.glob("*.yaml"))

    @classmethod
    def load(cls, name_or_path: str | Path) -> DatasetCard:
        """Loads a card that comes with the package, by name, or any other, by the path of its YAML file or by its text.

        Raises:
            ValueError: No such card, or the file breaks the schema; the message names file and line.
        """
        if isinstance(name_or_path, str) and "\n" in name_or_path:
            return cls.from_yaml(name_or_path)
        path = Path(name_or_path)
        if path.suffix not in (".yaml", ".yml") and len(path.parts) == 1:
            path = CARDS_FOLDER / f"{name_or_path}.yaml"
            if not path.is_file():
                raise ValueError(
                    f"no data set card is called {str(name_or_path)!r}; {closest(str(name_or_path), cls.available())}; "
                    "for a card of your own give the path of its .yaml file"
                )
        if not path.is_file():
            raise ValueError(f"there is no data set card at {path}")
        return _parse_card(YamlValue.read(path), path)

    @classmethod
    def from_yaml(cls, text: str, source: str = "card") -> DatasetCard:
        """Reads a card from YAML text, as `to_yaml` writes it; `source` stands for the file in messages."""
        return _parse_card(YamlValue.parse(text, source), None)

    def embedded_root(self) -> Path | None:
        """Returns the folder inside the package that holds this data set, or None where the data is not embedded."""
        folder = CARDS_FOLDER.parent / self.name
        return folder if self.path is not None and self.path.parent == CARDS_FOLDER and folder.is_dir() else None

    def to_yaml(self) -> str:
        """Returns the card as YAML text that `load` reads back."""
        is_rgb = self.mask_encoding == "rgb"
        id_key, ignore_key = ("mask_colors", "ignore_colors") if is_rgb else ("ids", "ignore_ids")

        def ids_entry(ids: Sequence[int]) -> list[int] | list[list[int]]:
            return [list(unpack_color(raw)) for raw in ids] if is_rgb else list(ids)

        def layout_entry(layout: Layout) -> dict[str, object]:
            entry: dict[str, object] = {"images": layout.images, "masks": layout.masks, "list": layout.list}
            entry["ids"] = "train" if layout.train_ids else None
            entry["stems"] = None if layout.stems is None else list(layout.stems)
            return {key: value for key, value in entry.items() if value is not None}

        document: dict[str, object] = {
            "name": self.name,
            "title": self.title,
            "ignore_index": self.ignore_index,
            "mask_encoding": self.mask_encoding,
            "unmapped": self.unmapped,
            ignore_key: ids_entry(self.ignore_ids),
            "exif": self.exif,
            "classes": [
                {"name": name, "color": list(color), id_key: ids_entry(ids)}
                for name, color, ids in zip(self.class_names, self.palette, self.raw_ids, strict=True)
            ],
            "splits": {name: [layout_entry(layout) for layout in layouts] for name, layouts in self.splits.items()},
        }
        if self.mask_encoding == "mat":
            document["mat_key"] = self.mat_key
        if self.mask_encoding == "palette":
            document["check_palette"] = self.check_palette
        if self.named_groups is not None:
            named = self.named_groups.items()
            document["groups"] = {key: [self.class_names[c] for c in ids] for key, ids in named}
        if self.bands is not None:
            document["bands"] = list(self.bands)
        if self.value_range is not None:
            document["value_range"] = [list(pair) for pair in self.value_range]
        for key in ("held_out_share", "hint", "citation", "licence", "source"):
            if getattr(self, key):
                document[key] = getattr(self, key)
        return yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=120, default_flow_style=None)


def _parse_card(root: YamlValue, path: Path | None) -> DatasetCard:
    card = root.mapping(required=("name", "classes", "splits"), optional=_CARD_KEYS)

    def text(key: str, default: str = "") -> str:
        return card[key].string() if key in card else default

    name = card["name"].string()
    encoding = card["mask_encoding"].choice(MAX_RAW_ID) if "mask_encoding" in card else "gray"
    names, palette, raw_ids = parse_classes(card["classes"], encoding)
    if "ignore_index" in card:
        ignore_index = card["ignore_index"].integer(-(2**31), 2**31 - 1)
        if 0 <= ignore_index < len(names):
            card["ignore_index"].error(
                f"ignore_index {ignore_index} is the train id of class {names[ignore_index]!r}; take another"
            )
    else:
        ignore_index = 255
        if len(names) > 255:
            card["classes"].error(f"with {len(names)} classes 255 is a train id; set ignore_index, for example -1")
    taken = {raw: name for name, ids in zip(names, raw_ids, strict=True) for raw in ids}
    groups = parse_groups(card["groups"], names) if "groups" in card else {}
    bands = parse_bands(card["bands"]) if "bands" in card else None
    return DatasetCard(
        name=name,
        title=text("title", name),
        class_names=tuple(names),
        palette=tuple(palette),
        splits={key: parse_split(value) for key, value in card["splits"].mapping().items()},
        raw_ids=tuple(raw_ids),
        ignore_ids=tuple(parse_ignored(card, encoding, taken)),
        ignore_index=ignore_index,
        mask_encoding=encoding,
        mat_key=text("mat_key", "S"),
        check_palette=card["check_palette"].boolean() if "check_palette" in card else False,
        exif=card["exif"].choice(("error", "ignore", "apply")) if "exif" in card else "error",
        unmapped=card["unmapped"].choice(("error", "ignore")) if "unmapped" in card else "error",
        groups=groups if len(groups) == len(GROUP_NAMES) else None,
        tail_classes=tuple(groups["tail"]) if groups else None,
        held_out_share=card["held_out_share"].share() if "held_out_share" in card else None,
        hint=text("hint"),
        citation=text("citation"),
        licence=text("licence"),
        source=text("source"),
        bands=bands,
        value_range=parse_value_range(card["value_range"], bands) if "value_range" in card else None,
        path=None if path is None else path.resolve(),
    )
