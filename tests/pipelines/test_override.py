"""What a person decides: recorded first, carried out then, and undone by nobody who was told to hold."""

from pathlib import Path

import pytest

from forecasting.artifact import save_artifact
from forecasting.errors import LedgerUnavailableError, ModelNotFoundError, RegistryError
from forecasting.registry import SHADOW, TAG_DECISION, TAG_REASON, open_registry, promote, resolve_or_none
from ledger.ledger import open_ledger
from pipelines.override import TAG_BY, Override, promote_by_hand, roll_back_by_hand
from pipelines.settings import PipelineSettings
from tests.conftest import free_port, make_forecaster

KIM = Override("the sensor was replaced", "kim")


@pytest.fixture
def settings(settings: PipelineSettings, tmp_path: Path) -> PipelineSettings:
    """Two versions in a directory, the first of them the champion."""
    settings = settings.model_copy(update={"registry_uri": f"file://{tmp_path}/registry"})
    registry = open_registry(settings.registry)
    for seed in range(2):
        save_artifact(make_forecaster(seed=seed), tmp_path / f"artifact-{seed}")
        registry.publish("tiny", tmp_path / f"artifact-{seed}", {})
    promote(registry, "tiny", "1")
    return settings


def test_a_promotion_by_hand_says_who_and_why_and_is_watched(settings: PipelineSettings) -> None:
    assert promote_by_hand(settings, "tiny", "2", KIM, hold=False).version == "2"
    registry = open_registry(settings.registry)
    champion = registry.resolve("tiny")
    assert (champion.tags[TAG_DECISION], champion.tags[TAG_REASON]) == ("promoted", KIM.reason)
    assert champion.tags[TAG_BY] == "person kim"
    assert registry.resolve("tiny", SHADOW).version == "1"
    recorded = open_ledger(settings.ledger).decisions.of_model("tiny")[0]
    assert (recorded.version, recorded.against, recorded.action, recorded.by, recorded.kind, recorded.reason) == (
        "2",
        "1",
        "promote",
        "person kim",
        "override",
        KIM.reason,
    )


def test_who_is_told_to_hold_is_not_watched(settings: PipelineSettings) -> None:
    promote_by_hand(settings, "tiny", "2", KIM, hold=True)
    assert resolve_or_none(open_registry(settings.registry), "tiny", SHADOW) is None


def test_a_person_may_change_their_mind_and_each_time_counts(settings: PipelineSettings) -> None:
    for _ in range(2):
        promote_by_hand(settings, "tiny", "2", KIM, hold=False)
        assert roll_back_by_hand(settings, "tiny", KIM).version == "1"
    decisions = open_ledger(settings.ledger).decisions.of_model("tiny")
    assert [d.action for d in decisions] == ["rollback", "promote"] * 2
    assert open_registry(settings.registry).version("tiny", "2").tags[TAG_DECISION] == "rolled back"


def test_what_cannot_be_done_is_not_recorded(settings: PipelineSettings) -> None:
    with pytest.raises(RegistryError, match="no champion before it"):
        roll_back_by_hand(settings, "tiny", KIM)
    with pytest.raises(ModelNotFoundError):
        promote_by_hand(settings, "tiny", "9", KIM, hold=False)
    assert open_ledger(settings.ledger).decisions.of_model("tiny") == []


def test_without_the_ledger_nothing_is_done_unless_it_cannot_wait(settings: PipelineSettings) -> None:
    nowhere = settings.model_copy(update={"ledger_url": f"postgresql://nobody@127.0.0.1:{free_port()}/none"})
    with pytest.raises(LedgerUnavailableError, match=r"nothing was done.*--unrecorded"):
        promote_by_hand(nowhere, "tiny", "2", KIM, hold=False)
    registry = open_registry(settings.registry)
    assert registry.resolve("tiny").version == "1"
    promote_by_hand(nowhere, "tiny", "2", Override("fire", "kim", unrecorded=True), hold=False)
    assert registry.resolve("tiny").tags[TAG_BY] == "person kim"
