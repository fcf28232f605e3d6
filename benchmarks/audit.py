"""What became of everything in the simulated year: kept, missed, lost; and whether the loop was worth it.

B forecasts, H horizon, Q quantiles.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from benchmarks.report import OURS, Report
from benchmarks.world import Deliveries
from forecasting.forecaster import Forecaster, interpolate_quantile, interval_bounds
from forecasting.registry import Registry, load_version
from forecasting.transforms import apply_transform
from ledger.forecasts import IssuedForecast
from ledger.ledger import Ledger
from ledger.schema import forecasts
from training import metrics

FloatArray = NDArray[np.float64]

FROZEN = "first champion for ever"
UNADJUSTED = "hindcast, intervals not adjusted"
NAIVE = "seasonal naive"
LEVEL = 90.0


@dataclass(frozen=True, eq=False)
class Issued:
    """The champion's forecasts of one job, and what happened, on the modelling scale."""

    records: Sequence[IssuedForecast]
    forecaster: Forecaster
    actual_BH: FloatArray

    def scaled(self, values: FloatArray) -> FloatArray:
        """Return observed values on the modelling scale."""
        return apply_transform(values, self.forecaster.spec.transform)


def audit_job(report: Report, ledger: Ledger, registry: Registry, job: str, arrived: Deliveries) -> None:
    """Add what became of a job's observations, forecasts, scores and decisions."""
    _audit_observations(report, ledger, job, arrived)
    truth = last_word(arrived.rows)
    records = ledger.forecasts.select(forecasts.c.model == job, forecasts.c.role == "champion")
    if records:
        _audit_cutoffs(report, job, truth, records)
        first = load_version(registry, registry.version(job, records[0].version))
        issued = Issued(records, first, np.stack([_actual(truth, one) for one in records]))
        _audit_scores(report, ledger, job, issued)
    _audit_decisions(report, ledger, job)


def last_word(rows: pd.DataFrame) -> pd.Series:
    """Return the value that was delivered last of each series and timestamp."""
    ordered = rows.sort_values("day", kind="stable")
    return ordered.groupby(["unique_id", "ds"])["y"].last(skipna=False)


def _audit_observations(report: Report, ledger: Ledger, job: str, arrived: Deliveries) -> None:
    truth = last_word(arrived.rows)
    kept = ledger.observations.read(job).to_frame().set_index(["unique_id", "ds"])["y"].reindex(truth.index)
    same = (kept == truth) | (kept.isna() & truth.isna())
    report.add(job, OURS, "rows delivered", len(arrived.rows))
    report.add(job, OURS, "values the ledger should hold", len(truth))
    report.add(job, OURS, "values lost or wrong", int((~same).sum()))


def _audit_cutoffs(report: Report, job: str, truth: pd.Series, records: Sequence[IssuedForecast]) -> None:
    """Add the cutoffs since the first forecast at which nobody forecast: values that came late, and the outage."""
    asked = {(one.unique_id, pd.Timestamp(one.cutoff)) for one in records}
    first = min(cutoff for _, cutoff in asked)
    last = max(cutoff for _, cutoff in asked)
    known = truth[truth.notna()]
    ds = known.index.get_level_values("ds")
    due = set(known[(ds >= first) & (ds <= last)].index)
    report.add(job, OURS, "cutoffs with a value", len(due))
    report.add(job, OURS, "cutoffs nobody forecast at", len(due - asked))


def _actual(truth: pd.Series, one: IssuedForecast) -> FloatArray:
    index = pd.MultiIndex.from_product([[one.unique_id], pd.DatetimeIndex(one.ds_H)])
    return truth.reindex(index).to_numpy(dtype=np.float64)


def _audit_scores(report: Report, ledger: Ledger, job: str, issued: Issued) -> None:
    scored = sum(row["n"] for row in ledger.scores.summary(model=job, role="champion"))
    matured = int(np.isfinite(issued.actual_BH).sum())
    report.add(job, OURS, "forecasts issued", len(issued.records))
    report.add(job, OURS, "steps matured", matured)
    report.add(job, OURS, "steps not scored", matured - scored)
    adjusted_BHQ = np.stack([one.values_HQ for one in issued.records])
    added_BHQ = np.stack([_added(one) for one in issued.records])
    y_BL = np.stack([one.inputs.y_L for one in issued.records])
    frozen_BHQ = issued.forecaster.predict(y_BL)
    for name, values_BHQ in ((OURS, adjusted_BHQ), (UNADJUSTED, adjusted_BHQ - added_BHQ), (FROZEN, frozen_BHQ)):
        _add_accuracy(report, job, name, issued, values_BHQ)
    for row in ledger.scores.summary(model=job, role="champion", by=("model",)):
        report.add(job, OURS, "mase against the seasonal naive", row["mase"])


def _added(one: IssuedForecast) -> FloatArray:
    return np.zeros_like(one.values_HQ) if one.adjustment_HQ is None else one.adjustment_HQ


def _add_accuracy(report: Report, job: str, name: str, issued: Issued, values_BHQ: FloatArray) -> None:
    quantiles = issued.forecaster.spec.quantiles
    actual_BH, said_BHQ = issued.scaled(issued.actual_BH), issued.scaled(values_BHQ)
    low, high = interval_bounds(quantiles, LEVEL)
    low_BH = interpolate_quantile(said_BHQ, quantiles, low)
    high_BH = interpolate_quantile(said_BHQ, quantiles, high)
    report.add(job, name, "crps", metrics.crps(actual_BH, said_BHQ, quantiles))
    report.add(job, name, f"coverage of {LEVEL:g} %", metrics.coverage(actual_BH, low_BH, high_BH))


def _audit_decisions(report: Report, ledger: Ledger, job: str) -> None:
    counts: dict[str, int] = {}
    for one in ledger.decisions.of_model(job, limit=10_000):
        who = "a person" if one.by.startswith("person") else one.by
        what = f"{one.action} by {who}"
        counts[what] = counts.get(what, 0) + 1
    for what, count in sorted(counts.items()):
        report.add(job, OURS, f"decisions: {what}", count)
