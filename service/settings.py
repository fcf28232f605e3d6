"""ServiceSettings: all the service can be told, from the environment (`HINDCAST_...`) or from flags."""

import ipaddress
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator
from pydantic_settings import NoDecode

from forecasting.registry import CHAMPION
from forecasting.spec import MODEL_NAME_PATTERN
from service.key_store import KeySettings, load_keys

LogFormat = Literal["json", "text"]
LoggedRequests = Literal["all", "notable"]

MEBIBYTE = 1024**2
LEDGER_OFF = "off"
ANY_ORIGIN = "*"


def _default_registry(data: dict[str, Any]) -> str:
    home: Path = data.get("home", Path(".hindcast"))
    return f"sqlite:///{home.absolute() / 'mlflow.db'}"


def _default_ledger(data: dict[str, Any]) -> str:
    home: Path = data.get("home", Path(".hindcast"))
    return f"sqlite:///{home.absolute() / 'ledger.db'}"


class ServiceSettings(KeySettings):
    """The settings of one service process; unsafe or impossible ones are refused before it listens."""

    registry_uri: str = Field(
        default_factory=_default_registry,
        description="Model registry: a directory (a path or file:///path) or an MLflow URI. "
        "Default: the SQLite file mlflow.db in home.",
    )
    ledger_url: str = Field(
        default_factory=_default_ledger,
        description="Ledger of observations and forecasts: sqlite:///path, postgresql://..., or off for none. "
        "Default: the SQLite file ledger.db in home.",
    )
    ledger_seconds: float = Field(
        10.0, gt=0, le=600, description="Most seconds a request waits for the ledger; then it is told so (503)."
    )
    record_forecasts: bool = Field(True, description="Keep every forecast that was answered in the ledger.")
    adjust_intervals: bool = Field(
        True, description="Widen and narrow intervals by what the scores in the ledger taught of each series."
    )
    record_memory_bytes: int = Field(
        64 * MEBIBYTE, ge=1024, description="Most bytes of forecasts in memory, on their way to those files."
    )
    unwritten_bytes: int = Field(
        1024 * MEBIBYTE,
        ge=0,
        description="Most bytes of forecasts in files below home, on their way to the ledger.",
    )
    models: Annotated[tuple[str, ...] | None, NoDecode] = Field(
        None, description="Models to serve, separated by commas. Default: every model with the alias."
    )
    default_model: str | None = Field(
        None,
        pattern=MODEL_NAME_PATTERN,
        description="Model for clients of other protocols that name none. Default: the only one that fits.",
    )
    alias: str = Field(
        CHAMPION, pattern=MODEL_NAME_PATTERN, description="Registry alias that says which version to serve."
    )
    poll_seconds: float = Field(5.0, ge=0.05, le=3600, description="Seconds between two looks at the registry.")
    poll_timeout_seconds: float = Field(
        120.0, gt=0, description="Seconds after which a look at the registry is reported as stuck."
    )
    last_good_seconds: float = Field(
        5.0,
        ge=0,
        le=3600,
        description="Seconds a starting service waits for the registry before it answers with the last good "
        "models from home.",
    )
    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 picks a free one.")
    key_rate: float = Field(
        1000.0,
        gt=0,
        le=1e9,
        description="Units a second each API key may use, ten seconds' worth at once; a request is one unit, and "
        "so is every 4 KiB of its body, unpacked. Keys may have rates of their own.",
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Origins whose pages may ask, separated by commas, as in https://plant.example; * is all of "
        "them. Default: none.",
    )
    workers: int = Field(
        1,
        ge=1,
        le=64,
        description="Processes that answer on the port, each with its models: up to one a core, or one a GPU.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="Where networks run; auto takes a GPU when there is one."
    )
    torch_threads: int = Field(
        1, ge=1, le=256, description="CPU threads of one forward pass; more help only large requests."
    )
    max_body_bytes: int = Field(8 * MEBIBYTE, ge=1024, description="Largest request body in bytes, unpacked.")
    max_series: int = Field(1000, ge=1, description="Most series in one request.")
    max_length: int = Field(100_000, ge=1, description="Most points of one series.")
    max_levels: int = Field(20, ge=1, le=100, description="Most prediction intervals in one request.")
    max_values: int = Field(
        20_000_000,
        ge=1,
        description="Most numbers in the work of one request: series x horizon x quantiles, or series x steps x "
        "covariates where that is more; bounds memory.",
    )
    max_in_flight: int = Field(
        256,
        ge=1,
        description="Forecast requests accepted at one time by each worker; more are asked to come back (503). "
        "Bodies take at most this many times max_body_bytes of memory.",
    )
    max_connections: int = Field(
        20_000,
        ge=1,
        description="Most connections of each worker at one time, WebSockets included; more are turned away "
        "(503). Fewer where the limit of open files, which is raised as far as it may be, leaves less room.",
    )
    max_waiting_series: int = Field(
        4096,
        ge=1,
        description="Series that may wait to be forecast at one time; more are asked to come back (503).",
    )
    stuck_share: float = Field(
        0.5,
        ge=0,
        le=1,
        description="Share of a model's window that equal values at its end must fill before a sensor may count "
        "as stuck; 0 calls none so.",
    )
    hang_seconds: float = Field(
        120.0,
        gt=0,
        le=3600,
        description="Seconds after which a forward pass or the event loop counts as hung: readiness turns 503, "
        "and the process ends with 70.",
    )
    body_seconds: float = Field(30.0, gt=0, description="Seconds a client may take to send its body.")
    stream_rewind: int = Field(
        64,
        ge=1,
        le=10_000,
        description="Steps a late or revised observation of a stream may lie before its newest.",
    )
    stream_gap: int = Field(
        256, ge=0, le=100_000, description="Most steps without an observation that a stream bridges."
    )
    stream_to_ledger: bool = Field(
        True, description="Tell the ledger what streams observed, so that forecasts can be scored."
    )
    stream_memory_bytes: int = Field(
        512 * MEBIBYTE, ge=1024, description="Most bytes of streams in memory; the others wait on disk."
    )
    stream_disk_bytes: int = Field(
        4096 * MEBIBYTE,
        ge=1024,
        description="Most bytes of streams on disk; beyond, those least recently used are forgotten.",
    )
    stream_journal_bytes: int = Field(
        64 * MEBIBYTE, ge=1024, description="Bytes of observations in the journal after which streams are saved."
    )
    stream_observations: int = Field(10_000, ge=1, description="Most observations in one message.")
    stream_message_bytes: int = Field(MEBIBYTE, ge=1024, description="Largest message of a socket in bytes.")
    stream_outstanding: int = Field(
        64, ge=1, description="Messages of one socket that are answered at a time; then it is not read."
    )
    stream_sockets: int = Field(10_000, ge=1, description="Most sockets of streams at one time.")
    stream_idle_seconds: float = Field(
        3600.0, gt=0, description="Seconds without a message after which a socket is closed."
    )
    head_seconds: float = Field(
        10.0, gt=0, le=600, description="Seconds a client may take to send the address and headers of a request."
    )
    request_seconds: float = Field(
        60.0, gt=0, le=3600, description="Seconds a request may take in all; then it is given up (503)."
    )
    stall_seconds: float = Field(
        30.0, gt=0, le=3600, description="Seconds a client may read nothing of an answer that waits for it."
    )
    keep_alive_seconds: int = Field(
        75, ge=1, le=3600, description="Seconds a connection is kept open between two requests."
    )
    drain_seconds: float = Field(
        1.0,
        ge=0,
        le=300,
        description="Seconds between SIGTERM and closing the socket, in which readiness is already 503.",
    )
    shutdown_seconds: int = Field(
        30, ge=1, le=3600, description="Seconds accepted requests may still take after the socket closed."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least severe line.")
    log_format: LogFormat | None = Field(
        None, description="json or text. Default: text where standard error is a terminal, json elsewhere."
    )
    log_requests: LoggedRequests = Field(
        "notable", description="notable: a line for requests that failed (500) or were slow; all: one for each."
    )
    slow_seconds: float = Field(1.0, ge=0, description="Seconds from which a request is slow.")

    @field_validator("models", mode="before")
    @classmethod
    def _split_models(cls, models: object) -> object:
        if not isinstance(models, str):
            return models
        return tuple(name.strip() for name in models.split(",") if name.strip()) or None

    @field_validator("ledger_url")
    @classmethod
    def _ledger_is_a_database(cls, url: str) -> str:
        if url == LEDGER_OFF or re.match(r"(sqlite|postgresql)(\+\w+)?://", url):
            return url
        raise ValueError("a ledger is sqlite:///path or postgresql://..., or off")

    @field_validator("models")
    @classmethod
    def _models_have_names(cls, models: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for name in models or ():
            if not re.fullmatch(MODEL_NAME_PATTERN, name):
                raise ValueError(f"no model can be named {name!r}: use a-z, 0-9, dash and underscore")
        return models

    @field_validator("cors_origins", mode="before")
    @classmethod
    def _split_origins(cls, origins: object) -> object:
        if not isinstance(origins, str):
            return origins
        return tuple(origin.strip() for origin in origins.split(",") if origin.strip())

    @field_validator("cors_origins")
    @classmethod
    def _origins_are_exact(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            if origin != ANY_ORIGIN and not re.fullmatch(r"https?://[a-z0-9.-]+(:[0-9]{1,5})?", origin):
                raise ValueError(
                    f"{origin!r} is no origin: give scheme, host and port, as in https://plant.example"
                )
        return origins

    @model_validator(mode="after")
    def _stay_private(self) -> "ServiceSettings":
        if not (self.is_local or self.keys_file or load_keys(self.keys_path)):
            raise ValueError(
                f"host {self.host!r} can be reached from other machines, and there are no API keys that tell who "
                "is calling: `hindcast keys create NAME` makes one; or keep 127.0.0.1"
            )
        return self

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach the service."""
        return _is_loopback(self.host)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
