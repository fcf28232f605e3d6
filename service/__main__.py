"""`python -m service`: one process or several, answering until SIGTERM or Ctrl-C.

Every flag is also an environment variable: `--registry-uri` is HINDCAST_REGISTRY_URI.
"""

import asyncio
import logging
import signal
import socket
import sys
from collections.abc import Sequence
from functools import partial
from types import FrameType

import uvicorn
from fastapi import FastAPI
from pydantic import ValidationError

from service.app import create_app
from service.connections import BoundedProtocol, allow_files, bound_by
from service.logs import configure_logging
from service.redaction import redact_logs
from service.runtime import Runtime
from service.settings import ServiceSettings
from service.workers import BAD_SETTINGS, bind, is_worker, leave_with_supervisor, supervise

log = logging.getLogger("hindcast.service")


SWITCH_SECONDS = 0.0005
"""How long a thread keeps the interpreter from others that want it. Python's 5 ms are what the event loop would
wait for the recorder, after each of the many calls of a forward pass that let go of it."""


class GracefulServer(uvicorn.Server):
    """A server that says it is leaving before it leaves: readiness first, then the socket, then the end.

    uvicorn closes its socket the moment SIGTERM arrives, so that whoever routes requests here learns of it
    from failed connections; and it ends by raising the signal again, which a supervisor takes for a crash.
    """

    def __init__(self, config: uvicorn.Config, runtime: Runtime) -> None:
        super().__init__(config)
        self._runtime = runtime
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Remember the loop, in which the drain is timed."""
        self._loop = asyncio.get_running_loop()
        if is_worker():
            leave_with_supervisor(partial(self.handle_exit, signal.SIGTERM, None))
        await super().startup(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002  (uvicorn's signature)
        """Drain on SIGTERM; stop at once on Ctrl-C or on a second signal."""
        patience = 0.0 if self._runtime.draining or sig == signal.SIGINT else self._settings.drain_seconds
        self.force_exit = self.should_exit
        self._runtime.draining = True
        if self._loop is None or patience == 0:
            self.should_exit = True
        else:
            log.info("draining: not ready any more, answering for another %g s", patience)
            self._loop.call_soon_threadsafe(self._loop.call_later, patience, self._close)

    @property
    def _settings(self) -> ServiceSettings:
        return self._runtime.settings

    def _close(self) -> None:
        self.should_exit = True


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until told to stop, and return the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        settings = read_settings(arguments)
        if settings.workers > 1 and not is_worker():
            configure_logging(settings.log_level, settings.log_format)
            return supervise(settings, arguments)
        app = create_app(settings)
    except ValidationError as error:
        return _refuse([f"{_name_of(e['loc'])}{e['msg'].removeprefix('Value error, ')}" for e in error.errors()])
    except (ValueError, OSError) as error:
        return _refuse([str(error)])
    configure_logging(settings.log_level, settings.log_format)
    redact_logs()
    sys.setswitchinterval(SWITCH_SECONDS)
    allow_files(settings.max_connections)
    sockets = [bind(settings.host, settings.port)] if is_worker() else None
    build_server(app, settings).run(sockets)
    return 0


def build_server(app: FastAPI, settings: ServiceSettings) -> GracefulServer:
    """Build what serves, and show its connections among the metrics."""
    runtime: Runtime = app.state.runtime
    protocol = bound_by(settings)
    server = GracefulServer(build_config(app, settings, protocol), runtime)
    runtime.telemetry.watch_connections(lambda: len(server.server_state.connections), lambda: protocol.turned_away)
    return server


def build_config(app: FastAPI, settings: ServiceSettings, protocol: type[BoundedProtocol]) -> uvicorn.Config:
    """Say how uvicorn serves: what a client may cost, and that no header says who it is."""
    return uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        lifespan="on",
        proxy_headers=False,
        server_header=False,
        http=protocol,
        timeout_keep_alive=settings.keep_alive_seconds,
        ws_max_size=settings.stream_message_bytes,
        timeout_graceful_shutdown=settings.shutdown_seconds,
    )


def read_settings(arguments: Sequence[str]) -> ServiceSettings:
    """Read the settings from flags, else from the environment.

    Raises:
        ValidationError: a value is not possible, or not safe.
    """
    return ServiceSettings(
        _cli_parse_args=list(arguments),
        _cli_prog_name="python -m service",
        _cli_kebab_case=True,
        _cli_implicit_flags=True,
        _cli_hide_none_type=True,
    )


def _name_of(location: tuple[int | str, ...]) -> str:
    return "".join(f"HINDCAST_{str(part).upper()}: " for part in location[:1])


def _refuse(reasons: Sequence[str]) -> int:
    for reason in reasons:
        print(f"hindcast cannot start: {reason}", file=sys.stderr)  # noqa: T201  (before there is a log)
    return BAD_SETTINGS


if __name__ == "__main__":
    sys.exit(main())
