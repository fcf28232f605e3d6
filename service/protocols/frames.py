"""A long frame as MLflow's clients send it -> typed series: JSON in one of four forms, or CSV."""

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from forecasting.spec import CovariatesSpec
from service.problems import BAD_REQUEST, FieldError, ProblemError, refuse
from service.protocols.asking import MOST_COMPLAINTS, read_json, refuse_field
from service.protocols.schemas import ScoringRequest, ScoringSplit
from service.schemas import SeriesHistory
from service.settings import ServiceSettings

Frame = Mapping[str, Sequence[Any]]
"""By column one value a row; columns of one length."""

FORMS = ("dataframe_split", "dataframe_records", "instances", "inputs")
NEEDED = ("unique_id", "ds", "y")

MOST_COLUMNS = 1024

MISSING = frozenset({"", "NaN", "nan", "NA", "N/A", "n/a", "null", "NULL", "None", "<NA>"})
"""What stands for a missing value in CSV, as pandas has it."""


def read_frame(
    body: bytes, *, is_csv: bool, known: CovariatesSpec, max_values: int
) -> tuple[Frame, list[float] | None]:
    """Return the columns of a frame that a model takes, and the levels asked for.

    Raises:
        ProblemError: the body holds no frame.
    """
    statics = [static.name for static in known.static if static.name != "unique_id"]
    wanted = [*NEEDED, *known.past_taken, *known.future, *statics]
    if is_csv:
        texts = _read_csv(body, wanted)
        return {name: _parse_column(name, texts[name], (*NEEDED[:2], *statics)) for name in texts}, None
    asked = read_json(body, ScoringRequest)
    level = None if asked.params is None else asked.params.level
    return _require_frame(_find_columns(asked, wanted, max_values)), level


def _find_columns(asked: ScoringRequest, wanted: Sequence[str], max_values: int) -> dict[str, Sequence[Any]]:
    sent = [form for form in FORMS if getattr(asked, form) is not None]
    if len(sent) != 1:
        detail = f"send exactly one of {', '.join(FORMS)}; got {', '.join(sent) or 'none'}"
        raise ProblemError(BAD_REQUEST, detail)
    if asked.dataframe_split is not None:
        return _columns_of_rows(asked.dataframe_split, wanted)
    if asked.inputs is not None:
        return {name: asked.inputs[name] for name in wanted if name in asked.inputs}
    records = asked.dataframe_records or asked.instances or []
    sent_names: set[str] = set().union(*records)
    there = [name for name in wanted if name in sent_names]
    if len(records) * len(there) > max_values:
        detail = f"{len(records)} records of {len(there)} columns; at most {max_values} values"
        raise refuse_field("", f"{detail}: send fewer rows")
    return {name: [record.get(name) for record in records] for name in there}


def _columns_of_rows(split: ScoringSplit, wanted: Sequence[str]) -> dict[str, Sequence[Any]]:
    for i, row in enumerate(split.data):
        if len(row) != len(split.columns):
            detail = f"row {i} has {len(row)} values, and there are {len(split.columns)} columns"
            raise refuse_field(f"dataframe_split.data[{i}]", detail)
    _refuse_twice(split.columns, wanted)
    at = {name: split.columns.index(name) for name in wanted if name in split.columns}
    return {name: [row[c] for row in split.data] for name, c in at.items()}


def _read_csv(body: bytes, wanted: Sequence[str]) -> Mapping[str, Sequence[str]]:
    try:
        rows = list(csv.reader(io.StringIO(body.decode("utf-8-sig"))))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ProblemError(BAD_REQUEST, f"the body is not CSV in UTF-8: {error}") from None
    rows = [row for row in rows if row]
    columns = rows[0] if rows else []
    if len(columns) > MOST_COLUMNS:
        raise refuse_field("", f"{len(columns)} columns; at most {MOST_COLUMNS}")
    split = ScoringSplit.model_construct(columns=columns, data=rows[1:])
    return _require_frame(_columns_of_rows(split, wanted))


def _parse_column(name: str, texts: Sequence[str], names: Sequence[str]) -> Sequence[Any]:
    if name in names:
        return [None if text in MISSING else text for text in texts]
    return [None if text in MISSING else _parse_number(name, i, text) for i, text in enumerate(texts)]


def _parse_number(name: str, row: int, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise refuse_field(f"{name}[{row}]", f"{name} of row {row} is {text[:40]!r}, no number") from None


def _refuse_twice(columns: Sequence[str], wanted: Sequence[str]) -> None:
    for name in wanted:
        if columns.count(name) > 1:
            raise refuse_field(name, f"the frame has the column {name!r} twice")


def _require_frame(columns: dict[str, Sequence[Any]]) -> dict[str, Sequence[Any]]:
    absent = [name for name in NEEDED if name not in columns]
    if absent:
        raise refuse_field("", f"the frame has no column {', '.join(absent)}; it needs {', '.join(NEEDED)}")
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise refuse_field("inputs", f"columns differ in length: {lengths}")
    if not lengths["y"]:
        raise refuse_field("", "the frame has no row")
    return columns


def build_series(frame: Frame, known: CovariatesSpec, settings: ServiceSettings) -> list[SeriesHistory]:
    """Return the series of a frame, by name, as the registered model sorts them.

    Raises:
        ProblemError: there are too many, or one of them is none; the first are named.
    """
    rows_of: dict[str, list[int]] = {}
    for i, name in enumerate(frame["unique_id"]):
        if not isinstance(name, str) or not name.strip():
            raise refuse_field(f"unique_id[{i}]", f"unique_id of row {i} is no name")
        rows_of.setdefault(name, []).append(i)
    if len(rows_of) > settings.max_series:
        raise refuse_field("", f"{len(rows_of)} series in one request; at most {settings.max_series}")
    errors: list[FieldError] = []
    found = [_build_one(name, rows_of[name], frame, known, errors) for name in sorted(rows_of)]
    if errors:
        raise refuse(errors)
    return [series for series in found if series is not None]


def _build_one(
    name: str, rows: Sequence[int], frame: Frame, known: CovariatesSpec, errors: list[FieldError]
) -> SeriesHistory | None:
    def pick(columns: Iterable[str], of: Callable[[Sequence[Any]], Any]) -> dict[str, Any] | None:
        return {c: of([frame[c][i] for i in rows]) for c in columns if c in frame} or None

    statics = (static.name for static in known.static if static.name != "unique_id")
    content = {
        "unique_id": name,
        "ds": [frame["ds"][i] for i in rows],
        "y": [_no_nan(frame["y"][i]) for i in rows],
        "past": pick(known.past_taken, _without_nan),
        "future": pick(known.future, _without_nan),
        "static": pick(statics, lambda labels: _only_label(name, labels, errors)),
    }
    try:
        return SeriesHistory.model_validate(content)
    except ValidationError as error:
        for one in error.errors(include_url=False, include_input=False, include_context=False)[:MOST_COMPLAINTS]:
            path = ".".join(str(part)[:64] for part in one["loc"])
            errors.append(
                FieldError(path=path, unique_id=name[:256], detail=f"{path} of series {name[:64]!r}: {one['msg']}")
            )
        return None


def _no_nan(value: object) -> object:
    return None if isinstance(value, float) and value != value else value


def _without_nan(values: Sequence[Any]) -> list[Any]:
    return [_no_nan(value) for value in values]


def _only_label(series: str, labels: Sequence[Any], errors: list[FieldError]) -> str:
    """Return the one name a series has in a static column, empty for none."""
    told = {label for label in labels if isinstance(label, str) and label.strip()}
    if len(told) > 1:
        detail = f"series {series[:64]!r} has two names in a static column"
        errors.append(FieldError(path="", unique_id=series[:256], detail=detail))
    return min(told, default="")
