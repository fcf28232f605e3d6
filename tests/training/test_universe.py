"""Membership by date, from a file a person writes."""

from pathlib import Path

import pandas as pd
import pytest

from forecasting.errors import SourceError
from training.universe import load_universe


def write(folder: Path, text: str) -> Path:
    path = folder / "members.csv"
    path.write_text(text)
    return path


def test_a_member_is_one_from_its_start_to_the_day_before_its_end(tmp_path: Path) -> None:
    universe = load_universe(
        write(tmp_path, "unique_id,start,end\nA,2012-01-03,2012-06-01\nA,2013-01-02,\nB,2012-05-01,2012-05-03\n")
    )
    rows = [
        ("A", "2012-01-02", False),
        ("A", "2012-01-03", True),
        ("A", "2012-05-31", True),
        ("A", "2012-06-01", False),
        ("A", "2013-01-02", True),
        ("A", "2049-12-31", True),
        ("B", "2012-05-02", True),
        ("B", "2012-05-03", False),
        ("C", "2012-05-02", False),
    ]
    names, days, expected = zip(*rows, strict=True)
    found = universe.are_members(pd.Series(names), pd.DatetimeIndex(days).as_unit("us"))
    assert found.tolist() == list(expected)


def test_one_spell_may_follow_the_other_at_once(tmp_path: Path) -> None:
    universe = load_universe(write(tmp_path, "unique_id,start,end\nA,2012-03-01,\nA,2012-01-03,2012-03-01\n"))
    assert [spell.line for spell in universe.spells["A"]] == [3, 2]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("unique_id,start\nA,2012-01-03\n", "has no column end; it takes unique_id, start, end"),
        ("unique_id,start,end\n", "has no rows"),
        ("unique_id,start,end\n ,2012-01-03,\n", "line 2: a row has no unique_id"),
        ("unique_id,start,end\nA,03.01.2012,\n", r"line 2: start '03.01.2012' is no date such as 2012-06-29"),
        ("unique_id,start,end\nA,,\n", "line 2: start '' is no date"),
        ("unique_id,start,end\nA,2012-01-03,soon\n", "line 2: end 'soon' is no date"),
        (
            "unique_id,start,end\nA,2012-01-03,2012-01-03\n",
            "line 2: 'A' starts at 2012-01-03 and ends at 2012-01-03",
        ),
        (
            "unique_id,start,end\nA,2012-01-03,\nB,2012-01-03,\nA,2013-01-02,2013-02-01\n",
            "line 4: 'A' is a member from 2013-01-02, and was one already by line 2",
        ),
    ],
)
def test_a_row_that_makes_no_sense_is_refused_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        load_universe(write(tmp_path, text))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"cannot read the universe .*members\.csv"):
        load_universe(tmp_path / "members.csv")


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "members.csv").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(SourceError, match="is no CSV file in UTF-8"):
        load_universe(tmp_path / "members.csv")


def test_names_that_are_not_in_the_data_are_found_with_their_line(tmp_path: Path) -> None:
    universe = load_universe(write(tmp_path, "unique_id,start,end\nA,2012-01-03,\nAAPL,2012-01-03,\n"))
    (problem,) = universe.find_unknown(["A", "B"]).values()
    assert problem.endswith("members.csv line 3: there is no series 'AAPL'")
