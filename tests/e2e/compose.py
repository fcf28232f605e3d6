"""docker-compose.yml as Compose reads it."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

COMPOSE = Path(__file__).parents[2] / "docker-compose.yml"
_VARIABLE = re.compile(r"\$\{(\w+)(?::([-?])([^}]*))?\}")


def load_services(variables: Mapping[str, str]) -> dict[str, Any]:
    """Return every service of docker-compose.yml, with the variables filled in."""
    services: dict[str, Any] = interpolate(yaml.safe_load(COMPOSE.read_text()), variables)["services"]
    return services


def interpolate(value: Any, variables: Mapping[str, str]) -> Any:
    """Fill in ${NAME}, ${NAME:-default} and ${NAME:?message} as Compose does."""
    if isinstance(value, dict):
        return {key: interpolate(item, variables) for key, item in value.items()}
    if isinstance(value, list):
        return [interpolate(item, variables) for item in value]
    return _VARIABLE.sub(lambda found: _fill(found, variables), value) if isinstance(value, str) else value


def _fill(found: "re.Match[str]", variables: Mapping[str, str]) -> str:
    name, kind, text = found.groups()
    if variables.get(name):
        return variables[name]
    if kind == "?":
        raise KeyError(f"{name}: {text}")
    return str(text or "")
