"""A simulated year of the closed loop: a plant, a stock, a worker's days; and everything that goes wrong in one.

Every day the rows that arrive are ingested, what has matured is scored, forecasts are issued and the shadow is
judged; once a week each job is retrained. On the way the plant changes its rhythm, a sensor breaks and its values
are withdrawn, the ledger's database is away for three days, and a person promotes a broken model. All of it is the
product's own code with the clock of the simulation; nothing is left out but the waiting.
"""

import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import pandas as pd
import torch
import yaml

from benchmarks.audit import audit_job
from benchmarks.report import OURS, Report, build_parser, finish, say
from benchmarks.world import (
    Deliveries,
    Plan,
    SimulatedClock,
    evening_of,
    replay_stock,
    simulate_plant,
)
from forecasting.artifact import save_artifact
from forecasting.errors import HindcastError, LedgerUnavailableError
from forecasting.forecaster import Forecaster
from forecasting.registry import champion_or_none, load_version
from ledger.ledger import Ledger, open_ledger
from pipelines.loop import Loop, take_turn
from pipelines.override import Override, promote_by_hand
from pipelines.recorded import retrain_recorded
from pipelines.report import LogReporter
from pipelines.run import Run
from pipelines.score import score_matured
from pipelines.settings import PipelineSettings
from training.job import JobConfig, parse_job

START = pd.Timestamp("2018-01-01")
WEEK = 7

PLANT = {
    "name": "plant",
    "source": {"kind": "ledger", "dataset": "plant"},
    "freq": "D",
    "horizon": 7,
    "level": [80, 90],
    "candidates": [{"kind": "mlp", "input_size": 28, "hidden_size": 32}],
    "training": {"max_epochs": 8, "patience": 4, "seed": 1},
    # What is held back for evaluation is not learned from: little, so that a change is seen soon.
    "evaluation": {"n_windows": 8, "step_size": 7, "validation_size": 49},
    "gate": {"trial": 12},
    "bad_series": "drop",
}
STOCK = {
    "name": "stock",
    "source": {"kind": "ledger", "dataset": "stock"},
    "target": {"transform": "log_return"},
    "freq": "XNYS",
    "horizon": 5,
    "level": [80, 90],
    "candidates": [{"kind": "mlp", "input_size": 20, "hidden_size": 16}],
    "training": {"max_epochs": 8, "patience": 4, "seed": 1, "optimizer": "rmsprop", "learning_rate": 0.001},
    "evaluation": {"n_windows": 30, "step_size": 5},
    "gate": {"trial": 12},
}


@dataclass
class Diary:
    """What happened, day by day."""

    trained: int = 0
    skipped: int = 0
    failed: list[str] = field(default_factory=list)
    waited: int = 0
    """Days on which something had to wait for the ledger."""
    broken: str | None = None
    """The version a person promoted by mistake."""
    replaced: float = float("nan")
    """The day on which something better was the champion again."""
    lines: list[str] = field(default_factory=list)

    def note(self, day: int, what: str) -> None:
        """Write a line down, and say it."""
        line = f"day {day:3d}: {what}"
        self.lines.append(line)
        say(line)


@dataclass
class Desk:
    """One job, the rows that arrive for it, and those that could not be handed in yet."""

    text: str
    deliveries: Deliveries
    outbox: list[pd.DataFrame] = field(default_factory=list)

    @property
    def job(self) -> JobConfig:
        """The job."""
        return parse_job(self.text)


@dataclass
class Year:
    """The simulation: its clock, its stores, its jobs."""

    home: Path
    plan: Plan
    clock: SimulatedClock
    settings: PipelineSettings
    ledger: Ledger
    desks: list[Desk]
    diary: Diary = field(default_factory=Diary)

    @cached_property
    def loop(self) -> Loop:
        """What the daily round works with."""
        return Loop(self.settings, self.ledger)

    def run(self) -> None:
        """Live through every day."""
        for desk in self.desks:
            desk.outbox.append(desk.deliveries.of_day(-1))
            self._hand_in(desk)
            self._retrain(desk, 0)
        for day in range(self.plan.days):
            self.clock.move(evening_of(START, day))
            with self._database_away(day):
                for desk in self.desks:
                    self._live(desk, day)
            self._look_after_the_broken(day)

    def audit(self) -> Report:
        """Return what became of everything."""
        report = Report()
        for desk in self.desks:
            arrived = Deliveries(desk.deliveries.rows[desk.deliveries.rows["day"] < self.plan.days])
            audit_job(report, self.ledger, self.loop.registry, desk.job.name, arrived)
        diary = self.diary
        for what, count in (
            ("retrainings that ran", diary.trained),
            ("retrainings skipped", diary.skipped),
            ("retrainings that failed", len(diary.failed)),
            ("days a job waited for the ledger", diary.waited),
            ("days until the broken model was replaced", diary.replaced - self.plan.bad_deployment),
        ):
            report.add("the year", OURS, what, count)
        for line in diary.failed:
            say(f"failed: {line}")
        return report

    def _live(self, desk: Desk, day: int) -> None:
        """Hand in what arrived, take a turn of the loop, and once a week retrain."""
        desk.outbox.append(desk.deliveries.of_day(day))
        try:
            self._hand_in(desk)
            score_matured(self.ledger)
            turn = take_turn(self.loop, desk.job)
        except LedgerUnavailableError:
            self.diary.waited += 1
            return
        if turn.decision is not None and turn.decision.action != "shadow":
            self.diary.note(day, f"{desk.job.name}: {turn.decision.action}: {turn.decision.reason}")
        if desk.job.name == "plant" and day == self.plan.bad_deployment:
            self._deploy_badly(desk, day)
        elif day % WEEK == WEEK - 1:
            self._retrain(desk, day)

    def _look_after_the_broken(self, day: int) -> None:
        champion = champion_or_none(self.loop.registry, "plant")
        if self.diary.broken is None or champion is None or champion.version == self.diary.broken:
            return
        self.diary.broken, self.diary.replaced = None, day

    def _hand_in(self, desk: Desk) -> None:
        """Append what waits, in the order it came; a delivery leaves the outbox once it is kept."""
        while desk.outbox:
            if len(desk.outbox[0]):
                self.ledger.observations.append(desk.job.name, desk.outbox[0])
            desk.outbox.pop(0)

    def _retrain(self, desk: Desk, day: int) -> None:
        key = f"{desk.job.name}-day-{day}"
        run = Run(desk.text, self.home, key, self.settings, Quiet(), clock=self.clock)
        self.ledger.runs.request(desk.job.name, "schedule", f"the tick of day {day}", key)
        try:
            outcome = retrain_recorded(run, self.ledger.runs, "year")
        except HindcastError as error:
            self.diary.failed.append(f"{desk.job.name}, day {day}: {error}")
            return
        finally:
            run.discard()
        if outcome is None:
            self.diary.skipped += 1
            return
        self.diary.trained += 1
        if outcome.decision is not None and outcome.decision.action != "keep":
            self.diary.note(
                day, f"{desk.job.name} v{outcome.version}: {outcome.decision.action}: {outcome.decision.reason}"
            )

    def _deploy_badly(self, desk: Desk, day: int) -> None:
        """Let a person promote the champion with its weights shaken: it loads, and it forecasts badly."""
        registry = self.loop.registry
        champion = champion_or_none(registry, desk.job.name)
        if champion is None:
            return
        forecaster = load_version(registry, champion)
        shaken = forecaster.network.state_dict()
        generator = torch.Generator().manual_seed(1)
        for values in shaken.values():
            if values.is_floating_point():
                values += 1.5 * values.std(correction=0) * torch.randn(values.shape, generator=generator)
        forecaster.network.load_state_dict(shaken)
        save_artifact(Forecaster(forecaster.spec, forecaster.network), self.home / "shaken")
        version = registry.publish(desk.job.name, self.home / "shaken", {"hindcast.note": "shaken"})
        hunch = Override("a hunch", "somebody")
        promote_by_hand(self.settings, desk.job.name, version.version, hunch, hold=False)
        self.diary.note(day, f"{desk.job.name} v{version.version}: promoted by a person, broken")
        self.diary.broken = version.version

    @contextmanager
    def _database_away(self, day: int) -> Iterator[None]:
        """On the days of the outage put a folder where the ledger's file was."""
        if day not in self.plan.outage:
            yield
            return
        path = self.home / "ledger.db"
        away = path.with_suffix(".away")
        self.ledger.engine.dispose()
        path.rename(away)
        path.mkdir()
        try:
            yield
        finally:
            self.ledger.engine.dispose()
            path.rmdir()
            away.rename(path)


class Quiet(LogReporter):
    """Says nothing of a training."""

    def say(self, line: str) -> None:
        """Swallow a line."""
        del line


def build_year(home: Path, plan: Plan, settings: PipelineSettings, seed: int) -> Year:
    """Make the world and an empty house for it."""
    clock = SimulatedClock(evening_of(START, -1))
    desks = [
        Desk(yaml.safe_dump(PLANT), simulate_plant(START, plan, seed)),
        Desk(yaml.safe_dump(STOCK), replay_stock(START, plan)),
    ]
    return Year(home, plan, clock, settings, open_ledger(settings.ledger, clock), desks)


def main(argv: Sequence[str] | None = None) -> None:
    """Live through a year and tell of it."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = build_parser("year", "A simulated year of the closed loop, and what became of everything in it.")
    parser.add_argument("--days", type=int, default=364, help="length of the year (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="another plant (%(default)s)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    plan = Plan(28 if options.quick else options.days)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        began = time.perf_counter()
        year = build_year(home, plan, PipelineSettings(home=home), options.seed)
        year.run()
        report = year.audit()
        say(f"lived through {plan.days} days in {time.perf_counter() - began:.0f} s")
    finish(report, "year", arguments, options.out)


if __name__ == "__main__":
    main()
