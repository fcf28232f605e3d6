"""create_app: the service as an ASGI application. Nothing happens at import."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import PackageNotFoundError, version

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline

from forecasting.registry import Registry, open_registry
from service.error_handlers import install_error_handlers
from service.logs import RequestLog
from service.middleware import RequestMiddleware
from service.openapi import build_openapi
from service.protocols import mlflow_scoring, open_inference, timegpt
from service.routes import accuracy, forecasts, health, jobs, models, observations, series
from service.runtime import Runtime
from service.settings import ServiceSettings

DESCRIPTION = """Forecasts with honest intervals for stock and sensor series.

Errors are `application/problem+json` (RFC 9457), in one shape everywhere.
"""

NO_TELEMETRY = {"tracing": False, "metrics": False, "logs": False, "auto_configure": False}
"""FastAPI's own would send what it refuses, values and all, to any OpenTelemetry provider of the process."""


def create_app(settings: ServiceSettings | None = None, registry: Registry | None = None) -> FastAPI:
    """Build the service.

    Args:
        settings: read from the environment when not given.
        registry: opened from `settings.registry_uri`, off the event loop, when not given.

    Raises:
        ValueError: the settings cannot be honoured on this machine.
    """
    settings = settings or ServiceSettings()
    runtime = Runtime(settings, lambda: registry or open_registry(settings.registry_uri), _version())

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        runtime.start()
        try:
            yield
        finally:
            runtime.stop()

    app: FastAPI = FastAPIOffline(
        title="Hindcast",
        version=_version(),
        description=DESCRIPTION,
        redoc_url=None,
        lifespan=lifespan,
        telemetry=NO_TELEMETRY,
    )
    app.state.runtime = runtime
    app.openapi = lambda: build_openapi(app, runtime.slots)  # type: ignore[method-assign]  # FastAPI's own way
    app.add_middleware(
        RequestMiddleware,
        telemetry=runtime.telemetry,
        tracing=runtime.tracing,
        request_log=RequestLog(settings.log_requests, settings.slow_seconds),
    )
    install_error_handlers(app)
    routes = (forecasts, observations, models, series, accuracy, jobs, health)
    protocols = (timegpt, open_inference, mlflow_scoring)
    for router in (part.router for part in (*routes, *protocols)):
        app.include_router(router)
    return app


def _version() -> str:
    try:
        return version("hindcast")
    except PackageNotFoundError:
        return "0"
