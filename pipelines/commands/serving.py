"""What the commands do that belong to the service: serve, keys."""

import os
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec

from forecasting.errors import InputError
from pipelines.settings import PipelineSettings


def serve(settings: PipelineSettings, host: str | None, port: int | None) -> None:
    """Become the service."""
    # The registry is passed on because its default follows the tracking store, which the service knows not.
    flags = {"HINDCAST_HOST": host, "HINDCAST_PORT": port, "HINDCAST_REGISTRY_URI": settings.registry}
    _become("service", [], {name: str(value) for name, value in flags.items() if value is not None})


def manage_keys(arguments: Sequence[str]) -> None:
    """Become the service's own command for its keys."""
    _become("service.keys", arguments, {})


def _become(module: str, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
    """Run a module of the service instead of this process: no pipeline imports it, and it needs no training.

    Raises:
        InputError: the service is not installed here.
    """
    if find_spec("service") is None:
        raise InputError("the service is not installed here; run this where it is")
    sys.stdout.flush()
    os.execve(sys.executable, [sys.executable, "-m", module, *arguments], {**os.environ, **environment})  # noqa: S606
