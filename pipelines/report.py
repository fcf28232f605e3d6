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


def line_of_epoch(candidate: str, epoch: int, of: int, metrics: Mapping[str, float]) -> str | None:
    """Return what is said of an epoch where there is no bar to move: of the first, the last, and each tenth."""
    if epoch != 1 and epoch % 10 != 0 and epoch != of:
        return None
    train, val = metrics["train/loss"], metrics["val/loss"]
    return f"{candidate}: epoch {epoch} of {of}, train {train:.4f}, validation {val:.4f}"


class LogReporter:
    """Writes log lines: what the worker uses."""

    def say(self, line: str) -> None:
        log.info(line)

    def epoch(self, candidate: str, epoch: int, of: int, metrics: Mapping[str, float]) -> None:
        line = line_of_epoch(candidate, epoch, of, metrics)
        if line is not None:
            log.info(line)

    def done(self, candidate: str) -> None:
        del candidate
