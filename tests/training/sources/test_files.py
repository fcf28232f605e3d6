"""CSV and Parquet: the same rows however they are laid out, and a clear word about the rows that are not."""

import gzip
from collections.abc import Callable
from datetime import date
from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from forecasting.errors import PanelError, SourceError
from forecasting.panel import Columns, build_panel
from training.sources import AnySource, SourceContext
from training.sources.wall_clock import read_timestamps

LONG = "unique_id,ds,y\npump-7,2024-01-01,1.5\npump-7,2024-01-02,\nvalve,2024-01-01,3\n"
NAN = float("nan")

Load = Callable[..., pd.DataFrame]


@pytest.fixture
def notes() -> list[str]:
    return []


@pytest.fixture
def load(tmp_path: Path, notes: list[str]) -> Load:
    """Write files, by name and text, and load what the settings say of them."""

    def load_files(files: dict[str, str | bytes], names: tuple[str, ...] = (), **config: object) -> pd.DataFrame:
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(text.encode() if isinstance(text, str) else text)
        source = TypeAdapter(AnySource).validate_python(
            {"kind": "csv", "path": next(iter(files), "no.csv")} | config
        )
        return source.load(SourceContext(tmp_path, tmp_path / "cache", notes.append, names))

    return load_files


def _parquet(columns: dict[str, object]) -> bytes:
    sink = pa.BufferOutputStream()
    pyarrow.parquet.write_table(pa.table(columns), sink)
    return bytes(sink.getvalue())


def _rows(frame: pd.DataFrame) -> list[tuple[object, ...]]:
    told = frame.assign(ds=[str(ds) for ds in frame["ds"]]).astype(object)
    return [tuple(None if value != value else value for value in row) for row in told.to_numpy().tolist()]


EXPECTED = [
    ("pump-7", "2024-01-01 00:00:00", 1.5),
    ("pump-7", "2024-01-02 00:00:00", None),
    ("valve", "2024-01-01 00:00:00", 3.0),
]


# Long and wide, one file and many


def test_a_long_csv_needs_no_settings(load: Load) -> None:
    frame = load({"data.csv": LONG})
    assert list(frame.columns) == ["unique_id", "ds", "y"]
    assert _rows(frame) == EXPECTED


def test_columns_are_found_by_the_names_they_have_in_the_file(load: Load) -> None:
    text = "when; sensor ;value;note\n2024-01-01;pump-7;1,5;ok\n2024-01-02;pump-7;;lost\n2024-01-01;valve;3;ok\n"
    columns = {"unique_id": "sensor", "ds": "when", "y": "value"}
    assert _rows(load({"data.csv": text}, columns=columns, separator=";", decimal=",")) == EXPECTED


def test_all_other_columns_are_values_when_none_is_named(load: Load) -> None:
    frame = load({"data.csv": "time,flow,heat,state\n2024-01-01,1,2,on\n"}, columns={"ds": "time"})
    assert list(frame.columns) == ["unique_id", "ds", "flow", "heat", "state"]
    assert frame.iloc[0].tolist() == ["data", pd.Timestamp("2024-01-01"), 1.0, 2.0, "on"]


TOLD = (
    "unique_id,ds,y,ambient,plan,place\n"
    "a,2024-01-01,1,10,5,007\na,2024-01-02,,,6,\nb,2024-01-01,2,NA,5,12\nb,2024-01-02,3,30,5,12\n"
)
COVARIATES = Columns(past=("ambient",), future=("setpoint",), static=("site",))


@pytest.mark.parametrize("columns", [{}, {"y": "y", "ambient": "ambient"}], ids=["all", "named"])
def test_covariates_reach_the_panel(load: Load, columns: dict[str, str]) -> None:
    columns = columns and {**columns, "setpoint": "plan", "site": "place"}
    text = TOLD if columns else TOLD.replace("plan,place", "setpoint,site")
    panel = build_panel(load({"data.csv": text}, ("site",), columns=columns), "D", columns=COVARIATES)
    np.testing.assert_array_equal(panel.past_NTP[..., 0], [[10, NAN], [NAN, 30]])
    assert panel.future_NUF[..., 0].tolist() == [[5, 6], [5, 5]]
    assert panel.static == {"site": ("007", "12")}


def test_names_in_a_column_that_is_not_said_to_hold_names_lose_their_zeros(load: Load) -> None:
    text = TOLD.replace("plan,place", "setpoint,site")
    assert build_panel(load({"data.csv": text}), "D", columns=COVARIATES).static == {"site": ("7", "12")}


def test_covariates_of_a_parquet_file_reach_the_panel(load: Load) -> None:
    table = {"unique_id": ["a", "a"], "ds": ["2024-01-01", "2024-01-02"], "y": [1.0, None]}
    told = {"ambient": [10, 20], "setpoint": [5.0, 6.0], "site": ["007", None]}
    frame = load({"data.parquet": _parquet(table | told)}, ("site",), kind="parquet")
    panel = build_panel(frame, "D", columns=COVARIATES)
    assert panel.future_NUF[..., 0].tolist() == [[5, 6]]
    assert panel.static == {"site": ("007",)}


def test_a_file_without_names_is_one_series_called_like_the_file(load: Load) -> None:
    files = {"in/pump-7.csv": "ds,y\n2024-01-01,1\n", "in/valve.csv.gz": gzip.compress(b"ds,y\n2024-01-01,2\n")}
    frame = load(files, path="in")
    assert frame[["unique_id", "y"]].to_numpy().tolist() == [["pump-7", 1], ["valve", 2]]


def test_a_wide_file_is_one_series_a_column(load: Load) -> None:
    text = "ds,pump-7,valve\n2024-01-01,1.5,3\n2024-01-02,,4\n"
    assert _rows(load({"data.csv": text}, layout="wide")) == [*EXPECTED, ("valve", "2024-01-02 00:00:00", 4.0)]


def test_a_wide_file_can_be_cut_to_some_columns_under_other_names(load: Load) -> None:
    text = "time,a,b,c\n2024-01-01,1,2,3\n"
    frame = load({"data.csv": text}, layout="wide", columns={"ds": "time", "pump": "b", "valve": "c"})
    assert frame[["unique_id", "y"]].to_numpy().tolist() == [["pump", 2], ["valve", 3]]


def test_a_folder_is_all_its_files_of_the_kind(load: Load) -> None:
    day = "unique_id,ds,y\na,2024-01-0{},{}\n"
    files = {f"in/{n}.csv": day.format(n, n) for n in (2, 1)}
    frame = load({**files, "in/readme.txt": "no data", "in/.hidden.csv": "x", "in/sub/3.csv": "x"}, path="in")
    assert frame["y"].tolist() == [1, 2]


def test_a_glob_is_all_it_matches(load: Load, tmp_path: Path) -> None:
    day = "unique_id,ds,y\na,2024-01-0{},{}\n"
    files = {f"in/{folder}/{n}.csv": day.format(n, n) for folder, n in (("x", 1), ("y", 2), ("y", 3))}
    assert load(files, path="in/**/*.csv")["y"].tolist() == [1, 2, 3]
    assert load(files, path="in/y/*")["y"].tolist() == [2, 3]
    assert load(files, path=f"{tmp_path}/in/*/1.csv")["y"].tolist() == [1]


def test_a_path_with_brackets_in_its_name_is_a_file_and_no_glob(load: Load) -> None:
    assert len(load({"data[1].csv": LONG})) == 3


def test_parquet_keeps_its_types(load: Load) -> None:
    table = {
        "sensor": pa.array(["007", "007"]).dictionary_encode(),
        "time": pa.array([0, 3_600_000], pa.timestamp("ms", tz="Europe/Berlin")),
        "y": pa.array([Decimal("1.50"), None], pa.decimal128(5, 2)),
    }
    frame = load({"data.parquet": _parquet(table)}, kind="parquet", columns={"unique_id": "sensor", "ds": "time"})
    panel = build_panel(frame, "h")
    assert (panel.unique_ids, panel.y_NT.tolist()) == (("007",), [[1.5]])
    assert panel.ds[0] == pd.Timestamp("1970-01-01")


def test_parquet_reads_long_wide_folders_and_stored_indexes(load: Load, tmp_path: Path) -> None:
    days = pd.DatetimeIndex(["2024-01-01", "2024-01-02"], name="ds")
    (tmp_path / "in").mkdir()
    pd.DataFrame({"pump-7": [1.0, 2.0]}, index=days).to_parquet(tmp_path / "in/1.parquet")
    pd.DataFrame({"valve": [3.0, NAN]}, index=days).to_parquet(tmp_path / "in/2.parquet")
    frame = load({}, kind="parquet", path="in", layout="wide")
    assert frame["unique_id"].tolist() == ["pump-7", "pump-7", "valve", "valve"]
    np.testing.assert_array_equal(frame["y"], [1, 2, 3, NAN])


def test_dates_of_parquet_and_of_csv_are_the_same(load: Load) -> None:
    table = {"unique_id": ["a"], "ds": [date(2024, 1, 1)], "y": [1.0]}
    frame = load({"data.parquet": _parquet(table)}, kind="parquet")
    pd.testing.assert_frame_equal(frame, load({"a.csv": "unique_id,ds,y\na,2024-01-01,1\n"}), check_dtype=False)


# Values


def test_names_stay_text(load: Load) -> None:
    frame = load({"data.csv": "unique_id,ds,y\n007,2024-01-01,1\nNA,2024-01-01,2\n1e3,2024-01-01,3\n"})
    assert frame["unique_id"].tolist() == ["007", "NA", "1e3"]


def test_usual_and_named_texts_are_missing(load: Load) -> None:
    rows = "".join(
        f"a,2024-01-0{n},{text}\n" for n, text in enumerate(["", "NA", "null", " NaN ", "-999", "5"], 1)
    )
    frame = load({"data.csv": "unique_id,ds,y\n" + rows}, missing=["-999"])
    assert frame["y"].tolist()[-1] == 5
    assert frame["y"].isna().tolist() == [True] * 5 + [False]


@pytest.mark.parametrize(("decimal", "number"), [(".", "1.5"), (",", "1,5")])
def test_text_among_numbers_leaves_the_other_series_alone(load: Load, decimal: str, number: str) -> None:
    text = f"unique_id;ds;y\ngood;2024-01-01;{number}\nbad;2024-01-01;broken\ngood;2024-01-02;\n"
    frame = load({"data.csv": text}, separator=";", decimal=decimal)
    with pytest.raises(PanelError, match="series 'bad' holds 'broken' at 2024-01-01, which is not a number"):
        build_panel(frame, "D")
    assert build_panel(frame, "D", bad_series="drop").y_NT.tolist() == [[1.5]]


def test_a_sign_for_thousands_is_refused(load: Load) -> None:
    text = "ds;y\n2024-01-01;1,5\n2024-01-02;1.234\n"
    with pytest.raises(SourceError, match=r"data.csv: '1.234' in column 'y' has a point, but the decimal sign"):
        load({"data.csv": text}, separator=";", decimal=",")
    with pytest.raises(PanelError, match=r"'1,234\.5'"):
        build_panel(load({"data.csv": 'ds,y\n2024-01-01,1\n2024-01-02,"1,234.5"\n'}), "D")


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "utf-16"])
def test_other_encodings_are_read_when_named(load: Load, encoding: str) -> None:
    text = "unique_id,ds,y\nKühlung,2024-01-01,1\n"
    assert load({"data.csv": text.encode(encoding)}, encoding=encoding)["unique_id"].tolist() == ["Kühlung"]


def test_marks_line_ends_quotes_and_blank_lines_do_not_matter(load: Load) -> None:
    text = b'\xef\xbb\xbf\r\n"unique_id",ds,y\r\n\r\n"pump, 7",2024-01-01,"1.5"\r\n'
    assert _rows(load({"data.csv": text})) == [("pump, 7", "2024-01-01 00:00:00", 1.5)]


# Faults, named


def test_a_missing_file_is_named(load: Load) -> None:
    with pytest.raises(SourceError, match=r"nowhere.csv: no such file"):
        load({}, path="nowhere.csv")
    with pytest.raises(SourceError, match=r"in/\*.csv: no such file"):
        load({"in/a.txt": "x"}, path="in/*.csv")
    with pytest.raises(SourceError, match=r"no .csv or .csv.gz file in this folder"):
        load({"in/a.txt": "x"}, path="in")


def test_a_missing_column_is_named_with_those_there_are(load: Load) -> None:
    with pytest.raises(SourceError, match=r"data.csv has no column 'ds'; it has 'time', 'y'"):
        load({"data.csv": "time,y\n2024-01-01,1\n"})
    with pytest.raises(SourceError, match=r"data.csv has no column 'value' \(columns: y\); it has 'ds', 'y'"):
        load({"data.csv": "ds,y\n2024-01-01,1\n"}, columns={"y": "value"})
    with pytest.raises(SourceError, match=r"data.csv has no column of values beside 'unique_id', 'ds'"):
        load({"data.csv": "unique_id,ds\na,2024-01-01\n"})


def test_a_column_that_comes_twice_is_named(load: Load) -> None:
    with pytest.raises(SourceError, match="more than one column 'y'"):
        load({"data.csv": "ds,y,y\n2024-01-01,1,2\n"})
    with pytest.raises(SourceError, match="has a column 'ds' beside the one mapped to it"):
        load({"data.csv": "ds,time,y\n1,2024-01-01,2\n"}, columns={"ds": "time"})


@pytest.mark.parametrize("text", ["", "\n\n", "unique_id,ds,y\n"])
def test_an_empty_file_is_named(load: Load, text: str) -> None:
    with pytest.raises(SourceError, match=r"no rows in .*data.csv"):
        load({"data.csv": text})


def test_an_empty_file_among_others_is_noted(load: Load, notes: list[str]) -> None:
    assert len(load({"in/a.csv": LONG, "in/b.csv": "", "in/c.csv": "unique_id,ds,y\n"}, path="in")) == 3
    assert [note.rsplit("/", 1)[1] for note in notes] == ["b.csv holds no rows", "c.csv holds no rows"]


@pytest.mark.parametrize(
    ("row", "fields"), [("pump-7,2024-01-04", 2), ("pump-7,2024-01-04,1,2", 4), ("pump-7;2024-01-04;1", 1)]
)
def test_a_malformed_row_is_named_by_file_and_line(load: Load, row: str, fields: int) -> None:
    text = f'unique_id,ds,y\n\n"a\nb",2024-01-03,1\n{row}\npump-7,2024-01-05,1\n'
    with pytest.raises(SourceError, match=rf"data.csv line 5: {fields} fields; the header has 3"):
        load({"data.csv": text})


def test_a_wrong_encoding_is_named(load: Load) -> None:
    with pytest.raises(SourceError, match=r"data.csv is not encoded as utf-8; set encoding"):
        load({"data.csv": "unique_id,ds,y\nKühlung,2024-01-01,1\n".encode("latin-1")})


@pytest.mark.parametrize("name", ["data.csv.gz", "data.parquet"])
def test_a_damaged_file_is_named(load: Load, name: str) -> None:
    kind = "parquet" if name.endswith("parquet") else "csv"
    for content in (b"", b"not what it says", gzip.compress(LONG.encode())[:-9]):
        with pytest.raises(SourceError, match=name):
            load({name: content}, kind=kind)


def test_a_row_without_a_name_is_refused(load: Load) -> None:
    with pytest.raises(SourceError, match="a row has no unique_id"):
        load({"data.csv": "unique_id,ds,y\n,2024-01-01,1\n"})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("path", ""),
        ("layout", "tall"),
        ("timezone", "Europe/Atlantis"),
        ("timezone", "../etc/passwd"),
        ("encoding", "klingon"),
        ("separator", ";;"),
        ("decimal", "'"),
        ("columns", {"y": "a", "ds": "a"}),
        ("column", {"y": "a"}),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused(load: Load, field: str, value: object) -> None:
    with pytest.raises(ValidationError, match=field):
        load({"data.csv": LONG}, **{field: value})


def test_a_wide_file_has_no_column_of_names(load: Load) -> None:
    with pytest.raises(ValidationError, match="a wide file has no unique_id column"):
        load({"data.csv": LONG}, layout="wide", columns={"unique_id": "sensor"})


# Time


def _csv(*times: str, name: str = "pump-7") -> dict[str, str | bytes]:
    return {"data.csv": "unique_id,ds,y\n" + "".join(f"{name},{time},{n}\n" for n, time in enumerate(times))}


def _instants(frame: pd.DataFrame) -> list[str]:
    return [str(ds.tz_convert(None)) for ds in frame["ds"]]


@pytest.mark.parametrize(
    ("times", "timestamp_format"),
    [
        (["2024-01-31", "2024-02-01"], None),
        (["20240131", "20240201"], None),
        (["31.01.2024", "01.02.2024"], "%d.%m.%Y"),
        (["01/31/24", "02/01/24"], "%m/%d/%y"),
    ],
)
def test_dates_are_read_as_they_are_said_to_be_written(
    load: Load, times: list[str], timestamp_format: str | None
) -> None:
    frame = load(_csv(*times), timestamp_format=timestamp_format)
    assert [str(ds) for ds in frame["ds"]] == ["2024-01-31 00:00:00", "2024-02-01 00:00:00"]


@pytest.mark.parametrize(("unit", "factor"), [("s", 1), ("ms", 1e3), ("us", 1e6), ("ns", 1e9)])
def test_numbers_since_1970_are_instants(load: Load, unit: str, factor: float) -> None:
    moment = int(pd.Timestamp("2024-01-31T05:00", tz="UTC").timestamp() * factor)
    from_csv = load(_csv(str(moment)), timestamp_format=f"epoch_{unit}")
    table = {"unique_id": ["a"], "ds": [moment], "y": [1.0]}
    from_parquet = load({"a.parquet": _parquet(table)}, kind="parquet", timestamp_format=f"epoch_{unit}")
    assert _instants(from_csv) == _instants(from_parquet) == ["2024-01-31 05:00:00"]


def test_compact_dates_stored_as_numbers_are_read_when_said_so(load: Load) -> None:
    table = {"unique_id": ["a"], "ds": [20240131], "y": [1.0]}
    frame = load({"a.parquet": _parquet(table)}, kind="parquet", timestamp_format="%Y%m%d")
    assert frame["ds"].tolist() == [pd.Timestamp("2024-01-31")]


@pytest.mark.parametrize("time", ["31.01.2024", "01/02/2024", "1612122400", "202401", "soon", "now", "2024-02-30"])
def test_a_timestamp_is_never_guessed_and_named_with_its_series(load: Load, time: str) -> None:
    with pytest.raises(SourceError, match=rf"series 'pump-7': the timestamp '{time}' is not in ISO 8601"):
        load(_csv("2024-01-01", time))


def test_a_timestamp_unlike_its_format_is_named_with_its_series(load: Load) -> None:
    with pytest.raises(SourceError, match=r"'pump-7': the timestamp '2024-01-31' is not of the form %d.%m.%Y"):
        load(_csv("31.01.2024", "2024-01-31"), timestamp_format="%d.%m.%Y")
    with pytest.raises(SourceError, match=r"'pump-7': the timestamp 'x' is not seconds since 1970"):
        load(_csv("1706659200", "x"), timestamp_format="epoch_s")


def test_numbers_without_a_format_are_refused(load: Load) -> None:
    table = {"unique_id": ["a"], "ds": [1706659200], "y": [1.0]}
    with pytest.raises(SourceError, match=r"timestamps are numbers, such as 1706659200; give timestamp_format"):
        load({"a.parquet": _parquet(table)}, kind="parquet")


def test_an_empty_timestamp_is_left_to_the_panel_to_refuse_by_series(load: Load) -> None:
    frame = load(_csv("2024-01-01", ""))
    with pytest.raises(PanelError, match="series 'pump-7' has 1 row without a timestamp"):
        build_panel(frame, "D")


def test_offsets_in_the_file_make_instants_whatever_their_number(load: Load) -> None:
    assert _instants(load(_csv("2024-01-31T05:00Z", "2024-01-31T06:00Z"))) == [
        "2024-01-31 05:00:00",
        "2024-01-31 06:00:00",
    ]
    assert _instants(load(_csv("2024-03-31T01:00+01:00", "2024-03-31T03:00+02:00"))) == [
        "2024-03-31 00:00:00",
        "2024-03-31 01:00:00",
    ]


def test_an_offset_on_only_some_timestamps_is_refused(load: Load) -> None:
    with pytest.raises(SourceError, match="'pump-7': 2024-01-31T06:00 carries no UTC offset, and other"):
        load(_csv("2024-01-31T05:00+01:00", "2024-01-31T06:00", "2024-07-31T06:00+02:00"))


def test_days_with_offsets_are_days_of_the_zone_that_is_named(load: Load) -> None:
    times = ("2024-03-30T00:00+01:00", "2024-03-31T00:00+01:00", "2024-04-01T00:00+02:00")
    panel = build_panel(load(_csv(*times), timezone="Europe/Berlin"), "D")
    assert (panel.n_steps, panel.n_observed, str(panel.ds[0].date())) == (3, 3, "2024-03-30")


def test_wall_clock_times_become_instants_of_their_zone(load: Load) -> None:
    frame = load(_csv("2024-03-31 01:00", "2024-03-31 03:00", "2024-03-31 04:00"), timezone="Europe/Berlin")
    assert build_panel(frame, "h").y_NT.tolist() == [[0, 1, 2]]
    assert _instants(frame)[0] == "2024-03-31 00:00:00"


def test_a_wall_clock_time_that_was_skipped_is_named(load: Load) -> None:
    with pytest.raises(SourceError, match="series 'pump-7': 2024-03-31 02:00:00 does not exist in Europe/Berlin"):
        load(_csv("2024-03-31 01:00", "2024-03-31 02:00"), timezone="Europe/Berlin")


FOLD = ["2024-10-27 01:00", "2024-10-27 02:00", "2024-10-27 02:00", "2024-10-27 03:00"]


@pytest.mark.parametrize("newest_first", [False, True])
def test_an_hour_told_twice_is_told_apart_by_order(load: Load, newest_first: bool) -> None:
    frame = load(_csv(*(FOLD[::-1] if newest_first else FOLD)), timezone="Europe/Berlin")
    instants = [f"2024-10-{day}:00:00" for day in ("26 23", "27 00", "27 01", "27 02")]
    assert _instants(frame) == (instants[::-1] if newest_first else instants)


@pytest.mark.parametrize(
    "times",
    [
        ["2024-10-27 01:00", "2024-10-27 02:00", "2024-10-27 03:00"],
        ["2024-10-27 02:00", "2024-10-27 02:00", "2024-10-27 02:00"],
        ["2024-10-27 02:30", "2024-10-27 02:15", "2024-10-27 02:00", "2024-10-27 02:45"],
    ],
)
def test_an_hour_told_twice_that_order_does_not_tell_apart_is_named(load: Load, times: list[str]) -> None:
    with pytest.raises(SourceError, match=r"series 'pump-7': 2024-10-27 02:.* happened twice in Europe/Berlin"):
        load(_csv(*times), timezone="Europe/Berlin")


def test_each_series_and_each_year_has_a_fold_of_its_own(load: Load) -> None:
    nights = ["2023-10-29 02:00", "2023-10-29 02:00", "2024-10-27 02:00", "2024-10-27 02:00"]
    text = "unique_id,ds,y\n" + "".join(f"a,{night},1\nb,{night},1\n" for night in nights)
    frame = load({"data.csv": text}, timezone="Europe/Berlin")
    for name in ("a", "b"):
        assert _instants(frame[frame["unique_id"] == name]) == [
            "2023-10-29 00:00:00",
            "2023-10-29 01:00:00",
            "2024-10-27 00:00:00",
            "2024-10-27 01:00:00",
        ]


def test_dates_stay_dates_in_any_zone(load: Load) -> None:
    # In São Paulo the midnight of 4 November 2018 does not exist; the day does.
    frame = load(_csv("2018-11-03", "2018-11-04", "2018-11-05"), timezone="America/Sao_Paulo")
    assert build_panel(frame, "D").n_observed == 3


@settings(max_examples=40, deadline=None)
@given(
    st.datetimes(pd.Timestamp("2000-01-01"), pd.Timestamp("2037-01-01")),
    st.sampled_from(["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "America/Sao_Paulo", "UTC"]),
    st.sampled_from(["10min", "30min", "h"]),
)
def test_a_clock_on_the_wall_told_in_order_gives_the_instants_back(
    near: pd.Timestamp, zone: str, freq: str
) -> None:
    if zone == "Australia/Lord_Howe" and freq == "h":
        freq = "30min"  # its clocks move by half an hour: an hourly reading does not repeat, and order cannot tell
    instants = pd.date_range(pd.Timestamp(near).floor("h"), periods=9000, freq=freq, tz="UTC", unit="us")
    wall = pd.Series(instants.tz_convert(zone).tz_localize(None))
    names = pd.Series("pump-7", index=wall.index)
    assert pd.DatetimeIndex(read_timestamps(wall, names, timezone=zone)).tz_convert("UTC").equals(instants)


TRADED = (
    "unique_id,ds,Open,High,Low,Close,Volume,Dividends,Stock Splits\n"
    "one,2024-01-02,100,100,100,100,900,0,\n"
    "one,2024-01-03,50,50,50,50,1800,0,2\n"
    "one,2024-01-04,49,49,49,49,2000,1,\n"
)


def test_prices_of_a_file_are_adjusted_forwards(load: Load) -> None:
    frame = load({"data.csv": TRADED}, adjust="forward")
    assert frame["Close"].tolist() == pytest.approx([100, 100, 100])
    assert frame["Volume"].tolist() == [900, 900, 1000]
    assert frame["Factor"].tolist() == pytest.approx([1, 2, 2 / (1 - 1 / 50)])


def test_prices_divided_by_later_splits_are_adjusted_to_the_same(load: Load) -> None:
    expected = load({"data.csv": TRADED}, adjust="forward")
    quoted = TRADED.replace("100,100,100,100,900", "50,50,50,50,1800")
    frame = load({"data.csv": quoted}, adjust="forward", prices="split_adjusted")
    pd.testing.assert_frame_equal(frame, expected)


def test_columns_of_prices_may_have_other_names_in_the_file(load: Load) -> None:
    renamed = TRADED.replace("Stock Splits", "ratio").replace("Close", "last")
    columns = {"Close": "last", "Dividends": "Dividends", "Stock Splits": "ratio"}
    frame = load({"data.csv": renamed}, adjust="forward", columns=columns)
    assert frame["Close"].tolist() == pytest.approx([100, 100, 100])


def test_parquet_files_of_whole_numbers_are_adjusted_too(tmp_path: Path, load: Load) -> None:
    (tmp_path / "data.csv").write_text(TRADED)
    pd.read_csv(tmp_path / "data.csv").to_parquet(tmp_path / "data.parquet")
    frame = load({}, kind="parquet", path="data.parquet", adjust="forward")
    assert frame["Close"].tolist() == pytest.approx([100, 100, 100])


def test_a_file_without_actions_cannot_be_adjusted(load: Load) -> None:
    with pytest.raises(
        SourceError, match="takes the columns Close, Dividends, Stock Splits; there is no Dividends"
    ):
        load({"data.csv": "unique_id,ds,Close\none,2024-01-02,100\n"}, adjust="forward")
