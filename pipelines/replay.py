"""Replay: compute an issued forecast again from its record, and say whether it is the same, and to the last bit.

The service forecasts together what arrives together, and large requests in rounds: a matrix product of another
size may round otherwise, so a forecast may come out otherwise by as much as single precision leaves open.

H horizon, Q quantiles.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from forecasting.errors import InputError
from forecasting.fallback import forecast_naive
from forecasting.registry import Registry, load_version
from ledger.forecasts import IssuedForecast, restore_covariates
from ledger.ledger import Ledger
from ledger.schema import FALLBACK

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Replayed:
    """What came of computing one recorded forecast again."""

    issued: IssuedForecast
    identical: bool
    difference: float
    """The largest between a value issued and the value computed again; infinite where one of them is none."""

    @property
    def same(self) -> bool:
        """Return whether the two differ by rounding at most."""
        known = np.concatenate([self.issued.inputs.y_L, self.issued.values_HQ.ravel()])
        known = known[np.isfinite(known)]
        return self.identical or self.difference <= ROUNDING * float(np.ptp(known))


ROUNDING = 1e-5
"""Of the range that a series and its forecast cover: what single precision leaves open."""


def replay(
    ledger: Ledger, registry: Registry, forecast_id: str, *, threads: int = 1, device: str = "cpu"
) -> list[Replayed]:
    """Compute the forecasts of an answer again, as they were computed: all of a batch at once.

    Args:
        ledger: holds the record.
        registry: holds the version.
        forecast_id: names the answer.
        threads: CPU threads of a forward pass; that of the service, or sums may round otherwise.
        device: where the network runs; that of the service, for the same reason.

    Raises:
        InputError: the ledger has no such forecast.
        RegistryError: the version is not there any more, or cannot be read.
    """
    wanted = ledger.forecasts.find(forecast_id)
    if not wanted:
        raise InputError(f"the ledger has no forecast {forecast_id!r}")
    replayed = [
        one
        for batch_id in dict.fromkeys(one.batch_id for one in wanted)
        for one in _replay_batch(ledger.forecasts.batch(batch_id), registry, threads, device)
    ]
    return [one for one in replayed if one.issued.forecast_id == forecast_id]


def _replay_batch(batch: list[IssuedForecast], registry: Registry, threads: int, device: str) -> list[Replayed]:
    by_network = [one for one in batch if one.status != FALLBACK]
    computed = iter(_replay_network(by_network, registry, threads, device) if by_network else ())
    return [_replay_naive(one) if one.status == FALLBACK else next(computed) for one in batch]


def _replay_naive(one: IssuedForecast) -> Replayed:
    """Compute again what the seasonal naive answered in the network's place."""
    said = forecast_naive(one.inputs.y_L, one.season_length, one.horizon, one.quantiles, one.transform)
    return _compare(one, said.values_HQ)


def _replay_network(batch: list[IssuedForecast], registry: Registry, threads: int, device: str) -> list[Replayed]:
    version = registry.version(batch[0].model, batch[0].version)
    forecaster = load_version(registry, version, device)
    y_BL = np.stack([one.inputs.y_L for one in batch])
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        computed_BHQ = forecaster.predict(y_BL, restore_covariates(batch))
    finally:
        torch.set_num_threads(before)
    return [_compare(one, computed_HQ) for one, computed_HQ in zip(batch, computed_BHQ, strict=True)]


def _compare(one: IssuedForecast, computed_HQ: FloatArray) -> Replayed:
    # Near its end a calendar may have fewer steps than the horizon: those it has were recorded.
    again_HQ = computed_HQ[: one.horizon]
    if one.adjustment_HQ is not None:
        again_HQ = again_HQ + one.adjustment_HQ
    issued_HQ = one.values_HQ
    identical = issued_HQ.shape == again_HQ.shape and issued_HQ.tobytes() == again_HQ.astype("<f8").tobytes()
    if identical:
        return Replayed(one, True, 0.0)
    both_none_HQ = np.isnan(issued_HQ) & np.isnan(again_HQ)
    differences_HQ = np.where(both_none_HQ, 0.0, np.abs(issued_HQ - again_HQ))
    return Replayed(one, False, float(np.nan_to_num(differences_HQ, nan=np.inf).max()))
