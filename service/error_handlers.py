"""Whatever goes wrong, it leaves as a problem: never a traceback, never a path, never another shape."""

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from service.problems import (
    BAD_REQUEST,
    INTERNAL_ERROR,
    INVALID_REQUEST,
    METHOD_NOT_ALLOWED,
    NOT_FOUND,
    FieldError,
    Kind,
    ProblemError,
    describe,
    describe_at,
    respond,
)


def install_error_handlers(app: FastAPI) -> None:
    """Answer every kind of error with a problem."""
    app.add_exception_handler(ProblemError, _on_problem)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_exception)


def internal_error(request_id: str) -> Response:
    """Build the answer to an error nobody foresaw; the log has it under the same id."""
    return respond(describe(INTERNAL_ERROR, INTERNAL_ERROR.example, request_id))


def _on_problem(request: Request, error: Exception) -> Response:
    if not isinstance(error, ProblemError):
        raise error
    return problem_response(request, error)


def problem_response(request: Request, error: ProblemError) -> Response:
    """Build the answer to a request that was refused."""
    return respond(describe(error.kind, error.detail, _id_of(request), error.errors), error.headers)


def _on_validation_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, RequestValidationError):
        raise error
    found = [
        FieldError(path=".".join(map(str, e["loc"])), detail=f"{'.'.join(map(str, e['loc']))}: {e['msg']}")
        for e in error.errors()
    ]
    return respond(describe(INVALID_REQUEST, found[0].detail, _id_of(request), found))


def _on_http_exception(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    kind = _kind_of(error.status_code)
    details = {
        NOT_FOUND: NOT_FOUND.example,
        METHOD_NOT_ALLOWED: f"{request.method} is not answered here; {_allowed(error)} is",
    }
    return respond(describe_at(request.scope, kind, details.get(kind, kind.title)), error.headers)


def _kind_of(status: int) -> Kind:
    usual = {kind.status: kind for kind in (NOT_FOUND, METHOD_NOT_ALLOWED)}
    return usual.get(status, BAD_REQUEST if status < 500 else INTERNAL_ERROR)


def _allowed(error: HTTPException) -> str:
    return (error.headers or {}).get("Allow", "another method")


def _id_of(request: Request) -> str:
    return str(request.scope.get("hindcast.request_id", ""))
