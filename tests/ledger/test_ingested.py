"""What was taken in once is not taken in again, whatever happens in between."""

import threading

import pandas as pd
import pytest

from forecasting.errors import InputError
from ledger.ingested import FileMark, IngestedFile
from ledger.ledger import Ledger
from ledger.observations import Appended


def rows(*values: float) -> pd.DataFrame:
    ds = pd.date_range("2024-01-01", periods=len(values)).as_unit("us")
    return pd.DataFrame({"unique_id": "pump-7", "ds": ds, "y": values})


def test_a_file_is_taken_in_once(ledger: Ledger) -> None:
    first = ledger.ingested.append_file("plant", rows(1.0, 2.0), FileMark("a.csv", "c" * 64, refused=3))
    ledger.observations.append("plant", rows(1.0, 2.5))
    again = ledger.ingested.append_file("plant", rows(1.0, 2.0), FileMark("b.csv", "c" * 64))

    assert isinstance(first, Appended)
    assert again == IngestedFile("a.csv", first.known_at, 2, 0, 0, 3)
    assert ledger.ingested.find_file("plant", "c" * 64) == again
    assert ledger.ingested.find_file("other", "c" * 64) is None
    assert ledger.observations.read("plant").value_R.tolist() == [1, 2.5], "the file did not undo the revision"


def test_a_file_that_fails_leaves_no_mark(ledger: Ledger) -> None:
    bad = rows(1.0).assign(y="one")
    with pytest.raises(InputError):
        ledger.ingested.append_file("plant", bad, FileMark("a.csv", "c" * 64))

    assert ledger.ingested.find_file("plant", "c" * 64) is None
    assert isinstance(ledger.ingested.append_file("plant", rows(1.0), FileMark("a.csv", "c" * 64)), Appended)


def test_two_who_take_in_one_file_at_once_take_it_in_once(ledger: Ledger) -> None:
    found: list[object] = []

    def take() -> None:
        found.append(ledger.ingested.append_file("plant", rows(1.0, 2.0), FileMark("a.csv", "c" * 64)))

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(type(one).__name__ for one in found) == ["Appended", *["IngestedFile"] * 3]


def test_a_watermark_moves_with_its_rows_or_not_at_all(ledger: Ledger) -> None:
    store = ledger.ingested
    assert store.watermark("plant", "s") is None
    store.append_until("plant", rows(1.0), "s", "10")
    with pytest.raises(InputError):
        store.append_until("plant", rows(1.0).assign(y="one"), "s", "20")

    assert store.watermark("plant", "s") == "10"
    assert store.watermark("plant", "another") is None
    store.append_until("plant", rows(2.0), "s", "20")
    assert store.watermark("plant", "s") == "20"
