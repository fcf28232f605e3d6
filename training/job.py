"""JobConfig: a job file, validated. One job trains, evaluates and keeps one registered model.

Unknown keys are refused and every message names the field, so that a typing error never trains quietly.
"""

import hashlib
from collections.abc import Hashable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

import pandas as pd
import yaml
from croniter import croniter
from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from forecasting.calendar import Calendar, Sessions, parse_freq
from forecasting.errors import CalendarError, JobError
from forecasting.panel import BadSeries
from forecasting.ranges import RangeFeature
from forecasting.spec import (
    BASELINE_KINDS,
    MODEL_NAME_PATTERN,
    RETURN_COLUMNS,
    TARGET_COLUMN,
    VARIANCE_COLUMNS,
    CalendarFeature,
    ColumnName,
    CovariatesSpec,
    EnsembleSpec,
    ForecasterSpec,
    Head,
    NetworkSpec,
    PriceColumns,
    SegmentSpec,
    Trained,
    VolatilitySpec,
    quantiles_for,
)
from forecasting.transforms import Transform
from training.sources import AnySource
from training.sources.wall_clock import TimeZone

Level = Annotated[float, Field(gt=0, le=99.9999)]
LossKind = Literal["quantile", "likelihood", "squared", "absolute"]
Units = Literal["window", "series"]

LOSSES: dict[Head, tuple[LossKind, ...]] = {
    "quantile": ("quantile",),
    "student_t": ("likelihood", "quantile"),
    "skewed_t": ("likelihood", "quantile"),
    "point": ("squared", "absolute"),
}
"""What each head can be fitted with, its usual loss first."""

RivalName = Literal[
    "random_walk", "historical", "ewma", "garch", "garch_t", "gjr_garch_t", "gjr_garch_skewt", "har"
]
"""The rivals of training.econometrics, the plainest first."""

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


class CovariatesConfig(_Section):
    """What the networks are told besides the values of a series; columns of the source, by name."""

    past: tuple[ColumnName, ...] = Field((), description="Columns known up to the cutoff: another sensor.")
    future: tuple[ColumnName, ...] = Field((), description="Columns known ahead too: a set point, a price list.")
    static: tuple[ColumnName, ...] = Field(
        (), description="Columns that name what a series is: a site; or unique_id, the series itself."
    )
    calendar: tuple[CalendarFeature, ...] = Field(
        (), description="Made from the timestamps: hour, weekday, month_day, year_day, session_gap, holiday."
    )
    country: str | None = Field(
        None,
        pattern=r"^[A-Z]{2}(-[A-Z0-9]{1,3})?$",
        description="Whose holidays `holiday` marks: an ISO code such as DE, US or US-NY.",
    )

    ranges: tuple[RangeFeature, ...] = Field(
        (),
        description="Past columns made of the prices of a session: parkinson, garman_klass, rogers_satchell "
        "(variances), overnight, intraday (returns).",
    )

    @property
    def past_told(self) -> tuple[ColumnName, ...]:
        """Return all past columns the networks are told: those of the source, and those made of prices."""
        return (*self.past, *self.ranges)

    @model_validator(mode="after")
    def _columns_are_there_once(self) -> "CovariatesConfig":
        for name in self.ranges:
            if self.ranges.count(name) > 1 or name in (*self.past, *self.future, *self.static):
                raise ValueError(f"{name} is made of prices, and is there twice")
        return self

    @model_validator(mode="after")
    def _holidays_are_those_of_a_country(self) -> "CovariatesConfig":
        if "holiday" in self.calendar and self.country is None:
            raise ValueError("holiday takes a country: an ISO code such as DE, US or US-NY")
        return self


class UniverseConfig(_Section):
    """Which series are learned from and asked about, by date."""

    path: str = Field(
        min_length=1,
        description="CSV file with unique_id, start and end, the first date no longer in it (empty: still in); "
        "relative to the folder of the job file.",
    )


class TrainingConfig(_Section):
    """How networks are fitted. A candidate may override any of these under its own `training:`."""

    loss: LossKind | Literal["auto"] = Field(
        "auto",
        description="auto: what suits the head: quantile (pinball), student_t and skewed_t (likelihood), point "
        "(squared).",
    )
    units: Units = Field(
        "window", description="Units of the loss: each window's scale, so all count alike, or its series' scale."
    )
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
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="auto: bfloat16 in the networks on a GPU that has it, float32 on a CPU."
    )
    truncation: int | None = Field(
        None,
        ge=2,
        le=100_000,
        description="Recurrent networks: train on long lanes, back-propagating through this many steps and "
        "carrying the state on. Default none: windows of input_size.",
    )
    lane_chunks: int = Field(8, ge=1, le=10_000, description="Chunks of `truncation` steps in one lane.")
    warm_up: int | None = Field(
        None, ge=0, le=100_000, description="First steps not scored; default a quarter of input_size."
    )
    random_offsets: bool = Field(True, description="Lanes start anywhere; false: at multiples of their length.")
    average: float = Field(
        0.0, ge=0, lt=1, description="Decay of an exponential average of the weights, which is kept; 0 for none."
    )
    members: int = Field(1, ge=1, le=100, description="Networks of different seeds, averaged in one artefact.")
    start: Literal["scratch", "warm"] = Field(
        "scratch", description="warm: from the weights of the champion, where it is the same network."
    )

    partitions: int = Field(
        1,
        ge=1,
        le=1000,
        description="Parts of the series, trained side by side and averaged every epoch; for very many series.",
    )

    @model_validator(mode="after")
    def _partitions_have_one_average(self) -> "TrainingConfig":
        if self.partitions > 1 and self.average:
            raise ValueError("average takes one network step by step; with partitions leave it 0")
        return self

    def loss_for(self, head: Head) -> LossKind:
        """Return the loss in force for a head.

        Raises:
            ValueError: the head is not fitted with the loss asked for.
        """
        usual = LOSSES[head]
        if self.loss == "auto":
            return usual[0]
        if self.loss not in usual:
            raise ValueError(f"head {head} is fitted with {' or '.join(usual)}, not with loss {self.loss}")
        return self.loss


class EvaluationConfig(_Section):
    """The rolling-origin backtest, and what is held back for it."""

    n_windows: int = Field(20, ge=1, le=100_000, description="Cutoffs in the test block.")
    step_size: int | None = Field(None, ge=1, description="Steps between two cutoffs; default the horizon.")
    validation_size: int | None = Field(
        None,
        ge=1,
        description="Steps before the test block that choose and calibrate; default 15 % of the data.",
    )
    refit_every: int | None = Field(
        None,
        ge=1,
        description="Walk-forward: steps after which everything is fitted anew, on what is known by then. "
        "Default none: one fit before the test block.",
    )
    embargo: int | None = Field(
        None,
        ge=0,
        description="Steps kept unused between what is learned from and the first cutoff tested; default none, "
        "with refit_every the horizon, which is the fewest there.",
    )
    rivals: tuple[RivalName, ...] | None = Field(
        None,
        description="Econometric rivals of a job with transform log_return. Default all that its data and horizon "
        "allow, within a bound on their cost.",
    )


class GateConfig(_Section):
    """What decides on promotion."""

    metric: GateMetric = Field("crps", description="Lower is better; compared on the test cutoffs.")
    alpha: float = Field(
        0.05,
        gt=0,
        lt=1,
        description="Chance that, of all `looks` challengers no better than the champion, one is promoted.",
    )
    margin: float = Field(
        0.02, ge=0, lt=1, description="Share of its loss by which a refresh of the champion may be worse."
    )
    looks: int = Field(52, ge=1, description="Challengers that share alpha; then the account is opened anew.")
    trial: int = Field(
        60, ge=1, description="Cutoffs (that do not overlap) a challenger has in the shadow to prove itself."
    )
    watch: int = Field(
        30, ge=1, description="Cutoffs (that do not overlap) a new champion is compared with the one before."
    )


class ScheduleConfig(_Section):
    """When the worker retrains: by the clock (`cron`), or after the sessions of an exchange (`after_close`)."""

    cron: str | None = Field(
        None, description="Five fields (minute hour day month weekday), or six with seconds first."
    )
    timezone: TimeZone = Field("UTC", description="IANA time zone the cron is read in.")
    sessions: str | None = Field(
        None,
        description="Exchange; ticks on days without a session are skipped. Default the job's freq, if one.",
    )
    after_close: str | None = Field(
        None,
        description="Instead of cron: this long after every session of the exchange ends, early closes included, "
        "such as 30min or 2h; up to a day.",
    )
    force: bool = Field(False, description="Retrain also where neither the data nor the job changed.")

    @field_validator("sessions")
    @classmethod
    def _sessions_are_an_exchange(cls, sessions: str | None) -> str | None:
        if sessions is not None and not isinstance(_known_freq(sessions), Sessions):
            raise ValueError(f"{sessions!r} is not an exchange calendar such as XNYS")
        return sessions

    @field_validator("cron")
    @classmethod
    def _cron_is_valid(cls, cron: str | None) -> str | None:
        if cron is not None and (
            len(cron.split()) not in (5, 6) or not croniter.is_valid(cron, second_at_beginning=True)
        ):
            raise ValueError(f"{cron!r} is not a cron of five fields, or six with seconds first")
        return cron

    @field_validator("after_close")
    @classmethod
    def _after_close_is_a_span(cls, after_close: str | None) -> str | None:
        if after_close is not None:
            parse_delay(after_close)
        return after_close

    @model_validator(mode="after")
    def _one_of_two_ways(self) -> "ScheduleConfig":
        if (self.cron is None) == (self.after_close is None):
            raise ValueError("give either cron or after_close")
        return self


def parse_delay(text: str) -> timedelta:
    """Return a span of whole minutes up to a day.

    Raises:
        ValueError: it is none.
    """
    try:
        delay = pd.Timedelta(text)
    except ValueError as error:
        raise ValueError(f"{text!r} is no span of time such as 30min or 2h") from error
    if not pd.Timedelta(0) <= delay < pd.Timedelta(days=1) or delay % pd.Timedelta(minutes=1):
        raise ValueError(f"{text!r} is not a span of whole minutes, up to a day")
    return timedelta(minutes=delay // pd.Timedelta(minutes=1))


class TriggersConfig(_Section):
    """What asks for a retraining besides the clock; looked at by the worker, `hindcast tend` and `check`."""

    skill: bool = Field(
        True,
        description="The champion's live skill is below the gate's margin: it hardly beats the seasonal naive.",
    )
    coverage: bool = Field(True, description="The live coverage of a level of the job is not what it promises.")
    drift: bool = Field(True, description="What is observed since the training moves unlike what came before.")
    new_data: int | None = Field(
        None, ge=1, description="So many values became known since the last training. Default: however many."
    )
    alpha: float = Field(
        0.02, gt=0, lt=0.5, description="Probability that a test of skill, coverage or drift asks without a cause."
    )
    pause_hours: float = Field(
        24.0, ge=0, le=10_000, description="Hours after a retraining in which the worker asks for no other."
    )
    cutoffs: int = Field(60, ge=10, description="Newest cutoffs whose scores are tested; a third must be there.")
    window: int | None = Field(
        None, ge=10, description="Newest steps tested for drift; default two seasons or horizons, at least 48."
    )


class SearchRange(_Section):
    """Numbers a search may try; whole ones where the setting takes no others."""

    low: float = Field(description="Smallest value.")
    high: float = Field(description="Largest value.")
    log: bool = Field(False, description="Orders of magnitude are equally likely.")

    @model_validator(mode="after")
    def _bounds_ascend(self) -> "SearchRange":
        if self.low >= self.high:
            raise ValueError(f"low {self.low:g} is not below high {self.high:g}")
        if self.log and self.low <= 0:
            raise ValueError(f"log takes a low above 0, not {self.low:g}")
        return self


Choice = bool | int | float | str | None


def _kind_of_dimension(value: Any) -> str:  # noqa: ANN401  (what YAML gave, before validation)
    return "range" if isinstance(value, Mapping | SearchRange) else "list"


Dimension = Annotated[
    Annotated[SearchRange, Tag("range")]
    | Annotated[tuple[Choice, ...], Tag("list"), Field(min_length=1, max_length=100)],
    Discriminator(_kind_of_dimension),
]
"""What one setting may be: a range of numbers, or a list of values."""


class SearchConfig(_Section):
    """What `hindcast search` tries, to find better settings for one candidate."""

    candidate: str | None = Field(
        None, description="Whose settings are searched; default the first that is trained."
    )
    trials: int = Field(30, ge=1, le=100_000, description="Trials to finish; a search that was stopped goes on.")
    max_seconds: float | None = Field(
        None, gt=0, description="No trial is begun later than this; every call has it anew. Default none."
    )
    seed: int = Field(1, ge=0, le=2**31 - 1, description="Same seed, same data, same trials on a CPU.")
    space: dict[str, Dimension] | None = Field(
        None,
        min_length=1,
        description="What to try, by the name of a network or training field: a list of values, or low, high "
        "and log. Default by kind.",
    )


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
    covariates: CovariatesConfig = CovariatesConfig()
    prices: PriceColumns = PriceColumns()
    universe: UniverseConfig | None = None
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
    triggers: TriggersConfig | None = None
    online_intervals: bool = Field(
        True, description="Forecasts are issued with what the scores of those before taught of their intervals."
    )
    search: SearchConfig | None = None

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

    @field_validator("search")
    @classmethod
    def _search_fits(cls, search: SearchConfig | None, info: ValidationInfo) -> SearchConfig | None:
        if search is not None and "candidates" in info.data:
            searched_candidate(search, info.data["candidates"])
        return search

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

    @model_validator(mode="after")
    def _networks_fit_the_rest(self) -> "JobConfig":
        for candidate in self.candidates:
            network = candidate.network
            if isinstance(network, Trained):
                try:
                    self.training_of(candidate).loss_for(network.head)
                except ValueError as error:
                    raise ValueError(f"candidate {candidate.name!r}: {error}") from error
            by_series = isinstance(network, SegmentSpec) and network.scale == "series"
            if by_series and "unique_id" not in self.covariates.static:
                raise ValueError(
                    f"candidate {candidate.name!r}: scale: series takes unique_id among the static covariates"
                )
        return self

    @model_validator(mode="after")
    def _volatility_is_that_of_returns(self) -> "JobConfig":
        told = (*self.covariates.past, *self.covariates.ranges)
        ranges = [name for name in told if name in (*VARIANCE_COLUMNS, *RETURN_COLUMNS)]
        for candidate in self.candidates:
            if not isinstance(candidate.network, VolatilitySpec):
                continue
            if self.training_of(candidate).truncation is not None:
                raise ValueError(
                    f"candidate {candidate.name!r}: truncation is for rnn, gru and lstm, which carry a state; "
                    f"give this one training: {{truncation: null}}"
                )
            if ranges and self.target.transform != "log_return":
                raise ValueError(
                    f"candidate {candidate.name!r}: {ranges[0]} is of log returns in percent, as the target must "
                    f"be; use target: {{transform: log_return}}"
                )
        return self

    @model_validator(mode="after")
    def _prices_are_not_mistaken_for_the_target(self) -> "JobConfig":
        # The target's column is called y from the source on.
        others = [name for name in self.prices.by_price.values() if name != self.target.column]
        if self.covariates.ranges and TARGET_COLUMN in others:
            raise ValueError(f"prices: the column {TARGET_COLUMN!r} can be one only if it is the target")
        return self

    @model_validator(mode="after")
    def _close_is_that_of_an_exchange(self) -> "JobConfig":
        if self.schedule and self.schedule.after_close and self.session_calendar is None:
            raise ValueError("schedule.after_close takes an exchange: name one in schedule.sessions, such as XNYS")
        return self

    @model_validator(mode="after")
    def _evaluation_fits_the_rest(self) -> "JobConfig":
        told = self.evaluation
        if told.rivals and self.target.transform != "log_return":
            raise ValueError("evaluation.rivals forecast returns: they take target.transform log_return")
        if told.refit_every is None:
            return self
        if told.embargo is not None and told.embargo < self.horizon:
            raise ValueError(
                f"evaluation.embargo is {told.embargo}; with refit_every it takes the horizon of {self.horizon}"
            )
        warm = next((c.name for c in self.candidates if self.training_of(c).start == "warm"), None)
        if warm is not None:
            raise ValueError(
                f"candidate {warm!r} starts warm, and the champion has learned from what earlier folds are tested "
                f"on; with evaluation.refit_every everything starts from scratch"
            )
        return self

    def digest(self) -> str:
        """Return the SHA-256 of all that has a part in what is trained: neither the schedule nor the search."""
        content = self.model_dump_json(exclude={"schedule", "search"})
        return hashlib.sha256(content.encode()).hexdigest()

    def training_of(self, candidate: Candidate) -> TrainingConfig:
        """Return the training settings in force for a candidate."""
        return TrainingConfig.model_validate({**self.training.model_dump(), **candidate.training})

    @property
    def prices_told(self) -> PriceColumns | None:
        """Return the columns range features are made of, as a forecaster knows them; None where there are none."""
        if not self.covariates.ranges:
            return None
        columns = self.prices.by_price.items()
        target = self.target.column
        return PriceColumns(**{price: TARGET_COLUMN if name == target else name for price, name in columns})

    @property
    def season(self) -> int:
        """Return the season in force, in steps."""
        return self.season_length or parse_freq(self.freq).season_length

    @property
    def step_size(self) -> int:
        """Return the steps between two cutoffs of the backtest."""
        return self.evaluation.step_size or self.horizon

    @property
    def embargo(self) -> int:
        """Return the steps kept unused before the first cutoff of a fold."""
        told = self.evaluation
        return (0 if told.refit_every is None else self.horizon) if told.embargo is None else told.embargo

    @property
    def session_calendar(self) -> str | None:
        """Return the exchange whose sessions the schedule follows, if any."""
        named = self.schedule.sessions if self.schedule else None
        return named or (self.freq if isinstance(parse_freq(self.freq), Sessions) else None)

    def network_of(self, candidate: Candidate) -> NetworkSpec:
        """Return a candidate's network, an ensemble of it where several members are asked for."""
        members, network = self.training_of(candidate).members, candidate.network
        if members == 1 or not isinstance(network, Trained):
            return network
        return EnsembleSpec(n_members=members, member=network)

    def spec_of(self, network: NetworkSpec, covariates: CovariatesSpec | None = None) -> ForecasterSpec:
        """Return the whole spec of a forecaster of this job; baselines are told nothing but the history."""
        return ForecasterSpec(
            name=self.name,
            freq=self.freq,
            season_length=self.season,
            horizon=self.horizon,
            level=self.level,
            quantiles=quantiles_for(self.level, self.target.transform),
            transform=self.target.transform,
            covariates=covariates or CovariatesSpec(),
            network=network,
        )


def searched_candidate(search: SearchConfig, candidates: tuple[Candidate, ...]) -> Candidate:
    """Return the candidate a search is for.

    Raises:
        ValueError: there is none of that name that is trained, or the space does not fit it; the message names
            the field.
    """
    trained = {c.name: c for c in candidates if isinstance(c.network, Trained)}
    if not trained or search.candidate not in (None, *trained):
        there = ", ".join(trained) or "none"
        raise ValueError(f"candidate {search.candidate or ''!r} is none that is trained; there is {there}")
    candidate = trained[search.candidate] if search.candidate else next(iter(trained.values()))
    for name, dimension in (search.space or {}).items():
        try:
            setting_values(candidate, name, dimension)
        except ValueError as error:
            raise ValueError(f"space.{name}: {error}") from error
    return candidate


def setting_values(candidate: Candidate, name: str, dimension: Dimension) -> tuple[Choice, ...]:
    """Return the values of a list, or the bounds of a range, as the candidate's setting takes them.

    Raises:
        ValueError: the candidate has no such setting, or it does not take one of the values.
    """
    network = type(candidate.network).model_fields
    settings = {**network, **TrainingConfig.model_fields}
    # A seed that did well was lucky, candidates share one device, trials start from scratch, on all series.
    searchable = [setting for setting in settings if setting not in ("seed", "device", "start", "partitions")]
    if name not in searchable:
        raise ValueError(f"{candidate.network.kind} has no such setting to search; it has {', '.join(searchable)}")
    taken: TypeAdapter[Choice] = TypeAdapter(
        settings[name].rebuild_annotation(), config=ConfigDict(allow_inf_nan=False)
    )
    ranged = isinstance(dimension, SearchRange)
    given = (dimension.low, dimension.high) if isinstance(dimension, SearchRange) else dimension
    try:
        values = tuple(taken.validate_python(value) for value in given)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{first['input']!r}: {first['msg']}") from error
    if ranged and any(isinstance(value, bool) or not isinstance(value, int | float) for value in values):
        raise ValueError("is not a number; give a list of values")
    if len(set(map(repr, values))) < len(values):
        raise ValueError("a value is there twice")
    if name == "input_size" and 1 in values:
        raise ValueError("1: a window of one value has no scale, 2 have")
    return values


SCALED_KINDS = ("ridge", "mlp", "rnn", "gru", "lstm", "segment_rnn", "segment_gru", "segment_lstm")


def _spread(item: Any, returns: bool, taken: set[str]) -> Any:  # noqa: ANN401
    if not isinstance(item, dict) or "network" in item:
        return item
    network = {key: value for key, value in item.items() if key not in ("name", "training")}
    if returns and network.get("kind") in SCALED_KINDS:
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
