"""Forecasts the ledger could not take yet: files that only grow, below home, until it can.

A file is a line that names the format and then records: length, CRC-32, bytes. A record that a dying process wrote
in part fails its check, and ends the file. Whoever writes or reads a file holds its lock, so that several services
may share a home.
"""

import fcntl
import logging
import os
import secrets
import struct
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from ledger.forecasts import IssuedForecast, pack_forecast, unpack_forecast

log = logging.getLogger("hindcast.recorder")

FORMAT = b"hindcast-unwritten-1\n"
LARGEST_FILE = 8 * 1024**2
"""Bytes after which a new file is begun: a file is read as a whole."""

_HEAD = struct.Struct("<II")


class UnwrittenForecasts:
    """The files of one folder; one thread at a time."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder = folder
        self.max_bytes = max_bytes
        self.nbytes = _measure(folder)
        self._writing: IO[bytes] | None = None

    def append(self, forecasts: Iterable[IssuedForecast]) -> bool:
        """Keep forecasts on the disk, all or none; return False where there is no room.

        Raises:
            OSError: the disk refused.
        """
        packed = [pack_forecast(one) for one in forecasts]
        content = b"".join(_HEAD.pack(len(one), zlib.crc32(one)) + one for one in packed)
        if self.nbytes + len(content) > self.max_bytes:
            return False
        try:
            file = self._file()
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        except OSError:
            # What was written in part ends its file: the next forecasts go to another.
            self.close()
            raise
        self.nbytes += len(content)
        if file.tell() > LARGEST_FILE:
            self.close()
        return True

    def close(self) -> None:
        """Write no more to the file begun last."""
        if self._writing is not None:
            with suppress(OSError):
                self._writing.close()
            self._writing = None

    def is_empty(self) -> bool:
        """Return whether nothing waits, as far as this process knows."""
        return self.nbytes == 0

    def drain(self, size: int) -> Iterator[Sequence[IssuedForecast]]:
        """Yield what waits, the oldest first, some at a time; a file is removed when all of it was asked for.

        Who stops asking leaves the file there: forecasts are then yielded again, and keeping them twice is
        keeping them once.
        """
        self.close()
        for path in sorted(self.folder.glob("*.part")):
            with path.open("rb") as file:
                if not _lock(file):
                    continue
                forecasts = _read(file.read(), path)
                for i in range(0, len(forecasts), size):
                    yield forecasts[i : i + size]
                path.unlink(missing_ok=True)
        self.nbytes = _measure(self.folder)

    def _file(self) -> IO[bytes]:
        if self._writing is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            path = self.folder / f"{time.time_ns()}-{secrets.token_hex(4)}.part"
            self._writing = path.open("xb")
            _lock(self._writing)
            self._writing.write(FORMAT)
            _sync_folder(self.folder)
        return self._writing


def _read(content: bytes, path: Path) -> list[IssuedForecast]:
    """Return the forecasts of a file; one that cannot be read is put aside."""
    if FORMAT.startswith(content):
        return []
    try:
        if not content.startswith(FORMAT):
            raise ValueError("it begins otherwise than a file of this format")
        return _parse(content, path.name)
    except ValueError as error:
        log.error("%s holds forecasts that cannot be read; it is put aside: %s", path.name, error)
        path.rename(path.with_suffix(".unreadable"))
        return []


def _parse(content: bytes, name: str) -> list[IssuedForecast]:
    forecasts, offset = [], len(FORMAT)
    while offset < len(content):
        head = content[offset : offset + _HEAD.size]
        length, check = _HEAD.unpack(head) if len(head) == _HEAD.size else (0, None)
        packed = content[offset + _HEAD.size : offset + _HEAD.size + length]
        if zlib.crc32(packed) != check or len(packed) != length:
            log.warning("%s ends in a forecast that was written in part", name)
            break
        forecasts.append(unpack_forecast(packed))
        offset += _HEAD.size + length
    return forecasts


def _lock(file: IO[bytes]) -> bool:
    """Take the file's lock for as long as it is open; return whether nobody else has it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _measure(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.part"))


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
