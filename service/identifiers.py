"""Random names of answers and requests, without a call to the system for each."""

import os
import uuid
from collections import deque

_AT_ONCE = 64
_random: deque[bytes] = deque()


def new_identifier() -> str:
    """Return a random UUID."""
    return str(uuid.UUID(bytes=_take_16_bytes(), version=4))


def _take_16_bytes() -> bytes:
    """Take bytes nobody else gets, in whatever thread."""
    try:
        return _random.pop()
    except IndexError:
        drawn = os.urandom(16 * _AT_ONCE)
        _random.extend(drawn[i : i + 16] for i in range(16, len(drawn), 16))
        return drawn[:16]
