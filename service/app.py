"""create_app: the service as an ASGI application. Nothing happens at import."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import PackageNotFoundError, version

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline

from forecasting.registry import Registry, open_registry
from service.error_handlers import install_error_handlers
from service.middleware import RequestMiddleware
from service.openapi import build_openapi
from service.routes import accuracy, forecasts, health, jobs, models, observations, series, streams
from service.runtime import Runtime
from service.settings import ServiceSettings

DESCRIPTION = """Forecasts with honest intervals for stock and sensor series.

Errors are `application/problem+json` (RFC 9457), in one shape everywhere.
"""


def create_app(settings: ServiceSettings | None = None, registry: Registry | None = None) -> FastAPI:
    """Build the service.

    Args:
        settings: read from the environment when not given.
        registry: opened from `settings.registry_uri`, off the event loop, when not given.

    Raises:
        ValueError: the settings cannot be honoured on this machine.
    """
    settings = settings or ServiceSettings()
    runtime = Runtime(settings, lambda: registry or open_registry(settings.registry_uri))

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        runtime.start()
        runtime.streams.start()
        try:
            yield
        finally:
            await runtime.streams.stop()
            runtime.stop()

    app: FastAPI = FastAPIOffline(
        title="Hindcast", version=_version(), description=DESCRIPTION, redoc_url=None, lifespan=lifespan
    )
    app.state.runtime = runtime
    app.openapi = lambda: build_openapi(app, runtime.slots)  # type: ignore[method-assign]  # FastAPI's own way
    app.add_middleware(RequestMiddleware, telemetry=runtime.telemetry)
    install_error_handlers(app)
    routes = (forecasts, observations, models, series, accuracy, jobs, streams, health)
    for router in (route.router for route in routes):
        app.include_router(router)
    return app


def _version() -> str:
    try:
        return version("hindcast")
    except PackageNotFoundError:
        return "0"
