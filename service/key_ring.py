"""KeyRing: the keys in memory, as they are in their file, looked up without asking anybody."""

import hashlib
import hmac
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from forecasting.errors import HindcastError, InputError
from service.failures import next_failure
from service.key_store import SCOPES, ApiKey, load_keys, save_last_used
from service.rate_limit import TokenBucket
from service.schemas import Failure

log = logging.getLogger("hindcast.keys")

LOOK_SECONDS = 1.0
WRITE_USED_SECONDS = 3600.0

_ID = slice(3, 15)
_NOBODY = bytes(hashlib.sha256().digest_size)


class Holder:
    """A key in use."""

    __slots__ = ("_expires", "bucket", "digest", "grants", "key", "used")

    def __init__(self, key: ApiKey, rate: float) -> None:
        self.key = key
        self.digest = bytes.fromhex(key.digest)
        self.grants = frozenset((*(SCOPES if "admin" in key.scopes else key.scopes), "any"))
        self.bucket = TokenBucket(rate)
        self.used = False
        """Since it was last written down when."""
        self._expires = float("inf") if key.expires is None else key.expires.timestamp()

    def end(self) -> str | None:
        """Return why the key opens nothing any more; None while it does."""
        live = self.key.revoked is None and time.time() < self._expires
        return None if live else self.key.end(datetime.now(UTC))


class KeyRing:
    """Follows the file of keys in a thread of its own; what was read last holds until it can be read again."""

    def __init__(self, path: Path, default_rate: float, *, always: bool) -> None:
        self._path = path
        self._default_rate = default_rate
        self._holders: Mapping[bytes, Holder] = {}
        self._seen: tuple[int, ...] | None = None
        self._written: dict[str, float] = {}
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self.enforced = always
        """Whether requests need a key; once they do, they do as long as the process lives."""
        self.trouble: Failure | None = None
        """Why the file cannot be read now."""

    def open(self) -> None:
        """Read the keys for the first time.

        Raises:
            InputError: the file is there and is not what it must be.
        """
        self._seen = self._stamp()
        self._take(load_keys(self._path))

    def start(self) -> None:
        """Begin to look at the file."""
        if self.enforced and not self._holders:
            log.warning("%s has no key yet: nobody is let in; `hindcast keys create NAME` makes one", self._path)
        self._stopping.clear()
        self._thread = threading.Thread(target=self._follow, name="keys", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread, and write down which keys were used."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
            self._write_used(0)

    def recognise(self, presented: bytes) -> Holder | None:
        """Return whose key this is, revoked and expired ones included; None where it is nobody's.

        An id nobody has takes the way of one with another secret: nothing is learned from how long it takes.
        """
        holder = self._holders.get(presented[_ID])
        expected = _NOBODY if holder is None else holder.digest
        same = hmac.compare_digest(hashlib.sha256(presented).digest(), expected)
        return holder if same else None

    def ended(self, holder: Holder) -> bool:
        """Return whether a key that opened something does so no more."""
        now = self._holders.get(holder.key.id.encode())
        return now is None or now.end() is not None

    def look(self) -> None:
        """Read the file if it is another than the one read last."""
        stamp = self._stamp()
        if stamp == self._seen and self.trouble is None:
            return
        try:
            keys = load_keys(self._path)
            if stamp is None and self._holders:
                raise InputError(f"{self._path} is gone")
        except HindcastError as error:
            if self.trouble is None:
                log.error("%s; the keys known before stay in force", error)
            self.trouble = next_failure(self.trouble, error)
            return
        self._seen, self.trouble = stamp, None
        self._take(keys)
        log.info("%d keys read", len(keys))

    def _take(self, keys: Sequence[ApiKey]) -> None:
        """Put these keys in force; one that is as it was keeps its bucket."""
        known = {holder.key: holder for holder in self._holders.values()}
        self._holders = {
            key.id.encode(): known.get(key) or Holder(key, key.rate or self._default_rate) for key in keys
        }
        self.enforced = self.enforced or bool(keys)

    def _stamp(self) -> tuple[int, ...] | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return (found.st_ino, found.st_mtime_ns, found.st_size, found.st_mode)

    def _follow(self) -> None:
        while not self._stopping.wait(LOOK_SECONDS):
            try:
                self.look()
                self._write_used(WRITE_USED_SECONDS)
            except Exception:
                # Whatever it is: a thread that ended would never learn of a revoked key.
                log.exception("the keys could not be looked at")

    def _write_used(self, apart: float) -> None:
        """Write down which keys were used, each at most once in so many seconds: no request waits for it."""
        now = time.time()
        due = [h for h in self._holders.values() if h.used and now - self._written.get(h.key.id, 0) >= apart]
        if not due:
            return
        for holder in due:
            holder.used = False
            self._written[holder.key.id] = now
        try:
            save_last_used(self._path, {h.key.id: datetime.fromtimestamp(now, UTC) for h in due})
        except OSError as error:
            log.debug("when keys were used is not written down: %s", error.strerror)
