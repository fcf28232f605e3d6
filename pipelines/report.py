"""How a long operation says what it is doing: a callable each for lines and for epochs."""

import logging
from collections.abc import Mapping
from typing import Protocol

log = logging.getLogger("hindcast")


class Reporter(Protocol):
    """Who listens to a training."""

    def say(self, line: str) -> None:
        """Take one line that a person should read."""

    def epoch(self, candidate: str, epoch: int, of: int, metrics: Mapping[str, float]) -> None:
        """Take the metrics of one epoch of a candidate."""

    def done(self, candidate: str) -> None:
        """Take note that a candidate's epochs are over, early or not."""


class LogReporter:
    """Writes log lines: what the worker uses."""

    def say(self, line: str) -> None:
        log.info(line)

    def epoch(self, candidate: str, epoch: int, of: int, metrics: Mapping[str, float]) -> None:
        if epoch == 1 or epoch % 10 == 0 or epoch == of:
            train, val = metrics["train/loss"], metrics["val/loss"]
            log.info("%s: epoch %d of %d, train %.4f, validation %.4f", candidate, epoch, of, train, val)

    def done(self, candidate: str) -> None:
        del candidate
