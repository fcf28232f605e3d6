"""Observations: what was known is known for ever, whatever came later."""

import threading
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

import numpy as np
import pandas as pd
import pytest

from forecasting.errors import InputError, LedgerError, LedgerUnavailableError
from ledger.ledger import Ledger, open_ledger
from ledger.observations import ObservationStore
from tests.ledger.conftest import Ticking

DAYS = pd.date_range("2024-01-01", periods=4).as_unit("us")


def rows(values: list[float], unique_id: str = "pump-7", first: int = 0) -> pd.DataFrame:
    return pd.DataFrame({"unique_id": unique_id, "ds": DAYS[first : first + len(values)], "y": values})


def test_what_was_observed_is_read_back_by_series_and_time(ledger: Ledger) -> None:
    offered = pd.concat([rows([3.0, 4.0], "b"), rows([1.0, 2.0], "a")]).iloc[::-1]

    appended = ledger.observations.append("plant", offered)

    readings = ledger.observations.read("plant")
    assert (appended.new, appended.revised, appended.unchanged) == (4, 0, 0)
    assert readings.unique_ids == ("a", "b")
    assert readings.series_R.tolist() == [0, 0, 1, 1]
    assert readings.value_R.tolist() == [1, 2, 3, 4]
    np.testing.assert_array_equal(readings.ds_R, np.tile(DAYS[:2].to_numpy(), 2))
    assert readings.as_of == appended.known_at


def test_the_same_again_changes_nothing(ledger: Ledger) -> None:
    first = ledger.observations.append("plant", rows([1.0, np.nan, 3.0]))
    again = ledger.observations.append("plant", rows([1.0, np.nan, 3.0]))

    assert (first.new, first.unchanged) == (2, 1)
    assert (again.new, again.revised, again.unchanged) == (0, 0, 3)
    assert ledger.observations.last_known_at("plant") == first.known_at


def test_every_moment_is_answered_as_it_was(ledger: Ledger) -> None:
    store = ledger.observations
    moments = [
        store.append("plant", rows([1.0, 2.0])).known_at,
        store.append("plant", rows([2.5], first=1)).known_at,  # a revision
        store.append("plant", rows([4.0], first=3)).known_at,  # before the step in between
        store.append("plant", rows([3.0], first=2)).known_at,  # late
        store.append("plant", rows([np.nan])).known_at,  # withdrawn
    ]

    known = [store.read("plant", as_of=moment).value_R.tolist() for moment in moments]

    assert known[:4] == [[1, 2], [1, 2.5], [1, 2.5, 4], [1, 2.5, 3, 4]]
    np.testing.assert_array_equal(known[4], [np.nan, 2.5, 3, 4])
    assert store.read("plant", as_of=moments[0] - timedelta(microseconds=1)).unique_ids == ()
    np.testing.assert_array_equal(store.read("plant").value_R, known[4])
    assert store.read("plant", version="first").value_R.tolist() == [1, 2, 3, 4]


def test_a_revision_is_counted_and_its_history_kept(ledger: Ledger) -> None:
    before = ledger.observations.append("plant", rows([1.0, 2.0])).known_at
    appended = ledger.observations.append("plant", rows([9.0, 2.0, 5.0]))

    history = ledger.observations.revisions("plant", "pump-7")

    assert (appended.new, appended.revised, appended.unchanged, appended.added) == (1, 1, 1, 2)
    assert history["value"].tolist() == [1, 9, 2, 5]
    assert history["known_at"].tolist() == [before, appended.known_at, before, appended.known_at]
    assert ledger.observations.count_since("plant", before) == 2


@pytest.mark.parametrize("name", ["pump\x00", "pump\ud83d", "p" * 257], ids=["NUL", "half", "long"])
def test_a_name_that_cannot_be_kept_is_refused_with_its_row(ledger: Ledger, name: str) -> None:
    def refused(told: pd.DataFrame, static: Sequence[str] = ()) -> str:
        with pytest.raises(InputError) as caught:
            ledger.observations.append("plant", told, static=static)
        assert ledger.observations.datasets() == []
        return str(caught.value)

    third = rows([1.0, 2.0, 3.0]).assign(unique_id=pd.Series(["a", "b", name], dtype=object))
    assert refused(third).startswith("row 3: unique_id")
    assert refused(rows([1.0]).set_axis(pd.Index(["unique_id", "ds", name], dtype=object), axis=1)).startswith(
        "the column"
    )
    located = rows([1.0]).assign(site=pd.Series([name], dtype=object))
    assert refused(located, ["site"]).startswith("series 'pump-7': site")


@pytest.mark.parametrize("name", ["pump\x00", "pump\ud83d"], ids=["NUL", "half"])
def test_a_name_that_cannot_be_kept_cannot_be_looked_for(ledger: Ledger, name: str) -> None:
    looks: list[Callable[[], object]] = [
        lambda: ledger.observations.read("plant", unique_ids=[name]),
        lambda: ledger.observations.labels("plant", unique_ids=[name]),
        lambda: ledger.observations.page("plant", prefix=name),
        lambda: ledger.forecasts.find(name),
    ]
    for look in looks:
        with pytest.raises(InputError, match=r"'pump\?.*' has a NUL or half a character in it; nothing here has"):
            look()


def test_of_a_step_told_twice_the_later_row_counts(ledger: Ledger) -> None:
    ledger.observations.append("plant", pd.concat([rows([1.0]), rows([7.0])]))
    assert ledger.observations.read("plant").value_R.tolist() == [7]


def test_moments_ascend_even_when_the_clock_goes_back(ledger: Ledger, clock: Ticking) -> None:
    first = ledger.observations.append("plant", rows([1.0])).known_at
    clock.now -= timedelta(days=1)
    second = ledger.observations.append("plant", rows([2.0])).known_at

    assert second > first
    assert ledger.observations.read("plant", as_of=first).value_R.tolist() == [1]


def test_a_frame_has_what_is_known_though_the_clock_went_back(ledger: Ledger, clock: Ticking) -> None:
    ledger.observations.append("plant", rows([1.0]).assign(site="north"), static=["site"])
    clock.now -= timedelta(days=1)
    ledger.observations.append("plant", rows([2.0]).assign(site="west"), static=["site"])

    frame = ledger.observations.frame("plant", static=["site"])

    assert (frame["y"].tolist(), frame["site"].tolist()) == ([2.0], ["west"])
    assert ledger.observations.frame("elsewhere").empty


def test_columns_and_names_come_back_as_one_frame(ledger: Ledger) -> None:
    told = rows([1.0, 2.0]).assign(setpoint=[5.0, np.nan], site="north")
    moment = ledger.observations.append("plant", told, static=["site"]).known_at
    ledger.observations.append("plant", rows([3.0], first=2).assign(site="west"), static=["site"])

    now = ledger.observations.frame("plant", ["y", "setpoint"], static=["site"])
    then = ledger.observations.frame("plant", ["y", "setpoint"], static=["site"], as_of=moment)

    assert now["y"].tolist() == [1, 2, 3]
    np.testing.assert_array_equal(now["setpoint"], [5, np.nan, np.nan])
    assert set(now["site"]) == {"west"}
    assert then["y"].tolist() == [1, 2]
    assert set(then["site"]) == {"north"}


def test_only_what_is_asked_for_is_read(ledger: Ledger) -> None:
    for name in ("a", "b", "ab"):
        ledger.observations.append("plant", rows([1.0, 2.0, 3.0, 4.0], name))
    ledger.observations.append("other", rows([9.0], "a"))

    some = ledger.observations.read(
        "plant", unique_ids=["b", "nobody"], start=DAYS[1].to_datetime64(), end=DAYS[2].to_datetime64()
    )

    assert some.unique_ids == ("b",)
    assert some.value_R.tolist() == [2, 3]
    assert [found.unique_id for found in ledger.observations.series("plant", "a")] == ["a", "ab"]
    assert ledger.observations.series("plant")[0].last == DAYS[3].to_datetime64()
    assert ledger.observations.datasets() == ["other", "plant"]


def test_more_series_than_one_list_holds(ledger: Ledger) -> None:
    names = [f"s-{i:04}" for i in range(1_203)]
    frame = pd.DataFrame({"unique_id": names, "ds": DAYS[0], "y": np.arange(1_203.0)})
    ledger.observations.append("plant", frame)

    readings = ledger.observations.read("plant")

    assert readings.unique_ids == tuple(names)
    assert readings.value_R.tolist() == list(range(1_203))


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (rows([1.0]).drop(columns="ds"), "need the column 'ds'"),
        (rows([1.0]).drop(columns="y"), "need a column of values"),
        (rows([1.0]).assign(y="high"), "column 'y' holds str values, not numbers"),
        (rows([1.0]).assign(ds=pd.NaT), "needs a unique_id and a ds"),
    ],
)
def test_what_is_no_observation_is_refused(ledger: Ledger, frame: pd.DataFrame, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ledger.observations.append("plant", frame)
    assert ledger.observations.datasets() == []


def test_writers_at_one_time_lose_nothing_and_never_share_a_moment(ledger: Ledger) -> None:
    moments, errors = [], []

    def write(k: int) -> None:
        try:
            moments.extend(
                ledger.observations.append("plant", rows([float(i)], f"pump-{k}")).known_at for i in range(5)
            )
        except Exception as error:  # noqa: BLE001  (told to the test's own thread)
            errors.append(error)

    threads = [threading.Thread(target=write, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert not errors
    assert len(set(moments)) == 20
    assert len(ledger.observations.revisions("plant", "pump-3")) == 5


def test_a_second_opening_finds_everything(ledger: Ledger, ledger_url: str) -> None:
    ledger.observations.append("plant", rows([1.0]))
    again = open_ledger(ledger_url)
    assert again.observations.read("plant").value_R.tolist() == [1]
    again.close()


def test_a_database_that_does_not_answer_is_said_so_without_its_password() -> None:
    with pytest.raises(LedgerUnavailableError, match="postgresql database does not answer") as caught:
        open_ledger("postgresql://me:secret@127.0.0.1:1/none")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("url", ["mysql://host/db", "no url at all"])
def test_another_kind_of_database_is_refused(url: str) -> None:
    with pytest.raises(LedgerError, match=r"SQLite|sqlite"):
        open_ledger(url)


def test_a_moment_is_not_answered_while_someone_writes_under_an_earlier_one(
    ledger: Ledger, clock: Ticking
) -> None:
    ledger.observations.append("plant", rows([1.0]))
    writer_is_in, may_end = threading.Event(), threading.Event()

    def slow_clock() -> datetime:
        writer_is_in.set()
        may_end.wait(10)
        return clock()

    slow = ObservationStore(ledger.engine, slow_clock)
    writer = threading.Thread(target=slow.append, args=("plant", rows([2.0])))
    writer.start()
    assert writer_is_in.wait(10)
    found: list[list[float]] = []
    later = clock() + timedelta(hours=1)
    reader = threading.Thread(
        target=lambda: found.append(ledger.observations.read("plant", as_of=later).value_R.tolist())
    )
    reader.start()
    reader.join(0.2)
    assert found == []

    may_end.set()
    reader.join(10)
    writer.join(10)
    assert found == [[2.0]]
