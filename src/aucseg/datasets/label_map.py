"""Raw ids to train ids, once and in one place."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import numpy.typing as npt

from aucseg.datasets.card import DatasetCard
from aucseg.datasets.card_classes import MAX_RAW_ID
from aucseg.datasets.colors import unpack_color
from aucseg.datasets.counting import MaskScan
from aucseg.datasets.files import Array


class LabelMap:
    """Turns the raw ids of a card's mask files into train ids 0..K-1 and the ignore label.

    Args:
        card: The data set card.
        train_ids: Whether the files hold train ids already: then 0..K-1 stay and `ignore_index` is ignored pixels.

    Example:
        >>> import numpy as np
        >>> LabelMap(DatasetCard.load("camvid"))(np.array([[0, 10, 11]], dtype=np.uint8))
        array([[  0,  10, 255]], dtype=uint8)
    """

    def __init__(self, card: DatasetCard, train_ids: bool = False) -> None:
        self.card = card
        self.train_ids = train_ids
        # 254 marks unknown ids in the fast uint8 table; with more classes it is a train id, and the table is wider.
        self._is_small = card.num_classes <= 254 and card.ignore_index == 255
        self._unknown = 254 if self._is_small else np.iinfo(np.int32).min

    def __getstate__(self) -> dict[str, object]:
        # The table of colours has 2^24 entries: cheaper to make in each worker than to send.
        return {key: value for key, value in self.__dict__.items() if key != "_table"}

    @cached_property
    def _table(self) -> Array:
        card = self.card
        dtype: npt.DTypeLike = np.uint8 if self._is_small else np.int32
        unmapped = self._unknown if card.unmapped == "error" else card.ignore_index
        table = np.full(MAX_RAW_ID[card.mask_encoding] + 1, unmapped, dtype=dtype)
        if self.train_ids:
            table[: card.num_classes] = np.arange(card.num_classes, dtype=dtype)
            if 0 <= card.ignore_index < len(table):
                table[card.ignore_index] = card.ignore_index
        else:
            for class_id, ids in enumerate(card.raw_ids):
                table[list(ids)] = class_id
            table[list(card.ignore_ids)] = card.ignore_index
        return table

    def __call__(self, raw: Array) -> Array:
        """Maps raw ids (H, W) to train ids (H, W): uint8 where K and the ignore label fit, else int64.

        Raises:
            ValueError: A raw id outside the map, where the card says `unmapped: error`; the message lists them.
        """
        table = self._table
        mapped: Array
        if raw.dtype == table.dtype == np.uint8:
            # A third of the time of table[raw].
            mapped = np.frombuffer(bytearray(raw).translate(table.tobytes()), np.uint8).reshape(raw.shape)
        else:
            mapped = table[raw]
        if self.card.unmapped == "error" and bool((mapped == self._unknown).any()):
            ids, counts = np.unique(raw[mapped == self._unknown], return_counts=True)
            raise ValueError(self.describe_unknown(dict(zip(ids.tolist(), counts.tolist(), strict=True))))
        return mapped if self._is_small else mapped.astype(np.int64)

    def map_scan(self, scan: MaskScan) -> tuple[MaskScan, dict[int, int]]:
        """Maps the scan of a mask of raw ids to one of train ids.

        Returns:
            The scan, without unknown ids, and the unknown ids with their pixels (none with `unmapped: ignore`).
        """
        mapped = self._table[scan.ids].astype(np.int64)
        known = mapped != self._unknown
        train_ids, position = np.unique(mapped[known], return_inverse=True)
        counts = np.zeros(len(train_ids), np.int64)
        cells = np.zeros(len(train_ids), np.uint64)
        np.add.at(counts, position, scan.counts[known])
        np.bitwise_or.at(cells, position, scan.cells[known])
        unknown = dict(zip(scan.ids[~known].tolist(), scan.counts[~known].tolist(), strict=True))
        return MaskScan(train_ids, counts, cells, scan.height, scan.width), unknown

    def describe_unknown(self, counts: dict[int, int]) -> str:
        """Returns the message about unknown raw ids, given the number of pixels of each."""
        shown = [
            f"{unpack_color(raw) if self.card.mask_encoding == 'rgb' else raw} ({count} pixels)"
            for raw, count in sorted(counts.items())[:10]  # of a photograph's colours there may be many thousands
        ]
        more = f" and {len(counts) - 10:,} more" if len(counts) > 10 else ""
        key = "ignore_colors" if self.card.mask_encoding == "rgb" else "ignore_ids"
        hint = f" {self.card.hint}" if self.card.hint else ""
        return (
            f"raw ids that data set {self.card.name!r} does not know: {', '.join(shown)}{more}; map them in the "
            f"card, list them under {key}, or set 'unmapped: ignore'.{hint}"
        )
