"""The networks, one family a file, and the one place where a spec becomes a network."""

from forecasting.networks.base import QuantileNetwork
from forecasting.networks.ensemble import Ensemble
from forecasting.networks.linear import Drift, Naive, Ridge, SeasonalNaive
from forecasting.networks.mlp import MLP
from forecasting.networks.recurrent import Recurrent
from forecasting.networks.segment import Segment
from forecasting.networks.volatility import Volatility
from forecasting.spec import (
    DriftSpec,
    EnsembleSpec,
    ForecasterSpec,
    MLPSpec,
    NaiveSpec,
    RecurrentSpec,
    RidgeSpec,
    SeasonalNaiveSpec,
    SegmentSpec,
    VolatilitySpec,
)

__all__ = ["QuantileNetwork", "build_network"]


def build_network(spec: ForecasterSpec) -> QuantileNetwork:
    """Build the network a spec describes, with fresh weights drawn from torch's current generator."""
    match spec.network:
        case NaiveSpec() as network:
            return Naive(spec, network)
        case SeasonalNaiveSpec() as network:
            return SeasonalNaive(spec, network)
        case DriftSpec() as network:
            return Drift(spec, network)
        case RidgeSpec() as network:
            return Ridge(spec, network)
        case MLPSpec() as network:
            return MLP(spec, network)
        case RecurrentSpec() as network:
            return Recurrent(spec, network)
        case SegmentSpec() as network:
            return Segment(spec, network)
        case VolatilitySpec() as network:
            return Volatility(spec, network)
        case EnsembleSpec() as network:
            return Ensemble(spec, network, build_network)
