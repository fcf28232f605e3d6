"""Redacting: no key is written to a log, not even one that came where no key belongs."""

import logging
import re

_KEY = re.compile(r"hc_([0-9a-f]{12})_[0-9a-zA-Z]*")


class Redacting(logging.Formatter):
    """What another formatter says, without the secrets of keys."""

    def __init__(self, inner: logging.Formatter | None = None) -> None:
        super().__init__()
        self._inner = inner or logging.Formatter()

    def format(self, record: logging.LogRecord) -> str:
        text = self._inner.format(record)
        return _KEY.sub(r"hc_\1_...", text) if "hc_" in text else text


def redact_logs() -> None:
    """Have every handler there is now say nothing of secrets."""
    for handler in logging.getLogger().handlers:
        handler.setFormatter(Redacting(handler.formatter))
