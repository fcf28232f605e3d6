"""The clock both peers' trainers are given. Runs in the peers' environment."""

from time import perf_counter

import pytorch_lightning as pl


class Clock(pl.Callback):  # type: ignore[misc]
    """The seconds from the first step to the last: no import, no data frame, no validation.

    They are kept on the class: neuralforecast trains a deep copy of what it is given.
    """

    started = 0.0
    seconds = 0.0

    def on_train_start(self, trainer: object, model: object) -> None:  # noqa: ARG002  (Lightning's names)
        Clock.started = perf_counter()

    def on_train_end(self, trainer: object, model: object) -> None:  # noqa: ARG002  (Lightning's names)
        Clock.seconds = perf_counter() - Clock.started
