"""Every error that leaves the service, in one shape: RFC 9457 `application/problem+json`.

A problem's kind fixes its `type`, title and status; docs/api.md lists them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pydantic import BaseModel, Field
from starlette.responses import Response
from starlette.types import Scope

from forecasting.errors import InputError
from service.journey import note_problem

MEDIA_TYPE = "application/problem+json"
MAX_ERRORS = 100
"""Most entries of `errors` in one answer; the rest are counted in `detail`."""


@dataclass(frozen=True)
class Kind:
    """A kind of problem, with the detail it has in the documentation."""

    slug: str
    status: int
    title: str
    example: str

    @property
    def type(self) -> str:
        return f"urn:hindcast:problem:{self.slug}"


MALFORMED_JSON = Kind(
    "malformed-json",
    400,
    "The body is not valid JSON",
    "the body is not valid JSON: trailing comma at line 1 column 48",
)
BAD_REQUEST = Kind("bad-request", 400, "The request cannot be understood", "The request cannot be understood")
BAD_ENCODING = Kind(
    "bad-encoding",
    400,
    "The body cannot be unpacked",
    "the body is not what content-encoding: gzip says: it ends too early",
)
UNAUTHENTICATED = Kind(
    "unauthenticated",
    401,
    "A good API key is needed",
    "send an API key as Authorization: Bearer KEY, or as X-API-Key: KEY",
)
MISSING_SCOPE = Kind(
    "missing-scope",
    403,
    "The key may not do this",
    "this needs the scope 'forecast'; key 4f0c2a9d81be ('dashboard') has read",
)
FOREIGN_ORIGIN = Kind(
    "foreign-origin",
    403,
    "Pages of that origin may not ask",
    "a page of another origin may not ask this service; HINDCAST_CORS_ORIGINS says which may",
)
NOT_FOUND = Kind(
    "not-found",
    404,
    "There is nothing at this address",
    "there is nothing at this address; /docs lists what there is",
)
UNKNOWN_MODEL = Kind("unknown-model", 404, "No such model", "no model is named 'pumps'; known: co2, pump")
UNKNOWN_SERIES = Kind(
    "unknown-series",
    404,
    "No such series",
    "the ledger has no observation of series 'pump-9' in dataset 'pumps'",
)
UNKNOWN_JOB = Kind("unknown-job", 404, "No such job", "no worker runs a job named 'pumps'; known: co2, sp500")
UNKNOWN_RUN = Kind("unknown-run", 404, "No such run", "job 'co2' has no run 'tuesday'")
KEY_TAKEN = Kind(
    "key-taken",
    409,
    "The key names another run",
    "the key 'tuesday' is that of a run of job 'co2', not of 'sp500'",
)
METHOD_NOT_ALLOWED = Kind(
    "method-not-allowed", 405, "The address does not answer this method", "GET is not answered here; POST is"
)
BODY_TIMEOUT = Kind(
    "body-timeout", 408, "The body did not arrive in time", "the body did not arrive within 30 seconds"
)
BODY_TOO_LARGE = Kind(
    "body-too-large",
    413,
    "The body is too large",
    "the body is larger than 8388608 bytes, the most this service takes",
)
UNSUPPORTED_MEDIA_TYPE = Kind(
    "unsupported-media-type", 415, "The body is not JSON", "send content-type: application/json, in UTF-8"
)
INVALID_REQUEST = Kind(
    "invalid-request",
    422,
    "The request cannot be answered as it is",
    "series 'pump-7' has 20 points; this model needs 48 (input_size)",
)
RATE_LIMITED = Kind(
    "rate-limited",
    429,
    "The key is used too much",
    "key 4f0c2a9d81be ('dashboard') may use 1000 units a second; try again in 2 seconds",
)
HEAD_TOO_LARGE = Kind(
    "head-too-large",
    431,
    "The address or the headers are too large",
    "there are 150 headers; at most 100",
)
INTERNAL_ERROR = Kind(
    "internal-error",
    500,
    "The service failed",
    "the service failed to answer; its log has the reason under this instance",
)
MODEL_NOT_LOADED = Kind(
    "model-not-loaded", 503, "The model is not loaded", "model 'pump' cannot answer: it is being loaded"
)
NOT_READY = Kind("not-ready", 503, "The service is not ready", "model 'pump' is not loaded: not looked at yet")
OVERLOADED = Kind(
    "overloaded",
    503,
    "Too many requests at one time",
    "256 requests are being answered already; try again in a second",
)
DEADLINE_EXCEEDED = Kind(
    "deadline-exceeded",
    503,
    "There was no answer in time",
    "there was no answer within 60 seconds",
)
LEDGER_UNAVAILABLE = Kind(
    "ledger-unavailable",
    503,
    "The ledger does not answer",
    "the ledger's postgresql database does not answer: connection refused",
)
STREAMS_UNAVAILABLE = Kind(
    "streams-unavailable",
    503,
    "This process keeps no streams",
    "another process keeps the streams of this home: with several workers, one of them answers for streams",
)
QUEUE_FULL = Kind(
    "queue-full",
    503,
    "Too many retrainings wait",
    "100 retrainings wait already, which is the most there may be; ask again later",
)

KINDS = (
    MALFORMED_JSON,
    BAD_REQUEST,
    BAD_ENCODING,
    UNAUTHENTICATED,
    MISSING_SCOPE,
    FOREIGN_ORIGIN,
    NOT_FOUND,
    UNKNOWN_MODEL,
    UNKNOWN_SERIES,
    UNKNOWN_JOB,
    UNKNOWN_RUN,
    KEY_TAKEN,
    METHOD_NOT_ALLOWED,
    BODY_TIMEOUT,
    BODY_TOO_LARGE,
    UNSUPPORTED_MEDIA_TYPE,
    INVALID_REQUEST,
    RATE_LIMITED,
    HEAD_TOO_LARGE,
    INTERNAL_ERROR,
    MODEL_NOT_LOADED,
    NOT_READY,
    OVERLOADED,
    DEADLINE_EXCEEDED,
    LEDGER_UNAVAILABLE,
    STREAMS_UNAVAILABLE,
    QUEUE_FULL,
)


class FieldError(BaseModel):
    """One thing that is wrong, and where."""

    path: str = Field(description="Where it is, as in series[3].y[17]; empty for the whole body.")
    unique_id: str | None = Field(None, description="The series it concerns.")
    detail: str = Field(description="What was expected and what came.")


class Problem(BaseModel):
    """An error, as RFC 9457 has it."""

    type: str = Field(description="URN of the kind of problem: stable, for programs.")
    title: str = Field(description="The kind of problem, for people.")
    status: int = Field(description="The HTTP status.")
    detail: str = Field(description="What went wrong this time.")
    instance: str = Field(description="The request id, as in the X-Request-Id header and the service's log.")
    errors: list[FieldError] = Field(default=[], description="Every problem found, at most 100.")


class InferenceProblem(Problem):
    """An error below /v2/, where clients of the Open Inference Protocol look for `error`."""

    error: str = Field(description="The detail once more.")


@dataclass(eq=False)
class ProblemError(Exception):
    """Raised anywhere in the service to answer with a problem."""

    kind: Kind
    detail: str
    errors: Sequence[FieldError] = ()
    headers: Mapping[str, str] = field(default_factory=dict)


class RefusedSeriesError(InputError):
    """One series cannot be forecast; `path` says where inside it."""

    def __init__(self, path: str, detail: str) -> None:
        super().__init__(detail)
        self.path = path


def describe(kind: Kind, detail: str, request_id: str, errors: Sequence[FieldError] = ()) -> Problem:
    """Build the problem of a request."""
    return Problem(
        type=kind.type,
        title=kind.title,
        status=kind.status,
        detail=detail,
        instance=request_id,
        errors=list(errors[:MAX_ERRORS]),
    )


def describe_at(scope: Scope, kind: Kind, detail: str) -> Problem:
    """Build the problem of a request that reached no route: what its protocol's clients look for is in it."""
    problem = describe(kind, detail, str(scope.get("hindcast.request_id", "")))
    inference = scope["path"].startswith("/v2/")
    return InferenceProblem(**problem.model_dump(), error=detail) if inference else problem


def respond(problem: Problem, headers: Mapping[str, str] | None = None) -> Response:
    """Build the HTTP answer of a problem, and note it in the request's journey."""
    note_problem(problem.type.rpartition(":")[2])
    return Response(problem.model_dump_json(), problem.status, dict(headers or {}), media_type=MEDIA_TYPE)


def refuse(errors: Sequence[FieldError], kind: Kind = INVALID_REQUEST) -> ProblemError:
    """Build the error that refuses a request for all the reasons found; the first is its detail."""
    others = len(errors) - 1
    detail = errors[0].detail + (f" (and {others} more problem{'s' * (others > 1)})" if others else "")
    return ProblemError(kind, detail, errors)
