"""The Open Inference Protocol, version 2, as `tritonclient.http` and KServe's clients speak it.

B series, L values of each, H horizon, Q quantiles.
"""

import gzip
import zlib
from importlib.metadata import version as version_of
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Request, Response
from numpy.typing import NDArray
from pydantic import Field, TypeAdapter, ValidationError
from starlette.responses import JSONResponse

from forecasting.forecaster import mean_weights
from service.answering import Issued, issue
from service.histories import Prepared, prepare
from service.limits import JSON, read_body
from service.model_slot import LoadedModel
from service.problems import UNKNOWN_MODEL, FieldError, ProblemError, refuse
from service.protocols.asking import any_start, beside, needs_time, refuse_field
from service.protocols.errors import TranslatedRoute
from service.protocols.schemas import (
    InferenceAnswer,
    InferenceError,
    InferenceRequest,
    Live,
    ModelMetadata,
    Ready,
    RepositoryModel,
    ServerMetadata,
    TensorMetadata,
)
from service.protocols.tensors import BYTES, SentTensors, choose_outputs, split_body, write_answer
from service.runtime import Runtime, RuntimeOf
from service.schemas import ForecastRequest, SeriesHistory, Timestamp, UniqueId
from service.settings import ServiceSettings

JSON_LENGTH = "inference-header-content-length"
BINARY = "application/octet-stream"
TAKEN = ("", JSON, BINARY)
"""The client says nothing of what it sends."""

SMALLEST_COMPRESSED = 1024
EXTENSIONS = ["binary_tensor_data", "model_repository"]

_LABEL: TypeAdapter[str] = TypeAdapter(Annotated[str, Field(max_length=256)])
TEXTS_SENT: dict[str, tuple[str, TypeAdapter[str]]] = {
    "unique_id": ("name", TypeAdapter(UniqueId)),
    "start": ("timestamp", TypeAdapter(Timestamp)),
}
"""What texts of an input must be."""

FloatArray = NDArray[np.float64]


class InferenceRoute(TranslatedRoute):
    """A route whose problems are told as this protocol tells errors."""

    @staticmethod
    def tell(status: int, detail: str, headers: dict[str, str]) -> Response:
        """Return an error as Triton's clients read it."""
        return JSONResponse({"error": detail}, status, headers)


router = APIRouter(prefix="/v2", tags=["Open Inference Protocol"], route_class=InferenceRoute)


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": InferenceError, "description": _MEANING[status]} for status in statuses}


_MEANING = {
    400: "The request cannot be answered as it is",
    404: "No such model, or version",
    408: "The body did not arrive in time",
    413: "The body is too large",
    415: "The body is of a kind that is not taken",
    503: "The model is not loaded, or too many requests at one time",
}
UNKNOWN = _errors(404, 503)


@router.get("", summary="Open Inference: the server")
async def server() -> ServerMetadata:
    """Name the server and what it can do besides the protocol's core."""
    return ServerMetadata(name="hindcast", version=version_of("hindcast"), extensions=EXTENSIONS)


@router.get("/health/live", summary="Open Inference: is the server alive?")
async def live() -> Live:
    """Answer as long as the process runs."""
    return Live(live=True)


@router.get("/health/ready", summary="Open Inference: are its models ready?", responses={400: {"model": Ready}})
async def ready(runtime: RuntimeOf, response: Response) -> Ready:
    """Answer 200 when every required model is loaded and the service is not shutting down."""
    is_ready = not runtime.draining and not runtime.slots.missing()
    response.status_code = 200 if is_ready else 400
    return Ready(ready=is_ready)


@router.post("/repository/index", summary="Open Inference: list the models")
async def index(runtime: RuntimeOf) -> list[RepositoryModel]:
    """List every model; what the body asks for is not looked at."""
    return [
        RepositoryModel(
            name=slot.name,
            version=slot.current.version if slot.current else "",
            state="READY" if slot.current else "UNAVAILABLE",
            reason=slot.failure.detail if slot.failure else "",
        )
        for slot in runtime.slots.all()
    ]


@router.get("/models/{model}", summary="Open Inference: what a model takes", responses=UNKNOWN)
@router.get(
    "/models/{model}/versions/{version}", summary="Open Inference: what a version takes", responses=UNKNOWN
)
async def metadata(runtime: RuntimeOf, model: str, version: str | None = None) -> ModelMetadata:
    """Describe the tensors of a model."""
    return _describe(_find(runtime, model, version))


@router.get("/models/{model}/ready", summary="Open Inference: is a model ready?", responses=UNKNOWN)
@router.get(
    "/models/{model}/versions/{version}/ready", summary="Open Inference: is a version ready?", responses=UNKNOWN
)
async def model_ready(runtime: RuntimeOf, model: str, version: str | None = None) -> Ready:
    """Answer 200 when the model answers, with this version if one is named."""
    return Ready(ready=True, name=_find(runtime, model, version).name)


AS_BYTES = {
    "schema": {"type": "string", "format": "binary", "description": "The JSON, and the tensors behind it."}
}

_INFER: dict[str, Any] = {
    "response_model": InferenceAnswer,
    "response_model_exclude_none": True,
    "responses": {200: {"content": {BINARY: AS_BYTES}}, **_errors(400, 404, 408, 413, 415, 503)},
    "openapi_extra": {
        "requestBody": {
            "required": True,
            "content": {
                JSON: {"schema": {"$ref": "#/components/schemas/InferenceRequest"}},
                BINARY: AS_BYTES,
            },
        }
    },
}


@router.post("/models/{model}/infer", summary="Open Inference: forecast", **_INFER)
@router.post("/models/{model}/versions/{version}/infer", summary="Open Inference: forecast by a version", **_INFER)
async def infer(request: Request, runtime: RuntimeOf, model: str, version: str | None = None) -> Response:
    """Forecast the whole horizon after each series' last value.

    Tensors may follow the JSON as bytes (`Inference-Header-Content-Length`), and come back so.
    """
    with runtime.admission():
        found = _find(runtime, model, version)
        _, body = await read_body(request, runtime.settings, TAKEN)
        declared = request.headers.get(JSON_LENGTH)
        asked, prepared = await beside(len(body), lambda: _read(body, declared, found, runtime.settings))
        chosen = choose_outputs(asked.outputs, list(OUTPUTS), binary=_wants_binary(asked))
        issued = await issue(prepared, runtime)
        accepted = request.headers.get("accept-encoding", "")
        return await beside(issued.quantiles_BHQ.nbytes, lambda: _write(asked, issued, chosen, accepted))


def _find(runtime: Runtime, name: str, version: str | None) -> LoadedModel:
    model = runtime.model(name)
    if version is not None and version != model.version:
        detail = f"model {name!r} answers with version {model.version}, and not with {version[:40]!r}"
        raise ProblemError(UNKNOWN_MODEL, detail)
    return model


def _wants_binary(asked: InferenceRequest) -> bool:
    return (asked.parameters or {}).get("binary_data_output") is True


def _read(
    body: bytes, declared: str | None, model: LoadedModel, settings: ServiceSettings
) -> tuple[InferenceRequest, Prepared]:
    asked, binary = split_body(body, declared)
    series = _read_series(SentTensors(asked.inputs, binary), model, settings)
    told = {"unique_id", "start"} <= {tensor.name for tensor in asked.inputs}
    record = told and (asked.parameters or {}).get("record") is not False
    request = ForecastRequest.model_construct(model=model.name, h=None, level=[], record=record, series=series)
    return asked, prepare(request, model, settings)


def _read_series(sent: SentTensors, model: LoadedModel, settings: ServiceSettings) -> list[SeriesHistory]:
    unknown = sorted(sent.names - {tensor.name for tensor in _inputs(model)})
    if unknown or "y" not in sent.names:
        known = ", ".join(tensor.name for tensor in _inputs(model))
        what = f"there is no input {unknown[0]!r}" if unknown else "the input 'y' is missing"
        raise refuse_field("inputs", f"{what}; model {model.name!r} takes {known}")
    y_BL = sent.numbers("y")
    n_series = len(y_BL)
    if not 0 < n_series <= settings.max_series:
        raise refuse_field("y", f"{n_series} series in one request; expected 1 to {settings.max_series}")
    names = _texts(sent, "unique_id", n_series) or [f"#{b}" for b in range(n_series)]
    if len(set(names)) < n_series:
        raise refuse_field("unique_id", "a series is there twice; every unique_id must differ")
    starts = _texts(sent, "start", n_series) or [_start_unless_needed(model)] * n_series
    columns = {kind: _columns(sent, kind, n_series) for kind in ("past", "future")}
    statics = {name: _texts(sent, f"static.{name}", n_series) for name in _told(sent, "static")}
    return [
        SeriesHistory.model_construct(
            unique_id=names[b],
            start=starts[b],
            ds=None,
            y=y_BL[b].tolist(),
            past={name: rows[b] for name, rows in columns["past"].items()} or None,
            future={name: rows[b] for name, rows in columns["future"].items()} or None,
            static={name: texts[b] for name, texts in statics.items()} or None,
        )
        for b in range(n_series)
    ]


def _start_unless_needed(model: LoadedModel) -> str:
    if needs_time(model):
        detail = (
            f"model {model.name!r} looks at the time of each step: send 'start', the timestamp of each first value"
        )
        raise refuse_field("start", detail)
    return any_start(model)


def _told(sent: SentTensors, kind: str) -> list[str]:
    return [name.removeprefix(f"{kind}.") for name in sorted(sent.names) if name.startswith(f"{kind}.")]


def _columns(sent: SentTensors, kind: str, n_series: int) -> dict[str, list[Any]]:
    columns = {}
    for name in _told(sent, kind):
        column = sent.numbers(f"{kind}.{name}")
        if len(column) != n_series:
            raise refuse_field(f"{kind}.{name}", f"{kind}.{name} is of {len(column)} series, and y of {n_series}")
        columns[name] = column.tolist()
    return columns


def _texts(sent: SentTensors, name: str, n_series: int) -> list[str]:
    """Return a text a series; nothing where the input was not sent."""
    if name not in sent.names:
        return []
    texts = sent.texts(name)
    if len(texts) != n_series:
        raise refuse_field(name, f"{name} is of {len(texts)} series, and y of {n_series}")
    what, shape = TEXTS_SENT.get(name, ("label", _LABEL))
    errors = [
        FieldError(path=f"{name}[{b}]", detail=f"{name}[{b}] {text[:64]!r} is no {what}")
        for b, text in enumerate(texts)
        if not _is_one(text, shape)
    ]
    if errors:
        raise refuse(errors)
    return texts


def _is_one(text: str, shape: TypeAdapter[str]) -> bool:
    try:
        shape.validate_python(text)
    except ValidationError:
        return False
    return True


NUMBERS = ("quantiles", "mean", "probabilities")
TEXTS = ("status", "reason", "cutoff")
OUTPUTS = (*NUMBERS, *TEXTS)


def _describe(model: LoadedModel) -> ModelMetadata:
    horizon, n_quantiles = model.spec.horizon, len(model.spec.quantiles)
    shapes = ([-1, horizon, n_quantiles], [-1, horizon], [n_quantiles])
    outputs = [
        *(
            TensorMetadata(name=name, datatype="FP64", shape=shape)
            for name, shape in zip(NUMBERS, shapes, strict=True)
        ),
        *(TensorMetadata(name=name, datatype=BYTES, shape=[-1]) for name in TEXTS),
    ]
    return ModelMetadata(
        name=model.name, versions=[model.version], platform="hindcast", inputs=_inputs(model), outputs=outputs
    )


def _inputs(model: LoadedModel) -> list[TensorMetadata]:
    known = model.spec.covariates
    numbers = ["y", *(f"past.{name}" for name in known.past_taken), *(f"future.{name}" for name in known.future)]
    statics = (f"static.{static.name}" for static in known.static if static.name != "unique_id")
    return [
        *(TensorMetadata(name=name, datatype="FP64", shape=[-1, -1]) for name in numbers),
        *(TensorMetadata(name=name, datatype=BYTES, shape=[-1]) for name in ("unique_id", "start", *statics)),
    ]


def _write(asked: InferenceRequest, issued: Issued, chosen: dict[str, bool], accepted: str) -> Response:
    model, quantiles = issued.prepared.model, issued.prepared.model.spec.quantiles
    dated = "start" in {tensor.name for tensor in asked.inputs}
    values: dict[str, FloatArray | list[str]] = {
        "quantiles": issued.quantiles_BHQ,
        "mean": issued.quantiles_BHQ @ mean_weights(quantiles),
        "probabilities": np.array(quantiles),
        "status": [one.status for one in issued.forecasts],
        "reason": [one.reason or "" for one in issued.forecasts],
        "cutoff": [one.cutoff if dated else "" for one in issued.forecasts],
    }
    head = {"model_name": model.name, "model_version": model.version}
    body, length = write_answer(head | ({} if asked.id is None else {"id": asked.id}), values, chosen)
    headers = {} if length is None else {JSON_LENGTH: str(length)}
    body, encoding = _compress(body, accepted)
    if encoding is not None:
        headers["content-encoding"] = encoding
    return Response(body, headers=headers, media_type=JSON if length is None else BINARY)


def _compress(body: bytes, accepted: str) -> tuple[bytes, str | None]:
    """Compress an answer that is worth it, for a client that asked."""
    wanted = {part.partition(";")[0].strip().lower() for part in accepted.split(",")}
    if len(body) < SMALLEST_COMPRESSED:
        return body, None
    if "gzip" in wanted:
        return gzip.compress(body, 1), "gzip"
    if "deflate" in wanted:
        return zlib.compress(body, 1), "deflate"
    return body, None
