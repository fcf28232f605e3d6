"""ServiceSettings: all the service can be told, from the environment (`HINDCAST_...`) or from flags."""

import ipaddress
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from forecasting.registry import CHAMPION
from forecasting.spec import MODEL_NAME_PATTERN

MEBIBYTE = 1024**2
LEDGER_OFF = "off"


def _default_registry(data: dict[str, Any]) -> str:
    home: Path = data.get("home", Path(".hindcast"))
    return f"sqlite:///{home.absolute() / 'mlflow.db'}"


def _default_ledger(data: dict[str, Any]) -> str:
    home: Path = data.get("home", Path(".hindcast"))
    return f"sqlite:///{home.absolute() / 'ledger.db'}"


class ServiceSettings(BaseSettings):
    """The settings of one service process; unsafe or impossible ones are refused before it listens."""

    model_config = SettingsConfigDict(env_prefix="HINDCAST_", frozen=True, extra="forbid")

    home: Path = Field(Path(".hindcast"), description="Directory for everything Hindcast keeps on disk.")
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
    alias: str = Field(
        CHAMPION, pattern=MODEL_NAME_PATTERN, description="Registry alias that says which version to serve."
    )
    poll_seconds: float = Field(5.0, ge=0.05, le=3600, description="Seconds between two looks at the registry.")
    poll_timeout_seconds: float = Field(
        120.0, gt=0, description="Seconds after which a look at the registry is reported as stuck."
    )
    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 picks a free one.")
    allow_public: bool = Field(
        False, description="Allow a host other than loopback, although nothing asks callers who they are."
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
    max_body_bytes: int = Field(8 * MEBIBYTE, ge=1024, description="Largest request body in bytes.")
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
    max_waiting_series: int = Field(
        4096,
        ge=1,
        description="Series that may wait to be forecast at one time; more are asked to come back (503).",
    )
    body_seconds: float = Field(30.0, gt=0, description="Seconds a client may take to send its body.")
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

    @model_validator(mode="after")
    def _stay_private(self) -> "ServiceSettings":
        if not self.allow_public and not _is_loopback(self.host):
            raise ValueError(
                f"host {self.host!r} can be reached from other machines, and the service has no "
                "authentication yet: keep 127.0.0.1 behind a proxy that asks who is calling, "
                "or set HINDCAST_ALLOW_PUBLIC=true"
            )
        return self


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
