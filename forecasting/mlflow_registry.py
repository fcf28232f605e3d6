"""The registry on MLflow: a SQLite file, a PostgreSQL database or an MLflow server, by its URI.

A version is an MLflow pyfunc model whose `data` directory is the artefact, so that MLflow's own tools load it
too (`mlflow.pyfunc.load_model("models:/co2@champion")`, through `_load_pyfunc` below) while the service reads
nothing but that directory. No pickle is written, and reading one is switched off.
"""

import fcntl
import os
import secrets
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

# MLflow reads these when it is imported.
os.environ.setdefault("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")

import mlflow
import mlflow.artifacts
import mlflow.pyfunc
import numpy as np
import pandas as pd
from mlflow.entities.model_registry import ModelVersion as MlflowModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.models.model import ModelInfo
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from mlflow.tracking import MlflowClient
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema

from forecasting.artifact import SPEC, artifact_digest, load_artifact
from forecasting.errors import ModelNotFoundError, RegistryError, RegistryUnavailableError
from forecasting.forecaster import Forecaster
from forecasting.frame import forecast_frame
from forecasting.registry import CHAMPION, TAG_DIGEST, ModelVersion, check_model_name
from forecasting.spec import ForecasterSpec

LOGGED_NAME = "forecaster"
_PAGE = 1000


def artifact_root_of(uri: str) -> str | None:
    """Return where artefacts of a database store go: HINDCAST_ARTIFACT_ROOT, or beside a SQLite file.

    A server (http) places them itself; None leaves that to it.
    """
    configured = os.environ.get("HINDCAST_ARTIFACT_ROOT")
    if configured:
        return configured
    if uri.startswith("sqlite:///"):
        return (Path(uri.removeprefix("sqlite:///")).absolute().parent / "artifacts").as_uri()
    if uri.startswith("http"):
        return None
    raise RegistryError(f"set HINDCAST_ARTIFACT_ROOT: {uri.split('://')[0]} stores no artefacts itself")


def open_client(uri: str) -> MlflowClient:
    """Open a store of runs and models.

    Raises:
        RegistryError: the URI names no store, or the store cannot be used.
        RegistryUnavailableError: it does not answer.
    """
    with translated("the registry"):
        if uri.startswith("sqlite:///"):
            _ensure_database(Path(uri.removeprefix("sqlite:///")).absolute(), artifact_root_of(uri) or "")
        return MlflowClient(tracking_uri=uri, registry_uri=uri)


def _ensure_database(path: Path, artifact_root: str) -> None:
    """Make a SQLite store that is not there, whole or not at all, whoever else is about to make it.

    MLflow builds its tables in dozens of steps, and can neither share the work nor take it up again.
    """
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f".{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if path.exists():
            return
        draft = path.with_name(f".{path.name}-{secrets.token_hex(6)}")
        try:
            store = SqlAlchemyStore(f"sqlite:///{draft}", artifact_root)
            store.engine.dispose()
            draft.rename(path)
        finally:
            draft.unlink(missing_ok=True)


def ensure_experiment(client: MlflowClient, uri: str, name: str) -> str:
    """Return the id of the experiment of a job, made with an explicit artefact location on first use."""
    with translated(f"experiment {name!r}"):
        experiment = client.get_experiment_by_name(name)
        return _create_experiment(client, uri, name) if experiment is None else str(experiment.experiment_id)


def _create_experiment(client: MlflowClient, uri: str, name: str) -> str:
    root = artifact_root_of(uri)
    try:
        return str(client.create_experiment(name, None if root is None else f"{root}/{name}"))
    except MlflowException:
        # Another process made it between the look and the attempt.
        experiment = client.get_experiment_by_name(name)
        if experiment is None:
            raise
        return str(experiment.experiment_id)


class MlflowRegistry:
    """Models, versions, aliases and tags in an MLflow model registry."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._client = open_client(uri)

    def publish(
        self, model: str, artifact: Path, tags: Mapping[str, str], run_id: str | None = None
    ) -> ModelVersion:
        check_model_name(model)
        all_tags = {**tags, TAG_DIGEST: artifact_digest(artifact)}
        with translated(f"model {model!r}"), self._as_default_store():
            experiment_id = ensure_experiment(self._client, self.uri, model)
            own_run = None if run_id else self._client.create_run(experiment_id, run_name="publish").info.run_id
            logged = _log_pyfunc(artifact, run_id or own_run)
            self._ensure_model(model)
            # The version appears in one step with all its tags: a process that dies before leaves none.
            created = self._client.create_model_version(
                model, logged.model_uri, run_id or own_run, tags=all_tags, model_id=logged.model_id
            )
            if own_run:
                self._client.set_terminated(own_run)
        return self.version(model, str(created.version))

    def models(self) -> list[str]:
        with translated("the registry"):
            return sorted(model.name for model in self._client.search_registered_models(max_results=_PAGE))

    def versions(self, model: str) -> list[ModelVersion]:
        check_model_name(model)
        with translated(f"model {model!r}"):
            # The search returns versions without their aliases; the model has them.
            aliases = self._client.get_registered_model(model).aliases
            found = self._client.search_model_versions(f"name='{model}'", max_results=_PAGE)
        by_version: dict[str, list[str]] = {}
        for alias, version in aliases.items():
            by_version.setdefault(str(version), []).append(alias)
        described = [_describe(v, by_version.get(str(v.version), [])) for v in found]
        return sorted(described, key=lambda v: int(v.version), reverse=True)

    def resolve(self, model: str, alias: str = CHAMPION) -> ModelVersion:
        check_model_name(model)
        with translated(f"model {model!r}"):
            version = self._client.get_registered_model(model).aliases.get(alias)
        if version is None:
            raise ModelNotFoundError(f"model {model!r} has no version with the alias {alias!r}")
        return self.version(model, str(version))

    def version(self, model: str, version: str) -> ModelVersion:
        check_model_name(model)
        if not version.isdecimal():
            raise ModelNotFoundError(f"model {model!r} has no version {version!r}: versions are numbers")
        with translated(f"version {version} of model {model!r}"):
            found = self._client.get_model_version(model, version)
        return _describe(found, list(found.aliases))

    def fetch(self, version: ModelVersion, into: Path) -> Path:
        target = into / f"{version.model}-{version.version}"
        target.mkdir(parents=True, exist_ok=True)
        with translated(f"version {version.version} of model {version.model!r}"):
            registered = self._client.get_model_version(version.model, version.version)
            model_id = str(registered.source).removeprefix("models:/")
            location = self._client.get_logged_model(model_id).artifact_location
            found = mlflow.artifacts.download_artifacts(
                artifact_uri=location, dst_path=str(target), tracking_uri=self.uri
            )
        return _artifact_below(Path(found) / "data", version)

    def set_alias(self, model: str, alias: str, version: str) -> None:
        self.version(model, version)
        with translated(f"model {model!r}"):
            self._client.set_registered_model_alias(model, alias, version)

    def remove_alias(self, model: str, alias: str) -> None:
        with translated(f"model {model!r}"):
            if alias in self._client.get_registered_model(model).aliases:
                self._client.delete_registered_model_alias(model, alias)

    def annotate(self, model: str, version: str, tags: Mapping[str, str]) -> None:
        self.version(model, version)
        with translated(f"version {version} of model {model!r}"):
            for key, value in tags.items():
                self._client.set_model_version_tag(model, version, key, value)

    def _ensure_model(self, model: str) -> None:
        try:
            self._client.create_registered_model(model)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    @contextmanager
    def _as_default_store(self) -> Iterator[None]:
        """Point MLflow's fluent functions, which know no client, to this store for a while."""
        before = {name: os.environ.get(name) for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")}
        mlflow.set_tracking_uri(self.uri)
        mlflow.set_registry_uri(self.uri)
        try:
            yield
        finally:
            # Both wrote their variable, for child processes. None makes MLflow read the variables again, where a
            # store that was the default before stands; to set what it resolved to would make that one stick.
            mlflow.set_tracking_uri(None)
            mlflow.set_registry_uri(None)
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value


def _log_pyfunc(artifact: Path, run_id: str | None) -> ModelInfo:
    with warnings.catch_warnings(), mlflow.start_run(run_id=run_id):
        # MLflow asks for an input example; it would be a user's data, or an invention.
        warnings.filterwarnings("ignore", ".*input example was not provided.*")
        return mlflow.pyfunc.log_model(
            name=LOGGED_NAME,
            loader_module="forecasting.mlflow_registry",
            data_path=str(artifact),
            signature=_signature(artifact),
            pip_requirements=["hindcast"],
        )


def _signature(artifact: Path) -> ModelSignature:
    spec = ForecasterSpec.model_validate_json((artifact / SPEC).read_text())
    told = spec.covariates
    names = [static.name for static in told.static if static.name != "unique_id"]
    inputs = [
        ColSpec(DataType.string, "unique_id"),
        ColSpec(DataType.datetime, "ds"),
        ColSpec(DataType.double, "y"),
        # MLflow drops the columns that a signature does not name.
        *(ColSpec(DataType.double, name, required=False) for name in (*told.past_taken, *told.future)),
        *(ColSpec(DataType.string, name, required=False) for name in names),
    ]
    level = ParamSpec("level", DataType.double, default=np.array(spec.level), shape=(-1,))
    return ModelSignature(inputs=Schema(inputs), params=ParamSchema([level]))


def _artifact_below(data: Path, version: ModelVersion) -> Path:
    for spec in data.glob(f"*/{SPEC}"):
        return spec.parent
    raise RegistryError(f"version {version.version} of {version.model!r} holds no artefact")


def _describe(found: MlflowModelVersion, aliases: list[str]) -> ModelVersion:
    created_at = datetime.fromtimestamp(found.creation_timestamp / 1000, UTC)
    return ModelVersion(found.name, str(found.version), tuple(sorted(aliases)), dict(found.tags), created_at)


@contextmanager
def translated(what: str) -> Iterator[None]:
    """Turn MLflow's errors into the registry's: not there, not answering, or refused. Also a decorator."""
    try:
        yield
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            raise ModelNotFoundError(f"{what} is not in the registry") from error
        if error.get_http_status_code() >= 500 or "API request to" in str(error):
            raise RegistryUnavailableError(f"MLflow did not answer: {_first_line(error)}") from error
        raise RegistryError(f"MLflow refused: {_first_line(error)}") from error
    except OSError as error:
        raise RegistryUnavailableError(f"MLflow did not answer: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0][:300] if str(error) else type(error).__name__


class PyfuncForecaster:
    """What `mlflow.pyfunc.load_model` returns inside: the long frame in, the forecast frame out."""

    def __init__(self, forecaster: Forecaster) -> None:
        self.forecaster = forecaster

    def predict(self, model_input: pd.DataFrame, params: Mapping[str, Any] | None = None) -> pd.DataFrame:
        """Forecast every series of a long frame; see `forecasting.frame.forecast_frame`."""
        return forecast_frame(self.forecaster, model_input, None if params is None else params.get("level"))


def _load_pyfunc(data_path: str) -> PyfuncForecaster:
    """Load the artefact for MLflow's own tools; MLflow calls this by name."""
    return PyfuncForecaster(load_artifact(Path(data_path)))
