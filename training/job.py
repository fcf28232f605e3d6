"""JobConfig: a job file, validated. One job trains, evaluates and keeps one registered model.

Unknown keys are refused and every message names the field, so that a typing error never trains quietly.
"""

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo

import yaml
from croniter import croniter
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from forecasting.calendar import Calendar, Sessions, parse_freq
from forecasting.errors import CalendarError, JobError
from forecasting.panel import BadSeries
from forecasting.spec import BASELINE_KINDS, MODEL_NAME_PATTERN, ForecasterSpec, NetworkSpec, quantiles_for
from forecasting.transforms import Transform
from training.sources import AnySource

Level = Annotated[float, Field(gt=0, le=99.9999)]
GateMetric = Literal["crps", "mae", "rmse", "mase", "rmsse"]


def _known_freq(freq: str) -> Calendar:
    try:
        return parse_freq(freq)
    except CalendarError as error:
        raise ValueError(str(error)) from error


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class TargetConfig(_Section):
    """What is forecast."""

    column: str = Field("y", description="Column of the source that holds the values.")
    transform: Transform = Field("none", description="Scale it is modelled and scored on: none, or log_return.")


class TrainingConfig(_Section):
    """How networks are fitted. A candidate may override any of these under its own `training:`."""

    loss: Literal["quantile"] = Field("quantile", description="Pinball loss, averaged over the quantiles.")
    optimizer: Literal["adam", "adamw", "rmsprop"] = Field("adamw", description="Optimiser.")
    learning_rate: float = Field(2e-3, gt=0, le=1, description="Peak learning rate.")
    weight_decay: float = Field(1e-4, ge=0, le=1, description="Decay of the weights (adamw: decoupled).")
    schedule: Literal["constant", "cosine"] = Field(
        "cosine", description="Learning rate: constant, or a short warm-up and a cosine down to a twentieth."
    )
    batch_size: int = Field(64, ge=1, le=65_536, description="Windows (recurrent: lanes) in one step.")
    max_epochs: int = Field(30, ge=1, le=100_000, description="Most epochs; the schedule spans them.")
    steps_per_epoch: int | None = Field(
        None, ge=1, le=1_000_000, description="Steps between two validations; default one pass, 10 to 100."
    )
    patience: int = Field(6, ge=1, le=100_000, description="Epochs without a better validation loss before stop.")
    max_seconds: float | None = Field(
        None,
        gt=0,
        description="Time budget of one candidate; the best weights so far are kept. Default none.",
    )
    clip_norm: float = Field(1.0, gt=0, description="Largest norm of the gradient.")
    seed: int = Field(1, ge=0, le=2**31 - 1, description="Same seed, same machine, same weights on a CPU.")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto takes a GPU where there is one.")


class EvaluationConfig(_Section):
    """The rolling-origin backtest, and what is held back for it."""

    n_windows: int = Field(20, ge=1, le=100_000, description="Cutoffs in the test block.")
    step_size: int | None = Field(None, ge=1, description="Steps between two cutoffs; default the horizon.")
    validation_size: int | None = Field(
        None,
        ge=1,
        description="Steps before the test block that choose and calibrate; default 15 % of the data.",
    )


class GateConfig(_Section):
    """What decides on promotion."""

    metric: GateMetric = Field("crps", description="Lower is better; compared on the test cutoffs.")
    alpha: float = Field(
        0.05, gt=0, lt=1, description="Level at which the decision's reason calls a difference significant."
    )


class ScheduleConfig(_Section):
    """When the worker retrains."""

    cron: str = Field(description="Five fields (minute hour day month weekday), or six with seconds first.")
    timezone: str = Field("UTC", description="IANA time zone the cron is read in.")
    sessions: str | None = Field(
        None,
        description="Exchange; ticks on days without a session are skipped. Default the job's freq, if one.",
    )

    @field_validator("timezone")
    @classmethod
    def _timezone_exists(cls, timezone: str) -> str:
        try:
            ZoneInfo(timezone)
        except (KeyError, ValueError, OSError) as error:
            raise ValueError(f"unknown time zone {timezone!r}; use an IANA name such as Europe/Berlin") from error
        return timezone

    @field_validator("sessions")
    @classmethod
    def _sessions_are_an_exchange(cls, sessions: str | None) -> str | None:
        if sessions is not None and not isinstance(_known_freq(sessions), Sessions):
            raise ValueError(f"{sessions!r} is not an exchange calendar such as XNYS")
        return sessions

    @field_validator("cron")
    @classmethod
    def _cron_is_valid(cls, cron: str) -> str:
        if len(cron.split()) not in (5, 6) or not croniter.is_valid(cron, second_at_beginning=True):
            raise ValueError(f"{cron!r} is not a cron of five fields, or six with seconds first")
        return cron


class Candidate(_Section):
    """One architecture of a job with its settings; in YAML one flat mapping."""

    name: str = Field(
        pattern=r"^[a-z0-9][a-z0-9_.-]{0,63}$", description="Default: its kind, numbered if repeated."
    )
    network: NetworkSpec
    training: dict[str, Any] = Field(default_factory=dict, description="Overrides of the job's training section.")

    @field_validator("training")
    @classmethod
    def _overrides_are_settings(cls, training: dict[str, Any]) -> dict[str, Any]:
        try:
            TrainingConfig.model_validate(training)
        except ValidationError as error:
            # Raised on as it is, it would name the field as one of the job itself.
            raise ValueError(_problems(error)) from error
        return training


class JobConfig(_Section):
    """A forecasting job."""

    name: str = Field(pattern=MODEL_NAME_PATTERN, description="The registered model and the MLflow experiment.")
    source: AnySource
    target: TargetConfig = TargetConfig()
    freq: str = Field(max_length=32, description="Pandas alias (15min, h, D, W, MS) or exchange calendar (XNYS).")
    season_length: int | None = Field(None, ge=1, le=100_000, description="Steps; default the frequency's own.")
    horizon: int = Field(ge=1, le=10_000, description="Steps forecast.")
    level: tuple[Level, ...] = Field(
        (80.0, 95.0), min_length=1, max_length=20, description="Intervals in percent."
    )
    bad_series: BadSeries = Field(
        "raise", description="raise: one bad series refuses the data; drop: it is left out."
    )
    candidates: tuple[Candidate, ...] = Field(min_length=1, max_length=50)
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    gate: GateConfig = GateConfig()
    schedule: ScheduleConfig | None = None

    @model_validator(mode="before")
    @classmethod
    def _spread_candidates(cls, content: Any) -> Any:  # noqa: ANN401  (what YAML gave, before validation)
        """Split each flat candidate into its name, its training overrides and its network."""
        if not isinstance(content, dict) or not isinstance(content.get("candidates"), list | tuple):
            return content
        target = content.get("target")
        returns = isinstance(target, dict) and target.get("transform") == "log_return"
        # The baselines are in every comparison under their own names, so a candidate of such a kind is a second.
        taken: set[str] = set(BASELINE_KINDS)
        spread = [_spread(item, returns, taken) for item in content["candidates"]]
        return {**content, "candidates": spread}

    @field_validator("freq")
    @classmethod
    def _freq_is_known(cls, freq: str) -> str:
        _known_freq(freq)
        return freq

    @model_validator(mode="after")
    def _parts_fit(self) -> "JobConfig":
        names = [candidate.name for candidate in self.candidates]
        repeated = {name for name in names if names.count(name) > 1}
        if repeated:
            raise ValueError(f"two candidates have the name {sorted(repeated)[0]!r}")
        reserved = {c.name for c in self.candidates if c.name in BASELINE_KINDS}
        if reserved:
            raise ValueError(f"a candidate cannot take the name of a baseline: {sorted(reserved)[0]!r}")
        for i, candidate in enumerate(self.candidates):
            if candidate.network.input_size < 2:
                raise ValueError(f"candidates[{i}].input_size is 1; a window of one value has no scale, 2 have")
            if "device" in candidate.training:
                raise ValueError(f"candidate {candidate.name!r} sets device; a job's candidates share its device")
        return self

    def training_of(self, candidate: Candidate) -> TrainingConfig:
        """Return the training settings in force for a candidate."""
        return TrainingConfig.model_validate({**self.training.model_dump(), **candidate.training})

    @property
    def season(self) -> int:
        """Return the season in force, in steps."""
        return self.season_length or parse_freq(self.freq).season_length

    @property
    def step_size(self) -> int:
        """Return the steps between two cutoffs of the backtest."""
        return self.evaluation.step_size or self.horizon

    @property
    def session_calendar(self) -> str | None:
        """Return the exchange whose sessions the schedule follows, if any."""
        named = self.schedule.sessions if self.schedule else None
        return named or (self.freq if isinstance(parse_freq(self.freq), Sessions) else None)

    def spec_of(self, network: NetworkSpec) -> ForecasterSpec:
        """Return the whole spec of a forecaster of this job."""
        return ForecasterSpec(
            name=self.name,
            freq=self.freq,
            season_length=self.season,
            horizon=self.horizon,
            level=self.level,
            quantiles=quantiles_for(self.level),
            transform=self.target.transform,
            network=network,
        )


def _spread(item: Any, returns: bool, taken: set[str]) -> Any:  # noqa: ANN401
    if not isinstance(item, dict) or "network" in item:
        return item
    network = {key: value for key, value in item.items() if key not in ("name", "training")}
    if returns and network.get("kind") in ("ridge", "mlp", "rnn", "gru", "lstm"):
        network.setdefault("scaling", "difference")
    name = item.get("name") or _free_name(str(network.get("kind")), taken)
    taken.add(str(name))
    return {"name": name, "training": item.get("training") or {}, "network": network}


def _free_name(kind: str, taken: set[str]) -> str:
    numbered = (f"{kind}-{n}" for n in range(2, 1000))
    return kind if kind not in taken else next(name for name in numbered if name not in taken)


class _StrictLoader(yaml.SafeLoader):
    """The safe loader, which refuses a key that is there twice instead of keeping the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"{key!r} is there twice", node.start_mark)
        return super().construct_mapping(node, deep)


def load_job(path: Path) -> JobConfig:
    """Read a job file.

    Raises:
        JobError: the file is not there, is not YAML, or a field is wrong; the message names it.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise JobError(f"cannot read the job file {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise JobError(f"cannot read the job file {path}: it is not text in UTF-8") from error
    return parse_job(text, where=str(path))


def parse_job(text: str, *, where: str = "job") -> JobConfig:
    """Parse the text of a job file; `where` starts the message of an error."""
    try:
        content = yaml.load(text, Loader=_StrictLoader)  # noqa: S506  (a safe loader, and stricter)
    except yaml.YAMLError as error:
        raise JobError(f"{where} is not valid YAML: {error}") from error
    if not isinstance(content, Mapping):
        raise JobError(f"{where} holds {type(content).__name__}, not a mapping of fields")
    try:
        return JobConfig.model_validate(content)
    except ValidationError as error:
        raise JobError(f"{where}: {_problems(error)}") from error


def _problems(error: ValidationError) -> str:
    return "; ".join(
        f"{_path_of(item['loc'])}: {item['msg'].removeprefix('Value error, ')}" for item in error.errors()[:10]
    )


def _path_of(loc: tuple[int | str, ...]) -> str:
    """Write a location as the file has it: `candidates[1].hidden_size`."""
    path = ""
    for part in loc:
        if part == "network":
            continue
        path += f"[{part}]" if isinstance(part, int) else f".{part}"
    return path.lstrip(".") or "the job"
