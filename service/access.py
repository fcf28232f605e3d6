"""Who may do what: the one table of all addresses, and what a key needs for each.

Where keys are asked for, an address that is not in this table is not answered, whatever routes there are.
"""

import re
from collections.abc import Mapping
from typing import Literal

from service.key_store import Scope

Needed = Scope | Literal["open", "any"]
"""A scope; or `any`: whatever key is good; or `open`: no key."""

WEBSOCKET = "WS"

ACCESS: Mapping[str, Mapping[str, Needed]] = {
    # How it is doing: open to whoever routes requests and restarts processes.
    "/health/live": {"GET": "open"},
    "/health/ready": {"GET": "open"},
    # What it says of itself.
    "/": {"GET": "read"},
    "/docs": {"GET": "read"},
    "/docs/oauth2-redirect": {"GET": "read"},
    "/static-offline-docs/{path:path}": {"GET": "read"},
    "/openapi.json": {"GET": "read"},
    "/metrics": {"GET": "read"},
    # Forecasts.
    "/v1/forecast": {"POST": "forecast"},
    "/v1/models": {"GET": "read"},
    "/v1/models/{model}": {"GET": "read"},
    "/v1/models/{model}/series": {"GET": "read"},
    "/v1/models/{model}/series/{unique_id:path}/forecast": {"GET": "forecast"},
    "/v1/accuracy": {"GET": "read"},
    # Streams: an observation changes what the stream knows, and its answer is a forecast.
    "/v1/stream/{model}": {WEBSOCKET: "forecast"},
    "/v1/observe": {"POST": "forecast"},
    "/v1/streams": {"GET": "read"},
    # What is kept for good.
    "/v1/observations": {"POST": "write"},
    # Retrainings.
    "/v1/jobs": {"GET": "read"},
    "/v1/jobs/{job}": {"GET": "read"},
    "/v1/jobs/{job}/runs": {"GET": "read"},
    "/v1/jobs/{job}/runs/{key}": {"GET": "read"},
    "/v1/jobs/{job}/retrain": {"POST": "admin"},
    # MLflow's scoring server.
    "/ping": {"GET": "open"},
    "/health": {"GET": "open"},
    "/version": {"GET": "any"},
    "/invocations": {"POST": "forecast"},
    # The Open Inference Protocol.
    "/v2/health/live": {"GET": "open"},
    "/v2/health/ready": {"GET": "open"},
    "/v2": {"GET": "any"},
    "/v2/repository/index": {"POST": "forecast"},
    "/v2/models/{model}": {"GET": "read"},
    "/v2/models/{model}/ready": {"GET": "read"},
    "/v2/models/{model}/infer": {"POST": "forecast"},
    "/v2/models/{model}/versions/{version}": {"GET": "read"},
    "/v2/models/{model}/versions/{version}/ready": {"GET": "read"},
    "/v2/models/{model}/versions/{version}/infer": {"POST": "forecast"},
    # TimeGPT's API.
    "/validate_api_key": {"GET": "any"},
    "/model_params": {"GET": "read"},
    "/v2/forecast": {"POST": "forecast"},
    "/v2/cross_validation": {"POST": "forecast"},
    "/v2/anomaly_detection": {"POST": "forecast"},
}


def methods_at(path: str) -> Mapping[str, Needed] | None:
    """Return what each method needs at an address, or None where nothing is."""
    exact = _EXACT.get(path)
    if exact is not None:
        return exact
    found = _PATTERN.fullmatch(path)
    return None if found is None or found.lastgroup is None else _BY_GROUP[found.lastgroup]


def _to_pattern(template: str) -> str:
    """Return the regular expression of a template: as the router has it."""
    parts = re.split(r"(\{\w+(?::path)?\})", template)
    return "".join(
        (".*" if part.endswith(":path}") else "[^/]+") if part.startswith("{") else re.escape(part)
        for part in parts
    )


_EXACT = {path: methods for path, methods in ACCESS.items() if "{" not in path}
_TEMPLATES = [path for path in ACCESS if "{" in path]
_BY_GROUP = {f"t{i}": ACCESS[path] for i, path in enumerate(_TEMPLATES)}
_PATTERN = re.compile("|".join(f"(?P<t{i}>{_to_pattern(path)})" for i, path in enumerate(_TEMPLATES)), re.DOTALL)
