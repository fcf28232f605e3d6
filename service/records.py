"""How files that only grow are kept: records that tell when they were written in part, and one owner of a file.

A record is its length, its CRC-32 and its bytes.
"""

import fcntl
import os
import struct
import zlib
from pathlib import Path
from typing import IO

_HEAD = struct.Struct("<II")


def frame(record: bytes) -> bytes:
    """Return a record as it is written."""
    return _HEAD.pack(len(record), zlib.crc32(record)) + record


def read_frames(content: bytes) -> tuple[list[bytes], bool]:
    """Return the records up to the first that was written in part, and whether there is no such."""
    records: list[bytes] = []
    offset = 0
    while offset < len(content):
        head = content[offset : offset + _HEAD.size]
        length, check = _HEAD.unpack(head) if len(head) == _HEAD.size else (0, None)
        record = content[offset + _HEAD.size : offset + _HEAD.size + length]
        if zlib.crc32(record) != check or len(record) != length:
            return records, False
        records.append(record)
        offset += _HEAD.size + length
    return records, True


def take_lock(file: IO[bytes]) -> bool:
    """Take the file's lock for as long as it is open; return whether nobody else has it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def write_through(file: IO[bytes], content: bytes) -> None:
    """Write to the disk, and not to a buffer that a loss of power would take.

    Raises:
        OSError: the disk refused; the end of the file may have been written in part.
    """
    file.write(content)
    file.flush()
    os.fsync(file.fileno())


def sync(path: Path) -> None:
    """Force a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
