"""GET /v1/models: what this service can forecast with, and how each model follows the registry."""

from fastapi import APIRouter

from forecasting.spec import CovariatesSpec, EnsembleSpec, NetworkSpec, Trained
from service.model_slot import ModelSlot
from service.openapi import problem_responses
from service.problems import UNKNOWN_MODEL
from service.runtime import Runtime, RuntimeOf
from service.schemas import ModelCovariates, ModelInfo, ModelList

router = APIRouter(prefix="/v1/models", tags=["models"])


@router.get("", summary="List the models")
async def list_models(runtime: RuntimeOf) -> ModelList:
    """List every model, those included that cannot answer yet."""
    return ModelList(models=[_describe(slot, runtime) for slot in runtime.slots.all()])


@router.get("/{model}", summary="Describe a model", responses=problem_responses(UNKNOWN_MODEL))
async def get_model(model: str, runtime: RuntimeOf) -> ModelInfo:
    """Describe one model: its version, what it needs, and why it could not follow the registry, if so."""
    return _describe(runtime.slot(model), runtime)


def _describe(slot: ModelSlot, runtime: Runtime) -> ModelInfo:
    current = slot.current
    spec = None if current is None else current.spec
    return ModelInfo(
        model=slot.name,
        status=slot.status,
        alias=runtime.settings.alias,
        version=current and current.version,
        source=slot.source,
        digest=current and current.digest,
        loaded_at=current and current.loaded_at,
        kind=spec and spec.network.kind,
        head=spec and _head_of(spec.network),
        freq=spec and spec.freq,
        season_length=spec and spec.season_length,
        input_size=spec and spec.input_size,
        horizon=spec and spec.horizon,
        level=spec and list(spec.level),
        max_level=spec and _widest(spec.quantiles),
        transform=spec and spec.transform,
        covariates=spec and _describe_covariates(spec.covariates),
        failure=slot.failure,
    )


def _head_of(network: NetworkSpec) -> str | None:
    if isinstance(network, EnsembleSpec):
        return network.member.head
    return network.head if isinstance(network, Trained) else None


def _describe_covariates(covariates: CovariatesSpec) -> ModelCovariates:
    return ModelCovariates(
        past=list(covariates.past),
        prices=list(covariates.price_columns),
        future=list(covariates.future),
        static={static.name: len(static.categories) for static in covariates.static},
        calendar=list(covariates.calendar),
        country=covariates.country,
    )


def _widest(quantiles: tuple[float, ...]) -> float:
    return max(0.0, round(200 * min(quantiles[-1] - 0.5, 0.5 - quantiles[0]), 9))
