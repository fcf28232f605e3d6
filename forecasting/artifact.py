"""The artefact: one directory that is a forecaster, as data and never as code.

    spec.json             the ForecasterSpec
    weights.safetensors   every parameter and calibration offset
    golden.json           an input, and the output it must give

Nothing else is read, nothing is unpickled, and a directory that fails any check is refused whole.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from forecasting.calendar import parse_freq
from forecasting.covariates import Covariates
from forecasting.errors import ArtifactError, HindcastError
from forecasting.forecaster import Forecaster
from forecasting.networks import QuantileNetwork, build_network
from forecasting.spec import FORMAT_VERSION, ForecasterSpec

FloatArray = NDArray[np.float64]

SPEC, WEIGHTS, GOLDEN = "spec.json", "weights.safetensors", "golden.json"
MAX_BYTES = 2 * 1024**3
GOLDEN_TOLERANCE = 1e-4
"""Largest deviation from the golden output, relative to the spread of the golden input: other processors
round differently, wrong weights differ far more."""


def save_artifact(forecaster: Forecaster, directory: Path) -> None:
    """Write a forecaster to an empty or absent directory."""
    directory.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.contiguous().cpu() for name, tensor in forecaster.network.state_dict().items()}
    context_BL = _golden_context(forecaster.spec)
    covariates = _golden_covariates(forecaster.spec)
    golden = {
        "context": _to_json(context_BL),
        **({} if covariates is None else {"covariates": _covariates_to_json(covariates)}),
        "quantiles": _to_json(forecaster.predict(context_BL, covariates)),
    }
    (directory / SPEC).write_text(forecaster.spec.model_dump_json(indent=2) + "\n")
    (directory / WEIGHTS).write_bytes(save_tensors(state))
    (directory / GOLDEN).write_text(json.dumps(golden, allow_nan=False) + "\n")


def load_artifact(directory: Path, device: str = "cpu") -> Forecaster:
    """Read a forecaster and prove that it answers as it did when it was saved.

    Raises:
        ArtifactError: a file is missing or damaged, the format is newer than this version, the weights do
            not fit the spec, or the golden input does not give the golden output.
    """
    spec = load_spec(directory)
    forecaster = Forecaster(spec, _read_network(directory, spec), device)
    _check_golden(directory, forecaster)
    return forecaster


def artifact_digest(directory: Path) -> str:
    """Return the SHA-256 of an artefact's three files, as the registry records it at publication."""
    sha = hashlib.sha256()
    for name in (SPEC, WEIGHTS, GOLDEN):
        content = _read_bytes(directory, name)
        sha.update(f"{name}:{len(content)}:".encode())
        sha.update(content)
    return sha.hexdigest()


def _read_bytes(directory: Path, name: str) -> bytes:
    path = directory / name
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ArtifactError(f"{name} is larger than {MAX_BYTES} bytes")
        return path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"the artefact has no readable {name}: {error.strerror}") from error


def _read_json(directory: Path, name: str) -> dict[str, Any]:
    try:
        content = json.loads(_read_bytes(directory, name))
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{name} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ArtifactError(f"{name} holds {type(content).__name__}, not an object")
    return content


def load_spec(directory: Path) -> ForecasterSpec:
    """Read what a forecaster is, without its weights.

    Raises:
        ArtifactError: it is missing or damaged, or its format is newer than this version.
    """
    content = _read_json(directory, SPEC)
    version = content.get("format_version")
    if not isinstance(version, int) or isinstance(version, bool):
        raise ArtifactError(f"{SPEC} has no integer format_version")
    if version > FORMAT_VERSION:
        raise ArtifactError(
            f"format_version {version} is newer than {FORMAT_VERSION}, the newest this Hindcast reads"
        )
    try:
        return ForecasterSpec.model_validate_json(json.dumps(content), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ArtifactError(f"{SPEC} is not a valid spec: {where}: {first['msg']}") from error


def _read_network(directory: Path, spec: ForecasterSpec) -> QuantileNetwork:
    content = _read_bytes(directory, WEIGHTS)
    try:
        state = load_tensors(content)
    except SafetensorError as error:
        raise ArtifactError(f"{WEIGHTS} cannot be read: {error}") from error
    # Shapes are compared without memory first, so that no spec can ask for more than its weights hold.
    with torch.device("meta"):
        expected = {name: tensor.shape for name, tensor in build_network(spec).state_dict().items()}
    found = {name: tensor.shape for name, tensor in state.items()}
    if expected != found:
        odd = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        raise ArtifactError(f"{WEIGHTS} does not fit the spec at {', '.join(odd[:5])}")
    if not all(tensor.isfinite().all() for tensor in state.values()):
        raise ArtifactError(f"{WEIGHTS} holds values that are not finite")
    network = build_network(spec)
    network.load_state_dict(state, strict=True)
    return network


def _check_golden(directory: Path, forecaster: Forecaster) -> None:
    golden = _read_json(directory, GOLDEN)
    try:
        context_BL, expected_BHQ = _from_json(golden["context"]), _from_json(golden["quantiles"])
        answered_BHQ = forecaster.predict(context_BL, _covariates_from_json(golden.get("covariates")))
    except (KeyError, ValueError, TypeError, HindcastError) as error:
        raise ArtifactError(f"{GOLDEN} cannot be replayed: {error}") from error
    spread = max(float(np.nanstd(context_BL)), 1e-12)
    if expected_BHQ.shape != answered_BHQ.shape:
        raise ArtifactError(f"{GOLDEN} expects shape {expected_BHQ.shape}, the model gives {answered_BHQ.shape}")
    tolerance = GOLDEN_TOLERANCE * (spread + np.abs(expected_BHQ))
    if not (np.abs(expected_BHQ - answered_BHQ) <= tolerance).all():
        worst = float(np.max(np.abs(expected_BHQ - answered_BHQ) / spread))
        raise ArtifactError(
            f"the golden input gives another answer than when it was saved (off by {worst:.3g} spreads)"
        )


def _golden_context(spec: ForecasterSpec) -> FloatArray:
    """Return two histories made for the check, never a user's data: a positive random walk, one with gaps."""
    rng = np.random.default_rng(0)
    context_BL = 100.0 + 0.2 * rng.normal(size=(2, spec.input_size)).cumsum(axis=1)
    context_BL = np.round(np.abs(context_BL) + 1.0, 6)
    context_BL[1, 1:-1:7] = np.nan
    return context_BL


def _golden_covariates(spec: ForecasterSpec) -> Covariates | None:
    """Return covariates for the golden histories: waves, a gap, a known name and an unknown one."""
    if not spec.takes_covariates:
        return None
    length, covariates = spec.input_size, spec.covariates
    steps_T = np.arange(length + spec.horizon, dtype=np.float64)

    def waves(n_steps: int, n_columns: int) -> FloatArray:
        columns = [np.round(np.sin(steps_T[:n_steps] * (0.1 + 0.05 * i)), 6) for i in range(n_columns)]
        waves_BTC: FloatArray = np.stack([np.stack(columns, axis=1)] * 2).astype(np.float64)
        waves_BTC[1, ::5] = np.nan
        return waves_BTC

    return Covariates(
        cutoff_B=parse_freq(spec.freq).range(_golden_start(spec.freq), length + 1)[-2:],
        past_BLP=waves(length, len(covariates.past)) if covariates.past else None,
        future_BTF=waves(length + spec.horizon, len(covariates.future)) if covariates.future else None,
        static={static.name: (static.categories[0], "") for static in covariates.static},
    )


def _golden_start(freq: str) -> pd.Timestamp:
    """Return a timestamp on the grid of a frequency, a session where it has sessions."""
    return parse_freq(freq).first_after(pd.Timestamp("2001-01-01"))


def _covariates_to_json(covariates: Covariates) -> dict[str, object]:
    past_BLP, future_BTF = covariates.past_BLP, covariates.future_BTF
    return {
        "cutoff": [stamp.isoformat() for stamp in covariates.cutoff_B],
        "past": None if past_BLP is None else _to_json(past_BLP),
        "future": None if future_BTF is None else _to_json(future_BTF),
        "static": {name: list(values) for name, values in covariates.static.items()},
    }


def _covariates_from_json(stored: Any) -> Covariates | None:  # noqa: ANN401  (what the file held)
    if stored is None:
        return None
    return Covariates(
        cutoff_B=pd.DatetimeIndex(stored["cutoff"]).as_unit("us"),
        past_BLP=None if stored["past"] is None else _from_json(stored["past"]),
        future_BTF=None if stored["future"] is None else _from_json(stored["future"]),
        static=stored["static"],
    )


def _to_json(values: FloatArray) -> list[object]:
    objects = values.astype(object)
    objects[~np.isfinite(values)] = None
    return list(objects.tolist())


def _from_json(values: object) -> FloatArray:
    return np.asarray(values, dtype=object).astype(np.float64)
