"""`hindcast keys`: what it prints, where, and how it ends."""

import json
import re
from datetime import UTC, datetime
from pathlib import Path

import pytest

from service.key_store import load_keys, save_last_used
from service.keys import main


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HINDCAST_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "keys.json"


def create(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["create", *arguments]) == 0
    return capsys.readouterr().out.strip()


def test_only_the_key_goes_to_standard_output_and_nothing_shows_it_again(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["create", "dashboard", "--scopes", "read,forecast", "--expires", "90d", "--rate", "5"]) == 0
    shown = capsys.readouterr()
    assert re.fullmatch(r"hc_[0-9a-f]{12}_[0-9a-f]{64}\n", shown.out)
    secret = shown.out.strip().rpartition("_")[2]
    assert secret not in shown.err
    assert "may read, forecast" in shown.err
    (kept,) = load_keys(path)
    assert (kept.name, kept.scopes, kept.rate) == ("dashboard", ("read", "forecast"), 5.0)
    assert kept.expires is not None
    assert (kept.expires - kept.created).days == 90
    for arguments in (["list"], ["list", "--json"], ["revoke", kept.id]):
        assert main(arguments) == 0
        shown = capsys.readouterr()
        assert secret not in shown.out + shown.err
        assert kept.digest not in shown.out + shown.err


def test_the_list_tells_scopes_last_use_and_state(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    create(capsys, "ops", "--scopes", "admin")
    create(capsys, "ops", "--scopes", "admin")
    first, second = load_keys(path)
    save_last_used(path, {second.id: datetime(2026, 3, 1, 12, tzinfo=UTC)})
    assert main(["revoke", first.id]) == 0
    capsys.readouterr()
    assert main(["list"]) == 0
    head, one, two = capsys.readouterr().out.splitlines()
    assert head.split()[:3] == ["id", "name", "scopes"]
    assert "was revoked at" in one
    assert "2026-03-01 12h" in two
    assert two.endswith("live")
    assert main(["list", "--json"]) == 0
    row = json.loads(capsys.readouterr().out.splitlines()[1])
    assert (row["id"], row["last_used"]) == (second.id, "2026-03-01T12:00:00+00:00")


def test_a_third_key_of_a_name_ends_with_2_and_the_reason(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    create(capsys, "ops")
    create(capsys, "ops")
    assert main(["create", "ops"]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "two live keys already" in shown.err


def test_a_key_that_was_found_in_the_wrong_place_revokes_itself(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = create(capsys, "ops")
    assert main(["revoke", key]) == 0
    assert load_keys(path)[0].revoked is not None


def test_revoking_what_is_not_there_ends_with_4(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["revoke", "0" * 12]) == 4
    assert "hindcast keys list" in capsys.readouterr().err


def test_a_file_that_is_named_is_used(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HINDCAST_KEYS_FILE", str(tmp_path / "elsewhere.json"))
    assert main(["create", "ops"]) == 0
    assert len(load_keys(tmp_path / "elsewhere.json")) == 1
    assert not path.exists()


def test_a_damaged_file_is_never_written_over(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    create(capsys, "ops")
    path.write_text("{")
    assert main(["create", "ops"]) == 2
    assert "is not a file of keys" in capsys.readouterr().err
    assert path.read_text() == "{"


@pytest.mark.parametrize(
    "wrong",
    [
        ["create", "ops", "--scopes", "root"],
        ["create", "ops", "--scopes", ""],
        ["create", "ops", "--expires", "0d"],
        ["create", "ops", "--expires", "soon"],
        ["create", "ops", "--rate", "0"],
        ["create", "ops", "--rate", "nan"],
        ["create", "two words"],
        ["create"],
        [],
    ],
)
def test_wrong_usage_ends_with_2(path: Path, wrong: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(wrong)
    assert not path.exists()
