"""What the scores taught of each series' intervals, fetched beside the requests: none waits for the ledger."""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime

import numpy as np
from numpy.typing import NDArray

from forecasting import conformal
from forecasting.conformal import Adjustment
from ledger.ledger import Ledger
from service.model_slot import LoadedModel

FloatArray = NDArray[np.float64]

Version = tuple[str, str]
"""Model and version: what was learned of one network says nothing of another."""
LoadedModels = Callable[[], Sequence[LoadedModel]]


class AdjustmentBook:
    """The adjustments of the versions that answer, as the ledger had them at the last look."""

    def __init__(self, loaded: LoadedModels) -> None:
        self._loaded = loaded
        self._known: Mapping[Version, Mapping[str, Adjustment]] = {}
        self._changed_at: dict[Version, datetime | None] = {}

    def of(self, model: LoadedModel, unique_ids: Sequence[str]) -> list[Adjustment | None] | None:
        """Return the adjustment of each series; None where none has any."""
        known = self._known.get((model.name, model.version))
        if not known:
            return None
        found = [known.get(unique_id) for unique_id in unique_ids]
        return found if any(one is not None for one in found) else None

    def adjust(self, model: LoadedModel, unique_ids: Sequence[str], quantiles_BHQ: FloatArray) -> FloatArray:
        """Return quantiles with what was learned of each series."""
        known = self.of(model, unique_ids)
        if known is None:
            return quantiles_BHQ
        spec = model.spec
        return quantiles_BHQ + conformal.apply(quantiles_BHQ, spec.quantiles, known, spec.transform)

    def refresh(self, ledger: Ledger) -> None:
        """Fetch what changed; where the ledger does not answer, what is known stays in force.

        Raises:
            LedgerUnavailableError: the database does not answer.
        """
        known: dict[Version, Mapping[str, Adjustment]] = {}
        for model in self._loaded():
            if not model.adjusts:
                continue
            version = (model.name, model.version)
            changed_at = ledger.adjustments.changed_at(model.name)
            if version in self._known and self._changed_at.get(version) == changed_at:
                known[version] = self._known[version]
            else:
                known[version] = ledger.adjustments.read(*version)
            self._changed_at[version] = changed_at
        # Replaced as a whole: a request sees one state of it.
        self._known = known
