"""The short way to POST /v1/forecast: ahead of routing, dependencies, exit stacks, which cost more than the work.

The route itself stays, for its documentation and for whatever does not come in this plain form; both call the same
function. It stands inside everything that looks at a request first (identity, limits, metrics).
"""

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from service.error_handlers import problem_response
from service.openapi import FORECAST_PATH
from service.problems import ProblemError
from service.routes.forecasts import answer_forecast
from service.runtime import Runtime


class ForecastShortcut:
    """The innermost layer: answers forecasts, and passes everything else on."""

    def __init__(self, app: ASGIApp, runtime: Runtime) -> None:
        self.app = app
        self._runtime = runtime

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not _is_forecast(scope):
            await self.app(scope, receive, send)
            return
        scope["route"] = _ROUTE
        request = Request(scope, receive, send)
        try:
            response: Response = await answer_forecast(request, self._runtime)
        except ProblemError as error:
            response = problem_response(request, error)
        await response(scope, receive, send)


class _Route:
    """What those who look at a request afterwards ask of its route."""

    path = path_format = FORECAST_PATH


_ROUTE = _Route()


def _is_forecast(scope: Scope) -> bool:
    return (
        scope["type"] == "http"
        and scope["path"] == FORECAST_PATH
        and scope["method"] == "POST"
        and not scope.get("root_path")
    )
