"""What waits to be brought to the ledger: files below home that only grow, and go when all of them was brought.

A file is a line that names the format and then records: length, CRC-32, bytes. A record that a dying process wrote
in part fails its check, and ends the file. Whoever writes or reads a file holds its lock, so that several services
may share a home.
"""

import logging
import secrets
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from service.records import frame, read_frames, sync, take_lock, write_through

log = logging.getLogger("hindcast.recorder")

FORMAT = b"hindcast-unwritten-1\n"
LARGEST_FILE = 8 * 1024**2
"""Bytes after which a new file is begun: a file is read as a whole."""


class UnwrittenFiles:
    """The files of one folder; one thread appends and one drains."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder = folder
        self.max_bytes = max_bytes
        self.nbytes = _size_of(folder)
        self._writing: IO[bytes] | None = None
        self._lock = threading.Lock()

    def append(self, records: Sequence[bytes]) -> bool:
        """Put records on the disk, all or none; return False where there is no room.

        Raises:
            OSError: the disk refused.
        """
        content = b"".join(map(frame, records))
        with self._lock:
            if self.nbytes + len(content) > self.max_bytes:
                return False
            try:
                file = self._file()
                write_through(file, content)
            except OSError:
                # What was written in part ends its file: the next records go to another.
                self._close()
                raise
            self.nbytes += len(content)
            if file.tell() > LARGEST_FILE:
                self._close()
        return True

    def close(self) -> None:
        """Let go of the file begun last: whoever comes next may bring it to the ledger."""
        with self._lock:
            self._close()

    def is_empty(self) -> bool:
        """Return whether nothing waits, as far as this process knows."""
        return self.nbytes == 0

    def drain(self) -> Iterator[list[bytes]]:
        """Yield the records of each file, the oldest first; a file goes when the next one is asked for.

        Who stops asking leaves the file there: its records are then yielded again, and what is brought to the
        ledger twice is there once.
        """
        with self._lock:
            self._close()
        for path in sorted(self.folder.glob("*.part")):
            with suppress(FileNotFoundError), path.open("rb") as file:
                if take_lock(file):
                    yield _read(file.read(), path)
                    path.unlink(missing_ok=True)
        with self._lock:
            self.nbytes = _size_of(self.folder)

    def _file(self) -> IO[bytes]:
        if self._writing is None:
            self._writing = self._begin()
            self._writing.write(FORMAT)
            sync(self.folder)
        return self._writing

    def _begin(self) -> IO[bytes]:
        """Open a file of our own; one that another process took for a finished one before it was locked is not."""
        self.folder.mkdir(parents=True, exist_ok=True)
        while True:
            path = self.folder / f"{time.time_ns()}-{secrets.token_hex(4)}.part"
            file = path.open("xb")
            if take_lock(file) and path.exists():
                return file
            file.close()

    def _close(self) -> None:
        if self._writing is not None:
            with suppress(OSError):
                self._writing.close()
            self._writing = None


def _size_of(folder: Path) -> int:
    """Return the bytes of all files; another process may remove one meanwhile."""
    size = 0
    for path in folder.glob("*.part"):
        with suppress(FileNotFoundError):
            size += path.stat().st_size
    return size


def _read(content: bytes, path: Path) -> list[bytes]:
    """Return the records of a file; one that begins otherwise is put aside."""
    if FORMAT.startswith(content):
        return []
    if not content.startswith(FORMAT):
        log.error("%s is of another format; it is put aside", path.name)
        path.rename(path.with_suffix(".unreadable"))
        return []
    records, whole = read_frames(content[len(FORMAT) :])
    if not whole:
        log.warning("%s ends in a record that was written in part", path.name)
    return records
