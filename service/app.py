"""create_app: the service as an ASGI application. Nothing happens at import."""

import hashlib
import re
from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi_offline import FastAPIOffline
from starlette.middleware.cors import CORSMiddleware

from forecasting.registry import Registry, open_registry
from service.deadline import Deadline
from service.error_handlers import install_error_handlers
from service.key_ring import KeyRing
from service.logs import RequestLog
from service.middleware import RequestMiddleware, SecurityHeaders
from service.openapi import build_openapi
from service.protocols import mlflow_scoring, open_inference, timegpt
from service.routes import accuracy, forecasts, health, jobs, models, observations, series, streams
from service.runtime import Runtime
from service.security import AccessControl
from service.settings import ServiceSettings
from service.shortcut import ForecastShortcut

DESCRIPTION = """Forecasts with honest intervals for stock and sensor series.

Errors are `application/problem+json` (RFC 9457), in one shape everywhere.
"""

NO_TELEMETRY = {"tracing": False, "metrics": False, "logs": False, "auto_configure": False}
"""FastAPI's own would send what it refuses, values and all, to any OpenTelemetry provider of the process."""
DOCS, DOCS_FILES = "/docs", "/static-offline-docs"

CORS: dict[str, Any] = {
    "allow_methods": ["GET", "POST"],
    "allow_headers": [
        "authorization",
        "content-encoding",
        "content-type",
        "idempotency-key",
        "x-api-key",
        "x-request-id",
    ],
    "expose_headers": ["location", "retry-after", "x-request-id"],
}
"""What pages of the allowed origins may send and see; keys are sent on purpose, so credentials never are."""


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
    ring = KeyRing(
        settings.keys_path, settings.key_rate, always=settings.keys_file is not None or not settings.is_local
    )
    ring.open()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        runtime.start()
        ring.start()
        await runtime.siblings.start()
        runtime.streams.start()
        try:
            yield
        finally:
            await runtime.streams.stop()
            await runtime.siblings.stop()
            ring.stop()
            runtime.stop()

    app: FastAPI = FastAPIOffline(
        title="Hindcast",
        version=_version(),
        description=DESCRIPTION,
        telemetry=NO_TELEMETRY,
        docs_url=DOCS,
        static_url=DOCS_FILES,
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.runtime = runtime
    app.state.key_ring = ring
    app.openapi = lambda: build_openapi(app, runtime.slots)  # type: ignore[method-assign]  # FastAPI's own way
    # The last one added is the first to see a request.
    app.add_middleware(ForecastShortcut, runtime=runtime)
    app.add_middleware(AccessControl, ring=ring, origins=settings.cors_origins)
    if settings.cors_origins:
        app.add_middleware(CORSMiddleware, allow_origins=settings.cors_origins, **CORS)
    app.add_middleware(Deadline, seconds=settings.request_seconds)
    app.add_middleware(
        RequestMiddleware,
        telemetry=runtime.telemetry,
        tracing=runtime.tracing,
        request_log=RequestLog(settings.log_requests, settings.slow_seconds),
    )
    app.add_middleware(SecurityHeaders, policies={DOCS: docs_policy(app)}, files=DOCS_FILES)
    install_error_handlers(app)
    routes = (forecasts, observations, models, series, accuracy, jobs, streams, health)
    protocols = (timegpt, open_inference, mlflow_scoring)
    for router in (part.router for part in (*routes, *protocols)):
        app.include_router(router)
    return app


def docs_policy(app: FastAPI) -> str:
    """Return the content security policy of /docs: its own files, and the one script that is in the page."""
    page = get_swagger_ui_html(
        openapi_url=str(app.openapi_url),
        title=app.title,
        oauth2_redirect_url=app.swagger_ui_oauth2_redirect_url,
        swagger_ui_parameters=app.swagger_ui_parameters,
    )
    scripts = re.findall(rb"<script>(.*?)</script>", bytes(page.body), re.DOTALL)
    digests = [b64encode(hashlib.sha256(script).digest()).decode() for script in scripts]
    allowed = " ".join(["'self'", *(f"'sha256-{digest}'" for digest in digests)])
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _version() -> str:
    try:
        return version("hindcast")
    except PackageNotFoundError:
        return "0"
