"""The watched folder: every file once, whole or not at all, and bad ones with their reason."""

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from forecasting.errors import InputError, LedgerUnavailableError
from ledger.ingested import IngestedStore
from ledger.ledger import Ledger, open_ledger
from pipelines.cli import app
from pipelines.commands.feeding import parse_columns
from pipelines.folder import FileLayout, FolderWatch, read_rows
from pipelines.settings import PipelineSettings

GOOD = "unique_id,ds,y\npump-7,2024-03-01T00:00:00Z,1.5\npump-7,2024-03-01T01:00:00Z,2.5\n"


class Lines:
    """A reporter that remembers."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, line: str) -> None:
        self.said.append(line)

    def epoch(self, *args: object) -> None: ...

    def done(self, candidate: str) -> None: ...


class Watch(FolderWatch):
    """A watch whose time goes on with every look."""

    def __init__(
        self, folder: Path, ledger: Ledger, layout: FileLayout | None = None, seconds: float = 10.0
    ) -> None:
        self.now = 0.0
        self.seconds = seconds
        self.lines = Lines()
        super().__init__(folder, "plant", ledger, self.lines, layout, settle_seconds=2.0, clock=lambda: self.now)

    def look(self) -> int:
        self.now += self.seconds
        return super().look()


@pytest.fixture
def inbox(tmp_path: Path) -> Path:
    (tmp_path / "inbox").mkdir()
    return tmp_path / "inbox"


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with closing(open_ledger(f"sqlite:///{tmp_path}/ledger.db")) as opened:
        yield opened


def known(ledger: Ledger) -> list[float]:
    return ledger.observations.read("plant").value_R.tolist()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_a_file_is_taken_in_when_it_has_stood_still(inbox: Path, ledger: Ledger) -> None:
    watch = Watch(inbox, ledger, seconds=1.5)
    path = inbox / "a.csv"
    path.write_text(GOOD[:40])
    assert (watch.look(), known(ledger)) == (1, [])
    path.write_text(GOOD)
    assert (watch.look(), known(ledger)) == (1, []), "it has changed in between"
    assert (watch.look(), known(ledger)) == (1, [])
    assert (watch.look(), known(ledger)) == (0, [1.5, 2.5])
    assert (names(inbox), names(inbox / "done")) == (["done"], ["a.csv"])
    assert watch.lines.said == ["a.csv: 2 values new, 0 revised, 0 unchanged; 0 rows refused"]


@pytest.mark.parametrize("name", ["a.csv.tmp", "a.csv.part", ".a.csv", "_a.csv", "a.csv~"])
def test_a_file_under_another_name_is_still_being_written(inbox: Path, ledger: Ledger, name: str) -> None:
    watch = Watch(inbox, ledger)
    (inbox / name).write_text(GOOD)
    assert [watch.look() for _ in range(3)] == [0, 0, 0]
    assert names(inbox) == [name]
    (inbox / name).rename(inbox / "a.csv")
    watch.look()
    watch.look()
    assert known(ledger) == [1.5, 2.5]


def test_the_same_bytes_are_taken_in_once_whatever_they_are_called(inbox: Path, ledger: Ledger) -> None:
    watch = Watch(inbox, ledger)
    (inbox / "a.csv").write_text(GOOD)
    (inbox / "b.csv").write_text(GOOD)
    watch.look()
    watch.look()
    (inbox / "a.csv").write_text(GOOD.replace("2.5", "3.5"))
    watch.look()
    watch.look()
    assert known(ledger) == [1.5, 3.5]
    assert (watch.tally.done, watch.tally.known) == (2, 1)
    assert [name.split(".")[0] for name in names(inbox / "done")] == ["a", "a", "b"], "nothing is overwritten"
    assert "b.csv: taken in already, as a.csv at" in watch.lines.said[1]


def test_files_are_taken_in_in_the_order_they_were_written(inbox: Path, ledger: Ledger) -> None:
    for name, value, written in (("z.csv", "1.5", 100), ("a.csv", "9.5", 200)):
        (inbox / name).write_text(GOOD.replace("1.5", value))
        os.utime(inbox / name, (written, written))
    watch = Watch(inbox, ledger)
    watch.look()
    watch.look()
    assert known(ledger) == [9.5, 2.5]


def test_bad_rows_are_left_out_and_told(inbox: Path, ledger: Ledger) -> None:
    (inbox / "a.csv").write_text(GOOD + "pump-7,yesterday,1\npump-7,2024-03-01T02:00,x\nonly,two\n")
    watch = Watch(inbox, ledger)
    watch.look()
    watch.look()
    assert known(ledger) == [1.5, 2.5]
    assert names(inbox / "done") == ["a.csv"]
    assert (inbox / "rejected" / "a.csv.reason.txt").read_text().splitlines() == [
        "a.csv",
        "3 rows were refused, the others are kept:",
        "line 6: 2 fields; the header has 3",
        "row 3, series 'pump-7': ds must be a timestamp in ISO 8601 of the years 1800 to 2199, not the text "
        "'yesterday'",
        "row 4, series 'pump-7': y must be a number or null, not the text 'x'",
    ]


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("a.csv", b"unique_id,ds,y\npump-7,yesterday,1\n", "none of 1 rows can be kept"),
        ("a.csv", b"unique_id,ds,y\n", "none of 0 rows can be kept"),
        ("a.csv", b"", "cannot be read as CSV"),
        ("a.csv", b"time,y\n1,2\n", "has no column 'unique_id'; it has 'time', 'y'"),
        ("a.csv", b"unique_id,ds,y,y\na,2024-01-01,1,2\n", "has more than one column 'y'"),
        ("a.csv", b"unique_id,ds,y\na\xff,2024-01-01,1\n", "cannot be read as CSV"),
        ("a.parquet", b"PAR1", "cannot be read as Parquet"),
        ("a.xlsx", b"PK", "is neither .csv nor .parquet"),
    ],
)
def test_a_bad_file_is_set_aside_with_the_reason(
    inbox: Path, ledger: Ledger, name: str, content: bytes, why: str
) -> None:
    (inbox / name).write_bytes(content)
    (inbox / "good.csv").write_text(GOOD)
    watch = Watch(inbox, ledger)
    watch.look()
    watch.look()
    assert names(inbox / "rejected") == [name, f"{name}.reason.txt"]
    assert why in (inbox / "rejected" / f"{name}.reason.txt").read_text()
    assert (watch.tally.rejected, known(ledger)) == (1, [1.5, 2.5]), "the other file is taken in"


def test_a_crash_between_the_ledger_and_the_folder_takes_nothing_in_twice(
    inbox: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    (inbox / "a.csv").write_text(GOOD)

    def crash(*args: object) -> None:
        raise KeyboardInterrupt

    crashing = Watch(inbox, ledger)
    crashing.look()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", crash)
        with pytest.raises(KeyboardInterrupt):
            crashing.look()
    assert names(inbox) == ["a.csv", "done"]
    ledger.observations.append(
        "plant", pd.DataFrame({"unique_id": "pump-7", "ds": pd.to_datetime(["2024-03-01"]), "y": 7.0})
    )

    again = Watch(inbox, ledger)
    again.look()
    again.look()
    assert (again.tally.known, names(inbox / "done")) == (1, ["a.csv"])
    assert known(ledger) == [7.0, 2.5], "the revision stands"


def test_files_wait_while_the_ledger_is_away(inbox: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    (inbox / "a.csv").write_text(GOOD)
    monkeypatch.setattr("pipelines.folder.time.sleep", lambda _: None)
    append, times = IngestedStore.append_file, []

    def fail_twice(self: IngestedStore, *args: object, **kwargs: object) -> object:
        times.append(1)
        if len(times) <= 2:
            raise LedgerUnavailableError("the ledger does not answer")
        return append(self, *args, **kwargs)

    monkeypatch.setattr(IngestedStore, "append_file", fail_twice)
    with pytest.raises(LedgerUnavailableError):
        Watch(inbox, ledger).run(1.0, once=True)
    assert names(inbox) == ["a.csv"]

    watch = Watch(inbox, ledger)
    seen: list[int] = []
    look = watch.look

    def until_done() -> int:
        waiting = look()
        seen.append(1)
        if watch.tally.done:
            raise KeyboardInterrupt
        return waiting

    monkeypatch.setattr(watch, "look", until_done)
    with pytest.raises(KeyboardInterrupt):
        watch.run(1.0)
    assert "files stay where they are, trying again in 2 s" in watch.lines.said[0]
    assert known(ledger) == [1.5, 2.5]


def test_a_file_may_have_names_and_signs_of_its_own() -> None:
    text = "\ufeffsensor;time;value;site;note\n7;2024-03-01;1,5;007;x\n7;2024-03-02;NA;007;y\n"
    layout = FileLayout({"unique_id": "sensor", "ds": "time", "y": "value"}, ("site",), ";", ",")
    read = read_rows("a.csv", text.encode(), layout)
    assert read.refused == 0
    assert read.checked.rows["y"].fillna(-1).tolist() == [1.5, -1]
    assert read.checked.rows["site"].tolist() == ["007", "007"]


def test_the_command_takes_in_what_is_there_and_says_what_was_wrong(
    inbox: Path, settings: PipelineSettings
) -> None:
    (inbox / "a.csv").write_text(GOOD)
    pd.DataFrame({"unique_id": ["b"], "ds": pd.to_datetime(["2024-03-01"]), "y": [1]}).to_parquet(
        inbox / "b.parquet"
    )
    (inbox / "c.csv").write_text("nothing")
    arguments = ["watch", str(inbox), "--dataset", "plant", "--once", "--settle", "0.01"]

    outcome = CliRunner().invoke(app, arguments)

    assert isinstance(outcome.exception, InputError)
    assert "1 files were rejected" in str(outcome.exception)
    with closing(open_ledger(settings.ledger)) as ledger:
        assert known(ledger) == [1, 1.5, 2.5]
    with pytest.raises(InputError, match="is no folder"):
        CliRunner().invoke(app, ["watch", str(inbox / "x"), "--dataset", "plant"], catch_exceptions=False)


def test_columns_are_written_as_pairs() -> None:
    assert parse_columns("unique_id=sensor, ds = time") == {"unique_id": "sensor", "ds": "time"}
    with pytest.raises(InputError, match="--columns is written"):
        parse_columns("sensor")
