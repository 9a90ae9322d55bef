"""Results of earlier scans, kept by the content of the files."""

from __future__ import annotations

import hashlib
import logging
import sqlite3
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from aucseg.datasets.counting import MaskScan

_logger = logging.getLogger(__name__)
_BATCH = 256
_HEADER = struct.Struct("<iiii")


@dataclass(frozen=True)
class Signature:
    """Size and times of a file; as long as they stay, its content is not read again.

    The time of the last change of the inode is among them: no ordinary program can set it back.
    """

    size: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, path: Path) -> Signature | None:
        """Returns the signature of a file, or None where there is none."""
        try:
            stat = path.stat()
        except OSError:
            return None
        return cls(stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


# The first bytes of every SQLite file.
_MAGIC = b"SQLite format 3\0"


class ScanCache:
    """An SQLite file with the results of scans.

    A result is found by the digest of the file's content, so copied or moved data is not scanned again and an edited
    file is; path and signature of a file lead to its digest without reading it.

    Args:
        path: The file; made where it is missing or damaged.

    Raises:
        ValueError: It is a file of another kind.
        OSError: It cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._connection = self._connect()
        except sqlite3.OperationalError as error:
            # No database is damaged by a folder or a disk that cannot be written to.
            raise OSError(f"{path}: {error}") from error
        except sqlite3.DatabaseError:
            if path.read_bytes()[: len(_MAGIC)] not in (_MAGIC, b""):
                raise ValueError(f"{path} is not a cache of 'aucseg stats': give another file to --cache") from None
            path.unlink()
            self._connection = self._connect()
        self._num_open = 0
        self._is_writable = True
        # Asking an empty table for every file takes longer than it should.
        self._is_new = self._connection.execute("SELECT 1 FROM files LIMIT 1").fetchone() is None

    @classmethod
    def open(cls, path: Path) -> ScanCache | None:
        """Returns the cache in a file, or None, with a warning, where there cannot be one."""
        try:
            return cls(path)
        except OSError as error:
            _logger.warning("results are not kept for the next run: %s", error)
            return None

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=60)
        try:
            connection.executescript(
                "CREATE TABLE IF NOT EXISTS files (path TEXT PRIMARY KEY, size INT, mtime INT, ctime INT, digest TEXT);"
                "CREATE TABLE IF NOT EXISTS results (digest TEXT, kind TEXT, payload BLOB, PRIMARY KEY (digest, kind));"
            )
        except sqlite3.DatabaseError:
            connection.close()
            raise
        return connection

    def known(self, path: Path, signature: Signature, kind: str) -> bytes | None:
        """Returns the result of a file that has not changed since, or None."""
        if self._is_new:
            return None
        row = self._connection.execute(
            "SELECT payload FROM files JOIN results USING (digest) WHERE path=? AND size=? AND mtime=? AND ctime=? "
            "AND kind=?",
            (str(path.absolute()), signature.size, signature.mtime_ns, signature.ctime_ns, kind),
        ).fetchone()
        return None if row is None else bytes(row[0])

    def result(self, digest: str, kind: str) -> bytes | None:
        """Returns the result of a content, or None."""
        row = self._connection.execute(
            "SELECT payload FROM results WHERE digest=? AND kind=?", (digest, kind)
        ).fetchone()
        return None if row is None else bytes(row[0])

    def add(self, path: Path, signature: Signature, digest: str, kind: str, payload: bytes) -> None:
        """Keeps a result; every few hundred are written, so that an interrupted run goes on where it was."""
        if not self._is_writable:
            return
        try:
            self._connection.execute(
                "INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?)",
                (str(path.absolute()), signature.size, signature.mtime_ns, signature.ctime_ns, digest),
            )
            self._connection.execute("INSERT OR REPLACE INTO results VALUES (?, ?, ?)", (digest, kind, payload))
        except sqlite3.OperationalError as error:
            self._give_up(error)
            return
        self._num_open += 1
        self._is_new = False
        if self._num_open >= _BATCH:
            self.commit()

    def _give_up(self, error: sqlite3.OperationalError) -> None:
        """The disk is full, or the file may be read only: what is known stays of use, what comes is not kept."""
        self._is_writable = False
        _logger.warning("results are not kept for the next run: %s: %s", self.path, error)

    def commit(self) -> None:
        """Writes what was added."""
        try:
            self._connection.commit()
        except sqlite3.OperationalError as error:
            self._give_up(error)
        self._num_open = 0

    def close(self) -> None:
        """Writes what was added and closes the file."""
        self.commit()
        self._connection.close()


def digest_of(data: bytes | memoryview) -> str:
    """Returns a digest of the bytes of a file."""
    return hashlib.blake2b(data, digest_size=20).hexdigest()


def content_digest(path: Path) -> str:
    """Returns the same digest of a file that is not in memory."""
    with path.open("rb") as file:
        digest = hashlib.blake2b(digest_size=20)
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def pack_scan(scan: MaskScan) -> bytes:
    """Returns a scan as bytes."""
    header = _HEADER.pack(scan.height, scan.width, len(scan.ids), scan.colors is not None)
    columns = [(scan.ids, "<i8"), (scan.counts, "<i8"), (scan.cells, "<u8")]
    if scan.colors is not None:
        columns.append((scan.colors, "<i8"))
    return header + b"".join(column.astype(dtype).tobytes() for column, dtype in columns)


def unpack_scan(payload: bytes) -> MaskScan:
    """Returns the scan that `pack_scan` packed."""
    height, width, n, has_colors = _HEADER.unpack_from(payload)
    ids, counts, cells, *colors = np.frombuffer(payload, "<i8", offset=_HEADER.size).reshape(3 + has_colors, n)
    return MaskScan(
        ids.astype(np.int64),
        counts.astype(np.int64),
        cells.astype("<i8").view("<u8").astype(np.uint64),
        height,
        width,
        colors[0].astype(np.int64) if colors else None,
    )
