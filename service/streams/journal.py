"""What was acknowledged, on the disk before it was: files that only grow, and go when a snapshot covers them.

A file is a line that names the format and then records; see `service.records`. A process never goes on with a file
it did not begin: its end may have been written in part.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from service.records import frame, read_frames, sync, take_lock, write_through

log = logging.getLogger("hindcast.streams")

FORMAT = b"hindcast-streams-1\n"


class Journal:
    """The journal files of one folder, which has one owner."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.nbytes = sum(path.stat().st_size for path in self._paths())
        self._next = max((_number_of(path) for path in self._paths()), default=0) + 1
        self._writing: IO[bytes] | None = None

    def read(self) -> Iterator[bytes]:
        """Yield every record, the oldest first; a file of another format is put aside."""
        for path in self._paths():
            content = path.read_bytes()
            if not content.startswith(FORMAT) and not FORMAT.startswith(content):
                log.error("%s is no journal of streams, or of another format; it is put aside", path.name)
                path.rename(path.with_suffix(".unreadable"))
                continue
            records, whole = read_frames(content[len(FORMAT) :])
            if not whole:
                log.warning("%s ends in a record that was written in part", path.name)
            yield from records

    def append(self, records: Sequence[bytes]) -> None:
        """Put records on the disk, at the price of one.

        Raises:
            OSError: the disk refused; whoever waits for them must not be told that they are kept.
        """
        content = b"".join(map(frame, records))
        try:
            write_through(self._file(), content)
        except OSError:
            self.rotate()
            raise
        self.nbytes += len(content)

    def rotate(self) -> int:
        """Go on with another file; return its number."""
        if self._writing is not None:
            with suppress(OSError):
                self._writing.close()
            self._writing = None
        return self._next

    def discard(self, before: int) -> None:
        """Delete the files before a number: a snapshot covers them."""
        for path in self._paths():
            if _number_of(path) < before:
                path.unlink(missing_ok=True)
        self.nbytes = sum(path.stat().st_size for path in self._paths())

    def _paths(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("*.journal") if path.stem.isdecimal())

    def _file(self) -> IO[bytes]:
        if self._writing is None:
            path = self.folder / f"{self._next:012d}.journal"
            self._next += 1
            self._writing = path.open("xb")
            self._writing.write(FORMAT)
            sync(self.folder)
        return self._writing


def _number_of(path: Path) -> int:
    return int(path.stem)


class Folder:
    """The folder of one service's streams, which one process owns."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: IO[bytes] | None = None

    def take(self) -> bool:
        """Own the folder from now on; return whether no other process does.

        Raises:
            OSError: the disk refused.
        """
        if self._lock is not None:
            return True
        self.path.mkdir(parents=True, exist_ok=True)
        file = (self.path / "lock").open("ab")
        if not take_lock(file):
            file.close()
            return False
        self._lock = file
        return True

    def release(self) -> None:
        """Let another process own it."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None
