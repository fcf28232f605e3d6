"""The table of addresses holds every route there is, and is read as the router reads it."""

from collections.abc import Iterator

import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute, APIWebSocketRoute
from starlette.routing import BaseRoute, Mount, Route, WebSocketRoute, compile_path

from service.access import ACCESS, WEBSOCKET, methods_at
from service.key_store import SCOPES


def addresses(routes: list[BaseRoute], prefix: str = "") -> Iterator[tuple[str, set[str]]]:
    """Yield the template and the methods of every route, those of mounted files and included routers too."""
    for route in routes:
        if isinstance(route, Mount):
            yield f"{prefix}{route.path}/{{path:path}}", {"GET"}
        elif isinstance(route, WebSocketRoute | APIWebSocketRoute):
            yield prefix + route.path, {WEBSOCKET}
        elif isinstance(route, Route | APIRoute):
            yield prefix + route.path, set(route.methods or ()) - {"HEAD"}
        elif hasattr(route, "original_router"):
            yield from addresses(route.original_router.routes, prefix + route.include_context.prefix)
        else:
            pytest.fail(f"what is {route!r}?")


def test_no_route_can_be_added_without_saying_what_a_key_needs_for_it(shared_app: FastAPI) -> None:
    found = list(addresses(shared_app.routes))
    assert len(found) > 15
    missing = {(path, method) for path, methods in found for method in methods - ACCESS.get(path, {}).keys()}
    assert not missing, "add them to service/access.py"


def test_the_table_opens_nothing_that_is_not_there(shared_app: FastAPI) -> None:
    found = {(path, method) for path, methods in addresses(shared_app.routes) for method in methods}
    assert {(path, method) for path, methods in ACCESS.items() for method in methods} <= found


def test_nothing_but_health_is_open() -> None:
    opened = {path for path, methods in ACCESS.items() if "open" in methods.values()}
    assert opened == {"/health/live", "/health/ready", "/health", "/ping", "/v2/health/live", "/v2/health/ready"}


def test_every_scope_is_needed_somewhere_and_no_other() -> None:
    needed = {scope for methods in ACCESS.values() for scope in methods.values()}
    assert needed == {"open", "any", *SCOPES}


def test_what_changes_something_needs_more_than_read() -> None:
    for path, methods in ACCESS.items():
        for method, needed in methods.items():
            assert method in ("GET", "POST", WEBSOCKET)
            if method != "GET":
                assert needed in ("forecast", "write", "admin"), path


@pytest.mark.parametrize("template", ACCESS)
def test_an_address_is_found_by_what_the_router_would_match(template: str) -> None:
    _, path_format, converters = compile_path(template)
    values = {name: "a/b" if type(c).__name__ == "PathConvertor" else "a%b\n" for name, c in converters.items()}
    assert methods_at(path_format.format(**values)) is ACCESS[template]


@pytest.mark.parametrize(
    "path",
    [
        "",
        "//",
        "/v1",
        "/v1/forecast/",
        "/v1/models/",
        "/V1/forecast",
        "/v1/jobs/a/b",
        "/metrics\n",
        "/health/live/x",
    ],
)
def test_an_address_that_is_not_in_the_table_is_nowhere(path: str) -> None:
    assert methods_at(path) is None
