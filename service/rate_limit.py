"""How much a caller may ask of the service: units a second, saved up for a while."""

from starlette.types import Scope

SAVED_SECONDS = 10.0
"""Units that are not used are saved so long; then the caller has a full bucket and no more."""

BYTES_OF_A_UNIT = 4096
"""A request is a unit, and so is every so many bytes of its body, unpacked: some thousand values cost as much."""

BUCKET = "hindcast.bucket"
"""Where the scope of a request has its caller's bucket; without one nothing is limited."""


class TokenBucket:
    """Units of one caller.

    What a request costs is known only when its body is there. So whoever has a unit is let in, and what the
    request costs on top is owed: the bucket may be below zero, and the next request waits until it is not.
    """

    __slots__ = ("_at", "_capacity", "_level", "rate")

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self._capacity = self._level = max(1.0, rate * SAVED_SECONDS)
        self._at = 0.0

    def take(self, now: float) -> float:
        """Take a unit and return 0; or take none and return the seconds until there is one.

        Args:
            now: seconds of a clock that never goes back.
        """
        level = self._level + (now - self._at) * self.rate
        level = self._level = min(level, self._capacity)
        self._at = now
        if level < 1.0:
            return (1.0 - level) / self.rate
        self._level = level - 1.0
        return 0.0

    def owe(self, size: int) -> None:
        """Charge for so many bytes."""
        self._level -= size / BYTES_OF_A_UNIT


def charge_body(scope: Scope, size: int) -> None:
    """Charge a request's caller for so many bytes, unpacked."""
    bucket = scope.get(BUCKET)
    if bucket is not None:
        bucket.owe(size)
