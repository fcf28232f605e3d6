"""Decisions: recorded once, in order, with all their numbers; on both kinds of database."""

from dataclasses import replace
from typing import Any

import pytest

from ledger.decisions import RecordedDecision
from ledger.ledger import Ledger


def decision(key: str, version: str = "2", **changes: Any) -> RecordedDecision:
    plain = RecordedDecision(key, "tiny", version, "1", "keep", "gate", "new", "p=0.4", {"p_value": 0.4})
    return replace(plain, **changes)


def test_a_decision_comes_back_as_it_was_recorded(ledger: Ledger) -> None:
    numbers = {"p_value": 0.012, "scores": {"challenger": 0.5, "champion": None}, "look": 3}
    kept = ledger.decisions.record(decision("run-1:gate", numbers=numbers))
    assert kept.decided_at is not None
    assert kept == replace(decision("run-1:gate", numbers=numbers), decided_at=kept.decided_at)
    assert ledger.decisions.find("run-1:gate") == kept
    assert ledger.decisions.find("run-2:gate") is None


def test_a_repeated_step_records_once_and_gets_what_was_decided_first(ledger: Ledger) -> None:
    first = ledger.decisions.record(decision("run-1:gate", action="promote"))
    again = ledger.decisions.record(decision("run-1:gate", action="keep", reason="another world"))
    assert again == first
    assert ledger.decisions.of_model("tiny") == [first]


def test_the_newest_come_first(ledger: Ledger) -> None:
    for i in range(5):
        ledger.decisions.record(decision(f"run-{i}:gate", version=str(i)))
    ledger.decisions.record(decision("other:gate", model="other"))
    assert [d.version for d in ledger.decisions.of_model("tiny", limit=2)] == ["4", "3"]
    assert len(ledger.decisions.of_model(None)) == 6
    assert ledger.decisions.of_model("nobody") == []


def test_looks_are_what_the_gate_decided_of_a_kind_oldest_first(ledger: Ledger) -> None:
    ledger.decisions.record(decision("a", version="2"))
    ledger.decisions.record(decision("b", version="3", kind="refresh"))
    ledger.decisions.record(decision("c", version="4", action="shadow"))
    ledger.decisions.record(decision("d", version="4", action="promote", by="trial"))
    ledger.decisions.record(decision("e", version="5", action="promote", by="person kim", kind="override"))
    assert [d.version for d in ledger.decisions.looks("tiny", "new")] == ["2", "4"]
    assert ledger.decisions.promoted("tiny") == {"4"}, "a person's promotion is no evidence"


def test_the_last_decision_about_a_version_is_found(ledger: Ledger) -> None:
    ledger.decisions.record(decision("a", version="4", action="shadow"))
    ledger.decisions.record(decision("b", version="4", action="promote", by="trial"))
    found = ledger.decisions.last_about("tiny", "4", ["shadow"], by="gate")
    assert found is not None
    assert found.key == "a"
    assert ledger.decisions.last_about("tiny", "4", ["rollback"]) is None


def test_a_number_that_is_none_for_json_is_refused(ledger: Ledger) -> None:
    with pytest.raises(ValueError, match="JSON"):
        ledger.decisions.record(decision("a", numbers={"p_value": float("nan")}))
    assert ledger.decisions.of_model("tiny") == []
