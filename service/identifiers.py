"""Random names of answers and requests, without a call to the system for each."""

import os
from collections import deque

_AT_ONCE = 64
_random: deque[bytes] = deque()


def new_identifier() -> str:
    """Return a random UUID (RFC 9562, version 4)."""
    digits = _take_16_bytes().hex()
    variant = "89ab"[int(digits[16], 16) % 4]
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-{variant}{digits[17:20]}-{digits[20:]}"


def _take_16_bytes() -> bytes:
    """Take bytes nobody else gets, in whatever thread."""
    try:
        return _random.pop()
    except IndexError:
        drawn = os.urandom(16 * _AT_ONCE)
        _random.extend(drawn[i : i + 16] for i in range(16, len(drawn), 16))
        return drawn[:16]
