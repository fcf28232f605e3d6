"""How often the gate errs, and what it finds: equally good models and better ones, one look and a year of them.

Models are simulated by their losses. At a cutoff all series share part of a model's luck; a series has some of
its own, a little of which stays with it; where forecasts overlap, so does their luck. Equally good models have the
same luck in distribution; a better one loses a share less. Every week the test block moves on by one cutoff, so
that neighbouring weeks have nearly all of it in common, and a challenger comes: a new one, or the same again.

K cutoffs, N series.
"""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.report import OURS, Report, build_parser, finish, say
from pipelines.promotion import Account, Action, Evidence, decide
from training.job import GateConfig
from training.significance import betting_evidence

FloatArray = NDArray[np.float64]

GATE = GateConfig()
WEEKS = 52
PLAIN = "plain threshold (lower mean)"
UNCORRECTED = "t-test, every loss for itself"
SYSTEMS = (OURS, UNCORRECTED, PLAIN)
IMPROVEMENTS = (0.01, 0.02, 0.03, 0.05, 0.08, 0.12)
WORSE = (0.1, 0.25, 0.5, 1.0)
FIRST = Account()


@dataclass(frozen=True)
class World:
    """What the losses of models are like."""

    name: str
    n_cutoffs: int = 20
    n_series: int = 12
    lags: int = 0
    spread: float = 0.15
    """Standard deviation of the luck of a model at one series and cutoff, relative to its loss."""
    common: float = 0.3
    """Share of its variance that all series have in common at a cutoff."""
    of_series: float = 0.02
    """Share that stays with a series: the model suits it better."""
    persistence: float = 0.0
    """How much of the common part lasts to the next cutoff, besides the overlap."""

    def draw_size(self, rng: np.random.Generator, n_cutoffs: int) -> FloatArray:
        """Return how hard each cutoff and series is, for every model alike."""
        weather = self._move(rng, n_cutoffs, 1) + self._move(rng, n_cutoffs, self.n_series)
        return np.exp(0.3 * weather)

    def draw_luck(self, rng: np.random.Generator, n_cutoffs: int) -> FloatArray:
        """Return what one model's losses are multiplied by."""
        series_N = rng.normal(size=self.n_series)
        series_N -= series_N.mean()
        own = self._move(rng, n_cutoffs, self.n_series) * math.sqrt(1.0 - self.common - self.of_series)
        together = self._move(rng, n_cutoffs, 1, self.persistence) * math.sqrt(self.common)
        return np.exp(self.spread * (together + own + math.sqrt(self.of_series) * series_N))

    def draw(self, rng: np.random.Generator, n_cutoffs: int, better: float = 0.0) -> tuple[FloatArray, FloatArray]:
        """Return the losses of a challenger, better by a share, and of the champion: `(K, N)` each."""
        size_KN = self.draw_size(rng, n_cutoffs)
        challenger_KN = (1.0 - better) * size_KN * self.draw_luck(rng, n_cutoffs)
        return challenger_KN, size_KN * self.draw_luck(rng, n_cutoffs)

    def _move(self, rng: np.random.Generator, k: int, n: int, persistence: float = 0.0) -> FloatArray:
        """Return standard normal noise, shared between cutoffs as forecasts that overlap share targets."""
        shocks = rng.normal(size=(k + self.lags, n))
        if persistence:
            for i in range(1, len(shocks)):
                shocks[i] = persistence * shocks[i - 1] + math.sqrt(1.0 - persistence**2) * shocks[i]
        total_KN = sum((shocks[i : i + k] for i in range(self.lags + 1)), start=np.zeros((k, n)))
        return total_KN / math.sqrt(self.lags + 1)


SENSORS = World("12 series, 20 cutoffs")
OVERLAPPING = World("12 series, 40 cutoffs, 5 overlap", n_cutoffs=40, lags=4)
WORLDS = (
    SENSORS,
    World("1 series, 50 cutoffs", n_cutoffs=50, n_series=1),
    World("200 series, 20 cutoffs", n_series=200),
    OVERLAPPING,
    World("12 series, 20 cutoffs, luck lasts (0.3)", persistence=0.3),
)


class Promoted(NamedTuple):
    """Who promotes: the gate, a test that takes every loss for independent, and a plain threshold."""

    gate: bool
    uncorrected: bool
    plain: bool


def main(argv: Sequence[str]) -> None:
    """Run the benchmark."""
    parser = build_parser("gate", "How often the gate errs, and what it finds.")
    parser.add_argument("--pairs", type=int, help="pairs of models a figure (1000)")
    arguments = parser.parse_args(argv)
    pairs = arguments.pairs or (60 if arguments.quick else 1000)
    report = Report()
    for world in WORLDS[:1] if arguments.quick else WORLDS:
        say(f"{world.name}: {pairs} pairs a figure")
        measure_equals(report, world, pairs)
        measure_power(report, world, pairs)
    say("refreshes")
    measure_refreshes(report, SENSORS, pairs)
    for world in (SENSORS, OVERLAPPING):
        say(f"live: {world.name}")
        measure_trials(report, world, pairs)
        measure_watches(report, world, pairs)
    finish(report, "gate", argv, arguments.out)


def measure_equals(report: Report, world: World, pairs: int) -> None:
    """Measure how often an equally good challenger is promoted: at one look, and at any of a year."""
    rng = np.random.default_rng(1)
    once = [judge(*world.draw(rng, world.n_cutoffs), world.lags) for _ in range(pairs)]
    _add(report, f"equally good: {world.name}", "promoted, one look", once)
    for metric, anew in (
        ("promoted in 52 weeks, always new", True),
        ("promoted in 52 weeks, always the same", False),
    ):
        years = [simulate_year(rng, world, anew=anew) for _ in range(pairs)]
        _add(report, f"equally good: {world.name}", metric, years)


def measure_power(report: Report, world: World, pairs: int) -> None:
    """Measure how often a better challenger is promoted at the first look."""
    rng = np.random.default_rng(2)
    for better in IMPROVEMENTS:
        found = [judge(*world.draw(rng, world.n_cutoffs, better), world.lags) for _ in range(pairs)]
        _add(report, f"better: {world.name}", f"promoted at the first look, better by {100 * better:g} %", found)


def _add(report: Report, case: str, metric: str, found: Sequence[Promoted]) -> None:
    for system, share in zip(SYSTEMS, np.mean(found, axis=0), strict=True):
        report.add(case, system, metric, share)


def judge(loss_KN: FloatArray, other_KN: FloatArray, lags: int, account: Account = FIRST) -> Promoted:
    """Return who promotes the challenger."""
    difference = (loss_KN - other_KN).ravel()
    z = difference.mean() / (difference.std(ddof=1) / math.sqrt(difference.size))
    action = ask_gate(loss_KN, other_KN, lags, account)
    return Promoted(action == "promote", bool(z < -1.645), bool(difference.mean() < 0))


def ask_gate(
    loss_KN: FloatArray, other_KN: FloatArray, lags: int, account: Account = FIRST, *, refresh: bool = False
) -> Action:
    """Return what the gate decides of a challenger whose skill nobody doubts."""
    challenger = Evidence("challenger", float(loss_KN.mean()), loss_KN)
    champion = Evidence("champion", float(other_KN.mean()), other_KN)
    naive = Evidence("seasonal_naive", 10.0 * champion.score, 10.0 * other_KN)
    return decide(challenger, champion, naive, GATE, lags=lags, refresh=refresh, account=account).action


def simulate_year(rng: np.random.Generator, world: World, *, anew: bool) -> Promoted:
    """Return who promotes at any of 52 weekly looks at challengers as good as the champion."""
    size_KN = world.draw_size(rng, world.n_cutoffs + WEEKS)
    other_KN, same_KN = (size_KN * world.draw_luck(rng, len(size_KN)) for _ in range(2))
    promoted = np.zeros(3, dtype=bool)
    for week in range(WEEKS):
        block = slice(week, week + world.n_cutoffs)
        loss_KN = size_KN[block] * world.draw_luck(rng, world.n_cutoffs) if anew else same_KN[block]
        promoted |= np.array(judge(loss_KN, other_KN[block], world.lags, Account(week)))
        if promoted.all():
            break
    return Promoted(*map(bool, promoted))


def measure_refreshes(report: Report, world: World, pairs: int) -> None:
    """Measure how often a refresh passes, which forecasts nearly as the champion does, by how much worse it is."""
    rng, near = np.random.default_rng(3), World(world.name, spread=0.03)
    case = f"refresh, margin {100 * GATE.margin:g} %: {near.name}, spread {near.spread:g}"
    for worse in (-0.02, 0.0, 0.01, GATE.margin, 0.04):
        drawn = [near.draw(rng, near.n_cutoffs, -worse) for _ in range(pairs)]
        for name, account in (
            ("first look", FIRST),
            ("52nd, all promoted", Account(51, 51)),
            ("52nd, none", Account(51)),
        ):
            passed = [ask_gate(*losses, 0, account, refresh=True) == "promote" for losses in drawn]
            report.add(case, OURS, f"promoted at the {name}, worse by {100 * worse:g} %", float(np.mean(passed)))
    years = [simulate_refreshes(rng, near, GATE.margin) for _ in range(pairs)]
    report.add(case, OURS, "any promoted in 52 weeks, each worse by the margin", float(np.mean(years)))


def simulate_refreshes(rng: np.random.Generator, world: World, worse: float) -> bool:
    """Return whether any of 52 weekly refreshes passes, each worse than the champion by a share."""
    size_KN = world.draw_size(rng, world.n_cutoffs + WEEKS)
    other_KN = size_KN * world.draw_luck(rng, len(size_KN))
    for week in range(WEEKS):
        block = slice(week, week + world.n_cutoffs)
        loss_KN = (1.0 + worse) * size_KN[block] * world.draw_luck(rng, world.n_cutoffs)
        if ask_gate(loss_KN, other_KN[block], world.lags, Account(week), refresh=True) == "promote":
            return True
    return False


def measure_trials(report: Report, world: World, pairs: int) -> None:
    """Measure what becomes of challengers in the shadow, which are looked at after every cutoff."""
    rng, level = np.random.default_rng(4), FIRST.level(GATE) / 2
    count = GATE.trial * (world.lags + 1)
    case = f"trial of {count} cutoffs, level {level:.2g}: {world.name}"
    for better in (0.0, *IMPROVEMENTS):
        proven = [first_proof(*_live(rng, world, count, better), world.lags, level) for _ in range(pairs)]
        told = f"better by {100 * better:g} %"
        report.add(case, OURS, f"promoted live, {told}", share_of(proven))
        if better and share_of(proven) > 0.5:
            report.add(case, OURS, f"median cutoffs, {told}", float(np.median(proven)))
    equal = [_live(rng, world, count, 0.0) for _ in range(pairs)]
    plain = float(np.mean([_ever_significant(*losses) for losses in equal]))
    report.add(case, "t-test at 5 % after every cutoff", "promoted live, better by 0 %", plain)


def measure_watches(report: Report, world: World, pairs: int) -> None:
    """Measure how soon a new champion that is worse is rolled back, and how often one that is not."""
    rng = np.random.default_rng(5)
    count = GATE.watch * (world.lags + 1)
    case = f"watch of {count} cutoffs, level {GATE.alpha:g}: {world.name}"
    for worse in (0.0, *WORSE):
        found = []
        for _ in range(pairs):
            champion_K, before_K = _live(rng, world, count, -worse)
            found.append(first_proof(before_K, champion_K, world.lags, GATE.alpha))
        told = f"new champion worse by {100 * worse:g} %"
        report.add(case, OURS, f"rolled back, {told}", share_of(found))
        if share_of(found) > 0.5:
            report.add(case, OURS, f"median cutoffs, {told}", float(np.median(found)))


def _live(rng: np.random.Generator, world: World, count: int, better: float) -> tuple[FloatArray, FloatArray]:
    challenger_KN, champion_KN = world.draw(rng, count, better)
    return challenger_KN.mean(axis=1), champion_KN.mean(axis=1)


def first_proof(loss_K: FloatArray, other_K: FloatArray, lags: int, level: float) -> float:
    """Return after how many cutoffs the evidence suffices for the first time; infinity for never."""
    evidence_K = betting_evidence(loss_K, other_K, lags)
    for k in np.flatnonzero(evidence_K >= 1.0 / level):
        if loss_K[: k + 1].mean() < other_K[: k + 1].mean():
            return float(k + 1)
    return math.inf


def share_of(proven: Sequence[float]) -> float:
    """Return how many of the trials came to a proof."""
    return float(np.isfinite(proven).mean())


def _ever_significant(loss_K: FloatArray, other_K: FloatArray) -> bool:
    difference_K = loss_K - other_K
    counts = range(5, len(difference_K) + 1)
    return any(difference_K[:k].mean() / (difference_K[:k].std(ddof=1) / math.sqrt(k)) < -1.645 for k in counts)


if __name__ == "__main__":
    main(sys.argv[1:])
